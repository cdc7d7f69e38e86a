//! One try of a request on one backend: a connection, the request, the response.

use std::{future::poll_fn, io, net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use tokio::time::Instant;

use super::{
    flight::Flight,
    forward,
    patience::Patience,
    relay::{Failure, Processed, Relay, Respond, Timeouts, UploadRules},
    view::{BackendView, ClusterView},
};
use crate::{
    config::Protocol,
    error::Reason,
    http::{
        exchange::Downstream,
        fields::FieldId,
        h1, h2,
        message::{BodyLength, RequestHead, ResponseHead},
        transport::Transport,
    },
    observe::BackendCells,
    upstream::{
        connect::connect,
        pool::{Lease, Made, Open},
        tls::{self, HandshakeError},
    },
};

/// How an attempt ended without a complete response.
#[derive(Clone, Copy, Debug)]
pub struct Failed {
    pub reason: Reason,
    /// Another backend may be tried: nothing of this attempt can have had an effect, and nothing
    /// of it has reached the client.
    pub retriable: bool,
    /// The same backend may be tried, on another connection: it is this one that had its end.
    pub stale: bool,
    /// The client got a response head: no other answer can follow.
    pub answered: bool,
}

/// What an exchange leaves behind.
struct Done {
    /// The backend got the whole request, and its whole response was read.
    complete: bool,
    /// When that was.
    ended: Instant,
}

/// What an attempt is sent to.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    pub cluster: usize,
    pub backend: usize,
    /// Over HTTP/1, not on a connection that is kept alive: the last attempt met one that had its end.
    pub fresh: bool,
}

/// A backend and where it stands in the view.
#[derive(Clone, Copy)]
struct Target<'v> {
    cluster: &'v ClusterView,
    backend: &'v BackendView,
    index: usize,
    fresh: bool,
}

impl Target<'_> {
    fn tls_generation(&self) -> u32 {
        self.cluster.cluster.backends[self.index].tls_generation()
    }

    /// Where a new connection leads to, if that may change.
    fn address_of(&self, transport: &Transport) -> Option<IpAddr> {
        let has_name = self.cluster.cluster.backends[self.index].has_name();
        has_name.then(|| transport.tcp().peer_addr().ok())?.map(|address| address.ip())
    }
}

/// Counts a request to a backend exactly once, however it ends.
struct Counted<'v> {
    cells: &'v BackendCells,
    status: Option<u16>,
    head_after: Option<Duration>,
    /// When the request was sent.
    sent: Instant,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.cells.request_finished(self.status, self.head_after);
    }
}

/// Sends the request to one backend and its response to the client.
pub async fn attempt<D: Downstream>(
    flight: &mut Flight<'_>,
    down: &mut D,
    patience: &mut Patience<'_>,
    aim: Aim,
) -> Result<(), Failed> {
    let view = flight.view.clone();
    let cluster = &view.clusters[aim.cluster];
    let target =
        Target { cluster, backend: &cluster.backends[aim.backend], index: aim.backend, fresh: aim.fresh };
    target.backend.cells.request_started();
    // The first attempt begins with the request, unless that had to wait for its body.
    let sent = if flight.attempts == 1 && !flight.waited { flight.started } else { Instant::now() };
    let mut counted = Counted { cells: &target.backend.cells, status: None, head_after: None, sent };
    match cluster.cluster.config.protocol {
        Protocol::Http1 => over_http1(flight, (down, patience), target, &mut counted).await,
        Protocol::H2 => Box::pin(over_h2(flight, (down, patience), target, &mut counted)).await,
    }
}

