//! Certificate files that change while they are served.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use rustls::{
    DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::{TLS12, TLS13},
};

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

/// Takes every certificate, and keeps the OCSP response that came with it.
#[derive(Debug, Default)]
struct Staples(Mutex<Vec<u8>>);

impl ServerCertVerifier for Staples {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        response: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = response.to_vec();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// What is stapled; empty for nothing.
fn stapled_over(engine: &Engine, version: &'static SupportedProtocolVersion) -> Vec<u8> {
    let staples = Arc::new(Staples::default());
    let mut config = tls_config(&["http/1.1"], &[version]);
    config.dangerous().set_certificate_verifier(staples.clone());
    Client::handshake(engine.tls, "localhost", Arc::new(config)).unwrap();
    staples.0.lock().unwrap().clone()
}

/// The same in both versions of TLS.
fn stapled(engine: &Engine) -> Vec<u8> {
    let [old, new] = [&TLS12, &TLS13].map(|version| stapled_over(engine, version));
    assert_eq!(old, new);
    new
}

fn ocsp_loads(engine: &Engine, result: &str) -> u64 {
    engine.metrics().sum("portcullis_tls_file_loads_total", &[("file", "ocsp"), ("result", result)])
}

/// A response for the time from a minute ago until so many seconds from now.
fn response(leaf: &Leaf, left: i64) -> Vec<u8> {
    let now = SystemTime::now();
    let left_or_over = Duration::from_secs(left.unsigned_abs());
    let end = if left < 0 { now - left_or_over } else { now + left_or_over };
    TRUSTED.vouch_for(leaf, now - Duration::from_mins(1), end)
}

fn ends(engine: &Engine) -> u64 {
    engine.metrics().sum("portcullis_tls_ocsp_expiry_timestamp_seconds", &[])
}

#[test]
fn a_response_is_stapled_and_followed() {
    let [leaf, other] = [TRUSTED.issue(&["localhost"]), TRUSTED.issue(&["localhost"])];
    let [first, second] = [3600, 7200].map(|left| response(&leaf, left));
    let backend = Backend::saying("x");
    let engine = Setup::new(&[backend.address]).stapled(&leaf, &first).start();
    assert_eq!(stapled(&engine), first);
    let until = ends(&engine);
    engine.write("0.ocsp", &second);
    engine.until("the next response is loaded", |_| ocsp_loads(&engine, "ok") == 1);
    assert_eq!(stapled(&engine), second);
    assert!(ends(&engine) > until);
    for (count, bad) in
        [second[..99].to_vec(), response(&other, 3600), response(&leaf, -1), Vec::new()].iter().enumerate()
    {
        engine.write("0.ocsp", bad);
        engine.until("it is refused", |_| ocsp_loads(&engine, "failed") == count as u64 + 1);
        assert_eq!(stapled(&engine), second, "the last good one stays");
    }
    let status: serde_json::Value = serde_json::from_str(&engine.admin("/status").1).unwrap();
    assert_eq!(status["listeners"][1]["certificates"][0]["ocsp_until"], ends(&engine));
}

#[test]
fn a_response_that_has_expired_is_left_out_until_there_is_a_fresh_one() {
    let leaf = TRUSTED.issue(&["localhost"]);
    let backend = Backend::saying("x");
    let engine = Setup::new(&[backend.address]).stapled(&leaf, &response(&leaf, -1)).start();
    assert_eq!(stapled(&engine), b"", "from the start");
    engine.write("0.ocsp", response(&leaf, 5));
    engine.until("a fresh one is loaded", |_| ocsp_loads(&engine, "ok") == 1);
    engine.until("it is left out", |_| stapled_over(&engine, &TLS13).is_empty());
    assert_eq!(stapled(&engine), b"");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(ends(&engine) <= now, "the metric says so");
    let fresh = response(&leaf, 3600);
    engine.write("0.ocsp", &fresh);
    engine.until("the next one is loaded", |_| ocsp_loads(&engine, "ok") == 2);
    assert_eq!(stapled(&engine), fresh);
}

#[test]
fn a_renewed_certificate_does_not_wait_for_its_response() {
    let [old, new] = [TRUSTED.issue(&["localhost"]), TRUSTED.issue(&["localhost"])];
    let backend = Backend::saying("x");
    let engine = Setup::new(&[backend.address]).stapled(&old, &response(&old, 3600)).start();
    replace(&engine, &new);
    engine.until("the new certificate is loaded", |_| loads(&engine, "ok") == 1);
    assert_eq!(shown(&engine, "localhost"), *new.der);
    assert_eq!((stapled(&engine), ends(&engine)), (Vec::new(), 0), "the old one's is not for it");
    let fresh = response(&new, 3600);
    engine.write("0.ocsp", &fresh);
    engine.until("its response is loaded", |_| ocsp_loads(&engine, "ok") == 1);
    assert_eq!(stapled(&engine), fresh);
    // The same certificate again, while the file of the response is bad: the one in force stays.
    engine.write("0.ocsp", b"");
    engine.write("0.crt", format!("{}\n", new.chain));
    engine.until("the certificate is loaded", |_| loads(&engine, "ok") == 2);
    assert_eq!(stapled(&engine), fresh);
}
