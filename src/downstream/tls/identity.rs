//! Who a client is by its certificate, in the fields that tell backends.
//!
//! Whatever stands in a certificate is text of somebody else, if one whom the operator trusts: what
//! is not printable, and what separates the parts of a value, is escaped.

use std::{fmt::Write, net::IpAddr};

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    objects::{oid_registry, oid2abbrev},
    prelude::FromDer,
    x509::{AttributeTypeAndValue, X509Name},
};

use crate::{config::ClientIdentity, proxy::policies::ClientCertificate};

/// What backends are told of a client's chain, which was verified; leaf first, empty where it has none.
pub(super) fn of(chain: &[CertificateDer<'_>], forward: ClientIdentity) -> ClientCertificate {
    let Some((leaf, issuers)) = chain.split_first() else {
        let mut fields = Vec::new();
        if forward.sets_x_client_cert() {
            fields.push(("x-client-cert-verified", b"none".to_vec()));
        }
        return ClientCertificate { fields, shown: None };
    };
    // What can't be parsed was not verified either.
    let parsed = X509Certificate::from_der(leaf).ok().map(|(_, parsed)| parsed);
    let subject = parsed.as_ref().map(|parsed| subject(parsed.subject())).unwrap_or_default();
    let fingerprint = hexadecimal(digest::digest(&digest::SHA256, leaf).as_ref());
    let mut fields: Vec<(&'static str, Vec<u8>)> = Vec::new();
    if forward.sets_x_client_cert() {
        let serial = parsed.as_ref().map(serial).unwrap_or_default();
        let alternatives = parsed.as_ref().map(alternatives).unwrap_or_default();
        fields.extend([
            ("x-client-cert-verified", b"success".to_vec()),
            ("x-client-cert-subject", subject.clone().into_bytes()),
            ("x-client-cert-san", alternatives.into_bytes()),
            ("x-client-cert-serial", serial.into_bytes()),
            ("x-client-cert-fingerprint", fingerprint.clone().into_bytes()),
        ]);
    }
    if forward.sets_rfc9440() {
        fields.push(("client-cert", bytes_item(leaf)));
        if !issuers.is_empty() {
            let items: Vec<Vec<u8>> = issuers.iter().map(|each| bytes_item(each)).collect();
            fields.push(("client-cert-chain", items.join(&b", "[..])));
        }
    }
    ClientCertificate { fields, shown: Some((subject, fingerprint)) }
}

/// A name as in RFC 4514: `CN=alice,O=Example`, the last part first.
fn subject(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> =
        name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type();
    let name = match oid2abbrev(oid, oid_registry()) {
        Ok(abbreviation) => abbreviation.to_owned(),
        Err(_) => oid.to_id_string(),
    };
    let value = attribute.as_str().map_or_else(
        // RFC 4514 §2.4: what is no text is its bytes.
        |_| format!("#{}", hexadecimal(attribute.as_slice())),
        |text| escaped(text, ",+\"\\<>;#= "),
    );
    format!("{name}={value}")
}

/// The serial number, without the zero in front that only keeps it positive.
fn serial(certificate: &X509Certificate<'_>) -> String {
    let bytes = certificate.raw_serial();
    hexadecimal(bytes.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(bytes))
}

/// The subject alternative names: `DNS:alice.example,URI:spiffe://example/alice`.
fn alternatives(certificate: &X509Certificate<'_>) -> String {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension.iter().flat_map(|extension| &extension.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(format!("DNS:{}", escaped(name, ",\\"))),
        GeneralName::URI(name) => Some(format!("URI:{}", escaped(name, ",\\"))),
        GeneralName::RFC822Name(name) => Some(format!("email:{}", escaped(name, ",\\"))),
        GeneralName::IPAddress(bytes) => Some(format!("IP:{}", address(bytes)?)),
        _ => None,
    });
    names.collect::<Vec<_>>().join(",")
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    ipv4().or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

/// A text in which `special` characters stand behind a backslash, and bytes that are not visible
/// ASCII as backslash and two digits (RFC 4514 §2.4).
fn escaped(text: &str, special: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let character = char::from(byte);
        match byte {
            // A blank inside a value stands for itself.
            b' ' if !out.is_empty() => out.push(' '),
            b' ' => out.push_str("\\ "),
            0x21..=0x7e if special.contains(character) => out.extend(['\\', character]),
            0x21..=0x7e => out.push(character),
            // WHY: writing to a string can't fail.
            _ => _ = write!(out, "\\{byte:02X}"),
        }
    }
    // A field has no blank at its end.
    if out.ends_with(' ') {
        out.pop();
        out.push_str("\\20");
    }
    out
}

