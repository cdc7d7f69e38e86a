//! The clients' side of HTTP/2: a connection, whose streams come out of `poll_accept`.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::{io::AsyncWrite, time::Instant};

pub use super::multiplexer::Settings;
use super::{
    floods::Flood,
    frame::PREFACE,
    linger::Linger,
    multiplexer::{Multiplexer, Request},
    request::Flaw,
    stream::Stream,
};
use crate::{
    error::Reason,
    http::{buffer::ReadBuffer, deadline::Deadline, message::RequestHead, transport::Transport},
};

/// A connection: everything is read and written while it is polled.
#[derive(Debug)]
pub struct Connection {
    transport: Transport,
    input: ReadBuffer,
    multiplexer: Rc<RefCell<Multiplexer>>,
    /// For a head that has begun.
    head_deadline: Deadline,
    /// The last write found no room.
    blocked: bool,
    /// Bytes that the transport has taken.
    written: u64,
    linger: Linger,
}

/// A stream that has a request head, or the reason to refuse it.
#[derive(Debug)]
pub struct Accepted {
    pub head: Box<RequestHead>,
    pub stream: Stream,
    pub verdict: Result<(), Reason>,
}

impl Connection {
    /// Waits for the client's preface; our settings are on their way then.
    pub async fn handshake(transport: Transport, settings: &Settings) -> io::Result<Self> {
        let mut connection = Connection {
            transport,
            input: ReadBuffer::default(),
            multiplexer: Rc::new(RefCell::new(Multiplexer::new(*settings))),
            head_deadline: Deadline::default(),
            blocked: false,
            written: 0,
            linger: Linger::new(settings.linger, settings.connection_window),
        };
        poll_fn(|cx| connection.poll_preface(cx)).await?;
        Ok(connection)
    }

    fn poll_preface(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let data = self.input.data();
            let here = data.len().min(PREFACE.len());
            if data[..here] != PREFACE[..here] {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            if here == PREFACE.len() {
                self.input.consume(here);
                return Poll::Ready(Ok(()));
            }
            match self.transport.poll_receive(cx, &mut self.input) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(result) => _ = result?,
                // Mostly the preface is here, and our settings go out with what follows them.
                Poll::Pending => {
                    let _ = self.poll_flush(cx)?;
                    return Poll::Pending;
                }
            }
        }
    }

    /// The next stream, or `None` when the connection is over, or abused.
    ///
    /// Everything that has come is looked at before a first request of it is handed out: none of them
    /// is to be served where it ends in a flood.
    pub fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
        mut new_head: impl FnMut() -> Box<RequestHead>,
    ) -> Poll<Option<Accepted>> {
        loop {
            if let Some(accepted) = self.next_accepted() {
                return Poll::Ready(Some(accepted));
            }
            if self.is_abused() {
                return Poll::Ready(None);
            }
            if self.multiplexer.borrow().is_over() {
                return self.poll_close(cx).map(|()| None);
            }
            if !self.input.is_empty() && self.take_input(&mut new_head) {
                continue;
            }
            match self.transport.poll_receive(cx, &mut self.input) {
                Poll::Ready(Ok(1..)) => _ = self.take_input(&mut new_head),
                Poll::Ready(Ok(0) | Err(_)) => {
                    self.multiplexer.borrow_mut().lose_all();
                    return Poll::Ready(None);
                }
                Poll::Pending => ready!(self.poll_head_deadline(cx)),
            }
        }
    }

    /// Shows the multiplexer what is here; whether it has taken something.
    fn take_input(&mut self, mut new_head: impl FnMut() -> Box<RequestHead>) -> bool {
        let mut multiplexer = self.multiplexer.borrow_mut();
        let taken = multiplexer.receive(self.input.data(), Instant::now(), &mut new_head);
        self.input.consume(taken);
        taken > 0
    }

    fn next_accepted(&mut self) -> Option<Accepted> {
        let Request { place, head, verdict } = self.multiplexer.borrow_mut().requests.pop_front()?;
        let verdict = verdict.map_err(|flaw| match flaw {
            Flaw::Refused(reason) => reason,
            Flaw::Malformed => Reason::BadRequest,
        });
        Some(Accepted { head, stream: Stream::new(self.multiplexer.clone(), place), verdict })
    }

    /// Ready when a head has not ended in time, which ends the connection.
    fn poll_head_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut multiplexer = self.multiplexer.borrow_mut();
        match multiplexer.head_deadline() {
            Some(end) => self.head_deadline.set(end),
            None => self.head_deadline.clear(),
        }
        ready!(self.head_deadline.poll(cx));
        multiplexer.break_off(Flood::UnfinishedHead.into());
        Poll::Ready(())
    }

    /// Whether the connection is over because of what the client sent too much of.
    pub fn is_abused(&self) -> bool {
        self.multiplexer.borrow().flood().is_some()
    }

    /// Says what is left to say and closes.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // WHY: whatever fails here, the connection is over.
        if ready!(self.poll_flush(cx)).is_ok() {
            let _ = ready!(self.linger.poll(cx, &mut self.transport, &mut self.input));
        }
        Poll::Ready(())
    }

    /// Sends what its streams and itself have to say; to be called each time before the connection's
    /// task waits.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut multiplexer = self.multiplexer.borrow_mut();
        self.blocked = true;
        while !multiplexer.output().is_empty() {
            let count = ready!(Pin::new(&mut self.transport).poll_write(cx, multiplexer.output()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count as u64;
            multiplexer.wrote(count);
        }
        ready!(Pin::new(&mut self.transport).poll_flush(cx))?;
        self.blocked = false;
        Poll::Ready(Ok(()))
    }

    /// Whether the client takes nothing of what is there for it.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Bytes that were written to the client.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Has the connection reset when it is dropped: what waits for the client is lost, here and in the
    /// kernel.
    pub fn give_up(&mut self) {
        // WHY: fails only on a socket that is already dead.
        let _ = self.transport.tcp().set_zero_linger();
    }

    /// Takes no more streams and ends with the last one (RFC 9113 §6.8).
    pub fn drain(&mut self) {
        self.multiplexer.borrow_mut().drain();
    }
}
