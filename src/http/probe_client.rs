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
    Closed(Box<dyn std::error::Error + Send + Sync>),
    /// The response is not valid HTTP.
    Invalid(String),
}

/// Probes over HTTP/1.1. Cancel safe: dropping the future closes the stream.
pub async fn http1<S>(stream: S, wanted: ProbeRequest<'_>) -> Result<ProbeResponse, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
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
    S: AsyncRead + AsyncWrite + Unpin,
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
            ProbeError::Closed(error.into())
        }
    }
}

impl From<h2::Error> for ProbeError {
    fn from(error: h2::Error) -> ProbeError {
        // A reset or GOAWAY of the backend's own; ours answer what it did wrong.
        if error.is_io() || error.is_remote() {
            ProbeError::Closed(error.into())
        } else {
            ProbeError::Invalid(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const PROBE: ProbeRequest<'_> =
        ProbeRequest { path: "/up?x=1", host: "a.test:81", https: true, body_limit: 0 };

    /// Sends a probe to a peer that answers with these bytes and closes; returns what it was sent, too.
    async fn exchange(
        answer: &[u8],
        wanted: ProbeRequest<'_>,
    ) -> (Result<ProbeResponse, ProbeError>, String) {
        let (ours, theirs) = duplex(1024 * 1024);
        let answer = answer.to_vec();
        let peer = tokio::spawn(async move { answer_raw(theirs, &answer).await });
        let result = http1(ours, wanted).await;
        (result, peer.await.expect("no panic"))
    }

    async fn answer_raw(mut stream: DuplexStream, answer: &[u8]) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {}
        let _ = stream.write_all(answer).await;
        String::from_utf8(head).expect("ASCII")
    }

    #[tokio::test]
    async fn sends_one_request_that_closes() {
        let (response, sent) = exchange(b"HTTP/1.1 204 No Content\r\n\r\n", PROBE).await;
        assert_eq!(response.expect("valid").status, 204);
        assert!(sent.starts_with("GET /up?x=1 HTTP/1.1\r\n"), "{sent}");
        for field in
            ["host: a.test:81", "connection: close", concat!("portcullis-probe/", env!("CARGO_PKG_VERSION"))]
        {
            assert!(sent.contains(field), "{field} is not in {sent}");
        }
    }

    #[tokio::test]
    async fn reads_the_body_up_to_its_limit() {
        let answers = [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789"[..],
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\n\r\n0123456789",
        ];
        for answer in answers {
            for (body_limit, expected) in [(0, ""), (9, "012345678"), (10, "0123456789"), (11, "0123456789")]
            {
                let (response, _) = exchange(answer, ProbeRequest { body_limit, ..PROBE }).await;
                assert_eq!(response.expect("valid").body, expected.as_bytes());
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_early_is_closed() {
        for answer in [&b""[..], b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234"] {
            let (response, _) = exchange(answer, ProbeRequest { body_limit: 100, ..PROBE }).await;
            assert!(matches!(response, Err(ProbeError::Closed(_))), "{response:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_no_http_is_invalid() {
        let endless = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; 2 * HEAD_LIMIT]].concat();
        for answer in [&b"220 mail ready\r\n"[..], b"HTTP/1.1 banana\r\n\r\n", b"\0\0\0\0", &endless] {
            let (response, _) = exchange(answer, PROBE).await;
            assert!(matches!(response, Err(ProbeError::Invalid(_))), "{response:?}");
        }
    }

    #[tokio::test]
    async fn what_can_not_be_sent_is_an_error_and_no_panic() {
        for (path, host) in [("/\n", "a"), ("/", "a\r\nb: c")] {
            let wanted = ProbeRequest { path, host, ..PROBE };
            let over_h1 = http1(duplex(1024).0, wanted).await;
            assert!(matches!(over_h1, Err(ProbeError::Request(_))), "{over_h1:?}");
            let over_h2 = h2(duplex(1024).0, wanted).await;
            assert!(matches!(over_h2, Err(ProbeError::Request(_))), "{over_h2:?}");
        }
        let over_h2 = h2(duplex(1024).0, ProbeRequest { host: "", ..PROBE }).await;
        assert!(matches!(over_h2, Err(ProbeError::Request(_))), "{over_h2:?}");
    }

    #[tokio::test]
    async fn probes_over_h2() {
        let (ours, theirs) = duplex(1024 * 1024);
        let peer = tokio::spawn(async move {
            let mut connection = h2::server::handshake(theirs).await.expect("a preface");
            let (request, mut respond) = connection.accept().await.expect("a stream").expect("valid");
            let mut body = respond.send_response(http::Response::new(()), false).expect("open");
            body.send_data(vec![b'x'; 200_000].into(), true).expect("open");
            while connection.accept().await.is_some() {}
            request.uri().to_string()
        });
        let response = h2(ours, ProbeRequest { body_limit: 150_000, ..PROBE }).await.expect("valid");
        assert_eq!((response.status, response.body.len()), (StatusCode::OK, 150_000));
        assert_eq!(peer.await.expect("no panic"), "https://a.test:81/up?x=1");
    }

    #[tokio::test]
    async fn h2_that_breaks_off_is_closed_and_http1_is_not_h2() {
        let (ours, theirs) = duplex(1024);
        drop(theirs);
        let response = h2(ours, PROBE).await;
        assert!(matches!(response, Err(ProbeError::Closed(_))), "{response:?}");
        let (ours, mut theirs) = duplex(1024);
        theirs.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await.expect("open");
        let response = h2(ours, PROBE).await;
        assert!(matches!(response, Err(ProbeError::Invalid(_))), "{response:?}");
    }
}
