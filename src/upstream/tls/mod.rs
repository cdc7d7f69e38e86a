//! TLS to the backends: what we trust, what we offer, who we are, and what went wrong, by reason.

mod failure;
mod verify;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{
    CipherSuite, ClientConfig, RootCertStore, SupportedProtocolVersion,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::ServerName,
    version::{TLS12, TLS13},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub use self::failure::{HandshakeError, refusal};
use self::verify::{Unverified, Verifier};
use crate::{
    config::{ClientCertificate, ClusterTls, Protocol, TlsVersion, TrustedCa},
    error::Reason,
    pki,
};

/// A connection to a backend after its handshake.
type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Sessions kept to resume, a backend; each TLS 1.3 ticket is used once.
const SESSIONS: usize = 32;

/// How to begin TLS with the backends of one cluster.
#[derive(Clone)]
pub struct ClusterConnector {
    config: ClientConfig,
    server_name: Option<String>,
    renew_at: Option<SystemTime>,
}

/// How to begin TLS with one backend. What it offers and trusts may be replaced while it is used.
pub struct Connector {
    current: ArcSwap<TlsConnector>,
    generation: AtomicU32,
    name: ServerName<'static>,
    /// The backend has to agree to HTTP/2 (RFC 9113 §3.2).
    needs_h2: bool,
}

/// Why TLS to a cluster's backends can't be set up from its config.
#[derive(Debug)]
pub enum SetupError {
    /// The system has no certificates to trust, with what the search ran into.
    NoSystemCertificates(String),
    /// Neither a DNS name nor an address.
    InvalidName(String),
    /// The private CA can't certify us.
    Identity(String),
    /// The library refused the settings.
    Library(String),
}

impl ClusterConnector {
    /// Makes what the private CA certifies, reads the system's authorities if no cluster has; warns,
    /// once for each call, where verification is off.
    pub fn new(cluster: &str, tls: &ClusterTls, protocol: Protocol) -> Result<ClusterConnector, SetupError> {
        let provider = Arc::new(provider());
        if !tls.verify {
            tracing::warn!(
                "cluster {cluster} does not verify its backends' certificates: anyone on the way can read and change \
                 the traffic"
            );
        }
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions(tls.minimum_version))?
            .dangerous()
            .with_custom_certificate_verifier(verifier(tls, provider)?);
        let mut renew_at = None;
        let mut config = match &tls.certificate {
            None => builder.with_no_client_auth(),
            Some(ClientCertificate::Files(own)) => {
                builder.with_client_auth_cert(own.chain.clone(), own.key.clone_key())?
            }
            Some(ClientCertificate::Internal(authority)) => {
                let own = pki::identity(authority, SystemTime::now())
                    .map_err(|error| SetupError::Identity(error.to_string()))?;
                renew_at = Some(own.renew_at);
                builder.with_client_auth_cert(own.chain, own.key)?
            }
        };
        config.alpn_protocols = vec![match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::H2 => b"h2".to_vec(),
        }];
        Ok(ClusterConnector { config, server_name: tls.server_name.clone(), renew_at })
    }

    /// When the certificate that the private CA gave us is to be replaced.
    pub fn renew_at(&self) -> Option<SystemTime> {
        self.renew_at
    }

    /// The connector of one backend, with sessions of its own: another backend could not resume them.
    pub fn backend(&self, host: &str) -> Result<Connector, SetupError> {
        let name = self.server_name.as_deref().unwrap_or(host);
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        let name =
            ServerName::try_from(bare.to_owned()).map_err(|_| SetupError::InvalidName(name.to_owned()))?;
        let needs_h2 = self.config.alpn_protocols.iter().any(|protocol| protocol == b"h2");
        let current = ArcSwap::from_pointee(self.for_one_backend());
        Ok(Connector { current, generation: AtomicU32::new(0), name, needs_h2 })
    }

    fn for_one_backend(&self) -> TlsConnector {
        let mut config = self.config.clone();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        TlsConnector::from(Arc::new(config))
    }
}

