//! TLS to the backends: what we trust, what we offer, and what went wrong, by reason.

use std::{fmt, io, path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
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
    let preferred = |suite: CipherSuite| {
        matches!(
            suite,
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    };
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !preferred(suite.suite()));
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

#[cfg(test)]
mod tests {
    use rustls::HandshakeKind;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::upstream::testing::{Authority, tls_backend};

    /// Does a handshake and reads to the end, as tickets come after it.
    async fn try_handshake(
        connector: &Connector,
        address: std::net::SocketAddr,
    ) -> Result<TlsStream, HandshakeError> {
        let stream = TcpStream::connect(address).await.expect("a backend");
        let mut stream = connector.handshake(stream).await?;
        stream.read_to_end(&mut Vec::new()).await.expect("a clean end");
        Ok(stream)
    }

    fn connector(tls: &ClusterTls, protocol: Protocol, host: &str) -> Connector {
        let cluster = ClusterConnector::new("web", tls, protocol).expect("good settings");
        cluster.backend(host).expect("a good name")
    }

    async fn reason(tls: &ClusterTls, backend: TlsAcceptor) -> Reason {
        let address = tls_backend(backend).await;
        try_handshake(&connector(tls, Protocol::Http1, "a.test"), address)
            .await
            .expect_err("must fail")
            .reason
    }

    #[tokio::test]
    async fn a_verified_backend_gets_aes_128_and_its_protocol() {
        let authority = Authority::new();
        for (protocol, alpn) in [(Protocol::Http1, "http/1.1"), (Protocol::H2, "h2")] {
            let address = tls_backend(authority.acceptor("a.test", 2100, &["h2", "http/1.1"])).await;
            let connector = connector(&authority.tls(), protocol, "a.test");
            let stream = try_handshake(&connector, address).await.expect("verified");
            let connection = stream.get_ref().1;
            let suite = connection.negotiated_cipher_suite().expect("done").suite();
            assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
            assert_eq!(connection.alpn_protocol(), Some(alpn.as_bytes()));
        }
    }

    #[tokio::test]
    async fn the_name_is_the_host_or_the_configured_one_and_may_be_an_address() {
        let authority = Authority::new();
        let names = [("a.test", None), ("127.0.0.1", None), ("[::1]", None), ("elsewhere", Some("a.test"))];
        for (host, server_name) in names {
            let certified = server_name.unwrap_or(host).trim_matches(['[', ']']);
            let address = tls_backend(authority.acceptor(certified, 2100, &[])).await;
            let tls = ClusterTls { server_name: server_name.map(str::to_owned), ..authority.tls() };
            try_handshake(&connector(&tls, Protocol::Http1, host), address).await.expect("verified");
        }
    }

    #[tokio::test]
    async fn a_second_connection_resumes_the_session_of_its_own_backend() {
        let authority = Authority::new();
        let address = tls_backend(authority.acceptor("a.test", 2100, &[])).await;
        let cluster = ClusterConnector::new("web", &authority.tls(), Protocol::Http1).expect("good settings");
        let (one, other) =
            (cluster.backend("a.test").expect("a name"), cluster.backend("a.test").expect("a name"));
        for (connector, expected) in
            [(&one, HandshakeKind::Full), (&one, HandshakeKind::Resumed), (&other, HandshakeKind::Full)]
        {
            let stream = try_handshake(connector, address).await.expect("verified");
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected));
        }
    }

    #[tokio::test]
    async fn each_fault_of_a_certificate_has_its_reason() {
        let (trusted, foreign) = (Authority::new(), Authority::new());
        let tls = trusted.tls();
        let cases = [
            (foreign.acceptor("a.test", 2100, &[]), Reason::UpstreamTlsUnknownCa),
            (trusted.acceptor("a.test", 2001, &[]), Reason::UpstreamTlsExpired),
            (trusted.acceptor("b.test", 2100, &[]), Reason::UpstreamTlsNameMismatch),
        ];
        for (acceptor, expected) in cases {
            assert_eq!(reason(&tls, acceptor).await, expected);
        }
    }

    #[tokio::test]
    async fn without_verification_any_certificate_will_do() {
        let authority = Authority::new();
        let tls = ClusterTls { verify: false, ..Authority::new().tls() };
        let address = tls_backend(authority.acceptor("b.test", 2001, &[])).await;
        try_handshake(&connector(&tls, Protocol::Http1, "a.test"), address).await.expect("not verified");
    }

    #[tokio::test]
    async fn a_backend_that_does_not_agree_to_h2_fails_the_handshake() {
        let authority = Authority::new();
        for alpn in [&["http/1.1"][..], &[]] {
            let address = tls_backend(authority.acceptor("a.test", 2100, alpn)).await;
            let connector = connector(&authority.tls(), Protocol::H2, "a.test");
            let error = try_handshake(&connector, address).await.expect_err("no h2");
            assert_eq!(error.reason, Reason::UpstreamTlsHandshake, "{alpn:?}: {}", error.detail);
        }
    }

    #[tokio::test]
    async fn a_peer_that_speaks_no_tls_or_closes_fails_the_handshake() {
        let tls = Authority::new().tls();
        let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = plain.local_addr().expect("bound");
        let answers = tokio::spawn(async move {
            for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\x16\x03\x03\xff\xff", b""] {
                let (mut stream, _) = plain.accept().await.expect("a connection");
                stream.read_buf(&mut Vec::with_capacity(4096)).await.expect("a hello");
                stream.write_all(answer).await.expect("open");
            }
        });
        for _ in 0..3 {
            let error = try_handshake(&connector(&tls, Protocol::Http1, "a.test"), address).await;
            assert_eq!(error.expect_err("no TLS").reason, Reason::UpstreamTlsHandshake);
        }
        answers.await.expect("no panic");
    }

    #[test]
    fn settings_that_can_not_work_are_errors() {
        let tls = Authority::new().tls();
        let cluster = ClusterConnector::new("web", &tls, Protocol::Http1).expect("good settings");
        let error = cluster.backend("no name").expect_err("a blank");
        assert_eq!(
            error.to_string(),
            "\"no name\" is neither a DNS name nor an address; set tls.server_name"
        );
        let empty = ClusterTls { ca: TrustedCa::File("ca.crt".into(), Arc::from([])), ..tls };
        let error = ClusterConnector::new("web", &empty, Protocol::Http1).expect_err("nothing to trust");
        assert_eq!(error.to_string(), "ca.crt holds no certificate that can be trusted as a CA");
    }
}
