//! What makes clients refuse a certificate that can be served, today or soon.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer, public_key::PublicKey};

use super::{
    Certificate,
    diagnostics::{Problem, Span, quote},
    pem::{date_text, now},
};

/// A certificate that ends sooner is told of; what renews certificates does so a month before.
const SOON: i64 = 21 * 86_400;
/// Bits of an RSA key that browsers still take.
const RSA_BITS: usize = 2048;

/// Signatures with MD5 and SHA-1, which nobody believes any more.
const BROKEN: [(&str, &str); 4] = [
    ("1.2.840.113549.1.1.4", "MD5"),
    ("1.2.840.113549.1.1.5", "SHA-1"),
    ("1.2.840.10045.4.1", "SHA-1"),
    ("1.2.840.10040.4.3", "SHA-1"),
];

/// Warns of what was read from files of the configuration.
pub(super) fn of(certificate: &Certificate, span: &Span, peers: &str) -> Vec<Problem> {
    let path = quote(&certificate.chain_file.display().to_string());
    let mut doubts = Vec::new();
    let mut warn = |message: String, help: String| {
        doubts.push(Problem::warning(span.clone(), message).help(help));
    };
    let (now, end) = (now(), certificate.not_after);
    if end < now {
        let message = format!("the certificate in {path} expired on {}", date_text(end));
        warn(message, format!("renew it; {peers} refuse it"));
    } else if end - now < SOON {
        let (date, days) = (date_text(end), (end - now) / 86_400);
        let message = format!("the certificate in {path} expires on {date}, in {days} days");
        warn(message, "renew it; what is written to the file is used without a restart".to_owned());
    }
    if certificate.not_before > now {
        let start = date_text(certificate.not_before);
        let message = format!("the certificate in {path} is not valid before {start}");
        warn(message, "check the clock of this machine".to_owned());
    }
    doubts.extend(weaknesses(&certificate.chain, &certificate.chain_file, span));
    doubts
}

/// Warns of a certificate for clients, who go by its names.
pub(super) fn nameless(certificate: &Certificate, span: &Span) -> Option<Problem> {
    let path = quote(&certificate.chain_file.display().to_string());
    let message = format!("the certificate in {path} has no subject alternative names");
    let problem = Problem::warning(span.clone(), message).help("issue one that has; clients refuse it");
    certificate.names.is_empty().then_some(problem)
}

fn weaknesses(chain: &[CertificateDer<'_>], path: &Path, span: &Span) -> Vec<Problem> {
    let mut found = Vec::new();
    for (index, der) in chain.iter().enumerate() {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { continue };
        let which = match index {
            0 => format!("the certificate in {}", quote(&path.display().to_string())),
            _ => format!("certificate {} in {}", index + 1, quote(&path.display().to_string())),
        };
        let algorithm = certificate.signature_algorithm.algorithm.to_id_string();
        // Nobody looks at how a root has signed itself.
        let is_root = certificate.subject() == certificate.issuer();
        let broken = BROKEN.iter().find(|(id, _)| *id == algorithm && !is_root);
        if let Some((_, hash)) = broken {
            let problem = Problem::warning(span.clone(), format!("{which} is signed with {hash}"));
            found.push(problem.help("have it issued anew, with SHA-256; clients refuse it"));
        }
        if let Ok(PublicKey::RSA(key)) = certificate.public_key().parsed()
            && key.key_size() < RSA_BITS
        {
            let message = format!("{which} has an RSA key of {} bits", key.key_size());
            let problem = Problem::warning(span.clone(), message);
            found.push(problem.help("use ECDSA P-256, or RSA of 2048 bits and more; clients refuse it"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    /// The doubts about a certificate that ends in so many seconds.
    fn ending_in(left: i64) -> Vec<String> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let end = u64::try_from(now() + left).unwrap();
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
        let chain = vec![params.self_signed(&key).unwrap().der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let certificate = Certificate::from_der(chain, key).unwrap();
        of(&certificate, &(0..0), "clients").into_iter().map(|doubt| doubt.message).collect()
    }

    #[test]
    fn warns_three_weeks_before_the_end() {
        assert!(ending_in(SOON + 60).is_empty());
        let soon = ending_in(SOON - 60);
        assert!(soon.len() == 1 && soon[0].ends_with("in 20 days"), "{soon:?}");
        let today = ending_in(60);
        assert!(today.len() == 1 && today[0].ends_with("in 0 days"), "{today:?}");
        let over = ending_in(-60);
        assert!(over.len() == 1 && over[0].contains("expired on"), "{over:?}");
    }

    /// Made by OpenSSL: `openssl req -x509 -newkey rsa:1024 -sha1 …`, signed by a CA of the same kind.
    const WEAK: &str = include_str!("../../tests/config/weak.pem");

    #[test]
    fn warns_of_keys_and_signatures_that_nobody_takes() {
        let chain: Vec<_> = rustls_pemfile::certs(&mut WEAK.as_bytes()).collect::<Result<_, _>>().unwrap();
        let found = weaknesses(&chain, Path::new("weak.pem"), &(0..0));
        let found: Vec<_> = found.into_iter().map(|problem| problem.message).collect();
        assert_eq!(
            found,
            [
                "the certificate in \"weak.pem\" is signed with SHA-1",
                "the certificate in \"weak.pem\" has an RSA key of 1024 bits",
                "certificate 2 in \"weak.pem\" has an RSA key of 1024 bits",
            ]
        );
    }
}