impl Connector {
    /// Does the handshake; the caller sets the deadline. Dropping the future closes the connection.
    pub async fn handshake(&self, stream: TcpStream) -> Result<TlsStream, HandshakeError> {
        let tls = self.current.load_full();
        let stream = tls.connect(self.name.clone(), stream).await.map_err(HandshakeError::from)?;
        if self.needs_h2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            let detail = "the backend did not agree to HTTP/2 (no ALPN)".to_owned();
            return Err(HandshakeError { reason: Reason::UpstreamTlsHandshake, detail });
        }
        Ok(stream)
    }

    /// Connections that begin from now on do so by these settings, and resume no earlier session.
    pub fn replace(&self, cluster: &ClusterConnector) {
        self.current.store(Arc::new(cluster.for_one_backend()));
    }

    /// Connections of an earlier generation are not to be used any more.
    pub fn outdate(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The number of the settings; of a connection, to be read before it is made.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
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

fn versions(minimum: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static SINCE_12: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    static SINCE_13: [&SupportedProtocolVersion; 1] = [&TLS13];
    match minimum {
        TlsVersion::Tls12 => &SINCE_12,
        TlsVersion::Tls13 => &SINCE_13,
    }
}

fn verifier(
    tls: &ClusterTls,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, SetupError> {
    if !tls.verify {
        return Ok(Arc::new(Unverified { algorithms: provider.signature_verification_algorithms }));
    }
    let roots = match &tls.ca {
        TrustedCa::System => system_roots()?,
        TrustedCa::File(_, roots) => roots.clone(),
    };
    let mut builder = WebPkiServerVerifier::builder_with_provider(roots, provider);
    if let Some(crl) = &tls.crl {
        // A certificate whose authority has no list here is refused: a list of the wrong authority
        // must not look like one that revokes nothing. Lists that should have been replaced by now
        // still hold: backends must not all go down with the host that makes lists.
        builder = builder.with_crls(crl.lists.iter().cloned()).only_check_end_entity_revocation();
    }
    let inner = builder.build().map_err(|error| SetupError::Library(error.to_string()))?;
    Ok(Arc::new(Verifier { inner, names: tls.names.clone() }))
}

/// The system's authorities, read once for all clusters that are there at the same time: it takes
/// two milliseconds.
fn system_roots() -> Result<Arc<RootCertStore>, SetupError> {
    static KNOWN: Mutex<Weak<RootCertStore>> = Mutex::new(Weak::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(roots) = known.upgrade() {
        return Ok(roots);
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let problems: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(SetupError::NoSystemCertificates(problems.join("; ")));
    }
    let roots = Arc::new(roots);
    *known = Arc::downgrade(&roots);
    Ok(roots)
}

impl From<rustls::Error> for SetupError {
    fn from(error: rustls::Error) -> Self {
        SetupError::Library(error.to_string())
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
            SetupError::InvalidName(name) => {
                write!(f, "\"{name}\" is neither a DNS name nor an address; set tls.server_name")
            }
            SetupError::Identity(detail) => {
                write!(f, "the private CA can't make a certificate for this balancer: {detail}")
            }
            SetupError::Library(detail) => f.write_str(detail),
        }
    }
}

impl std::error::Error for SetupError {}

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
    fn the_systems_authorities_are_read_once_for_all_clusters() {
        // Where there are none, there is nothing to share.
        let Ok(one) = system_roots() else { return };
        assert!(Arc::ptr_eq(&one, &system_roots().expect("they were there")));
    }

    #[tokio::test]
    async fn settings_that_are_replaced_resume_no_session() {
        let authority = Authority::new();
        let address = tls_backend(authority.acceptor("a.test", 2100, &[])).await;
        let cluster = ClusterConnector::new("web", &authority.tls(), Protocol::Http1).expect("good settings");
        let connector = cluster.backend("a.test").expect("a name");
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let stream = try_handshake(&connector, address).await.expect("verified");
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected));
        }
        connector.replace(&cluster);
        let stream = try_handshake(&connector, address).await.expect("verified");
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
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
    }
}
