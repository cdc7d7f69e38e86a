//! An HTTP/1 connection: heads in and out, and one body in each direction at a time.
//!
//! Both sides of the proxy use this type; `downstream.rs` and `upstream.rs` beside it hold what
//! differs. Framing (RFC 9112 §6) is decoded and encoded here, never copied.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

use super::{
    encode,
    framing::{BodyDecoder, BodyError as FramingError, BodyLimits, Decoded},
    head::{HeadEnd, Underscores, find_head_end},
};
use crate::http::{
    buffer::{ReadBuffer, WriteBuffer},
    exchange::{BodyError, Exchange, Filled},
    fields::Fields,
    message::{BodyLength, RequestHead, Version},
    transport::Transport,
};

/// Bodies and heads up to this size are copied into one write; above it they are written from
/// where they lie.
const COALESCED_BYTES: usize = 4 * 1024;

/// For bodies that have neither trailers nor chunks.
const NO_LIMITS: BodyLimits =
    BodyLimits { trailer_bytes: 0, chunk_extension_bytes: 0, fields: 0, underscores: Underscores::Drop };

/// How the outgoing body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes are still owed.
    Exact(u64),
    Chunked,
    /// Ends with the connection; tunnels too.
    UntilClose,
}

/// Why no complete head was read.
#[derive(Debug)]
pub enum HeadError {
    /// More than the limit without an end.
    TooLarge,
    /// The stream ended in the middle.
    Truncated,
    Io,
}

/// What an answer has to fit: set by the request that it answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyTo {
    pub(super) version: Version,
    pub(super) is_head: bool,
    pub(super) keep_alive: bool,
    /// The peer sends no further request, by its own word.
    pub(super) is_last: bool,
}

#[derive(Debug)]
pub struct Connection {
    pub(super) transport: Transport,
    pub(super) input: ReadBuffer,
    pub(super) output: WriteBuffer,
    decoder: BodyDecoder,
    /// Bytes at the front of `input` that are payload.
    offered: usize,
    incoming_ended: bool,
    pub(super) framing: Framing,
    /// Bytes still owed to the chunk whose size was announced.
    chunk_left: usize,
    /// The end of the outgoing message is in `output` or further.
    outgoing_ended: bool,
    /// Bytes of `input` known to hold no end of a head.
    scanned: usize,
    /// The end of the connection must not look like the end of the message.
    torn: bool,
    given_up: bool,
    /// Our half of the stream was ended.
    shut: bool,
    pub(super) reply_to: ReplyTo,
}

impl Connection {
    /// Why the TLS session with the backend has failed, if it has.
    pub fn session_error(&mut self) -> Option<io::Error> {
        self.transport.session_error()
    }

    pub fn new(transport: Transport) -> Self {
        Connection {
            transport,
            input: ReadBuffer::default(),
            output: WriteBuffer::default(),
            decoder: BodyDecoder::new(BodyLength::Empty, NO_LIMITS),
            offered: 0,
            incoming_ended: true,
            framing: Framing::Exact(0),
            chunk_left: 0,
            outgoing_ended: true,
            scanned: 0,
            torn: false,
            given_up: false,
            shut: false,
            reply_to: ReplyTo { version: Version::Http11, is_head: false, keep_alive: true, is_last: false },
        }
    }

    /// Whether both messages are complete and nothing unread or unsent is left: the state in which
    /// a connection may wait for its next exchange.
    pub fn is_quiet(&self) -> bool {
        self.incoming_ended && self.outgoing_ended && self.input.is_empty() && self.output.is_empty()
    }

    /// Whether the incoming message was read to its end.
    pub fn incoming_ended(&self) -> bool {
        self.incoming_ended
    }

    /// Whether bytes of a next message are already here.
    pub fn has_unread(&self) -> bool {
        !self.input.is_empty()
    }

    /// Ready when bytes of a next message are here or wait to be read; until then no buffer is held.
    pub fn poll_come(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_unread() {
            return Poll::Ready(());
        }
        self.input.release_if_empty();
        self.transport.poll_readable(cx)
    }

