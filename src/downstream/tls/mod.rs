//! TLS towards the clients: which certificate, which settings, and what a failed handshake means.

mod certificates;
mod failure;
pub mod hello;
mod identity;
mod tickets;

use std::{cell::RefCell, future::poll_fn, io, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
pub use rustls::Error as SetupError;
use rustls::{
    CipherSuite, Error, ProtocolVersion, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, ProducesTickets, ResolvesServerCert},
};
use tokio::net::TcpStream;

use self::{certificates::Challenges, failure::PlainHttp, tickets::Ticketer};
pub use self::{
    certificates::{CertificateStore, Served, Slot},
    failure::failure,
    tickets::TicketKeys,
};
use crate::{
    config::{ClientAuth, ListenerTls, TlsVersion},
    http::{buffer::ReadBuffer, tls_stream::TlsStream},
    proxy::{policies::ClientPolicies, worker::TlsFacts},
};

/// The TLS side of a listener; cheap to clone, shared by all workers and so are its tickets.
#[derive(Clone, Debug)]
pub struct Acceptor(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    certificates: Arc<CertificateStore>,
    tickets: Arc<TicketKeys>,
    minimum_version: TlsVersion,
    policies: ClientPolicies,
    /// By index of the policy.
    settings: Vec<ArcSwap<Settings>>,
    /// For who validates a name by ACME, and speaks nothing else.
    challenge: Arc<ServerConfig>,
}

/// What a handshake under one policy is made with.
#[derive(Debug)]
struct Settings {
    usual: Arc<ServerConfig>,
    /// The same, tickets and certificates included, for clients that put ChaCha20 first.
    chacha20: Arc<ServerConfig>,
    client_auth: Option<Arc<ClientAuth>>,
}

/// The protocol of such a validation (RFC 8737).
const ACME_TLS: &[u8] = b"acme-tls/1";

