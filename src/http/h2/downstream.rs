//! The clients' side of HTTP/2: one stream is one exchange.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    Reason as Code, RecvStream,
    server::{self, SendResponse},
};

use super::{
    budget::{Budget, Claim, Heads},
    convert,
    cork::Corked,
    linger::Lingering,
    stream::{Incoming, Outgoing, io_error},
    watch::{Flood, FrameLimits},
    watched::Watched,
};
use crate::error::Reason;
use crate::http::{
    deadline::Deadline,
    exchange::{BodyError, Downstream, Exchange, Filled},
    fields::Fields,
    h1::{HeadLimits, head::Underscores},
    message::{BodyLength, RequestHead, ResponseHead},
    transport::Transport,
};

/// What all responses of a connection may have waiting together: so many streams' buffers.
const FULL_BUFFERS: usize = 4;

/// Memory of the heads that are not answered yet: a hundred of 10 KiB.
const HEAD_BYTES: usize = 1024 * 1024;

/// Bounds of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub streams: u32,
    pub stream_window: u32,
    pub connection_window: u32,
    /// Response bytes that may wait in a stream's buffer.
    pub send_buffer: usize,
    pub head: HeadLimits,
    /// Resets that a client may provoke over the connection's life.
    pub local_resets: usize,
    pub frames: FrameLimits,
    /// How long the client may take to read the last bytes.
    pub linger: std::time::Duration,
}

/// A connection: streams come out of `poll_accept`, and everything is sent while it is polled.
#[derive(Debug)]
pub struct Connection {
    inner: server::Connection<Corked<Watched<Lingering>>, Bytes>,
    cork: Corked<Watched<Lingering>>,
    head: HeadLimits,
    /// For a head that has begun.
    head_deadline: Deadline,
    budget: Budget,
    heads: Heads,
    abused: bool,
}

/// A stream that has a request head, or the reason to refuse it.
#[derive(Debug)]
pub struct Accepted {
    pub head: Box<RequestHead>,
    pub stream: Stream,
    pub verdict: Result<(), Reason>,
}

impl Connection {
    /// Waits for the client's preface and exchanges settings.
    pub async fn handshake(transport: Transport, settings: &Settings) -> io::Result<Self> {
        let lingering = Lingering::new(transport, settings.linger, settings.connection_window);
        let cork = Corked::new(Watched::new(lingering, settings.frames));
        let inner = server::Builder::new()
            .max_concurrent_streams(settings.streams)
            .initial_window_size(settings.stream_window)
            .initial_connection_window_size(settings.connection_window)
            .max_send_buffer_size(settings.send_buffer)
            .max_header_list_size(list_bytes(&settings.head))
            .max_local_error_reset_streams(Some(settings.local_resets))
            // Its own count of resets would end a connection within our limit.
            .max_pending_accept_reset_streams(settings.frames.resets)
            .handshake(cork.handle())
            .await
            .map_err(io_error)?;
        let budget = Budget::new(FULL_BUFFERS * settings.send_buffer);
        let head_deadline = Deadline::default();
        let heads = Heads::new(HEAD_BYTES);
        Ok(Connection { inner, cork, head: settings.head, head_deadline, budget, heads, abused: false })
    }

    /// To be called each time that the connection's task is polled, before the next two: what they
    /// find not to have come is not looked for again until the next time.
    pub fn begin_pass(&mut self) {
        self.cork.begin_pass();
    }

