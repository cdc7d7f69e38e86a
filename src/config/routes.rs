//! Routes: the listeners and clusters they name, matches that collide, routes that nothing reaches.
//!
//! Ten thousand routes are an ordinary file: each is looked up by what it says, not compared with
//! all the others.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use super::{
    HostMatch, Route,
    diagnostics::{Problem, quote},
    file::{File, WrittenListener, WrittenRoute},
    firewall::Lists,
    reader::At,
    suggest::nearest,
    values::one_of,
};

/// What a route matches.
struct Match<'f> {
    written: &'f WrittenRoute,
    host: HostMatch,
    path: &'f str,
    /// `None`: on all of them.
    listener: Option<usize>,
}

/// Returns `None` after an error was reported.
pub(super) fn resolve(
    file: &File,
    listener_names: &[String],
    lists: &mut Lists<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Vec<Route>> {
    let listeners = Names::new("listener", listener_names.iter().map(String::as_str));
    let matches: Vec<Option<Match<'_>>> =
        file.routes.iter().map(|written| find_match(written, &listeners, problems)).collect();
    check_names(&file.routes, problems);
    check_duplicates(&matches, problems);
    check_reach(&matches, &file.listeners, problems);
    let names = Names::new("cluster", file.clusters.iter().map(|cluster| cluster.name.value.as_str()));
    let clusters: Vec<Option<usize>> =
        file.routes.iter().map(|route| names.look_up(route.cluster.as_ref()?, problems)).collect();
    check_gaps(file, &clusters, problems);
    let route = |(found, cluster): (Option<Match<'_>>, Option<usize>)| {
        let (found, cluster) = (found?, cluster?);
        let firewall = match &found.written.firewall {
            Some(written) => Some(written.resolve(lists, problems)?),
            None => None,
        };
        Some(Route { firewall, ..found.into_route(cluster) })
    };
    matches.into_iter().zip(clusters).map(route).collect()
}

fn find_match<'f>(
    written: &'f WrittenRoute,
    listeners: &Names<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Match<'f>> {
    let listener = match &written.listener {
        Some(name) => Some(listeners.look_up(name, problems)?),
        None => None,
    };
    let path = written.path.as_ref().map_or("/", |path| &path.value);
    let host = written.host.as_ref().map_or(HostMatch::Any, |host| host.value.clone());
    (!written.is_broken).then_some(Match { written, host, path, listener })
}

/// The names of one kind that the file has, for look-ups.
struct Names<'f> {
    what: &'static str,
    known: Vec<&'f str>,
    index: HashMap<&'f str, usize>,
}

impl<'f> Names<'f> {
    fn new(what: &'static str, names: impl Iterator<Item = &'f str>) -> Self {
        let known: Vec<&str> = names.collect();
        let mut index = HashMap::with_capacity(known.len());
        for (at, name) in known.iter().enumerate() {
            index.entry(*name).or_insert(at);
        }
        Names { what, known, index }
    }

    /// Finds the index of a name, or reports that it is not there.
    fn look_up(&self, name: &At<String>, problems: &mut Vec<Problem>) -> Option<usize> {
        let found = self.index.get(name.value.as_str()).copied();
        if found.is_none() {
            problems.push(self.missing(name));
        }
        found
    }

    fn missing(&self, name: &At<String>) -> Problem {
        let what = self.what;
        let problem = Problem::error(name.span.clone(), format!("there is no {what} {}", quote(&name.value)));
        let known = self.known.iter().copied().filter(|name| !name.is_empty());
        match nearest(&name.value, known.clone()) {
            Some(known) => problem.help(format!("did you mean {}?", quote(known))),
            None => match known.take(10).map(quote).collect::<Vec<_>>() {
                known if known.is_empty() => problem.note(format!("the file has no {what}")),
                known => problem.note(format!("expected {}", one_of(&known))),
            },
        }
    }
}

