//! TLS on both sides: which certificate is shown, which versions and protocols are spoken, and whose
//! certificates are believed.

use std::sync::Arc;

use rustls::{
    ProtocolVersion,
    version::{TLS12, TLS13},
};

use crate::support::{
    backend::{Backend, Conversation, ok},
    certificates::{Authority, Leaf, TRUSTED},
    client::{Client, tls_config},
    engine::{Engine, Setup},
    h2::{H2, H2Backend, block_on, reply},
};

/// The certificate that the listener shows to who asks for `name`; `None` when it refuses.
pub fn shown(engine: &Engine, name: &str) -> Option<Vec<u8>> {
    // The name is the listener's to choose by; whether it fits is not asked here.
    let mut config = tls_config(&["http/1.1"], rustls::ALL_VERSIONS);
    config.dangerous().set_certificate_verifier(Arc::new(anything::Anything::new()));
    let client = Client::handshake(engine.tls, name, Arc::new(config)).ok()?;
    Some(client.certificate().to_vec())
}

mod anything {
    //! A verifier that takes every certificate.

    use rustls::{
        DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    };

    #[derive(Debug)]
    pub struct Anything(CryptoProvider);

    impl Anything {
        pub fn new() -> Self {
            Anything(aws_lc_rs::default_provider())
        }
    }

    impl ServerCertVerifier for Anything {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}

fn leaves() -> [Leaf; 3] {
    [
        TRUSTED.issue(&["first.example"]),
        TRUSTED.issue(&["*.site.example", "site.example"]),
        TRUSTED.issue(&["exact.site.example"]),
    ]
}

const FIRST: usize = 0;
const WILDCARD: usize = 1;
const EXACT: usize = 2;

#[test]
fn shows_the_certificate_of_the_name() {
    let leaves = leaves();
    let backend = Backend::saying("x");
    let engine = Setup::new(&[backend.address]).certificates(&leaves.each_ref()).start();
    for (name, leaf) in [
        ("first.example", FIRST),
        ("site.example", WILDCARD),
        ("a.site.example", WILDCARD),
        ("A.SITE.Example", WILDCARD),
        ("exact.site.example", EXACT),
        ("EXACT.site.example", EXACT),
        ("a.b.site.example", FIRST),
        ("other.example", FIRST),
        ("127.0.0.1", FIRST),
    ] {
        assert!(shown(&engine, name).is_some_and(|der| der == *leaves[leaf].der), "{name}");
    }
}

#[test]
fn shows_nothing_to_a_name_it_does_not_have_where_sni_is_strict() {
    let leaves = leaves();
    let backend = Backend::saying("x");
    let engine =
        Setup::new(&[backend.address]).certificates(&leaves.each_ref()).tls("tls.strict_sni = true").start();
    assert!(shown(&engine, "exact.site.example").is_some_and(|der| der == *leaves[EXACT].der));
    for name in ["other.example", "a.b.site.example", "127.0.0.1"] {
        assert_eq!(shown(&engine, name), None, "{name}");
    }
    let refused = [("result", "unknown_name")];
    assert_eq!(engine.settled().sum("portcullis_tls_handshakes_total", &refused), 3);
}

#[test]
fn speaks_tls_1_2_and_1_3() {
    let backend = Backend::saying("x");
    let engine = Engine::new(backend.address);
    for (version, spoken) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let config = Arc::new(tls_config(&["http/1.1"], &[version]));
        let mut client = Client::handshake(engine.tls, "localhost", config).unwrap();
        assert_eq!(client.tls_version(), spoken);
        assert_eq!(client.get("/").text(), "x");
    }
    engine.settled();
    let log = engine.stop();
    assert_eq!(
        (&log[0]["tls"]["version"], &log[1]["tls"]["version"]),
        (&"TLSv1.2".into(), &"TLSv1.3".into())
    );
}

#[test]
fn refuses_tls_1_2_where_1_3_is_the_minimum() {
    let backend = Backend::saying("x");
    let engine = Setup::new(&[backend.address]).tls("tls.minimum_version = \"1.3\"").start();
    let old = Arc::new(tls_config(&["http/1.1"], &[&TLS12]));
    assert!(Client::handshake(engine.tls, "localhost", old).is_err());
    assert_eq!(Client::tls(engine.tls).get("/").text(), "x");
}

