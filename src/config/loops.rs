//! Backends that are Portcullis itself: what is sent there comes back, again and again.

use std::net::SocketAddr;

use super::{
    Backend, Route,
    diagnostics::{Problem, quote},
    file::File,
    routes::redirects,
};

/// Reports the backends of each listener's routes that are that listener. Host and path go on unchanged, so a request
/// that came to one by a route takes the same route again.
pub(super) fn check(file: &File, names: &[String], routes: &[Route], problems: &mut Vec<Problem>) {
    for (index, listener) in file.listeners.iter().enumerate().filter(|(_, listener)| !redirects(listener)) {
        let Some(address) = &listener.address else { continue };
        let led = routes.iter().filter(|route| route.listener.is_none_or(|only| only == index));
        let mut clusters: Vec<usize> = led.map(|route| route.cluster).collect();
        clusters.sort_unstable();
        clusters.dedup();
        let backends = clusters.into_iter().flat_map(|cluster| &file.clusters[cluster].backends);
        for backend in backends.filter(|backend| is_at(&backend.value, address.value)) {
            let (backend_name, name) = (quote(&backend.value.address), quote(&names[index]));
            let message = format!("backend {backend_name} is listener {name} itself");
            let problem = Problem::error(backend.span.clone(), message)
                .related(address.span.clone(), "it listens here")
                .note("a request that is sent there comes back by the same route, again and again");
            problems.push(problem.help("name the address where the web server listens"));
        }
    }
}

/// Whether a connection to the backend arrives at a socket bound to this address.
fn is_at(backend: &Backend, address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    backend.port == address.port()
        && match backend.ip() {
            // `[::]` takes IPv4 as well.
            Some(host) if ip.is_unspecified() => host.is_loopback() && (host.is_ipv4() || ip.is_ipv6()),
            Some(host) => host == ip,
            None => backend.is_local() && (ip.is_loopback() || ip.is_unspecified()),
        }
}
