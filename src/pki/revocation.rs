//! The list of certificates that are not to be trusted any more (RFC 5280 §5).

use std::{path::Path, time::SystemTime};

use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevocationReason, RevokedCertParams,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateRevocationListDer, pem::PemObject};
use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};

use super::{
    CA_LIFETIME, PkiError, SKEW,
    authority::{seconds, since_epoch},
    folder::read,
    record::bare,
};

/// A certificate of the list.
#[derive(Debug, Clone)]
pub(super) struct Revoked {
    pub(super) serial: Vec<u8>,
    /// Seconds since the epoch.
    pub(super) at: i64,
}

/// What a list holds.
pub(super) fn load(path: &Path) -> Result<Vec<Revoked>, PkiError> {
    let broken = |detail: String| PkiError::Broken { path: path.to_owned(), detail };
    let list = CertificateRevocationListDer::from_pem_slice(read(path)?.as_bytes())
        .map_err(|error| broken(error.to_string()))?;
    let (_, list) = CertificateRevocationList::from_der(&list).map_err(|error| broken(error.to_string()))?;
    let revoked = list.iter_revoked_certificates().map(|revoked| Revoked {
        serial: bare(revoked.raw_serial()),
        at: revoked.revocation_date.timestamp(),
    });
    Ok(revoked.collect())
}

/// A list in PEM, as good for as long as a CA can be: nobody fetches a new one by themselves, and
/// servers that check it stop serving when it is too old.
pub(super) fn sign(
    revoked: &[Revoked],
    issuer: &Issuer<'_, KeyPair>,
    now: SystemTime,
) -> Result<String, PkiError> {
    let now = seconds(now);
    let entries = revoked.iter().map(|each| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&each.serial),
        revocation_time: date_time_ymd(1970, 1, 1) + since_epoch(each.at),
        reason_code: Some(RevocationReason::Unspecified),
        invalidity_date: None,
    });
    let lifetime = i64::try_from(CA_LIFETIME.as_secs()).unwrap_or(i64::MAX);
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(1970, 1, 1)
            + since_epoch(now - i64::try_from(SKEW.as_secs()).unwrap_or(0)),
        next_update: date_time_ymd(1970, 1, 1) + since_epoch(now + lifetime),
        crl_number: SerialNumber::from(u64::try_from(now).unwrap_or(0)),
        issuing_distribution_point: None,
        revoked_certs: entries.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(issuer)?.pem()?)
}
