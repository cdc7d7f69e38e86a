//! TLS to the backends: who they have to be, who we are to them, what is revoked, and files that change
//! while it runs.

use std::{path::Path, sync::Arc, time::SystemTime};

use portcullis::pki::{Authority as PrivateCa, Init, SubjectName};
use rcgen::{BasicConstraints, IsCa, SanType};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};

use crate::support::{
    backend::{Backend, Conversation, ok},
    certificates::{Authority, Leaf, TRUSTED},
    client::Client,
    engine::{Engine, Setup},
    until,
};

const FAST: &str = "health.interval = \"50ms\"\nhealth.timeout = \"5s\"\nhealth.rise = 1\nhealth.fall = 1";

fn answer(conversation: &mut Conversation) {
    while conversation.request().is_some() {
        conversation.send(ok("encrypted"));
    }
}

/// What a backend accepts with that asks for certificates of `clients`.
fn demanding(
    leaf: &Leaf,
    clients: &Authority,
    version: &'static SupportedProtocolVersion,
) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    server_config(vec![leaf.der.clone()], key, clients.roots(), version)
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: Arc<RootCertStore>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(clients, provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

/// In front of one backend, trusting the tests' CA.
fn trusting(backend: &Backend) -> Setup {
    Setup::new(&[backend.address]).file("ca.crt", &TRUSTED.pem).cluster("tls.ca = \"ca.crt\"")
}

#[track_caller]
fn outcome(engine: &Engine) -> (u16, Option<String>) {
    let answer = Client::plain(engine.plain).get("/");
    (answer.status, answer.reason().map(str::to_owned))
}

#[track_caller]
fn assert_refused(engine: &Engine, reason: &str) {
    assert_eq!(outcome(engine), (502, Some(reason.to_owned())));
}

#[test]
fn a_pinned_name_replaces_that_of_the_backend() {
    let id = "spiffe://example.org/web";
    let leaf = TRUSTED.issue_with(2090, |leaf| {
        leaf.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    });
    for (leaf, names, is_right) in [
        (&leaf, format!("\"{id}\""), true),
        (&leaf, "\"spiffe://example.org/web2\"".to_owned(), false),
        (&leaf, "\"127.0.0.1\"".to_owned(), false),
        (&TRUSTED.issue(&["a.internal"]), "\"b.internal\", \"A.internal\"".to_owned(), true),
        (&TRUSTED.issue(&["*.web.internal"]), "\"b.web.internal\"".to_owned(), true),
        (&TRUSTED.issue(&["127.0.0.1"]), "\"b.internal\"".to_owned(), false),
    ] {
        let backend = Backend::tls(leaf.backend_config(&[]), answer);
        let engine = trusting(&backend).cluster(format!("tls.names = [{names}]")).start();
        if is_right {
            assert_eq!(outcome(&engine), (200, None), "{names}");
        } else {
            assert_refused(&engine, "upstream_tls_name_mismatch");
        }
    }
}

#[test]
fn a_pinned_name_excuses_nothing_else() {
    let names = "tls.names = [\"web.internal\"]";
    let (stranger, old) =
        (Authority::new().issue(&["web.internal"]), TRUSTED.issue_until(&["web.internal"], 2020));
    for (leaf, reason) in [(stranger, "upstream_tls_unknown_ca"), (old, "upstream_tls_expired")] {
        let backend = Backend::tls(leaf.backend_config(&[]), answer);
        assert_refused(&trusting(&backend).cluster(names).start(), reason);
    }
}

#[test]
fn tls_1_2_is_refused_where_1_3_is_the_minimum() {
    let leaf = TRUSTED.issue(&["127.0.0.1"]);
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let old = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der.clone()], key)
        .unwrap();
    let backend = Backend::tls(Arc::new(old), answer);
    assert_eq!(outcome(&trusting(&backend).start()), (200, None));
    let engine = trusting(&backend).cluster("tls.minimum_version = \"1.3\"").start();
    assert_refused(&engine, "upstream_tls_handshake");
}

/// Shows `own` to its backends.
fn showing(setup: Setup, own: &Leaf) -> Setup {
    setup
        .file("own.crt", &own.chain)
        .file("own.key", &own.key)
        .cluster("tls.certificate = { chain = \"own.crt\", key = \"own.key\" }")
}

