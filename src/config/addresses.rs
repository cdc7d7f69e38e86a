//! Values that name something in the network: addresses, hosts, paths, status codes.

use std::{net::SocketAddr, ops::RangeInclusive};

use ipnet::IpNet;
use toml::de::DeValue;

use super::{
    Backend, HostMatch,
    diagnostics::quote,
    networks::parse_network,
    values::{Outcome, Refusal, string},
};

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
        } else if host_name(host).is_some() {
            refusal.help(
                "write an address of this machine, or \"0.0.0.0\" for all of them; names go to the routes",
            )
        } else {
            refusal
        }
    })
}

/// A network such as `10.0.0.0/8`, or one address.
pub(super) fn network(value: &DeValue<'_>) -> Outcome<IpNet> {
    let expected = "an IP address or a network such as \"10.0.0.0/8\"";
    let text = string(value, expected)?;
    parse_network(text).map_err(|meant| match meant {
        None => Refusal::new(expected),
        Some(meant) => {
            Refusal::new("a network with zeros after its prefix").help(format!("did you mean \"{meant}\"?"))
        }
    })
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
    } else if text.matches(':').count() > 1 {
        return Err(
            refusal().help("write an IPv6 address in brackets and add a port: \"[2001:db8::1]:8080\"")
        );
    } else if let Some((host, port)) = text.rsplit_once(':') {
        (host_name(host).ok_or_else(refusal)?, port_number(port).ok_or_else(bad_port)?)
    } else {
        return Err(refusal().help(format!("add a port: {}", quote(&format!("{text}:80")))));
    };
    if port == 0 {
        return Err(bad_port());
    }
    Ok(Backend { address: text.to_owned(), host, port, weight: 1 })
}

/// Returns a port that is written with digits alone, without the sign that `parse` accepts.
fn port_number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
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
    let text = url_path(value)?;
    let dots = |segment: &str| matches!(segment, "." | "..");
    if let Some(stem) = text.strip_suffix("/*").or_else(|| text.strip_suffix('*')) {
        let stem = if stem.is_empty() { "/" } else { stem };
        return Err(Refusal::new("a path without \"*\"")
            .help(format!("a path matches all paths below it already: write {}", quote(stem))));
    }
    if text.contains(['?', '#']) {
        return Err(Refusal::new("a path without a query").help("routes match the path alone"));
    }
    if text.contains("//") || text.split('/').any(dots) {
        return Err(Refusal::new("a path without empty, \".\" or \"..\" segments"));
    }
    let canonical = canonical(&text).ok_or_else(|| {
        Refusal::new("a path in which each \"%\" begins an octet").help("write \"%25\" for \"%\" itself")
    })?;
    if canonical != text {
        return Err(Refusal::new("a path in its canonical spelling, which is what is matched")
            .help(format!("write {}", quote(&canonical))));
    }
    let trimmed = text.strip_suffix('/').unwrap_or(&text);
    Ok(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
}

/// The spelling that requests have when they are matched: nothing is encoded that need not be, the rest in upper case.
/// `None`: a `%` that begins no octet, or that of a control character, with which every request is refused.
fn canonical(path: &str) -> Option<String> {
    let mut canonical = String::new();
    let mut pieces = path.split('%');
    canonical.push_str(pieces.next()?);
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        let octet = digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(digits)?;
        let octet = u8::from_str_radix(octet, 16).ok().filter(|octet| !octet.is_ascii_control())?;
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            canonical.push(char::from(octet));
        } else {
            canonical.push('%');
            canonical.push_str(&digits.to_ascii_uppercase());
        }
        canonical.push_str(rest);
    }
    Some(canonical)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn string_value(text: &str) -> DeValue<'_> {
        DeValue::String(text.into())
    }

    #[test]
    fn backends_are_names_or_addresses_with_a_port() {
        let backend = |text: &str| {
            backend_address(&string_value(text)).ok().map(|backend| (backend.host, backend.port))
        };
        let cases = [
            ("10.0.0.1:80", ("10.0.0.1", 80)),
            ("Web1.Internal.:8080", ("web1.internal", 8080)),
            ("a_b:1", ("a_b", 1)),
            ("[2001:DB8::1]:443", ("2001:db8::1", 443)),
        ];
        for (text, (host, port)) in cases {
            assert_eq!(backend(text), Some((host.to_owned(), port)), "{text}");
        }
        let refused = [
            "",
            ":80",
            "a",
            "a:",
            "a:0",
            "a:65536",
            "a b:80",
            "::1:80",
            "[::1]",
            "[::1]:0",
            "http://a:80",
            "a/b:80",
            "-a:80",
            "a..b:80",
            "a:80/",
            "a:+80",
            "ü:80",
        ];
        for text in refused {
            assert_eq!(backend(text), None, "{text}");
        }
    }

    #[test]
    fn hosts_are_lower_case_without_final_dot() {
        let host = |text: &str| host_match(&string_value(text)).ok();
        let exact = |host: &str| Some(HostMatch::Exact(host.to_owned()));
        assert_eq!(host("Example.COM."), exact("example.com"));
        assert_eq!(host("127.0.0.1"), exact("127.0.0.1"));
        assert_eq!(host("[::0001]"), exact("[::1]"));
        assert_eq!(host("*.Example.com"), Some(HostMatch::Wildcard("example.com".to_owned())));
        for text in
            ["", ".", "*", "*.", "*a.b", "a.*.b", "**.a", "*.*.a", "a:80", "a/b", "a b", "a..b", "[::1", "ü"]
        {
            assert_eq!(host(text), None, "{text}");
        }
        assert!(host(&"a".repeat(63)).is_some() && host(&"a".repeat(64)).is_none());
        let long = "a.".repeat(127);
        assert!(host(&long).is_some() && host(&format!("{long}aa")).is_none());
    }

    #[test]
    fn paths_lose_the_final_slash_and_are_plain() {
        let path = |text: &str| path_prefix(&string_value(text)).ok();
        let cases = [
            ("/", "/"),
            ("/api", "/api"),
            ("/api/", "/api"),
            ("/a/b%20c", "/a/b%20c"),
            ("/.well-known", "/.well-known"),
        ];
        for (text, expected) in cases {
            assert_eq!(path(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "", "api", "//", "/a//b", "/a/./b", "/a/..", "/a*", "/*", "/a?b", "/a#b", "/a b", "/\u{e9}",
            "/\n",
        ] {
            assert_eq!(path(text), None, "{text}");
        }
    }

    #[test]
    fn statuses_are_codes_and_ranges() {
        let list = |text: &str| statuses(&string_value(text)).ok();
        assert_eq!(list("200-399"), Some(vec![200..=399]));
        assert_eq!(list("200, 204,300 - 399"), Some(vec![200..=200, 204..=204, 300..=399]));
        assert_eq!(list("100-599"), Some(vec![100..=599]));
        for text in ["", ",", "99", "600", "200-", "-200", "200-199", "2xx", "200-300-400", "+20", "0200"] {
            assert_eq!(list(text), None, "{text}");
        }
    }
}
