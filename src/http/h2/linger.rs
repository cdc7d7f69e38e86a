//! How does a connection end without taking the last bytes of its responses along?
//!
//! A socket that is closed with something unread in it, or that gets more, is reset by the kernel,
//! and what it had still to send is lost. HTTP/2 clients talk to the end (WINDOW_UPDATE, PING), so
//! what they say after our last word is read and thrown away.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::http::{deadline::Deadline, transport::Transport};

/// How long a client may be silent before it is taken for one that has nothing more to say.
const SILENCE: Duration = Duration::from_secs(1);

/// What a client may say after our last word besides the bodies that it is sending: 80,000
/// WINDOW_UPDATE. One that says more doesn't listen.
const LAST_WORDS: usize = 1024 * 1024;

/// A transport whose shutdown waits until the client has closed too.
#[derive(Debug)]
pub(super) struct Lingering {
    transport: Transport,
    /// For the whole wait.
    limit: Duration,
    /// What may still be read of the client.
    left: usize,
    /// When it ends at the latest, once our half is closed.
    end: Option<Instant>,
    silence: Deadline,
}

impl Lingering {
    /// `window` is what the client may be sending when the connection ends.
    pub(super) fn new(transport: Transport, limit: Duration, window: u32) -> Self {
        let left = LAST_WORDS + window as usize;
        Lingering { transport, limit, left, end: None, silence: Deadline::default() }
    }

    /// Has the connection reset when it is dropped.
    pub(super) fn give_up(&self) {
        // WHY: fails only on a socket that is already dead.
        let _ = self.transport.tcp().set_zero_linger();
    }

    /// Has the kernel give up the client when it takes nothing for so long.
    pub(super) fn limit_silence(&self, limit: Duration) {
        self.transport.limit_silence(limit);
    }

    /// Reads until the client closes, is silent or has said enough.
    fn poll_silence(&mut self, cx: &mut Context<'_>, end: Instant) -> Poll<()> {
        let mut room = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut room);
            match Pin::new(&mut self.transport).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(()))
                    if (1..self.left).contains(&buffer.filled().len()) && Instant::now() < end =>
                {
                    self.left -= buffer.filled().len();
                    self.silence.set((Instant::now() + SILENCE).min(end));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.silence.poll(cx),
            }
        }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let end = if let Some(end) = this.end {
            end
        } else {
            ready!(Pin::new(&mut this.transport).poll_shutdown(cx))?;
            let now = Instant::now();
            let end = now + this.limit;
            this.silence.set((now + SILENCE).min(end));
            *this.end.insert(end)
        };
        this.poll_silence(cx, end).map(Ok)
    }
}
