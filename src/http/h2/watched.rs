//! A transport whose client is watched: frames that are too many stop right here.

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

use super::{
    linger::Lingering,
    watch::{Flood, FrameLimits, Watcher},
};

#[derive(Debug)]
pub(super) struct Watched<T> {
    inner: T,
    watcher: Watcher,
    flood: Option<Flood>,
}

impl<T> Watched<T> {
    pub(super) fn new(inner: T, limits: FrameLimits) -> Self {
        Watched { inner, watcher: Watcher::new(limits), flood: None }
    }

    /// What the client has sent too much of. Nothing is read any more then: whoever polled this is
    /// to look here afterwards, nobody is woken.
    pub(super) fn flood(&self) -> Option<Flood> {
        self.flood
    }

    /// When a head must have ended that has begun and not ended yet.
    pub(super) fn head_deadline(&self) -> Option<Instant> {
        self.watcher.head_deadline()
    }
}

impl Watched<Lingering> {
    /// Has the connection reset when it is dropped.
    pub(super) fn give_up(&self) {
        self.inner.give_up();
    }

    /// Has the kernel give up the client when it takes nothing for so long.
    pub(super) fn limit_silence(&self, limit: Duration) {
        self.inner.limit_silence(limit);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.flood.is_some() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        match this.watcher.receive(&buffer.filled()[before..], Instant::now()) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(flood) => {
                // None of the requests among these frames is to be served.
                buffer.set_filled(before);
                this.flood = Some(flood);
                Poll::Pending
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.inner).poll_write(cx, bytes))?;
        this.watcher.send(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, parts))?;
        let mut rest = count;
        for part in parts {
            let sent = rest.min(part.len());
            this.watcher.send(&part[..sent]);
            rest -= sent;
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
