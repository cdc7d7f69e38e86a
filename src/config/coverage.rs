//! Do certificates and routes speak of the same hosts?
//!
//! A host that only one of them knows is mostly a slip: browsers are shown a certificate for another
//! name, or a certificate is renewed for ever that nobody sees.

use std::collections::HashSet;

use super::{
    HostMatch, Listener, Route,
    diagnostics::{Problem, Span, quote},
    file::WrittenRoute,
};

/// Names of certificates, for look-ups.
#[derive(Default)]
struct Names<'n> {
    exact: HashSet<&'n str>,
    /// What follows `*.`.
    wildcard: HashSet<&'n str>,
    /// Everything that a name lies below.
    parents: HashSet<&'n str>,
}

impl<'n> Names<'n> {
    fn add(&mut self, name: &'n str) {
        match name.strip_prefix("*.") {
            Some(suffix) => _ = self.wildcard.insert(suffix),
            None => _ = self.exact.insert(name),
        }
        self.parents.extend(parents(name));
    }

    fn cover(&self, host: &HostMatch) -> bool {
        match host {
            HostMatch::Any => true,
            HostMatch::Exact(name) => {
                let parent = name.split_once('.').map(|(_, parent)| parent);
                self.exact.contains(name.as_str()) || parent.is_some_and(|name| self.wildcard.contains(name))
            }
            HostMatch::Wildcard(suffix) => self.parents.contains(suffix.as_str()),
        }
    }
}

/// Hosts of a listener's routes, for look-ups.
#[derive(Default)]
struct Hosts<'r> {
    any: bool,
    exact: HashSet<&'r str>,
    /// What stands behind the first label of exact hosts.
    parents: HashSet<&'r str>,
    wildcard: HashSet<&'r str>,
}

impl<'r> Hosts<'r> {
    fn of(routes: impl Iterator<Item = &'r Route>) -> Self {
        let mut hosts = Hosts::default();
        for route in routes {
            match &route.host {
                HostMatch::Any => hosts.any = true,
                HostMatch::Exact(name) => {
                    hosts.exact.insert(name);
                    hosts.parents.extend(name.split_once('.').map(|(_, parent)| parent));
                }
                HostMatch::Wildcard(suffix) => _ = hosts.wildcard.insert(suffix),
            }
        }
        hosts
    }

    fn reach(&self, name: &str) -> bool {
        let bare = name.strip_prefix("*.");
        self.any
            || bare.map_or_else(|| self.exact.contains(name), |bare| self.parents.contains(bare))
            || parents(name).any(|parent| self.wildcard.contains(parent))
    }
}

/// `b.c` and `c` for `a.b.c`.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(at, _)| &name[at + 1..])
}

/// Compares the routes, which stand beside what was written, with the certificates; `chains` says
/// where those are named, by listener.
pub(super) fn check(
    (routes, written): (&[Route], &[WrittenRoute]),
    listeners: &[Listener],
    chains: &[Vec<Span>],
    problems: &mut Vec<Problem>,
) {
    let names: Vec<Option<Names<'_>>> = listeners.iter().map(names_of).collect();
    for (route, written) in routes.iter().zip(written) {
        let names = || serving(route, &names);
        if names().next().is_some() && !names().any(|names| names.cover(&route.host)) {
            problems.extend(written.host.as_ref().map(|host| uncovered(&host.span, &route.host)));
        }
    }
    for (index, (listener, chains)) in listeners.iter().zip(chains).enumerate() {
        let hosts = Hosts::of(routes.iter().filter(|route| route.listener.is_none_or(|only| only == index)));
        let certificates = listener.tls.iter().flat_map(|tls| &tls.certificates);
        for (certificate, span) in certificates.zip(chains) {
            if !certificate.names.is_empty() && !certificate.names.iter().any(|name| hosts.reach(name)) {
                let file = quote(&certificate.chain_file.display().to_string());
                let message = format!("the certificate in {file} is for no host that has a route");
                let problem = Problem::warning(span.clone(), message);
                let problem = problem.note(format!("it is for {}", certificate.names.join(", ")));
                problems
                    .push(problem.help("add a route for one of these hosts, or leave the certificate out"));
            }
        }
    }
}

fn names_of(listener: &Listener) -> Option<Names<'_>> {
    let tls = listener.tls.as_ref()?;
    let mut names = Names::default();
    let asked_for = tls.acme.iter().flat_map(|acme| &acme.domains);
    for name in tls.certificates.iter().flat_map(|certificate| &certificate.names).chain(asked_for) {
        names.add(name);
    }
    Some(names)
}

/// The names of those listeners with TLS that serve a route.
fn serving<'a, 'n>(
    route: &Route,
    names: &'a [Option<Names<'n>>],
) -> impl Iterator<Item = &'a Names<'n>> + use<'a, 'n> {
    let only = route.listener;
    let all = names.iter().enumerate().filter(move |(index, _)| only.is_none_or(|only| only == *index));
    all.filter_map(|(_, names)| names.as_ref())
}

fn uncovered(span: &Span, host: &HostMatch) -> Problem {
    let host = match host {
        HostMatch::Any => String::new(),
        HostMatch::Exact(name) => name.clone(),
        HostMatch::Wildcard(suffix) => format!("*.{suffix}"),
    };
    let message = format!("no certificate of a listener is for {}", quote(&host));
    let problem = Problem::warning(span.clone(), message);
    problem
        .note("clients are shown one for another name, and refuse it")
        .help("add one to `tls.certificates`")
}
