//! Listeners: their names, addresses that collide, certificates.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::{
    AdminAddress, Certificate, Listener, ListenerTls, acme, client_auth,
    diagnostics::{Problem, Span, quote},
    file::{File, WrittenCertificate, WrittenListener, WrittenTls},
    firewall::Lists,
    ocsp, pem,
    reader::At,
    tickets,
};

/// The listeners' names in their order: as written, or the address.
pub(super) fn names(listeners: &[WrittenListener]) -> Vec<String> {
    let name = |listener: &WrittenListener| match (&listener.name, &listener.address) {
        (Some(name), _) => name.value.clone(),
        (None, Some(address)) => address.value.to_string(),
        // The address has a problem, and nobody can mean this listener by a name.
        (None, None) => String::new(),
    };
    listeners.iter().map(name).collect()
}

/// Where the certificate chains of a listener are named.
pub(super) fn chain_spans(listener: &WrittenListener) -> Vec<Span> {
    let certificates = listener.tls.iter().flat_map(|tls| &tls.certificates);
    certificates.map(|each| each.files.chain.span.clone()).collect()
}

/// Compares the listeners with each other and with the admin address.
pub(super) fn check(
    listeners: &[WrittenListener],
    admin: Option<&At<AdminAddress>>,
    problems: &mut Vec<Problem>,
) {
    let names = names(listeners);
    let admin = admin.and_then(|admin| Some(At { value: admin.value.tcp()?, span: admin.span.clone() }));
    for (index, listener) in listeners.iter().enumerate() {
        let earlier = || listeners[..index].iter().zip(&names);
        let same_name = earlier().find(|(_, name)| !name.is_empty() && **name == names[index]);
        let colliding = listener.address.as_ref().and_then(|address| {
            let mut written = earlier().filter_map(|(other, _)| other.address.as_ref());
            Some((address, written.find(|other| overlap(address.value, other.value))?))
        });
        if let Some((address, first)) = colliding {
            problems.push(overlap_problem(address, first));
        } else if let Some((first, name)) = same_name {
            let span = listener.name.as_ref().map_or(&listener.span, |name| &name.span);
            let problem = Problem::error(span.clone(), format!("two listeners are called {}", quote(name)));
            let problem = problem
                .related(first.name.as_ref().map_or(&first.span, |name| &name.span).clone(), "first written");
            problems.push(problem.help("give each listener a `name` of its own"));
        }
        if let (Some(address), Some(admin)) = (&listener.address, &admin)
            && overlap(address.value, admin.value)
        {
            problems.push(overlap_problem(admin, address).note("the admin address is a listener of its own"));
        }
        check_redirect(listener, problems);
    }
    acme::check(listeners, problems);
}

fn check_redirect(listener: &WrittenListener, problems: &mut Vec<Problem>) {
    let Some(redirect) = listener.redirect_to_https.as_ref().filter(|redirect| redirect.value) else {
        return;
    };
    if listener.tls.is_some() {
        let problem = Problem::error(redirect.span.clone(), "a listener with `tls` can't redirect to https");
        problems.push(problem.help("put `redirect_to_https = true` on a listener of its own, for port 80"));
    }
}

/// Whether a connection could belong to either of two addresses.
///
/// A wildcard takes every address of its port; `[::]` takes IPv4 connections too, as Linux does
/// by default. The system chooses port 0 itself, so it collides with nothing.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let takes = |a: IpAddr, b: IpAddr| {
        a == b || (a.is_unspecified() && (a.is_ipv6() || b.is_ipv4() || b.is_unspecified()))
    };
    a.port() == b.port() && a.port() != 0 && (takes(a.ip(), b.ip()) || takes(b.ip(), a.ip()))
}