impl Acceptor {
    /// Waits for the client's hello, which is as good as free; the caller sets the deadline.
    pub async fn hear(&self, stream: &mut TcpStream) -> io::Result<ReadBuffer> {
        let mut received = ReadBuffer::default();
        if hello::arrive(stream, &mut received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if PlainHttp::is_in(received.data()) {
            return Err(io::Error::other(PlainHttp));
        }
        Ok(received)
    }

    /// Runs the handshake that begins with what was `received`; the caller sets the deadline.
    pub async fn accept(
        &self,
        mut stream: TcpStream,
        mut received: ReadBuffer,
    ) -> io::Result<(Box<TlsStream>, TlsFacts)> {
        let policy = match self.look(&mut stream, &mut received).await? {
            Asked::Policy(policy) => policy,
            Asked::Challenge => return self.prove(stream, received).await,
        };
        let settings = self.0.settings[policy].load_full();
        let chacha20 = hello::prefers_chacha20(received.data());
        let config = if chacha20 { &settings.chacha20 } else { &settings.usual };
        let (stream, sni) = shake_hands(config.clone(), stream, received).await?;
        let mut facts = facts(&stream, sni, policy);
        if let Some(auth) = &settings.client_auth {
            let chain = stream.session().peer_certificates().unwrap_or_default();
            facts.identity = Some(Box::new(identity::of(chain, auth.forward)));
        }
        Ok((stream, facts))
    }

    /// Shows the certificate of a challenge; with that, the connection has served its purpose.
    async fn prove(&self, stream: TcpStream, received: ReadBuffer) -> io::Result<(Box<TlsStream>, TlsFacts)> {
        let (stream, sni) = shake_hands(self.0.challenge.clone(), stream, received).await?;
        let facts = facts(&stream, sni, 0);
        Ok((stream, facts))
    }

    /// The certificates of the listener, to be exchanged while it serves.
    pub fn certificates(&self) -> &Arc<CertificateStore> {
        &self.0.certificates
    }

    /// What its tickets are sealed with.
    pub fn tickets(&self) -> &Arc<TicketKeys> {
        &self.0.tickets
    }

    /// The policies of the listener whose clients are asked for certificates, with their index.
    pub fn client_auths(&self) -> impl Iterator<Item = (usize, &Arc<ClientAuth>)> {
        let all = self.0.policies.distinct().iter().enumerate();
        all.filter_map(|(index, auth)| Some((index, auth.as_ref()?)))
    }

    /// Verifies clients by this from now on, those of connections that are open excepted.
    ///
    /// # Errors
    /// What the TLS library has against it; nothing changes then.
    pub fn set_client_auth(&self, policy: usize, auth: Arc<ClientAuth>) -> Result<(), Error> {
        let Shared { certificates, minimum_version, settings, .. } = &*self.0;
        let new = Settings::new(*minimum_version, certificates, Some(auth), None)?;
        settings[policy].store(Arc::new(new));
        Ok(())
    }

    /// Looks what the hello asks for. It is read to its end only while something depends on it.
    async fn look(&self, stream: &mut TcpStream, received: &mut ReadBuffer) -> io::Result<Asked> {
        let Shared { certificates, policies, .. } = &*self.0;
        if !policies.differ() && !certificates.has_challenges() {
            return Ok(Asked::Policy(0));
        }
        let Some(hello) = hello::read(stream, received).await? else { return Ok(Asked::Policy(0)) };
        let hello = hello.parsed();
        let validates = hello.alpn().is_some_and(|mut names| names.any(|name| name == ACME_TLS));
        if validates && certificates.has_challenges() {
            return Ok(Asked::Challenge);
        }
        let name = hello.server_name().map(certificates::canonical).unwrap_or_default();
        Ok(Asked::Policy(policies.of(&name)))
    }
}

/// What a hello asks for.
enum Asked {
    /// The settings of the policy with this index.
    Policy(usize),
    Challenge,
}

/// Runs the handshake; returns the name that was asked for, too.
async fn shake_hands(
    config: Arc<ServerConfig>,
    stream: TcpStream,
    received: ReadBuffer,
) -> io::Result<(Box<TlsStream>, Option<String>)> {
    let mut stream = Box::new(TlsStream::new(config, stream, received)?);
    let mut sni = None;
    poll_fn(|cx| {
        let result = stream.poll_handshake(cx);
        if let Some(name) = ASKED_NAME.take() {
            sni = Some(name);
        }
        result
    })
    .await?;
    Ok((stream, sni))
}

thread_local! {
    /// The name that a client hello asked for, from the certificate's choice to the end of the same
    /// poll: the session itself does not tell.
    static ASKED_NAME: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes the acceptor of a listener.
///
/// # Errors
/// A key of a kind that the TLS library does not support.
pub fn acceptor(tls: &ListenerTls) -> Result<Acceptor, Error> {
    let certificates = Arc::new(CertificateStore::new(tls)?);
    let secrets = tls.ticket_keys.as_ref().map_or(&[][..], |file| &file.secrets);
    let tickets = TicketKeys::new(secrets, Instant::now()).map_err(|_| Error::FailedToGetRandomBytes)?;
    let tickets = Arc::new(tickets);
    let policies = ClientPolicies::new(tls);
    let settings = policies.distinct().iter().map(|auth| {
        // Who must show a certificate shows it each time.
        let ticketer = auth.is_none().then(|| ticketer(&tickets, tls.minimum_version));
        let settings = Settings::new(tls.minimum_version, &certificates, auth.clone(), ticketer.as_ref())?;
        Ok(ArcSwap::from_pointee(settings))
    });
    let settings = settings.collect::<Result<_, Error>>()?;
    let resolver = Arc::new(Challenges(certificates.clone()));
    let mut challenge = config(tls.minimum_version, AES_128, resolver, (None, None))?;
    challenge.alpn_protocols = vec![ACME_TLS.to_vec()];
    Ok(Acceptor(Arc::new(Shared {
        certificates,
        tickets,
        minimum_version: tls.minimum_version,
        policies,
        settings,
        challenge: Arc::new(challenge),
    })))
}

/// Tickets of clients that were asked for no certificate: under any other policy they do not open.
fn ticketer(keys: &Arc<TicketKeys>, minimum_version: TlsVersion) -> Arc<dyn ProducesTickets> {
    let bound_to: &[u8] = match minimum_version {
        TlsVersion::Tls12 => b"no client certificate, TLS 1.2",
        TlsVersion::Tls13 => b"no client certificate, TLS 1.3",
    };
    Arc::new(Ticketer { keys: keys.clone(), bound_to })
}

impl Settings {
    fn new(
        minimum_version: TlsVersion,
        certificates: &Arc<CertificateStore>,
        client_auth: Option<Arc<ClientAuth>>,
        ticketer: Option<&Arc<dyn ProducesTickets>>,
    ) -> Result<Self, Error> {
        let make = |first| {
            let more = (client_auth.as_deref(), ticketer.cloned());
            config(minimum_version, first, certificates.clone(), more).map(Arc::new)
        };
        Ok(Settings { usual: make(AES_128)?, chacha20: make(CHACHA20)?, client_auth })
    }
}

fn config(
    minimum_version: TlsVersion,
    first: [CipherSuite; 3],
    certificates: Arc<dyn ResolvesServerCert>,
    (client_auth, ticketer): (Option<&ClientAuth>, Option<Arc<dyn ProducesTickets>>),
) -> Result<ServerConfig, Error> {
    let versions: &[&SupportedProtocolVersion] = match minimum_version {
        TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let builder =
        ServerConfig::builder_with_provider(Arc::new(provider(first))).with_protocol_versions(versions)?;
    let builder = match client_auth {
        Some(auth) => builder.with_client_cert_verifier(auth.verifier.clone()),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    if let Some(ticketer) = ticketer {
        config.ticketer = ticketer;
        config.send_tls13_tickets = TICKETS;
        config.max_tls13_tickets = TICKETS_ON_REQUEST;
    }
    Ok(config)
}

/// Tickets a handshake of TLS 1.3, where a client should use each once (RFC 8446 §C.4).
///
/// Each connection gives its successor one, so who comes back with as many connections as before
/// resumes all of them; a second ticket would cost 1 to 2 % of a resumed handshake. Go sends one as well,
/// OpenSSL one after a resumed handshake and two after a full one.
const TICKETS: usize = 1;
/// For a client that says how many it can use (RFC 9149).
const TICKETS_ON_REQUEST: usize = 4;

/// First for most: as strong as needed, and cheaper than AES-256 with SHA-384, above all in
/// handshakes.
const AES_128: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];
/// First for clients without AES in hardware: phones, mostly, whose battery it is that pays.
const CHACHA20: [CipherSuite; 3] = [
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

fn provider(first: [CipherSuite; 3]) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !first.contains(&suite.suite()));
    provider
}

/// What the access log says of a connection.
fn facts(stream: &TlsStream, sni: Option<String>, policy: usize) -> TlsFacts {
    let session = stream.session();
    TlsFacts {
        version: match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        },
        cipher: session.negotiated_cipher_suite().map_or("", |suite| cipher_name(suite.suite())),
        sni,
        resumed: session.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        policy,
        identity: None,
    }
}

/// Whether the connection was only there to validate a name, and is over.
pub fn is_challenge(stream: &TlsStream) -> bool {
    stream.session().alpn_protocol() == Some(ACME_TLS)
}

/// Whether the client chose HTTP/2.
pub fn is_h2(stream: &TlsStream) -> bool {
    stream.session().alpn_protocol() == Some(b"h2")
}

fn cipher_name(suite: CipherSuite) -> &'static str {
    suite.as_str().unwrap_or("")
}

