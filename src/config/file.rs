//! The configuration as written: defaults filled in, every value sound by itself, names not yet
//! looked up and files not yet read.
//!
//! An `Option` that isn't optional in the file is `None` where its problem has been reported.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use toml::{Spanned, de::DeValue};

use super::{
    AccessSink, Backend, FirewallTables, ForwardedPolicy, HostMatch, Limits, LogFormat, Overload, Policy,
    Protocol, ProxyProtocol, Sandbox, TlsVersion,
    acme::{self, WrittenAcme},
    addresses::{backend_address, host_match, network, path_prefix, socket_address},
    admin::{self, WrittenAdmin},
    client_auth::{self, WrittenClientAuth, WrittenHost},
    cluster_tls::{self, WrittenClusterTls},
    diagnostics::{Problem, Span, quote},
    firewall::{self, WrittenFirewall, WrittenRouteFirewall},
    health::{self, WrittenHealth},
    hsts,
    identity::{self, IdentityFields},
    limits,
    reader::{At, Table},
    suggest::nearest,
    values::{Refusal, boolean, choice, duration, file, is_name, name, number, text, weight},
};

#[derive(Debug)]
pub(super) struct File {
    pub(super) workers: Option<usize>,
    pub(super) user: Option<String>,
    pub(super) group: Option<String>,
    pub(super) trusted_proxies: Vec<IpNet>,
    pub(super) forwarded: ForwardedPolicy,
    pub(super) identity_fields: IdentityFields,
    pub(super) drain_timeout: Duration,
    pub(super) overload: Overload,
    pub(super) admin: Option<WrittenAdmin>,
    pub(super) sandbox: Sandbox,
    /// The folder of the private CA.
    pub(super) pki: PathBuf,
    pub(super) log: WrittenLog,
    pub(super) firewall: WrittenFirewall,
    pub(super) firewall_tables: FirewallTables,
    pub(super) listeners: Vec<WrittenListener>,
    pub(super) routes: Vec<WrittenRoute>,
    pub(super) clusters: Vec<WrittenCluster>,
}

#[derive(Debug)]
pub(super) struct WrittenLog {
    pub(super) access: Option<At<AccessSink>>,
    pub(super) format: LogFormat,
    pub(super) level: tracing::Level,
}

#[derive(Debug)]
pub(super) struct WrittenListener {
    pub(super) span: Span,
    pub(super) name: Option<At<String>>,
    pub(super) address: Option<At<SocketAddr>>,
    pub(super) tls: Option<WrittenTls>,
    pub(super) redirect_to_https: Option<At<bool>>,
    pub(super) limits: Limits,
    pub(super) trusted_proxies: Option<Vec<IpNet>>,
    pub(super) forwarded: Option<ForwardedPolicy>,
    pub(super) identity_fields: Option<IdentityFields>,
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    pub(super) firewall: WrittenFirewall,
}

#[derive(Debug)]
pub(super) struct WrittenTls {
    pub(super) certificates: Vec<WrittenCertificate>,
    pub(super) acme: Option<WrittenAcme>,
    pub(super) minimum_version: TlsVersion,
    pub(super) strict_sni: bool,
    pub(super) client_auth: Option<WrittenClientAuth>,
    pub(super) hosts: Vec<WrittenHost>,
    pub(super) ticket_keys: Option<At<PathBuf>>,
    pub(super) hsts: Option<String>,
}

/// A certificate that is shown to clients.
#[derive(Debug)]
pub(super) struct WrittenCertificate {
    pub(super) files: CertificateFiles,
    pub(super) ocsp: Option<At<PathBuf>>,
}

#[derive(Debug)]
pub(super) struct CertificateFiles {
    pub(super) chain: At<PathBuf>,
    pub(super) key: At<PathBuf>,
}

#[derive(Debug)]
pub(super) struct WrittenRoute {
    pub(super) span: Span,
    pub(super) name: Option<At<String>>,
    pub(super) host: Option<At<HostMatch>>,
    pub(super) path: Option<At<String>>,
    pub(super) listener: Option<At<String>>,
    pub(super) cluster: Option<At<String>>,
    pub(super) firewall: Option<WrittenRouteFirewall>,
    /// Its match could not be read, so it can't be compared with others.
    pub(super) is_broken: bool,
}

