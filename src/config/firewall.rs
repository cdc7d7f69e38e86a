//! The firewall as written: `[firewall]`, and the `firewall` table of a listener or a route.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use toml::de::DeValue;

use super::{
    BanRule, Firewall, FirewallTables, NetworkLists, Rate, RateKey, RateLimit, RouteFirewall,
    addresses::network,
    diagnostics::{Problem, Span, quote},
    networks::{ListError, Networks, Verdict, read_list},
    reader::{At, Table},
    values::{Outcome, Refusal, boolean, choice, duration, file, number, string},
};

const MOST_REQUESTS: u32 = 10_000_000;

/// Lists of networks; `None` where a key isn't written.
#[derive(Debug, Clone, Default)]
pub(super) struct WrittenLists {
    span: Span,
    default: Option<Verdict>,
    admit: Option<Vec<IpNet>>,
    deny: Option<Vec<IpNet>>,
    admit_files: Option<Vec<At<PathBuf>>>,
    deny_files: Option<Vec<At<PathBuf>>>,
}

/// `[firewall]` or a listener's `firewall`.
#[derive(Debug, Clone, Default)]
pub(super) struct WrittenFirewall {
    lists: WrittenLists,
    dry_run: Option<bool>,
    connection_rate: Option<Rate>,
    rate_limits: Option<Vec<RateLimit>>,
}

/// A route's `firewall`.
#[derive(Debug)]
pub(super) struct WrittenRouteFirewall {
    lists: WrittenLists,
    rate_limits: Vec<RateLimit>,
}

/// Reads `[firewall]` with what only the whole process has.
pub(super) fn read(mut table: Table<'_>) -> (WrittenFirewall, FirewallTables) {
    let firewall = keys(&mut table);
    let tables = FirewallTables {
        ipv6_prefix: At::or(table.optional("ipv6_prefix", number(32..=128)), 64),
        entries: At::or(table.optional("entries", number(1024..=100_000_000)), 131_072),
        bans: bans(table.table("bans")),
    };
    table.finish();
    (firewall, tables)
}

/// Reads the `firewall` of a listener.
pub(super) fn read_for_listener(mut table: Table<'_>) -> WrittenFirewall {
    let firewall = keys(&mut table);
    for key in ["ipv6_prefix", "entries", "bans"] {
        if let Some(span) = table.place_of(key) {
            let problem = Problem::error(span, format!("\"{key}\" can't be set on one listener"));
            table.report(problem.help("all listeners share it: write it under [firewall] at the top level"));
        }
    }
    table.finish();
    firewall
}

/// Reads the `firewall` of a route.
pub(super) fn read_for_route(mut table: Table<'_>) -> Option<WrittenRouteFirewall> {
    if !table.is_written() {
        return None;
    }
    let firewall = WrittenRouteFirewall {
        lists: lists(&mut table),
        rate_limits: rate_limits(&mut table).unwrap_or_default(),
    };
    table.finish();
    Some(firewall)
}

fn keys(table: &mut Table<'_>) -> WrittenFirewall {
    WrittenFirewall {
        lists: lists(table),
        dry_run: table.optional("dry_run", boolean).map(|at| at.value),
        connection_rate: connection_rate(table.table("connection_rate")),
        rate_limits: rate_limits(table),
    }
}

fn lists(table: &mut Table<'_>) -> WrittenLists {
    let verdicts = [("admit", Verdict::Admit), ("deny", Verdict::Deny)];
    let mut networks = |key| Some(table.list(key, network)?.into_iter().map(|at| at.value).collect());
    let (admit, deny) = (networks("admit"), networks("deny"));
    WrittenLists {
        span: table.span.clone(),
        default: table.optional("default", choice(&verdicts)).map(|at| at.value),
        admit,
        deny,
        admit_files: table.list("admit_files", file),
        deny_files: table.list("deny_files", file),
    }
}

fn connection_rate(mut table: Table<'_>) -> Option<Rate> {
    if !table.is_written() {
        return None;
    }
    let rate = rate_keys(&mut table);
    table.finish();
    rate
}

fn rate_limits(table: &mut Table<'_>) -> Option<Vec<RateLimit>> {
    table.place_of("rate_limits")?;
    Some(table.tables("rate_limits").into_iter().filter_map(rate_limit).collect())
}

