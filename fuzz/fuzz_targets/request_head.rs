//! Request heads: no panic, and whatever is accepted has one reading.
#![no_main]

use std::net::Ipv6Addr;

use http::{Method, Version as HttpVersion};
use http_desync_guardian::{
    ClassificationReason as Verdict, RequestSafetyTier as Tier, request_analyzer::HttpRequestData,
};
use hyper_oracle::SeenRequest;
use libfuzzer_sys::fuzz_target;
use portcullis::http::{
    fields::FieldId,
    h1::{
        encode,
        head::{HeadEnd, HeadLimits, Underscores, find_head_end},
        request::parse_request,
    },
    message::{BodyLength, RequestHead, Version},
    target,
};

const LIMITS: HeadLimits = HeadLimits {
    head_bytes: 8 << 10,
    uri_bytes: 1 << 10,
    field_bytes: 2 << 10,
    fields: 40,
    underscores: Underscores::Drop,
};

fuzz_target!(|data: &[u8]| {
    let HeadEnd::Complete(end) = find_head_end(data, 0) else { return };
    drip(data, end);
    let raw = &data[..end];
    let mut head = RequestHead::default();
    if parse_request(raw, &LIMITS, &mut head).is_err() {
        return;
    }
    let raw = raw.strip_prefix(b"\r\n").unwrap_or(raw);
    check_bytes(raw);
    check_framing(raw, &head);
    check_target(&head);
    check_forwarded(&head);
    check_with_hyper(raw, &head);
});

/// However the bytes arrive, the head ends at the same place.
fn drip(data: &[u8], end: usize) {
    let mut scanned = 0;
    for len in 0..end {
        match find_head_end(&data[..len], scanned) {
            HeadEnd::Partial { scanned: seen } => scanned = seen,
            HeadEnd::Complete(early) => panic!("ends at {early} of {len}, not at {end}"),
        }
    }
    assert_eq!(find_head_end(&data[..end], scanned), HeadEnd::Complete(end));
}

/// CR, LF and NUL are nowhere but in CRLF, and httparse sees the same head.
fn check_bytes(raw: &[u8]) {
    let strict = raw.windows(2).all(|pair| (pair[0] == b'\r') == (pair[1] == b'\n'));
    assert!(strict && raw[0] != b'\n' && !raw.contains(&0) && !raw.contains(&0x7f), "{}", raw.escape_ascii());
    assert!(raw.ends_with(b"\r\n\r\n") && raw.windows(4).filter(|four| *four == b"\r\n\r\n").count() == 1);
    let mut headers = [httparse::EMPTY_HEADER; 64];
    assert_eq!(httparse::Request::new(&mut headers).parse(raw), Ok(httparse::Status::Complete(raw.len())));
}

/// The lines of one field, cut the simplest way.
fn values<'a>(raw: &'a [u8], name: &[u8]) -> Vec<&'a [u8]> {
    raw.split(|byte| *byte == b'\n')
        .skip(1)
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            line[..colon].eq_ignore_ascii_case(name).then(|| line[colon + 1..].trim_ascii())
        })
        .collect()
}

/// The body is as long as a second, naive reading says.
fn check_framing(raw: &[u8], head: &RequestHead) {
    let (lengths, codings) = (values(raw, b"content-length"), values(raw, b"transfer-encoding"));
    match head.body {
        BodyLength::Empty => assert!(lengths.is_empty() && codings.is_empty()),
        BodyLength::Exact(bytes) => {
            assert!(codings.is_empty() && !lengths.is_empty());
            for length in lengths {
                assert!(length.iter().all(u8::is_ascii_digit));
                assert_eq!(std::str::from_utf8(length).unwrap().parse(), Ok(bytes));
            }
        }
        BodyLength::Streamed => {
            assert!(lengths.is_empty() && codings.len() == 1);
            assert!(codings[0].eq_ignore_ascii_case(b"chunked"));
        }
        BodyLength::UntilClose => panic!("a request can't end with its connection"),
    }
    assert!(values(raw, b"host").len() <= 1);
}

