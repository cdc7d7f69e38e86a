//! From the bytes of one request head to a `RequestHead`, or to the reason why not.
//!
//! Syntax by httparse, line ends by a check of our own, meaning (framing, host, target, hop-by-hop
//! fields) here. Whatever could be read in two ways is refused: RFC 9112 §11.2.

use http::Method;
use httparse::Header;

use super::{
    head::{BareLineFeed, HeadLimits, Loader, Room, STACK_FIELDS, has_strict_frame},
    hop::Hop,
    length::{Framing, Length, LengthError},
};
use crate::{
    error::Reason,
    http::{
        fields::{FieldId, may_pass},
        message::{BodyLength, RequestHead, Version},
        target,
    },
};

/// Parses one whole request head, as [`find_head_end`](super::head::find_head_end) delimits it.
///
/// One CRLF before the request line is skipped (RFC 9112 §2.2). `out` is cleared first and holds
/// nothing of use after an error. Hop-by-hop fields, `host`, `expect` and `upgrade` are not in
/// `out.fields` but in what they say; `te` remains only as `trailers`. Errors: `BadRequest`,
/// `UriTooLong`, `HeadTooLarge`, `MethodNotAllowed`, `NotImplemented`. Cost: no allocation once
/// `out` has grown, except for an upgrade and beyond 128 fields.
pub fn parse_request(head: &[u8], limits: &HeadLimits, out: &mut RequestHead) -> Result<(), Reason> {
    out.clear();
    let lines = head.strip_prefix(b"\r\n").unwrap_or(head);
    // httparse skips any number of empty lines.
    if !lines.first().is_some_and(u8::is_ascii_uppercase) || !has_strict_frame(lines) {
        return Err(Reason::BadRequest);
    }
    let mut room = [const { Room::uninit() }; STACK_FIELDS];
    match tokenise(lines, &mut room[..limits.fields.min(STACK_FIELDS)]) {
        Err(httparse::Error::TooManyHeaders) if limits.fields > STACK_FIELDS => {
            let mut room = vec![Room::uninit(); limits.fields];
            fill(lines, tokenise(lines, &mut room), limits, out)
        }
        tokens => fill(lines, tokens, limits, out),
    }
}

/// Why a head that outgrew its limit before it ended is refused.
pub fn reason_for_overflow(partial: &[u8]) -> Reason {
    let lines = partial.strip_prefix(b"\r\n").unwrap_or(partial);
    if lines.contains(&b'\n') { Reason::HeadTooLarge } else { Reason::UriTooLong }
}

type Tokens<'h, 'b> = Result<httparse::Request<'h, 'b>, httparse::Error>;

/// Splits the head; `lines` must be all of it.
fn tokenise<'h, 'b>(lines: &'b [u8], room: &'h mut [Room<'b>]) -> Tokens<'h, 'b> {
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(lines, room)? {
        httparse::Status::Complete(len) if len == lines.len() => Ok(request),
        _ => Err(httparse::Error::NewLine),
    }
}

fn fill<'b>(
    lines: &'b [u8],
    tokens: Tokens<'_, 'b>,
    limits: &HeadLimits,
    out: &mut RequestHead,
) -> Result<(), Reason> {
    let request = tokens.map_err(|error| match error {
        httparse::Error::TooManyHeaders => Reason::HeadTooLarge,
        _ => Reason::BadRequest,
    })?;
    let (Some(method), Some(raw_target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(Reason::BadRequest);
    };
    if raw_target.len() > limits.uri_bytes {
        return Err(Reason::UriTooLong);
    }
    if lines.len() > limits.head_bytes {
        return Err(Reason::HeadTooLarge);
    }
    out.version = if minor == 1 { Version::Http11 } else { Version::Http10 };
    let said = match collect(lines, request.headers, limits, out) {
        Ok(said) => said,
        Err(reason) => {
            // The first fields may name another client than all of them.
            out.fields.clear();
            return Err(reason);
        }
    };
    out.method = target::parse_method(method.as_bytes())?;
    out.body = body_length(&said.length, out)?;
    settle(&said, request.headers, out);
    target::parse_h1(raw_target, said.host, out)
}

/// What the fields say about host, framing and this hop.
#[derive(Default)]
struct Said<'b> {
    host: Option<&'b [u8]>,
    length: Length<'b>,
    hop: Hop<'b>,
    te_trailers: bool,
    expects_continue: bool,
}