    /// The next stream, or `None` when the connection is over, or abused; takes what its streams
    /// have to send and keeps it for `poll_flush`.
    pub fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
        new_head: impl FnOnce() -> Box<RequestHead>,
    ) -> Poll<Option<Accepted>> {
        let accepted = if self.heads.poll_room(cx).is_ready() {
            self.inner.poll_accept(cx)
        } else {
            // Goes on with the streams that there are.
            self.inner.poll_closed(cx).map(|closed| closed.err().map(Err))
        };
        if !self.cork.is_blocked() {
            // It has written all it had.
            self.budget.refill();
        }
        if let Some(flood) = self.poll_flood(cx) {
            tracing::debug!("an HTTP/2 connection is ended for abuse: {flood:?}");
            self.abused = true;
            self.inner.abrupt_shutdown(Code::ENHANCE_YOUR_CALM);
            return Poll::Ready(None);
        }
        match ready!(accepted) {
            Some(Ok((request, respond))) => {
                let mut head = new_head();
                let ended = request.body().is_end_stream();
                let verdict = convert::read_request(&request, ended, &self.head, &mut head);
                let claim = self.heads.claim(head.bytes());
                let stream = Stream::new((request.into_body(), ended), respond, (self.budget.clone(), claim));
                Poll::Ready(Some(Accepted { head, stream, verdict }))
            }
            Some(Err(error)) => {
                tracing::debug!("an HTTP/2 connection ended: {error}");
                // What the h2 crate counts itself: resets that we are made to send, tiny DATA.
                self.abused = error.is_go_away()
                    && error.is_library()
                    && error.reason() == Some(Code::ENHANCE_YOUR_CALM);
                Poll::Ready(None)
            }
            None => Poll::Ready(None),
        }
    }

    /// What the client floods us with, or a head that it does not end in time.
    fn poll_flood(&mut self, cx: &mut Context<'_>) -> Option<Flood> {
        let watched = self.cork.inner();
        match watched.head_deadline() {
            Some(end) => self.head_deadline.set(end),
            None => self.head_deadline.clear(),
        }
        let late = self.head_deadline.poll(cx).is_ready().then_some(Flood::UnfinishedHead);
        watched.flood().or(late)
    }

    /// Whether the connection is over because of what the client sent too much of.
    pub fn is_abused(&self) -> bool {
        self.abused
    }

    /// Says why and closes, once the connection is abused.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.cork.end_pass();
        self.inner.poll_closed(cx).map(|_| ())
    }

    /// Sends what was taken; to be called each time before the connection's task waits.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.cork.poll_uncork(cx);
        if !self.cork.is_blocked() && self.budget.is_wanted() {
            // The client has made room only now, behind `poll_accept`, which refills the budget: nobody
            // else would wake the task, and its streams would wait for ever.
            cx.waker().wake_by_ref();
        }
        flushed
    }

    /// Whether the client takes nothing of what is there for it.
    pub fn is_blocked(&self) -> bool {
        self.cork.is_blocked()
    }

    /// Bytes that were written to the client.
    pub fn written(&self) -> u64 {
        self.cork.written()
    }

    /// Has the connection reset when it is dropped: what waits for the client is lost, here and in the
    /// kernel.
    pub fn give_up(&mut self) {
        self.cork.inner().give_up();
    }

    /// Takes no more streams and ends with the last one (RFC 9113 §6.8).
    pub fn drain(&mut self) {
        self.inner.graceful_shutdown();
    }
}

/// What the h2 crate lets through: twice our limit, since what it refuses itself is on no record.
/// Each field counts 32 bytes more there (RFC 9113 §6.5.2).
fn list_bytes(limits: &HeadLimits) -> u32 {
    u32::try_from(2 * limits.head_bytes + 32 * limits.fields).unwrap_or(u32::MAX)
}

#[derive(Debug)]
pub struct Stream {
    incoming: Incoming,
    respond: SendResponse<Bytes>,
    outgoing: Option<Outgoing>,
    budget: Budget,
    /// Until the answer begins.
    claim: Option<Claim>,
}

impl Stream {
    fn new(
        (body, ended): (RecvStream, bool),
        respond: SendResponse<Bytes>,
        (budget, claim): (Budget, Claim),
    ) -> Self {
        let incoming = Incoming::new(body, ended, Underscores::Drop);
        Stream { incoming, respond, outgoing: None, budget, claim: Some(claim) }
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
    fn poll_hold(&mut self, cx: &mut Context<'_>, count: usize) -> Poll<Result<(), BodyError>> {
        self.incoming.poll_hold(cx, count)
    }

    fn held(&self) -> usize {
        self.incoming.held()
    }

    fn send_interim(&mut self, head: &ResponseHead) -> io::Result<()> {
        self.respond.send_informational(convert::write_response(head)).map_err(io_error)
    }

    fn send_head(&mut self, head: &ResponseHead) -> io::Result<()> {
        self.claim = None;
        let ended = matches!(head.body, BodyLength::Empty | BodyLength::Exact(0));
        let stream = self.respond.send_response(convert::write_response(head), ended).map_err(io_error)?;
        self.outgoing = Some(Outgoing::new(stream, ended, Some(self.budget.clone())));
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

    fn close_after_reply(&mut self) {
        // GOAWAY says it for the whole connection.
    }

    /// Only the stream: the connection sees for itself whether anything is taken.
    fn give_up(&mut self) {
        self.abort();
    }

    fn abort(&mut self) {
        match &mut self.outgoing {
            Some(outgoing) => outgoing.abort(Code::INTERNAL_ERROR),
            None => self.respond.send_reset(Code::INTERNAL_ERROR),
        }
    }
}