/// Host and target are canonical: parsed again they stay as they are.
fn check_target(head: &RequestHead) {
    assert!(head.target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'));
    assert!(head.path() == "*" || head.path().starts_with('/'));
    assert!(!head.path().split('/').any(|segment| segment == "." || segment == ".."));
    let mut again = RequestHead { method: head.method.clone(), ..RequestHead::default() };
    target::parse_path(&head.target, &mut again).expect("canonical");
    assert_eq!((&again.target, again.path_len), (&head.target, head.path_len));
    if !head.host.is_empty() {
        target::parse_authority(head.host.as_bytes(), &mut again).expect("canonical");
        assert_eq!(again.host, head.host);
    }
    let uri: Result<http::uri::PathAndQuery, _> = head.target.parse();
    assert!(uri.is_ok_and(|uri| uri.as_str() == head.target));
}

/// What a backend gets is read the same way by us and is nothing that the oracle calls unsafe.
fn check_forwarded(head: &RequestHead) {
    let gone = [
        FieldId::Host,
        FieldId::Connection,
        FieldId::TransferEncoding,
        FieldId::Upgrade,
        FieldId::KeepAlive,
        FieldId::ProxyConnection,
        FieldId::Http2Settings,
        FieldId::Expect,
    ];
    assert!(gone.iter().all(|id| head.fields.get(*id).is_none()));
    let mut wire = Vec::new();
    encode::write_request_line(&mut wire, &head.method, &head.target);
    let host = if head.host.is_empty() { "none" } else { head.authority() };
    encode::write_field(&mut wire, "host", host.as_bytes());
    encode::write_fields(&mut wire, &head.fields, |id| id != FieldId::ContentLength);
    match head.body {
        BodyLength::Exact(bytes) => encode::write_content_length(&mut wire, bytes),
        BodyLength::Streamed => encode::write_transfer_encoding_chunked(&mut wire),
        BodyLength::Empty | BodyLength::UntilClose => {}
    }
    encode::end_head(&mut wire);
    let roomy = HeadLimits { head_bytes: 16 << 10, fields: 64, ..LIMITS };
    let mut again = RequestHead::default();
    parse_request(&wire, &roomy, &mut again).expect("what we write is valid");
    assert_eq!((&again.method, &again.target, again.body), (&head.method, &head.target, head.body));
    let passed = head.fields.iter().filter(|(id, _, _)| *id != FieldId::ContentLength);
    let got = again.fields.iter().filter(|(id, _, _)| *id != FieldId::ContentLength);
    assert!(passed.eq(got));

    // The oracle takes names like `transferxencoding`, `*content-length` or `c|||||||||||||` for the
    // real ones.
    let first_letter = |name: &[u8]| name.iter().copied().find(u8::is_ascii_alphanumeric);
    let may_confuse =
        |id, name| id == FieldId::Other && matches!(first_letter(name), None | Some(b'c' | b't'));
    if head.fields.iter().any(|(id, name, _)| may_confuse(id, name)) {
        return;
    }
    let verdict = HttpRequestData::analyze_raw_request(&wire);
    let tolerated = matches!(
        verdict.reason,
        // A GET or HEAD with a body: its framing is ours. Odd characters in an address: checked above.
        Verdict::UndefinedContentLengthSemantics
            | Verdict::UndefinedTransferEncodingSemantics
            | Verdict::AmbiguousUri
            // Names one letter away from those that frame: tokens of their own to any parser.
            | Verdict::SuspiciousHeader
    );
    assert!(verdict.tier < Tier::Ambiguous || tolerated, "{:?}: {}", verdict.reason, wire.escape_ascii());
}

/// hyper takes what we take, and reads method, host, target, framing and the end of the message alike.
fn check_with_hyper(raw: &[u8], head: &RequestHead) {
    let body = match head.body {
        // Of a longer one only the beginning comes: hyper must wait for the rest.
        BodyLength::Exact(bytes) => vec![b'x'; usize::try_from(bytes.min(64)).expect("small")],
        BodyLength::Streamed => b"3;x=y\r\nGET\r\n2\r\n /\r\n0\r\nx-t: v\r\n\r\n".to_vec(),
        BodyLength::Empty | BodyLength::UntilClose => Vec::new(),
    };
    if matches!(head.body, BodyLength::Exact(65..)) {
        return assert!(hyper_oracle::requests(&[raw, &body].concat()).is_empty(), "{}", raw.escape_ascii());
    }
    let seen = hyper_oracle::requests(&[raw, &body, hyper_oracle::NEXT].concat());
    let Some(first) = seen.first() else { panic!("hyper refuses {}", raw.escape_ascii()) };
    let shown = || format!("{first:?} for {head:?}");
    assert_eq!(first.method, head.method);
    assert_eq!(first.version == HttpVersion::HTTP_11, head.version == Version::Http11);
    assert_eq!(host_by_hyper(first), (head.host.clone(), head.port), "{}", shown());
    assert_eq!(target_by_hyper(first, raw), segments(&head.target, head.path_len), "{}", shown());
    check_body(first, head);
    let names_of_hyper =
        || first.fields.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    for (_, name, value) in head.fields.iter().filter(|(id, _, _)| *id != FieldId::Te) {
        assert!(names_of_hyper().any(|field| field == (name, value)), "{}", shown());
    }
    // hyper takes no option from a `connection` with bytes from 0x80 on; we do.
    let is_odd = first.fields.get_all("connection").iter().any(|value| value.to_str().is_err());
    assert!(is_odd || head.keep_alive == (seen.len() == 2), "{}: {seen:?}", raw.escape_ascii());
    assert!(seen.iter().skip(1).all(|next| next.uri == "/next"), "{}: {seen:?}", raw.escape_ascii());
}

fn check_body(seen: &SeenRequest, head: &RequestHead) {
    let body = &seen.body;
    assert!(body.is_complete, "{seen:?}");
    match head.body {
        BodyLength::Exact(bytes) => {
            assert_eq!((body.announced, body.payload.len() as u64), (Some(bytes), bytes));
        }
        BodyLength::Streamed => {
            assert_eq!((body.announced, &body.payload[..]), (None, &b"GET /"[..]));
            assert_eq!(body.trailers.get("x-t").map(|value| value.as_bytes()), Some(&b"v"[..]));
        }
        BodyLength::Empty | BodyLength::UntilClose => {
            assert_eq!((body.announced, body.payload.len()), (Some(0), 0));
        }
    }
}

/// Host and port: those of the field; of the target where there is none.
fn host_by_hyper(seen: &SeenRequest) -> (String, Option<u16>) {
    let field = seen.fields.get("host").map(|value| value.to_str().expect("ASCII"));
    let Some(authority) = field.or(seen.uri.authority().map(|authority| authority.as_str())) else {
        return (String::new(), None);
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().expect("a port"))),
        _ => (authority, None),
    };
    let host = host.to_ascii_lowercase();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match address.map(|address| address.parse::<Ipv6Addr>().expect("an address")) {
        Some(address) => (format!("[{address}]"), port),
        None => (host.strip_suffix('.').unwrap_or(&host).to_owned(), port),
    }
}

