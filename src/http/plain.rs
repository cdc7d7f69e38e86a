//! A small clear-text HTTP/1 responder on hyper, for what is off the hot path: the admin address and
//! the demo's backends.

use std::{convert::Infallible, io, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::timeout,
};

/// Time for a request head, and for the next one on a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// After this a connection ends with the answer that it is at, and after as long as a head may take whatever it is at:
/// who reads no answers, or holds on to a place, makes room for others.
const LIFETIME: Duration = Duration::from_mins(1);
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
    /// The field's value.
    pub authorization: Option<&'r [u8]>,
}

/// Where clients come in.
#[derive(Debug)]
pub enum Entrance {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Entrance {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Entrance::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
            Entrance::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }
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
pub async fn serve<F>(entrance: Entrance, handler: F)
where
    F: Fn(&Asked<'_>) -> Reply + Send + Sync + 'static,
{
    let handler = Arc::new(handler);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = entrance.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok(Stream::Tcp(stream)) => {
                    connections.spawn(connection(stream, handler.clone()));
                }
                Ok(Stream::Unix(stream)) => {
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

async fn connection<S, F>(stream: S, handler: Arc<F>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Fn(&Asked<'_>) -> Reply + Send + Sync + 'static,
{
    let respond = service_fn(|request: Request<Incoming>| {
        let authorization = request.headers().get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
        let asked = Asked { method: request.method(), path: request.uri().path(), authorization };
        let reply = handler(&asked);
        async move { Ok::<_, Infallible>(response(reply)) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), respond);
    let mut served = pin!(served);
    let mut ended = timeout(LIFETIME, served.as_mut()).await;
    if ended.is_err() {
        served.as_mut().graceful_shutdown();
        ended = timeout(HEAD_TIMEOUT, served).await;
    }
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("an admin connection ended: {error}"),
        Err(_) => tracing::debug!("an admin connection ended: its client takes no answer"),
    }
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() = reply.status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(reply.content_type));
    if reply.status == StatusCode::UNAUTHORIZED {
        // RFC 9110 §11.6.1: a 401 names the scheme.
        let scheme = header::HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_reads_no_answers_makes_room_for_others() {
        let (mut client, server) = duplex(64);
        let handler = |_: &Asked<'_>| Reply::text(StatusCode::OK, "x".repeat(1000));
        let serving = tokio::spawn(connection(server, Arc::new(handler)));
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        serving.await.unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 ") && text.len() < 1000, "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_asks_again_and_again_is_told_to_come_back() {
        let (mut client, server) = duplex(4096);
        let handler = |_: &Asked<'_>| Reply::text(StatusCode::OK, "x");
        let serving = tokio::spawn(connection(server, Arc::new(handler)));
        let mut answers = 0;
        let mut answer = [0; 4096];
        while client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.is_ok() {
            let count = client.read(&mut answer).await.unwrap();
            if count == 0 {
                break;
            }
            answers += 1;
            tokio::time::sleep(HEAD_TIMEOUT / 2).await;
        }
        serving.await.unwrap();
        assert!((11..=13).contains(&answers), "{answers}");
    }
}
