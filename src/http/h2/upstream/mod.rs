//! The backends' side of HTTP/2, on the h2 crate: a shared connection, and one stream of it for each
//! request.

mod body;
pub mod convert;
mod cork;

use std::{
    cell::{Cell, OnceCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    Reason as Code,
    client::{self, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Method, Request, Response, Uri};

use crate::http::{
    exchange::{BodyError, Exchange, Filled},
    fields::Fields,
    message::ResponseHead,
    transport::Transport,
};
use body::{Incoming, Outgoing, io_error};
use cork::Corked;

/// What a backend may send ahead on a stream: all of it is kept while its client does not read.
const STREAM_WINDOW: u32 = 128 * 1024;
/// All there may be, so that the streams' own windows are what counts: clients that don't read hold up nobody else's
/// answer. With `STREAMS` it is 12.5 MiB at most that wait on a connection.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
const STREAMS: usize = 100;
/// Resets of ours that are remembered, for what was on its way: a thousand clients that leave at one time.
const REMEMBERED_RESETS: usize = 1024;
const SEND_BUFFER: usize = 64 * 1024;
const HEAD_BYTES: u32 = 64 * 1024;

/// What came instead of a response.
#[derive(Debug)]
pub enum NoResponse {
    /// The backend did not process the request (REFUSED_STREAM, or a GOAWAY below its stream):
    /// RFC 9113 §8.7 says it may be sent again.
    NotProcessed,
    Closed,
    Malformed,
}

/// A connection that many requests share; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: SendRequest<Bytes>,
    /// One clone for each open stream.
    shared: Rc<Shared>,
}

/// What the streams of a connection share with it.
#[derive(Debug, Default)]
struct Shared {
    /// Set when it has ended because of that.
    session_error: OnceCell<io::Error>,
    /// Nothing came of a request in time: perhaps nothing comes through any more.
    doubtful: Cell<bool>,
}

/// Starts HTTP/2 on a stream to a backend.
///
/// Returns the handle and the future that drives the connection: the caller spawns it, and it ends
/// with the connection.
pub async fn handshake(transport: Transport) -> io::Result<(Handle, impl Future<Output = ()>)> {
    let cork = Corked::new(transport);
    let (sender, mut connection) = client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEAD_BYTES)
        // What was on its way when we reset a stream is no attack of the backend's, and must not end the connection
        // of all others.
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .max_local_error_reset_streams(None)
        .enable_push(false)
        .handshake(cork.handle())
        .await
        .map_err(io_error)?;
    let handle = Handle { sender, shared: Rc::default() };
    let shared = Rc::downgrade(&handle.shared);
    let drive = async move {
        let ended = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(result) => Poll::Ready(result.map_err(io_error)),
            // What the pass has collected goes out together.
            Poll::Pending => match cork.poll_uncork(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Pending,
            },
        });
        if let Err(error) = ended.await {
            // Before any stream that it fails is polled: those are tasks of this thread.
            if let (Some(shared), Some(error)) = (shared.upgrade(), cork.session_error()) {
                let _ = shared.session_error.set(error);
            }
            tracing::debug!("a connection to a backend ended: {error}");
        }
    };
    Ok((handle, drive))
}

impl Handle {
    /// Whether the connection lives and has room for another stream.
    pub fn has_room(&self) -> bool {
        self.streams() < self.sender.current_max_send_streams().min(STREAMS)
    }

    /// Whether a stream is open on it.
    pub fn is_busy(&self) -> bool {
        self.streams() > 0
    }

    fn streams(&self) -> usize {
        // The pool's own handle is not a stream.
        Rc::strong_count(&self.shared) - 1
    }

