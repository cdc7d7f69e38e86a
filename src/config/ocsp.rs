//! OCSP responses that are stapled (RFC 6066 §8): what a responder says of a certificate, from a file.
//!
//! Checked is what goes wrong with files: another certificate's response, one that says no, one that has
//! expired. Whether the authority signed it is for clients to see.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use x509_parser::{
    asn1_rs::{Any, Class, FromDer, GeneralizedTime, Tag},
    certificate::X509Certificate,
};

use super::{
    Certificate, Stamps,
    diagnostics::{Problem, Span, quote},
    pem::{date_text, now, system_text},
    reader::At,
};

/// Responses have about a kibibyte, or five with the responder's own certificates.
const LARGEST_FILE: u64 = 64 * 1024;
/// A response that ends sooner is told of, or in the last quarter of its time where that is less: what
/// fetches responses does so after half of it.
const SOON: i64 = 86_400;

/// id-pkix-ocsp-basic, 1.3.6.1.5.5.7.48.1.1.
const BASIC: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x30\x01\x01";
/// id-pe-tlsfeature, 1.3.6.1.5.5.7.1.24 (RFC 7633).
const TLS_FEATURE: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x01\x18";
/// The TLS extension `status_request`, as a TLS feature: "must staple".
const STATUS_REQUEST: &[u8] = &[5];

/// The hashes that name an issuer, by their object identifiers.
const HASHES: [(&[u8], &digest::Algorithm); 4] = [
    (b"\x2b\x0e\x03\x02\x1a", &digest::SHA1_FOR_LEGACY_USE_ONLY),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x01", &digest::SHA256),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x02", &digest::SHA384),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x03", &digest::SHA512),
];

/// The file of `ocsp`.
#[derive(Debug, Clone)]
pub struct OcspFile {
    pub path: PathBuf,
    /// `None`: none that it held was for this certificate.
    pub staple: Option<Staple>,
    /// From before it was read.
    pub stamps: Stamps,
}

/// A response that says that a certificate is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staple {
    /// DER.
    pub response: Vec<u8>,
    /// Seconds since the epoch, like the next.
    pub this_update: i64,
    pub next_update: i64,
}