#[cfg(test)]
mod tests {
    use std::{
        path::PathBuf,
        sync::atomic::{AtomicBool, Ordering},
    };

    use rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::{TlsConnector, client};

    use super::*;
    use crate::config::{Certificate, Stamps};

    fn listener() -> ListenerTls {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = Certificate {
            chain_file: PathBuf::new(),
            key_file: PathBuf::new(),
            chain: vec![pair.cert.der().clone()],
            key: PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap(),
            names: vec!["localhost".to_owned()],
            serial: String::new(),
            not_before: 0,
            not_after: 0,
            ocsp: None,
            stamps: Stamps::default(),
        };
        ListenerTls { certificates: vec![certificate], ..ListenerTls::default() }
    }

    /// A client with this list of ciphers, in its order.
    fn client(root: &CertificateDer<'static>, suites: &[CipherSuite]) -> TlsConnector {
        let mut provider = aws_lc_rs::default_provider();
        let all = std::mem::take(&mut provider.cipher_suites);
        let known = |suite: &CipherSuite| all.iter().find(|one| one.suite() == *suite).copied();
        provider.cipher_suites = suites.iter().filter_map(known).collect();
        let version = provider.cipher_suites[0].version();
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }

    async fn serve(acceptor: &Acceptor, mut stream: TcpStream) -> io::Result<(Box<TlsStream>, TlsFacts)> {
        let received = acceptor.hear(&mut stream).await?;
        acceptor.accept(stream, received).await
    }