    /// Whether the connection takes streams, now or later, and nothing speaks against it.
    pub fn is_open(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        !self.shared.doubtful.get() && !matches!(self.poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Ready when the connection takes a new stream; an error when it never will again.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sender.poll_ready(cx).map_err(io_error)
    }

    /// Sends a request head; `ended` when no body follows.
    pub fn send(&mut self, head: UpstreamHead, ended: bool) -> io::Result<Stream> {
        let mut request = Request::new(());
        *request.method_mut() = head.method;
        *request.uri_mut() = head.uri;
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = head.fields;
        let (response, stream) = self.sender.send_request(request, ended).map_err(io_error)?;
        Ok(Stream {
            response: Some(response),
            incoming: None,
            outgoing: Outgoing::new(stream, ended),
            shared: self.shared.clone(),
        })
    }
}

/// A request head as the h2 crate takes it.
#[derive(Debug)]
pub struct UpstreamHead {
    pub method: Method,
    pub uri: Uri,
    pub fields: HeaderMap,
}

/// One request on a shared connection; dropping it before its end resets the stream.
#[derive(Debug)]
pub struct Stream {
    response: Option<ResponseFuture>,
    incoming: Option<Incoming>,
    outgoing: Outgoing,
    shared: Rc<Shared>,
}

impl Stream {
    /// Why the TLS session with the backend has failed, if it has.
    pub fn session_error(&self) -> Option<&io::Error> {
        self.shared.session_error.get()
    }

    /// Has the connection take no more streams: it may be dead without anybody having said so.
    pub fn doubt(&self) {
        self.shared.doubtful.set(true);
    }

    /// Waits for the next head, interim or final.
    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), NoResponse>> {
        let Some(response) = &mut self.response else { return Poll::Ready(Err(NoResponse::Closed)) };
        if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
            return Poll::Ready(convert::read_response(&interim, true, head).ok_or(NoResponse::Malformed));
        }
        let result = ready!(Pin::new(response).poll(cx));
        self.response = None;
        Poll::Ready(match result {
            Ok(response) => self.begin_body(response, head),
            Err(error) => Err(no_response(&error)),
        })
    }

    fn begin_body(
        &mut self,
        response: Response<h2::RecvStream>,
        head: &mut ResponseHead,
    ) -> Result<(), NoResponse> {
        let ended = response.body().is_end_stream();
        convert::read_response(&response, ended, head).ok_or(NoResponse::Malformed)?;
        self.incoming = Some(Incoming::new(response.into_body(), ended));
        Ok(())
    }

    /// Gives the request up.
    pub fn cancel(&mut self) {
        self.outgoing.abort(Code::CANCEL);
    }
}

impl Exchange for Stream {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<Filled, BodyError>> {
        match &mut self.incoming {
            Some(incoming) => incoming.poll_fill(cx),
            None => Poll::Ready(Err(BodyError::Closed)),
        }
    }

    fn data(&self) -> &[u8] {
        self.incoming.as_ref().map_or(&[], Incoming::data)
    }

    fn consume(&mut self, count: usize) {
        if let Some(incoming) = &mut self.incoming {
            incoming.consume(count);
        }
    }

    fn ends_with_data(&self) -> bool {
        self.incoming.as_ref().is_some_and(Incoming::ends_with_data)
    }

    fn trailers(&self) -> Option<&Fields> {
        self.incoming.as_ref().and_then(Incoming::trailers)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8], last: bool) -> Poll<io::Result<usize>> {
        self.outgoing.poll_send(cx, data, last)
    }

    fn poll_finish(&mut self, _: &mut Context<'_>, trailers: Option<&Fields>) -> Poll<io::Result<()>> {
        Poll::Ready(self.outgoing.finish(trailers))
    }

    /// The connection's task flushes for all its streams.
    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn no_response(error: &h2::Error) -> NoResponse {
    match error.reason() {
        Some(Code::REFUSED_STREAM) => NoResponse::NotProcessed,
        Some(Code::NO_ERROR) if error.is_go_away() && error.is_remote() => NoResponse::NotProcessed,
        Some(Code::PROTOCOL_ERROR) if error.is_library() => NoResponse::Malformed,
        _ => NoResponse::Closed,
    }
}
