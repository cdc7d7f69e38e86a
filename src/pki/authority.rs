//! The CA itself: made once, then asked to issue, renew, list and revoke.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use rustls::{crypto::aws_lc_rs, pki_types::CertificateDer};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{
    CA_LIFETIME, PkiError, Record, SKEW, State, SubjectName, Subtree,
    folder::{self, Folder, Lock, PUBLIC, SECRET, SHARED, write},
    names, record,
    revocation::{self, Revoked},
};
use crate::config::{date_text, private_ca};

/// What a new CA is to be.
#[derive(Debug)]
pub struct Init {
    /// What it may certify; the private names if empty.
    pub permit: Vec<Subtree>,
    /// The group of running balancers, which may read what is theirs.
    pub group: Option<u32>,
}

/// A CA that is there, and nobody else at work on it. Its key is read where something is signed.
#[derive(Debug)]
pub struct Authority {
    folder: Folder,
    certificate: CertificateDer<'static>,
    permitted: Vec<Subtree>,
    /// Seconds since the epoch.
    not_after: i64,
    revoked: Vec<Revoked>,
    _lock: Lock,
}

/// A certificate that was made, and where it lies with its key.
#[derive(Debug)]
pub struct Issued {
    pub record: Record,
    pub folder: PathBuf,
}

impl Authority {
    /// Makes a CA.
    ///
    /// # Errors
    /// There is one already, or its files can't be written.
    pub fn init(root: &Path, init: &Init, now: SystemTime) -> Result<(), PkiError> {
        let folder = Folder::new(root);
        folder.make()?;
        let _lock = folder.lock()?;
        // Written last of all: without it, what is there is the rest of an attempt that failed.
        if folder.ca().exists() {
            return Err(PkiError::Exists(root.to_owned()));
        }
        let permit = if init.permit.is_empty() { Subtree::private() } else { init.permit.clone() };
        let tag = record::hexadecimal(&random::<4>()?);
        let mut ca = template(&format!("Portcullis private CA {tag}"), now, CA_LIFETIME)?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.name_constraints = Some(names::constraints(&permit));
        let key = KeyPair::generate()?;
        let certificate = ca.self_signed(&key)?;
        write(&folder.ca_key(), &key.serialize_pem(), SECRET, None)?;
        let issuer = Issuer::new(ca, key);
        write_client_authority(&folder, &issuer, &tag, init.group, now)?;
        let list = revocation::sign(&[], &issuer, now)?;
        write(&folder.balancer(private_ca::REVOKED), &list, PUBLIC, None)?;
        write(&folder.balancer(private_ca::CERTIFICATE), &certificate.pem(), PUBLIC, None)?;
        write(&folder.ca(), &certificate.pem(), PUBLIC, None)
    }

