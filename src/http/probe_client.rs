//! One small request for a health check: sends a GET, reads the status and the start of the body.
//!
//! The connection is used once. Nothing a backend sends makes it hold more than the head limit and
//! `body_limit`; the caller sets the deadline.

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

const USER_AGENT: &str = concat!("portcullis-probe/", env!("CARGO_PKG_VERSION"));
/// The largest response head that is read.
const HEAD_LIMIT: usize = 64 * 1024;

/// What to ask for.
#[derive(Debug, Clone, Copy)]
pub struct ProbeRequest<'a> {
    /// With its query, if any.
    pub path: &'a str,
    /// `host` or `:authority`.
    pub host: &'a str,
    /// The `:scheme` of HTTP/2.
    pub https: bool,
    /// Bytes of the body to read; 0 reads none.
    pub body_limit: usize,
}

#[derive(Debug)]
pub struct ProbeResponse {
    pub status: StatusCode,
    /// At most `body_limit` bytes.
    pub body: Vec<u8>,
}

/// Why there is no response.
#[derive(Debug)]
pub enum ProbeError {
    /// The path or the host can't be sent.
    Request(http::Error),
    /// The connection ended before the response was complete.
    Closed(String),
    /// The response is not valid HTTP.
    Invalid(String),
}

/// Probes over HTTP/1.1. Cancel safe: dropping the future closes the stream.
pub async fn http1<S>(stream: S, wanted: ProbeRequest<'_>) -> Result<ProbeResponse, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let uri =
        Uri::from(wanted.path.parse::<PathAndQuery>().map_err(|error| ProbeError::Request(error.into()))?);
    let request = Request::get(uri)
        .header(header::HOST, wanted.host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(ProbeError::Request)?;
    let mut client = hyper::client::conn::http1::Builder::new();
    client.max_buf_size(HEAD_LIMIT);
    let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let mut response = sender.send_request(request).await?;
        let mut body = Vec::new();
        while body.len() < wanted.body_limit
            && let Some(frame) = response.frame().await
        {
            append(&mut body, frame?.data_ref().map_or(&[][..], |data| data), wanted.body_limit);
        }
        Ok(ProbeResponse { status: response.status(), body })
    };
    drive(exchange, connection).await
}

/// Probes over HTTP/2, with prior knowledge or after ALPN. Cancel safe: dropping the future closes
/// the stream.
pub async fn h2<S>(stream: S, wanted: ProbeRequest<'_>) -> Result<ProbeResponse, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let uri = Uri::builder()
        .scheme(if wanted.https { "https" } else { "http" })
        .authority(wanted.host)
        .path_and_query(wanted.path)
        .build()
        .map_err(ProbeError::Request)?;
    let request = Request::get(uri)
        .version(http::Version::HTTP_2)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .body(())
        .map_err(ProbeError::Request)?;
    let mut client = h2::client::Builder::new();
    client.enable_push(false).max_header_list_size(u32::try_from(HEAD_LIMIT).unwrap_or(u32::MAX));
    let (sender, connection) = client.handshake::<_, Bytes>(stream).await?;
    let exchange = async {
        let mut sender = sender.ready().await?;
        let (response, _) = sender.send_request(request, true)?;
        let (head, mut incoming) = response.await?.into_parts();
        let mut body = Vec::new();
        while body.len() < wanted.body_limit
            && let Some(data) = incoming.data().await
        {
            let data = data?;
            append(&mut body, &data, wanted.body_limit);
            incoming.flow_control().release_capacity(data.len())?;
        }
        Ok(ProbeResponse { status: head.status, body })
    };
    drive(exchange, connection).await
}

/// Runs the exchange with its connection beside it; what the exchange says is the result, since it
/// may still have data to read when the connection has ended.
async fn drive<T>(
    exchange: impl Future<Output = Result<T, ProbeError>>,
    connection: impl Future,
) -> Result<T, ProbeError> {
    let connection = async {
        connection.await;
        std::future::pending().await
    };
    tokio::select! {
        result = exchange => result,
        result = connection => result,
    }
}

fn append(body: &mut Vec<u8>, data: &[u8], limit: usize) {
    let room = limit.saturating_sub(body.len());
    body.extend_from_slice(&data[..room.min(data.len())]);
}

impl From<hyper::Error> for ProbeError {
    fn from(error: hyper::Error) -> ProbeError {
        if error.is_parse() {
            ProbeError::Invalid(error.to_string())
        } else {
            ProbeError::Closed(error.to_string())
        }
    }
}

impl From<h2::Error> for ProbeError {
    fn from(error: h2::Error) -> ProbeError {
        let ended = error.is_io() || error.is_go_away() || error.is_reset();
        if ended { ProbeError::Closed(error.to_string()) } else { ProbeError::Invalid(error.to_string()) }
    }
}
