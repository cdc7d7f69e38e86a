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
