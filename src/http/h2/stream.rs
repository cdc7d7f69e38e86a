//! One request and its answer, in the hands of whoever serves it.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};

use super::{frame::Code, multiplexer::Multiplexer};
use crate::http::{
    exchange::{BodyError, Downstream, Exchange, Filled},
    fields::Fields,
    message::ResponseHead,
};

/// A stream; dropping it before its end resets it.
#[derive(Debug)]
pub struct Stream {
    multiplexer: Rc<RefCell<Multiplexer>>,
    place: usize,
    /// What was taken of the body, and how much of that was consumed.
    chunk: Vec<u8>,
    consumed: usize,
    trailers: Option<Box<Fields>>,
}

impl Stream {
    pub(super) fn new(multiplexer: Rc<RefCell<Multiplexer>>, place: usize) -> Self {
        Stream { multiplexer, place, chunk: Vec::new(), consumed: 0, trailers: None }
    }

    /// Whether the client has taken its request back already.
    pub fn is_gone(&self) -> bool {
        self.multiplexer.borrow().streams.get(self.place).is_gone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.multiplexer.borrow_mut().leave(self.place);
    }
}

impl Exchange for Stream {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<Filled, BodyError>> {
        if self.consumed < self.chunk.len() {
            return Poll::Ready(Ok(Filled::Data));
        }
        let mut multiplexer = self.multiplexer.borrow_mut();
        if let Some(chunk) = ready!(multiplexer.poll_body(cx, self.place))? {
            self.chunk = chunk;
            self.consumed = 0;
            return Poll::Ready(Ok(Filled::Data));
        }
        if self.trailers.is_none() {
            self.trailers = multiplexer.streams.at(self.place).trailers.take();
        }
        Poll::Ready(Ok(Filled::End))
    }

    fn data(&self) -> &[u8] {
        &self.chunk[self.consumed..]
    }

    fn consume(&mut self, count: usize) {
        self.consumed += count;
        if self.consumed == self.chunk.len() {
            self.chunk = Vec::new();
            self.consumed = 0;
        }
        self.multiplexer.borrow_mut().consume(self.place, count);
    }

    fn ends_with_data(&self) -> bool {
        let multiplexer = self.multiplexer.borrow();
        let stream = multiplexer.streams.get(self.place);
        stream.received_all && stream.held == 0 && stream.trailers.is_none() && stream.gone.is_none()
    }

    fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_deref()
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8], last: bool) -> Poll<io::Result<usize>> {
        self.multiplexer.borrow_mut().poll_send(cx, self.place, data, last)
    }

    fn poll_finish(&mut self, _: &mut Context<'_>, trailers: Option<&Fields>) -> Poll<io::Result<()>> {
        Poll::Ready(self.multiplexer.borrow_mut().finish(self.place, trailers))
    }

    /// The connection's task flushes for all its streams.
    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Downstream for Stream {
    fn poll_hold(&mut self, cx: &mut Context<'_>, count: usize) -> Poll<Result<(), BodyError>> {
        self.multiplexer.borrow_mut().poll_hold(cx, self.place, count)
    }

    fn held(&self) -> usize {
        self.multiplexer.borrow().streams.get(self.place).held
    }

    fn send_interim(&mut self, head: &ResponseHead) -> io::Result<()> {
        self.multiplexer.borrow_mut().send_head(self.place, head)
    }

    fn send_head(&mut self, head: &ResponseHead) -> io::Result<()> {
        self.multiplexer.borrow_mut().send_head(self.place, head)
    }

    fn send_switching(&mut self, _: &ResponseHead, _: &str) -> io::Result<()> {
        // HTTP/2 has no 101 (RFC 9113 §8.6), and no request of it carries `upgrade`.
        Err(io::ErrorKind::Unsupported.into())
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.multiplexer.borrow_mut().poll_gone(cx, self.place)
    }

    fn close_after_reply(&mut self) {
        // GOAWAY says it for the whole connection.
    }

    /// Only the stream: the connection sees for itself whether anything is taken.
    fn give_up(&mut self) {
        self.abort();
    }

    fn abort(&mut self) {
        self.multiplexer.borrow_mut().abort(self.place, Code::InternalError);
    }
}