impl Staple {
    /// Reads a file for the certificate that is the first of a chain.
    ///
    /// # Errors
    /// What is wrong, in words that follow the name of the file.
    pub fn load(path: &Path, chain: &[CertificateDer<'_>]) -> Result<Self, String> {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes));
        match read {
            Ok(length) if length as u64 > LARGEST_FILE => Err("is larger than 64 KiB".to_owned()),
            Ok(_) => Self::read(&bytes, chain),
            Err(error) => Err(format!("can't be read: {}", system_text(&error))),
        }
    }

    /// Reads a response for the certificate that is the first of a chain.
    ///
    /// Of when it holds nothing is checked but that it says so.
    ///
    /// # Errors
    /// What is wrong, in words that follow the name of the file.
    pub fn read(response: &[u8], chain: &[CertificateDer<'_>]) -> Result<Self, String> {
        let [leaf, rest @ ..] = chain else { return Err("is for no certificate".to_owned()) };
        let leaf = certificate(leaf).ok_or("is for a certificate that can't be read")?;
        let issuer = rest.first().and_then(certificate);
        let issuer = issuer.filter(|issuer| issuer.subject().as_raw() == leaf.issuer().as_raw());
        let statuses = statuses(response)?;
        let found = statuses.iter().find(|status| status.id.is_of(&leaf, issuer.as_ref()));
        let Some(Status { kind, this_update, next_update, .. }) = found else {
            return Err("is for another certificate".to_owned());
        };
        match kind {
            Kind::Good => {}
            Kind::Revoked => return Err("says that the certificate is revoked".to_owned()),
            Kind::Unknown => return Err("says that the responder does not know the certificate".to_owned()),
        }
        let next_update = next_update.ok_or("does not say until when it holds")?;
        Ok(Staple { response: response.to_vec(), this_update: *this_update, next_update })
    }

    /// Whether clients take it.
    pub fn holds(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        i64::try_from(now).is_ok_and(|now| (self.this_update..self.next_update).contains(&now))
    }

    /// Refuses what clients refuse.
    ///
    /// # Errors
    /// Why it does not hold now, in words that follow the name of the file.
    pub fn check_dates(&self) -> Result<(), String> {
        let now = now();
        match () {
            () if self.next_update <= now => Err(format!("expired on {}", date_text(self.next_update))),
            () if self.this_update > now => {
                Err(format!("is not valid before {}", date_text(self.this_update)))
            }
            () => Ok(()),
        }
    }
}

/// Reads the response that goes with a certificate, if one is named.
pub(super) fn resolve(
    written: Option<&At<PathBuf>>,
    base: &Path,
    certificate: Certificate,
    problems: &mut Vec<Problem>,
) -> Option<Certificate> {
    let Some(written) = written else { return Some(certificate) };
    let path = base.join(&written.value);
    let stamps = Stamps::of(vec![path.clone()]);
    match Staple::load(&path, &certificate.chain) {
        Ok(staple) => {
            problems.extend(doubt(&staple, &path, &written.span));
            let ocsp = Some(OcspFile { path, staple: Some(staple), stamps });
            Some(Certificate { ocsp, ..certificate })
        }
        Err(wrong) => {
            let message = format!("the OCSP response {} {wrong}", quote(&path.display().to_string()));
            let help = "write there what the responder of its authority says of this certificate, in DER, as \
                        `openssl ocsp -respout` does";
            problems.push(Problem::error(written.span.clone(), message).help(help));
            None
        }
    }
}

/// Warns of a response that clients refuse, today or soon.
fn doubt(staple: &Staple, path: &Path, span: &Span) -> Option<Problem> {
    let path = quote(&path.display().to_string());
    if let Err(wrong) = staple.check_dates() {
        let problem = Problem::warning(span.clone(), format!("the OCSP response {path} {wrong}"));
        return Some(problem.help("write a fresh one to the file; until then none is stapled"));
    }
    let (left, all) = (staple.next_update - now(), staple.next_update - staple.this_update);
    let message = format!(
        "the OCSP response {path} expires on {}, in {} hours",
        date_text(staple.next_update),
        left / 3600
    );
    let problem = Problem::warning(span.clone(), message);
    (left < SOON.min(all / 4))
        .then(|| problem.help("write a fresh one to the file; it is used without a restart"))
}

/// Warns of a certificate that asks clients to insist on a response ("must staple"), without one.
pub(super) fn missing(certificate: &Certificate, span: &Span) -> Option<Problem> {
    let path = quote(&certificate.chain_file.display().to_string());
    let message =
        format!("the certificate in {path} must have an OCSP response with it, and none is configured");
    let problem = Problem::warning(span.clone(), message);
    let is_missing = certificate.ocsp.is_none() && certificate.chain.first().is_some_and(must_staple);
    is_missing.then(|| {
        problem.help("name one in `ocsp`; clients that go by RFC 7633 refuse the certificate without")
    })
}

fn must_staple(der: &CertificateDer<'_>) -> bool {
    let Some(leaf) = certificate(der) else { return false };
    let extension = leaf.extensions().iter().find(|extension| extension.oid.as_bytes() == TLS_FEATURE);
    let features = extension.and_then(|extension| Fields(extension.value).sequence().ok());
    features.is_some_and(|mut features| {
        std::iter::from_fn(|| features.next(Tag::Integer).ok()).any(|feature| feature == STATUS_REQUEST)
    })
}

fn certificate<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der.as_ref()).ok().map(|(_, certificate)| certificate)
}

/// What a response says of one certificate.
struct Status<'a> {
    id: CertificateId<'a>,
    kind: Kind,
    this_update: i64,
    next_update: Option<i64>,
}

enum Kind {
    Good,
    Revoked,
    Unknown,
}

