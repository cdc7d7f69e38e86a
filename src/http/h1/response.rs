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