async fn over_http1<D: Downstream>(
    flight: &mut Flight<'_>,
    (down, patience): (&mut D, &mut Patience<'_>),
    target: Target<'_>,
    counted: &mut Counted<'_>,
) -> Result<(), Failed> {
    let config = &target.cluster.cluster.config;
    let pool = &target.backend.pool;
    let pooled = if target.fresh { None } else { pool.borrow_mut().take(counted.sent, config.idle_timeout) };
    let mut lease = if let Some(lease) = pooled {
        lease
    } else {
        // Boxed: connecting takes more room than all the rest, and most requests don't.
        let lease = Box::pin(open_http1(flight, target)).await?;
        counted.sent = Instant::now();
        lease
    };
    let head = &*flight.head;
    lease.connection.send_request(&head.method, &head.target, head.body, |out| {
        forward::write_http1(flight, &config.backends[target.index].address, out);
    });
    let mut response = ResponseHead::default();
    let result = exchange(flight, (down, patience), (&mut *lease.connection, config), counted, &mut response);
    let result = result.await;
    let reusable = response.keep_alive;
    match result {
        Ok(done) => {
            if done.complete && reusable {
                pool.borrow_mut().give(lease, done.ended, config.idle_connections);
            }
            Ok(())
        }
        Err(failed) => Err(Failed { retriable: failed.retriable && lease.reused, ..failed }
            .or_refused(flight, || tls::refusal(&lease.connection.session_error()?))),
    }
}

async fn open_http1(flight: &Flight<'_>, target: Target<'_>) -> Result<Lease, Failed> {
    let start = Instant::now();
    let header =
        if target.cluster.cluster.config.proxy_protocol { forward::proxy_header(flight) } else { Vec::new() };
    let generation = target.tls_generation();
    let transport = open(target, &header).await?;
    let open = Open::count(target.backend.cells.clone(), start.elapsed());
    let made = Made { generation, address: target.address_of(&transport) };
    Ok(Lease::new(h1::Connection::new(transport), open, made))
}

async fn open(target: Target<'_>, header: &[u8]) -> Result<Transport, Failed> {
    let cluster = &target.cluster.cluster;
    connect(cluster, &cluster.backends[target.index], header).await.map_err(|error| {
        tracing::debug!("cluster {}: {error}", cluster.name());
        Failed::unsent(error.reason)
    })
}

async fn over_h2<D: Downstream>(
    flight: &mut Flight<'_>,
    (down, patience): (&mut D, &mut Patience<'_>),
    target: Target<'_>,
    counted: &mut Counted<'_>,
) -> Result<(), Failed> {
    let config = &target.cluster.cluster.config;
    let mut handle = shared(target).await?;
    counted.sent = Instant::now();
    let head = h2_head(flight, config.tls.is_some(), &config.backends[target.index].address)?;
    let ended = matches!(flight.head.body, BodyLength::Empty | BodyLength::Exact(0));
    // WHY: a connection that dies between the look and the send has not seen this request.
    let mut stream = handle.send(head, ended).map_err(|_| Failed::unsent(Reason::UpstreamClosed))?;
    // The stream counts itself; two for each request would leave half of the connection unused.
    drop(handle);
    let mut response = ResponseHead::default();
    let result = exchange(flight, (down, patience), (&mut stream, config), counted, &mut response).await;
    match result {
        Ok(_) => Ok(()),
        Err(failed) => {
            if failed.reason == Reason::ResponseTimeout {
                stream.doubt();
            }
            Err(failed.or_refused(flight, || tls::refusal(stream.session_error()?)))
        }
    }
}

/// A connection with room for another stream: one that is there, or a new one.
async fn shared(target: Target<'_>) -> Result<h2::upstream::Handle, Failed> {
    let pool = &target.backend.pool;
    let limit = target.cluster.cluster.config.connect_timeout;
    let opened = tokio::time::timeout(limit, async {
        loop {
            let found = pool.borrow_mut().shared();
            if let Some(mut handle) = found
                && poll_fn(|cx| handle.poll_ready(cx)).await.is_ok()
            {
                return Ok(handle);
            }
            let _one_at_a_time = target.backend.connecting.lock().await;
            if pool.borrow_mut().shared().is_none() {
                open_h2(target).await?;
            }
        }
    });
    opened.await.unwrap_or(Err(Failed::unsent(Reason::ConnectTimeout)))
}

async fn open_h2(target: Target<'_>) -> Result<(), Failed> {
    let start = Instant::now();
    let generation = target.tls_generation();
    let transport = open(target, &[]).await?;
    let made = Made { generation, address: target.address_of(&transport) };
    let handshake = h2::upstream::handshake(transport).await;
    let (handle, drive) = handshake.map_err(|_| Failed::unsent(Reason::UpstreamClosed))?;
    let open = Open::count(target.backend.cells.clone(), start.elapsed());
    tokio::task::spawn_local(async move {
        drive.await;
        drop(open);
    });
    target.backend.pool.borrow_mut().share(handle, made);
    Ok(())
}

/// The request head for an HTTP/2 backend.
fn h2_head(flight: &Flight<'_>, tls: bool, fallback: &str) -> Result<h2::upstream::UpstreamHead, Failed> {
    let mut fields = HeaderMap::with_capacity(flight.head.fields.len() + 8);
    forward::each_field(flight, &mut |name, value| {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            fields.append(name, value);
        }
    });
    if forward::accepts_trailers(flight.head) {
        fields.insert(http::header::TE, HeaderValue::from_static("trailers"));
    }
    if let BodyLength::Exact(length) = flight.head.body {
        fields.insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let authority = flight.head.authority();
    let authority = if authority.is_empty() { fallback } else { authority };
    let target = if flight.head.target == "*" { "/" } else { &flight.head.target };
    let uri = Uri::builder()
        .scheme(if tls { "https" } else { "http" })
        .authority(authority)
        .path_and_query(target)
        .build()
        .map_err(|_| Failed::refused(Reason::BadRequest))?;
    Ok(h2::upstream::UpstreamHead { method: flight.head.method.clone(), uri, fields })
}

/// Request out, response back, over a connection or stream that has taken the request's head.
async fn exchange<D: Downstream, U: Respond>(
    flight: &mut Flight<'_>,
    (down, patience): (&mut D, &mut Patience<'_>),
    (up, config): (&mut U, &crate::config::Cluster),
    counted: &mut Counted<'_>,
    response: &mut ResponseHead,
) -> Result<Done, Failed> {
    let view = flight.view.clone();
    let limits = &view.config.listeners[flight.client.listener].limits;
    let timeouts = Timeouts::new(limits, config, is_grpc(flight.head));
    patience.tell(counted.sent);
    let rules = UploadRules {
        most: limits.body_bytes,
        dropped: &view.config.listeners[flight.client.listener].identity_fields,
    };
    let mut relay = Relay::new(down, up, patience, timeouts, (rules, counted.sent));
    let result = relay.response(flight.head, response).await;
    flight.bytes_in = relay.bytes_in();
    if let Err(failure) = result {
        return Err(Failed::before_head(failure, flight));
    }
    let took = counted.sent.elapsed();
    (counted.status, counted.head_after) = (Some(response.status.as_u16()), Some(took));
    flight.upstream_response = Some(took);
    if !fits(flight.head, response) {
        return Err(Failed::refused(Reason::UpstreamBadResponse));
    }
    response.fields.retain(|id, _| id != FieldId::XPortcullisReason);
    flight.head.forget_fields();
    // Who answers before it has the body may never read it, and then takes its rest for the next request.
    let in_order = relay.upload_complete();
    let result = respond(flight, &mut relay, response).await;
    (flight.bytes_in, flight.bytes_out) = (relay.bytes_in(), relay.bytes_out());
    let complete = in_order && response.status != StatusCode::SWITCHING_PROTOCOLS;
    // Most bodies come with their head: then the clock need not be read again.
    let ended = if relay.body_waited() { Instant::now() } else { counted.sent + took };
    match result {
        Ok(()) => Ok(Done { complete, ended }),
        Err(reason) => {
            flight.reason = Some(reason);
            if reason == Reason::WriteTimeout {
                down.give_up();
            } else {
                down.abort();
            }
            Err(Failed { answered: true, ..Failed::refused(reason) })
        }
    }
}

/// Sends the response on: head, then body or tunnel.
async fn respond<D: Downstream, U: Respond>(
    flight: &mut Flight<'_>,
    relay: &mut Relay<'_, '_, D, U>,
    response: &mut ResponseHead,
) -> Result<(), Reason> {
    if response.status == StatusCode::SWITCHING_PROTOCOLS {
        return tunnel(flight, relay, response).await;
    }
    flight.status = Some(response.status.as_u16());
    if flight.worker.is_draining() {
        relay.down.close_after_reply();
    }
    flight.add_hsts(response);
    relay.down.send_head(response).map_err(|_: io::Error| Reason::ClientClosed)?;
    relay.body().await
}

/// Whether a response is what its request may get: a 101 only if it asked for one, and for this
/// protocol.
fn fits(request: &RequestHead, response: &ResponseHead) -> bool {
    response.status != StatusCode::SWITCHING_PROTOCOLS
        || (request.upgrade.is_some() && request.upgrade == response.upgrade)
}

async fn tunnel<D: Downstream, U: Respond>(
    flight: &mut Flight<'_>,
    relay: &mut Relay<'_, '_, D, U>,
    response: &mut ResponseHead,
) -> Result<(), Reason> {
    flight.status = Some(response.status.as_u16());
    let protocol = response.upgrade.as_deref().unwrap_or_default();
    relay.down.send_switching(response, protocol).map_err(|_| Reason::ClientClosed)?;
    relay.up.switch();
    relay.tunnel().await
}

fn is_grpc(head: &RequestHead) -> bool {
    head.fields.get(FieldId::ContentType).is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

impl Failed {
    /// Nothing of the request was sent.
    fn unsent(reason: Reason) -> Self {
        Failed { reason, retriable: true, stale: false, answered: false }
    }

    /// No backend would do better.
    pub fn refused(reason: Reason) -> Self {
        Failed { reason, retriable: false, stale: false, answered: false }
    }

    /// The same, unless the backend broke off because of our certificate: over TLS 1.3 it says so in
    /// place of an answer, and has not looked at the request.
    fn or_refused(self, flight: &Flight<'_>, refusal: impl FnOnce() -> Option<HandshakeError>) -> Self {
        if self.reason != Reason::UpstreamClosed || self.answered {
            return self;
        }
        let Some(refusal) = refusal() else { return self };
        tracing::debug!("the backend refuses our certificate: {}", refusal.detail);
        let whole = flight.bytes_in == 0 && flight.head.body == BodyLength::Empty;
        Failed { retriable: whole, ..Failed::refused(refusal.reason) }
    }

    /// No response head came. Retriable, on a connection that was used before, when the backend did
    /// nothing with the request for certain or may do it twice (RFC 9110 §9.2.2).
    fn before_head(failure: Failure, flight: &Flight<'_>) -> Self {
        match failure {
            Failure::Reason(reason) => Failed::refused(reason),
            Failure::Unanswered { processed } => {
                let harmless = processed == Processed::No || flight.head.method.is_idempotent();
                let whole = flight.bytes_in == 0 && flight.head.body == BodyLength::Empty;
                Failed {
                    retriable: harmless && whole,
                    stale: true,
                    ..Failed::refused(Reason::UpstreamClosed)
                }
            }
        }
    }
}