/// Which certificate is meant: its issuer by two hashes, and its serial number.
struct CertificateId<'a> {
    hash: &'a [u8],
    issuer_name: &'a [u8],
    issuer_key: &'a [u8],
    serial: &'a [u8],
}

impl CertificateId<'_> {
    fn is_of(&self, leaf: &X509Certificate<'_>, issuer: Option<&X509Certificate<'_>>) -> bool {
        let hash = HASHES.iter().find(|(id, _)| *id == self.hash);
        let is_hash = |bytes: &[u8], expected: &[u8]| {
            hash.is_some_and(|(_, algorithm)| digest::digest(algorithm, bytes).as_ref() == expected)
        };
        self.serial == leaf.raw_serial()
            && is_hash(leaf.issuer().as_raw(), self.issuer_name)
            && issuer
                .is_none_or(|issuer| is_hash(&issuer.public_key().subject_public_key.data, self.issuer_key))
    }
}

/// Reads an OCSPResponse, RFC 6960 §4.2.1.
fn statuses(bytes: &[u8]) -> Result<Vec<Status<'_>>, String> {
    let mut file = Fields(bytes);
    let mut response = file.sequence().map_err(|_| {
        let is_text = bytes.starts_with(b"-----BEGIN");
        if is_text { "is PEM, expected DER" } else { "is no OCSP response in DER" }
    })?;
    if !file.is_empty() {
        return Err("has more behind its response".to_owned());
    }
    match response.next(Tag::Enumerated).map_err(damaged)? {
        [0] => {}
        status => return Err(format!("holds the refusal of a responder: {}", refusal(status))),
    }
    basic(response).map_err(damaged)?.ok_or_else(|| "is of a kind that clients don't know".to_owned())
}

fn damaged(Malformed: Malformed) -> String {
    "is damaged".to_owned()
}

/// OCSPResponseStatus.
fn refusal(status: &[u8]) -> &'static str {
    match status {
        [1] => "malformed request",
        [2] => "internal error",
        [3] => "try later",
        [5] => "the request must be signed",
        [6] => "unauthorized",
        _ => "an unknown status",
    }
}