#[derive(Debug)]
pub(super) struct WrittenCluster {
    pub(super) name: At<String>,
    pub(super) backends: Vec<At<Backend>>,
    pub(super) policy: Policy,
    pub(super) protocol: Protocol,
    pub(super) tls: Option<WrittenClusterTls>,
    pub(super) plaintext: Option<At<bool>>,
    pub(super) health: WrittenHealth,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) response_idle_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) idle_connections: Option<At<usize>>,
    pub(super) retries: u32,
    /// Where it is asked for.
    pub(super) proxy_protocol: Option<Span>,
}

/// Reads the whole file; problems go to the reader of `top`.
pub(super) fn read(mut top: Table<'_>) -> File {
    let sandboxes = [("auto", Sandbox::Auto), ("off", Sandbox::Off)];
    let (limits, of_the_process) = limits::read_for_file(top.table("limits"));
    let (firewall, firewall_tables) = firewall::read(top.table("firewall"));
    let file = File {
        workers: top.optional("workers", number(1..=1024)).map(|at| at.value),
        user: top.optional("user", text).map(|at| at.value),
        group: top.optional("group", text).map(|at| at.value),
        trusted_proxies: networks(&mut top).unwrap_or_default(),
        forwarded: forwarded(&mut top).unwrap_or(ForwardedPolicy::XForwarded),
        identity_fields: identity::read(&mut top).unwrap_or_default(),
        drain_timeout: of_the_process.drain_timeout,
        overload: of_the_process.overload,
        admin: admin::read(top.table("admin")),
        sandbox: At::or(top.optional("sandbox", choice(&sandboxes)), Sandbox::Auto),
        pki: pki(top.table("pki")),
        log: log(top.table("log")),
        firewall,
        firewall_tables,
        listeners: listeners(&mut top, &limits),
        routes: top.tables("routes").into_iter().map(route).collect(),
        clusters: top
            .named_tables("clusters")
            .into_iter()
            .map(|(name, table)| cluster(name, table))
            .collect(),
    };
    top.finish();
    file
}

fn pki(mut table: Table<'_>) -> PathBuf {
    let directory = At::or(table.optional("directory", file), PathBuf::from("pki"));
    table.finish();
    directory
}

fn networks(table: &mut Table<'_>) -> Option<Vec<IpNet>> {
    let networks = table.list("trusted_proxies", network)?;
    for everybody in networks.iter().filter(|at| at.value.prefix_len() == 0) {
        let message =
            "everybody is a trusted proxy: clients choose their own address, past every list, rate and ban";
        let problem = Problem::warning(everybody.span.clone(), message);
        table.report(problem.help("name the networks of the proxies in front"));
    }
    Some(networks.into_iter().map(|at| at.value).collect())
}

fn forwarded(table: &mut Table<'_>) -> Option<ForwardedPolicy> {
    let policies = [
        ("x_forwarded", ForwardedPolicy::XForwarded),
        ("rfc7239", ForwardedPolicy::Rfc7239),
        ("both", ForwardedPolicy::Both),
        ("off", ForwardedPolicy::Off),
    ];
    table.optional("forwarded", choice(&policies)).map(|at| at.value)
}

fn log(mut table: Table<'_>) -> WrittenLog {
    let levels = [
        ("error", tracing::Level::ERROR),
        ("warn", tracing::Level::WARN),
        ("info", tracing::Level::INFO),
        ("debug", tracing::Level::DEBUG),
        ("trace", tracing::Level::TRACE),
    ];
    let formats = [("json", LogFormat::Json), ("text", LogFormat::Text)];
    let log = WrittenLog {
        access: table.optional("access", access_sink),
        format: At::or(table.optional("format", choice(&formats)), LogFormat::Json),
        level: At::or(table.optional("level", choice(&levels)), tracing::Level::INFO),
    };
    table.finish();
    log
}

/// A word for a stream, or a file; so that a misspelt word doesn't become a file, the path of a
/// file must look like one.
fn access_sink(value: &DeValue<'_>) -> Result<AccessSink, Refusal> {
    let expected = "\"stdout\", \"stderr\", \"off\" or the path of a file";
    let written = file(value).map_err(|refusal| Refusal { expected: expected.to_owned(), ..refusal })?;
    let word = written.to_string_lossy();
    match word.as_ref() {
        "stdout" => return Ok(AccessSink::Stdout),
        "stderr" => return Ok(AccessSink::Stderr),
        "off" => return Ok(AccessSink::Off),
        _ => {}
    }
    if word.contains(['/', '.']) {
        return Ok(AccessSink::File(written));
    }
    let refusal = Refusal::new(expected);
    Err(match nearest(&word, ["stdout", "stderr", "off"]) {
        Some(known) => refusal.help(format!("did you mean \"{known}\"?")),
        None => refusal.help(format!("for a file of this name, write {}", quote(&format!("./{word}")))),
    })
}

