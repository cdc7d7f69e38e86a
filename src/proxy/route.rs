//! Which route serves this host and path? Pure look-ups that cost what matches, not what is asked.
//!
//! Two kinds of tries, both walked until the first missing child: host suffixes by label from the
//! right, paths by segment from the left. A path of thousands of slashes, or a host of thousands of
//! dots, ends at its first unknown part.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::config::{HostMatch, Route};

/// The routes of one listener, for look-ups.
///
/// Most specific first: an exact host, then wildcards by the length of their suffix, then routes
/// without a host; among those of one host the longest path. A more specific host that has no
/// matching path leaves the request to the less specific ones, so that `example.com/api` beside
/// `/` takes `/api` and nothing else away (nginx and Envoy stop at the host).
#[derive(Debug, Default)]
pub struct RouteTable {
    hosts: Vec<Host>,
    exact: HashMap<String, usize, RandomState>,
    /// Nodes of the wildcard suffixes; the first is the root.
    suffixes: Vec<Node>,
    /// Nodes of all hosts' paths.
    paths: Vec<Node>,
    any: Option<usize>,
}

/// The paths under one host match.
#[derive(Debug)]
struct Host {
    /// Index of the path trie's root.
    root: usize,
    /// The next less specific host match that holds every name this one holds.
    parent: Option<usize>,
}

/// A node of either trie.
#[derive(Debug, Default)]
struct Node {
    children: HashMap<String, usize, RandomState>,
    /// What ends here: a route (paths) or a host (suffixes).
    value: Option<usize>,
}

impl RouteTable {
    /// The table of the listener with this index; results are indexes into `routes`.
    ///
    /// Of two routes with the same match the first one stands.
    pub fn new(routes: &[Route], listener: usize) -> RouteTable {
        let mut table = RouteTable { suffixes: vec![Node::default()], ..RouteTable::default() };
        for (index, route) in routes.iter().enumerate() {
            if route.listener.is_none_or(|only| only == listener) {
                let host = table.host_entry(&route.host);
                let root = table.hosts[host].root;
                let end = insert(&mut table.paths, root, segments(&route.path));
                table.paths[end].value.get_or_insert(index);
            }
        }
        table.link_parents(routes);
        table
    }

    /// The most specific route for a host (lower case, no port, no final dot; may be empty) and a
    /// canonical path without its query (`*` counts as `/`).
    ///
    /// Cost: one look-up for the host, one for each label and segment that matches; times the
    /// number of host matches that hold the host but no matching path.
    pub fn find(&self, host: &str, path: &str) -> Option<usize> {
        let mut next = self.exact.get(host).copied().or_else(|| self.less_specific(host));
        while let Some(index) = next {
            let host = &self.hosts[index];
            if let Some(route) = self.longest_path(host.root, path) {
                return Some(route);
            }
            next = host.parent;
        }
        None
    }

    fn longest_path(&self, root: usize, path: &str) -> Option<usize> {
        let mut node = &self.paths[root];
        let mut best = node.value;
        for segment in segments(path) {
            let Some(&child) = node.children.get(segment) else { break };
            node = &self.paths[child];
            best = node.value.or(best);
        }
        best
    }

    /// The most specific match for a name that is not an exact one: a wildcard, or any.
    fn less_specific(&self, host: &str) -> Option<usize> {
        let mut node = &self.suffixes[0];
        let mut best = self.any;
        let mut rest = host;
        // A wildcard wants at least one label in front of its suffix.
        while let Some((front, label)) = rest.rsplit_once('.')
            && !front.is_empty()
            && let Some(&child) = node.children.get(label)
        {
            node = &self.suffixes[child];
            best = node.value.or(best);
            rest = front;
        }
        best
    }

    fn host_entry(&mut self, wanted: &HostMatch) -> usize {
        let new = self.hosts.len();
        let found = match wanted {
            HostMatch::Any => *self.any.get_or_insert(new),
            HostMatch::Exact(name) => *self.exact.entry(name.clone()).or_insert(new),
            HostMatch::Wildcard(suffix) => {
                let end = insert(&mut self.suffixes, 0, suffix.rsplit('.'));
                *self.suffixes[end].value.get_or_insert(new)
            }
        };
        if found == new {
            self.hosts.push(Host { root: self.paths.len(), parent: None });
            self.paths.push(Node::default());
        }
        found
    }

