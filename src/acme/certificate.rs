//! Certificates and keys that are made here: the request for one, the proof of a challenge, and the throw-away one that is
//! shown until the real one comes.

use std::{path::PathBuf, time::Duration};

use instant_acme::CertificateIdentifier;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair};

use super::schedule::Life;
use crate::config::{Certificate, Stamps};

/// How long a throw-away certificate says that it is valid: short, so that an alert on the expiry of certificates
/// sees it.
const THROW_AWAY: Duration = Duration::from_hours(7 * 24);

/// A key of its own for each certificate, and the request that it signs.
pub(super) struct Request {
    pub(super) key_pem: String,
    pub(super) csr_der: Vec<u8>,
}

pub(super) fn request(domains: &[String]) -> Result<Request, rcgen::Error> {
    let mut params = CertificateParams::new(domains)?;
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::generate()?;
    let csr = params.serialize_request(&key)?;
    Ok(Request { key_pem: key.serialize_pem(), csr_der: csr.der().to_vec() })
}

/// The certificate that proves a tls-alpn-01 challenge (RFC 8737 §3).
pub(super) fn of_challenge(domain: &str, digest: &[u8]) -> Result<Certificate, Unusable> {
    let mut params = CertificateParams::new([domain.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    // WHY not read like others: what makes it a proof is a critical extension that no reader knows.
    Ok(Certificate {
        chain_file: PathBuf::new(),
        key_file: PathBuf::new(),
        chain: vec![certificate.der().clone()],
        key: key.into(),
        names: vec![domain.to_owned()],
        serial: String::new(),
        not_before: params.not_before.unix_timestamp(),
        not_after: params.not_after.unix_timestamp(),
        ocsp: None,
        stamps: Stamps::default(),
    })
}

/// One that nobody trusts, so that handshakes work at all.
pub(super) fn throw_away(domains: &[String]) -> Result<Certificate, Unusable> {
    let mut params = CertificateParams::new(domains)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Portcullis throw-away certificate");
    let now = std::time::SystemTime::now();
    params.not_before = (now - Duration::from_hours(1)).into();
    params.not_after = (now + THROW_AWAY).into();
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    read(format!("{}{}", key.serialize_pem(), certificate.pem()).as_bytes())
}

/// Why a certificate can't be used.
#[derive(Debug)]
pub(super) struct Unusable(String);

/// Reads the key and the chain of one text and checks that they fit together.
pub(super) fn read(pem: &[u8]) -> Result<Certificate, Unusable> {
    Certificate::from_pem(pem).map_err(Unusable)
}

/// Reads what the directory sent; it has to be for these names, or clients would get something else than is
/// configured.
pub(super) fn check(certificate: &Certificate, domains: &[String]) -> Result<(), Unusable> {
    match missing(certificate, domains) {
        [] => Ok(()),
        [name, ..] => Err(Unusable(format!("it is not for {name}"))),
    }
}

fn missing<'d>(certificate: &Certificate, domains: &'d [String]) -> &'d [String] {
    let from = domains.iter().position(|domain| !certificate.names.contains(domain));
    from.map_or(&[], |from| &domains[from..])
}

pub(super) fn life(certificate: &Certificate) -> Life {
    Life { begin: certificate.not_before, end: certificate.not_after }
}

/// How the directory knows it (RFC 9773 §4.1); `None` for one without the id of its authority's key.
pub(super) fn identifier(certificate: &Certificate) -> Option<CertificateIdentifier<'static>> {
    let leaf = certificate.chain.first()?;
    CertificateIdentifier::try_from(leaf).ok().map(CertificateIdentifier::into_owned)
}

impl From<rcgen::Error> for Unusable {
    fn from(error: rcgen::Error) -> Self {
        Unusable(error.to_string())
    }
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_throw_away_certificate_is_for_its_names_and_ends_soon() {
        let certificate = throw_away(&names(&["a.example", "b.example"])).unwrap();
        assert_eq!(certificate.names, ["a.example", "b.example"]);
        let Life { begin, end } = life(&certificate);
        assert_eq!(end - begin, 7 * 24 * 3600 + 3600);
    }

    #[test]
    fn a_challenge_is_proved_by_a_critical_extension_with_the_digest() {
        let certificate = of_challenge("a.example", &[7; 32]).unwrap();
        let (_, parsed) = X509Certificate::from_der(&certificate.chain[0]).unwrap();
        let extension =
            parsed.extensions().iter().find(|each| each.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
        let extension = extension.unwrap();
        assert!(extension.critical);
        assert_eq!(extension.value, [&[4, 32][..], &[7; 32]].concat());
        assert_eq!(certificate.names, ["a.example"]);
    }

    #[test]
    fn a_request_has_a_key_of_its_own() {
        let domains = names(&["a.example"]);
        let (one, other) = (request(&domains).unwrap(), request(&domains).unwrap());
        assert!(one.key_pem != other.key_pem && one.csr_der != other.csr_der);
    }

    #[test]
    fn a_certificate_has_to_be_for_every_name() {
        let certificate = throw_away(&names(&["a.example", "b.example"])).unwrap();
        assert!(check(&certificate, &names(&["b.example", "a.example"])).is_ok());
        let error = check(&certificate, &names(&["a.example", "c.example"])).unwrap_err();
        assert_eq!(error.to_string(), "it is not for c.example");
    }

    #[test]
    fn a_self_signed_certificate_has_no_identifier_and_a_damaged_file_is_unusable() {
        assert!(identifier(&throw_away(&names(&["a.example"])).unwrap()).is_none());
        assert!(read(b"").is_err());
        let key = KeyPair::generate().unwrap().serialize_pem();
        assert!(read(key.as_bytes()).is_err());
    }
}
