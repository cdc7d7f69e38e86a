//! Certificates that are asked for, while the directory is out of reach: what is shown, what is kept, what is counted.
//! Real directories: tests/real/test_acme.py.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{
    support::{
        backend::Backend,
        certificates::{Leaf, TRUSTED},
        client::Client,
        engine::{Engine, Setup},
    },
    tls::shown,
};

/// Nobody listens there.
const DIRECTORY: &str = "https://127.0.0.1:9/directory";
const NAME: &str = "acme.example";

fn setup(storage: &Path) -> Setup {
    let backend: std::net::SocketAddr = "127.0.0.1:9".parse().unwrap();
    Setup::new(&[backend]).tls(format!(
        "tls.acme.directory = \"{DIRECTORY}\"\ntls.acme.domains = [\"{NAME}\"]\ntls.acme.storage = \"{}\"",
        storage.display()
    ))
}

fn folder_of(storage: &Path) -> PathBuf {
    storage.join("127.0.0.1-9-directory")
}

/// What an earlier process has left in the storage.
fn store(storage: &Path, name: &str, content: &str) {
    let folder = folder_of(storage);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).unwrap();
    fs::write(folder.join(name), content).unwrap();
}

fn bundle(leaf: &Leaf) -> String {
    format!("{}{}", leaf.key, leaf.chain)
}

fn failed(engine: &Engine) -> u64 {
    engine.metrics().sum("portcullis_acme_orders_total", &[("listener", "tls"), ("result", "unreachable")])
}

#[test]
fn shows_a_throw_away_certificate_while_the_directory_is_dead() {
    let folder = tempfile::tempdir().unwrap();
    let storage = folder.path().join("acme");
    let engine = setup(&storage).start();
    engine.until("an order fails", |_| failed(&engine) == 1);
    let other = shown(&engine, "site.example").unwrap();
    let throw_away = shown(&engine, NAME).unwrap();
    assert_ne!(throw_away, other, "the configured certificate is for its own names");
    let expiry = engine.metrics();
    assert_eq!(expiry.0.matches(&format!("name=\"{NAME}\"")).count(), 1, "{}", expiry.0);
    engine.until("the failure is shown", |metrics| {
        metrics.sum("portcullis_acme_failed_orders", &[("listener", "tls")]) == 1
    });
    for path in [storage.clone(), folder_of(&storage)] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
    }
}

#[test]
fn shows_the_stored_certificate_without_asking_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let leaf = TRUSTED.issue(&[NAME]);
    store(folder.path(), &format!("{NAME}.pem"), &bundle(&leaf));
    let engine = setup(folder.path()).start();
    assert!(shown(&engine, NAME).is_some_and(|der| der == *leaf.der));
    engine.until("the plan is known", |metrics| {
        metrics.sum("portcullis_acme_next_order_timestamp_seconds", &[("listener", "tls")]) > 2_000_000_000
    });
    assert_eq!(failed(&engine), 0);
}

#[test]
fn a_damaged_certificate_is_like_none() {
    let leaf = TRUSTED.issue(&[NAME]);
    for damaged in ["", "-----BEGIN", &leaf.chain, &leaf.key] {
        // Of its own: the one before may still be writing down what it has tried.
        let folder = tempfile::tempdir().unwrap();
        store(folder.path(), &format!("{NAME}.pem"), damaged);
        store(folder.path(), &format!("{NAME}.json"), "{ damaged");
        let engine = setup(folder.path()).start();
        engine.until("an order fails", |_| failed(&engine) == 1);
        assert!(shown(&engine, NAME).is_some_and(|der| der != *leaf.der));
    }
}

#[test]
fn a_certificate_for_fewer_names_is_shown_until_a_better_one_comes() {
    let folder = tempfile::tempdir().unwrap();
    let leaf = TRUSTED.issue(&["old.example", NAME]);
    store(folder.path(), &format!("{NAME}.pem"), &bundle(&leaf));
    let engine = setup(folder.path()).tls("tls.acme.contact = []").start();
    assert!(shown(&engine, "old.example").is_some_and(|der| der == *leaf.der));
    drop(engine);
    store(folder.path(), &format!("{NAME}.pem"), &bundle(&TRUSTED.issue(&["old.example"])));
    let engine = setup(folder.path()).start();
    engine.until("an order fails", |_| failed(&engine) == 1);
}

#[test]
fn the_last_failure_holds_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let engine = setup(folder.path()).start();
    engine.until("an order fails", |_| failed(&engine) == 1);
    let file = folder_of(folder.path()).join(format!("{NAME}.json"));
    let kept = || fs::read_to_string(&file).is_ok_and(|text| text.contains("\"failures\": 1"));
    crate::support::until("the failure is kept", kept);
    drop(engine);
    let later = fs::read_to_string(&file).unwrap().replace("\"not_before\": ", "\"not_before\": 9");
    fs::write(&file, later).unwrap();
    let engine = setup(folder.path()).start();
    engine.until("the plan is known", |metrics| {
        metrics.sum("portcullis_acme_failed_orders", &[("listener", "tls")]) == 1
    });
    assert_eq!(failed(&engine), 0, "not asked again yet");
}

#[test]
fn configured_certificates_are_not_hidden_by_a_throw_away_one() {
    let folder = tempfile::tempdir().unwrap();
    let leaf = TRUSTED.issue(&["*.example"]);
    let engine = setup(folder.path()).certificates(&[&leaf]).start();
    for name in [NAME, "other.example", "elsewhere"] {
        assert!(shown(&engine, name).is_some_and(|der| der == *leaf.der), "{name}");
    }
}

#[test]
fn a_challenge_that_nobody_waits_for_is_a_request_like_others() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::saying("from the backend");
    let engine = setup(folder.path()).weighted(backend.address, 1000).cluster("retries = 1").start();
    let mut client = Client::plain(engine.plain);
    client.send("GET /.well-known/acme-challenge/token HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.response("GET").body, b"from the backend");
}

#[test]
fn a_storage_that_can_not_be_written_to_fails_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let text = format!(
        "sandbox = \"off\"\n[log]\naccess = \"off\"\n[[listeners]]\naddress = \"127.0.0.1:0\"\ntls.acme = {{ \
         directory = \"{DIRECTORY}\", domains = [\"{NAME}\"], storage = \"{}/below\" }}\n",
        file.display()
    );
    let (config, _) = portcullis::config::parse("test.toml", &text, folder.path()).unwrap();
    let error = portcullis::app::App::new(config).unwrap_err().to_string();
    assert!(error.contains(NAME) && error.contains("storage"), "{error}");
}