    /// Sets every host's parent, once all hosts are known.
    fn link_parents(&mut self, routes: &[Route]) {
        for route in routes {
            let (index, parent) = match &route.host {
                HostMatch::Any => continue,
                HostMatch::Exact(name) => (self.exact.get(name).copied(), self.less_specific(name)),
                // As the suffix is not in front of itself, this finds the next shorter one.
                HostMatch::Wildcard(suffix) => {
                    (self.less_specific(&format!("*.{suffix}")), self.less_specific(suffix))
                }
            };
            if let Some(index) = index {
                self.hosts[index].parent = parent;
            }
        }
    }
}

/// The segments of a path; none for the root.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    let rest = path.strip_prefix('/').unwrap_or("");
    rest.split('/').filter(move |_| !rest.is_empty())
}

/// Adds the nodes that are missing on the way; returns the last one.
fn insert<'a>(nodes: &mut Vec<Node>, root: usize, parts: impl Iterator<Item = &'a str>) -> usize {
    let mut at = root;
    for part in parts {
        let new = nodes.len();
        let next = *nodes[at].children.entry(part.to_owned()).or_insert(new);
        if next == new {
            nodes.push(Node::default());
        }
        at = next;
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A host as written in the config.
    fn host_match(host: &str) -> HostMatch {
        match host.strip_prefix("*.") {
            Some(suffix) => HostMatch::Wildcard(suffix.to_owned()),
            None if host.is_empty() => HostMatch::Any,
            None => HostMatch::Exact(host.to_owned()),
        }
    }

    fn route(host: &str, path: &str) -> Route {
        let name = format!("{host}{path}");
        Route {
            name,
            host: host_match(host),
            path: path.to_owned(),
            listener: None,
            cluster: 0,
            firewall: None,
        }
    }

    fn routes(matches: &[(&str, &str)]) -> Vec<Route> {
        matches.iter().map(|(host, path)| route(host, path)).collect()
    }

    /// The name of the route that is found.
    fn found<'a>(routes: &'a [Route], host: &str, path: &str) -> &'a str {
        RouteTable::new(routes, 0).find(host, path).map_or("none", |index| &routes[index].name)
    }

    #[test]
    fn a_path_is_a_prefix_on_segment_borders() {
        let routes = routes(&[("", "/api"), ("", "/api/v2"), ("", "/a/b/c")]);
        let cases = [
            ("/api", "/api"),
            ("/api/", "/api"),
            ("/api/v1", "/api"),
            ("/api/v2", "/api/v2"),
            ("/api/v2/x/y", "/api/v2"),
            ("/api/v22", "/api"),
            ("/apix", "none"),
            ("/API", "none"),
            ("/a/b", "none"),
            ("/a/b/c/", "/a/b/c"),
            ("//api", "none"),
            ("/", "none"),
            ("", "none"),
            ("*", "none"),
        ];
        for (path, expected) in cases {
            assert_eq!(found(&routes, "example.com", path), expected, "{path}");
        }
    }

    #[test]
    fn the_root_path_takes_everything() {
        let routes = routes(&[("", "/")]);
        for path in ["/", "/x", "//", "*", ""] {
            assert_eq!(found(&routes, "", path), "/", "{path:?}");
        }
    }

    #[test]
    fn hosts_go_exact_then_longest_wildcard_then_any() {
        let routes = routes(&[
            ("", "/"),
            ("*.com", "/"),
            ("*.example.com", "/"),
            ("*.b.example.com", "/"),
            ("a.example.com", "/"),
        ]);
        let cases = [
            ("a.example.com", "a.example.com/"),
            ("x.example.com", "*.example.com/"),
            ("x.y.example.com", "*.example.com/"),
            ("b.example.com", "*.example.com/"),
            ("a.b.example.com", "*.b.example.com/"),
            ("example.com", "*.com/"),
            ("xexample.com", "*.com/"),
            ("com", "/"),
            ("example.org", "/"),
            ("", "/"),
            (".com", "/"),
            ("..", "/"),
        ];
        for (host, expected) in cases {
            assert_eq!(found(&routes, host, "/x"), expected, "{host}");
        }
    }

    #[test]
    fn a_host_without_a_matching_path_leaves_the_request_to_less_specific_ones() {
        let routes = routes(&[
            ("", "/static"),
            ("*.com", "/com"),
            ("*.example.com", "/wild"),
            ("a.example.com", "/api"),
        ]);
        let cases = [
            ("a.example.com", "/api/x", "a.example.com/api"),
            ("a.example.com", "/wild", "*.example.com/wild"),
            ("a.example.com", "/com", "*.com/com"),
            ("a.example.com", "/static", "/static"),
            ("a.example.com", "/other", "none"),
            ("example.com", "/wild", "none"),
            ("example.com", "/com", "*.com/com"),
            ("example.org", "/com", "none"),
        ];
        for (host, path, expected) in cases {
            assert_eq!(found(&routes, host, path), expected, "{host}{path}");
        }
    }

    #[test]
    fn a_more_specific_host_wins_over_a_longer_path() {
        let routes = routes(&[("", "/a/b/c"), ("example.com", "/a")]);
        assert_eq!(found(&routes, "example.com", "/a/b/c"), "example.com/a");
    }

    #[test]
    fn routes_of_other_listeners_are_not_in_the_table() {
        let mut routes = routes(&[("", "/"), ("", "/one"), ("", "/two")]);
        routes[1].listener = Some(1);
        routes[2].listener = Some(0);
        let table = RouteTable::new(&routes, 1);
        assert_eq!(table.find("", "/one"), Some(1));
        assert_eq!(table.find("", "/two"), Some(0));
        assert_eq!(RouteTable::new(&[], 0).find("a", "/"), None);
    }

    #[test]
    fn a_hostile_path_or_host_costs_one_missing_look_up() {
        let routes = routes(&[("*.example.com", "/a"), ("", "/")]);
        let table = RouteTable::new(&routes, 0);
        let (path, host) = ("/".repeat(8 * 1024), "a.".repeat(4 * 1024));
        assert_eq!(table.find(&host, &path), Some(1));
        assert_eq!(table.find(&format!("{host}example.com"), &format!("/a{path}")), Some(0));
    }

    /// The rule of the doc comment, spelled out over all routes.
    fn by_the_rule(routes: &[Route], host: &str, path: &str) -> Option<usize> {
        let host_rank = |wanted: &HostMatch| match wanted {
            HostMatch::Any => Some(0),
            HostMatch::Exact(name) => (name == host).then_some(usize::MAX),
            HostMatch::Wildcard(suffix) => {
                let front = host.strip_suffix(suffix.as_str())?.strip_suffix('.')?;
                (!front.is_empty()).then_some(suffix.len())
            }
        };
        let path_rank = |prefix: &str| {
            let rest = path.strip_prefix(prefix)?;
            (prefix == "/" || rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
        };
        let rank = |route: &Route| Some((host_rank(&route.host)?, path_rank(&route.path)?));
        let ranked = routes.iter().enumerate().filter_map(|(index, route)| Some((rank(route)?, index)));
        ranked.max_by_key(|&(rank, index)| (rank, std::cmp::Reverse(index))).map(|(_, index)| index)
    }

    fn host() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "aa"]), 1..5)
            .prop_map(|labels| labels.join("."))
    }

    fn path() -> impl Strategy<Value = String> {
        let segments = prop::collection::vec(prop::sample::select(vec!["a", "b", "ab"]), 0..4);
        segments.prop_map(|segments| format!("/{}", segments.join("/")))
    }

    proptest! {
        #[test]
        fn finds_what_the_rule_says(
            written in prop::collection::vec((host(), 0..3, path()), 0..30), host in host(), path in path(),
        ) {
            let written = written.into_iter().map(|(host, kind, path)| match kind {
                0 => route("", &path),
                1 => route(&host, &path),
                _ => route(&format!("*.{host}"), &path),
            });
            let routes: Vec<Route> = written.collect();
            prop_assert_eq!(RouteTable::new(&routes, 0).find(&host, &path), by_the_rule(&routes, &host, &path));
        }

        #[test]
        fn no_input_panics(host in ".{0,40}", path in ".{0,40}") {
            let routes = routes(&[("*.a", "/a"), ("a", "/"), ("", "/b")]);
            RouteTable::new(&routes, 0).find(&host, &path);
        }
    }
}
