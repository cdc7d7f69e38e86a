//! The clients' side of HTTP/2: one stream is one exchange.

use std::{
    io,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{Reason as Code, RecvStream, server::SendResponse};

use super::{
    convert,
    stream::{Incoming, Outgoing, io_error},
};
use crate::http::{
    exchange::{BodyError, Downstream, Exchange, Filled},
    fields::Fields,
    message::{BodyLength, ResponseHead},
};

#[derive(Debug)]
pub struct Stream {
    incoming: Incoming,
    respond: SendResponse<Bytes>,
    outgoing: Option<Outgoing>,
}

impl Stream {
    pub fn new(body: RecvStream, respond: SendResponse<Bytes>) -> Self {
        Stream { incoming: Incoming::new(body), respond, outgoing: None }
    }

    /// Resets the stream with the code that says why the request was refused before it was read.
    pub fn refuse(&mut self, code: Code) {
        self.respond.send_reset(code);
    }

    /// After the answer: tells a client that is still sending to stop, without an error
    /// (RFC 9113 §8.1).
    pub fn release(&mut self) {
        if !self.incoming.is_ended() {
            self.respond.send_reset(Code::NO_ERROR);
        }
    }

    fn outgoing(&mut self) -> io::Result<&mut Outgoing> {
        self.outgoing.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Exchange for Stream {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<Filled, BodyError>> {
        self.incoming.poll_fill(cx)
    }

    fn data(&self) -> &[u8] {
        self.incoming.data()
    }

    fn consume(&mut self, count: usize) {
        self.incoming.consume(count);
    }

    fn ends_with_data(&self) -> bool {
        self.incoming.ends_with_data()
    }

    fn trailers(&self) -> Option<&Fields> {
        self.incoming.trailers()
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8], last: bool) -> Poll<io::Result<usize>> {
        self.outgoing()?.poll_send(cx, data, last)
    }

    fn poll_finish(&mut self, _: &mut Context<'_>, trailers: Option<&Fields>) -> Poll<io::Result<()>> {
        Poll::Ready(self.outgoing()?.finish(trailers))
    }

    /// The connection's task flushes for all its streams.
    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Downstream for Stream {
    fn send_interim(&mut self, head: &ResponseHead) -> io::Result<()> {
        self.respond.send_informational(convert::write_response(head)).map_err(io_error)
    }

    fn send_head(&mut self, head: &ResponseHead) -> io::Result<()> {
        let ended = matches!(head.body, BodyLength::Empty | BodyLength::Exact(0));
        let stream = self.respond.send_response(convert::write_response(head), ended).map_err(io_error)?;
        self.outgoing = Some(Outgoing::new(stream, ended));
        Ok(())
    }

    fn send_switching(&mut self, _: &ResponseHead, _: &str) -> io::Result<()> {
        // HTTP/2 has no 101 (RFC 9113 §8.6), and no request of it carries `upgrade`.
        Err(io::ErrorKind::Unsupported.into())
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.outgoing {
            Some(outgoing) => outgoing.poll_reset(cx),
            None => self.respond.poll_reset(cx).map(|_| ()),
        }
    }

    fn abort(&mut self) {
        match &mut self.outgoing {
            Some(outgoing) => outgoing.abort(Code::INTERNAL_ERROR),
            None => self.respond.send_reset(Code::INTERNAL_ERROR),
        }
    }
}
