//! What was issued, as far as the archive tells.

use std::{fs, path::Path};

use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{
    PkiError, SubjectName,
    folder::{certificate, failure},
    names::subjects,
};

/// A certificate that was issued.
#[derive(Debug, Clone)]
pub struct Record {
    /// Never empty; the first one names it.
    pub names: Vec<SubjectName>,
    /// Without leading zeros.
    pub serial: Vec<u8>,
    /// Seconds since the epoch.
    pub not_before: i64,
    pub not_after: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Valid,
    /// Its last third has begun: `renew` replaces it.
    Due,
    Expired,
    Revoked,
    /// Good, but another one has taken its place.
    Replaced,
}

impl Record {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Option<Self> {
        let names = subjects(certificate);
        if names.is_empty() {
            return None;
        }
        let validity = certificate.validity();
        Some(Record {
            names,
            serial: bare(certificate.raw_serial()),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }

    pub fn name(&self) -> &SubjectName {
        &self.names[0]
    }

    pub fn serial_text(&self) -> String {
        hexadecimal(&self.serial)
    }

    /// Whether two thirds of its time are over.
    pub(super) fn is_due(&self, now: i64) -> bool {
        self.not_after - now < (self.not_after - self.not_before) / 3
    }
}

impl State {
    pub const fn text(self) -> &'static str {
        match self {
            State::Valid => "valid",
            State::Due => "to be renewed",
            State::Expired => "expired",
            State::Revoked => "revoked",
            State::Replaced => "replaced",
        }
    }
}

/// A serial number without the zeros that its encoding may begin with.
pub(super) fn bare(serial: &[u8]) -> Vec<u8> {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial[zeros..].to_vec()
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Every certificate of the archive: by name, for each name the newest first.
pub(super) fn all(archive: &Path) -> Result<Vec<Record>, PkiError> {
    let failed = |error| failure("reading", archive, error);
    let mut records = Vec::new();
    for entry in fs::read_dir(archive).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|extension| extension != "crt") {
            continue;
        }
        let certificate = certificate(&path)?;
        let parsed = X509Certificate::from_der(&certificate);
        let record = parsed.ok().and_then(|(_, certificate)| Record::of(&certificate));
        let broken = || PkiError::Broken { path, detail: "it is no certificate of this CA".to_owned() };
        records.push(record.ok_or_else(broken)?);
    }
    records.sort_by_cached_key(|record| {
        (record.name().to_string(), -record.not_before, -record.not_after, record.serial.clone())
    });
    Ok(records)
}