/// A path as a backend might take it, segment by segment and decoded; then the query.
type Target = (Vec<Vec<u8>>, Option<String>);

fn target_by_hyper(seen: &SeenRequest, raw: &[u8]) -> Target {
    // `OPTIONS http://a` is `*` to the last proxy (RFC 9112 §3.2.4); the http crate makes it `/`.
    let written = raw.split(|byte| *byte == b' ').nth(1).expect("a target");
    let is_bare = written.iter().filter(|byte| **byte == b'/').count() == 2 && !written.contains(&b'?');
    if seen.method == Method::OPTIONS && seen.uri.authority().is_some() && is_bare {
        return segments("*", 1);
    }
    let mut kept: Vec<Vec<u8>> = Vec::new();
    let mut parts = decoded(seen.uri.path()).into_iter().peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        match &part[..] {
            b"." | b".." => {
                if part.len() == 2 {
                    kept.pop();
                }
                if is_last {
                    kept.push(Vec::new());
                }
            }
            _ => kept.push(part),
        }
    }
    (kept, seen.uri.query().map(str::to_owned))
}

fn segments(target: &str, path_len: usize) -> Target {
    (decoded(&target[..path_len]), target.get(path_len + 1..).map(str::to_owned))
}

fn decoded(path: &str) -> Vec<Vec<u8>> {
    let hex =
        |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).expect("ASCII"), 16).expect("hex");
    let decode = |segment: &str| {
        let (mut bytes, mut out) = (segment.as_bytes(), Vec::new());
        while let [byte, rest @ ..] = bytes {
            (bytes, _) = match byte {
                b'%' => (&rest[2..], out.push(hex(&rest[..2]))),
                _ => (rest, out.push(*byte)),
            };
        }
        out
    };
    path.strip_prefix('/').unwrap_or(path).split('/').map(decode).collect()
}
