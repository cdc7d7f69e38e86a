//! TLS towards the clients: which certificate, which settings, and what a failed handshake means.

use std::{cell::RefCell, collections::HashMap, future::poll_fn, io, sync::Arc};

pub use rustls::Error as SetupError;
use rustls::{
    AlertDescription, CipherSuite, Error, ProtocolVersion, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::net::TcpStream;

use crate::{
    config::{ListenerTls, TlsVersion},
    http::tls_stream::TlsStream,
    proxy::worker::TlsFacts,
};

/// The TLS side of a listener; cheap to clone, shared by all workers and so are its tickets.
#[derive(Clone, Debug)]
pub struct Acceptor(Arc<ServerConfig>);

impl Acceptor {
    /// Runs a handshake; the caller sets the deadline.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<(Box<TlsStream>, TlsFacts)> {
        let mut stream = Box::new(TlsStream::new(self.0.clone(), stream)?);
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
struct Certificates {
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
    let versions: &[&SupportedProtocolVersion] = match tls.minimum_version {
        TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Certificates::new(tls)?));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(Acceptor(Arc::new(config)))
}

/// AES-128-GCM first: as strong as needed, and cheaper than AES-256 with SHA-384, above all in
/// handshakes.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        !matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    provider
}

impl Certificates {
    fn new(tls: &ListenerTls) -> Result<Self, Error> {
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

    /// The certificate for a name as the client sent it.
    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
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
