//! Many small frames, one write.
//!
//! The h2 crate flushes its stream between frames of different messages: each response would be a
//! TLS record, a system call and a packet of its own. Here a flush only promises; what was written
//! goes out when the connection's task has nothing more to add, or when a record is full.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::{buffer::WriteBuffer, transport::Transport};

/// The most that waits: one full TLS record.
const CORKED_BYTES: usize = 16 * 1024;

/// A stream that holds small writes back; cloned, so that the task can let them go while the h2
/// crate owns the other handle.
#[derive(Debug)]
pub(super) struct Corked<T>(Rc<RefCell<State<T>>>);

#[derive(Debug)]
struct State<T> {
    inner: T,
    waiting: WriteBuffer,
}

impl<T> Corked<T> {
    pub(super) fn new(inner: T) -> Self {
        Corked(Rc::new(RefCell::new(State { inner, waiting: WriteBuffer::default() })))
    }

    pub(super) fn handle(&self) -> Self {
        Corked(self.0.clone())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Corked<T> {
    /// Lets go of everything that waits.
    pub(super) fn poll_uncork(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_uncork(cx)
    }
}

impl Corked<Transport> {
    /// See [`Transport::session_error`]; of an error the h2 crate keeps the text only.
    pub(super) fn session_error(&self) -> Option<io::Error> {
        self.0.borrow_mut().inner.session_error()
    }
}

impl<T: AsyncWrite + Unpin> State<T> {
    fn poll_uncork(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        self.waiting.release_if_empty();
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, self.waiting.data()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.waiting.advance(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Keeps what fits; what is large by itself is written from where it lies.
    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if self.waiting.len() + total > CORKED_BYTES {
            ready!(self.poll_empty(cx))?;
            if total > CORKED_BYTES {
                return Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
            }
        }
        let waiting = self.waiting.bytes_mut();
        // All at once: growing step by step copies each time, and ends above what is kept for reuse.
        waiting.reserve_exact(CORKED_BYTES - waiting.len());
        for part in parts {
            waiting.extend_from_slice(part);
        }
        Poll::Ready(Ok(total))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Corked<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().inner).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Corked<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Only a promise: `poll_uncork` keeps it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        ready!(state.poll_uncork(cx))?;
        Pin::new(&mut state.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn lets_small_writes_go_together() {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let mut corked = Corked::new(ours);
        let handle = corked.handle();
        corked.write_all(b"one ").await.unwrap();
        corked.flush().await.unwrap();
        corked.write_all(b"two").await.unwrap();
        let mut text = [0; 64];
        let nothing = poll_fn(|cx| {
            Poll::Ready(Pin::new(&mut theirs).poll_read(cx, &mut ReadBuf::new(&mut text)).is_pending())
        });
        assert!(nothing.await);
        poll_fn(|cx| handle.poll_uncork(cx)).await.unwrap();
        let count = theirs.read(&mut text).await.unwrap();
        assert_eq!(&text[..count], b"one two");
    }

    #[tokio::test]
    async fn holds_no_more_than_a_record() {
        let (ours, _theirs) = tokio::io::duplex(1);
        let mut corked = Corked::new(ours);
        let piece = [0; 1000];
        let taken = poll_fn(|cx| {
            let mut taken = 0;
            while let Poll::Ready(Ok(count)) = Pin::new(&mut corked).poll_write(cx, &piece) {
                taken += count;
            }
            Poll::Ready(taken)
        });
        assert!(taken.await <= CORKED_BYTES + 1);
    }

    #[tokio::test]
    async fn shuts_down_behind_what_waits() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut corked = Corked::new(ours);
        corked.write_all(b"last words").await.unwrap();
        corked.shutdown().await.unwrap();
        let mut text = String::new();
        theirs.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "last words");
    }
}