fn rate_limit(mut table: Table<'_>) -> Option<RateLimit> {
    let key = table.optional("key", rate_key);
    let rate = rate_keys(&mut table);
    table.finish();
    Some(RateLimit { key: At::or(key, RateKey::ClientIp), rate: rate? })
}

/// `rate` and `burst`; without a burst it is what the rate lets through in its unit of time.
fn rate_keys(table: &mut Table<'_>) -> Option<Rate> {
    let rate = table.required("rate", "\"100/s\"", rate);
    let burst = table.optional("burst", number(1..=u64::from(MOST_REQUESTS)));
    let rate = rate?;
    Some(Rate { burst: At::or(burst, rate.value.count), ..rate.value })
}

/// `100/s`, `600/m` or `5000/h`.
fn rate(value: &DeValue<'_>) -> Outcome<Rate> {
    let refusal = || Refusal::new("a rate such as \"100/s\", \"600/m\" or \"5000/h\"");
    let text = string(value, &refusal().expected)?;
    let (count, unit) = text.split_once('/').ok_or_else(refusal)?;
    let per = match unit {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_mins(1),
        "h" => Duration::from_hours(1),
        _ => return Err(refusal().help("the units are s, m and h")),
    };
    match count.parse() {
        Ok(count @ 1..=MOST_REQUESTS) => Ok(Rate { count, per, burst: count }),
        _ => Err(refusal().help(format!("write a whole number from 1 to {MOST_REQUESTS}"))),
    }
}

fn rate_key(value: &DeValue<'_>) -> Outcome<RateKey> {
    let refusal = || Refusal::new("\"client_ip\", \"route\" or \"header:NAME\"");
    let text = string(value, &refusal().expected)?;
    match (text, text.strip_prefix("header:")) {
        ("client_ip", _) => Ok(RateKey::ClientIp),
        ("route", _) => Ok(RateKey::Route),
        (_, Some(name)) if http::HeaderName::from_bytes(name.as_bytes()).is_ok() => {
            Ok(RateKey::Header(name.to_ascii_lowercase()))
        }
        _ => Err(refusal()),
    }
}

fn bans(mut table: Table<'_>) -> Option<BanRule> {
    if !table.is_written() {
        return None;
    }
    let rule = BanRule {
        after: At::or(table.optional("after", number(1..=1_000_000)), 20),
        window: At::or(table.optional("window", duration), Duration::from_mins(1)),
        duration: At::or(table.optional("duration", duration), Duration::from_mins(10)),
    };
    table.finish();
    Some(rule)
}

impl WrittenFirewall {
    /// What a listener has: its own keys, and those of `[firewall]` that it doesn't write.
    pub(super) fn over(self, base: &WrittenFirewall) -> WrittenFirewall {
        let (own, base_lists) = (self.lists, &base.lists);
        WrittenFirewall {
            lists: WrittenLists {
                span: if own.is_written() { own.span } else { base_lists.span.clone() },
                default: own.default.or(base_lists.default),
                admit: own.admit.or_else(|| base_lists.admit.clone()),
                deny: own.deny.or_else(|| base_lists.deny.clone()),
                admit_files: own.admit_files.or_else(|| base_lists.admit_files.clone()),
                deny_files: own.deny_files.or_else(|| base_lists.deny_files.clone()),
            },
            dry_run: self.dry_run.or(base.dry_run),
            connection_rate: self.connection_rate.or(base.connection_rate),
            rate_limits: self.rate_limits.or_else(|| base.rate_limits.clone()),
        }
    }

    /// `None` after an error was reported.
    pub(super) fn resolve(self, lists: &mut Lists<'_>, problems: &mut Vec<Problem>) -> Option<Firewall> {
        Some(Firewall {
            lists: lists.resolve(self.lists, problems)?,
            dry_run: self.dry_run.unwrap_or(false),
            connection_rate: self.connection_rate,
            rate_limits: self.rate_limits.unwrap_or_default(),
        })
    }
}

impl WrittenRouteFirewall {
    /// `None` after an error was reported.
    pub(super) fn resolve(
        &self,
        lists: &mut Lists<'_>,
        problems: &mut Vec<Problem>,
    ) -> Option<RouteFirewall> {
        let lists = lists.resolve(self.lists.clone(), problems)?;
        Some(RouteFirewall { lists, rate_limits: self.rate_limits.clone() })
    }
}

