//! Heads from HTTP/2 on their way to HTTP/1, and back: no panic, and what is written is one head
//! that reads the same.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use libfuzzer_sys::fuzz_target;
use portcullis::http::{
    fields::{FieldId, Fields},
    h1::{
        encode,
        head::{HeadLimits, Underscores},
        request::parse_request,
        response::parse_response,
    },
    h2::{
        request::{RequestReader, Scratch},
        upstream::convert,
    },
    message::{BodyLength, RequestHead, ResponseHead},
};

const LIMITS: HeadLimits = HeadLimits {
    head_bytes: 8 << 10,
    uri_bytes: 1 << 10,
    field_bytes: 2 << 10,
    fields: 40,
    underscores: Underscores::Drop,
};
/// What is written has framing and a host of ours beside what came, and of responses the h2 crate limits the size only.
const ROOMY: HeadLimits =
    HeadLimits { head_bytes: 32 << 10, field_bytes: 32 << 10, fields: 10_000, ..LIMITS };

// Method, authority and path, a line each; then `name: value` lines. The first byte: whether the
// stream ends with the head, and the status of a response.
fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let ended = first & 1 == 1;
    let lines: Vec<&[u8]> = rest.split(|byte| *byte == b'\n').collect();
    if let [method, authority, path, fields @ ..] = &lines[..] {
        check_request([method, authority, path], fields, ended);
        let status = StatusCode::from_u16(200 + u16::from(first >> 1)).expect("three digits");
        if let Some(fields) = fields_of(fields) {
            check_response(status, fields, ended);
        }
    }
});

/// The fields that get past the h2 crate (RFC 9113 §8.2.2).
fn fields_of(lines: &[&[u8]]) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_lowercase(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        let forbidden = ["connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection"];
        if forbidden.contains(&name.as_str()) || (name == "te" && value != "trailers") {
            return None;
        }
        map.append(name, value);
    }
    Some(map)
}

fn check_request([method, authority, path]: [&[u8]; 3], fields: &[&[u8]], ended: bool) {
    let (mut head, mut scratch) = (RequestHead::default(), Scratch::default());
    let mut reader = RequestReader::new(&LIMITS, &mut scratch, &mut head);
    reader.field(b":method", method);
    reader.field(b":scheme", b"https");
    if !authority.is_empty() {
        reader.field(b":authority", authority);
    }
    reader.field(b":path", path);
    for line in fields {
        // A name may begin with a colon, as those of pseudo fields do.
        let colon = line.iter().skip(1).position(|byte| *byte == b':');
        let Some(colon) = colon.map(|at| at + 1) else { continue };
        reader.field(&line[..colon], &line[colon + 1..]);
    }
    if reader.finish(ended).is_err() {
        return;
    }
    let mut wire = Vec::new();
    encode::write_request_line(&mut wire, &head.method, &head.target);
    encode::write_field(&mut wire, "host", head.authority().as_bytes());
    write_body(&mut wire, &head.fields, head.body);
    let mut again = RequestHead::default();
    parse_request(&wire, &ROOMY, &mut again)
        .unwrap_or_else(|reason| panic!("{reason:?}: {}", wire.escape_ascii()));
    assert_eq!((&again.method, &again.target), (&head.method, &head.target));
    assert_eq!((&again.host, again.port, again.body), (&head.host, head.port, head.body));
    // HTTP/1 has no use for it on the next hop.
    let passed = |fields: &Fields| {
        let all = fields.iter().filter(|(id, _, _)| !matches!(id, FieldId::ContentLength | FieldId::Te));
        all.map(|(_, name, value)| (name.to_vec(), value.to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(passed(&again.fields), passed(&head.fields), "{}", wire.escape_ascii());
}

fn check_response(status: StatusCode, fields: HeaderMap, ended: bool) {
    let mut response = Response::new(());
    (*response.status_mut(), *response.headers_mut()) = (status, fields);
    let mut head = ResponseHead::default();
    if convert::read_response(&response, ended, &mut head).is_none() {
        return;
    }
    let mut wire = Vec::new();
    encode::write_status_line(&mut wire, status);
    write_body(&mut wire, &head.fields, head.body);
    let mut again = ResponseHead::default();
    parse_response(&wire, &ROOMY, &Method::GET, &mut again)
        .unwrap_or_else(|reason| panic!("{reason:?}: {}", wire.escape_ascii()));
    assert_eq!(again.status, status);
}

/// The fields with the framing that the body has.
fn write_body(wire: &mut Vec<u8>, fields: &Fields, body: BodyLength) {
    encode::write_fields(wire, fields, |id| id != FieldId::ContentLength);
    match body {
        BodyLength::Exact(bytes) => encode::write_content_length(wire, bytes),
        BodyLength::Streamed => encode::write_transfer_encoding_chunked(wire),
        BodyLength::Empty | BodyLength::UntilClose => {}
    }
    encode::end_head(wire);
}
