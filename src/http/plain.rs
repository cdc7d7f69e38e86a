//! A small clear-text HTTP/1 responder on hyper, for what is off the hot path: the admin address and
//! the demo's backends.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

/// Time for a request head, and for the next one on a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_BYTES: usize = 16 * 1024;
/// After an accept error that may last, such as no free file descriptor.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections at once; whoever comes then waits in the kernel's queue.
const CONNECTIONS: usize = 256;

/// What is asked for; bodies are not read.
#[derive(Debug)]
pub struct Asked<'r> {
    pub method: &'r Method,
    pub path: &'r str,
}

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: String,
}

impl Reply {
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Reply { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// Answers every request with what `handler` makes of it, until the future is dropped.
pub async fn serve<F>(listener: TcpListener, handler: F)
where
    F: Fn(&Asked<'_>) -> Reply + Send + Sync + 'static,
{
    let handler = Arc::new(handler);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, handler.clone()));
                }
                Err(error) => {
                    tracing::debug!("accept failed: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection<F>(stream: TcpStream, handler: Arc<F>)
where
    F: Fn(&Asked<'_>) -> Reply + Send + Sync + 'static,
{
    let respond = service_fn(|request: Request<Incoming>| {
        let asked = Asked { method: request.method(), path: request.uri().path() };
        let reply = handler(&asked);
        async move { Ok::<_, Infallible>(response(reply)) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), respond)
        .await;
    if let Err(error) = served {
        tracing::debug!("an admin connection ended: {error}");
    }
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() = reply.status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(reply.content_type));
    response
}
