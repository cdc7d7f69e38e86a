//! Why did a handshake fail? The `result` of `tls_handshakes_total`.

use std::{error, fmt, io};

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

/// Somebody spoke HTTP in clear text where TLS is served.
#[derive(Debug)]
pub(super) struct PlainHttp;

impl PlainHttp {
    /// Whether the first bytes of a connection begin an HTTP request; no record of TLS looks like that.
    pub(super) fn is_in(received: &[u8]) -> bool {
        const METHODS: [&[u8]; 10] = [
            b"GET ",
            b"HEAD ",
            b"POST ",
            b"PUT ",
            b"DELETE ",
            b"OPTIONS ",
            b"PATCH ",
            b"TRACE ",
            b"CONNECT ",
            b"PRI * ",
        ];
        METHODS.iter().any(|method| received.starts_with(method))
    }
}

impl fmt::Display for PlainHttp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an HTTP request in clear text")
    }
}

impl error::Error for PlainHttp {}

/// The result that this error of a handshake is.
pub fn failure(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::TimedOut {
        return "timeout";
    }
    let Some(inner) = error.get_ref() else { return "closed" };
    if inner.is::<PlainHttp>() {
        return "plain_http";
    }
    let Some(error) = inner.downcast_ref::<Error>() else { return "closed" };
    match error {
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge,
        ) => "not_tls",
        Error::AlertReceived(alert) => refusal(*alert),
        Error::PeerIncompatible(what) => disagreement(what),
        Error::NoApplicationProtocol => "no_shared_protocol",
        Error::General(text) if text.contains("no server certificate chain resolved") => "unknown_name",
        Error::NoCertificatesPresented => "no_client_certificate",
        Error::InvalidCertificate(what) => bad_certificate(what),
        Error::InvalidCertRevocationList(_) => "bad_client_certificate",
        _ => "protocol_error",
    }
}

/// What the client said before it went.
fn refusal(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate => "untrusted_by_client",
        AlertDescription::CloseNotify | AlertDescription::UserCanceled => "closed",
        _ => "refused_by_client",
    }
}

/// What client and listener have nothing in common of.
fn disagreement(what: &PeerIncompatible) -> &'static str {
    match what {
        PeerIncompatible::NoCipherSuitesInCommon => "no_shared_cipher",
        PeerIncompatible::NoKxGroupsInCommon => "no_shared_group",
        PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => "no_shared_signature",
        PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled => "no_shared_version",
        _ => "no_shared_parameters",
    }
}

/// What is wrong with the client's certificate.
fn bad_certificate(what: &CertificateError) -> &'static str {
    match what {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => "expired_client_certificate",
        CertificateError::Revoked => "revoked_client_certificate",
        // Signed by one with the name of an authority, but not by it.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => "unknown_client_ca",
        _ => "bad_client_certificate",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_each_failure() {
        for (error, expected) in [
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "not_tls"),
            (Error::InvalidMessage(InvalidMessage::MissingData("x")), "protocol_error"),
            (Error::AlertReceived(AlertDescription::UnknownCA), "untrusted_by_client"),
            (Error::AlertReceived(AlertDescription::CertificateUnknown), "untrusted_by_client"),
            (Error::AlertReceived(AlertDescription::HandshakeFailure), "refused_by_client"),
            (Error::AlertReceived(AlertDescription::CloseNotify), "closed"),
            (PeerIncompatible::NoCipherSuitesInCommon.into(), "no_shared_cipher"),
            (PeerIncompatible::NoKxGroupsInCommon.into(), "no_shared_group"),
            (PeerIncompatible::NoSignatureSchemesInCommon.into(), "no_shared_signature"),
            (PeerIncompatible::Tls12NotOfferedOrEnabled.into(), "no_shared_version"),
            (PeerIncompatible::NullCompressionRequired.into(), "no_shared_parameters"),
            (Error::NoApplicationProtocol, "no_shared_protocol"),
            (Error::NoCertificatesPresented, "no_client_certificate"),
            (CertificateError::Revoked.into(), "revoked_client_certificate"),
            (CertificateError::NotValidYet.into(), "expired_client_certificate"),
            (CertificateError::UnknownIssuer.into(), "unknown_client_ca"),
            (CertificateError::InvalidPurpose.into(), "bad_client_certificate"),
            (CertificateError::UnknownRevocationStatus.into(), "bad_client_certificate"),
            (Error::DecryptError, "protocol_error"),
        ] {
            let text = error.to_string();
            assert_eq!(failure(&io::Error::new(io::ErrorKind::InvalidData, error)), expected, "{text}");
        }
        assert_eq!(failure(&io::ErrorKind::UnexpectedEof.into()), "closed");
        assert_eq!(failure(&io::Error::other(PlainHttp)), "plain_http");
    }

    #[test]
    fn tells_http_from_tls() {
        for text in ["GET / HTTP/1.1\r\n", "POST /", "PRI * HTTP/2.0\r\n\r\nSM"] {
            assert!(PlainHttp::is_in(text.as_bytes()), "{text}");
        }
        for bytes in [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET", b"get / ", b"", b"SSH-2.0"] {
            assert!(!PlainHttp::is_in(bytes), "{bytes:?}");
        }
    }
}
