//! From the bytes of one response head to a `ResponseHead`, or to what is wrong with it.
//!
//! Backends are trusted with content, not with framing: a head that could be read in two ways would
//! poison the connection it came on and the answers behind it.

use std::fmt;

use http::{Method, StatusCode};

use super::{
    head::{BareLineFeed, HeadLimits, Loader, Room, STACK_FIELDS, has_strict_frame},
    hop::Hop,
    length::{Framing, Length, LengthError},
};
use crate::http::{
    fields::FieldId,
    message::{BodyLength, ResponseHead, Version},
};

/// What is wrong with a response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadResponse {
    StatusLine,
    /// Not HTTP/1.0 or HTTP/1.1.
    Version,
    /// A bare CR or LF, or a NUL.
    LineEnd,
    /// A field line that is none: folded, no token before the colon, control bytes.
    Field,
    HeadTooLarge,
    TooManyFields,
    /// No plain number, or two that differ.
    ContentLength,
    /// Not exactly `chunked`, or in HTTP/1.0.
    TransferEncoding,
    /// `content-length` and `transfer-encoding` together.
    TwoLengths,
    /// A 1xx that announces a body.
    InterimWithBody,
    /// More options in `connection` than any honest backend sends.
    ConnectionOptions,
}

impl fmt::Display for BadResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadResponse::StatusLine => "malformed status line",
            BadResponse::Version => "neither HTTP/1.0 nor HTTP/1.1",
            BadResponse::LineEnd => "bare CR or LF, or NUL in the head",
            BadResponse::Field => "malformed field line",
            BadResponse::HeadTooLarge => "head too large",
            BadResponse::TooManyFields => "too many fields",
            BadResponse::ContentLength => "invalid content-length",
            BadResponse::TransferEncoding => "transfer-encoding other than chunked",
            BadResponse::TwoLengths => "content-length with transfer-encoding",
            BadResponse::InterimWithBody => "interim response with a body",
            BadResponse::ConnectionOptions => "too many connection options",
        })
    }
}

impl std::error::Error for BadResponse {}

/// Parses one whole response head, final or interim, to a request with `request_method`.
///
/// Statuses from 100 to 999 pass. `out` is cleared first and holds nothing of use after an error.
/// `out.fields` is without hop-by-hop fields, and without `content-length` where the status allows
/// none (1xx, 204); for HEAD and 304 it stays and says nothing about this message's body. Cost: as
/// for requests.
pub fn parse_response(
    head: &[u8],
    limits: &HeadLimits,
    request_method: &Method,
    out: &mut ResponseHead,
) -> Result<(), BadResponse> {
    out.clear();
    if head.len() > limits.head_bytes {
        return Err(BadResponse::HeadTooLarge);
    }
    // httparse skips empty lines in front.
    if !head.starts_with(b"HTTP/") {
        return Err(BadResponse::StatusLine);
    }
    if !has_strict_frame(head) {
        return Err(BadResponse::LineEnd);
    }
    let mut room = [const { Room::uninit() }; STACK_FIELDS];
    match tokenise(head, &mut room[..limits.fields.min(STACK_FIELDS)]) {
        Err(BadResponse::TooManyFields) if limits.fields > STACK_FIELDS => {
            let mut room = vec![Room::uninit(); limits.fields];
            fill(head, &tokenise(head, &mut room)?, limits, out)?;
        }
        tokens => fill(head, &tokens?, limits, out)?,
    }
    if *request_method == Method::HEAD {
        out.body = BodyLength::Empty;
    }
    if out.body == BodyLength::UntilClose {
        out.keep_alive = false;
    }
    Ok(())
}

type Tokens<'h, 'b> = httparse::Response<'h, 'b>;

/// Splits the head; it must be all of `head`.
fn tokenise<'h, 'b>(head: &'b [u8], room: &'h mut [Room<'b>]) -> Result<Tokens<'h, 'b>, BadResponse> {
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut response, head, room) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => Ok(response),
        Ok(_) | Err(httparse::Error::HeaderName | httparse::Error::HeaderValue) => Err(BadResponse::Field),
        Err(httparse::Error::TooManyHeaders) => Err(BadResponse::TooManyFields),
        Err(httparse::Error::Version) => Err(BadResponse::Version),
        Err(httparse::Error::NewLine) => Err(BadResponse::LineEnd),
        Err(httparse::Error::Status | httparse::Error::Token) => Err(BadResponse::StatusLine),
    }
}

