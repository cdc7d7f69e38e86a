//! The health checks of a cluster, as written.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    Check, Health, HttpCheck,
    addresses::{host, statuses, url_path},
    diagnostics::{Problem, Span},
    reader::{At, Switch, Table},
    values::{choice, duration, number, text},
};

/// `None`: turned off.
pub(super) type WrittenHealth = Option<Health>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum CheckKind {
    Tcp,
    Http,
}

/// The parts of an HTTP check that are written.
struct HttpKeys {
    path: Option<At<String>>,
    host: Option<At<String>>,
    expect_status: Option<At<Vec<RangeInclusive<u16>>>>,
    expect_body: Option<At<String>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            check: Check::Tcp,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            port: None,
            fail_open_below: 50,
        }
    }
}

/// Reads `health` of a cluster: not written or `true` means TCP checks with the defaults.
pub(super) fn read(cluster: &mut Table<'_>) -> WrittenHealth {
    let mut table = match cluster.switch("health") {
        None | Some(Switch::On) => return Some(Health::default()),
        Some(Switch::Off) => return None,
        Some(Switch::Table(table)) => table,
    };
    let kinds = [("http", CheckKind::Http), ("tcp", CheckKind::Tcp)];
    let kind = table.optional("protocol", choice(&kinds));
    let keys = HttpKeys {
        path: table.optional("path", url_path),
        host: table.optional("host", host),
        expect_status: table.optional("expect_status", statuses),
        expect_body: table.optional("expect_body", text),
    };
    let default = Health::default();
    let health = Health {
        check: check(&table, kind.map(|kind| kind.value), keys),
        interval: At::or(table.optional("interval", duration), default.interval),
        timeout: At::or(table.optional("timeout", duration), default.timeout),
        rise: At::or(table.optional("rise", number(1..=1000)), default.rise),
        fall: At::or(table.optional("fall", number(1..=1000)), default.fall),
        port: table.optional("port", number(1..=65_535)).map(|at| at.value),
        fail_open_below: At::or(table.optional("fail_open_below", number(0..=100)), default.fail_open_below),
    };
    table.finish();
    Some(health)
}

/// HTTP if the protocol or any key of an HTTP check says so.
fn check(table: &Table<'_>, kind: Option<CheckKind>, keys: HttpKeys) -> Check {
    let written = keys.places();
    if kind == Some(CheckKind::Tcp) {
        for (span, key) in written {
            let problem = Problem::error(span, format!("\"{key}\" means nothing in a TCP check"));
            table.report(problem.help("leave it out, or write `protocol = \"http\"`"));
        }
        return Check::Tcp;
    }
    if kind.is_none() && written.is_empty() {
        return Check::Tcp;
    }
    Check::Http(HttpCheck {
        path: At::or(keys.path, "/".to_owned()),
        host: keys.host.map(|at| at.value),
        expect_status: At::or(keys.expect_status, vec![200..=399]),
        expect_body: keys.expect_body.map(|at| at.value),
    })
}

impl HttpKeys {
    fn places(&self) -> Vec<(Span, &'static str)> {
        [
            (self.path.as_ref().map(|at| at.span.clone()), "path"),
            (self.host.as_ref().map(|at| at.span.clone()), "host"),
            (self.expect_status.as_ref().map(|at| at.span.clone()), "expect_status"),
            (self.expect_body.as_ref().map(|at| at.span.clone()), "expect_body"),
        ]
        .into_iter()
        .filter_map(|(span, key)| span.map(|span| (span, key)))
        .collect()
    }
}
