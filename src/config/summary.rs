//! What a configuration serves, for people: the output of `portcullis check`.

use std::{cmp::Reverse, fmt::Write, ops::RangeInclusive};

use super::{
    Acme, AcmeChallenge, AdminAddress, Check, ClientCertificate, Cluster, ClusterTls, Config, Health,
    HostMatch, Listener, Policy, Protocol, Route, TlsVersion, TrustedCa, diagnostics::printable,
    pem::date_text,
};

impl Config {
    /// Says which listeners, routes (in the order of matching) and clusters there are; some lines.
    pub fn summary(&self) -> String {
        let mut lines = vec!["listeners".to_owned()];
        lines.extend(self.listeners.iter().flat_map(listener_lines));
        lines.push("routes, the first that matches wins".to_owned());
        lines.extend(self.routes_in_order().map(|route| self.route_line(route)));
        lines.push("clusters".to_owned());
        lines.extend(self.clusters.iter().flat_map(cluster_lines));
        if let Some(admin) = &self.admin {
            let token = if admin.token.is_some() { ", with a token" } else { "" };
            lines.push(match &admin.address {
                AdminAddress::Tcp(address) => format!("admin on http://{address}{token}"),
                unix @ AdminAddress::Unix(_) => format!("admin on {unix}{token}"),
            });
        }
        lines.push(format!("{} workers", self.workers));
        lines.iter().fold(String::new(), |text, line| text + printable(line).trim_end() + "\n")
    }

    /// Exact hosts before wildcards before none, longer names and paths first.
    fn routes_in_order(&self) -> impl Iterator<Item = &Route> {
        let mut routes: Vec<&Route> = self.routes.iter().collect();
        routes.sort_by_cached_key(|route| {
            let host = match &route.host {
                HostMatch::Exact(host) => (0, Reverse(0), host.clone()),
                HostMatch::Wildcard(host) => (1, Reverse(host.len()), host.clone()),
                HostMatch::Any => (2, Reverse(0), String::new()),
            };
            (host, Reverse(route.path.len()), route.path.clone())
        });
        routes.into_iter()
    }

    fn route_line(&self, route: &Route) -> String {
        let path = &route.path;
        let matched = match &route.host {
            HostMatch::Exact(host) => format!("{host}{path}"),
            HostMatch::Wildcard(host) => format!("*.{host}{path}"),
            HostMatch::Any => format!("*{path}"),
        };
        let listener = route.listener.map(|index| format!("  on {}", self.listeners[index].name));
        let cluster = &self.clusters[route.cluster].name;
        format!("  {matched:<40} → {cluster}{}", listener.unwrap_or_default())
    }
}

fn listener_lines(listener: &Listener) -> Vec<String> {
    let address = listener.address.to_string();
    let name = if listener.name == address { String::new() } else { format!("{}  ", listener.name) };
    let kind = match &listener.tls {
        None if listener.redirect_to_https => "http, redirects to https".to_owned(),
        None => "http, clear text".to_owned(),
        Some(tls) => {
            let version = match tls.minimum_version {
                TlsVersion::Tls12 => "TLS 1.2 and 1.3",
                TlsVersion::Tls13 => "TLS 1.3",
            };
            let strict = if tls.strict_sni { ", strict SNI" } else { "" };
            format!("https, {version}{strict}")
        }
    };
    let headers = listener.proxy_protocol.as_ref().map_or_else(String::new, |rule| {
        let from: Vec<String> = rule.from.iter().map(ToString::to_string).collect();
        format!(", PROXY protocol from {}", from.join(", "))
    });
    let certificates = listener.tls.iter().flat_map(|tls| &tls.certificates).map(|certificate| {
        let (names, file) = (certificate.names.join(", "), certificate.chain_file.display());
        let staple = certificate.ocsp.as_ref().and_then(|file| file.staple.as_ref());
        let staple = staple.map_or_else(String::new, |staple| {
            format!(", OCSP response until {}", date_text(staple.next_update))
        });
        format!("    {names}  until {}{staple}  ({file})", date_text(certificate.not_after))
    });
    let acme = listener.tls.iter().filter_map(|tls| tls.acme.as_ref()).map(acme_line);
    std::iter::once(format!("  {name}{address}  {kind}{headers}")).chain(certificates).chain(acme).collect()
}

fn acme_line(acme: &Acme) -> String {
    let challenge = match acme.challenge {
        AcmeChallenge::TlsAlpn01 => "tls-alpn-01",
        AcmeChallenge::Http01 => "http-01",
    };
    let (domains, storage) = (acme.domains.join(", "), acme.storage.display());
    format!("    {domains}  from {} by {challenge}, kept in {storage}", acme.account.directory)
}

fn cluster_lines(cluster: &Cluster) -> Vec<String> {
    let policy = match cluster.policy {
        Policy::RoundRobin => "round_robin",
    };
    let protocol = match cluster.protocol {
        Protocol::Http1 => "http1",
        Protocol::H2 => "h2",
    };
    let tls = match &cluster.tls {
        Some(tls) => tls_text(tls),
        None if cluster.is_plaintext() => "CLEAR TEXT".to_owned(),
        None => "clear text on this machine".to_owned(),
    };
    let health = cluster.health.as_ref().map_or_else(|| "off".to_owned(), health_text);
    let backends =
        cluster.backends.iter().map(|backend| format!("    {}  weight {}", backend.address, backend.weight));
    let header = if cluster.proxy_protocol { ", PROXY protocol v2" } else { "" };
    [format!("  {}  {policy}, {protocol}, {tls}{header}", cluster.name)]
        .into_iter()
        .chain(backends)
        .chain([format!("    health: {health}")])
        .collect()
}

fn tls_text(tls: &ClusterTls) -> String {
    let name = tls.server_name.as_ref().map(|name| format!(" as {name}")).unwrap_or_default();
    let mut text = match &tls.ca {
        _ if !tls.verify => "TLS, NOT verified".to_owned(),
        TrustedCa::System => format!("TLS verified{name} by the system's authorities"),
        TrustedCa::File(path, _) => format!("TLS verified{name} by {}", path.display()),
    };
    // Writing to a string can't fail.
    match &tls.certificate {
        Some(ClientCertificate::Files(own)) => {
            let _ = write!(text, ", with {}", own.chain_file.display());
        }
        Some(ClientCertificate::Internal(_)) => text.push_str(", with a certificate of the private CA"),
        None => {}
    }
    text
}

fn health_text(health: &Health) -> String {
    let mut text = match &health.check {
        Check::Tcp => "tcp".to_owned(),
        Check::Http(http) => {
            format!("GET {} expects {}", http.path, statuses_text(&http.expect_status))
        }
    };
    // Writing to a string can't fail.
    if let Some(port) = health.port {
        let _ = write!(text, " on port {port}");
    }
    let Health { interval, timeout, rise, fall, .. } = health;
    let _ = write!(text, " every {interval:?} within {timeout:?}, up after {rise}, down after {fall}");
    text
}

fn statuses_text(statuses: &[RangeInclusive<u16>]) -> String {
    let range = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    statuses.iter().map(range).collect::<Vec<_>>().join(",")
}