    async fn connect(acceptor: &Acceptor, client: &TlsConnector) -> client::TlsStream<TcpStream> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let ours = listener.accept().await.unwrap().0;
        let name = ServerName::try_from("localhost").unwrap();
        let (ours, theirs) = tokio::join!(serve(acceptor, ours), client.connect(name, theirs));
        let (mut ours, mut theirs) = (ours.unwrap().0, theirs.unwrap());
        ours.write_all(b"x").await.unwrap();
        theirs.read_exact(&mut [0]).await.unwrap();
        theirs
    }

    fn agreed(stream: &client::TlsStream<TcpStream>) -> CipherSuite {
        stream.get_ref().1.negotiated_cipher_suite().unwrap().suite()
    }

    #[tokio::test]
    async fn gives_chacha20_to_those_that_put_it_first_and_aes_128_to_all_others() {
        let tls = listener();
        let acceptor = acceptor(&tls).unwrap();
        let [aes, ecdsa_aes, _] = AES_128;
        let [chacha20, ecdsa_chacha20, _] = CHACHA20;
        let aes_256 = CipherSuite::TLS13_AES_256_GCM_SHA384;
        for (offered, expected) in [
            (vec![chacha20, aes, aes_256], chacha20),
            (vec![chacha20], chacha20),
            (vec![aes, chacha20], aes),
            (vec![aes_256, chacha20, aes], aes),
            (vec![ecdsa_chacha20, ecdsa_aes], ecdsa_chacha20),
            (vec![ecdsa_aes, ecdsa_chacha20], ecdsa_aes),
        ] {
            let client = client(&tls.certificates[0].chain[0], &offered);
            assert_eq!(agreed(&connect(&acceptor, &client).await), expected, "of {offered:?}");
        }
    }

    #[tokio::test]
    async fn a_handshake_brings_one_ticket() {
        let tls = listener();
        let client = client(&tls.certificates[0].chain[0], &AES_128[..1]);
        let stream = connect(&acceptor(&tls).unwrap(), &client).await;
        assert_eq!(stream.get_ref().1.tls13_tickets_received(), 1);
    }

    #[test]
    fn tickets_hold_whatever_cipher_the_client_puts_first_next_time() {
        let acceptor = acceptor(&listener()).unwrap();
        let settings = acceptor.0.settings[0].load();
        assert!(Arc::ptr_eq(&settings.usual.ticketer, &settings.chacha20.ticketer));
    }

    fn certificate(name: &str) -> Certificate {
        let pair = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
        Certificate::from_der(vec![pair.cert.der().clone()], key).unwrap()
    }

    /// A handshake for a name with these protocols; what was agreed on, or the server's error.
    async fn ask(
        acceptor: &Acceptor,
        root: &CertificateDer<'static>,
        (name, protocols): (&str, &[&[u8]]),
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let ours = listener.accept().await.unwrap().0;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let client = TlsConnector::from(Arc::new(config));
        let (ours, theirs) = tokio::join!(serve(acceptor, ours), client.connect(name, theirs));
        let ours = ours.map_err(|error| *error.into_inner().unwrap().downcast::<Error>().unwrap())?.0;
        theirs.unwrap();
        assert_eq!(is_challenge(&ours), protocols == [ACME_TLS]);
        Ok(ours.session().alpn_protocol().map(<[u8]>::to_vec))
    }

    #[tokio::test]
    async fn a_validation_sees_the_certificate_of_its_challenge_and_nobody_else_does() {
        let (tls, challenge) = (listener(), certificate("new.example"));
        let site = tls.certificates[0].chain[0].clone();
        let acceptor = acceptor(&tls).unwrap();
        let validation: (_, &[&[u8]]) = ("new.example", &[ACME_TLS]);
        let refused = ask(&acceptor, &challenge.chain[0], validation).await;
        assert_eq!(refused, Err(Error::NoApplicationProtocol), "there is none yet");
        acceptor.certificates().set_challenge("new.example", &challenge).unwrap();
        let agreed = ask(&acceptor, &challenge.chain[0], validation).await;
        assert_eq!(agreed, Ok(Some(ACME_TLS.to_vec())));
        let agreed = ask(&acceptor, &site, ("localhost", &[b"h2", b"http/1.1"])).await;
        assert_eq!(agreed, Ok(Some(b"h2".to_vec())));
        let other = ask(&acceptor, &site, ("localhost", &[ACME_TLS])).await;
        assert!(other.is_err(), "a name without a challenge");
        acceptor.certificates().remove_challenge("new.example");
        let refused = ask(&acceptor, &challenge.chain[0], validation).await;
        assert_eq!(refused, Err(Error::NoApplicationProtocol));
    }

    #[tokio::test]
    async fn no_handshake_is_lost_while_certificates_are_exchanged_a_hundred_times() {
        let all: Vec<Certificate> = (0..100).map(|_| certificate("localhost")).collect();
        let known: Vec<CertificateDer<'static>> = all.iter().map(|each| each.chain[0].clone()).collect();
        let acceptor = acceptor(&listener()).unwrap();
        let (store, slot) = (acceptor.certificates().clone(), acceptor.certificates().slots()[0]);
        store.replace(slot, &all[0]).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let clients = [(); 2].map(|()| {
            let (acceptor, client, done) = (acceptor.clone(), trusting(&known), done.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let mut handshakes = 0;
                while handshakes == 0 || !done.load(Ordering::Relaxed) {
                    // One that fails panics.
                    runtime.block_on(connect(&acceptor, &client));
                    handshakes += 1;
                }
            })
        });
        let client = trusting(&known);
        for certificate in &all {
            store.replace(slot, certificate).unwrap();
            let stream = connect(&acceptor, &client).await;
            assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], certificate.chain[0]);
        }
        done.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no handshake fails");
        }
    }

    /// A client that knows all these certificates.
    fn trusting(roots: &[CertificateDer<'static>]) -> TlsConnector {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.unwrap().with_root_certificates(store).with_no_client_auth();
        // Each handshake is to show a certificate.
        config.resumption = rustls::client::Resumption::disabled();
        TlsConnector::from(Arc::new(config))
    }
}
