//! The canonical method, host and target of a request: what is matched is what is forwarded.
//!
//! One spelling for each address (RFC 3986 §6.2.2), so that a route can't be walked around by
//! writing its path in another way. Serves HTTP/1 (request target and `host`) and HTTP/2
//! (`:authority`, `:path`) alike.
//!
//! Choices where the RFCs leave one:
//! - Percent-encoded letters, digits and `-._~` are decoded once; other encodings stay, in upper
//!   case. A broken encoding (`%zz`, `%4`) and an encoded control byte are refused in the path; the
//!   query passes as it was written, since `?q=100%` is what browsers send.
//! - Dot segments go; above the root there is nothing, so `/../a` is `/a`. A dot segment hidden
//!   behind `%2F`, `%5C`, a `;`, or what becomes one (`/..%2Fadmin`, `/..;/admin`, `/..%3B/admin`) is
//!   refused: backends that decode those would walk up where we did not. Empty segments (`//`) stay.
//! - A raw `\` in the path is refused, since some backends take it for `/`. So is what no URL may
//!   hold raw and what HTTP/2 could not carry: `"`, `<`, `>` in the query, `<`, `>`, `` ` `` in the
//!   path.
//! - Hosts are letters, digits, `-`, `_`, `.`, or an IPv6 address in brackets; no percent-encoding.

use std::{fmt::Write, net::Ipv6Addr};

use http::Method;
use memchr::memchr;

use super::message::{RequestHead, Version};
use crate::error::Reason;

const PATH: u8 = 1;
const QUERY: u8 = 2;
const HOST: u8 = 4;
const UNRESERVED: u8 = 8;
/// `%` and `.`: the path may have another spelling.
const REWRITES: u8 = 16;

/// What each byte may be part of.
static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0x21_u8;
    while byte < 0x7f {
        table[byte as usize] = match byte {
            b'.' => PATH | QUERY | HOST | UNRESERVED | REWRITES,
            b'%' => PATH | QUERY | REWRITES,
            b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => PATH | QUERY | HOST | UNRESERVED,
            b'~' => PATH | QUERY | UNRESERVED,
            b'#' | b'<' | b'>' => 0,
            b'"' => PATH,
            b'?' | b'\\' | b'`' => QUERY,
            _ => PATH | QUERY,
        };
        byte += 1;
    }
    table
}

/// The classes that all bytes share, and those that any of them has.
fn classes_of(bytes: &[u8]) -> (u8, u8) {
    bytes.iter().fold((u8::MAX, 0), |(common, any), byte| {
        let class = CLASSES[usize::from(*byte)];
        (common & class, any | class)
    })
}

/// The method, which must be spelt in upper case; CONNECT and TRACE are `MethodNotAllowed`.
///
/// A letter, then letters, digits, `-` and `_` only: some backends ignore case, and would see a `get`
/// as another method than we do.
pub fn parse_method(raw: &[u8]) -> Result<Method, Reason> {
    let plain = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    if !raw.first().is_some_and(u8::is_ascii_uppercase) || !raw.iter().all(plain) {
        return Err(Reason::BadRequest);
    }
    match Method::from_bytes(raw) {
        Ok(Method::CONNECT | Method::TRACE) => Err(Reason::MethodNotAllowed),
        Ok(method) => Ok(method),
        Err(_) => Err(Reason::BadRequest),
    }
}

/// Sets host and target of an HTTP/1 request; `head` already has its method and version.
///
/// Takes origin-form, absolute-form (http and https; its host must be that of `host`) and `*` for
/// OPTIONS. HTTP/1.1 must bring a `host`.
pub(super) fn parse_h1(raw: &str, host: Option<&[u8]>, head: &mut RequestHead) -> Result<(), Reason> {
    match host {
        Some(host) => parse_authority(host, head)?,
        None if head.version == Version::Http10 => {}
        None => return Err(Reason::BadRequest),
    }
    if raw.starts_with('/') || raw == "*" {
        return parse_path(raw, head);
    }
    parse_absolute(raw, host.is_some(), head)
}

