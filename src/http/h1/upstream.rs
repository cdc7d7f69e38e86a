//! The backends' side of HTTP/1: requests out, responses in.

use std::task::{Context, Poll, ready};

use http::Method;

use super::{
    connection::{Connection, Framing, HeadError},
    encode,
    framing::{BodyDecoder, BodyLimits},
    head::{HeadLimits, Underscores},
    response::parse_response,
};
use crate::http::message::{BodyLength, ResponseHead};

/// What came instead of a response.
#[derive(Debug)]
pub enum NoResponse {
    /// The backend closed or reset before the first byte of a response.
    ClosedBeforeFirstByte,
    /// It closed in the middle of the head.
    Closed,
    /// What it sent is not HTTP.
    Malformed,
}

/// Bounds on what a backend sends, so that a broken one costs no memory.
const RESPONSE_LIMITS: HeadLimits = HeadLimits {
    head_bytes: 64 * 1024,
    uri_bytes: 0,
    field_bytes: 64 * 1024,
    fields: 256,
    underscores: Underscores::Keep,
};
const RESPONSE_BODY_LIMITS: BodyLimits = BodyLimits {
    trailer_bytes: 64 * 1024,
    chunk_extension_bytes: 16 * 1024,
    fields: 256,
    underscores: Underscores::Keep,
};

impl Connection {
    /// Starts a request: its first line goes to the output, then what `fields` writes, then framing.
    pub fn send_request(
        &mut self,
        method: &Method,
        target: &str,
        body: BodyLength,
        fields: impl FnOnce(&mut Vec<u8>),
    ) {
        let out = self.output.bytes_mut();
        encode::write_request_line(out, method, target);
        fields(out);
        let framing = match body {
            // Some backends answer 411 to a POST that says nothing (RFC 9110 §8.6).
            BodyLength::Empty if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {
                encode::write_content_length(out, 0);
                Framing::Exact(0)
            }
            BodyLength::Empty | BodyLength::UntilClose => Framing::Exact(0),
            BodyLength::Exact(length) => {
                encode::write_content_length(out, length);
                Framing::Exact(length)
            }
            BodyLength::Streamed => {
                encode::write_transfer_encoding_chunked(out);
                Framing::Chunked
            }
        };
        out.extend_from_slice(b"\r\n");
        self.begin_outgoing(framing);
    }

    /// Waits for the next response head, interim or final, to a request of this method.
    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), NoResponse>> {
        let length = match ready!(self.poll_head(cx, RESPONSE_LIMITS.head_bytes)) {
            Ok(Some(length)) => length,
            Ok(None) => return Poll::Ready(Err(NoResponse::ClosedBeforeFirstByte)),
            Err(HeadError::TooLarge) => return Poll::Ready(Err(NoResponse::Malformed)),
            Err(HeadError::Io) if self.input.is_empty() => {
                return Poll::Ready(Err(NoResponse::ClosedBeforeFirstByte));
            }
            Err(HeadError::Truncated | HeadError::Io) => return Poll::Ready(Err(NoResponse::Closed)),
        };
        head.clear();
        if parse_response(&self.input.data()[..length], &RESPONSE_LIMITS, method, head).is_err() {
            return Poll::Ready(Err(NoResponse::Malformed));
        }
        self.begin_incoming(length, BodyDecoder::new(head.body, RESPONSE_BODY_LIMITS));
        Poll::Ready(Ok(()))
    }
}