    /// Opens the CA of a folder; waits for others that work on it.
    pub fn open(root: &Path) -> Result<Self, PkiError> {
        let folder = Folder::new(root);
        let lock = folder.lock()?;
        let path = folder.ca();
        if !path.exists() {
            return Err(PkiError::NoCa(root.to_owned()));
        }
        let certificate = folder::certificate(&path)?;
        let broken = |detail: String| PkiError::Broken { path: path.clone(), detail };
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|error| broken(error.to_string()))?;
        let (permitted, not_after) = (names::permitted(&parsed), parsed.validity().not_after.timestamp());
        let revoked = revocation::load(&folder.balancer(private_ca::REVOKED))?;
        Ok(Authority { folder, certificate, permitted, not_after, revoked, _lock: lock })
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        let key = folder::key(&self.folder.ca_key())?;
        let broken =
            |error: rcgen::Error| PkiError::Broken { path: self.folder.ca(), detail: error.to_string() };
        Issuer::from_ca_cert_der(&self.certificate, key).map_err(broken)
    }

    /// When the CA itself ends, in seconds since the epoch.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    pub fn permitted(&self) -> &[Subtree] {
        &self.permitted
    }

    /// Says no to names that the CA may not certify.
    pub fn check(&self, names: &[SubjectName]) -> Result<(), PkiError> {
        names.iter().try_for_each(|name| names::check(name, &self.permitted))
    }

    /// Makes a certificate for a web server: for all of `names`, never longer than the CA itself.
    ///
    /// # Errors
    /// A name that the CA may not certify; nothing is written then.
    pub fn issue(
        &self,
        names: &[SubjectName],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, PkiError> {
        self.check(names)?;
        let first = names.first().ok_or_else(|| PkiError::InvalidName(String::new()))?;
        if seconds(now) >= self.not_after {
            return Err(PkiError::Ended(date_text(self.not_after)));
        }
        // A common name that could be a host would be held against the constraints by OpenSSL. It has 64 characters
        // at most (RFC 5280 §A.1).
        let common_name: String = format!("backend {first}").chars().take(64).collect();
        let mut leaf = template(&common_name, now, lifetime)?;
        let end = date_time_ymd(1970, 1, 1) + since_epoch(self.not_after);
        leaf.not_after = leaf.not_after.min(end);
        leaf.subject_alt_names = names.iter().map(SubjectName::alternative).collect::<Result<_, _>>()?;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &self.issuer()?)?;
        let parsed = X509Certificate::from_der(certificate.der()).ok();
        let record = parsed.and_then(|(_, parsed)| Record::of(&parsed));
        let record = record.ok_or_else(|| PkiError::InvalidName(first.to_string()))?;
        let folder = self.folder.issued(first);
        folder::make_folder(&folder, 0o700)?;
        // Archived first: what is handed out can always be revoked.
        let archived = format!("{}.{}.crt", first.file_name(), record.serial_text());
        write(&self.folder.archive().join(archived), &certificate.pem(), PUBLIC, None)?;
        write(&folder.join("backend.key"), &key.serialize_pem(), SECRET, None)?;
        write(&folder.join("backend.crt"), &certificate.pem(), PUBLIC, None)?;
        write(&folder.join("ca.crt"), &folder::read(&self.folder.ca())?, PUBLIC, None)?;
        Ok(Issued { record, folder })
    }

    /// Issues anew what is in the last third of its time, or all with `everything`.
    pub fn renew(&self, everything: bool, now: SystemTime) -> Result<Vec<Issued>, PkiError> {
        let (mut renewed, mut in_use) = (Vec::new(), None);
        let all = self.list(now)?;
        for (record, state) in &all {
            let is_wanted = match state {
                State::Revoked | State::Replaced => continue,
                State::Due | State::Expired => !is_withdrawn(record, &all),
                State::Valid => everything || self.is_half_issued(record),
            };
            // A name may have expired several times.
            let is_newest = in_use.replace(record.name().clone()).as_ref() != Some(record.name());
            if is_wanted && is_newest {
                let lifetime = record.not_after - record.not_before;
                let lifetime = Duration::from_secs(u64::try_from(lifetime).unwrap_or(0)).saturating_sub(SKEW);
                renewed.push(self.issue(&record.names, lifetime, now)?);
            }
        }
        Ok(renewed)
    }

    /// Everything that was issued, by name; of each name, the newest first.
    pub fn list(&self, now: SystemTime) -> Result<Vec<(Record, State)>, PkiError> {
        let (now, mut in_use) = (seconds(now), None);
        let records = record::all(&self.folder.archive())?;
        let states = records.into_iter().map(|record| {
            if self.is_revoked(&record) {
                return (record, State::Revoked);
            }
            let is_newest = in_use.replace(record.name().clone()).as_ref() != Some(record.name());
            let state = match (record.not_after < now, is_newest) {
                (true, _) => State::Expired,
                (false, false) => State::Replaced,
                (false, true) if record.is_due(now) => State::Due,
                (false, true) => State::Valid,
            };
            (record, state)
        });
        Ok(states.collect())
    }

    /// Revokes all that was issued under a name and has not expired, and the newest in any case: what has expired would
    /// be renewed otherwise. Returns what is newly revoked.
    pub fn revoke(&mut self, name: &str, now: SystemTime) -> Result<Vec<Record>, PkiError> {
        let clock = seconds(now);
        let records = record::all(&self.folder.archive())?;
        let wanted = |record: &&Record| record.name().to_string().eq_ignore_ascii_case(name);
        if !records.iter().any(|record| wanted(&record)) {
            let mut known: Vec<String> = records.iter().map(|record| record.name().to_string()).collect();
            known.dedup();
            return Err(PkiError::UnknownName { name: name.to_owned(), known });
        }
        let fresh: Vec<Record> = records
            .iter()
            .filter(wanted)
            .enumerate()
            .filter(|(index, record)| (*index == 0 || record.not_after >= clock) && !self.is_revoked(record))
            .map(|(_, record)| record.clone())
            .collect();
        let issuer = self.issuer()?;
        self.revoked.extend(fresh.iter().map(|record| Revoked { serial: record.serial.clone(), at: clock }));
        let list = revocation::sign(&self.revoked, &issuer, now)?;
        write(&self.folder.balancer(private_ca::REVOKED), &list, PUBLIC, None)?;
        Ok(fresh)
    }

    /// Whether what is to be copied is another one: an earlier attempt broke off.
    fn is_half_issued(&self, record: &Record) -> bool {
        let lies_there = folder::certificate(&self.folder.issued(record.name()).join("backend.crt"));
        let Ok(lies_there) = lies_there else { return false };
        let parsed = X509Certificate::from_der(&lies_there);
        parsed.is_ok_and(|(_, parsed)| record::bare(parsed.raw_serial()) != record.serial)
    }

    fn is_revoked(&self, record: &Record) -> bool {
        self.revoked.iter().any(|revoked| revoked.serial == record.serial)
    }
}