/// Fills `out.fields` with what passes on and returns what does not.
fn collect<'b>(
    lines: &'b [u8],
    headers: &[Header<'b>],
    limits: &HeadLimits,
    out: &mut RequestHead,
) -> Result<Said<'b>, Reason> {
    let mut said = Said::default();
    let loader = Loader::new(lines, &mut out.fields);
    for header in headers {
        let (name, value) = (header.name.as_bytes(), header.value);
        if name.len() + value.len() > limits.field_bytes {
            return Err(Reason::HeadTooLarge);
        }
        let id = loader.push(header, &mut out.fields).map_err(|BareLineFeed| Reason::BadRequest)?;
        let passes = match id {
            FieldId::Other => may_pass(name, limits.underscores),
            _ => said.take(id, lines, value)?,
        };
        if !passes {
            out.fields.pop();
        }
    }
    Ok(said)
}

impl<'b> Said<'b> {
    /// Notes what a known field says; whether it stays among the fields that pass on.
    fn take(&mut self, id: FieldId, lines: &[u8], value: &'b [u8]) -> Result<bool, Reason> {
        match id {
            FieldId::Host if self.host.is_none() => self.host = Some(value),
            FieldId::ContentLength => return self.length.content_length(value).map_err(reason_of),
            FieldId::TransferEncoding => {
                self.length.transfer_encoding(lines, value).map_err(reason_of)?;
            }
            FieldId::Connection => self.hop.connection(value).map_err(|_| Reason::BadRequest)?,
            FieldId::Upgrade => self.hop.upgrade(value),
            FieldId::Te => self.te_trailers |= lists_trailers(value),
            FieldId::Expect if value.eq_ignore_ascii_case(b"100-continue") => self.expects_continue = true,
            // A second host; or an expectation that RFC 9110 §10.1.1 does not know: backends that
            // disagree about one disagree about where the body begins.
            FieldId::Host | FieldId::Expect => return Err(Reason::BadRequest),
            // `proxy` becomes HTTP_PROXY in CGI programs (CVE-2016-5385).
            FieldId::KeepAlive | FieldId::ProxyConnection | FieldId::Http2Settings | FieldId::Proxy => {}
            _ => return Ok(true),
        }
        Ok(false)
    }
}

fn reason_of(error: LengthError) -> Reason {
    match error {
        LengthError::UnsupportedCoding => Reason::NotImplemented,
        LengthError::ContentLength | LengthError::TransferEncoding | LengthError::Both => Reason::BadRequest,
    }
}

