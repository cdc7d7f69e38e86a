//! Client certificates: which are asked for, on which hosts, and who vouches for them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{crypto::aws_lc_rs, server::WebPkiClientVerifier};
use toml::de::DeValue;

use super::{
    ClientAuth, ClientAuthMode, ClientIdentity, HostMatch, HostTls, Stamps,
    addresses::host_match,
    diagnostics::{Problem, quote},
    pem,
    reader::{At, Switch, Table},
    values::{Refusal, choice, file},
};

#[derive(Debug)]
pub(super) struct WrittenClientAuth {
    pub(super) ca: At<PathBuf>,
    pub(super) crl: Option<At<PathBuf>>,
    pub(super) mode: ClientAuthMode,
    pub(super) forward: ClientIdentity,
}

#[derive(Debug)]
pub(super) struct WrittenHost {
    pub(super) host: At<HostMatch>,
    /// `None`: the host asks for none.
    pub(super) client_auth: Option<WrittenClientAuth>,
}

/// Reads `client_auth` of a listener or a host.
pub(super) fn read(tls: &mut Table<'_>) -> Option<WrittenClientAuth> {
    let modes = [("required", ClientAuthMode::Required), ("optional", ClientAuthMode::Optional)];
    let forwards = [
        ("x_client_cert", ClientIdentity::XClientCert),
        ("rfc9440", ClientIdentity::Rfc9440),
        ("both", ClientIdentity::Both),
        ("off", ClientIdentity::Off),
    ];
    let span = tls.place_of("client_auth");
    match tls.switch("client_auth")? {
        Switch::Off => None,
        Switch::On => {
            let span = span.unwrap_or(0..0);
            let problem =
                Problem::error(span, "\"client_auth\" says nothing of whose certificates are taken");
            tls.report(problem.help("write `client_auth = { ca = \"clients.pem\" }`"));
            None
        }
        Switch::Table(mut table) => {
            let ca = table.required("ca", "\"clients.pem\"", file);
            let crl = table.optional("crl", file);
            let mode = At::or(table.optional("mode", choice(&modes)), ClientAuthMode::Required);
            let forward = At::or(table.optional("forward", choice(&forwards)), ClientIdentity::XClientCert);
            table.finish();
            Some(WrittenClientAuth { ca: ca?, crl, mode, forward })
        }
    }
}

/// Reads `hosts`: what some hosts of a listener ask for instead.
pub(super) fn read_hosts(tls: &mut Table<'_>) -> Vec<WrittenHost> {
    tls.tables("hosts").into_iter().filter_map(read_host).collect()
}

fn read_host(mut table: Table<'_>) -> Option<WrittenHost> {
    let host = table.required("host", "\"admin.example.com\"", named_host);
    if table.place_of("client_auth").is_none() {
        // Left out, it could mean that the host asks for none, or for what the listener asks for.
        table.missing("client_auth", "{ ca = \"clients.pem\" }` or `client_auth = false");
    }
    let client_auth = read(&mut table);
    table.finish();
    Some(WrittenHost { host: host?, client_auth })
}

fn named_host(value: &DeValue<'_>) -> Result<HostMatch, Refusal> {
    match host_match(value)? {
        HostMatch::Any => Err(Refusal::new("a host such as \"admin.example.com\" or \"*.example.com\"")
            .help("what holds for all hosts stands in `tls` itself")),
        host => Ok(host),
    }
}

/// Reads the files that are named.
pub(super) fn resolve(
    written: &WrittenClientAuth,
    base: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Arc<ClientAuth>> {
    read_files(written, base, problems).map(Arc::new)
}

impl ClientAuth {
    /// Reads the same files anew.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub fn reload(&self) -> Result<Self, String> {
        let at = |path: &PathBuf| At { value: path.clone(), span: 0..0 };
        let written = WrittenClientAuth {
            ca: at(&self.ca_file),
            crl: self.crl_file.as_ref().map(at),
            mode: self.mode,
            forward: self.forward,
        };
        let mut problems = Vec::new();
        let read = read_files(&written, Path::new(""), &mut problems);
        read.ok_or_else(|| problems.first().map_or_else(String::new, Problem::in_one_line))
    }
}

/// Reads authorities and revocations, and makes of them what verifies clients.
fn read_files(written: &WrittenClientAuth, base: &Path, problems: &mut Vec<Problem>) -> Option<ClientAuth> {
    let (ca_file, crl_file) =
        (base.join(&written.ca.value), written.crl.as_ref().map(|crl| base.join(&crl.value)));
    let stamps = Stamps::of(std::iter::once(&ca_file).chain(&crl_file).cloned().collect());
    let roots = pem::roots(&ca_file, &written.ca, problems);
    let lists = match written.crl.as_ref().zip(crl_file.as_deref()) {
        Some((crl, path)) => pem::revocation_lists(path, crl, problems),
        None => Some(Vec::new()),
    };
    let (roots, lists) = (Arc::new(roots?), lists?);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider).with_crls(lists);
    let builder = match written.mode {
        ClientAuthMode::Required => builder,
        ClientAuthMode::Optional => builder.allow_unauthenticated(),
    };
    let verifier = builder.build().map_err(|error| {
        let file = quote(&ca_file.display().to_string());
        let message = format!("{file} can't be used to verify client certificates");
        problems.push(Problem::error(written.ca.span.clone(), message).note(error.to_string()));
    });
    let (mode, forward) = (written.mode, written.forward);
    Some(ClientAuth { ca_file, crl_file, mode, forward, verifier: verifier.ok()?, stamps })
}

pub(super) fn resolve_hosts(
    written: &[WrittenHost],
    base: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Vec<HostTls>> {
    let mut hosts: Vec<Option<HostTls>> = Vec::with_capacity(written.len());
    for (index, each) in written.iter().enumerate() {
        if let Some(first) = written[..index].iter().find(|other| other.host.value == each.host.value) {
            let text = match &each.host.value {
                HostMatch::Any => String::new(),
                HostMatch::Exact(name) => name.clone(),
                HostMatch::Wildcard(suffix) => format!("*.{suffix}"),
            };
            let problem =
                Problem::error(each.host.span.clone(), format!("host {} is written twice", quote(&text)));
            problems.push(problem.related(first.host.span.clone(), "first written").help("keep one of them"));
        }
        let client_auth = match &each.client_auth {
            Some(written) => resolve(written, base, problems).map(Some),
            None => Some(None),
        };
        hosts.push(client_auth.map(|client_auth| HostTls { host: each.host.value.clone(), client_auth }));
    }
    hosts.into_iter().collect()
}
