//! From the file as written to the configuration that the rest of the program sees.
//!
//! Looks names up, reads the files that are named and compares the parts with each other.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::Path,
};

use super::{
    AccessSink, Backend, Cluster, Config, Log, Protocol, acme, admin,
    cluster_tls::Trust,
    coverage,
    diagnostics::{Problem, quote},
    file::{File, WrittenCluster, WrittenLog},
    firewall::Lists,
    listeners, loops,
    reader::At,
    routes,
};

/// Returns `None` only after an error was reported; what is returned beside errors is of no use.
///
/// In a broken file names aren't looked up, since what they name may be on a broken line.
pub(super) fn resolve(
    mut file: File,
    base: &Path,
    is_broken: bool,
    problems: &mut Vec<Problem>,
) -> Option<Config> {
    let admin = file.admin.as_ref().and_then(|admin| admin.address.as_ref());
    listeners::check(&file.listeners, admin, problems);
    let names = listeners::names(&file.listeners);
    let mut lists = Lists::new(base);
    let routes = if is_broken { None } else { routes::resolve(&file, &names, &mut lists, problems) };
    if let Some(routes) = &routes {
        loops::check(&file, &names, routes, problems);
    }
    let acme_spans = acme::spans(&file.listeners);
    let chains: Vec<_> = file.listeners.iter().map(listeners::chain_spans).collect();
    let listeners: Vec<_> = std::mem::take(&mut file.listeners)
        .into_iter()
        .zip(names)
        .map(|(written, name)| listeners::resolve(written, name, &file, &mut lists, (base, problems)))
        .collect();
    acme::check_shared(&listeners, &acme_spans, problems);
    let listeners = listeners.into_iter().collect::<Option<Vec<_>>>();
    if let (Some(routes), Some(listeners)) = (&routes, &listeners) {
        coverage::check((routes, &file.routes), listeners, &chains, problems);
    }
    let log = log(file.log, base, problems);
    let admin = file.admin.map(|written| admin::resolve(written, base, problems));
    let mut trust = Trust::new(base, &file.pki);
    let clusters: Vec<_> =
        file.clusters.into_iter().map(|written| cluster(written, &mut trust, problems)).collect();
    Some(Config {
        workers: file.workers.unwrap_or_else(available_cores),
        user: file.user,
        group: file.group,
        trusted_proxies: file.trusted_proxies,
        forwarded: file.forwarded,
        admin: match admin {
            Some(admin) => Some(admin?),
            None => None,
        },
        log,
        listeners: listeners?,
        routes: routes?,
        clusters: clusters.into_iter().collect::<Option<_>>()?,
        drain_timeout: file.drain_timeout,
        overload: file.overload,
        firewall: file.firewall_tables,
        sandbox: file.sandbox,
        folder: base.to_owned(),
    })
}

fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn log(written: WrittenLog, base: &Path, problems: &mut Vec<Problem>) -> Log {
    let access = match written.access {
        None => AccessSink::Stdout,
        Some(access) => match access.value {
            AccessSink::File(path) => {
                let path = base.join(path);
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
                    let message = format!("the folder {} is not there", quote(&folder.display().to_string()));
                    problems
                        .push(Problem::error(access.span, message).help("create it, or name another file"));
                }
                AccessSink::File(path)
            }
            stream => stream,
        },
    };
    Log { access, format: written.format, level: written.level }
}

fn cluster(written: WrittenCluster, trust: &mut Trust<'_>, problems: &mut Vec<Problem>) -> Option<Cluster> {
    check_backends(&written, problems);
    check_proxy_protocol(&written, problems);
    check_plaintext(&written, problems);
    let tls = match written.tls {
        Some(tls) => Some(trust.resolve(&written.name.value, tls, problems)?),
        None => None,
    };
    Some(Cluster {
        name: written.name.value,
        backends: written.backends.into_iter().map(|backend| backend.value).collect(),
        policy: written.policy,
        protocol: written.protocol,
        tls,
        health: written.health,
        connect_timeout: written.connect_timeout,
        response_timeout: written.response_timeout,
        response_idle_timeout: written.response_idle_timeout,
        idle_timeout: written.idle_timeout,
        // A connection that names one client is of no use to the next.
        idle_connections: match written.proxy_protocol {
            Some(_) => Some(0),
            None => written.idle_connections.map(|at| at.value),
        },
        retries: written.retries,
        proxy_protocol: written.proxy_protocol.is_some(),
    })
}

/// Clear text that leaves this machine, where nobody says that it is meant.
fn check_plaintext(cluster: &WrittenCluster, problems: &mut Vec<Problem>) {
    let is_meant = cluster.plaintext.as_ref().filter(|at| at.value);
    if let Some(meant) = is_meant.filter(|_| cluster.tls.is_some()) {
        let problem = Problem::error(meant.span.clone(), "`plaintext = true` can't go with `tls`");
        problems.push(problem.help("leave one of them out"));
    }
    let exposed = cluster.backends.iter().find(|backend| !backend.value.is_local());
    let (Some(exposed), None, None) = (exposed, is_meant, &cluster.tls) else { return };
    let message = format!("cluster {} is sent everything in clear text", quote(&cluster.name.value));
    let place = exposed.span.clone();
    let note = format!("anyone on the way to {} can read and change it", exposed.value.address);
    problems.push(Problem::warning(place, message).note(note).help(
        "encrypt it with `tls` (`portcullis pki` makes the certificates), or write `plaintext = true` in the cluster",
    ));
}

/// What can't go together with connections that name their client.
fn check_proxy_protocol(cluster: &WrittenCluster, problems: &mut Vec<Problem>) {
    let Some(span) = &cluster.proxy_protocol else { return };
    if cluster.protocol == Protocol::H2 {
        let problem = Problem::error(span.clone(), "\"proxy_protocol\" can't go with `protocol = \"h2\"`")
            .note("an HTTP/2 connection to a backend is shared by many clients");
        problems.push(problem.help("use `protocol = \"http1\"`, or have the backends read x-forwarded-for"));
    }
    if let Some(idle) = cluster.idle_connections.as_ref().filter(|idle| idle.value > 0) {
        let problem =
            Problem::error(idle.span.clone(), "\"idle_connections\" means nothing with `proxy_protocol`")
                .note("a connection that names its client is closed after the request");
        problems.push(problem.help("leave it out"));
    }
}

fn check_backends(cluster: &WrittenCluster, problems: &mut Vec<Problem>) {
    let mut seen: HashMap<(&str, u16), &At<Backend>> = HashMap::with_capacity(cluster.backends.len());
    for backend in &cluster.backends {
        match seen.entry((&backend.value.host, backend.value.port)) {
            Entry::Vacant(entry) => _ = entry.insert(backend),
            Entry::Occupied(first) => {
                let message = format!("backend {} is twice in one cluster", quote(&backend.value.address));
                let problem = Problem::error(backend.span.clone(), message)
                    .related(first.get().span.clone(), "first written");
                problems.push(problem.help("to send it more, write { address = …, weight = 2 }"));
            }
        }
    }
}
