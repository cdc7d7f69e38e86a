//! The same bytes as hyper reads them: a second parser of whole messages, framing and all.
//!
//! hyper takes more than Portcullis does; what is asked is only whether it reads what we took in the
//! same way.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::{Body, Incoming},
    rt::{Read, ReadBufCursor, Write},
    service::service_fn,
};

/// Polls of a connection; hyper needs a handful for two messages.
const POLLS: usize = 32;

/// A request to put behind another one: whoever finds it has found the same end.
pub const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n";

/// A request as hyper's server side hands it over.
#[derive(Debug)]
pub struct SeenRequest {
    pub method: Method,
    pub uri: Uri,
    pub version: Version,
    pub fields: HeaderMap,
    pub body: SeenBody,
}

/// A response as hyper's client side hands it over.
#[derive(Debug)]
pub struct SeenResponse {
    pub status: StatusCode,
    pub fields: HeaderMap,
    pub body: SeenBody,
}

/// How hyper frames a body, and what it finds in it.
#[derive(Debug, Default)]
pub struct SeenBody {
    /// The length as known before the body is read; `None` for chunked and for one that ends with
    /// its connection.
    pub announced: Option<u64>,
    pub payload: Vec<u8>,
    pub trailers: HeaderMap,
    pub is_complete: bool,
}

/// The requests that hyper's server side finds in these bytes, in order.
pub fn requests(input: &[u8]) -> Vec<SeenRequest> {
    let seen = RefCell::new(Vec::new());
    let service = service_fn(async |request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        let body = collect(body).await;
        let (method, uri, version, fields) = (head.method, head.uri, head.version, head.headers);
        seen.borrow_mut().push(SeenRequest { method, uri, version, fields, body });
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    let wire = Wire { input, ends: false, is_asked: true };
    drive(server.auto_date_header(false).serve_connection(wire, service));
    seen.into_inner()
}

/// The response that hyper's client side finds in these bytes, after which the stream ends.
pub fn response(input: &[u8], method: &Method) -> Option<SeenResponse> {
    let exchange = async {
        let wire = Wire { input, ends: true, is_asked: false };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(wire).await.ok()?;
        let request = Request::builder().method(method).uri("/").header("host", "a");
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        let mut answer = pin!(async {
            let (head, body) = sender.send_request(request).await.ok()?.into_parts();
            Some(SeenResponse { status: head.status, fields: head.headers, body: collect(body).await })
        });
        let mut connection = pin!(connection);
        let mut is_open = true;
        poll_fn(|context| {
            is_open = is_open && connection.as_mut().poll(context).is_pending();
            answer.as_mut().poll(context)
        })
        .await
    };
    drive(exchange).flatten()
}

async fn collect(mut body: Incoming) -> SeenBody {
    let mut seen = SeenBody { announced: body.size_hint().exact(), ..SeenBody::default() };
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return seen };
        match frame.into_data() {
            Ok(data) => seen.payload.extend_from_slice(&data),
            Err(frame) => seen.trailers.extend(frame.into_trailers().expect("no data")),
        }
    }
    seen.is_complete = true;
    seen
}

/// Polls until it is done or can't go on; nothing here waits for anything outside.
fn drive<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    (0..POLLS).find_map(|_| match future.as_mut().poll(&mut context) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    })
}

/// A stream that brings `input` and then, if it `ends`, its end; what is written to it is lost.
struct Wire<'i> {
    input: &'i [u8],
    ends: bool,
    /// Something was written to it. hyper takes an answer that comes before the request for an error.
    is_asked: bool,
}

impl Read for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut room: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_asked || (self.input.is_empty() && !self.ends) {
            return Poll::Pending;
        }
        let (now, later) = self.input.split_at(self.input.len().min(room.remaining()));
        room.put_slice(now);
        self.input = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_asked = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
