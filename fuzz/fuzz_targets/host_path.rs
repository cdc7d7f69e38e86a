//! What a stranger names as host and path: no panic, one spelling for each address, and the same
//! one over HTTP/1 and HTTP/2, in matching and in forwarding.
#![no_main]

use http::Method;
use libfuzzer_sys::fuzz_target;
use portcullis::http::{
    h1::{
        encode,
        head::{HeadLimits, Underscores},
        request::parse_request,
    },
    h2::request::{Flaw, RequestReader, Scratch},
    message::RequestHead,
    target,
};

const LIMITS: HeadLimits = HeadLimits {
    head_bytes: 64 << 10,
    uri_bytes: 32 << 10,
    field_bytes: 32 << 10,
    fields: 10,
    underscores: Underscores::Drop,
};

// A line for the host, a line for the target.
fuzz_target!(|data: &[u8]| {
    let (authority, path) = match data.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &b"/"[..]),
    };
    for method in [Method::GET, Method::OPTIONS] {
        check(&method, authority, path);
    }
});

/// Host, port and target, or `None` where any of them is refused.
type Address = Option<(String, Option<u16>, String)>;

fn check(method: &Method, authority: &[u8], path: &[u8]) {
    let alone = alone(method, authority, path);
    let over_h1 = over_h1(method, authority, path);
    if path.starts_with(b"/") || path == b"*" {
        assert_eq!(over_h1, alone, "{} {}", authority.escape_ascii(), path.escape_ascii());
    }
    // What is no HTTP/2 at all is not asked for its address.
    if let Some(over_h2) = over_h2(method, authority, path) {
        assert_eq!(over_h2, alone, "{} {}", authority.escape_ascii(), path.escape_ascii());
    }
    for (host, port, target) in [alone, over_h1].into_iter().flatten() {
        check_host(&host);
        check_path(&target);
        check_forwarded(method, (&host, port, &target));
    }
}

fn alone(method: &Method, authority: &[u8], path: &[u8]) -> Address {
    let mut head = RequestHead { method: method.clone(), ..RequestHead::default() };
    let host = target::parse_authority(authority, &mut head);
    let path = std::str::from_utf8(path).map(|path| target::parse_path(path, &mut head));
    matches!((host, path), (Ok(()), Ok(Ok(())))).then(|| address_of(head))
}

fn over_h1(method: &Method, authority: &[u8], path: &[u8]) -> Address {
    // A line of the field that is not the host's is another target's business.
    if path.iter().chain(authority).any(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')) {
        return None;
    }
    let wire = [method.as_str().as_bytes(), b" ", path, b" HTTP/1.1\r\nhost: ", authority, b"\r\n\r\n"];
    let mut head = RequestHead::default();
    parse_request(&wire.concat(), &LIMITS, &mut head).ok().map(|()| address_of(head))
}

/// `None` where the request is malformed, or has a fragment, which is cut off there.
fn over_h2(method: &Method, authority: &[u8], path: &[u8]) -> Option<Address> {
    if path.contains(&b'#') {
        return None;
    }
    let (mut head, mut scratch) = (RequestHead::default(), Scratch::default());
    let mut reader = RequestReader::new(&LIMITS, &mut scratch, &mut head);
    let fields = [
        (":method", method.as_str().as_bytes()),
        (":scheme", b"https"),
        (":path", path),
        (":authority", authority),
    ];
    for (name, value) in fields {
        reader.field(name.as_bytes(), value);
    }
    match reader.finish(true) {
        Ok(()) => Some(Some(address_of(head))),
        Err(Flaw::Refused(_)) => Some(None),
        Err(Flaw::Malformed) => None,
    }
}

fn address_of(head: RequestHead) -> (String, Option<u16>, String) {
    assert_eq!(head.path().len(), head.path_len);
    assert_eq!(head.path().len() + head.query().map_or(0, |query| query.len() + 1), head.target.len());
    assert!(!head.path().contains('?'));
    (head.host, head.port, head.target)
}

/// A name as resolvers and virtual hosts take it, or an address in its one spelling.
fn check_host(host: &str) {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let parsed: std::net::Ipv6Addr = address.parse().expect("an address");
        assert_eq!(parsed.to_string(), address);
        return;
    }
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
    assert!(host.bytes().all(plain) && host.split('.').all(|label| !label.is_empty()), "{host}");
}

/// Whoever decodes it once, takes `\` for `/` or cuts off parameters finds no way up.
fn check_path(target: &str) {
    assert!(target.bytes().all(|byte| byte.is_ascii_graphic() && !b"#<>".contains(&byte)), "{target}");
    let path = target.split('?').next().unwrap_or_default();
    if target == "*" {
        return;
    }
    assert!(path.starts_with('/') && !path.contains('\\'), "{target}");
    let decoded = decoded(path.as_bytes());
    assert!(!decoded.iter().any(u8::is_ascii_control), "{target}");
    for segment in decoded.split(|byte| matches!(byte, b'/' | b'\\')) {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        assert!(name != b"." && name != b"..", "{target}");
    }
}

fn decoded(mut path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let [byte, rest @ ..] = path {
        path = rest;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        let digits = std::str::from_utf8(&path[..2]).expect("two digits");
        assert_eq!(digits, digits.to_ascii_uppercase());
        let value = u8::from_str_radix(digits, 16).expect("two digits");
        assert!(!value.is_ascii_alphanumeric() && !b"-._~".contains(&value), "one spelling");
        out.push(value);
        path = &path[2..];
    }
    out
}

/// Three words and a host, which we read as the same address again.
fn check_forwarded(method: &Method, (host, port, target): (&str, Option<u16>, &str)) {
    let mut wire = Vec::new();
    encode::write_request_line(&mut wire, method, target);
    let authority = port.map_or(host.to_owned(), |port| format!("{host}:{port}"));
    encode::write_field(&mut wire, "host", authority.as_bytes());
    encode::end_head(&mut wire);
    let text = std::str::from_utf8(&wire).expect("ASCII");
    assert_eq!(text, format!("{method} {target} HTTP/1.1\r\nhost: {authority}\r\n\r\n"));
    let mut head = RequestHead::default();
    parse_request(&wire, &LIMITS, &mut head).expect("what we write is valid");
    assert_eq!((&*head.host, &*head.target), (host, target));
    let mut headers = [httparse::EMPTY_HEADER; 4];
    let mut by_httparse = httparse::Request::new(&mut headers);
    assert_eq!(by_httparse.parse(&wire), Ok(httparse::Status::Complete(wire.len())));
    assert_eq!(by_httparse.path, Some(target));
}
