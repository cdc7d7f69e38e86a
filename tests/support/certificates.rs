//! Throw-away certificates.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The CA that clients of the tests trust.
pub static TRUSTED: LazyLock<Authority> = LazyLock::new(Authority::new);

/// Of the next certificate; begins with a byte that is not zero.
static SERIAL: AtomicU64 = AtomicU64::new(1 << 56);

/// A CA of its own.
#[derive(Debug)]
pub struct Authority {
    pub pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Leaf {
    pub chain: String,
    pub key: String,
    pub der: CertificateDer<'static>,
    key_der: Vec<u8>,
    serial: Vec<u8>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        // Two of one name would be taken for each other.
        let number = SERIAL.fetch_add(1, Ordering::Relaxed);
        ca.distinguished_name.push(DnType::CommonName, format!("tests' CA {number:x}"));
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let signed = ca.self_signed(&key).unwrap();
        Authority { pem: signed.pem(), der: signed.der().clone(), issuer: Issuer::new(ca, key) }
    }

    pub fn issue(&self, names: &[&str]) -> Leaf {
        self.issue_until(names, 2090)
    }

    /// A certificate that ends with a year.
    pub fn issue_until(&self, names: &[&str], year: i32) -> Leaf {
        let params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let names = params.unwrap().subject_alt_names;
        self.issue_with(year, |leaf| leaf.subject_alt_names = names)
    }

    /// The same with whatever else is set.
    pub fn issue_with(&self, year: i32, set: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::default();
        set(&mut leaf);
        leaf.not_before = date_time_ymd(2010, 1, 1);
        leaf.not_after = date_time_ymd(year, 1, 1);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed).to_be_bytes().to_vec();
        leaf.serial_number = Some(SerialNumber::from_slice(&serial));
        let signed = leaf.signed_by(&key, &self.issuer).unwrap();
        Leaf {
            chain: signed.pem(),
            key: key.serialize_pem(),
            der: signed.der().clone(),
            key_der: key.serialize_der(),
            serial,
        }
    }

    /// A list of revoked certificates, in PEM.
    pub fn revoke(&self, leaves: &[&Leaf]) -> String {
        let revoked = leaves.iter().map(|leaf| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&leaf.serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2021, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// An OCSP response that says that a certificate is good (RFC 6960), with a signature that is none.
    pub fn vouch_for(&self, leaf: &Leaf, begin: SystemTime, end: SystemTime) -> Vec<u8> {
        let (_, certificate) = X509Certificate::from_der(&leaf.der).unwrap();
        let (_, issuer) = X509Certificate::from_der(&self.der).unwrap();
        let hash = |bytes: &[u8]| der(4, &[digest(&SHA256, bytes).as_ref()]);
        let algorithm = der(0x30, &[&der(6, &[b"\x60\x86\x48\x01\x65\x03\x04\x02\x01"])]);
        let [name, key] =
            [certificate.issuer().as_raw(), &issuer.public_key().subject_public_key.data].map(hash);
        let id = der(0x30, &[&algorithm, &name, &key, &der(2, &[&leaf.serial])]);
        let [begin, end] = [begin, end].map(|time| {
            let time = time.duration_since(UNIX_EPOCH).unwrap();
            let time = date_time_ymd(1970, 1, 1) + Duration::from_secs(time.as_secs());
            let (year, month, day) = time.to_calendar_date();
            let (hour, minute, second) = time.to_hms();
            let text = format!("{year}{:02}{day:02}{hour:02}{minute:02}{second:02}Z", u8::from(month));
            der(0x18, &[text.as_bytes()])
        });
        let single = der(0x30, &[&id, &der(0x80, &[]), &begin, &der(0xa0, &[&end])]);
        let responder = der(0xa2, &[&key]);
        let data = der(0x30, &[&responder, &begin, &der(0x30, &[&single])]);
        let basic = der(0x30, &[&data, &algorithm, &der(3, &[b"\0none"])]);
        let kind = der(6, &[b"\x2b\x06\x01\x05\x05\x07\x30\x01\x01"]);
        let bytes = der(0xa0, &[&der(0x30, &[&kind, &der(4, &[&basic])])]);
        der(0x30, &[&der(10, &[b"\0"]), &bytes])
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        Arc::new(roots)
    }
}

/// A value of DER with that tag.
fn der(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    let length = match content.len() {
        ..0x80 => vec![low],
        0x80..0x100 => vec![0x81, low],
        _ => vec![0x82, high, low],
    };
    [vec![tag], length, content].concat()
}

impl Leaf {
    /// A client that shows it, and trusts the tests' CA.
    pub fn client_config(&self, alpn: &[&str]) -> ClientConfig {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_der.clone()));
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(TRUSTED.roots())
                .with_client_auth_cert(vec![self.der.clone()], key)
                .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// What a backend shows with it.
    pub fn backend_config(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_der.clone()));
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![self.der.clone()], key)
                .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}
