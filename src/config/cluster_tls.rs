//! `[clusters.NAME.tls]`: whom the backends have to be, who we are to them, and the files that say so.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer},
};
use toml::de::DeValue;

use super::{
    Certificate, TlsVersion,
    addresses::host,
    diagnostics::{Problem, Severity, Span, quote},
    file::CertificateFiles,
    pem,
    reader::{At, Switch, Table, WordOr},
    values::{Outcome, Refusal, choice, file, string},
};

/// TLS towards a cluster's backends. One cluster has one: its pools never mix settings.
#[derive(Debug, Clone)]
pub struct ClusterTls {
    pub ca: TrustedCa,
    /// The name asked for and verified; default: the backend's host.
    pub server_name: Option<String>,
    /// The certificate must have one of them, instead of the server name; empty: the server name.
    pub names: Vec<PinnedName>,
    /// What we show; `None`: nothing.
    pub certificate: Option<ClientCertificate>,
    pub crl: Option<RevocationLists>,
    pub minimum_version: TlsVersion,
    /// `verify = "off-insecure"` makes it false.
    pub verify: bool,
}

/// Who must have signed the backends' certificates.
#[derive(Debug, Clone)]
pub enum TrustedCa {
    System,
    /// Read once for all clusters that name it.
    File(PathBuf, Arc<RootCertStore>),
}

/// A subject alternative name that a certificate must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinnedName {
    /// A DNS name or an address, lower case.
    Host(String),
    /// A URI, byte for byte: a SPIFFE id.
    Uri(String),
}

/// What we show to backends that ask who we are.
#[derive(Debug, Clone)]
pub enum ClientCertificate {
    Files(Arc<Certificate>),
    /// Short-lived ones that the private CA's authority for balancers signs while we run.
    Internal(Arc<ClientAuthority>),
}

/// The authority below the private CA that can sign certificates of balancers and nothing else.
#[derive(Debug)]
pub struct ClientAuthority {
    pub chain_file: PathBuf,
    pub key_file: PathBuf,
    pub certificate: CertificateDer<'static>,
    pub key: PrivateKeyDer<'static>,
}

/// Certificates that are not to be trusted any more.
#[derive(Debug, Clone)]
pub struct RevocationLists {
    pub path: PathBuf,
    /// Never empty.
    pub lists: Arc<[CertificateRevocationListDer<'static>]>,
}

/// The files of the private CA that a running balancer reads, in their folder.
pub mod private_ca {
    /// The part of the private CA's folder that is for balancers.
    pub const FOLDER: &str = "balancer";
    pub const CERTIFICATE: &str = "ca.crt";
    pub const REVOKED: &str = "ca.crl";
    pub const CLIENT_CERTIFICATE: &str = "client-ca.crt";
    pub const CLIENT_KEY: &str = "client-ca.key";
}

impl ClusterTls {
    /// The files it was read from.
    pub fn files(&self) -> Vec<&Path> {
        let mut files = Vec::new();
        if let TrustedCa::File(path, _) = &self.ca {
            files.push(path.as_path());
        }
        files.extend(self.crl.as_ref().map(|crl| crl.path.as_path()));
        match &self.certificate {
            Some(ClientCertificate::Files(own)) => files.extend([own.chain_file.as_path(), &own.key_file]),
            Some(ClientCertificate::Internal(own)) => {
                files.extend([own.chain_file.as_path(), &own.key_file]);
            }
            None => {}
        }
        files
    }

    /// The same settings with what `is_changed` says of each file read anew.
    ///
    /// A file that has not changed is not read: a process that gave up root may not be able to.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn reread(&self, is_changed: impl Fn(&Path) -> bool) -> Result<ClusterTls, String> {
        let mut fresh = self.clone();
        if let TrustedCa::File(path, _) = &self.ca
            && is_changed(path)
        {
            fresh.ca = told(|problems| trusted(path, &nowhere(path), problems))?;
        }
        if let Some(crl) = self.crl.as_ref().filter(|crl| is_changed(&crl.path)) {
            fresh.crl = Some(told(|problems| revoked(&crl.path, &nowhere(&crl.path), problems))?);
        }
        match &self.certificate {
            Some(ClientCertificate::Files(own))
                if is_changed(&own.chain_file) || is_changed(&own.key_file) =>
            {
                let files = CertificateFiles { chain: nowhere(&own.chain_file), key: nowhere(&own.key_file) };
                fresh.certificate = Some(told(|problems| own_files(&files, Path::new(""), problems))?);
            }
            Some(ClientCertificate::Internal(own))
                if is_changed(&own.chain_file) || is_changed(&own.key_file) =>
            {
                fresh.certificate = Some(told(|problems| {
                    client_authority(&own.chain_file, &own.key_file, &(0..0), problems)
                })?);
            }
            Some(_) | None => {}
        }
        Ok(fresh)
    }
}

/// Runs a reader of files outside of a configuration: the first error in words.
fn told<T>(read: impl FnOnce(&mut Vec<Problem>) -> Option<T>) -> Result<T, String> {
    let mut problems = Vec::new();
    read(&mut problems).ok_or_else(|| {
        let error = problems.into_iter().find(|problem| problem.severity == Severity::Error);
        error.map_or_else(String::new, |error| [vec![error.message], error.notes].concat().join(": "))
    })
}

