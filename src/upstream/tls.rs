//! TLS to the backends: what we trust, what we offer, and what went wrong, by reason.

use std::{fmt, io, path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    config::{ClusterTls, Protocol, TrustedCa},
    error::Reason,
};

/// A connection to a backend after its handshake.
pub type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Sessions kept to resume, a backend; each TLS 1.3 ticket is used once.
const SESSIONS: usize = 32;

/// How to begin TLS with the backends of one cluster.
#[derive(Clone)]
pub struct ClusterConnector {
    config: ClientConfig,
    server_name: Option<String>,
}

/// How to begin TLS with one backend.
#[derive(Clone)]
pub struct Connector {
    tls: TlsConnector,
    name: ServerName<'static>,
    /// The backend has to agree to HTTP/2 (RFC 9113 §3.2).
    needs_h2: bool,
}

/// Why TLS to a cluster's backends can't be set up from its config.
#[derive(Debug)]
pub enum SetupError {
    /// The system has no certificates to trust, with what the search ran into.
    NoSystemCertificates(String),
    /// None of the file's certificates can be a trust anchor.
    NoTrustAnchor(PathBuf),
    /// Neither a DNS name nor an address.
    InvalidName(String),
    /// The library refused the settings.
    Library(String),
}

/// A handshake that failed; nothing of a request was sent.
#[derive(Debug)]
pub struct HandshakeError {
    /// One of the `upstream_tls_*` reasons.
    pub reason: Reason,
    pub detail: String,
}

impl ClusterConnector {
    /// Reads the trusted certificates; warns, once for each call, where verification is off.
    pub fn new(cluster: &str, tls: &ClusterTls, protocol: Protocol) -> Result<ClusterConnector, SetupError> {
        let provider = Arc::new(provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| SetupError::Library(error.to_string()))?;
        let mut config = if tls.verify {
            builder.with_root_certificates(roots(&tls.ca)?).with_no_client_auth()
        } else {
            tracing::warn!(
                "cluster {cluster} does not verify its backends' certificates: anyone on the way can read and change \
                 the traffic"
            );
            let verifier = Unverified { algorithms: provider.signature_verification_algorithms };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
        };
        config.alpn_protocols = vec![match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::H2 => b"h2".to_vec(),
        }];
        Ok(ClusterConnector { config, server_name: tls.server_name.clone() })
    }

    /// The connector of one backend, with sessions of its own: another backend could not resume them.
    pub fn backend(&self, host: &str) -> Result<Connector, SetupError> {
        let name = self.server_name.as_deref().unwrap_or(host);
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        let name =
            ServerName::try_from(bare.to_owned()).map_err(|_| SetupError::InvalidName(name.to_owned()))?;
        let mut config = self.config.clone();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        let needs_h2 = config.alpn_protocols.iter().any(|protocol| protocol == b"h2");
        Ok(Connector { tls: TlsConnector::from(Arc::new(config)), name, needs_h2 })
    }
}

impl Connector {
    /// Does the handshake; the caller sets the deadline. Dropping the future closes the connection.
    pub async fn handshake(&self, stream: TcpStream) -> Result<TlsStream, HandshakeError> {
        let stream = self.tls.connect(self.name.clone(), stream).await.map_err(HandshakeError::from)?;
        if self.needs_h2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            let detail = "the backend did not agree to HTTP/2 (no ALPN)".to_owned();
            return Err(HandshakeError { reason: Reason::UpstreamTlsHandshake, detail });
        }
        Ok(stream)
    }
}

impl fmt::Debug for ClusterConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterConnector").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("name", &self.name).finish_non_exhaustive()
    }
}

/// AES-128-GCM first: its handshake hashes with SHA-256, which is much cheaper than SHA-384.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains("AES_128_GCM"));
    provider
}

fn roots(ca: &TrustedCa) -> Result<RootCertStore, SetupError> {
    let mut roots = RootCertStore::empty();
    match ca {
        TrustedCa::System => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let problems: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
                return Err(SetupError::NoSystemCertificates(problems.join("; ")));
            }
        }
        TrustedCa::File(path, certificates) => {
            roots.add_parsable_certificates(certificates.iter().cloned());
            if roots.is_empty() {
                return Err(SetupError::NoTrustAnchor(path.clone()));
            }
        }
    }
    Ok(roots)
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> HandshakeError {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let reason = match tls {
            Some(rustls::Error::InvalidCertificate(problem)) => certificate_reason(problem),
            Some(_) | None => Reason::UpstreamTlsHandshake,
        };
        let detail = match tls {
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                "the backend closed in the handshake".to_owned()
            }
            _ => error.to_string(),
        };
        HandshakeError { reason, detail }
    }
}

/// WHY a wildcard: the library's enum is open, and what is not named here is a failed handshake.
fn certificate_reason(problem: &CertificateError) -> Reason {
    use CertificateError as Problem;
    match problem {
        Problem::UnknownIssuer | Problem::BadSignature | Problem::Revoked => Reason::UpstreamTlsUnknownCa,
        Problem::Expired
        | Problem::ExpiredContext { .. }
        | Problem::NotValidYet
        | Problem::NotValidYetContext { .. } => Reason::UpstreamTlsExpired,
        Problem::NotValidForName | Problem::NotValidForNameContext { .. } => Reason::UpstreamTlsNameMismatch,
        _ => Reason::UpstreamTlsHandshake,
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetupError::NoSystemCertificates(problems) if problems.is_empty() => f.write_str(
                "the system has no CA certificates; install ca-certificates or name a file in tls.ca",
            ),
            SetupError::NoSystemCertificates(problems) => {
                write!(f, "the system's CA certificates can't be read: {problems}; name a file in tls.ca")
            }
            SetupError::NoTrustAnchor(path) => {
                write!(f, "{} holds no certificate that can be trusted as a CA", path.display())
            }
            SetupError::InvalidName(name) => {
                write!(f, "\"{name}\" is neither a DNS name nor an address; set tls.server_name")
            }
            SetupError::Library(detail) => f.write_str(detail),
        }
    }
}

impl std::error::Error for SetupError {}

/// Takes any certificate; the peer still has to hold the key that goes with it.
#[derive(Debug)]
struct Unverified {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
