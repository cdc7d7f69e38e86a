//! From the bytes of one request head to a `RequestHead`, or to the reason why not.
//!
//! Syntax by httparse, line ends by a pass of our own, meaning (framing, host, target, hop-by-hop
//! fields) here. Whatever could be read in two ways is refused: RFC 9112 §11.2.

use http::Method;
use httparse::Header;

use super::{
    head::{HeadLimits, Room, STACK_FIELDS, Underscores, has_strict_line_ends},
    hop::Hop,
    length::{Framing, Length, LengthError},
};
use crate::{
    error::Reason,
    http::{
        fields::FieldId,
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
    if !lines.first().is_some_and(u8::is_ascii_uppercase) || !has_strict_line_ends(lines) {
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
    let said = collect(lines, request.headers, limits, out)?;
    out.method = target::parse_method(method.as_bytes())?;
    out.body = body_length(&said.length, out)?;
    settle(&said, request.headers, out);
    target::parse_h1(raw_target.as_bytes(), said.host, out)
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
    for header in headers {
        let (name, value) = (header.name.as_bytes(), header.value);
        if name.len() + value.len() > limits.field_bytes {
            return Err(Reason::HeadTooLarge);
        }
        let passes = match out.fields.push(name, value) {
            FieldId::Other => limits.underscores == Underscores::Keep || !name.contains(&b'_'),
            id => said.take(id, lines, value)?,
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

    #[test]
    fn smoke() {
        let limits = HeadLimits { head_bytes: 32768, uri_bytes: 8192, field_bytes: 16384, fields: 100, underscores: Underscores::Drop };
        let mut out = RequestHead::default();
        parse_request(b"GET /a/../%62?x HTTP/1.1\r\nHost: A.b:80\r\nX-Y:  z \r\nConnection: close, foo\r\nfoo: 1\r\n\r\n", &limits, &mut out).unwrap();
        println!("{out:?}");
        let mut wire = Vec::new();
        out.fields.write_lines(&mut wire, |_| true);
        assert_eq!(wire, b"x-y: z\r\n");
        assert_eq!(out.target, "/b?x");
    }
}