fn lists_trailers(te: &[u8]) -> bool {
    te.split(|byte| *byte == b',').any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn body_length(length: &Length<'_>, out: &RequestHead) -> Result<BodyLength, Reason> {
    let http10 = out.version == Version::Http10;
    match length.framing().map_err(reason_of)? {
        Framing::Chunked if http10 => Err(Reason::BadRequest),
        Framing::Chunked => Ok(BodyLength::Streamed),
        Framing::Exact(bytes) => Ok(BodyLength::Exact(bytes)),
        // Its body would end with the connection, which a request's can't (RFC 1945 §8.3).
        Framing::Unsaid if http10 && matches!(out.method, Method::POST | Method::PUT | Method::PATCH) => {
            Err(Reason::BadRequest)
        }
        Framing::Unsaid => Ok(BodyLength::Empty),
    }
}

/// Draws the conclusions of what was said, once version and body are known.
fn settle(said: &Said<'_>, headers: &[Header<'_>], out: &mut RequestHead) {
    let http11 = out.version == Version::Http11;
    let has_body = !matches!(out.body, BodyLength::Empty | BodyLength::Exact(0));
    out.keep_alive = !said.hop.close && (http11 || said.hop.keep_alive);
    out.expects_continue = said.expects_continue && http11 && has_body;
    if http11 && !has_body {
        out.upgrade = said.hop.upgrade_protocol();
    }
    said.hop.remove_named(headers, &mut out.fields);
    if said.te_trailers {
        out.fields.push(b"te", b"trailers");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{
        fields::{Fields, Underscores},
        h1::encode,
    };
    use proptest::prelude::*;

    const LIMITS: HeadLimits = HeadLimits {
        head_bytes: 32 << 10,
        uri_bytes: 8 << 10,
        field_bytes: 16 << 10,
        fields: 100,
        underscores: Underscores::Drop,
    };

    fn parse_with(raw: &[u8], limits: &HeadLimits) -> Result<RequestHead, Reason> {
        let mut head = RequestHead::default();
        parse_request(raw, limits, &mut head).map(|()| head)
    }

    fn parse(raw: impl AsRef<[u8]>) -> Result<RequestHead, Reason> {
        parse_with(raw.as_ref(), &LIMITS)
    }

    /// A GET with these lines behind its host.
    fn get(lines: &str) -> Vec<u8> {
        format!("GET / HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n\r\n").into_bytes()
    }

    fn fields_of(head: &RequestHead) -> String {
        let mut wire = Vec::new();
        head.fields.write_lines(&mut wire, |_| true);
        String::from_utf8(wire).unwrap()
    }

    #[track_caller]
    fn refuses(raw: impl AsRef<[u8]>, reason: Reason) {
        let shown = raw.as_ref().escape_ascii().to_string();
        assert_eq!(parse(raw).map(|head| format!("{head:?}")), Err(reason), "{shown}");
    }

    #[track_caller]
    fn refuses_each(lines: &[&str]) {
        for lines in lines {
            refuses(get(lines), Reason::BadRequest);
        }
    }

    #[test]
    fn rejects_content_length_with_transfer_encoding() {
        refuses_each(&[
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 0\r\nTransfer-Encoding: chunked",
            "TRANSFER-ENCODING: chunked\r\nX-A: b\r\ncontent-length: 5",
        ]);
    }

    #[test]
    fn rejects_a_transfer_encoding_other_than_one_chunked() {
        refuses_each(&[
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: chunkedx",
            "Transfer-Encoding: chunked, gzip",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked,",
            "Transfer-Encoding: ,chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: identity, chunked",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: gzip",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding: chunked;q=1",
            "Transfer-Encoding: x, chunked",
            "Transfer-Encoding:",
            "Transfer-Encoding: ",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nX-A: b\r\nTransfer-Encoding: x",
        ]);
    }

    #[test]
    fn rejects_odd_blanks_and_control_bytes_around_chunked() {
        refuses_each(&[
            "Transfer-Encoding:\tchunked",
            "Transfer-Encoding:  chunked",
            "Transfer-Encoding: chunked ",
            "Transfer-Encoding: chunked\t",
            "Transfer-Encoding: \x0bchunked",
            "Transfer-Encoding: chunked\x0c",
            "Transfer-Encoding:\n chunked",
            "Transfer-Encoding:\r\n chunked",
            "Transfer-Encoding : chunked",
            " Transfer-Encoding: chunked",
            "Transfer-Encoding: chunked\0",
            "Transfer-Encoding: chu\u{b}nked",
            "\x01Transfer-Encoding: chunked",
            "Transfer-Encoding\x00: chunked",
            "Transfer-Encoding: \u{a0}chunked",
        ]);
    }

    #[test]
    fn answers_501_to_codings_it_does_not_have() {
        refuses(get("Transfer-Encoding: gzip, chunked"), Reason::NotImplemented);
        refuses(get("Transfer-Encoding: deflate,chunked"), Reason::NotImplemented);
    }

    #[test]
    fn rejects_a_content_length_that_is_no_plain_number() {
        let wrong = [
            "",
            "+5",
            "-0",
            "-1",
            "5,5",
            "5, 5",
            "5, 6",
            "0x5",
            "1_0",
            "5 5",
            "5.0",
            "5e1",
            "5;",
            "a",
            "\"5\"",
            "5\0",
            "9223372036854775808",
            "18446744073709551616",
            "99999999999999999999",
            "00000000000000000005",
            "\u{665}",
        ];
        for value in wrong {
            refuses(get(&format!("Content-Length: {value}")), Reason::BadRequest);
        }
    }

    #[test]
    fn rejects_two_content_lengths_that_differ() {
        refuses_each(&[
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5\r\ncontent-length: 05",
            "Content-Length: 0\r\nX-A: b\r\nContent-Length: 1",
            "Content-Length: 5\r\nContent-Length: ",
            "Content-Length: 5\r\nContent-Length: 5\r\nContent-Length: 6",
        ]);
    }

    #[test]
    fn takes_two_equal_content_lengths_for_one() {
        let head = parse(get("Content-Length: 5\r\nContent-Length: 5")).unwrap();
        assert_eq!((head.body, fields_of(&head).as_str()), (BodyLength::Exact(5), "content-length: 5\r\n"));
    }

    #[test]
    fn takes_the_largest_content_length() {
        let head = parse(get("Content-Length: 9223372036854775807")).unwrap();
        assert_eq!(head.body, BodyLength::Exact((1 << 63) - 1));
    }

    #[test]
    fn rejects_transfer_encoding_in_http_1_0() {
        refuses("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Reason::BadRequest);
        refuses(
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n",
            Reason::BadRequest,
        );
    }

    #[test]
    fn rejects_a_request_body_that_ends_with_the_connection() {
        for method in ["POST", "PUT", "PATCH"] {
            refuses(format!("{method} / HTTP/1.0\r\nHost: a\r\n\r\n"), Reason::BadRequest);
        }
        assert_eq!(parse("GET / HTTP/1.0\r\n\r\n").unwrap().body, BodyLength::Empty);
    }

    #[test]
    fn rejects_bare_lf_line_ends() {
        for raw in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nX-A: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX-A:\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\n\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\n\n",
        ] {
            refuses(raw, Reason::BadRequest);
        }
    }

    #[test]
    fn rejects_bare_cr_and_nul() {
        for raw in [
            "GET / HTTP/1.1\rHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX-A\r: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\r",
            "GET / HTTP/1.1\r\nHost: a\r\nX-A: \0\r\n\r\n",
            "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET\0 / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\0\r\nHost: a\r\n\r\n",
            "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            refuses(raw, Reason::BadRequest);
        }
    }

    #[test]
    fn rejects_malformed_field_lines() {
        refuses_each(&[
            "X-A: b\r\n folded",
            "X-A: b\r\n\tfolded",
            " X-A: b",
            "X-A : b",
            "X-A\t: b",
            "X A: b",
            ": b",
            "X-A",
            "X-A b",
            "X(A): b",
            "X-\u{e9}: b",
            "X-A/: b",
            "\"X-A\": b",
            "X-A: b\x01c",
            "X-A: b\x0bc",
            "X-A: b\x7f",
            "X-A: \x1b[2J",
        ]);
        refuses("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Reason::BadRequest);
    }

    #[test]
    fn takes_tabs_and_high_bytes_inside_a_value() {
        let raw = b"GET / HTTP/1.1\r\nHost: a\r\nX-A: \t b\tc\xff \r\nX-Empty:\r\n\r\n";
        let head = parse(raw).unwrap();
        assert_eq!(head.fields.find(b"x-a"), Some(&b"b\tc\xff"[..]));
        assert_eq!(head.fields.find(b"x-empty"), Some(&b""[..]));
    }

    #[test]
    fn rejects_malformed_request_lines() {
        for line in [
            "GET /",
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            " GET / HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET\t/\tHTTP/1.1",
            "GET / HTTP/1.2",
            "GET / HTTP/2.0",
            "GET / HTTP/0.9",
            "GET / http/1.1",
            "GET / HTTP/1.10",
            "GET / HTTP/01.1",
            "GET / HTTP/1",
            "GET / ",
            "GET",
            "",
            "/ HTTP/1.1",
            "G@T / HTTP/1.1",
            "get / HTTP/1.1",
            "GeT / HTTP/1.1",
            "GET / HTTP/1.1 x",
            "GET /a b HTTP/1.1",
            "GET x HTTP/1.1",
            "GET * HTTP/1.1",
            "GET a.example HTTP/1.1",
            "GET a.example:80 HTTP/1.1",
            "GET ? HTTP/1.1",
            "GET ftp://a.example/ HTTP/1.1",
            "PRI * HTTP/2.0",
            "G!T / HTTP/1.1",
            "GET / HTTP\\1.1",
            "GET / FTP/1.1",
        ] {
            refuses(format!("{line}\r\nHost: a.example\r\n\r\n"), Reason::BadRequest);
        }
        refuses("PRI * HTTP/2.0\r\n\r\n", Reason::BadRequest);
    }

    #[test]
    fn rejects_bytes_in_the_target_that_no_url_holds() {
        for target in [
            &b"/a#b"[..],
            b"/#",
            b"/?a#b",
            b"/\xff",
            b"/\xc3\xa9",
            b"/?\xc3\xa9",
            b"/a\tb",
            b"/\x7f",
            b"/\x01",
            b"/a\\b",
        ] {
            let raw = [b"GET ", target, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
            refuses(raw, Reason::BadRequest);
        }
    }

    #[test]
    fn rejects_a_missing_doubled_or_malformed_host() {
        refuses("GET / HTTP/1.1\r\n\r\n", Reason::BadRequest);
        refuses("GET / HTTP/1.1\r\nX-A: b\r\n\r\n", Reason::BadRequest);
        refuses("GET http://a/ HTTP/1.1\r\n\r\n", Reason::BadRequest);
        refuses("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Reason::BadRequest);
        refuses("GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", Reason::BadRequest);
        refuses("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", Reason::BadRequest);
        for host in [
            "",
            " ",
            "a,b",
            "a@b",
            "a/b",
            "a?b",
            "a#b",
            "a b",
            "a:0",
            "a:65536",
            "a:",
            "a:b",
            "a:80:80",
            "a:+80",
            "a:080",
            "a:99999999999999999999",
            ".",
            ".a",
            "a..b",
            "a..",
            "a%41",
            "a\\b",
            "[::1",
            "::1",
            "[::1]x",
            "[::g]",
            "[]",
            "[v1.a]",
            "[::1%25eth0]",
            "[::1]:0",
            "a\u{e9}",
            ":80",
            "a;b",
            "user:pw@a",
            "http://a",
        ] {
            refuses(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), Reason::BadRequest);
            refuses(format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n"), Reason::BadRequest);
        }
    }

    #[test]
    fn rejects_an_absolute_target_whose_host_is_not_the_host() {
        for (target, host) in [
            ("http://b.example/", "a.example"),
            ("http://a.example:8080/", "a.example"),
            ("http://a.example/", "a.example:8080"),
            ("https://a.example:80/", "a.example"),
            ("http://user@a.example/", "a.example"),
            ("http:///", "a.example"),
            ("http://", "a.example"),
            ("http://a.example#/", "a.example"),
            ("http:a.example/", "a.example"),
        ] {
            refuses(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"), Reason::BadRequest);
        }
    }

    #[test]
    fn takes_an_absolute_target_apart() {
        for (method, target, host, expected) in [
            ("GET", "http://A.example:80/x?y", "a.example", "/x?y"),
            ("GET", "HTTPS://a.example", "a.example:443", "/"),
            ("GET", "http://a.example?y", "a.example", "/?y"),
            ("OPTIONS", "http://a.example", "a.example", "*"),
            ("OPTIONS", "http://a.example/", "a.example", "/"),
        ] {
            let head = parse(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap();
            assert_eq!((head.host.as_str(), head.target.as_str()), ("a.example", expected), "{target}");
        }
        let head = parse("GET http://a.example:81/ HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!((head.host.as_str(), head.port), ("a.example", Some(81)));
    }

    #[test]
    fn refuses_connect_and_trace() {
        for raw in [
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
            "CONNECT / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "TRACE / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        ] {
            refuses(raw, Reason::MethodNotAllowed);
        }
    }

    #[test]
    fn rejects_expectations_it_does_not_know() {
        refuses_each(&["Expect: y 100-continue", "Expect: 100-continue, x", "Expect: 200-ok", "Expect:"]);
    }

    #[test]
    fn expects_continue_only_where_a_body_follows_in_http_1_1() {
        let head = parse(get("Expect: 100-Continue\r\nContent-Length: 5")).unwrap();
        assert!(head.expects_continue);
        assert_eq!(fields_of(&head), "content-length: 5\r\n");
        assert!(!parse(get("Expect: 100-continue")).unwrap().expects_continue);
        let old = "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
        assert!(!parse(old).unwrap().expects_continue);
    }

    #[test]
    fn drops_names_with_underscores_unless_told_to_keep_them() {
        let raw =
            get("X_Forwarded_For: 1.2.3.4\r\nContent_Length: 5\r\nX-B: c\r\nTransfer_Encoding: chunked");
        let head = parse(&raw).unwrap();
        assert_eq!((fields_of(&head).as_str(), head.body), ("x-b: c\r\n", BodyLength::Empty));
        let raw = get("X_Forwarded_For: 1.2.3.4\r\nX_Custom: 5\r\nContent.Length: 6");
        let keep = HeadLimits { underscores: Underscores::Keep, ..LIMITS };
        assert_eq!(fields_of(&parse_with(&raw, &keep).unwrap()), "x_custom: 5\r\n");
    }

    #[test]
    fn strips_hop_by_hop_fields_and_those_that_connection_names() {
        let head = parse(get(
            "Connection: close, X-Secret ,te\r\nX-Secret: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n\
             HTTP2-Settings: AAA\r\nUpgrade: h2c\r\nTE: gzip, Trailers\r\nProxy: evil\r\nX-B: c\r\nx-secret: 2",
        ))
        .unwrap();
        assert_eq!(fields_of(&head), "x-b: c\r\nte: trailers\r\n");
        assert!(!head.keep_alive);
    }

    #[test]
    fn connection_removes_no_field_that_frames_routes_or_identifies() {
        let named = "Connection: host, content-length, Authorization, cookie, X-Forwarded-For, forwarded, via, \
                     x-request-id, x-real-ip, content-type, transfer-encoding";
        let lines = "Content-Length: 5\r\nAuthorization: a\r\nCookie: b\r\nX-Forwarded-For: c\r\nForwarded: d\r\n\
                     Via: e\r\nX-Request-Id: f\r\nX-Real-IP: g\r\nContent-Type: h";
        let head = parse(get(&format!("{named}\r\n{lines}"))).unwrap();
        assert_eq!(head.fields.len(), 9);
        assert_eq!((head.host.as_str(), head.body), ("a.example", BodyLength::Exact(5)));
    }

    #[test]
    fn bounds_the_options_of_connection() {
        let options = |count| get(&format!("Connection: {}", vec!["x"; count].join(",")));
        assert!(parse(options(32)).is_ok());
        refuses(options(33), Reason::BadRequest);
        refuses(get(&"Connection: a,b,c,d,e\r\n".repeat(7)[..23 * 7 - 2]), Reason::BadRequest);
    }

    #[test]
    fn keeps_alive_by_version_and_connection() {
        for (version, connection, expected) in [
            ("1.1", "X-A: b", true),
            ("1.1", "Connection: Close", false),
            ("1.1", "Connection: keep-alive, close", false),
            ("1.1", "Connection: x\r\nConnection: close", false),
            ("1.0", "X-A: b", false),
            ("1.0", "Connection: Keep-Alive", true),
            ("1.0", "Connection: keep-alive\r\nConnection: close", false),
        ] {
            let head = parse(format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n\r\n")).unwrap();
            assert_eq!(head.keep_alive, expected, "{version} {connection}");
        }
    }

    #[test]
    fn upgrades_only_where_everything_asks_for_it() {
        let upgrade = |lines| parse(get(lines)).unwrap().upgrade;
        assert_eq!(
            upgrade("Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket"),
            Some("websocket".into())
        );
        assert_eq!(upgrade("Connection: upgrade\r\nUpgrade: a/13\r\nContent-Length: 0"), Some("a/13".into()));
        for lines in [
            "Upgrade: websocket",
            "Connection: upgrade",
            "Connection: upgrade\r\nUpgrade: h2c",
            "Connection: upgrade, http2-settings\r\nUpgrade: H2C\r\nHTTP2-Settings: AAA",
            "Connection: upgrade\r\nUpgrade: h2",
            "Connection: upgrade\r\nUpgrade: websocket, h2c",
            "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c",
            "Connection: upgrade\r\nUpgrade: ",
            "Connection: upgrade\r\nUpgrade: a/b/c",
            "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5",
            "Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked",
        ] {
            let head = parse(get(lines)).unwrap();
            assert_eq!(head.upgrade, None, "{lines}");
            assert_eq!(head.fields.get(FieldId::Upgrade), None, "{lines}");
        }
        let old = "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(parse(old).unwrap().upgrade, None);
    }

    #[test]
    fn tolerates_one_crlf_in_front_and_no_more() {
        assert!(parse("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").is_ok());
        refuses("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Reason::BadRequest);
        refuses("\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Reason::BadRequest);
        refuses("\r\n\r\n", Reason::BadRequest);
        refuses("\r\n", Reason::BadRequest);
        refuses("", Reason::BadRequest);
    }

    #[test]
    fn rejects_a_head_that_is_cut_short_or_has_bytes_behind_it() {
        let whole = get("X-A: b");
        for len in 0..whole.len() {
            refuses(&whole[..len], Reason::BadRequest);
        }
        refuses([&whole[..], b"x"].concat(), Reason::BadRequest);
        refuses([&whole[..], &whole[..]].concat(), Reason::BadRequest);
    }

    #[test]
    fn holds_each_limit_to_the_byte() {
        let raw = b"GET /12345678 HTTP/1.1\r\nHost: a\r\nName: value\r\n\r\n";
        let exact = HeadLimits { head_bytes: raw.len(), uri_bytes: 9, field_bytes: 9, fields: 2, ..LIMITS };
        assert!(parse_with(raw, &exact).is_ok());
        let over = |limits: HeadLimits| parse_with(raw, &limits).map(drop);
        assert_eq!(over(HeadLimits { head_bytes: raw.len() - 1, ..exact }), Err(Reason::HeadTooLarge));
        assert_eq!(over(HeadLimits { uri_bytes: 8, ..exact }), Err(Reason::UriTooLong));
        assert_eq!(over(HeadLimits { field_bytes: 8, ..exact }), Err(Reason::HeadTooLarge));
        assert_eq!(over(HeadLimits { fields: 1, ..exact }), Err(Reason::HeadTooLarge));
        let roomy =
            HeadLimits { head_bytes: raw.len() + 1, uri_bytes: 10, field_bytes: 10, fields: 3, ..LIMITS };
        assert!(parse_with(raw, &roomy).is_ok());
    }

    #[test]
    fn holds_the_number_of_fields_beyond_the_stack_too() {
        let raw = |count| get(&vec!["X-A: b"; count - 1].join("\r\n"));
        let limits = HeadLimits { fields: 300, ..LIMITS };
        for (count, fits) in [(127, true), (128, true), (129, true), (299, true), (300, true), (301, false)] {
            let parsed = parse_with(&raw(count), &limits).map(|head| head.fields.len());
            assert_eq!(parsed, if fits { Ok(count - 1) } else { Err(Reason::HeadTooLarge) });
        }
        refuses(raw(101), Reason::HeadTooLarge);
    }

    #[test]
    fn tells_an_endless_target_from_an_endless_head() {
        assert_eq!(reason_for_overflow(b"GET /aaaaaaaa"), Reason::UriTooLong);
        assert_eq!(reason_for_overflow(b"\r\nGET /aaaaaaaa"), Reason::UriTooLong);
        assert_eq!(reason_for_overflow(b"GET / HTTP/1.1\r\nX-A: aaaa"), Reason::HeadTooLarge);
    }

    #[test]
    fn a_reused_head_remembers_nothing() {
        let mut head = RequestHead::default();
        let first = get("Connection: close, upgrade\r\nUpgrade: websocket\r\nX-A: b");
        parse_request(&first, &LIMITS, &mut head).unwrap();
        parse_request(b"GET /x HTTP/1.0\r\n\r\n", &LIMITS, &mut head).unwrap();
        let fresh = parse("GET /x HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(format!("{head:?}"), format!("{fresh:?}"));
    }

    #[test]
    fn a_get_may_have_a_body() {
        assert_eq!(parse(get("Content-Length: 5")).unwrap().body, BodyLength::Exact(5));
        assert_eq!(parse(get("Transfer-Encoding: Chunked")).unwrap().body, BodyLength::Streamed);
        assert_eq!(parse(get("Transfer-Encoding:chunked")).unwrap().body, BodyLength::Streamed);
    }

    fn a_name() -> impl Strategy<Value = String> {
        "x-q[a-z0-9!#$%&'*+.^`|~-]{1,20}"
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_parsed(
            method in "[A-Z]{3,10}",
            path in "(/[a-z0-9~!$&'()*+,;=:@-]{0,8}){1,4}",
            query in proptest::option::of("[a-zA-Z0-9%&=/?+.-]{0,20}"),
            host in "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\\.[a-z]{2,5}){0,3}",
            port in proptest::option::of(1..=u16::MAX),
            fields in proptest::collection::vec((a_name(), "([!-~]([ -~]{0,30}[!-~])?)?"), 0..20),
        ) {
            prop_assume!(method != "CONNECT" && method != "TRACE");
            let target = query.map_or(path.clone(), |query| format!("{path}?{query}"));
            let mut sent = Fields::default();
            for (name, value) in &fields {
                sent.push(name.as_bytes(), value.as_bytes());
            }
            let mut wire = Vec::new();
            encode::write_request_line(&mut wire, &Method::from_bytes(method.as_bytes()).unwrap(), &target);
            let authority = port.map_or(host.clone(), |port| format!("{host}:{port}"));
            encode::write_field(&mut wire, "host", authority.as_bytes());
            encode::write_fields(&mut wire, &sent, |_| true);
            encode::end_head(&mut wire);
            let head = parse(&wire).unwrap();
            prop_assert_eq!(head.method.as_str(), &method);
            prop_assert_eq!(head.path(), &path);
            prop_assert_eq!(&head.target, &target);
            prop_assert_eq!((&head.host, head.port), (&host, port));
            prop_assert!(head.fields.iter().eq(sent.iter()));
        }

        #[test]
        fn no_bytes_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&raw);
            let _ = parse([b"GET / HTTP/1.1\r\nHost: a\r\n", &raw[..], b"\r\n\r\n"].concat());
        }

        /// One byte changed anywhere never makes two readings: what is accepted has one line end
        /// for each field, the blank line, and a body length that its fields state.
        #[test]
        fn what_is_accepted_is_forwarded_in_canonical_form(at in 0..66_usize, byte: u8) {
            let mut raw = b"POST /a/b HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\nX-A: b c\r\n\r\n".to_vec();
            raw[at] = byte;
            if let Ok(head) = parse(&raw) {
                let mut wire = Vec::new();
                encode::write_request_line(&mut wire, &head.method, &head.target);
                encode::write_field(&mut wire, "host", head.authority().as_bytes());
                encode::write_fields(&mut wire, &head.fields, |_| true);
                encode::end_head(&mut wire);
                let again = parse(&wire).unwrap();
                prop_assert_eq!(&again.target, &head.target);
                prop_assert_eq!(again.body, head.body);
                prop_assert!(again.fields.iter().eq(head.fields.iter()));
            }
        }
    }
}
