//! One request of our own with its whole answer, such as those to a certificate directory.
//!
//! HTTP/1.1 over a connection that is used once. What the peer sends is held up to a limit; the caller sets the
//! deadline.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// The largest head of an answer that is read.
const HEAD_LIMIT: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub enum FetchError {
    /// Its URL has no host or can't be sent.
    Request(String),
    /// The body is longer than that.
    TooLong(usize),
    /// The connection ended early, or what came is not HTTP.
    Exchange(hyper::Error),
}

/// Sends a request whose target is a whole URL. Cancel safe: dropping the future closes the stream.
pub async fn fetch<S, B>(
    stream: S,
    request: Request<B>,
    body_limit: usize,
) -> Result<Response<Full<Bytes>>, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: std::error::Error + Send + Sync,
{
    let request = in_origin_form(request)?;
    let mut client = hyper::client::conn::http1::Builder::new();
    client.max_buf_size(HEAD_LIMIT);
    let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        match Limited::new(body, body_limit).collect().await {
            Ok(body) => Ok(Response::from_parts(head, Full::new(body.to_bytes()))),
            Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLong(body_limit)),
            Err(error) => Err(error.downcast::<hyper::Error>().map_or_else(
                |error| FetchError::Request(error.to_string()),
                |error| FetchError::Exchange(*error),
            )),
        }
    };
    // What the exchange says is the result: it may have data to read when the connection is over.
    let connection = async {
        // WHY: an error of the connection is one of the exchange too.
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        result = exchange => result,
        result = connection => result,
    }
}

/// Puts the host into a field and leaves path and query as the target.
fn in_origin_form<B>(request: Request<B>) -> Result<Request<B>, FetchError> {
    let (mut head, body) = request.into_parts();
    let invalid = || FetchError::Request(format!("{} is no URL to ask", head.uri));
    let host = HeaderValue::from_str(head.uri.authority().ok_or_else(invalid)?.as_str());
    let host = host.map_err(|_| invalid())?;
    head.uri =
        head.uri.path_and_query().map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()));
    head.headers.insert(header::HOST, host);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(Request::from_parts(head, body))
}

impl From<hyper::Error> for FetchError {
    fn from(error: hyper::Error) -> FetchError {
        FetchError::Exchange(error)
    }
}

impl std::fmt::Display for FetchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FetchError::Request(what) => f.write_str(what),
            FetchError::TooLong(limit) => write!(f, "the answer has more than {limit} bytes"),
            FetchError::Exchange(error) => write!(f, "the exchange failed: {error}"),
        }
    }
}

impl std::error::Error for FetchError {}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    async fn exchange(answer: &[u8], url: &str) -> (Result<Response<Full<Bytes>>, FetchError>, String) {
        let (ours, mut theirs) = duplex(1024 * 1024);
        let answer = answer.to_vec();
        let peer = tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\nhello")
                && theirs.read_buf(&mut head).await.is_ok_and(|read| read > 0)
            {}
            let _ = theirs.write_all(&answer).await;
            String::from_utf8(head).expect("ASCII")
        });
        let request = Request::post(url).body("hello".to_owned()).expect("valid");
        let result = fetch(ours, request, 10).await;
        (result, peer.await.expect("no panic"))
    }

    async fn body(response: Response<Full<Bytes>>) -> Bytes {
        response.into_body().collect().await.expect("whole").to_bytes()
    }

    #[tokio::test]
    async fn sends_path_and_query_and_returns_the_answer() {
        let answer = b"HTTP/1.1 201 Created\r\nreplay-nonce: x\r\ncontent-length: 10\r\n\r\n0123456789";
        let (response, sent) = exchange(answer, "https://acme.test:14000/new?a=b").await;
        let response = response.expect("valid");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["replay-nonce"]),
            (201, &HeaderValue::from_static("x"))
        );
        assert_eq!(body(response).await, "0123456789");
        assert!(sent.starts_with("POST /new?a=b HTTP/1.1\r\n"), "{sent}");
        for field in ["host: acme.test:14000\r\n", "connection: close\r\n", "content-length: 5\r\n"] {
            assert!(sent.contains(field), "{field:?} is not in {sent}");
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_an_error() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n0123456789x";
        let (response, _) = exchange(answer, "https://acme.test/").await;
        assert!(matches!(response, Err(FetchError::TooLong(10))), "{response:?}");
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nb\r\n0123456789x\r\n0\r\n\r\n";
        let (response, _) = exchange(answer, "https://acme.test/").await;
        assert!(matches!(response, Err(FetchError::TooLong(10))), "{response:?}");
    }

    #[tokio::test]
    async fn what_breaks_off_or_is_no_http_is_an_error_of_the_exchange() {
        for answer in [&b""[..], b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234", b"220 mail ready\r\n"]
        {
            let (response, _) = exchange(answer, "https://acme.test/").await;
            assert!(matches!(response, Err(FetchError::Exchange(_))), "{response:?}");
        }
    }

    #[tokio::test]
    async fn a_target_without_a_host_is_not_sent() {
        let request = Request::get("/directory").body(String::new()).expect("valid");
        let response = fetch(duplex(10).0, request, 10).await;
        assert!(matches!(response, Err(FetchError::Request(_))), "{response:?}");
    }
}
