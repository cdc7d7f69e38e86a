//! The byte stream under a codec: TCP, or TLS on it; the same type on both sides.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client;

use super::{buffer::ReadBuffer, tls_stream::TlsStream};

#[derive(Debug)]
pub enum Transport {
    Tcp(TcpStream),
    /// Boxed, like the next: a TLS session is over a kilobyte, a clear-text connection should not
    /// pay for it.
    DownstreamTls(Box<TlsStream>),
    UpstreamTls(Box<client::TlsStream<TcpStream>>),
}

impl Transport {
    /// Ready when a read may find something. Cheaper than a read, for where it will mostly not.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Transport::Tcp(stream) => stream.poll_read_ready(cx).map(|_| ()),
            Transport::DownstreamTls(stream) => stream.poll_readable(cx),
            // What the TLS library holds back can't be asked for.
            Transport::UpstreamTls(_) => Poll::Ready(()),
        }
    }

    /// Reads once; `Ready(0)` is the end of the stream. An empty buffer borrows no block just to find out
    /// that nothing has come.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuffer) -> Poll<io::Result<usize>> {
        if buffer.is_empty() && self.poll_readable(cx).is_pending() {
            buffer.release_if_empty();
            return Poll::Pending;
        }
        buffer.poll_read(self, cx)
    }

    pub fn tcp(&self) -> &TcpStream {
        match self {
            Transport::Tcp(stream) => stream,
            Transport::UpstreamTls(stream) => stream.get_ref().0,
            Transport::DownstreamTls(stream) => stream.tcp(),
        }
    }

    /// Why the TLS session with a backend has failed, if it has: for after the fact.
    pub fn session_error(&mut self) -> Option<io::Error> {
        match self {
            Transport::UpstreamTls(stream) => {
                let (tcp, session) = stream.get_mut();
                // Where a write failed, nobody has read yet why. The library says it again to whoever asks.
                let _ = session.read_tls(&mut Unread(tcp));
                session.process_new_packets().err().map(io::Error::other)
            }
            Transport::Tcp(_) | Transport::DownstreamTls(_) => None,
        }
    }

    /// Sends what [`poll_write_last`](Self::poll_write_last) took and, with TLS, that nothing follows.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Transport::DownstreamTls(stream) => stream.poll_close_notify(cx),
            Transport::Tcp(_) => Pin::new(self).poll_flush(cx),
            Transport::UpstreamTls(_) => Pin::new(self).poll_shutdown(cx),
        }
    }

    /// Takes bytes that nothing but an end follows: with TLS to a client they may wait for it.
    pub fn poll_write_last(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Transport::DownstreamTls(stream) => stream.poll_write_last(cx, bytes),
            Transport::Tcp(_) | Transport::UpstreamTls(_) => Pin::new(self).poll_write(cx, bytes),
        }
    }
}

/// What a socket has received.
struct Unread<'s>(&'s TcpStream);

impl io::Read for Unread<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Transport::DownstreamTls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
            Transport::UpstreamTls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::DownstreamTls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
            Transport::UpstreamTls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Transport::DownstreamTls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, parts),
            Transport::UpstreamTls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Transport::DownstreamTls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Transport::UpstreamTls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::DownstreamTls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Transport::UpstreamTls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