/// A path that no configuration names.
fn nowhere(path: &Path) -> At<PathBuf> {
    At { value: path.to_owned(), span: 0..0 }
}

#[derive(Debug)]
pub(super) struct WrittenClusterTls {
    ca: Option<At<WrittenCa>>,
    server_name: Option<String>,
    names: Vec<PinnedName>,
    certificate: Option<WrittenClientCertificate>,
    crl: Option<At<PathBuf>>,
    minimum_version: TlsVersion,
    /// Where verification is turned off.
    unverified: Option<Span>,
}

#[derive(Debug)]
enum WrittenCa {
    System,
    Internal,
    File(PathBuf),
}

#[derive(Debug)]
enum WrittenClientCertificate {
    Internal(Span),
    Files(CertificateFiles),
}

pub(super) fn read(cluster: &mut Table<'_>) -> Option<WrittenClusterTls> {
    let mut tls = WrittenClusterTls {
        ca: None,
        server_name: None,
        names: Vec::new(),
        certificate: None,
        crl: None,
        minimum_version: TlsVersion::Tls12,
        unverified: None,
    };
    match cluster.switch("tls")? {
        Switch::Off => return None,
        Switch::On => {}
        Switch::Table(table) => read_table(table, &mut tls),
    }
    Some(tls)
}

fn read_table(mut table: Table<'_>, tls: &mut WrittenClusterTls) {
    let verify = choice(&[("on", true), ("off-insecure", false)]);
    let versions = [("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)];
    tls.ca = table.optional("ca", ca);
    tls.server_name = table.optional("server_name", host).map(|at| at.value);
    tls.names = table.list("names", pinned_name).into_iter().flatten().map(|at| at.value).collect();
    tls.certificate = match table.word_or_table("certificate", "internal") {
        Some(WordOr::Word(span)) => Some(WrittenClientCertificate::Internal(span)),
        Some(WordOr::Table(files)) => {
            super::file::certificate_files(files).map(WrittenClientCertificate::Files)
        }
        None => None,
    };
    tls.crl = table.optional("crl", file);
    tls.minimum_version = At::or(table.optional("minimum_version", choice(&versions)), TlsVersion::Tls12);
    tls.unverified = table.optional("verify", verify).filter(|at| !at.value).map(|at| at.span);
    table.finish();
}

fn ca(value: &DeValue<'_>) -> Outcome<WrittenCa> {
    let path = file(value).map_err(|_| Refusal::new("\"system\", \"internal\" or the path of a file"))?;
    Ok(match path.to_str() {
        Some("system") => WrittenCa::System,
        Some("internal") => WrittenCa::Internal,
        _ => WrittenCa::File(path),
    })
}

/// A host, or a URI with its scheme.
fn pinned_name(value: &DeValue<'_>) -> Outcome<PinnedName> {
    let expected = "a name such as \"web.internal\" or \"spiffe://example.org/web\"";
    let text = string(value, expected)?;
    let Some((scheme, rest)) = text.split_once("://") else {
        let name = host(value).map_err(|refusal| Refusal { expected: expected.to_owned(), ..refusal })?;
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        return Ok(PinnedName::Host(bare.unwrap_or(&name).to_owned()));
    };
    let is_scheme = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_scheme && !rest.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(PinnedName::Uri(text.to_owned()))
    } else {
        Err(Refusal::new(expected))
    }
}

/// Reads the files that clusters name, each authority once.
pub(super) struct Trust<'b> {
    base: &'b Path,
    /// The folder of the private CA.
    private: PathBuf,
    known: HashMap<PathBuf, TrustedCa>,
}

impl<'b> Trust<'b> {
    pub(super) fn new(base: &'b Path, private: &Path) -> Self {
        Trust { base, private: base.join(private), known: HashMap::new() }
    }

    /// The settings of a cluster; `None` after an error was reported.
    pub(super) fn resolve(
        &mut self,
        cluster: &str,
        written: WrittenClusterTls,
        problems: &mut Vec<Problem>,
    ) -> Option<ClusterTls> {
        let verify = written.unverified.is_none();
        if let Some(span) = &written.unverified {
            problems.push(not_verified(cluster, span.clone()));
        }
        let (ca, list) = self.authority(&written, problems)?;
        let crl = match (&written.crl, list) {
            (Some(crl), None) => Some(revoked(&self.base.join(&crl.value), crl, problems)?),
            (None, None) => None,
            (None, Some(list)) => Some(revoked(&list.value, &list, problems)?),
            (Some(crl), Some(_)) => {
                let message = "\"crl\" can't go with `ca = \"internal\"`";
                let problem = Problem::error(crl.span.clone(), message);
                problems.push(
                    problem.help("leave it out: the list of `portcullis pki revoke` is read by itself"),
                );
                return None;
            }
        };
        let certificate = match written.certificate {
            Some(certificate) => Some(self.own(&certificate, problems)?),
            None => None,
        };
        Some(ClusterTls {
            ca,
            server_name: written.server_name,
            names: written.names,
            certificate,
            crl,
            minimum_version: written.minimum_version,
            verify,
        })
    }