fn listeners(top: &mut Table<'_>, base: &Limits) -> Vec<WrittenListener> {
    if top.place_of("listeners").is_none() {
        let problem = Problem::whole_file("there is no listener");
        top.report(problem.help("add `[[listeners]]` with an `address`, such as \"0.0.0.0:443\""));
    }
    top.tables("listeners").into_iter().map(|table| listener(table, base)).collect()
}

fn listener(mut table: Table<'_>, base: &Limits) -> WrittenListener {
    let listener = WrittenListener {
        span: table.span.clone(),
        name: table.optional("name", name),
        address: table.required("address", "\"0.0.0.0:443\"", socket_address),
        tls: listener_tls(table.table("tls")),
        redirect_to_https: table.optional("redirect_to_https", boolean),
        limits: limits::read_for_listener(table.table("limits"), base),
        trusted_proxies: networks(&mut table),
        forwarded: forwarded(&mut table),
        identity_fields: identity::read(&mut table),
        proxy_protocol: proxy_protocol(table.table("proxy_protocol")),
        firewall: firewall::read_for_listener(table.table("firewall")),
    };
    table.finish();
    listener
}

fn proxy_protocol(mut table: Table<'_>) -> Option<ProxyProtocol> {
    if !table.is_written() {
        return None;
    }
    let elements = table.required_elements("from", "[\"10.0.0.0/8\"]");
    let networks = elements.into_iter().filter_map(|element| table.convert("from", element, network));
    let rule = ProxyProtocol {
        from: networks.map(|at| at.value).collect(),
        timeout: At::or(table.optional("timeout", duration), Duration::from_secs(3)),
    };
    table.finish();
    Some(rule)
}

