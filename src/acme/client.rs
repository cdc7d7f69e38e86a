//! How requests get to the directory: a name, TCP, TLS that is verified, one request, under one deadline.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, header::RETRY_AFTER};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use tokio::{net::TcpStream, time::timeout};

use super::schedule::DAY;
use crate::{
    config::{ClusterTls, Protocol, TlsVersion, TrustedCa},
    http::fetch,
    upstream::tls::{ClusterConnector, SetupError},
};

/// From the name to the end of the answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// The largest answer: a chain of certificates has a few kilobytes.
const LARGEST_ANSWER: usize = 256 * 1024;
const PORT: u16 = 443;

/// Speaks to one directory; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tls: ClusterConnector,
    /// The most seconds that the directory asked us to wait with a refusal: the library does not pass it on.
    retry_after: Mutex<Option<i64>>,
}

/// A request that got no answer.
#[derive(Debug)]
pub(super) struct Unreachable(pub(super) String);

impl Client {
    /// # Errors
    /// No certificate to trust.
    pub(super) fn new(ca: &TrustedCa) -> Result<Self, SetupError> {
        let tls = ClusterTls {
            ca: ca.clone(),
            server_name: None,
            names: Vec::new(),
            certificate: None,
            crl: None,
            minimum_version: TlsVersion::Tls12,
            verify: true,
        };
        let tls = ClusterConnector::new("acme", &tls, Protocol::Http1)?;
        Ok(Client(Arc::new(Inner { tls, retry_after: Mutex::default() })))
    }

    /// How many seconds the directory asked us to wait since the last call of this.
    pub(super) fn take_retry_after(&self) -> Option<i64> {
        self.0.retry_after.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn send(&self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Unreachable> {
        let url = request.uri().clone();
        let host = url.host().ok_or_else(|| Unreachable(format!("{url} has no host")))?;
        if url.scheme_str() != Some("https") {
            return Err(Unreachable(format!("{url} is not https")));
        }
        let failed =
            |what: &str, error: &dyn fmt::Display| Unreachable(format!("{what} {host} failed: {error}"));
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let stream = connect(bare, url.port_u16().unwrap_or(PORT)).await;
        let stream = stream.map_err(|error| failed("connect to", &error))?;
        let connector = self.0.tls.backend(host).map_err(|error| failed("TLS with", &error))?;
        let stream = connector.handshake(stream).await;
        let stream = stream.map_err(|error| failed("TLS with", &error.detail))?;
        let answer = fetch::fetch(stream, request, LARGEST_ANSWER).await;
        let mut answer = answer.map_err(|error| failed("asking", &error))?;
        let wish = bound_wish(answer.headers_mut());
        if answer.status().is_client_error() || answer.status().is_server_error() {
            let mut longest = self.0.retry_after.lock().unwrap_or_else(PoisonError::into_inner);
            *longest = wish.max(*longest);
        }
        Ok(BytesResponse::from(answer))
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            let host = request.uri().host().unwrap_or_default().to_owned();
            let late = |_| Unreachable(format!("{host} did not answer within {DEADLINE:?}"));
            let answer = timeout(DEADLINE, client.send(request)).await.map_err(late).flatten();
            answer.map_err(|error| Error::Other(Box::new(error)))
        })
    }
}

/// How many seconds an answer asks us to wait, a day at most. It is told no other number from here on: one without
/// bounds is too much for the library's clock.
fn bound_wish(fields: &mut HeaderMap) -> Option<i64> {
    let text = fields.get(RETRY_AFTER)?.to_str().ok()?;
    // What else the library takes for a number.
    let text = text.trim();
    let digits = text.strip_prefix('+').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let wish = digits.parse().unwrap_or(DAY).min(DAY);
    fields.insert(RETRY_AFTER, HeaderValue::from(wish));
    Some(wish)
}

/// Tries the addresses of a name in their order.
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        match timeout(DEADLINE / 3, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_has_bounds_for_us_and_for_the_library() {
        for (text, wish, left) in [
            ("0", Some(0), "0"),
            ("120", Some(120), "120"),
            ("86401", Some(DAY), "86400"),
            ("18446744073709551615", Some(DAY), "86400"),
            ("99999999999999999999999999", Some(DAY), "86400"),
            ("+18446744073709551615", Some(DAY), "86400"),
            ("-1", None, "-1"),
            ("", None, ""),
            ("Fri, 27 Nov 2026 12:00:00 GMT", None, "Fri, 27 Nov 2026 12:00:00 GMT"),
        ] {
            let mut fields = HeaderMap::new();
            fields.insert(RETRY_AFTER, HeaderValue::from_static(text));
            assert_eq!(bound_wish(&mut fields), wish, "{text}");
            assert_eq!(fields[RETRY_AFTER], left);
        }
        assert_eq!(bound_wish(&mut HeaderMap::new()), None);
    }
}