fn parse_absolute(raw: &str, host_known: bool, head: &mut RequestHead) -> Result<(), Reason> {
    let (scheme, rest) = raw.split_once("://").ok_or(Reason::BadRequest)?;
    let default_port = match scheme {
        _ if scheme.eq_ignore_ascii_case("http") => 80,
        _ if scheme.eq_ignore_ascii_case("https") => 443,
        _ => return Err(Reason::BadRequest),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let said = (std::mem::take(&mut head.host), std::mem::take(&mut head.host_and_port), head.port);
    parse_authority(authority.as_bytes(), head)?;
    if host_known {
        let port_of = |port: Option<u16>| port.unwrap_or(default_port);
        if said.0 != head.host || port_of(said.2) != port_of(head.port) {
            return Err(Reason::BadRequest);
        }
        (head.host, head.host_and_port, head.port) = said;
    }
    match path {
        _ if path.starts_with('/') => parse_path(path, head),
        "" if head.method == Method::OPTIONS => parse_path("*", head),
        // No path at all, perhaps with a query: the root (RFC 9112 §3.2.2).
        _ => parse_path(&format!("/{path}"), head),
    }
}

/// Sets `host` and `port` from a `host` field or an `:authority`.
///
/// Lower case, without the final dot; an IPv6 address in brackets and its shortest spelling. A port
/// is 1 to 65535 without leading zeros. Errors: `BadRequest`.
pub fn parse_authority(raw: &[u8], head: &mut RequestHead) -> Result<(), Reason> {
    head.host.clear();
    let (name, port) = match raw.first() {
        Some(b'[') => {
            let end = raw.iter().position(|byte| *byte == b']').ok_or(Reason::BadRequest)?;
            raw.split_at(end + 1)
        }
        _ => raw.split_at(raw.iter().position(|byte| *byte == b':').unwrap_or(raw.len())),
    };
    head.port = match port {
        [] => None,
        [b':', digits @ ..] => Some(parse_port(digits)?),
        _ => return Err(Reason::BadRequest),
    };
    if let [b'[', address @ .., b']'] = name {
        push_ipv6(address, &mut head.host)?;
    } else {
        push_name(name.strip_suffix(b".").unwrap_or(name), &mut head.host)?;
    }
    if let Some(port) = head.port {
        head.host_and_port.clear();
        head.host_and_port.push_str(&head.host);
        head.host_and_port.push(':');
        head.host_and_port.push_str(itoa::Buffer::new().format(port));
    }
    Ok(())
}

fn parse_port(digits: &[u8]) -> Result<u16, Reason> {
    if !matches!(digits, [b'1'..=b'9', ..]) {
        return Err(Reason::BadRequest);
    }
    let port = digits.iter().try_fold(0_u16, |port, digit| {
        let digit = digit.is_ascii_digit().then(|| u16::from(digit - b'0'))?;
        port.checked_mul(10)?.checked_add(digit)
    });
    port.ok_or(Reason::BadRequest)
}

fn push_ipv6(address: &[u8], host: &mut String) -> Result<(), Reason> {
    let address = str::from_utf8(address).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
    let address = address.ok_or(Reason::BadRequest)?;
    write!(host, "[{address}]").map_err(|_| Reason::BadRequest)
}

fn push_name(name: &[u8], host: &mut String) -> Result<(), Reason> {
    // The longest name that DNS can hold, without its final dot.
    if name.len() > 253 || !is_host_name(name) {
        return Err(Reason::BadRequest);
    }
    host.push_str(str::from_utf8(name).map_err(|_| Reason::BadRequest)?);
    host.make_ascii_lowercase();
    Ok(())
}

/// Whether these are labels of the right letters with one dot between them.
fn is_host_name(name: &[u8]) -> bool {
    let mut common = HOST;
    let mut empty_label = false;
    let mut previous = b'.';
    for &byte in name {
        common &= CLASSES[usize::from(byte)];
        empty_label |= byte == b'.' && previous == b'.';
        previous = byte;
    }
    common == HOST && !empty_label && previous != b'.'
}

/// Sets `target` and `path_len` from an origin-form target or a `:path`; `head` has its method.
///
/// `*` passes for OPTIONS only. Errors: `BadRequest`. Cost: one pass and a copy; a path with `%` or
/// `/.` is rebuilt segment by segment, still linear.
pub fn parse_path(raw: &str, head: &mut RequestHead) -> Result<(), Reason> {
    head.target.clear();
    if raw == "*" && head.method == Method::OPTIONS {
        head.target.push('*');
        head.path_len = 1;
        return Ok(());
    }
    let end = memchr(b'?', raw.as_bytes()).unwrap_or(raw.len());
    let (path, query) = raw.split_at(end);
    let (common, any) = classes_of(path.as_bytes());
    if !path.starts_with('/') || common & PATH == 0 || classes_of(query.as_bytes()).0 & QUERY == 0 {
        return Err(Reason::BadRequest);
    }
    if any & REWRITES != 0 && (path.contains('%') || path.contains("/.")) {
        push_canonical_path(path, &mut head.target)?;
        head.path_len = head.target.len();
        head.target.push_str(query);
    } else {
        head.path_len = path.len();
        head.target.push_str(raw);
    }
    Ok(())
}

fn push_canonical_path(path: &str, target: &mut String) -> Result<(), Reason> {
    target.push('/');
    let mut segments = path[1..].split('/').peekable();
    while let Some(raw) = segments.next() {
        let start = target.len();
        push_decoded(raw, target)?;
        match &target[start..] {
            "." => target.truncate(start),
            ".." => {
                let parent = target[..start - 1].rfind('/').map_or(1, |slash| slash + 1);
                target.truncate(parent);
            }
            segment if hides_dot_segment(segment) => return Err(Reason::BadRequest),
            _ if segments.peek().is_some() => target.push('/'),
            _ => {}
        }
    }
    Ok(())
}

/// Decodes what needs no encoding; the rest keeps it, in upper case.
fn push_decoded(segment: &str, target: &mut String) -> Result<(), Reason> {
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            target.push(char::from(byte));
            continue;
        }
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(Reason::BadRequest) };
        let decoded = u8::try_from(high * 16 + low).map_err(|_| Reason::BadRequest)?;
        if decoded.is_ascii_control() {
            return Err(Reason::BadRequest);
        }
        if CLASSES[usize::from(decoded)] & UNRESERVED != 0 {
            target.push(char::from(decoded));
        } else {
            write!(target, "%{decoded:02X}").map_err(|_| Reason::BadRequest)?;
        }
    }
    Ok(())
}

