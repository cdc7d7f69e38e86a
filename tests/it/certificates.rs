//! Certificate files that change while they are served.

use std::sync::Arc;

use rustls::client::Resumption;

use crate::support::{
    backend::Backend,
    certificates::{Leaf, TRUSTED},
    client::{Client, tls_config},
    engine::{Engine, Setup},
};

fn shown(engine: &Engine, name: &str) -> Vec<u8> {
    let mut config = tls_config(&["http/1.1"], rustls::ALL_VERSIONS);
    config.resumption = Resumption::disabled();
    Client::handshake(engine.tls, name, Arc::new(config)).unwrap().certificate().to_vec()
}

/// How many loads of certificates there were by now.
fn loads(engine: &Engine, result: &str) -> u64 {
    let labels = [("file", "certificate"), ("result", result)];
    engine.metrics().sum("portcullis_tls_file_loads_total", &labels)
}

fn replace(engine: &Engine, leaf: &Leaf) {
    // While they do not fit together, nothing is loaded.
    engine.write("0.crt", &leaf.chain);
    engine.write("0.key", &leaf.key);
}

#[test]
fn a_pair_that_changed_is_shown_and_so_is_its_end() {
    let [old, new] = [2080, 2085].map(|year| TRUSTED.issue_until(&["localhost"], year));
    let backend = Backend::saying("x");
    let engine = Setup::new(&[backend.address]).certificates(&[&old]).start();
    let config = Arc::new(tls_config(&["http/1.1"], rustls::ALL_VERSIONS));
    let mut before = Client::handshake(engine.tls, "localhost", config.clone()).unwrap();
    assert_eq!(before.get("/").text(), "x");
    replace(&engine, &new);
    engine.until("the new certificate is loaded", |_| loads(&engine, "ok") == 1);
    assert_eq!(shown(&engine, "localhost"), *new.der);
    assert_eq!(before.get("/").text(), "x", "connections of before go on");
    let mut after = Client::handshake(engine.tls, "localhost", config).unwrap();
    assert!(after.is_resumed(), "and sessions do");
    assert_eq!(after.get("/").text(), "x");
    let ends: Vec<String> = engine.metrics().0.lines().map(str::to_owned).collect();
    let ends: Vec<_> =
        ends.iter().filter(|line| line.starts_with("portcullis_tls_certificate_expiry")).collect();
    assert_eq!(ends.len(), 1, "{ends:?}");
    assert!(ends[0].ends_with(" 3629145600"), "2085-01-01: {ends:?}");
    let status: serde_json::Value = serde_json::from_str(&engine.admin("/status").1).unwrap();
    assert_eq!(status["listeners"][1]["certificates"][0]["not_after"], 3_629_145_600_i64);
}

#[test]
fn what_can_not_be_served_changes_nothing_and_is_counted_once() {
    let old = TRUSTED.issue(&["localhost"]);
    let new = TRUSTED.issue(&["localhost"]);
    let expired = TRUSTED.issue_until(&["localhost"], 2020);
    let backend = Backend::saying("x");
    let engine = Setup::new(&[backend.address]).certificates(&[&old]).start();
    let half = &new.chain[..new.chain.len() / 2];
    for (count, (what, chain, key)) in [
        ("half a file", half, None),
        ("another key", &new.chain, None),
        ("expired", &expired.chain, Some(&expired.key)),
        ("nothing", "", None),
    ]
    .into_iter()
    .enumerate()
    {
        engine.write("0.crt", chain);
        if let Some(key) = key {
            engine.write("0.key", key);
        }
        engine.until(what, |_| loads(&engine, "failed") == count as u64 + 1);
        assert_eq!(shown(&engine, "localhost"), *old.der, "{what}");
    }
    replace(&engine, &new);
    engine.until("a good pair", |_| loads(&engine, "ok") == 1);
    assert_eq!(shown(&engine, "localhost"), *new.der);
    assert_eq!(loads(&engine, "failed"), 4);
}
