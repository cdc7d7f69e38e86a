//! TLS towards clients, resolved: certificates, and what clients have to show.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    server::danger::ClientCertVerifier,
};

use super::{Acme, HostMatch, OcspFile, Stamps, TicketFile};

#[derive(Debug, Default)]
pub struct ListenerTls {
    /// The first one is the default; empty only with `acme`.
    pub certificates: Vec<Certificate>,
    pub acme: Option<Acme>,
    pub minimum_version: TlsVersion,
    pub strict_sni: bool,
    /// `None`: clients are asked for no certificate.
    pub client_auth: Option<Arc<ClientAuth>>,
    /// What holds for some hosts instead.
    pub hosts: Vec<HostTls>,
    /// `None`: tickets are sealed with random keys.
    pub ticket_keys: Option<TicketFile>,
    /// The value of `strict-transport-security`.
    pub hsts: Option<String>,
}

/// What a host of a listener asks for instead of what the listener asks for.
#[derive(Debug)]
pub struct HostTls {
    /// Never `Any`; no two are the same.
    pub host: HostMatch,
    pub client_auth: Option<Arc<ClientAuth>>,
}

/// Which client certificates are taken, read and checked.
#[derive(Debug)]
pub struct ClientAuth {
    pub ca_file: PathBuf,
    pub crl_file: Option<PathBuf>,
    pub mode: ClientAuthMode,
    pub forward: ClientIdentity,
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// Of both files, from before they were read.
    pub stamps: Stamps,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientAuthMode {
    /// No handshake without one.
    Required,
    /// A client that has none is served all the same; one whose certificate is not good is not.
    Optional,
}

/// In which fields a backend learns whose certificate it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientIdentity {
    XClientCert,
    /// `client-cert` (RFC 9440).
    Rfc9440,
    Both,
    Off,
}

impl ClientIdentity {
    pub fn sets_x_client_cert(self) -> bool {
        matches!(self, ClientIdentity::XClientCert | ClientIdentity::Both)
    }

    pub fn sets_rfc9440(self) -> bool {
        matches!(self, ClientIdentity::Rfc9440 | ClientIdentity::Both)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    #[default]
    Tls12,
    Tls13,
}

/// A certificate chain with the key that matches it, read and checked.
#[derive(Debug)]
pub struct Certificate {
    pub chain_file: PathBuf,
    pub key_file: PathBuf,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// DNS names and addresses of the leaf's subject alternative names, lower case, no final dot.
    pub names: Vec<String>,
    /// Hexadecimal.
    pub serial: String,
    /// Seconds since the epoch, like the next.
    pub not_before: i64,
    pub not_after: i64,
    /// `None`: no response is stapled to it.
    pub ocsp: Option<OcspFile>,
    /// Of both files, from before they were read.
    pub stamps: Stamps,
}
