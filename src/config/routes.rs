//! Routes: the listeners and clusters they name, matches that collide, routes that nothing reaches.

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
    let matches: Vec<Option<Match<'_>>> =
        file.routes.iter().map(|written| find_match(written, listener_names, problems)).collect();
    check_names(&file.routes, problems);
    check_duplicates(&matches, problems);
    check_reach(&matches, &file.listeners, problems);
    let cluster_names: Vec<&str> = file.clusters.iter().map(|cluster| cluster.name.value.as_str()).collect();
    let clusters: Vec<Option<usize>> = file
        .routes
        .iter()
        .map(|route| look_up(route.cluster.as_ref()?, &cluster_names, "cluster", problems))
        .collect();
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
    listener_names: &[String],
    problems: &mut Vec<Problem>,
) -> Option<Match<'f>> {
    let listener = match &written.listener {
        Some(name) => {
            let names: Vec<&str> = listener_names.iter().map(String::as_str).collect();
            Some(look_up(name, &names, "listener", problems)?)
        }
        None => None,
    };
    let path = written.path.as_ref().map_or("/", |path| &path.value);
    let host = written.host.as_ref().map_or(HostMatch::Any, |host| host.value.clone());
    (!written.is_broken).then_some(Match { written, host, path, listener })
}

/// Finds the index of a name, or reports that it is not there.
fn look_up(name: &At<String>, known: &[&str], what: &str, problems: &mut Vec<Problem>) -> Option<usize> {
    let found = known.iter().position(|known| *known == name.value);
    if found.is_none() {
        let problem = Problem::error(name.span.clone(), format!("there is no {what} {}", quote(&name.value)));
        let known = known.iter().copied().filter(|name| !name.is_empty());
        problems.push(match nearest(&name.value, known.clone()) {
            Some(known) => problem.help(format!("did you mean {}?", quote(known))),
            None => match known.take(10).map(quote).collect::<Vec<_>>() {
                known if known.is_empty() => problem.note(format!("the file has no {what}")),
                known => problem.note(format!("expected {}", one_of(&known))),
            },
        });
    }
    found
}

fn check_names(routes: &[WrittenRoute], problems: &mut Vec<Problem>) {
    let names: Vec<&At<String>> = routes.iter().filter_map(|route| route.name.as_ref()).collect();
    for (index, name) in names.iter().enumerate() {
        if let Some(first) = names[..index].iter().find(|first| first.value == name.value) {
            let message = format!("two routes are called {}", quote(&name.value));
            let problem =
                Problem::error(name.span.clone(), message).related(first.span.clone(), "first written");
            problems.push(problem.help("names tell routes apart in metrics: give each its own"));
        }
    }
}

fn check_duplicates(matches: &[Option<Match<'_>>], problems: &mut Vec<Problem>) {
    for (index, found) in matches.iter().enumerate() {
        let Some(found) = found else { continue };
        let mut earlier = matches[..index].iter().flatten();
        let Some(first) = earlier.find(|first| found.collides_with(first)) else { continue };
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

fn redirects(listener: &WrittenListener) -> bool {
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
    for (index, cluster) in file.clusters.iter().enumerate() {
        // A route whose cluster has a problem may mean this one.
        if used.iter().all(|used| used.is_some_and(|used| used != index)) {
            let message = format!("no route uses cluster {}", quote(&cluster.name.value));
            let problem = Problem::warning(cluster.name.span.clone(), message);
            problems.push(problem.help("add a route with this `cluster`, or remove the cluster"));
        }
    }
}

impl Match<'_> {
    /// Whether a listener has both of two equal matches.
    fn collides_with(&self, other: &Self) -> bool {
        let shares_listener =
            self.listener.is_none() || other.listener.is_none() || self.listener == other.listener;
        shares_listener && self.host == other.host && self.path == other.path
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