    /// Reads until a head is complete at the front of the input and returns its length; `None`
    /// when the stream ends before its first byte.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        limit: usize,
    ) -> Poll<Result<Option<usize>, HeadError>> {
        loop {
            match find_head_end(self.input.data(), self.scanned) {
                HeadEnd::Complete(length) if length <= limit => {
                    self.scanned = 0;
                    return Poll::Ready(Ok(Some(length)));
                }
                HeadEnd::Complete(_) => return Poll::Ready(Err(HeadError::TooLarge)),
                HeadEnd::Partial { scanned } => self.scanned = scanned,
            }
            if self.input.data().len() > limit {
                return Poll::Ready(Err(HeadError::TooLarge));
            }
            match ready!(self.poll_input(cx)) {
                Ok(0) if self.input.is_empty() => return Poll::Ready(Ok(None)),
                Ok(0) => return Poll::Ready(Err(HeadError::Truncated)),
                Ok(_) => {}
                Err(_) => return Poll::Ready(Err(HeadError::Io)),
            }
        }
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.transport.poll_receive(cx, &mut self.input)
    }

    /// Reads until so many bytes are there, whatever they mean.
    pub(super) fn poll_available(
        &mut self,
        cx: &mut Context<'_>,
        count: usize,
    ) -> Poll<Result<(), BodyError>> {
        while self.input.data().len() < count {
            match ready!(self.poll_input(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(BodyError::Closed)),
                Ok(_) => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes a parsed head off the input and expects the body that `decoder` describes.
    pub(super) fn begin_incoming(&mut self, head_bytes: usize, decoder: BodyDecoder) {
        self.input.consume(head_bytes);
        self.decoder = decoder;
        self.offered = 0;
        self.incoming_ended = false;
    }

    /// Expects a body of this framing to be sent; the head is in `output` already.
    pub(super) fn begin_outgoing(&mut self, framing: Framing) {
        self.framing = framing;
        self.chunk_left = 0;
        self.outgoing_ended = framing == Framing::Exact(0);
    }

    /// Turns the connection into a tunnel: both directions carry bytes until they end.
    pub fn become_tunnel(&mut self) {
        self.decoder = BodyDecoder::new(BodyLength::UntilClose, NO_LIMITS);
        self.offered = 0;
        self.incoming_ended = false;
        self.begin_outgoing(Framing::UntilClose);
    }

    /// Ready when the peer closed or failed while nothing was asked of it. Bytes of a next message
    /// are read ahead, up to a block.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.input.data().len() < crate::http::buffer::SMALL_BLOCK {
            match ready!(self.poll_input(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Whether a connection that should be quiet is still usable: open, and without a byte to read.
    pub fn poll_unusable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_quiet() {
            return Poll::Ready(());
        }
        // An end, an error and bytes that nobody asked for all mean the same here.
        self.poll_input(cx).map(|_| ())
    }

    /// Has the connection reset when it is dropped, where its end would pass for the message's.
    pub(super) fn tear(&mut self) {
        if self.framing == Framing::UntilClose && !self.outgoing_ended {
            // WHY: fails only on a socket that is already dead.
            self.torn = self.transport.tcp().set_zero_linger().is_ok();
        }
    }

    /// Has the connection reset when it is dropped, with all that it holds for a peer that does not
    /// read; the kernel would go on trying.
    pub(super) fn give_up_stream(&mut self) {
        // WHY: fails only on a socket that is already dead.
        self.given_up = self.transport.tcp().set_zero_linger().is_ok();
    }

    /// Whether nothing more is to be sent, not even an end.
    pub fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// Whether the connection may be closed as it is: everything is sent, and the peer, which by its
    /// own word asks for nothing more, has sent nothing that the kernel would answer with a reset.
    pub fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.reply_to.is_last
            && matches!(self.poll_end(cx), Poll::Ready(Ok(())))
            && self.poll_unusable(cx).is_pending()
    }

    /// Sends everything, and that it was the last where the transport has a word for it.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.torn {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        while !self.output.is_empty() {
            let count = ready!(self.transport.poll_write_last(cx, self.output.data()))?;
            self.output.advance(written(count)?);
        }
        self.transport.poll_end(cx)
    }

    /// Ends our half of the stream.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(self.poll_end(cx))?;
            ready!(Pin::new(&mut self.transport).poll_shutdown(cx))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and throws away; ready when the peer has closed.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.input.consume(self.input.data().len());
            if ready!(self.poll_input(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Gives unused buffers back before a wait that may be long.
    pub fn rest(&mut self) {
        self.input.release_if_empty();
        self.output.release_if_empty();
    }

    /// Copies a small piece into the output, framed.
    fn coalesce(&mut self, data: &[u8]) {
        if self.framing == Framing::Chunked && self.chunk_left == 0 {
            encode::write_chunk_header(self.output.bytes_mut(), data.len());
            self.chunk_left = data.len();
        }
        self.output.bytes_mut().extend_from_slice(data);
        self.account(data.len());
    }

    /// Books `count` payload bytes as sent and closes the chunk they complete.
    fn account(&mut self, count: usize) {
        match &mut self.framing {
            Framing::Exact(left) => {
                *left -= count as u64;
                self.outgoing_ended = *left == 0;
            }
            Framing::Chunked => {
                self.chunk_left -= count;
                if self.chunk_left == 0 {
                    self.output.bytes_mut().extend_from_slice(b"\r\n");
                }
            }
            Framing::UntilClose => {}
        }
    }

    /// At most what the framing still has room for.
    fn admissible<'d>(&self, data: &'d [u8]) -> io::Result<&'d [u8]> {
        let room = match self.framing {
            Framing::Exact(left) => usize::try_from(left).unwrap_or(usize::MAX),
            Framing::Chunked if self.chunk_left > 0 => self.chunk_left,
            Framing::Chunked | Framing::UntilClose => usize::MAX,
        };
        if room == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the body is longer than announced"));
        }
        Ok(&data[..data.len().min(room)])
    }
}