/// Whether the name was revoked after that: then what is left of it has merely expired before.
fn is_withdrawn(record: &Record, all: &[(Record, State)]) -> bool {
    let newer = |other: &Record| other.name() == record.name() && other.not_before > record.not_before;
    all.iter().any(|(other, state)| *state == State::Revoked && newer(other))
}

/// The authority that running balancers have: below the CA, for clients' certificates alone, and
/// for no name at all.
fn write_client_authority(
    folder: &Folder,
    issuer: &Issuer<'_, KeyPair>,
    tag: &str,
    group: Option<u32>,
    now: SystemTime,
) -> Result<(), PkiError> {
    let mut below = template(&format!("Portcullis balancer CA {tag}"), now, CA_LIFETIME)?;
    below.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    below.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    below.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    below.name_constraints = Some(names::constraints(&[]));
    let key = KeyPair::generate()?;
    let certificate = below.signed_by(&key, issuer)?;
    let mode = if group.is_some() { SHARED } else { SECRET };
    write(&folder.balancer(private_ca::CLIENT_KEY), &key.serialize_pem(), mode, group)?;
    write(&folder.balancer(private_ca::CLIENT_CERTIFICATE), &certificate.pem(), PUBLIC, None)
}

/// What all certificates have: a random serial number, a common name, a time.
pub(super) fn template(
    common_name: &str,
    now: SystemTime,
    lifetime: Duration,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    let mut serial = random::<16>()?;
    // Positive, and of one length.
    serial[0] = serial[0] & 0x3f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.use_authority_key_identifier_extension = true;
    let skew = i64::try_from(SKEW.as_secs()).unwrap_or(0);
    let end = seconds(now) + i64::try_from(lifetime.as_secs()).unwrap_or(0);
    params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(seconds(now) - skew);
    params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(end);
    Ok(params)
}

fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    let filled = aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    filled.map(|()| bytes).map_err(|_| PkiError::NoRandomness)
}

/// Seconds since the epoch.
pub(super) fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// From the epoch on: `date_time_ymd(1970, 1, 1)` and this make a time of the library's.
pub(super) fn since_epoch(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