fn check_names(routes: &[WrittenRoute], problems: &mut Vec<Problem>) {
    let mut seen: HashMap<&str, &At<String>> = HashMap::with_capacity(routes.len());
    for name in routes.iter().filter_map(|route| route.name.as_ref()) {
        match seen.entry(&name.value) {
            Entry::Vacant(entry) => _ = entry.insert(name),
            Entry::Occupied(first) => {
                let message = format!("two routes are called {}", quote(&name.value));
                let problem = Problem::error(name.span.clone(), message)
                    .related(first.get().span.clone(), "first written");
                problems.push(problem.help("names tell routes apart in metrics: give each its own"));
            }
        }
    }
}

fn check_duplicates(matches: &[Option<Match<'_>>], problems: &mut Vec<Problem>) {
    // Those of one host and path; in a good file no more than there are listeners.
    let mut seen: HashMap<_, Vec<&Match<'_>>> = HashMap::with_capacity(matches.len());
    for found in matches.iter().flatten() {
        let earlier = seen.entry((&found.host, found.path)).or_default();
        let first = earlier.iter().find(|first| found.shares_listener_with(first)).copied();
        earlier.push(found);
        let Some(first) = first else { continue };
        let message = format!("route {} is written twice", quote(&found.text()));
        let problem = Problem::error(found.written.span.clone(), message)
            .related(first.written.span.clone(), "first written");
        problems.push(if found.listener == first.listener {
            problem.help("remove one, or give them different hosts, paths or listeners")
        } else {
            problem.help("a route without `listener` is on all of them: name one in each")
        });
    }
}

fn check_reach(matches: &[Option<Match<'_>>], listeners: &[WrittenListener], problems: &mut Vec<Problem>) {
    let only_redirects = !listeners.is_empty() && listeners.iter().all(redirects);
    for found in matches.iter().flatten() {
        let is_unreachable = found.listener.map_or(only_redirects, |index| redirects(&listeners[index]));
        if is_unreachable {
            let span = found.written.listener.as_ref().map_or(&found.written.span, |name| &name.span);
            let message = format!("no request reaches route {}", quote(&found.text()));
            let problem = Problem::warning(span.clone(), message);
            problems.push(problem.help("its listener has `redirect_to_https`, which answers every request"));
        }
    }
}

/// Whether it answers every request by itself.
pub(super) fn redirects(listener: &WrittenListener) -> bool {
    listener.tls.is_none() && listener.redirect_to_https.as_ref().is_some_and(|redirect| redirect.value)
}

/// Warns of clusters without a route and of a file without any.
fn check_gaps(file: &File, used: &[Option<usize>], problems: &mut Vec<Problem>) {
    let serving = file.listeners.iter().find(|listener| !redirects(listener));
    if let Some(listener) = serving.filter(|_| file.routes.is_empty()) {
        let problem =
            Problem::warning(listener.span.clone(), "no route leads from this listener to a cluster");
        problems.push(problem.help("add `[[routes]]`; until then every answer is 404 with reason no_route"));
    }
    // A route whose cluster has a problem may mean any of them.
    let Some(used) = used.iter().copied().collect::<Option<HashSet<usize>>>() else { return };
    for (index, cluster) in file.clusters.iter().enumerate() {
        if !used.contains(&index) {
            let message = format!("no route uses cluster {}", quote(&cluster.name.value));
            let problem = Problem::warning(cluster.name.span.clone(), message);
            problems.push(problem.help("add a route with this `cluster`, or remove the cluster"));
        }
    }
}

impl Match<'_> {
    /// Whether a listener has both of two routes.
    fn shares_listener_with(&self, other: &Self) -> bool {
        self.listener.is_none() || other.listener.is_none() || self.listener == other.listener
    }

    /// The match as people write it: `example.com/api`.
    fn text(&self) -> String {
        let path = if self.path == "/" { "" } else { self.path };
        match &self.host {
            HostMatch::Any => self.path.to_owned(),
            HostMatch::Exact(host) => format!("{host}{path}"),
            HostMatch::Wildcard(host) => format!("*.{host}{path}"),
        }
    }

    fn into_route(self, cluster: usize) -> Route {
        let name = self.written.name.as_ref().map_or_else(|| self.text(), |name| name.value.clone());
        Route {
            name,
            path: self.path.to_owned(),
            host: self.host,
            listener: self.listener,
            cluster,
            firewall: None,
        }
    }
}
