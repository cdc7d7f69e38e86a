//! Single values: from TOML to durations, sizes, addresses, hosts and choices.
//!
//! Each function takes a value as written and returns it, or says what was expected instead.

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use ipnet::IpNet;
use toml::de::DeValue;

use super::{Backend, HostMatch, diagnostics::quote, suggest::nearest};

/// The longest duration that is accepted; far from every overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why a value can't be what its key needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) expected: String,
    pub(super) help: Option<String>,
}

type Outcome<T> = Result<T, Refusal>;

impl Refusal {
    pub(super) fn new(expected: impl Into<String>) -> Self {
        Self { expected: expected.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Says what stands in the file, for the "found" of a message.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.is_empty() => "an empty string".to_owned(),
        DeValue::String(text) => quote(text),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(date) => format!("the date {date}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn string<'v>(value: &'v DeValue<'_>, expected: &str) -> Outcome<&'v str> {
    let DeValue::String(text) = value else {
        let refusal = Refusal::new(expected);
        return Err(match value {
            DeValue::Integer(_) | DeValue::Float(_) => refusal.help("write it in quotes"),
            _ => refusal,
        });
    };
    Ok(text)
}

pub(super) fn boolean(value: &DeValue<'_>) -> Outcome<bool> {
    match value {
        DeValue::Boolean(truth) => Ok(*truth),
        DeValue::String(text) if matches!(text.as_ref(), "true" | "false") => {
            Err(Refusal::new("true or false").help(format!("write it without quotes: {text}")))
        }
        _ => Err(Refusal::new("true or false")),
    }
}

/// A name that people read in metrics and logs.
pub(super) fn name(value: &DeValue<'_>) -> Outcome<String> {
    let expected = "a name of 1 to 100 characters";
    let text = string(value, expected)?;
    let fits = !text.trim().is_empty() && text.chars().count() <= 100 && !text.chars().any(char::is_control);
    if fits { Ok(text.to_owned()) } else { Err(Refusal::new(expected)) }
}

/// Any text but the empty one.
pub(super) fn text(value: &DeValue<'_>) -> Outcome<String> {
    let text = string(value, "a text")?;
    if text.is_empty() { Err(Refusal::new("a text that is not empty")) } else { Ok(text.to_owned()) }
}

pub(super) fn file(value: &DeValue<'_>) -> Outcome<PathBuf> {
    let expected = "the path of a file";
    let text = string(value, expected)?;
    if text.is_empty() || text.contains('\0') { Err(Refusal::new(expected)) } else { Ok(text.into()) }
}

/// A whole number in a range that `T` can hold.
pub(super) fn number<T: TryFrom<i128>>(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Outcome<T> {
    move |value| {
        let refusal = || Refusal::new(format!("a whole number from {} to {}", range.start(), range.end()));
        let number = match value {
            DeValue::Integer(_) => integer(value),
            DeValue::String(text) if text.parse::<u64>().is_ok() => {
                return Err(refusal().help(format!("write it without quotes: {text}")));
            }
            _ => None,
        };
        number
            .filter(|number| (i128::from(*range.start())..=i128::from(*range.end())).contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(refusal)
    }
}

fn integer(value: &DeValue<'_>) -> Option<i128> {
    let DeValue::Integer(number) = value else { return None };
    i128::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A number, or the word that stands for "no limit": `None`.
pub(super) fn number_or<T: TryFrom<i128>>(
    word: &'static str,
    range: RangeInclusive<u64>,
) -> impl Fn(&DeValue<'_>) -> Outcome<Option<T>> {
    move |value| match value {
        DeValue::String(text) if text == word => Ok(None),
        _ => number(range.clone())(value).map(Some).map_err(|refusal| Refusal {
            expected: format!("{} or \"{word}\"", refusal.expected),
            ..refusal
        }),
    }
}

pub(super) fn weight(value: &DeValue<'_>) -> Outcome<u32> {
    number(1..=1000)(value).map_err(|refusal| match integer(value) {
        Some(0) => refusal.help("to send a backend nothing, take it out of the list"),
        _ => refusal,
    })
}

/// A duration with its unit, longer than nothing.
pub(super) fn duration(value: &DeValue<'_>) -> Outcome<Duration> {
    let refusal = || Refusal::new("a duration such as \"250ms\", \"2s\", \"5m\" or \"1h\"");
    let text = match value {
        DeValue::String(text) => text.as_ref(),
        DeValue::Integer(number) => {
            return Err(refusal().help(format!("add a unit and quotes: \"{number}s\"")));
        }
        _ => return Err(refusal()),
    };
    let (count, unit) = split_unit(text);
    let Ok(count) = count.parse::<u64>() else {
        return Err(refusal().help("write a whole number and one unit"));
    };
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        "" => return Err(refusal().help(format!("add a unit: \"{count}s\""))),
        _ => return Err(refusal().help("the units are ms, s, m, h and d")),
    };
    match count.checked_mul(milliseconds).map(Duration::from_millis) {
        Some(Duration::ZERO) => Err(refusal().help("a deadline can't be turned off, only made long")),
        Some(duration) if duration <= LONGEST => Ok(duration),
        _ => Err(Refusal::new("a duration of at most a year")),
    }
}

/// A number of bytes in a range, with or without a unit.
pub(super) fn size<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Outcome<T> {
    move |value| {
        let bytes = any_size(value)?;
        let out_of_range = || {
            Refusal::new(format!("a size from {} to {}", size_text(*range.start()), size_text(*range.end())))
        };
        if range.contains(&bytes) {
            T::try_from(bytes).map_err(|_| out_of_range())
        } else {
            Err(out_of_range())
        }
    }
}

/// A size, or `"unlimited"`: `None`.
pub(super) fn size_or_unlimited(value: &DeValue<'_>) -> Outcome<Option<u64>> {
    match value {
        DeValue::String(text) if text == "unlimited" => Ok(None),
        _ => any_size(value).map(Some).map_err(|refusal| Refusal {
            expected: format!("{} or \"unlimited\"", refusal.expected),
            ..refusal
        }),
    }
}

const SIZE_UNITS: [(&str, u64); 8] = [
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
];

fn any_size(value: &DeValue<'_>) -> Outcome<u64> {
    let refusal = || Refusal::new("a size such as \"64KiB\" or \"10MB\"");
    let text = match value {
        DeValue::String(text) => text.as_ref(),
        DeValue::Integer(_) => {
            return integer(value).and_then(|bytes| bytes.try_into().ok()).ok_or_else(refusal);
        }
        _ => return Err(refusal()),
    };
    let (count, unit) = split_unit(text);
    let Ok(count) = count.parse::<u64>() else {
        return Err(refusal().help("write a whole number and one unit"));
    };
    if unit.is_empty() {
        return Ok(count);
    }
    match SIZE_UNITS.iter().find(|(known, _)| *known == unit) {
        Some((_, factor)) => {
            count.checked_mul(*factor).ok_or_else(|| Refusal::new("a size of less than 16 EiB"))
        }
        None => Err(refusal().help(match unit.chars().next().map(|first| first.to_ascii_uppercase()) {
            Some(first @ ('K' | 'M' | 'G')) => format!("write \"{count}{first}iB\""),
            _ => "the units are B, KiB, MiB, GiB, kB, MB and GB".to_owned(),
        })),
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(end);
    (count, unit.trim_start_matches(' '))
}

/// Writes a number of bytes with the largest unit that divides it.
pub(super) fn size_text(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// One of a few words, each with its meaning.
pub(super) fn choice<T: Clone>(known: &[(&'static str, T)]) -> impl Fn(&DeValue<'_>) -> Outcome<T> {
    move |value| {
        let words: Vec<String> = known.iter().map(|(word, _)| quote(word)).collect();
        let refusal = Refusal::new(match words.as_slice() {
            [only] => only.clone(),
            words => format!("one of {}", words.join(", ")),
        });
        let DeValue::String(text) = value else { return Err(refusal) };
        if let Some((_, meaning)) = known.iter().find(|(word, _)| word == text) {
            return Ok(meaning.clone());
        }
        Err(match nearest(text, known.iter().map(|(word, _)| *word)) {
            Some(word) => refusal.help(format!("did you mean \"{word}\"?")),
            None => refusal,
        })
    }
}

/// An address that can be bound: an IP address and a port.
pub(super) fn socket_address(value: &DeValue<'_>) -> Outcome<SocketAddr> {
    let expected = "an IP address and a port such as \"0.0.0.0:443\" or \"[::]:443\"";
    let refusal = Refusal::new(expected);
    let text = match value {
        DeValue::String(text) => text.as_ref(),
        DeValue::Integer(port) => return Err(refusal.help(format!("write \"0.0.0.0:{port}\""))),
        _ => return Err(refusal),
    };
    text.parse().map_err(|_| {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        if text.parse::<u16>().is_ok() {
            refusal.help(format!("write \"0.0.0.0:{text}\" for all IPv4 addresses of this machine"))
        } else if matches!(host, "" | "*") && port.parse::<u16>().is_ok() {
            refusal.help(format!("write \"0.0.0.0:{port}\" for all IPv4 addresses of this machine"))
        } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
            refusal.help(format!("write an IPv6 address in brackets and add a port: \"[{text}]:443\""))
        } else if text.parse::<std::net::IpAddr>().is_ok() {
            refusal.help(format!("add a port: \"{text}:443\""))
        } else if host == "localhost" {
            refusal.help(format!("write \"127.0.0.1:{port}\""))
        } else {
            refusal
        }
    })
}

/// A network such as `10.0.0.0/8`, or one address.
pub(super) fn network(value: &DeValue<'_>) -> Outcome<IpNet> {
    let expected = "an IP address or a network such as \"10.0.0.0/8\"";
    let text = string(value, expected)?;
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let network: IpNet = text.parse().map_err(|_| Refusal::new(expected))?;
    if network.trunc() == network {
        return Ok(network);
    }
    let refusal = Refusal::new("a network with zeros after its prefix");
    Err(refusal.help(format!("did you mean \"{}\"?", network.trunc())))
}

/// A backend's `host:port`, of weight 1.
pub(super) fn backend_address(value: &DeValue<'_>) -> Outcome<Backend> {
    let refusal = || Refusal::new("a backend such as \"10.0.0.11:8080\"");
    let text = string(value, &refusal().expected)?;
    if let Some((scheme, rest)) = text.split_once("://") {
        let rest = rest.trim_end_matches('/');
        return Err(refusal().help(match scheme {
            "https" => format!("write \"{rest}\", and `tls = true` in the cluster"),
            _ => format!("write \"{rest}\""),
        }));
    }
    let bad_port = || refusal().help("the port is a number from 1 to 65535");
    let (host, port) = if let Ok(address) = text.parse::<std::net::SocketAddrV6>() {
        (address.ip().to_string(), address.port())
    } else if let Some((host, port)) = text.rsplit_once(':') {
        (host_name(host).ok_or_else(refusal)?, port.parse().map_err(|_| bad_port())?)
    } else {
        return Err(refusal().help(format!("add a port: {}", quote(&format!("{text}:80")))));
    };
    if port == 0 {
        return Err(bad_port());
    }
    Ok(Backend { address: text.to_owned(), host, port, weight: 1 })
}

/// Returns a DNS name or IPv4 address in lower case without final dot, if `text` is one.
fn host_name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    (text.len() <= 253 && text.split('.').all(label)).then(|| text.to_ascii_lowercase())
}

/// The host of a route: a name, an address, or `*.` and a name.
pub(super) fn host_match(value: &DeValue<'_>) -> Outcome<HostMatch> {
    let refusal = || Refusal::new("a host such as \"example.com\" or \"*.example.com\"");
    let text = string(value, &refusal().expected)?;
    if text == "*" {
        return Err(refusal().help("for every host, leave `host` out"));
    }
    if let Some(rest) = text.strip_prefix("*.") {
        return host_name(rest).map(HostMatch::Wildcard).ok_or_else(refusal);
    }
    host(value).map(HostMatch::Exact).map_err(|inner| Refusal {
        help: match inner.help {
            None if text.contains('*') => {
                Some("a wildcard stands for whole labels in front: \"*.\"".to_owned())
            }
            help => help,
        },
        ..refusal()
    })
}

/// A host name or address as it stands in `Host`, without a port.
pub(super) fn host(value: &DeValue<'_>) -> Outcome<String> {
    let refusal = || Refusal::new("a host such as \"example.com\"");
    let text = string(value, &refusal().expected)?;
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Some(address) = inner.and_then(|inner| inner.parse::<std::net::Ipv6Addr>().ok()) {
        return Ok(format!("[{address}]"));
    }
    host_name(text).ok_or_else(|| {
        let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
        let bare = bare.split(['/', ':']).next().unwrap_or(bare);
        if !text.is_ascii() {
            refusal().help("write an international name in its ASCII form, xn--…")
        } else if bare != text && host_name(bare).is_some() {
            refusal().help(format!("write the host alone, without scheme, port and path: {}", quote(bare)))
        } else {
            refusal()
        }
    })
}

/// The path of a route: a prefix on segment borders, without a final `/`.
pub(super) fn path_prefix(value: &DeValue<'_>) -> Outcome<String> {
    let refusal = || Refusal::new("a path that begins with \"/\"");
    let text = url_path(value)?;
    let dots = |segment: &str| matches!(segment, "." | "..");
    if let Some(stem) = text.strip_suffix("/*").or_else(|| text.strip_suffix('*')) {
        let stem = if stem.is_empty() { "/" } else { stem };
        return Err(
            refusal().help(format!("a path matches all paths below it already: write {}", quote(stem)))
        );
    }
    if text.contains(['?', '#']) {
        return Err(refusal().help("routes match the path alone, not the query"));
    }
    if text.contains("//") || text.split('/').any(dots) {
        return Err(Refusal::new("a path without empty, \".\" or \"..\" segments"));
    }
    let trimmed = text.strip_suffix('/').unwrap_or(&text);
    Ok(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
}

/// A path with or without a query, as it stands in a request line.
pub(super) fn url_path(value: &DeValue<'_>) -> Outcome<String> {
    let refusal = || Refusal::new("a path that begins with \"/\"");
    let text = string(value, &refusal().expected)?;
    if !text.starts_with('/') {
        return Err(if text.is_empty() {
            refusal()
        } else {
            refusal().help(format!("write {}", quote(&format!("/{text}"))))
        });
    }
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err(Refusal::new("a path of printable ASCII characters")
        .help("write other characters percent-encoded: \"%20\""))
}

/// Status codes such as `200-399` or `200,204,300-399`.
pub(super) fn statuses(value: &DeValue<'_>) -> Outcome<Vec<RangeInclusive<u16>>> {
    let refusal = || Refusal::new("status codes such as \"200-399\" or \"200,204\", from 100 to 599");
    let written = match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        _ => return Err(refusal()),
    };
    let status = |text: &str| {
        let text = text.trim();
        let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|status| digits && (100..=599).contains(status)).ok_or_else(refusal)
    };
    written
        .split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (status(first)?, status(last)?);
            if first <= last {
                return Ok(first..=last);
            }
            Err(refusal().help(format!("did you mean \"{last}-{first}\"?")))
        })
        .collect()
}
