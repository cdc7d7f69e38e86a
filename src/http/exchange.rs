//! What a body needs of a codec, whichever version it speaks and whichever side it is on.
//!
//! A body is pulled from one exchange and pushed into another: bytes are borrowed from the
//! source's buffer, so what the sink takes at once is never copied in between, and a sink that is
//! full stops the source from being read (backpressure).

use std::{
    io,
    task::{Context, Poll},
};

use super::{fields::Fields, message::ResponseHead};

/// What a source has after `poll_fill`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// `data` is not empty.
    Data,
    /// The message is complete; `trailers` says what came after the body.
    End,
}

/// Why a body can't be read to its end.
#[derive(Debug)]
pub enum BodyError {
    /// The sender broke the framing.
    Malformed,
    /// The stream ended, was reset or failed before the message was complete.
    Closed,
    /// Trailers beyond their limit.
    TooLarge,
}

/// One message in each direction on a connection or a stream.
pub trait Exchange {
    /// Makes the next bytes of the incoming body available.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<Filled, BodyError>>;

    /// The bytes that are there; empty unless `poll_fill` said `Data`.
    fn data(&self) -> &[u8];

    /// Takes `count` bytes off the front of `data`.
    fn consume(&mut self, count: usize);

    /// Whether the message ends with the bytes in `data`, without trailers.
    fn ends_with_data(&self) -> bool;

    /// The trailers, once `poll_fill` said `End`.
    fn trailers(&self) -> Option<&Fields>;

    /// Sends as much of `data` as the peer has room for; returns how much, at least one byte.
    /// `last`: nothing follows, no trailers either. What was taken may still be in a buffer of
    /// bounded size until `poll_flush`.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8], last: bool) -> Poll<io::Result<usize>>;

    /// Ends the outgoing message, with trailers where the framing has room for them, and flushes.
    /// Safe to call again until ready.
    fn poll_finish(&mut self, cx: &mut Context<'_>, trailers: Option<&Fields>) -> Poll<io::Result<()>>;

    /// Hands everything taken so far to the kernel.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// The clients' end of an exchange: where the answer goes.
pub trait Downstream: Exchange {
    /// Waits until `count` bytes of the body are here, and takes none of them. For a body of known
    /// length of which nothing was taken yet.
    fn poll_hold(&mut self, cx: &mut Context<'_>, count: usize) -> Poll<Result<(), BodyError>>;

    /// Bytes that are here and were not taken.
    fn held(&self) -> usize;

    /// Sends a 1xx head; nothing where the client's version has none.
    fn send_interim(&mut self, head: &ResponseHead) -> io::Result<()>;

    /// Sends the final head; framing is written anew from `head.body`.
    fn send_head(&mut self, head: &ResponseHead) -> io::Result<()>;

    /// Sends a 101 and turns the connection into a tunnel; only after a request with `upgrade`.
    fn send_switching(&mut self, head: &ResponseHead, protocol: &str) -> io::Result<()>;

    /// Ready when the client went away or gave this request up.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Announces, with the next head, that no further request will be served here.
    fn close_after_reply(&mut self);

    /// Makes an incomplete response look like one: reset the stream, or close without an end.
    fn abort(&mut self);

    /// The same for a client that does not read: nothing more is tried.
    fn give_up(&mut self);
}