/// What ends a segment for a backend that decodes first and takes apart afterwards: `/`, `\`, and
/// the beginnings of parameters, query and fragment.
const HIDDEN_ENDS: [&str; 5] = ["%2F", "%5C", "%3B", "%3F", "%23"];

/// Whether a backend that decodes one of those, or cuts off `;parameters`, would find a `.` or `..`
/// here.
fn hides_dot_segment(segment: &str) -> bool {
    let ends = |rest: &str| {
        rest.is_empty() || rest.starts_with(';') || HIDDEN_ENDS.iter().any(|end| rest.starts_with(end))
    };
    let begins_hidden = |part: &str| {
        let dots = part.strip_prefix("..").or_else(|| part.strip_prefix('.'));
        dots.is_some_and(ends)
    };
    segment.split("%2F").flat_map(|part| part.split("%5C")).any(begins_hidden)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(raw: &str) -> Result<String, Reason> {
        let mut head = RequestHead::default();
        parse_path(raw, &mut head)?;
        assert_eq!(head.path().len(), head.path_len);
        Ok(head.target)
    }

    /// The configuration has no parser of requests, so it judges spellings by itself.
    #[test]
    fn a_route_is_accepted_in_the_spelling_that_its_requests_have_and_in_no_other() {
        let spellings = |octet: u8| [format!("/a%{octet:02X}b"), format!("/a%{octet:02x}b")];
        for path in (0..=u8::MAX).flat_map(spellings) {
            let text = format!(
                "[[listeners]]\naddress = \"127.0.0.1:0\"\n[[routes]]\npath = \"{path}\"\ncluster = \"web\"\n\
                 [clusters.web]\nbackends = [\"127.0.0.1:1\"]\n"
            );
            let accepted = crate::config::parse("test", &text, std::path::Path::new("")).is_ok();
            assert_eq!(accepted, canonical(&path).is_ok_and(|canonical| canonical == path), "{path}");
        }
    }

    fn authority(raw: &str) -> Result<(String, Option<u16>), Reason> {
        let mut head = RequestHead::default();
        parse_authority(raw.as_bytes(), &mut head).map(|()| (head.host, head.port))
    }

    #[test]
    fn takes_methods_that_begin_with_a_letter_and_are_in_upper_case() {
        for (raw, expected) in [
            ("GET", Ok(Method::GET)),
            ("M-SEARCH", Ok(Method::from_bytes(b"M-SEARCH").unwrap())),
            ("X_9", Ok(Method::from_bytes(b"X_9").unwrap())),
            ("0PUT", Err(Reason::BadRequest)),
            ("-GET", Err(Reason::BadRequest)),
            ("_GET", Err(Reason::BadRequest)),
            ("Get", Err(Reason::BadRequest)),
            ("", Err(Reason::BadRequest)),
            ("TRACE", Err(Reason::MethodNotAllowed)),
        ] {
            assert_eq!(parse_method(raw.as_bytes()), expected, "{raw}");
        }
    }

    #[test]
    fn rejects_broken_encodings_and_encoded_controls_in_the_path() {
        for path in [
            "/%", "/%4", "/%zz", "/%4g", "/%+1", "/a%", "/%%41", "/% 41", "/%00", "/a%00b", "/%0a", "/%0D",
            "/%1f", "/%7F", "/%09", "/%2",
        ] {
            assert_eq!(canonical(path), Err(Reason::BadRequest), "{path}");
        }
    }

    #[test]
    fn rejects_dot_segments_hidden_from_us_but_not_from_backends() {
        for path in [
            "/public/..%2Fadmin",
            "/public/..%2fadmin",
            "/public/%2e%2E%2fadmin",
            "/a/..%5Cb",
            "/a/%5c..%5cb",
            "/a%2F..",
            "/a%2F.%2Fb",
            "/..;/admin",
            "/a/..;x=y/b",
            "/.;/a",
            "/a%2F..;/b",
            "/%2e%2e;/a",
            "/a/..%3B/b",
            "/a/.%3bx",
            "/a/..%3Fb",
            "/a/%2e%2E%23",
            "/a%2f..%3B",
        ] {
            assert_eq!(canonical(path), Err(Reason::BadRequest), "{path}");
        }
    }

    #[test]
    fn rejects_what_is_no_path() {
        for path in [
            "",
            "a",
            "a/b",
            "*",
            "?",
            "?a",
            "http://a/",
            "/a b",
            "/a#b",
            "/#",
            "/a\\b",
            "/\\..\\a",
            "/<x>",
            "/a`b",
            "/?<x>",
            "/?a\"b",
            "/?a b",
            "/?a#",
            "/\u{e9}",
            "/?\u{e9}",
            "/a\tb",
            "/\u{7f}",
            "/a\r\nb",
            "/\0",
        ] {
            assert_eq!(canonical(path), Err(Reason::BadRequest), "{path:?}");
        }
    }

    #[test]
    fn gives_each_path_one_spelling() {
        for (raw, expected) in [
            ("/", "/"),
            ("/a/b.html", "/a/b.html"),
            ("/%61%2D%5f%7E%2e%41", "/a-_~.A"),
            ("/%2f%5c%3a%c3%a9%20%25", "/%2F%5C%3A%C3%A9%20%25"),
            ("/%252e%252e/a", "/%252e%252e/a"),
            ("/./a", "/a"),
            ("/a/.", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/../..", "/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/%2e%2E/a/%2e", "/a/"),
            ("/a/%2e%2e/%61dmin", "/admin"),
            ("//a//b", "//a//b"),
            ("/a//../b", "/a/b"),
            ("//..", "/"),
            ("/...", "/..."),
            ("/.a/..b/c..", "/.a/..b/c.."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/a|b[c]^{d}\"e", "/a|b[c]^{d}\"e"),
            ("/a%3F", "/a%3F"),
            ("/a%23", "/a%23"),
        ] {
            assert_eq!(canonical(raw).as_deref(), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn leaves_the_query_as_it_is() {
        for query in ["", "a=%2e%2E", "q=100%", "a=/../b", "a=%00", "a?b", "a\\b`c", "a=[1]{2}|'3'"] {
            assert_eq!(canonical(&format!("/a?{query}")).unwrap(), format!("/a?{query}"));
            assert_eq!(canonical(&format!("/b/../a?{query}")).unwrap(), format!("/a?{query}"));
        }
    }

    #[test]
    fn splits_path_and_query() {
        let mut head = RequestHead::default();
        parse_path("/%61/?b=c?d", &mut head).unwrap();
        assert_eq!((head.path(), head.query()), ("/a/", Some("b=c?d")));
        parse_path("/a", &mut head).unwrap();
        assert_eq!((head.path(), head.query()), ("/a", None));
    }

    #[test]
    fn takes_the_asterisk_for_options_only() {
        let mut head = RequestHead { method: Method::OPTIONS, ..RequestHead::default() };
        parse_path("*", &mut head).unwrap();
        assert_eq!((head.path(), head.query()), ("*", None));
        assert_eq!(parse_path("*a", &mut head), Err(Reason::BadRequest));
    }

    #[test]
    fn gives_each_host_one_spelling() {
        for (raw, host, port) in [
            ("Example.COM", "example.com", None),
            ("example.com.", "example.com", None),
            ("example.com.:8443", "example.com", Some(8443)),
            ("a_b-c.example:1", "a_b-c.example", Some(1)),
            ("10.0.0.1:65535", "10.0.0.1", Some(65535)),
            ("[::1]", "[::1]", None),
            ("[0:0:0::0001]:80", "[::1]", Some(80)),
            ("[2001:DB8::A]", "[2001:db8::a]", None),
        ] {
            assert_eq!(authority(raw), Ok((host.to_owned(), port)), "{raw}");
        }
    }

    #[test]
    fn holds_the_length_of_a_name() {
        assert!(authority(&"a".repeat(253)).is_ok());
        assert!(authority(&format!("{}.", "a".repeat(253))).is_ok());
        assert_eq!(authority(&"a".repeat(254)), Err(Reason::BadRequest));
    }

    #[test]
    fn whatever_passes_can_be_carried_by_http_2() {
        for byte in 0x21..0x7f_u8 {
            for raw in [format!("/{}", char::from(byte)), format!("/?{}", char::from(byte))] {
                if let Ok(target) = canonical(&raw) {
                    let parsed = target.parse::<http::uri::PathAndQuery>().unwrap();
                    assert_eq!(parsed.as_str(), target);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn canonical_is_a_fixed_point(raw in "/([a-z./;%?]|%2[0-9a-fA-F]|%5[cC]|\\.\\./){0,30}") {
            if let Ok(once) = canonical(&raw) {
                prop_assert_eq!(canonical(&once), Ok(once.clone()));
                let path = once.split('?').next().unwrap();
                prop_assert!(path.starts_with('/'));
                prop_assert!(!path.split('/').any(|segment| segment == "." || segment == ".."));
            }
        }

        #[test]
        fn no_bytes_panic(raw: Vec<u8>) {
            let mut head = RequestHead::default();
            let text = String::from_utf8_lossy(&raw);
            let _ = parse_path(&text, &mut head);
            let _ = parse_path(&format!("/{text}"), &mut head);
            let _ = parse_authority(&raw, &mut head);
            let _ = parse_method(&raw);
        }
    }
}
