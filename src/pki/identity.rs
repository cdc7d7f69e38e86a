//! Who the running balancer is to its backends: a certificate that lives a day and is never written.

use std::time::{Duration, SystemTime};

use rcgen::{ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{PkiError, authority::template};
use crate::config::ClientAuthority;

/// Renewed at half of it.
const LIFETIME: Duration = Duration::from_hours(24);

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub renew_at: SystemTime,
}

/// Makes a new one.
///
/// # Errors
/// The authority's files are not what `init` has made.
pub fn identity(authority: &ClientAuthority, now: SystemTime) -> Result<Identity, PkiError> {
    let broken = |path: &std::path::Path, error: &rcgen::Error| PkiError::Broken {
        path: path.to_owned(),
        detail: error.to_string(),
    };
    let key = KeyPair::try_from(&authority.key).map_err(|error| broken(&authority.key_file, &error))?;
    let issuer = Issuer::from_ca_cert_der(&authority.certificate, key)
        .map_err(|error| broken(&authority.chain_file, &error))?;
    let mut own = template("Portcullis balancer", now, LIFETIME)?;
    own.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let certificate = own.signed_by(&key, &issuer)?;
    Ok(Identity {
        chain: vec![certificate.der().clone(), authority.certificate.clone()],
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        renew_at: now + LIFETIME / 2,
    })
}