    /// Who is trusted; with the private CA, also where its list of revoked certificates is.
    fn authority(
        &mut self,
        written: &WrittenClusterTls,
        problems: &mut Vec<Problem>,
    ) -> Option<(TrustedCa, Option<At<PathBuf>>)> {
        let Some(ca) = &written.ca else { return Some((TrustedCa::System, None)) };
        let (path, list) = match &ca.value {
            WrittenCa::System => return Some((TrustedCa::System, None)),
            WrittenCa::File(path) => (self.base.join(path), None),
            WrittenCa::Internal => {
                let folder = self.private_folder(&ca.span, problems)?;
                let list = At { value: folder.join(private_ca::REVOKED), span: ca.span.clone() };
                (folder.join(private_ca::CERTIFICATE), Some(list))
            }
        };
        if let Some(known) = self.known.get(&path) {
            return Some((known.clone(), list));
        }
        let as_written = if let WrittenCa::File(written) = &ca.value { written } else { &path };
        let written = At { value: as_written.clone(), span: ca.span.clone() };
        let found = trusted(&path, &written, problems)?;
        self.known.insert(path, found.clone());
        Some((found, list))
    }

    fn own(
        &self,
        written: &WrittenClientCertificate,
        problems: &mut Vec<Problem>,
    ) -> Option<ClientCertificate> {
        match written {
            WrittenClientCertificate::Files(files) => own_files(files, self.base, problems),
            WrittenClientCertificate::Internal(span) => {
                let folder = self.private_folder(span, problems)?;
                let files = [private_ca::CLIENT_CERTIFICATE, private_ca::CLIENT_KEY];
                let [chain, key] = files.map(|name| folder.join(name));
                client_authority(&chain, &key, span, problems)
            }
        }
    }

    /// Where the running balancer finds the private CA, if there is one.
    fn private_folder(&self, span: &Span, problems: &mut Vec<Problem>) -> Option<PathBuf> {
        let folder = self.private.join(private_ca::FOLDER);
        if folder.is_dir() {
            return Some(folder);
        }
        let directory = self.private.display().to_string();
        let message = format!("there is no private CA in {}", quote(&directory));
        problems.push(Problem::error(span.clone(), message).help(format!(
            "make one with `portcullis pki init --directory {directory}`, or set `[pki] directory`"
        )));
        None
    }
}

fn not_verified(cluster: &str, span: Span) -> Problem {
    let message = format!("cluster {} does not verify its backends' certificates", quote(cluster));
    Problem::warning(span, message)
        .note("anyone on the way can pretend to be a backend, and read and change the traffic")
        .help("name who signed the certificates in `ca`; `portcullis pki` makes a CA of your own")
}

pub(super) fn trusted(path: &Path, written: &At<PathBuf>, problems: &mut Vec<Problem>) -> Option<TrustedCa> {
    let roots = pem::roots(path, written, problems)?;
    Some(TrustedCa::File(path.to_owned(), Arc::new(roots)))
}

fn revoked(path: &Path, written: &At<PathBuf>, problems: &mut Vec<Problem>) -> Option<RevocationLists> {
    let lists = pem::revocation_lists(path, written, problems)?;
    Some(RevocationLists { path: path.to_owned(), lists: Arc::from(lists) })
}

fn own_files(
    files: &CertificateFiles,
    base: &Path,
    problems: &mut Vec<Problem>,
) -> Option<ClientCertificate> {
    pem::client_certificate(files, base, problems).map(|own| ClientCertificate::Files(Arc::new(own)))
}

fn client_authority(
    chain: &Path,
    key: &Path,
    span: &Span,
    problems: &mut Vec<Problem>,
) -> Option<ClientCertificate> {
    let named = |path: &Path| At { value: path.to_owned(), span: span.clone() };
    let files = CertificateFiles { chain: named(chain), key: named(key) };
    let Certificate { chain_file, key_file, chain, key, .. } = pem::client_authority(&files, problems)?;
    let certificate = chain.into_iter().next()?;
    Some(ClientCertificate::Internal(Arc::new(ClientAuthority { chain_file, key_file, certificate, key })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(text: &str) -> Outcome<PinnedName> {
        pinned_name(&DeValue::String(text.into()))
    }

    #[test]
    fn a_pinned_name_is_a_host_or_a_uri() {
        for (text, host) in [("Web.Internal", "web.internal"), ("10.0.0.1", "10.0.0.1"), ("[::1]", "::1")] {
            assert_eq!(pin(text), Ok(PinnedName::Host(host.to_owned())));
        }
        let id = "spiffe://example.org/ns/web";
        assert_eq!(pin(id), Ok(PinnedName::Uri(id.to_owned())));
        for text in ["", "a b", "://x", "spiffe://", "spi ffe://x", "spiffe://a b", "https://\u{e9}"] {
            assert!(pin(text).is_err(), "{text}");
        }
    }
}
