//! Many small frames, one write.
//!
//! The h2 crate flushes its stream between frames of different messages: each response would be a
//! TLS record, a system call and a packet of its own. Here a flush only promises; what was written
//! goes out when the connection's task has nothing more to add, or when a record is full.

use std::{
    cell::{Ref, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::buffer::WriteBuffer;

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
    reads: Reads,
    /// The last write found no room.
    blocked: bool,
    /// Bytes that went on to `inner`.
    written: u64,
}

/// Whether the stream below is asked for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    Always,
    /// Until it has none: the h2 crate reads once more for each request that it hands out.
    UntilDry,
    /// Not before the task is polled again, which the stream sees to.
    Never,
}

impl<T> Corked<T> {
    pub(super) fn new(inner: T) -> Self {
        Corked(Rc::new(RefCell::new(State {
            inner,
            waiting: WriteBuffer::default(),
            reads: Reads::Always,
            blocked: false,
            written: 0,
        })))
    }

    pub(super) fn handle(&self) -> Self {
        Corked(self.0.clone())
    }

    /// The task begins to do all that there is to do: a stream that is found empty stays so until
    /// `end_pass` or `poll_uncork`. Between them, everything is to be polled for one task.
    pub(super) fn begin_pass(&self) {
        self.0.borrow_mut().reads = Reads::UntilDry;
    }

    pub(super) fn end_pass(&self) {
        self.0.borrow_mut().reads = Reads::Always;
    }

    /// Whether the peer takes no more for now.
    pub(super) fn is_blocked(&self) -> bool {
        self.0.borrow().blocked
    }

    /// Bytes that the stream below has taken.
    pub(super) fn written(&self) -> u64 {
        self.0.borrow().written
    }

    /// What is below.
    pub(super) fn inner(&self) -> Ref<'_, T> {
        Ref::map(self.0.borrow(), |state| &state.inner)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Corked<T> {
    /// Lets go of everything that waits, and ends the pass.
    pub(super) fn poll_uncork(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        state.reads = Reads::Always;
        state.poll_uncork(cx)
    }
}

impl<T: AsyncWrite + Unpin> State<T> {
    fn poll_uncork(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        self.waiting.release_if_empty();
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        // What was sealed and not sent waits too.
        self.blocked = flushed.is_pending();
        flushed
    }

    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let result = Pin::new(&mut self.inner).poll_write(cx, self.waiting.data());
            let count = ready!(self.note(result))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.waiting.advance(count);
        }
        Poll::Ready(Ok(()))
    }

    fn note(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.blocked = result.is_pending();
        if let Poll::Ready(Ok(count)) = &result {
            self.written += *count as u64;
        }
        result
    }

    /// Keeps what fits; what is large by itself is written from where it lies.
    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if self.waiting.len() + total > CORKED_BYTES {
            ready!(self.poll_empty(cx))?;
            if total > CORKED_BYTES {
                let result = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
                return self.note(result);
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
        let mut state = self.0.borrow_mut();
        if state.reads == Reads::Never {
            return Poll::Pending;
        }
        let result = Pin::new(&mut state.inner).poll_read(cx, buffer);
        if result.is_pending() && state.reads == Reads::UntilDry {
            state.reads = Reads::Never;
        }
        result
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
    async fn asks_an_empty_stream_once_a_pass() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let corked = Corked::new(ours);
        let mut reader = corked.handle();
        let mut read = |cx: &mut Context<'_>| {
            let mut byte = [0];
            let mut buffer = ReadBuf::new(&mut byte);
            Pin::new(&mut reader).poll_read(cx, &mut buffer).map(|_| buffer.filled().len())
        };
        let mut cx = Context::from_waker(std::task::Waker::noop());
        corked.begin_pass();
        theirs.write_all(b"ab").await.unwrap();
        assert_eq!([read(&mut cx), read(&mut cx)], [Poll::Ready(1); 2]);
        assert_eq!(read(&mut cx), Poll::Pending);
        theirs.write_all(b"cd").await.unwrap();
        assert_eq!(read(&mut cx), Poll::Pending);
        assert!(corked.poll_uncork(&mut cx).is_ready());
        assert_eq!(read(&mut cx), Poll::Ready(1));
        corked.begin_pass();
        assert_eq!([read(&mut cx), read(&mut cx)], [Poll::Ready(1), Poll::Pending]);
        theirs.write_all(b"e").await.unwrap();
        corked.end_pass();
        assert_eq!(read(&mut cx), Poll::Ready(1));
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