impl Exchange for Connection {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<Filled, BodyError>> {
        loop {
            if self.offered > 0 {
                return Poll::Ready(Ok(Filled::Data));
            }
            if self.incoming_ended {
                return Poll::Ready(Ok(Filled::End));
            }
            match self.decoder.decode(self.input.data()).map_err(body_error)? {
                Decoded::Data { skip, len } => {
                    self.input.consume(skip);
                    self.offered = len;
                }
                Decoded::End { skip } => {
                    self.input.consume(skip);
                    self.incoming_ended = true;
                }
                Decoded::NeedMore { skip } => {
                    self.input.consume(skip);
                    let count = ready!(self.poll_input(cx));
                    match count {
                        Ok(0) if self.decoder.end_of_input().is_ok() => self.incoming_ended = true,
                        Ok(0) | Err(_) => return Poll::Ready(Err(BodyError::Closed)),
                        Ok(_) => {}
                    }
                }
            }
        }
    }

    fn data(&self) -> &[u8] {
        &self.input.data()[..self.offered]
    }

    fn consume(&mut self, count: usize) {
        self.offered -= count;
        self.input.consume(count);
        self.decoder.advance(count);
    }

    fn ends_with_data(&self) -> bool {
        self.decoder.left() == Some(self.offered as u64)
    }

    fn trailers(&self) -> Option<&Fields> {
        self.decoder.trailers()
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8], _last: bool) -> Poll<io::Result<usize>> {
        let data = self.admissible(data)?;
        if self.output.len() + data.len() <= COALESCED_BYTES {
            self.coalesce(data);
            return Poll::Ready(Ok(data.len()));
        }
        if self.framing == Framing::Chunked && self.chunk_left == 0 {
            encode::write_chunk_header(self.output.bytes_mut(), data.len());
            self.chunk_left = data.len();
        }
        loop {
            let pending = self.output.len();
            let parts = [io::IoSlice::new(self.output.data()), io::IoSlice::new(data)];
            let count = ready!(Pin::new(&mut self.transport).poll_write_vectored(cx, &parts))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(count.min(pending));
            if count > pending {
                self.account(count - pending);
                return Poll::Ready(Ok(count - pending));
            }
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>, trailers: Option<&Fields>) -> Poll<io::Result<()>> {
        match self.framing {
            Framing::Exact(left) if left > 0 => {
                let error =
                    io::Error::new(io::ErrorKind::UnexpectedEof, "the body is shorter than announced");
                return Poll::Ready(Err(error));
            }
            Framing::Chunked if !self.outgoing_ended => {
                match trailers {
                    Some(fields) => encode::write_trailers(self.output.bytes_mut(), fields),
                    None => self.output.bytes_mut().extend_from_slice(encode::LAST_CHUNK),
                }
                self.outgoing_ended = true;
            }
            Framing::Exact(_) | Framing::Chunked => {}
            Framing::UntilClose => {
                ready!(self.poll_shutdown(cx))?;
                self.outgoing_ended = true;
                return Poll::Ready(Ok(()));
            }
        }
        if !self.reply_to.keep_alive && self.incoming_ended {
            // Nothing follows: an end that goes out with the message saves a packet.
            return self.poll_end(cx);
        }
        self.poll_flush(cx)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let count = ready!(Pin::new(&mut self.transport).poll_write(cx, self.output.data()))?;
            self.output.advance(written(count)?);
        }
        self.output.release_if_large();
        Pin::new(&mut self.transport).poll_flush(cx)
    }
}

/// A stream that takes nothing will not take more later.
fn written(count: usize) -> io::Result<usize> {
    if count == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(count) }
}

fn body_error(error: FramingError) -> BodyError {
    match error {
        FramingError::TrailersTooLarge => BodyError::TooLarge,
        FramingError::Truncated => BodyError::Closed,
        FramingError::ChunkSize
        | FramingError::ChunkExtension
        | FramingError::ExtensionsTooLarge
        | FramingError::LineEnd
        | FramingError::Trailer => BodyError::Malformed,
    }
}

impl ReplyTo {
    pub(super) fn new(request: &RequestHead) -> Self {
        ReplyTo {
            version: request.version,
            is_head: request.method == http::Method::HEAD,
            keep_alive: request.keep_alive,
            is_last: !request.keep_alive,
        }
    }
}