#[test]
fn shows_its_certificate_to_backends_that_ask_for_one() {
    let clients = Authority::new();
    for version in [&TLS12, &TLS13] {
        let config = demanding(&TRUSTED.issue(&["127.0.0.1"]), &clients, version);
        let backend = Backend::tls(config, answer);
        assert_eq!(outcome(&showing(trusting(&backend), &clients.issue(&["lb"])).start()), (200, None));
    }
}

#[test]
fn a_backend_that_refuses_our_certificate_has_its_reason() {
    let clients = Authority::new();
    for version in [&TLS12, &TLS13] {
        let config = demanding(&TRUSTED.issue(&["127.0.0.1"]), &clients, version);
        let backend = Backend::tls(config, answer);
        assert_refused(&trusting(&backend).start(), "upstream_tls_client_certificate");
        let wrong = showing(trusting(&backend), &Authority::new().issue(&["lb"])).start();
        assert_refused(&wrong, "upstream_tls_client_certificate");
        let probed = trusting(&backend).health(&format!("health.path = \"/\"\n{FAST}")).start();
        until_down(&probed, "upstream_tls_client_certificate: ");
    }
}

#[test]
fn an_h2_backend_that_refuses_our_certificate_has_the_same_reason() {
    let clients = Authority::new();
    for version in [&TLS12, &TLS13] {
        let mut config = Arc::unwrap_or_clone(demanding(&TRUSTED.issue(&["127.0.0.1"]), &clients, version));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let backend = Backend::tls(Arc::new(config), answer);
        let setup = || trusting(&backend).cluster("protocol = \"h2\"");
        assert_refused(&setup().start(), "upstream_tls_client_certificate");
        let wrong = showing(setup(), &Authority::new().issue(&["lb"])).start();
        assert_refused(&wrong, "upstream_tls_client_certificate");
        let probed = setup().health(&format!("health.path = \"/\"\n{FAST}")).start();
        until_down(&probed, "upstream_tls_client_certificate: ");
    }
}

#[track_caller]
fn until_down(engine: &Engine, error: &str) {
    until(error, || engine.admin("/status").1.contains(&format!("\"last_error\": \"{error}")));
}

#[test]
fn a_certificate_that_changes_is_shown_from_then_on() {
    let clients = Authority::new();
    let backend = Backend::tls(demanding(&TRUSTED.issue(&["127.0.0.1"]), &clients, &TLS13), answer);
    let engine = showing(trusting(&backend), &Authority::new().issue(&["lb"])).start();
    assert_refused(&engine, "upstream_tls_client_certificate");
    let right = clients.issue(&["lb"]);
    engine.write("own.key", &right.key);
    engine.write("own.crt", &right.chain);
    until("the new certificate is in use", || outcome(&engine).0 == 200);
    // A key that fits no certificate: what was in force stays.
    engine.write("own.key", &clients.issue(&["lb"]).key);
    engine.write("ca.crt", &Authority::new().pem);
    engine.write("own.key", &right.key);
    until("the new authority is in use", || outcome(&engine).1.as_deref() == Some("upstream_tls_unknown_ca"));
}

#[test]
fn a_revoked_backend_is_refused_and_down() {
    let leaf = TRUSTED.issue(&["127.0.0.1"]);
    let backend = Backend::tls(leaf.backend_config(&[]), answer);
    let crl = |crl: &str| trusting(&backend).file("ca.crl", crl).cluster("tls.crl = \"ca.crl\"");
    assert_eq!(outcome(&crl(&TRUSTED.revoke(&[])).start()), (200, None));
    let revoked = TRUSTED.revoke(&[&leaf]);
    assert_refused(&crl(&revoked).start(), "upstream_tls_revoked");
    // A list of somebody else says nothing of this certificate.
    assert_refused(&crl(&Authority::new().revoke(&[])).start(), "upstream_tls_revoked");
    let probed = crl(&revoked).health(FAST).start();
    until_down(&probed, "upstream_tls_revoked: ");
}

#[test]
fn a_backend_that_is_revoked_while_it_serves_loses_its_connections() {
    let leaf = TRUSTED.issue(&["127.0.0.1"]);
    let backend = Backend::tls(leaf.backend_config(&[]), answer);
    let engine =
        trusting(&backend).file("ca.crl", TRUSTED.revoke(&[])).cluster("tls.crl = \"ca.crl\"").start();
    let mut client = Client::plain(engine.plain);
    assert_eq!(client.get("/").text(), "encrypted");
    engine.write("ca.crl", TRUSTED.revoke(&[&leaf]));
    until("it is refused", || client.get("/").status == 502);
    assert_eq!(client.get("/").reason(), Some("upstream_tls_revoked"));
    // The first served until then; each of the others failed in its handshake. A request is counted
    // behind its answer.
    let refused = [("reason", "upstream_tls_revoked")];
    engine.until("every connection is accounted for", |metrics| {
        u64::try_from(backend.connections()).unwrap() == 1 + metrics.sum("portcullis_errors_total", &refused)
    });
}