/// The lists that were read so far: those that are written alike are read once.
pub(super) struct Lists<'b> {
    base: &'b Path,
    read: Vec<Arc<NetworkLists>>,
    failed: Vec<PathBuf>,
}

impl<'b> Lists<'b> {
    /// Relative paths start at `base`.
    pub(super) fn new(base: &'b Path) -> Self {
        Lists { base, read: Vec::new(), failed: Vec::new() }
    }

    fn resolve(&mut self, written: WrittenLists, problems: &mut Vec<Problem>) -> Option<Arc<NetworkLists>> {
        let inline: Vec<_> =
            with(written.admit, Verdict::Admit).chain(with(written.deny, Verdict::Deny)).collect();
        let files: Vec<(At<PathBuf>, Verdict)> = with(written.admit_files, Verdict::Admit)
            .chain(with(written.deny_files, Verdict::Deny))
            .map(|(at, verdict)| (At { value: self.base.join(at.value), span: at.span }, verdict))
            .collect();
        let default = written.default.unwrap_or(Verdict::Admit);
        let paths: Vec<_> = files.iter().map(|(at, verdict)| (at.value.clone(), *verdict)).collect();
        let same = |lists: &&Arc<NetworkLists>| {
            lists.default == default && lists.inline == inline && lists.files == paths
        };
        if let Some(lists) = self.read.iter().find(same) {
            return Some(lists.clone());
        }
        let has = |wanted| {
            inline.iter().any(|(_, verdict)| *verdict == wanted)
                || files.iter().any(|(_, verdict)| *verdict == wanted)
        };
        if default == Verdict::Admit && has(Verdict::Admit) && !has(Verdict::Deny) {
            let message = "an admit list without anything denied changes nothing";
            let problem = Problem::warning(written.span, message);
            problems.push(problem.help("to admit nobody else, write `default = \"deny\"`"));
        }
        let loaded = Arc::new(self.load(&inline, &files, problems)?);
        let lists = Arc::new(NetworkLists { default, inline, files: paths, loaded });
        self.read.push(lists.clone());
        Some(lists)
    }

    /// Reads every file, so that the problems of all of them are reported, each once.
    fn load(
        &mut self,
        inline: &[(IpNet, Verdict)],
        files: &[(At<PathBuf>, Verdict)],
        problems: &mut Vec<Problem>,
    ) -> Option<Networks> {
        let mut entries = inline.to_vec();
        let mut is_whole = true;
        for (file, verdict) in files {
            match read_list(&file.value) {
                Ok(networks) => entries.extend(networks.into_iter().map(|network| (network, *verdict))),
                Err(error) => {
                    is_whole = false;
                    if !self.failed.contains(&file.value) {
                        self.failed.push(file.value.clone());
                        problems.push(unusable(file, &error));
                    }
                }
            }
        }
        is_whole.then(|| Networks::new(entries))
    }
}

fn unusable(file: &At<PathBuf>, error: &ListError) -> Problem {
    let message = format!("{} can't be used", quote(&file.value.display().to_string()));
    let problem = Problem::error(file.span.clone(), message).note(error.to_string());
    problem.help("a list has one network or address a line")
}

impl WrittenLists {
    fn is_written(&self) -> bool {
        self.default.is_some()
            || self.admit.is_some()
            || self.deny.is_some()
            || self.admit_files.is_some()
            || self.deny_files.is_some()
    }
}

fn with<T>(written: Option<Vec<T>>, verdict: Verdict) -> impl Iterator<Item = (T, Verdict)> {
    written.unwrap_or_default().into_iter().map(move |each| (each, verdict))
}

impl NetworkLists {
    /// Reads the files anew.
    ///
    /// # Errors
    /// The first file that can't be used.
    pub fn load(&self) -> Result<Networks, (PathBuf, ListError)> {
        let mut entries = self.inline.clone();
        for (path, verdict) in &self.files {
            let networks = read_list(path).map_err(|error| (path.clone(), error))?;
            entries.extend(networks.into_iter().map(|network| (network, *verdict)));
        }
        Ok(Networks::new(entries))
    }
}