/// An item of bytes as in RFC 8941 §3.3.5.
fn bytes_item(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() * 4 / 3 + 6);
    out.push(b':');
    base64(bytes, &mut out);
    out.push(b':');
    out
}

/// RFC 4648 §4, with padding.
fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            out.push(if digit > chunk.len() { b'=' } else { ALPHABET[value as usize] });
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // WHY: writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, SerialNumber};

    use super::*;

    fn certificate() -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["alice.example".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Ex,ample\r\nx: y");
        params.distinguished_name.push(DnType::CommonName, "Älice ");
        params.subject_alt_names.push(SanType::URI("spiffe://example/a,b".try_into().unwrap()));
        params.subject_alt_names.push(SanType::IpAddress("2001:db8::1".parse().unwrap()));
        params.serial_number = Some(SerialNumber::from(0x2a_u64));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn field<'c>(certificate: &'c ClientCertificate, name: &str) -> Option<&'c str> {
        let found = certificate.fields.iter().find(|(each, _)| *each == name)?;
        Some(std::str::from_utf8(&found.1).unwrap())
    }

    #[test]
    fn tells_who_the_client_is_and_lets_no_text_of_a_certificate_out_of_its_field() {
        let der = certificate();
        let found = of(std::slice::from_ref(&der), ClientIdentity::XClientCert);
        assert_eq!(field(&found, "x-client-cert-verified"), Some("success"));
        let subject = "CN=\\C3\\84lice\\20,O=Ex\\,ample\\0D\\0Ax: y";
        assert_eq!(field(&found, "x-client-cert-subject"), Some(subject));
        let names = "DNS:alice.example,URI:spiffe://example/a\\,b,IP:2001:db8::1";
        assert_eq!(field(&found, "x-client-cert-san"), Some(names));
        assert_eq!(field(&found, "x-client-cert-serial"), Some("2a"));
        assert_eq!(field(&found, "x-client-cert-fingerprint").map(str::len), Some(64));
        assert_eq!(found.for_log().map(|client| client.subject), Some(subject));
        assert!(field(&found, "client-cert").is_none());
    }

    #[test]
    fn writes_certificates_as_rfc_9440_does() {
        let der = certificate();
        let found = of(&[der.clone(), der.clone()], ClientIdentity::Rfc9440);
        let item = field(&found, "client-cert").unwrap();
        assert!(item.starts_with(":MII") && item.ends_with(':'), "{item}");
        assert_eq!(field(&found, "client-cert-chain"), Some(item));
        assert_eq!(found.fields.len(), 2);
        assert!(of(&[der], ClientIdentity::Off).fields.is_empty());
    }

    #[test]
    fn says_of_a_client_without_certificate_that_it_has_none() {
        let found = of(&[], ClientIdentity::Both);
        assert_eq!(found.fields, [("x-client-cert-verified", b"none".to_vec())]);
        assert!(found.for_log().is_none());
    }

    #[test]
    fn base64_is_padded() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            let mut out = Vec::new();
            base64(bytes.as_bytes(), &mut out);
            assert_eq!(out, text.as_bytes());
        }
    }
}