fn listener_tls(mut table: Table<'_>) -> Option<WrittenTls> {
    let versions = [("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)];
    if !table.is_written() {
        return None;
    }
    let acme = acme::read(table.table("acme"));
    let example = "[{ chain = \"site.crt\", key = \"site.key\" }]";
    let elements = match acme {
        Some(_) => table.elements("certificates").unwrap_or_default(),
        None => table.required_elements("certificates", example),
    };
    let tables = elements.into_iter().filter_map(|element| table.child("certificates", element));
    let tls = WrittenTls {
        certificates: tables.filter_map(certificate).collect(),
        acme,
        minimum_version: At::or(table.optional("minimum_version", choice(&versions)), TlsVersion::Tls12),
        strict_sni: At::or(table.optional("strict_sni", boolean), false),
        client_auth: client_auth::read(&mut table),
        hosts: client_auth::read_hosts(&mut table),
        ticket_keys: table.optional("ticket_keys", file),
        hsts: hsts::read(&mut table),
    };
    table.finish();
    Some(tls)
}

fn certificate(mut table: Table<'_>) -> Option<WrittenCertificate> {
    let files = chain_and_key(&mut table);
    let ocsp = table.optional("ocsp", file);
    table.finish();
    Some(WrittenCertificate { files: files?, ocsp })
}

pub(super) fn certificate_files(mut table: Table<'_>) -> Option<CertificateFiles> {
    let files = chain_and_key(&mut table);
    table.finish();
    files
}

fn chain_and_key(table: &mut Table<'_>) -> Option<CertificateFiles> {
    let chain = table.required("chain", "\"site.crt\"", file);
    let key = table.required("key", "\"site.key\"", file);
    Some(CertificateFiles { chain: chain?, key: key? })
}

fn route(mut table: Table<'_>) -> WrittenRoute {
    let (host_written, path_written, listener_written) =
        (table.place_of("host"), table.place_of("path"), table.place_of("listener"));
    let host = table.optional("host", host_match);
    let path = table.optional("path", path_prefix);
    let listener = table.optional("listener", text);
    let route = WrittenRoute {
        span: table.span.clone(),
        name: table.optional("name", name),
        is_broken: host.is_some() != host_written.is_some()
            || path.is_some() != path_written.is_some()
            || listener.is_some() != listener_written.is_some(),
        host,
        path,
        listener,
        cluster: table.required("cluster", "\"web\"", text),
        firewall: firewall::read_for_route(table.table("firewall")),
    };
    table.finish();
    route
}

fn cluster(name: At<String>, mut table: Table<'_>) -> WrittenCluster {
    let policies = [("round_robin", Policy::RoundRobin)];
    let protocols = [("http1", Protocol::Http1), ("h2", Protocol::H2)];
    if !is_name(&name.value) {
        let problem = Problem::error(name.span.clone(), "invalid name of a cluster");
        table.report(
            problem.note(format!(
                "expected a name of 1 to 100 visible characters, found {}",
                quote(&name.value)
            )),
        );
    }
    let cluster = WrittenCluster {
        backends: backends(&mut table),
        name,
        policy: At::or(table.optional("policy", choice(&policies)), Policy::RoundRobin),
        protocol: At::or(table.optional("protocol", choice(&protocols)), Protocol::Http1),
        tls: cluster_tls::read(&mut table),
        plaintext: table.optional("plaintext", boolean),
        health: health::read(&mut table),
        connect_timeout: At::or(table.optional("connect_timeout", duration), Duration::from_secs(3)),
        response_timeout: At::or(table.optional("response_timeout", duration), Duration::from_mins(1)),
        response_idle_timeout: At::or(
            table.optional("response_idle_timeout", duration),
            Duration::from_mins(5),
        ),
        idle_timeout: At::or(table.optional("idle_timeout", duration), Duration::from_secs(50)),
        idle_connections: table.optional("idle_connections", number(0..=100_000)),
        retries: At::or(table.optional("retries", number(0..=10)), 2),
        proxy_protocol: table.optional("proxy_protocol", choice(&[("v2", ())])).map(|at| at.span),
    };
    table.finish();
    cluster
}

/// Backends that could be read; at least one, or the problem has been reported.
fn backends(table: &mut Table<'_>) -> Vec<At<Backend>> {
    let elements = table.required_elements("backends", "[\"10.0.0.11:8080\"]");
    elements.into_iter().filter_map(|element| backend(table, element)).collect()
}

fn backend<'t>(cluster: &Table<'t>, element: &'t Spanned<DeValue<'t>>) -> Option<At<Backend>> {
    if !element.get_ref().is_table() {
        return cluster.convert("backends", element, backend_address);
    }
    let mut table = cluster.child("backends", element)?;
    let address = table.required("address", "\"10.0.0.11:8080\"", backend_address);
    let weight = table.optional("weight", weight);
    table.finish();
    let mut backend = address?;
    backend.value.weight = At::or(weight, 1);
    Some(backend)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use toml::de::DeTable;

    use super::*;
    use crate::config::reader::Reader;

    const REFERENCE: &str = include_str!("../../config/reference.toml");

    /// Takes the `#` from lines that hold a key.
    fn uncommented(text: &str) -> String {
        let line = |line: &str| {
            let bare =
                line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()));
            bare.unwrap_or(line).to_owned() + "\n"
        };
        text.lines().map(line).collect()
    }

    /// Every key of the text under the path that the reader has for it.
    fn shown(path: &str, value: &DeValue<'_>, keys: &mut BTreeSet<String>) {
        match value {
            DeValue::Table(table) => {
                for (key, value) in table {
                    let key = if path == "clusters." { "*" } else { key.get_ref() };
                    let path = format!("{path}{key}");
                    if key != "*" {
                        keys.insert(path.clone());
                    }
                    shown(&format!("{path}."), value.get_ref(), keys);
                }
            }
            DeValue::Array(values) => {
                let path = path.trim_end_matches('.');
                values.iter().for_each(|value| shown(&format!("{path}[]."), value.get_ref(), keys));
            }
            _ => {}
        }
    }

    /// The limits and the firewall of a listener are those of the file, shown once.
    fn shown_once(keys: BTreeSet<String>) -> BTreeSet<String> {
        let once = |key: String| match key.strip_prefix("listeners[].") {
            Some(rest) if rest.starts_with("limits.") || rest.starts_with("firewall.") => rest.to_owned(),
            // What a host asks for is what a listener does.
            Some(rest) => {
                format!("listeners[].{}", rest.replace("tls.hosts[].client_auth", "tls.client_auth"))
            }
            None => key,
        };
        keys.into_iter().map(once).collect()
    }

    #[test]
    fn reference_shows_every_key_that_is_read_and_no_other() {
        let text = uncommented(REFERENCE);
        assert!(text.lines().count() > 100 && text != REFERENCE);
        let tree = DeTable::parse(&text).unwrap();
        let reader = Reader::new(false);
        read(reader.top(tree.get_ref()));
        let asked = shown_once(reader.asked());
        let problems = reader.into_problems();
        assert!(problems.is_empty(), "{problems:#?}");
        let mut keys = BTreeSet::new();
        shown("", &DeValue::Table(tree.into_inner()), &mut keys);
        assert_eq!(shown_once(keys), asked);
    }
}
