//! OCSP responses: no panic, and what is accepted is of the certificate.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use portcullis::config::Staple;
use rustls::pki_types::{CertificateDer, pem::PemObject};

/// The certificate that the seeds are for, and its issuer.
static CHAIN: LazyLock<Vec<CertificateDer<'static>>> = LazyLock::new(|| {
    let pem = include_bytes!("../../tests/config/ocsp/chain.pem");
    CertificateDer::pem_slice_iter(pem).map(|certificate| certificate.expect("a certificate")).collect()
});

fuzz_target!(|data: &[u8]| {
    if let Ok(staple) = Staple::read(data, &CHAIN) {
        assert_eq!(staple.response, data);
        assert_eq!(Staple::read(data, &CHAIN[..1]), Ok(staple));
        let serial = SERIAL.as_slice();
        assert!(data.windows(serial.len()).any(|window| window == serial));
    }
});

/// Of the certificate, as in its DER.
static SERIAL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    // Certificate, TBSCertificate, version, serial number: the lengths of the first two take two bytes.
    let der = CHAIN[0].as_ref();
    let length = usize::from(der[14]);
    der[15..15 + length].to_vec()
});