#[test]
fn chooses_the_protocol_by_alpn() {
    let backend = Backend::saying("x");
    let engine = Engine::new(backend.address);
    for (offered, chosen) in [
        (&["http/1.1"][..], Some("http/1.1")),
        (&["h2", "http/1.1"], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")),
        (&[], None),
    ] {
        let config = Arc::new(tls_config(offered, rustls::ALL_VERSIONS));
        let mut client = Client::handshake(engine.tls, "localhost", config).unwrap();
        assert_eq!(client.alpn().as_deref(), chosen, "{offered:?}");
        if chosen != Some("h2") {
            assert_eq!(client.get("/").text(), "x");
        }
    }
    let unknown = Arc::new(tls_config(&["spdy/3"], rustls::ALL_VERSIONS));
    assert!(Client::handshake(engine.tls, "localhost", unknown).is_err());
    let refused = [("result", "no_shared_protocol")];
    assert_eq!(engine.settled().sum("portcullis_tls_handshakes_total", &refused), 1);
}

#[test]
fn resumes_sessions_on_any_worker() {
    let backend = Backend::saying("x");
    let engine = Setup::new(&[backend.address]).workers(2).start();
    let config = Arc::new(tls_config(&["http/1.1"], rustls::ALL_VERSIONS));
    let mut resumed = Vec::new();
    for _ in 0..6 {
        let mut client = Client::handshake(engine.tls, "localhost", Arc::clone(&config)).unwrap();
        assert_eq!(client.get("/").text(), "x");
        resumed.push(client.is_resumed());
    }
    assert_eq!(resumed, [false, true, true, true, true, true]);
    engine.settled();
    let logged = engine.stop().iter().filter(|line| line["tls"]["resumed"] == true).count();
    assert_eq!(logged, 5);
}

#[test]
fn a_fleet_resumes_sessions_of_each_other_with_shared_keys() {
    let backend = Backend::saying("x");
    let [old, new] = ["ab", "cd"].map(|byte| byte.repeat(32));
    let setup = || Setup::new(&[backend.address]).tls("tls.ticket_keys = \"tickets\"").file("tickets", &old);
    let (one, other) = (setup().start(), setup().start());
    let config = Arc::new(tls_config(&["http/1.1"], rustls::ALL_VERSIONS));
    let resumes = |engine: &Engine| {
        let mut client = Client::handshake(engine.tls, "localhost", Arc::clone(&config)).unwrap();
        assert_eq!(client.get("/").text(), "x");
        client.is_resumed()
    };
    assert_eq!([resumes(&one), resumes(&other), resumes(&one)], [false, true, true]);
    // The new key in front seals, the old one still opens; then it goes.
    let loads = [("file", "ticket_keys"), ("result", "ok")];
    other.write("tickets", format!("{new}\n{old}\n"));
    other.until("two keys", |metrics| metrics.sum("portcullis_tls_file_loads_total", &loads) == 1);
    assert!(resumes(&other));
    assert!(!resumes(&one), "its ticket is of a key that is not here");
    other.write("tickets", &new);
    other.until("one key", |metrics| metrics.sum("portcullis_tls_file_loads_total", &loads) == 2);
    assert!(!resumes(&other));
}

#[test]
fn agrees_on_keys_that_a_quantum_computer_does_not_break() {
    let backend = Backend::saying("x");
    let engine = Engine::new(backend.address);
    let client = Client::tls(engine.tls);
    assert_eq!(client.group(), rustls::NamedGroup::X25519MLKEM768);
}

#[test]
fn offers_no_early_data() {
    let backend = Backend::saying("x");
    let engine = Engine::new(backend.address);
    let mut config = tls_config(&["http/1.1"], &[&TLS13]);
    config.enable_early_data = true;
    let config = Arc::new(config);
    for _ in 0..2 {
        let mut client = Client::handshake(engine.tls, "localhost", Arc::clone(&config)).unwrap();
        assert_eq!(client.get("/").text(), "x");
        assert!(!client.sent_early_data());
    }
}

#[test]
fn takes_a_client_hello_in_any_pieces() {
    let backend = Backend::saying("x");
    let engine = Engine::new(backend.address);
    let mut garbage = Client::plain(engine.tls);
    garbage.try_send(vec![0x16; 64 << 10]);
    garbage.rest();
    // The client's side of a handshake, byte by byte.
    let config = Arc::new(tls_config(&["http/1.1"], rustls::ALL_VERSIONS));
    let name = "localhost".try_into().unwrap();
    let mut session = rustls::ClientConnection::new(config, name).unwrap();
    let mut socket = std::net::TcpStream::connect(engine.tls).unwrap();
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    socket.set_nodelay(true).unwrap();
    for byte in hello {
        std::io::Write::write_all(&mut socket, &[byte]).unwrap();
    }
    while session.is_handshaking() {
        session.complete_io(&mut socket).unwrap();
    }
    drop(socket);
    assert_eq!(engine.settled().sum("portcullis_tls_handshakes_total", &[("result", "ok")]), 1);
}

fn answer(conversation: &mut Conversation) {
    while conversation.request().is_some() {
        conversation.send(ok("encrypted"));
    }
}

/// A backend with this certificate behind an engine that trusts the tests' CA.
fn behind_tls(leaf: &Leaf, keys: &str) -> (Backend, Engine) {
    let backend = Backend::tls(leaf.backend_config(&["http/1.1"]), answer);
    let engine = Setup::new(&[backend.address])
        .file("ca.crt", &TRUSTED.pem)
        .cluster("tls.ca = \"ca.crt\"")
        .cluster(keys)
        .start();
    (backend, engine)
}

#[test]
fn encrypts_to_backends_whose_certificate_it_verifies() {
    for (names, keys) in [("127.0.0.1", ""), ("web.internal", "tls.server_name = \"web.internal\"")] {
        let (backend, engine) = behind_tls(&TRUSTED.issue(&[names]), keys);
        let mut client = Client::plain(engine.plain);
        for _ in 0..2 {
            assert_eq!(client.get("/").text(), "encrypted", "{names}");
        }
        assert_eq!(backend.connections(), 1);
    }
}

#[track_caller]
fn refuses(leaf: &Leaf, reason: &str) {
    let (backend, engine) = behind_tls(leaf, "");
    let answer = Client::plain(engine.plain).get("/");
    assert_eq!((answer.status, answer.reason()), (502, Some(reason)));
    assert_eq!(backend.all_received(), "", "no byte of a request");
    assert!(!answer.text().contains("127.0.0.1"), "no internal address: {}", answer.text());
    assert_eq!(engine.settled().sum("portcullis_errors_total", &[("reason", reason)]), 1);
}

#[test]
fn refuses_a_backend_of_an_unknown_ca() {
    refuses(&Authority::new().issue(&["127.0.0.1"]), "upstream_tls_unknown_ca");
}

#[test]
fn refuses_a_backend_of_another_name() {
    refuses(&TRUSTED.issue(&["other.internal"]), "upstream_tls_name_mismatch");
}

#[test]
fn refuses_a_backend_whose_certificate_has_expired() {
    refuses(&TRUSTED.issue_until(&["127.0.0.1"], 2020), "upstream_tls_expired");
}

#[test]
fn refuses_a_backend_that_speaks_no_tls() {
    let backend = Backend::new(|conversation| {
        conversation.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        conversation.read_to_end();
    });
    let engine =
        Setup::new(&[backend.address]).file("ca.crt", &TRUSTED.pem).cluster("tls.ca = \"ca.crt\"").start();
    let answer = Client::plain(engine.plain).get("/");
    assert_eq!((answer.status, answer.reason()), (502, Some("upstream_tls_handshake")));
}

#[test]
fn tries_another_backend_after_a_failed_handshake() {
    let stranger = Authority::new().issue(&["127.0.0.1"]);
    let bad = Backend::tls(stranger.backend_config(&[]), answer);
    let good = Backend::tls(TRUSTED.issue(&["127.0.0.1"]).backend_config(&[]), answer);
    let engine = Setup::new(&[bad.address, good.address])
        .file("ca.crt", &TRUSTED.pem)
        .cluster("tls.ca = \"ca.crt\"")
        .start();
    let mut client = Client::plain(engine.plain);
    for _ in 0..4 {
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
        assert_eq!(client.response("POST").text(), "encrypted");
    }
}

#[test]
fn verifies_nothing_only_where_it_is_told_so() {
    let backend = Backend::tls(Authority::new().issue(&["x"]).backend_config(&[]), answer);
    let engine = Setup::new(&[backend.address]).cluster("tls.verify = \"off-insecure\"").start();
    assert_eq!(Client::plain(engine.plain).get("/").text(), "encrypted");
}

#[test]
fn speaks_http2_to_backends_over_tls() {
    let leaf = TRUSTED.issue(&["127.0.0.1"]);
    let backend = H2Backend::tls(leaf.backend_config(&["h2"]), |request, respond| async move {
        let scheme = request.uri().scheme_str().unwrap_or_default().to_owned();
        reply(respond, http::Response::new(()), scheme.as_bytes(), None).await;
    });
    let engine = Setup::new(&[backend.address])
        .file("ca.crt", &TRUSTED.pem)
        .cluster("tls.ca = \"ca.crt\"\nprotocol = \"h2\"")
        .start();
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        for _ in 0..3 {
            assert_eq!(client.get("/").await.text(), "https");
        }
    });
    assert_eq!(Client::plain(engine.plain).get("/").text(), "https");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_truncated_response_over_tls_is_seen() {
    // The backend's TCP connection ends without the closing alert of TLS.
    let backend = Backend::tls(TRUSTED.issue(&["127.0.0.1"]).backend_config(&[]), |conversation| {
        conversation.request();
        conversation.send("HTTP/1.1 200 OK\r\n\r\nhalf of");
        let _ = conversation.socket().shutdown(std::net::Shutdown::Both);
    });
    let engine =
        Setup::new(&[backend.address]).file("ca.crt", &TRUSTED.pem).cluster("tls.ca = \"ca.crt\"").start();
    let answer = Client::plain(engine.plain).get("/");
    assert!(!answer.complete, "{}", answer.text());
}
