//! Client certificates: who gets in with which, what backends learn, and that no connection gets around
//! the policy of a host.

use std::sync::{Arc, LazyLock};

use rustls::{ClientConfig, version::TLS12};
use serde_json::Value;

use crate::support::{
    backend::{Backend, ok},
    certificates::{Authority, Leaf, TRUSTED},
    client::{Client, Response, fields, tls_config},
    engine::{Engine, Setup},
    h2::{H2, block_on},
};

/// The CA of clients.
static CLIENTS: LazyLock<Authority> = LazyLock::new(Authority::new);
static ALICE: LazyLock<Leaf> = LazyLock::new(|| CLIENTS.issue(&["alice.example"]));
static BOB: LazyLock<Leaf> = LazyLock::new(|| CLIENTS.issue(&["bob.example"]));

fn backend() -> Backend {
    Backend::new(|conversation| {
        while let Some(request) = conversation.request() {
            conversation.send(ok(&request.head));
        }
    })
}

fn setup(backend: &Backend, tls: &str) -> Setup {
    let site =
        TRUSTED.issue(&["localhost", "site.example", "open.example", "*.open.example", "closed.example"]);
    Setup::new(&[backend.address]).certificates(&[&site]).file("clients.pem", &CLIENTS.pem).tls(tls)
}

fn nobody() -> ClientConfig {
    tls_config(&["http/1.1"], rustls::ALL_VERSIONS)
}

fn with(leaf: &Leaf) -> ClientConfig {
    leaf.client_config(&["http/1.1"])
}

/// The answer to a request for `host` on a connection for `sni`; `None` where there is none, since in
/// TLS 1.3 a client learns of its refusal after its own handshake.
fn ask(engine: &Engine, sni: &str, host: &str, config: ClientConfig) -> Option<Response> {
    ask_with(engine, sni, host, "", config)
}

fn ask_with(engine: &Engine, sni: &str, host: &str, more: &str, config: ClientConfig) -> Option<Response> {
    let mut client = Client::handshake(engine.tls, sni, Arc::new(config)).ok()?;
    client.try_send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n{more}connection: close\r\n\r\n"));
    let answer = client.rest();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head[9..12].parse().unwrap();
    let (head, body) = (head.to_owned(), body.as_bytes().to_vec());
    Some(Response { status, head, body, trailers: String::new(), complete: true })
}

fn status(engine: &Engine, sni: &str, host: &str, config: ClientConfig) -> Option<u16> {
    ask(engine, sni, host, config).map(|answer| answer.status)
}

const REQUIRED: &str = "tls.client_auth = { ca = \"clients.pem\" }";
const OPTIONAL: &str = "tls.client_auth = { ca = \"clients.pem\", mode = \"optional\", forward = \"both\" }";

#[test]
fn a_required_certificate_is_one_of_the_authority() {
    let backend = backend();
    let engine = setup(&backend, REQUIRED).start();
    let stranger = Authority::new().issue(&["alice.example"]);
    let expired = CLIENTS.issue_until(&["alice.example"], 2020);
    for (who, config) in [
        ("nobody", nobody()),
        ("nobody, over TLS 1.2", tls_config(&["http/1.1"], &[&TLS12])),
        ("a stranger", with(&stranger)),
        ("expired", with(&expired)),
    ] {
        assert!(ask(&engine, "localhost", "localhost", config).is_none(), "{who}");
    }
    assert_eq!(status(&engine, "localhost", "localhost", with(&ALICE)), Some(200));
    assert_eq!(backend.connections(), 1, "nobody else came that far");
    let metrics = engine.settled();
    let of = |result| metrics.sum("portcullis_tls_handshakes_total", &[("result", result)]);
    assert_eq!(of("ok"), 1);
    assert_eq!(of("no_client_certificate"), 2);
    assert_eq!(of("unknown_client_ca"), 1);
    assert_eq!(of("expired_client_certificate"), 1);
}

