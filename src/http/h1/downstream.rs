//! The clients' side of HTTP/1: requests in, responses out.

use std::{
    io,
    task::{Context, Poll, ready},
};

use http::StatusCode;

use super::{
    connection::{Connection, Framing, HeadError, ReplyTo},
    encode,
    framing::{BodyDecoder, BodyLimits},
    head::HeadLimits,
    request::{parse_request, reason_for_overflow},
};
use crate::{
    error::Reason,
    http::{
        exchange::{BodyError, Downstream},
        fields::FieldId,
        message::{BodyLength, RequestHead, ResponseHead, Version},
    },
};

/// What came instead of a request.
#[derive(Debug)]
pub enum NoRequest {
    /// The client closed between requests, or the stream failed: nobody to answer.
    Closed,
    /// Answer with this and close.
    Refused(Reason),
}

impl Connection {
    /// Waits until the head of the next request is there; returns its length.
    pub fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        limits: &RequestLimits,
    ) -> Poll<Result<usize, NoRequest>> {
        Poll::Ready(match ready!(self.poll_head(cx, limits.head.head_bytes)) {
            Ok(Some(length)) => Ok(length),
            Ok(None) | Err(HeadError::Truncated | HeadError::Io) => Err(NoRequest::Closed),
            Err(HeadError::TooLarge) => Err(NoRequest::Refused(reason_for_overflow(self.input.data()))),
        })
    }

    /// Parses the head that `poll_request` found.
    ///
    /// # Errors
    /// The reason to refuse it with; where its body ends, if it has one, is then unknown.
    pub fn parse_request(
        &mut self,
        length: usize,
        limits: &RequestLimits,
        head: &mut RequestHead,
    ) -> Result<(), Reason> {
        parse_request(&self.input.data()[..length], &limits.head, head)?;
        self.reply_to = ReplyTo::new(head);
        self.begin_incoming(length, BodyDecoder::new(head.body, limits.body));
        Ok(())
    }

    /// Whether another request may follow: everything was read and sent, and neither side asked
    /// to close.
    pub fn may_continue(&self) -> bool {
        self.reply_to.keep_alive && self.incoming_ended()
    }

    /// Expects nothing more that could be understood: the next answer is the last.
    pub fn refuse_rest(&mut self) {
        self.reply_to =
            ReplyTo { version: Version::Http11, is_head: false, keep_alive: false, is_last: false };
    }

    fn write_head(&mut self, head: &ResponseHead) {
        let out = self.output.bytes_mut();
        encode::write_status_line(out, head.status);
        let framing = |id| matches!(id, FieldId::ContentLength | FieldId::TransferEncoding);
        encode::write_fields(out, &head.fields, |id| !framing(id));
    }

    /// Decides how the body is delimited and writes the fields that say so.
    fn write_framing(&mut self, head: &ResponseHead) -> Framing {
        let out = self.output.bytes_mut();
        let bodiless = self.reply_to.is_head || head.status == StatusCode::NOT_MODIFIED;
        match head.body {
            BodyLength::Exact(length) if !bodiless => {
                encode::write_content_length(out, length);
                Framing::Exact(length)
            }
            BodyLength::Empty | BodyLength::Exact(_) => {
                if let (true, Some(length)) = (bodiless, head.fields.get(FieldId::ContentLength)) {
                    encode::write_field(out, "content-length", length);
                } else if !bodiless && head.status != StatusCode::NO_CONTENT {
                    encode::write_content_length(out, 0);
                }
                Framing::Exact(0)
            }
            BodyLength::Streamed | BodyLength::UntilClose if bodiless => Framing::Exact(0),
            BodyLength::Streamed | BodyLength::UntilClose => match self.reply_to.version {
                Version::Http10 => {
                    self.reply_to.keep_alive = false;
                    Framing::UntilClose
                }
                Version::Http11 | Version::H2 => {
                    encode::write_transfer_encoding_chunked(out);
                    Framing::Chunked
                }
            },
        }
    }
}

impl Downstream for Connection {
    fn poll_hold(&mut self, cx: &mut Context<'_>, count: usize) -> Poll<Result<(), BodyError>> {
        self.poll_available(cx, count)
    }

    fn held(&self) -> usize {
        self.input.data().len()
    }

    fn send_interim(&mut self, head: &ResponseHead) -> io::Result<()> {
        if self.reply_to.version == Version::Http11 {
            self.write_head(head);
            self.output.bytes_mut().extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    fn send_head(&mut self, head: &ResponseHead) -> io::Result<()> {
        self.write_head(head);
        let framing = self.write_framing(head);
        let out = self.output.bytes_mut();
        match (self.reply_to.keep_alive, self.reply_to.version) {
            (false, _) => encode::write_field(out, "connection", b"close"),
            (true, Version::Http10) => encode::write_field(out, "connection", b"keep-alive"),
            (true, _) => {}
        }
        out.extend_from_slice(b"\r\n");
        self.begin_outgoing(framing);
        Ok(())
    }

    fn send_switching(&mut self, head: &ResponseHead, protocol: &str) -> io::Result<()> {
        self.write_head(head);
        let out = self.output.bytes_mut();
        encode::write_field(out, "connection", b"upgrade");
        encode::write_field(out, "upgrade", protocol.as_bytes());
        out.extend_from_slice(b"\r\n");
        self.reply_to.keep_alive = false;
        self.become_tunnel();
        Ok(())
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.incoming_ended() { self.poll_closed(cx) } else { Poll::Pending }
    }

    fn close_after_reply(&mut self) {
        self.reply_to.keep_alive = false;
    }

    fn abort(&mut self) {
        // The caller closes an HTTP/1 connection whose response is incomplete; without its final
        // chunk or its last bytes no client takes it for a whole one.
        self.reply_to.keep_alive = false;
        self.tear();
    }

    fn give_up(&mut self) {
        self.reply_to.keep_alive = false;
        self.give_up_stream();
    }
}

/// What a request may measure.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    pub head: HeadLimits,
    pub body: BodyLimits,
}