fn fill<'b>(
    head: &'b [u8],
    response: &Tokens<'_, 'b>,
    limits: &HeadLimits,
    out: &mut ResponseHead,
) -> Result<(), BadResponse> {
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    out.status = status.ok_or(BadResponse::StatusLine)?;
    out.version = if response.version == Some(1) { Version::Http11 } else { Version::Http10 };
    let mut said = Said::default();
    let loader = Loader::new(head, &mut out.fields);
    for header in response.headers.iter() {
        if header.name.len() + header.value.len() > limits.field_bytes {
            return Err(BadResponse::HeadTooLarge);
        }
        let id = loader.push(header, &mut out.fields).map_err(|BareLineFeed| BadResponse::LineEnd)?;
        if !said.take(id, head, header.value)? {
            out.fields.pop();
        }
    }
    let Said { length, hop } = said;
    hop.remove_named(response.headers, &mut out.fields);
    let http11 = out.version == Version::Http11;
    out.keep_alive = !hop.close && (http11 || hop.keep_alive);
    if out.status == StatusCode::SWITCHING_PROTOCOLS {
        out.upgrade = hop.upgrade_protocol();
    }
    let framing = length.framing().map_err(bad_length)?;
    if framing == Framing::Chunked && !http11 {
        return Err(BadResponse::TransferEncoding);
    }
    settle_body(framing, out)
}

/// What the fields say about framing and this hop.
#[derive(Default)]
struct Said<'b> {
    length: Length<'b>,
    hop: Hop<'b>,
}

impl<'b> Said<'b> {
    /// Notes what a known field says; whether it stays among the fields that pass on.
    fn take(&mut self, id: FieldId, head: &[u8], value: &'b [u8]) -> Result<bool, BadResponse> {
        match id {
            FieldId::ContentLength => return self.length.content_length(value).map_err(bad_length),
            FieldId::TransferEncoding => self.length.transfer_encoding(head, value).map_err(bad_length)?,
            FieldId::Connection => {
                self.hop.connection(value).map_err(|_| BadResponse::ConnectionOptions)?;
            }
            FieldId::Upgrade => self.hop.upgrade(value),
            FieldId::KeepAlive | FieldId::ProxyConnection | FieldId::Te | FieldId::Http2Settings => {}
            _ => return Ok(true),
        }
        Ok(false)
    }
}

fn bad_length(error: LengthError) -> BadResponse {
    match error {
        LengthError::ContentLength => BadResponse::ContentLength,
        LengthError::TransferEncoding | LengthError::UnsupportedCoding => BadResponse::TransferEncoding,
        LengthError::Both => BadResponse::TwoLengths,
    }
}