#[test]
fn backends_and_the_log_learn_who_it_is_and_from_nobody_else() {
    let backend = backend();
    let engine = setup(&backend, OPTIONAL).start();
    let claims = "x-client-cert-subject: CN=root\r\nClient-Cert: :AAAA:\r\nx_client_cert_san: DNS:root\r\n\
                  X-Client-Cert-Verified: success\r\nx-client-cert-fingerprint: 00\r\nclient-cert-chain: :AAAA:\r\n\
                  x-client-cert-serial: 1\r\n";
    let answer = ask_with(&engine, "localhost", "localhost", claims, with(&ALICE)).unwrap();
    let head = answer.text();
    let one = |name| match fields(&head, name)[..] {
        [value] => value.to_owned(),
        ref all => panic!("{name}: {all:?}"),
    };
    assert_eq!(one("x-client-cert-verified"), "success");
    assert_eq!(one("x-client-cert-san"), "DNS:alice.example");
    assert_eq!(one("x-client-cert-serial").len(), 16);
    assert!(one("x-client-cert-subject").starts_with("CN="), "{head}");
    assert_eq!(one("x-client-cert-fingerprint").len(), 64);
    assert!(one("client-cert").starts_with(":MII"));
    assert!(!head.contains("root") && !head.contains("AAAA:"), "{head}");

    let head = ask_with(&engine, "localhost", "localhost", claims, nobody()).unwrap().text();
    assert_eq!(fields(&head, "x-client-cert-verified"), ["none"]);
    assert!(
        fields(&head, "x-client-cert-subject").is_empty() && fields(&head, "client-cert").is_empty(),
        "{head}"
    );

    // The clear-text listener asks for nothing, and lets nothing through.
    let mut plain = Client::plain(engine.plain);
    plain.send(format!("GET / HTTP/1.1\r\nhost: a\r\n{claims}\r\n"));
    assert!(!plain.response("GET").text().contains("lient-cert"));

    drop(plain);
    engine.settled();
    let log = engine.stop();
    assert!(log[0]["tls"]["client"]["subject"].as_str().unwrap().starts_with("CN="));
    assert_eq!(log[0]["tls"]["client"]["fingerprint"].as_str().map(str::len), Some(64));
    assert_eq!(log[1]["tls"]["client"], Value::Null);
}

#[test]
fn an_optional_certificate_must_be_good_where_it_is_shown() {
    let backend = backend();
    let engine = setup(&backend, OPTIONAL).start();
    assert_eq!(status(&engine, "localhost", "localhost", nobody()), Some(200));
    let stranger = Authority::new().issue(&["alice.example"]);
    assert!(ask(&engine, "localhost", "localhost", with(&stranger)).is_none());
}

/// `closed.example` and what is below `open.example` ask for certificates, the rest does not.
const BY_HOST: &str = "tls.hosts = [\
    { host = \"closed.example\", client_auth = { ca = \"clients.pem\" } },\
    { host = \"*.open.example\", client_auth = { ca = \"clients.pem\", mode = \"optional\" } },\
    { host = \"free.open.example\", client_auth = false }]";

