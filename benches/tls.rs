//! The certificate of a name: on every handshake's way, and flat in the number of certificates.

use std::{hint::black_box, path::PathBuf};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use portcullis::{
    config::{Certificate, ListenerTls, Stamps},
    downstream::tls::CertificateStore,
};
use rustls::{SignatureScheme, pki_types::PrivateKeyDer};

/// Every second certificate is for a wildcard; one key serves them all, so that the start is fast.
fn certificates(count: usize) -> CertificateStore {
    let pair = rcgen::generate_simple_self_signed(["example.com".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).expect("a key");
    let certificate = |index: usize| Certificate {
        chain_file: PathBuf::new(),
        key_file: PathBuf::new(),
        chain: vec![pair.cert.der().clone()],
        key: key.clone_key(),
        names: vec![match index % 2 {
            0 => format!("host{index}.example.com"),
            _ => format!("*.tenant{index}.example.com"),
        }],
        serial: String::new(),
        not_before: 0,
        not_after: 0,
        ocsp: None,
        stamps: Stamps::default(),
    };
    let tls = ListenerTls { certificates: (0..count).map(certificate).collect(), ..ListenerTls::default() };
    CertificateStore::new(&tls).expect("a supported key")
}

fn find_certificate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("certificate");
    for count in [10_usize, 10_000] {
        let certificates = certificates(count);
        let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
        let middle = count / 4 * 2;
        let names = [
            ("exact", format!("host{middle}.example.com"), true),
            ("wildcard", format!("www.tenant{}.example.com", middle + 1), true),
            ("unknown", "www.example.org".to_owned(), false),
        ];
        for (kind, name, known) in names {
            assert_eq!(certificates.find(&name, &schemes).is_some(), known, "{name}");
            group.bench_function(BenchmarkId::new(kind, count), |bencher| {
                bencher.iter(|| certificates.find(black_box(&name), &schemes));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, find_certificate);
criterion_main!(benches);
