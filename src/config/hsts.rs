//! HTTP Strict Transport Security (RFC 6797): the field that tells browsers to come by https only.

use std::time::Duration;

use super::{
    diagnostics::Problem,
    reader::{At, Table, ValueOrTable},
    values::{boolean, duration},
};

/// What the lists that browsers ship with ask for (hstspreload.org).
const PRELOADED: Duration = Duration::from_hours(365 * 24);

/// Reads `hsts` and returns the field's value.
pub(super) fn read(tls: &mut Table<'_>) -> Option<String> {
    let span = tls.place_of("hsts");
    match tls.value_or_table("hsts", duration)? {
        ValueOrTable::Value(age) => Some(format!("max-age={}", age.value.as_secs())),
        ValueOrTable::Table(mut table) => {
            let age = table.required("max_age", "\"365d\"", duration);
            let subdomains = At::or(table.optional("include_subdomains", boolean), false);
            let preload = At::or(table.optional("preload", boolean), false);
            table.finish();
            let age = age?.value;
            if preload && (!subdomains || age < PRELOADED) {
                let problem = Problem::warning(span.unwrap_or(0..0), "\"preload\" without what it needs");
                let problem = problem.note("expected include_subdomains = true and max_age = \"365d\"");
                tls.report(problem.help("browsers' lists take no host without them"));
            }
            let more = [(subdomains, "; includeSubDomains"), (preload, "; preload")];
            let more = more.iter().filter(|(is_on, _)| *is_on).map(|(_, text)| *text);
            Some(format!("max-age={}{}", age.as_secs(), more.collect::<String>()))
        }
    }
}