#[test]
fn a_host_is_served_only_on_connections_made_under_its_policy() {
    let backend = backend();
    let engine = setup(&backend, BY_HOST).start();
    for (sni, host, config, expected) in [
        ("localhost", "localhost", nobody(), Some(200)),
        ("closed.example", "closed.example", nobody(), None),
        ("closed.example", "closed.example", with(&ALICE), Some(200)),
        ("closed.example", "CLOSED.example.:443", with(&ALICE), Some(200)),
        // Around the policy by another name.
        ("localhost", "closed.example", with(&ALICE), Some(421)),
        ("localhost", "CLOSED.example.:443", nobody(), Some(421)),
        ("a.open.example", "closed.example", with(&ALICE), Some(421)),
        ("a.open.example", "a.open.example", nobody(), Some(200)),
        ("a.open.example", "b.open.example", nobody(), Some(200)),
        ("localhost", "a.b.open.example", nobody(), Some(421)),
        ("localhost", "free.open.example", nobody(), Some(200)),
        ("localhost", "open.example", nobody(), Some(200)),
        // Who has shown more may have less.
        ("closed.example", "localhost", with(&ALICE), Some(200)),
    ] {
        assert_eq!(status(&engine, sni, host, config), expected, "{sni} → {host}");
    }
    let answer = ask(&engine, "localhost", "closed.example", nobody()).unwrap();
    assert_eq!(answer.reason(), Some("misdirected"));
    let head = ask(&engine, "closed.example", "localhost", with(&ALICE)).unwrap().text();
    assert!(!head.contains("x-client-cert"), "a host that does not ask is not told: {head}");
    let rejected = [("reason", "misdirected")];
    assert_eq!(engine.settled().sum("portcullis_rejections_total", &rejected), 5);
}

#[test]
fn http2_does_not_get_around_a_policy_by_coalescing() {
    let backend = backend();
    let engine = setup(&backend, BY_HOST).start();
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        assert_eq!(client.get("/").await.status, 200);
        for host in ["closed.example", "a.open.example"] {
            let request = http::Request::builder().uri(format!("https://{host}/")).body(()).unwrap();
            let reply = client.ask(request).await;
            assert_eq!(reply.status, 421);
            assert_eq!(reply.headers["x-portcullis-reason"], "misdirected");
        }
    });
    assert_eq!(backend.connections(), 1);
}

#[test]
fn who_shows_a_certificate_gets_no_ticket() {
    let backend = backend();
    let engine = setup(&backend, BY_HOST).start();
    for (sni, config, resumed) in [
        ("closed.example", with(&ALICE), false),
        ("a.open.example", with(&ALICE), false),
        ("localhost", nobody(), true),
    ] {
        let config = Arc::new(config);
        for round in 0..3 {
            let mut client = Client::handshake(engine.tls, sni, config.clone()).unwrap();
            client.send(format!("GET / HTTP/1.1\r\nhost: {sni}\r\n\r\n"));
            assert_eq!(client.response("GET").status, 200);
            assert_eq!(client.is_resumed(), resumed && round > 0, "{sni}");
        }
    }
}

#[test]
fn a_revoked_certificate_is_refused_from_the_moment_the_list_changes() {
    let backend = backend();
    let tls = "tls.client_auth = { ca = \"clients.pem\", crl = \"clients.crl\" }";
    let engine = setup(&backend, tls).file("clients.crl", CLIENTS.revoke(&[&ALICE])).start();
    assert!(ask(&engine, "localhost", "localhost", with(&ALICE)).is_none());
    assert_eq!(status(&engine, "localhost", "localhost", with(&BOB)), Some(200));
    engine.write("clients.crl", CLIENTS.revoke(&[&BOB]));
    let loaded = |result| [("file", "client_auth"), ("result", result)];
    engine.until("the list is loaded", |metrics| {
        metrics.sum("portcullis_tls_file_loads_total", &loaded("ok")) == 1
    });
    assert!(ask(&engine, "localhost", "localhost", with(&BOB)).is_none());
    assert_eq!(status(&engine, "localhost", "localhost", with(&ALICE)), Some(200));
    engine.write("clients.crl", "nothing");
    engine.until("the list is refused", |metrics| {
        metrics.sum("portcullis_tls_file_loads_total", &loaded("failed")) == 1
    });
    assert!(ask(&engine, "localhost", "localhost", with(&BOB)).is_none(), "the last good list holds");
    let metrics = engine.settled();
    let revoked = [("result", "revoked_client_certificate")];
    assert_eq!(metrics.sum("portcullis_tls_handshakes_total", &revoked), 3);
}