fn overlap_problem(address: &At<SocketAddr>, first: &At<SocketAddr>) -> Problem {
    let (a, b) = (address.value, first.value);
    let problem = if a == b {
        Problem::error(address.span.clone(), format!("address \"{a}\" is used twice"))
            .help("one listener serves any number of certificates and routes")
    } else {
        let problem = Problem::error(address.span.clone(), format!("address \"{a}\" overlaps \"{b}\""));
        let is_dual = |address: SocketAddr| address.is_ipv6() && address.ip().is_unspecified();
        if is_dual(a) || is_dual(b) {
            problem.help(format!(
                "\"[::]:{}\" takes IPv4 connections too: keep it alone, or write single addresses",
                a.port()
            ))
        } else {
            problem.help(format!(
                "\"0.0.0.0:{}\" takes every IPv4 address: keep it alone, or write single addresses",
                a.port()
            ))
        }
    };
    problem.related(first.span.clone(), "first used")
}

pub(super) fn resolve(
    written: WrittenListener,
    name: String,
    file: &File,
    lists: &mut Lists<'_>,
    (base, problems): (&Path, &mut Vec<Problem>),
) -> Option<Listener> {
    let firewall = written.firewall.over(&file.firewall).resolve(lists, problems);
    let tls = match written.tls {
        Some(tls) => Some(listener_tls(tls, base, problems)?),
        None => None,
    };
    Some(Listener {
        name,
        address: written.address?.value,
        tls,
        redirect_to_https: At::or(written.redirect_to_https, false),
        limits: written.limits,
        trusted_proxies: written.trusted_proxies.unwrap_or_else(|| file.trusted_proxies.clone()),
        forwarded: written.forwarded.unwrap_or(file.forwarded),
        identity_fields: written.identity_fields.unwrap_or_else(|| file.identity_fields.clone()),
        proxy_protocol: written.proxy_protocol,
        firewall: firewall?,
    })
}

fn listener_tls(written: WrittenTls, base: &Path, problems: &mut Vec<Problem>) -> Option<ListenerTls> {
    let certificates: Vec<Option<Certificate>> =
        written.certificates.iter().map(|written| certificate(written, base, problems)).collect();
    let acme = match written.acme {
        Some(acme) => Some(acme::resolve(acme, base, problems)?),
        None => None,
    };
    let client_auth = match &written.client_auth {
        Some(written) => client_auth::resolve(written, base, problems).map(Some),
        None => Some(None),
    };
    let ticket_keys = match &written.ticket_keys {
        Some(written) => tickets::resolve(written, base, problems).map(Some),
        None => Some(None),
    };
    let hosts = client_auth::resolve_hosts(&written.hosts, base, problems);
    Some(ListenerTls {
        acme,
        certificates: certificates.into_iter().collect::<Option<_>>()?,
        client_auth: client_auth?,
        ticket_keys: ticket_keys?,
        hsts: written.hsts.clone(),
        hosts: hosts?,
        minimum_version: written.minimum_version,
        strict_sni: written.strict_sni,
    })
}

fn certificate(
    written: &WrittenCertificate,
    base: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Certificate> {
    let certificate = pem::certificate(&written.files, base, problems)?;
    let certificate = ocsp::resolve(written.ocsp.as_ref(), base, certificate, problems)?;
    problems.extend(ocsp::missing(&certificate, &written.files.chain.span));
    Some(certificate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_overlap_where_a_connection_could_belong_to_both() {
        let cases = [
            ("1.2.3.4:443", "1.2.3.4:443", true),
            ("1.2.3.4:443", "1.2.3.4:444", false),
            ("1.2.3.4:443", "1.2.3.5:443", false),
            ("0.0.0.0:443", "1.2.3.4:443", true),
            ("[::]:443", "1.2.3.4:443", true),
            ("[::]:443", "[2001:db8::1]:443", true),
            ("0.0.0.0:443", "[2001:db8::1]:443", false),
            ("0.0.0.0:443", "[::]:443", true),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ];
        for (a, b, expected) in cases {
            let (first, second) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!((overlap(first, second), overlap(second, first)), (expected, expected), "{a} {b}");
        }
    }
}
