//! Client certificates: which are asked for, on which hosts, and who vouches for them.

use std::{path::Path, sync::Arc};

use toml::de::DeValue;

use super::{
    ClientAuth, ClientAuthMode, ClientIdentity, HostMatch, HostTls,
    addresses::host_match,
    diagnostics::{Problem, quote},
    pem,
    reader::{At, Switch, Table},
    values::{Refusal, choice, file},
};

#[derive(Debug)]
pub(super) struct WrittenClientAuth {
    pub(super) ca: At<std::path::PathBuf>,
    pub(super) crl: Option<At<std::path::PathBuf>>,
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
    pem::client_auth(written, base, problems).map(Arc::new)
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
