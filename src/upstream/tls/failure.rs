//! Why TLS with a backend failed: from the library's errors to our reasons.

use std::io;

use rustls::{AlertDescription, CertificateError};

use crate::error::Reason;

/// A handshake that failed; nothing of a request was sent.
#[derive(Debug)]
pub struct HandshakeError {
    /// One of the `upstream_tls_*` reasons.
    pub reason: Reason,
    pub detail: String,
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> HandshakeError {
        let tls = library_error(&error);
        let reason = match tls {
            Some(tls) => reason_of(tls),
            None => Reason::UpstreamTlsHandshake,
        };
        let detail = match tls {
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                "the backend closed in the handshake".to_owned()
            }
            _ => error.to_string(),
        };
        HandshakeError { reason, detail }
    }
}

/// What is behind the failure of a session whose handshake was over for us: a TLS 1.3 backend looks
/// at our certificate only then. `None`: it has nothing to do with that.
pub fn refusal(error: &io::Error) -> Option<HandshakeError> {
    let error = library_error(error)?;
    let reason = reason_of(error);
    let is_ours = reason == Reason::UpstreamTlsClientCertificate;
    is_ours.then(|| HandshakeError { reason, detail: error.to_string() })
}

fn library_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
}

/// WHY wildcards: the library's enums are open, and what is not named here is a failed handshake.
fn reason_of(error: &rustls::Error) -> Reason {
    match error {
        rustls::Error::InvalidCertificate(problem) => certificate_reason(problem),
        // A list that its authority has not signed says nothing.
        rustls::Error::InvalidCertRevocationList(_) => Reason::UpstreamTlsRevoked,
        rustls::Error::AlertReceived(alert) if is_about_our_certificate(*alert) => {
            Reason::UpstreamTlsClientCertificate
        }
        _ => Reason::UpstreamTlsHandshake,
    }
}

fn certificate_reason(problem: &CertificateError) -> Reason {
    use CertificateError as Problem;
    match problem {
        Problem::UnknownIssuer | Problem::BadSignature => Reason::UpstreamTlsUnknownCa,
        Problem::Expired
        | Problem::ExpiredContext { .. }
        | Problem::NotValidYet
        | Problem::NotValidYetContext { .. } => Reason::UpstreamTlsExpired,
        Problem::NotValidForName | Problem::NotValidForNameContext { .. } => Reason::UpstreamTlsNameMismatch,
        Problem::Revoked | Problem::UnknownRevocationStatus => Reason::UpstreamTlsRevoked,
        _ => Reason::UpstreamTlsHandshake,
    }
}

/// What a server says of a client's certificate, or of there being none (RFC 8446 §6.2).
fn is_about_our_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_about_our_certificate_are_told_from_others() {
        let alert = |alert| io::Error::other(rustls::Error::AlertReceived(alert));
        for about in [AlertDescription::CertificateRequired, AlertDescription::UnknownCA] {
            assert!(refusal(&alert(about)).is_some());
        }
        assert!(refusal(&alert(AlertDescription::InternalError)).is_none());
        assert!(refusal(&io::ErrorKind::ConnectionReset.into()).is_none());
    }

    #[test]
    fn a_certificate_that_can_not_be_checked_for_revocation_is_not_trusted() {
        for problem in [CertificateError::Revoked, CertificateError::UnknownRevocationStatus] {
            let error = HandshakeError::from(io::Error::other(rustls::Error::InvalidCertificate(problem)));
            assert_eq!(error.reason, Reason::UpstreamTlsRevoked);
        }
    }
}