/// Decides the body by status and framing (RFC 9112 §6.3), leaving HEAD aside.
fn settle_body(framing: Framing, out: &mut ResponseHead) -> Result<(), BadResponse> {
    let says_body = !matches!(framing, Framing::Unsaid | Framing::Exact(0));
    let bodiless = out.status.is_informational() || out.status == StatusCode::NO_CONTENT;
    if bodiless {
        if says_body && out.status.is_informational() {
            return Err(BadResponse::InterimWithBody);
        }
        // A 204 that announces a body may well send it: nothing behind it can be trusted.
        out.keep_alive &= !says_body;
        out.fields.remove(b"content-length");
    }
    out.body = match framing {
        _ if bodiless || out.status == StatusCode::NOT_MODIFIED => BodyLength::Empty,
        Framing::Unsaid => BodyLength::UntilClose,
        Framing::Exact(bytes) => BodyLength::Exact(bytes),
        Framing::Chunked => BodyLength::Streamed,
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::{encode, head::Underscores};
    use proptest::prelude::*;

    const LIMITS: HeadLimits = HeadLimits {
        head_bytes: 32 << 10,
        uri_bytes: 8 << 10,
        field_bytes: 16 << 10,
        fields: 100,
        underscores: Underscores::Drop,
    };

    fn parse_to(
        method: &Method,
        raw: impl AsRef<[u8]>,
        limits: &HeadLimits,
    ) -> Result<ResponseHead, BadResponse> {
        let mut head = ResponseHead::default();
        parse_response(raw.as_ref(), limits, method, &mut head).map(|()| head)
    }

    fn parse(raw: impl AsRef<[u8]>) -> Result<ResponseHead, BadResponse> {
        parse_to(&Method::GET, raw, &LIMITS)
    }

    /// A response of this status and these lines.
    fn response(status: u16, lines: &str) -> String {
        format!("HTTP/1.1 {status} X\r\n{lines}\r\n\r\n")
    }

    fn fields_of(head: &ResponseHead) -> String {
        let mut wire = Vec::new();
        head.fields.write_lines(&mut wire, |_| true);
        String::from_utf8(wire).unwrap()
    }

    #[track_caller]
    fn refuses(raw: impl AsRef<[u8]>, error: BadResponse) {
        let shown = raw.as_ref().escape_ascii().to_string();
        assert_eq!(parse(raw).map(|head| format!("{head:?}")), Err(error), "{shown}");
    }

    #[test]
    fn rejects_bad_status_lines() {
        for line in [
            "HTTP/1.1",
            "HTTP/1.1 ",
            "HTTP/1.1 20",
            "HTTP/1.1 2000 OK",
            "HTTP/1.1 2x0 OK",
            "HTTP/1.1  200 OK",
            "HTTP/1.1 200\tOK",
            "HTTP/1.1\t200 OK",
            "HTTP/1.1 099 X",
            "HTTP/1.1 000 X",
            "HTTP/1.1 +20 X",
            "HTTP/1.1 -20 X",
            "HTTP 200 OK",
            " HTTP/1.1 200 OK",
            "ICY 200 OK",
            "",
            "HTTP/1.1 200 O\x01K",
            "HTTP/1.1 200 O\0K",
            "200 OK",
            "\r\nHTTP/1.1 200 OK",
        ] {
            let parsed = parse(format!("{line}\r\n\r\n"));
            assert!(
                matches!(parsed, Err(BadResponse::StatusLine | BadResponse::Version)),
                "{line}: {parsed:?}"
            );
        }
        for version in ["HTTP/1.2", "HTTP/2.0", "HTTP/2", "HTTP/0.9", "HTTP/01.1", "HTTP/1.10"] {
            refuses(format!("{version} 200 OK\r\n\r\n"), BadResponse::Version);
        }
    }

    #[test]
    fn takes_any_three_digit_status_and_any_phrase() {
        for (line, status) in [
            ("HTTP/1.1 200", 200),
            ("HTTP/1.1 200 ", 200),
            ("HTTP/1.1 404 Not Found", 404),
            ("HTTP/1.1 599 \u{e9}", 599),
            ("HTTP/1.1 999 Request denied", 999),
            ("HTTP/1.0 100 Continue", 100),
        ] {
            assert_eq!(parse(format!("{line}\r\n\r\n")).unwrap().status.as_u16(), status);
        }
    }

    #[test]
    fn rejects_two_lengths() {
        for lines in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Transfer-Encoding: chunked\r\nContent-Length: 0",
        ] {
            for status in [200, 304] {
                refuses(response(status, lines), BadResponse::TwoLengths);
            }
        }
        for lines in
            ["Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5\r\nX: y\r\nContent-Length: 05"]
        {
            refuses(response(200, lines), BadResponse::ContentLength);
        }
    }

    #[test]
    fn rejects_lengths_that_are_no_plain_number() {
        for value in ["", "+5", "-0", "5,5", "5, 6", "0x5", "1_0", "5 5", "9223372036854775808", "a"] {
            refuses(response(200, &format!("Content-Length: {value}")), BadResponse::ContentLength);
        }
    }

    #[test]
    fn rejects_codings_other_than_chunked() {
        for lines in [
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, gzip",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding:",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding:\tchunked",
            "Transfer-Encoding: chunked\t",
        ] {
            refuses(response(200, lines), BadResponse::TransferEncoding);
        }
        refuses("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", BadResponse::TransferEncoding);
    }

    #[test]
    fn rejects_bare_line_ends_and_nul() {
        for raw in [
            "HTTP/1.1 200 OK\n\r\n",
            "HTTP/1.1 200 OK\nX-A: b\r\n\r\n",
            "HTTP/1.1 200\n\r\n",
            "HTTP/1.1 200 OK\r\nX-A: b\n\r\n",
            "HTTP/1.1 200 OK\r\nX-A: b \n\r\n",
            "HTTP/1.1 200 OK\r\nX-A:\nX-B: c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX-A: b\r\n\n",
            "HTTP/1.1 200 OK\n\n",
        ] {
            refuses(raw, BadResponse::LineEnd);
        }
        for raw in [
            "HTTP/1.1 200 OK\r\nX-A: b\rc\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX-A: b\0\r\n\r\n",
            "HTTP/1.1 200 OK\rX-A: b\r\n\r\n",
            "HTTP/1.1 200 O\rK\r\n\r\n",
        ] {
            assert!(parse(raw).is_err(), "{}", raw.escape_debug());
        }
    }

    #[test]
    fn rejects_malformed_field_lines() {
        for lines in [
            "X-A: b\r\n folded",
            " X-A: b",
            "X-A : b",
            "X A: b",
            ": b",
            "X-A",
            "X(A): b",
            "X-A: b\x01",
            "X-A: \x7f",
        ] {
            refuses(response(200, lines), BadResponse::Field);
        }
    }

    #[test]
    fn rejects_an_interim_response_with_a_body() {
        refuses(response(100, "Content-Length: 5"), BadResponse::InterimWithBody);
        refuses(response(101, "Transfer-Encoding: chunked"), BadResponse::InterimWithBody);
        let head = parse(response(103, "Link: x\r\nContent-Length: 0")).unwrap();
        assert_eq!((head.body, fields_of(&head).as_str()), (BodyLength::Empty, "link: x\r\n"));
    }

    #[test]
    fn knows_which_responses_have_no_body() {
        for (method, status, lines, body, fields, keep_alive) in [
            (Method::HEAD, 200, "Content-Length: 5", BodyLength::Empty, "content-length: 5\r\n", true),
            (Method::HEAD, 200, "Transfer-Encoding: chunked", BodyLength::Empty, "", true),
            (Method::HEAD, 200, "X-A: b", BodyLength::Empty, "x-a: b\r\n", true),
            (Method::GET, 304, "Content-Length: 5", BodyLength::Empty, "content-length: 5\r\n", true),
            (Method::GET, 204, "Content-Length: 0", BodyLength::Empty, "", true),
            (Method::GET, 204, "Content-Length: 5", BodyLength::Empty, "", false),
            (Method::GET, 204, "Transfer-Encoding: chunked", BodyLength::Empty, "", false),
            (Method::GET, 200, "Content-Length: 0", BodyLength::Exact(0), "content-length: 0\r\n", true),
            (
                Method::GET,
                200,
                "Content-Length: 5\r\nContent-Length: 5",
                BodyLength::Exact(5),
                "content-length: 5\r\n",
                true,
            ),
            (Method::GET, 200, "Transfer-Encoding: chunked", BodyLength::Streamed, "", true),
            (Method::GET, 200, "Connection: keep-alive", BodyLength::UntilClose, "", false),
            (Method::HEAD, 200, "Connection: close", BodyLength::Empty, "", false),
        ] {
            let head = parse_to(&method, response(status, lines), &LIMITS).unwrap();
            assert_eq!(
                (head.body, fields_of(&head).as_str(), head.keep_alive),
                (body, fields, keep_alive),
                "{lines}"
            );
        }
    }

    #[test]
    fn keeps_alive_by_version_and_connection() {
        for (version, connection, expected) in
            [("1.1", "x", true), ("1.1", "close", false), ("1.0", "x", false), ("1.0", "keep-alive", true)]
        {
            let raw =
                format!("HTTP/{version} 200 OK\r\nContent-Length: 0\r\nConnection: {connection}\r\n\r\n");
            assert_eq!(parse(raw).unwrap().keep_alive, expected);
        }
    }

    #[test]
    fn strips_what_belongs_to_the_hop() {
        let head = parse(response(
            200,
            "Connection: X-Hop, set-cookie\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nUpgrade: h2c\r\n\
             Set-Cookie: a\r\nSet-Cookie: b\r\nX_Y: z\r\nContent-Length: 3",
        ))
        .unwrap();
        assert_eq!(fields_of(&head), "set-cookie: a\r\nset-cookie: b\r\nx_y: z\r\ncontent-length: 3\r\n");
        assert_eq!(head.upgrade, None);
    }

    #[test]
    fn tells_to_what_a_101_switches() {
        let head =
            parse(response(101, "Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x"))
                .unwrap();
        assert_eq!(head.upgrade.as_deref(), Some("websocket"));
        assert_eq!(head.body, BodyLength::Empty);
        assert_eq!(parse(response(101, "Upgrade: websocket")).unwrap().upgrade, None);
    }

    #[test]
    fn holds_each_limit_to_the_byte() {
        let raw = b"HTTP/1.1 200 OK\r\nName: value\r\nA: b\r\n\r\n";
        let exact = HeadLimits { head_bytes: raw.len(), field_bytes: 9, fields: 2, ..LIMITS };
        let with = |limits: HeadLimits| parse_to(&Method::GET, raw, &limits).map(drop);
        assert_eq!(with(exact), Ok(()));
        assert_eq!(with(HeadLimits { head_bytes: raw.len() - 1, ..exact }), Err(BadResponse::HeadTooLarge));
        assert_eq!(with(HeadLimits { field_bytes: 8, ..exact }), Err(BadResponse::HeadTooLarge));
        assert_eq!(with(HeadLimits { fields: 1, ..exact }), Err(BadResponse::TooManyFields));
        assert_eq!(
            with(HeadLimits { head_bytes: raw.len() + 1, field_bytes: 10, fields: 3, ..exact }),
            Ok(())
        );
        let many = response(200, &vec!["X-A: b"; 300].join("\r\n"));
        assert_eq!(
            parse_to(&Method::GET, &many, &HeadLimits { fields: 300, ..LIMITS }).unwrap().fields.len(),
            300
        );
        assert_eq!(
            parse_to(&Method::GET, &many, &HeadLimits { fields: 299, ..LIMITS }).map(drop),
            Err(BadResponse::TooManyFields)
        );
        refuses(
            response(200, &format!("Connection: {}", ["x"; 33].join(","))),
            BadResponse::ConnectionOptions,
        );
    }

    #[test]
    fn rejects_a_head_that_is_cut_short_or_has_bytes_behind_it() {
        let whole = response(200, "X-A: b");
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_err(), "{len}");
        }
        assert!(parse(format!("{whole}x")).is_err());
        assert!(parse(format!("{whole}{whole}")).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_parsed(
            status in 200..=999_u16,
            length in proptest::option::of(any::<u32>()),
            fields in proptest::collection::vec(("x-[a-z0-9_-]{1,20}", "([!-~]([ -~]{0,30}[!-~])?)?"), 0..20),
        ) {
            prop_assume!(status != 204 && status != 304);
            let status = StatusCode::from_u16(status).unwrap();
            let mut wire = Vec::new();
            encode::write_status_line(&mut wire, status);
            for (name, value) in &fields {
                encode::write_field(&mut wire, name, value.as_bytes());
            }
            match length {
                Some(length) => encode::write_content_length(&mut wire, length.into()),
                None => encode::write_transfer_encoding_chunked(&mut wire),
            }
            encode::end_head(&mut wire);
            let mut head = parse(&wire).unwrap();
            prop_assert_eq!(head.status, status);
            prop_assert_eq!(head.body, length.map_or(BodyLength::Streamed, |length| BodyLength::Exact(length.into())));
            head.fields.remove(b"content-length");
            let sent = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            prop_assert!(head.fields.iter().map(|(_, name, value)| (name, value)).eq(sent));
        }

        #[test]
        fn no_bytes_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&raw);
            let _ = parse([b"HTTP/1.1 200 OK\r\n", &raw[..], b"\r\n\r\n"].concat());
        }
    }
}