#[test]
fn each_fault_of_a_certificate_turns_the_backend_down() {
    for (leaf, reason) in [
        (Authority::new().issue(&["127.0.0.1"]), "upstream_tls_unknown_ca"),
        (TRUSTED.issue_until(&["127.0.0.1"], 2020), "upstream_tls_expired"),
        (TRUSTED.issue(&["other.internal"]), "upstream_tls_name_mismatch"),
        // What `openssl req -x509` makes: its own CA.
        (
            TRUSTED.issue_with(2090, |own| own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "upstream_tls_unknown_ca",
        ),
    ] {
        let backend = Backend::tls(leaf.backend_config(&[]), answer);
        let engine = trusting(&backend).health(FAST).start();
        until_down(&engine, &format!("{reason}: "));
        assert_eq!(engine.metrics().sum("portcullis_backend_up", &[]), 0);
    }
}

/// A private CA in a folder, and a backend that it has certified and that trusts only it.
fn private(folder: &Path) -> Backend {
    let now = SystemTime::now();
    PrivateCa::init(folder, &Init { permit: Vec::new(), group: None }, now).unwrap();
    let ca = PrivateCa::open(folder).unwrap();
    let issued = ca.issue(&[SubjectName::parse("127.0.0.1").unwrap()], crate::pki::MONTH, now).unwrap();
    let chain = vec![CertificateDer::from_pem_file(issued.folder.join("backend.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(issued.folder.join("backend.key")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(issued.folder.join("ca.crt")).unwrap()).unwrap();
    Backend::tls(server_config(chain, key, Arc::new(roots), &TLS13), answer)
}

#[test]
fn the_private_ca_lets_both_ends_know_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let backend = private(folder.path());
    let pki = format!("[pki]\ndirectory = \"{}\"", folder.path().display());
    let setup = |tls: &str| Setup::new(&[backend.address]).cluster(format!("tls = {{ {tls} }}")).more(&pki);
    let engine = setup("ca = \"internal\", certificate = \"internal\"").start();
    assert_eq!(outcome(&engine), (200, None));
    assert_refused(&setup("ca = \"internal\"").start(), "upstream_tls_client_certificate");
    // The key of the CA may be far away while the balancer runs.
    std::fs::remove_file(folder.path().join("ca.key")).unwrap();
    let engine = setup("ca = \"internal\", certificate = \"internal\"").start();
    assert_eq!(outcome(&engine), (200, None));
}

#[test]
fn a_certificate_that_the_private_ca_revokes_is_refused_within_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let backend = private(folder.path());
    let engine = Setup::new(&[backend.address])
        .cluster("tls = { ca = \"internal\", certificate = \"internal\" }")
        .more(&format!("[pki]\ndirectory = \"{}\"", folder.path().display()))
        .start();
    assert_eq!(outcome(&engine), (200, None));
    PrivateCa::open(folder.path()).unwrap().revoke("127.0.0.1", SystemTime::now()).unwrap();
    until("it is refused", || outcome(&engine).1.as_deref() == Some("upstream_tls_revoked"));
}

#[test]
fn a_cluster_that_others_can_read_shows() {
    let local = Backend::saying("x");
    let far = "[[routes]]\nname = \"far\"\npath = \"/far\"\ncluster = \"far\"\n\
               [clusters.far]\nbackends = [\"192.0.2.1:80\"]\nhealth = false\n\
               [clusters.blind]\nbackends = [\"192.0.2.1:443\"]\nhealth = false\ntls.verify = \"off-insecure\"\n\
               [[routes]]\nname = \"blind\"\npath = \"/blind\"\ncluster = \"blind\"";
    let metrics = Setup::new(&[local.address]).more(far).start().metrics();
    for (cluster, plaintext, unverified) in [("web", 0, 0), ("far", 1, 0), ("blind", 0, 1)] {
        let of = |name| metrics.sum(name, &[("cluster", cluster)]);
        assert_eq!(of("portcullis_cluster_plaintext"), plaintext, "{cluster}");
        assert_eq!(of("portcullis_cluster_unverified"), unverified, "{cluster}");
    }
}