/// Reads the ResponseBytes; `None` where they are no BasicOCSPResponse.
fn basic(mut response: Fields<'_>) -> Result<Option<Vec<Status<'_>>>, Malformed> {
    let mut bytes = response.tagged(0)?.ok_or(Malformed)?.sequence()?;
    if bytes.next(Tag::Oid)? != BASIC {
        return Ok(None);
    }
    let mut data = Fields(bytes.next(Tag::OctetString)?).sequence()?.sequence()?;
    data.tagged(0)?; // version
    data.any()?; // responderID
    data.time()?; // producedAt
    let mut responses = data.sequence()?;
    let mut statuses = Vec::new();
    while !responses.is_empty() {
        statuses.push(single(responses.sequence()?)?);
    }
    Ok(Some(statuses))
}

/// Reads a SingleResponse.
fn single(mut fields: Fields<'_>) -> Result<Status<'_>, Malformed> {
    let mut id = fields.sequence()?;
    let id = CertificateId {
        hash: id.sequence()?.next(Tag::Oid)?,
        issuer_name: id.next(Tag::OctetString)?,
        issuer_key: id.next(Tag::OctetString)?,
        serial: id.next(Tag::Integer)?,
    };
    let status = fields.any()?;
    let kind = match (status.class(), status.tag().0) {
        (Class::ContextSpecific, 0) => Kind::Good,
        (Class::ContextSpecific, 1) => Kind::Revoked,
        (Class::ContextSpecific, 2) => Kind::Unknown,
        _ => return Err(Malformed),
    };
    let this_update = fields.time()?;
    let next_update = fields.tagged(0)?.map(|mut field| field.time()).transpose()?;
    Ok(Status { id, kind, this_update, next_update })
}

/// It is not what the standard says.
struct Malformed;

/// Values of DER, one behind the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn any(&mut self) -> Result<Any<'a>, Malformed> {
        let (rest, value) = Any::from_der(self.0).map_err(|_| Malformed)?;
        self.0 = rest;
        Ok(value)
    }

    /// The content of the next value, which has to be of this universal kind.
    fn next(&mut self, tag: Tag) -> Result<&'a [u8], Malformed> {
        let value = self.any()?;
        let is_expected = value.class() == Class::Universal && value.tag() == tag;
        if is_expected { Ok(value.as_bytes()) } else { Err(Malformed) }
    }

    fn sequence(&mut self) -> Result<Fields<'a>, Malformed> {
        self.next(Tag::Sequence).map(Fields)
    }

    fn time(&mut self) -> Result<i64, Malformed> {
        let (rest, time) = GeneralizedTime::from_der(self.0).map_err(|_| Malformed)?;
        self.0 = rest;
        let time = time.utc_datetime().map_err(|_| Malformed)?;
        Ok(time.unix_timestamp())
    }

    /// What is in the next value, if it has this explicit tag.
    fn tagged(&mut self, number: u32) -> Result<Option<Fields<'a>>, Malformed> {
        if self.is_empty() {
            return Ok(None);
        }
        let before = self.0;
        let value = self.any()?;
        if value.class() == Class::ContextSpecific && value.tag().0 == number {
            return Ok(Some(Fields(value.as_bytes())));
        }
        self.0 = before;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use proptest::prelude::*;
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    /// Made by OpenSSL, good for a hundred years: `openssl ocsp -index … -CA ca.crt -rsigner ca.crt
    /// -rkey ca.key -reqin … -ndays 36500 -respout …`.
    fn file(name: &str) -> Vec<u8> {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/ocsp").join(name)).unwrap()
    }

    /// The certificate that the responses are for, and its issuer.
    fn chain() -> Vec<CertificateDer<'static>> {
        certificates("chain.pem")
    }

    fn certificates(name: &str) -> Vec<CertificateDer<'static>> {
        rustls_pemfile::certs(&mut file(name).as_slice()).collect::<Result<_, _>>().unwrap()
    }

    fn of(name: &str) -> Result<Staple, String> {
        Staple::read(&file(name), &chain())
    }

    #[test]
    fn reads_what_openssl_says_of_a_certificate() {
        for name in ["good.der", "sha256.der"] {
            let staple = of(name).unwrap();
            assert_eq!(staple.next_update - staple.this_update, 36_500 * 86_400, "{name}");
            assert_eq!(date_text(staple.this_update), "2026-11-26");
            assert_eq!(staple.response, file(name));
            assert_eq!(Staple::read(&staple.response, &chain()[..1]).unwrap(), staple, "without its issuer");
        }
    }

    #[test]
    fn refuses_what_clients_would_refuse() {
        let good = file("good.der");
        let pem = b"-----BEGIN OCSP RESPONSE-----\n".to_vec();
        let long = [&good[..], b"\0"].concat();
        for (response, wrong) in [
            (file("revoked.der"), "says that the certificate is revoked"),
            (file("unknown.der"), "says that the responder does not know the certificate"),
            (file("endless.der"), "does not say until when it holds"),
            (b"\x30\x03\x0a\x01\x06".to_vec(), "holds the refusal of a responder: unauthorized"),
            (b"\x30\x03\x0a\x01\x07".to_vec(), "holds the refusal of a responder: an unknown status"),
            (b"\x30\x03\x0a\x01\x00".to_vec(), "is damaged"),
            (b"\x30\x03\x02\x01\x00".to_vec(), "is damaged"),
            (good[..200].to_vec(), "is no OCSP response in DER"),
            (long, "has more behind its response"),
            (pem, "is PEM, expected DER"),
            (Vec::new(), "is no OCSP response in DER"),
        ] {
            assert_eq!(Staple::read(&response, &chain()).unwrap_err(), wrong);
        }
        let other = certificates("other.pem");
        assert_eq!(Staple::read(&good, &other).unwrap_err(), "is for another certificate");
    }

    #[test]
    fn the_issuer_has_to_be_the_same() {
        let (good, chain) = (file("good.der"), chain());
        let leaf = certificate(&chain[0]).unwrap();
        let [name, key] =
            [leaf.issuer().as_raw(), &certificate(&chain[1]).unwrap().public_key().subject_public_key.data]
                .map(|hashed| digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, hashed).as_ref().to_vec());
        for hash in [name, key] {
            let at = good.windows(hash.len()).position(|window| window == hash).unwrap();
            let mut changed = good.clone();
            changed[at] ^= 1;
            assert_eq!(Staple::read(&changed, &chain).unwrap_err(), "is for another certificate");
        }
    }

    /// A response that began and ends so many seconds from now.
    fn staple(begin: i64, end: i64) -> Staple {
        Staple { response: Vec::new(), this_update: now() + begin, next_update: now() + end }
    }

    #[test]
    fn holds_from_its_first_second_until_before_its_last() {
        let staple = Staple { response: Vec::new(), this_update: 100, next_update: 200 };
        let holds = |seconds| staple.holds(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!([99, 100, 199, 200].map(holds), [false, true, true, false]);
        assert!(!staple.holds(UNIX_EPOCH - Duration::from_secs(1)));
    }

    #[test]
    fn warns_a_day_or_a_quarter_before_the_end() {
        let day = 86_400;
        for (begin, end, warning) in [
            (-6 * day, day + 60, None),
            (-6 * day, day - 60, Some("in 23 hours")),
            (-9 * 3600, 3 * 3600 + 60, None),
            (-9 * 3600, 3 * 3600 - 60, Some("in 2 hours")),
            (-7 * day, 0, Some("expired on")),
            (60, 7 * day, Some("is not valid before")),
        ] {
            let doubt =
                doubt(&staple(begin, end), Path::new("a.der"), &(0..0)).map(|problem| problem.message);
            let is_expected = match (&doubt, warning) {
                (Some(doubt), Some(warning)) => doubt.contains(warning),
                (doubt, warning) => doubt.is_none() && warning.is_none(),
            };
            assert!(is_expected, "{begin} {end}: {doubt:?}");
        }
    }

    #[test]
    fn a_certificate_may_demand_a_response() {
        let demands = |name| must_staple(&certificates(name)[0]);
        assert!(demands("chain.pem") && !demands("../weak.pem"));
        let key = rcgen::KeyPair::generate().unwrap();
        let [features, empty, other] =
            [&b"\x30\x06\x02\x01\x11\x02\x01\x05"[..], b"\x30\x00", b"\x30\x03\x02\x01\x11"].map(|value| {
                let id = [1, 3, 6, 1, 5, 5, 7, 1, 24];
                let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
                params.custom_extensions =
                    vec![rcgen::CustomExtension::from_oid_content(&id, value.to_vec())];
                let chain = vec![params.self_signed(&key).unwrap().der().clone()];
                Certificate::from_der(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap()).unwrap()
            });
        assert!(missing(&features, &(0..0)).unwrap().message.contains("must have an OCSP response"));
        assert!(missing(&empty, &(0..0)).is_none() && missing(&other, &(0..0)).is_none());
        let ocsp = Some(OcspFile { path: PathBuf::new(), staple: None, stamps: Stamps::default() });
        assert!(missing(&Certificate { ocsp, ..features }, &(0..0)).is_none());
    }

    proptest! {
        #[test]
        fn hostile_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Staple::read(&bytes, &chain()).is_err());
        }

        #[test]
        fn a_changed_response_does_not_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            end in any::<prop::sample::Index>(),
            is_cut in any::<bool>(),
        ) {
            let mut bytes = file("good.der");
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if is_cut {
                bytes.truncate(end.index(bytes.len()));
            }
            let _ = Staple::read(&bytes, &chain());
        }
    }
}
