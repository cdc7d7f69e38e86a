//! TLS towards the clients: which certificate, which settings, and what a failed handshake means.

use std::{cell::RefCell, collections::HashMap, future::poll_fn, io, sync::Arc};

pub use rustls::Error as SetupError;
use rustls::{
    AlertDescription, CipherSuite, Error, ProtocolVersion, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::net::TcpStream;

use super::hello::prefers_chacha20;
use crate::{
    config::{ListenerTls, TlsVersion},
    http::{buffer::ReadBuffer, tls_stream::TlsStream},
    proxy::worker::TlsFacts,
};

/// The TLS side of a listener; cheap to clone, shared by all workers and so are its tickets.
#[derive(Clone, Debug)]
pub struct Acceptor {
    usual: Arc<ServerConfig>,
    /// The same, tickets and certificates included, for clients that put ChaCha20 first.
    chacha20: Arc<ServerConfig>,
}

impl Acceptor {
    /// Runs a handshake; the caller sets the deadline.
    pub async fn accept(&self, mut stream: TcpStream) -> io::Result<(Box<TlsStream>, TlsFacts)> {
        let mut received = ReadBuffer::default();
        if poll_fn(|cx| received.poll_read(&mut stream, cx)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let config = if prefers_chacha20(received.data()) { &self.chacha20 } else { &self.usual };
        let mut stream = Box::new(TlsStream::new(config.clone(), stream, received)?);
        let mut sni = None;
        poll_fn(|cx| {
            let result = stream.poll_handshake(cx);
            if let Some(name) = ASKED_NAME.take() {
                sni = Some(name);
            }
            result
        })
        .await?;
        let facts = facts(&stream, sni);
        Ok((stream, facts))
    }
}

thread_local! {
    /// The name that a client hello asked for, from the certificate's choice to the end of the same
    /// poll: the session itself does not tell.
    static ASKED_NAME: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A listener's certificates by the names they are for.
///
/// The certificate of a name is that of the first one in the configuration that lists it; an exact
/// name comes before a wildcard, which stands for one label (RFC 6125 §6.4.3); else the first
/// certificate of the listener, unless `strict_sni`.
#[derive(Debug)]
pub struct Certificates {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows `*.`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

/// Makes the acceptor of a listener.
///
/// # Errors
/// A key of a kind that the TLS library does not support.
pub fn acceptor(tls: &ListenerTls) -> Result<Acceptor, Error> {
    let certificates = Arc::new(Certificates::new(tls)?);
    let ticketer = aws_lc_rs::Ticketer::new()?;
    let usual = config(tls, AES_128, certificates.clone(), ticketer.clone())?;
    let chacha20 = config(tls, CHACHA20, certificates, ticketer)?;
    Ok(Acceptor { usual: Arc::new(usual), chacha20: Arc::new(chacha20) })
}

fn config(
    tls: &ListenerTls,
    first: [CipherSuite; 3],
    certificates: Arc<Certificates>,
    ticketer: Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, Error> {
    let versions: &[&SupportedProtocolVersion] = match tls.minimum_version {
        TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider(first)))
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ticketer;
    config.send_tls13_tickets = TICKETS;
    config.max_tls13_tickets = TICKETS_ON_REQUEST;
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

impl Certificates {
    /// # Errors
    /// A key of a kind that the TLS library does not support.
    pub fn new(tls: &ListenerTls) -> Result<Self, Error> {
        let mut all = Certificates { exact: HashMap::new(), wildcard: HashMap::new(), default: None };
        for certificate in &tls.certificates {
            let key = aws_lc_rs::sign::any_supported_type(&certificate.key)?;
            let certified = Arc::new(CertifiedKey::new(certificate.chain.clone(), key));
            for name in &certificate.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(suffix) => (&mut all.wildcard, suffix),
                    None => (&mut all.exact, name.as_str()),
                };
                names.entry(name.to_owned()).or_insert_with(|| certified.clone());
            }
            if !tls.strict_sni {
                all.default.get_or_insert(certified);
            }
        }
        Ok(all)
    }

    /// The certificate for a name as the client sent it; two look-ups at most, however many there
    /// are.
    pub fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let wildcard = || self.wildcard.get(name.split_once('.')?.1);
        self.exact.get(&name).or_else(wildcard)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        ASKED_NAME.set(hello.server_name().map(str::to_owned));
        let found = hello.server_name().and_then(|name| self.find(name));
        found.or(self.default.as_ref()).cloned()
    }
}

/// What the access log says of a connection.
fn facts(stream: &TlsStream, sni: Option<String>) -> TlsFacts {
    let session = stream.session();
    TlsFacts {
        version: match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        },
        cipher: session.negotiated_cipher_suite().map_or("", |suite| cipher_name(suite.suite())),
        sni,
        resumed: session.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
    }
}

/// Whether the client chose HTTP/2.
pub fn is_h2(stream: &TlsStream) -> bool {
    stream.session().alpn_protocol() == Some(b"h2")
}

fn cipher_name(suite: CipherSuite) -> &'static str {
    suite.as_str().unwrap_or("")
}

/// Why a handshake failed: the `result` of `tls_handshakes_total`.
pub fn failure(error: &io::Error) -> &'static str {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return "closed";
    };
    match error {
        Error::InvalidMessage(_) => "not_tls",
        Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::BadCertificate) => {
            "untrusted_by_client"
        }
        Error::AlertReceived(_) => "refused_by_client",
        Error::PeerIncompatible(_) => "no_shared_parameters",
        Error::NoApplicationProtocol => "no_shared_protocol",
        Error::General(text) if text.contains("no server certificate chain resolved") => "unknown_name",
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented => "bad_client_certificate",
        _ => "protocol_error",
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

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
    use crate::config::Certificate;

    fn listener() -> ListenerTls {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = Certificate {
            chain_file: PathBuf::new(),
            key_file: PathBuf::new(),
            chain: vec![pair.cert.der().clone()],
            key: PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap(),
            names: vec!["localhost".to_owned()],
            serial: String::new(),
            not_after: 0,
        };
        ListenerTls { certificates: vec![certificate], minimum_version: TlsVersion::Tls12, strict_sni: false }
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

    async fn connect(acceptor: &Acceptor, client: &TlsConnector) -> client::TlsStream<TcpStream> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let ours = listener.accept().await.unwrap().0;
        let name = ServerName::try_from("localhost").unwrap();
        let (ours, theirs) = tokio::join!(acceptor.accept(ours), client.connect(name, theirs));
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
        assert!(Arc::ptr_eq(&acceptor.usual.ticketer, &acceptor.chacha20.ticketer));
    }
}
