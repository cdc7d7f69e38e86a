//! Bodies between a client and a backend: both directions at once, at the pace of the slower end.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use super::patience::{Indulgence, Patience, Wait};
use crate::{
    config::{Cluster, IdentityFields, Limits, Protocol},
    error::Reason,
    http::{
        exchange::{BodyError, Downstream, Exchange, Filled},
        fields::Fields,
        h1, h2,
        message::{BodyLength, RequestHead, ResponseHead},
    },
};

/// Interim responses that a backend may send for one request.
const INTERIM_RESPONSES: u32 = 16;

/// How long each side may take; from the listener's limits and the cluster's timeouts.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    body_idle: Duration,
    /// Bytes a second, once `rate_grace` is over; 0: no floor.
    body_rate: u64,
    rate_grace: Duration,
    write: Duration,
    write_rate: u64,
    response: Duration,
    response_idle: Duration,
    pub tunnel: Duration,
}

/// Which end a direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitsFor {
    Source,
    Sink,
}

/// One direction: bytes that passed, and whether it is over.
#[derive(Debug)]
struct Direction {
    bytes: u64,
    moved: bool,
    waits_for: WaitsFor,
    ended: bool,
}

/// Why a direction can't go on.
#[derive(Debug)]
enum Broken {
    Source(BodyError),
    /// More bytes than the limit allows.
    TooLong,
    Sink,
}

/// The backend's answer did not come, or not whole.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// The backend closed before a first byte, or says itself that it did nothing with the request.
    Unanswered {
        processed: Processed,
    },
    Reason(Reason),
}

/// Whether a backend that gave no answer may have acted on the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processed {
    Perhaps,
    No,
}

/// What holds for the body of a request.
#[derive(Clone, Copy, Debug)]
pub struct UploadRules<'r> {
    /// `body_bytes` of the listener.
    pub most: Option<u64>,
    /// Trailers that are not passed on, whoever sends them.
    pub dropped: &'r IdentityFields,
}

/// A request's two bodies in transit.
#[derive(Debug)]
pub struct Relay<'r, 'd, D, U> {
    pub down: &'r mut D,
    pub up: &'r mut U,
    patience: &'r mut Patience<'d>,
    timeouts: Timeouts,
    upload: Direction,
    download: Direction,
    rules: UploadRules<'r>,
    started: Instant,
    /// The backend stopped reading the request; its response decides what that means.
    upload_refused: bool,
    /// The client holds its body back until the backend says 100.
    awaits_continue: bool,
    /// The response's body did not come, or go, all at once.
    body_waited: bool,
    /// With a client that is slow to take the response's body.
    indulgence: Indulgence,
}

/// The backend's end of an exchange.
pub trait Respond: Exchange {
    /// Waits for the next response head, interim or final.
    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        request: &RequestHead,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), Failure>>;

    /// Turns the connection into a tunnel, after a 101.
    fn switch(&mut self);
}

impl Failure {
    /// The same failure of a backend that has answered something: it did begin with the request.
    fn after_a_byte(self) -> Self {
        match self {
            Failure::Unanswered { .. } => Failure::Reason(Reason::UpstreamClosed),
            Failure::Reason(_) => self,
        }
    }
}

impl Timeouts {
    /// A gRPC exchange may be silent for long in either direction: it is timed like a tunnel. What the client
    /// calls gRPC is believed only where the backends speak HTTP/2, without which there is none: otherwise
    /// a slow body would need no more than a field to hold a backend's connection.
    pub fn new(limits: &Limits, cluster: &Cluster, is_grpc: bool) -> Self {
        let tunnel = limits.tunnel_idle_timeout;
        let may_be_silent = is_grpc && cluster.protocol == Protocol::H2;
        Timeouts {
            body_idle: if may_be_silent { tunnel } else { limits.body_idle_timeout },
            body_rate: if may_be_silent { 0 } else { limits.body_min_rate },
            rate_grace: limits.body_rate_grace,
            write: limits.write_timeout,
            write_rate: limits.write_min_rate,
            response: cluster.response_timeout,
            response_idle: if is_grpc { tunnel } else { cluster.response_idle_timeout },
            tunnel,
        }
    }
}

impl UploadRules<'_> {
    /// The trailers without those that are dropped; `None`: there are none of those.
    fn purge(&self, trailers: &Fields) -> Option<Fields> {
        let mut names = trailers.iter().map(|(_, name, _)| name);
        names.any(|name| self.dropped.holds(name)).then(|| {
            let mut purged = trailers.clone();
            purged.retain(|_, name| !self.dropped.holds(name));
            purged
        })
    }
}

impl Direction {
    fn new() -> Self {
        Direction { bytes: 0, moved: false, waits_for: WaitsFor::Source, ended: false }
    }

    /// Moves what can be moved; ready when the message has ended and was handed on.
    fn poll<A: Exchange, B: Exchange>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut A,
        sink: &mut B,
        rules: Option<&UploadRules<'_>>,
    ) -> Poll<Result<(), Broken>> {
        self.moved = false;
        let limit = rules.and_then(|rules| rules.most).unwrap_or(u64::MAX);
        while !self.ended {
            self.waits_for = WaitsFor::Source;
            let Poll::Ready(filled) = source.poll_fill(cx) else {
                self.waits_for = WaitsFor::Sink;
                ready!(sink.poll_flush(cx)).map_err(|_| Broken::Sink)?;
                self.waits_for = WaitsFor::Source;
                return Poll::Pending;
            };
            self.waits_for = WaitsFor::Sink;
            match filled.map_err(Broken::Source)? {
                Filled::Data => {
                    let last = source.ends_with_data();
                    let count = ready!(sink.poll_send(cx, source.data(), last)).map_err(|_| Broken::Sink)?;
                    source.consume(count);
                    self.bytes += count as u64;
                    self.moved = true;
                    if self.bytes > limit {
                        return Poll::Ready(Err(Broken::TooLong));
                    }
                }
                Filled::End => {
                    let trailers = source.trailers();
                    let purged = rules.zip(trailers).and_then(|(rules, trailers)| rules.purge(trailers));
                    let trailers = purged.as_ref().or(trailers).filter(|trailers| !trailers.is_empty());
                    ready!(sink.poll_finish(cx, trailers)).map_err(|_| Broken::Sink)?;
                    self.ended = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<'r, 'd, D: Downstream, U: Respond> Relay<'r, 'd, D, U> {
    pub fn new(
        down: &'r mut D,
        up: &'r mut U,
        patience: &'r mut Patience<'d>,
        timeouts: Timeouts,
        (rules, started): (UploadRules<'r>, Instant),
    ) -> Self {
        Relay {
            down,
            up,
            patience,
            timeouts,
            upload: Direction::new(),
            download: Direction::new(),
            rules,
            started,
            upload_refused: false,
            awaits_continue: false,
            body_waited: false,
            indulgence: Indulgence::new(timeouts.write, timeouts.write_rate),
        }
    }

    /// Bytes of the request's body that were taken from the client.
    pub fn bytes_in(&self) -> u64 {
        self.upload.bytes
    }

    /// Bytes of the response's body that were handed to the client.
    pub fn bytes_out(&self) -> u64 {
        self.download.bytes
    }

    /// Whether the backend got the whole request.
    pub fn upload_complete(&self) -> bool {
        self.upload.ended && !self.upload_refused
    }

    /// Whether the response's body took longer than its head.
    pub fn body_waited(&self) -> bool {
        self.body_waited
    }

    /// Sends the request's body on while waiting for the final response head; interim ones pass.
    pub async fn response(&mut self, request: &RequestHead, head: &mut ResponseHead) -> Result<(), Failure> {
        self.awaits_continue = request.expects_continue;
        for earlier in 0..=INTERIM_RESPONSES {
            let result = poll_fn(|cx| self.poll_response(cx, request, head)).await;
            result.map_err(|failure| if earlier > 0 { failure.after_a_byte() } else { failure })?;
            if !head.status.is_informational() || head.status == http::StatusCode::SWITCHING_PROTOCOLS {
                return Ok(());
            }
            self.pass_interim(head).await.map_err(Failure::Reason)?;
        }
        Err(Failure::Reason(Reason::UpstreamBadResponse))
    }

    async fn pass_interim(&mut self, head: &ResponseHead) -> Result<(), Reason> {
        if head.status == http::StatusCode::CONTINUE {
            self.awaits_continue = false;
            self.started = Instant::now();
        }
        self.down.send_interim(head).map_err(|_| Reason::ClientClosed)?;
        let wait = Wait::new(Reason::WriteTimeout, self.timeouts.write);
        let flushed = self.patience.limit(wait, poll_fn(|cx| self.down.poll_flush(cx))).await?;
        flushed.map_err(|_| Reason::ClientClosed)
    }

    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        request: &RequestHead,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), Failure>> {
        let uploaded = self.poll_upload(cx).map_err(Failure::Reason)?;
        if let Poll::Ready(result) = self.up.poll_response(cx, request, head) {
            return Poll::Ready(result);
        }
        if self.down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Failure::Reason(Reason::ClientClosed)));
        }
        let wait = if uploaded.is_ready() {
            Wait::new(Reason::ResponseTimeout, self.timeouts.response)
        } else {
            self.upload_wait()
        };
        self.patience.poll(cx, wait, self.upload.moved).map(|reason| Err(Failure::Reason(reason)))
    }

    /// A backend that stops reading is no failure yet: its response says why.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
        if self.upload_refused {
            self.upload.moved = false;
            return Poll::Ready(Ok(()));
        }
        match ready!(self.upload.poll(cx, self.down, self.up, Some(&self.rules))) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(Broken::Sink) => {
                self.upload_refused = true;
                Poll::Ready(Ok(()))
            }
            Err(Broken::TooLong) => Poll::Ready(Err(Reason::BodyTooLarge)),
            Err(Broken::Source(BodyError::TooLarge)) => Poll::Ready(Err(Reason::HeadTooLarge)),
            Err(Broken::Source(BodyError::Malformed)) => Poll::Ready(Err(Reason::BadRequest)),
            Err(Broken::Source(BodyError::Closed)) => Poll::Ready(Err(Reason::ClientClosed)),
        }
    }

    /// What the upload waits for: the client's next bytes, or room at the backend, or its leave to
    /// begin.
    fn upload_wait(&self) -> Wait {
        match self.upload.waits_for {
            WaitsFor::Sink => Wait::new(Reason::ResponseTimeout, self.timeouts.response),
            WaitsFor::Source if self.awaits_continue && self.upload.bytes == 0 => {
                Wait::new(Reason::ResponseTimeout, self.timeouts.response)
            }
            WaitsFor::Source => {
                Wait { until: self.rate_floor(), ..Wait::new(Reason::BodyTimeout, self.timeouts.body_idle) }
            }
        }
    }

    /// When the bytes that came so far fall below the minimum rate, should no more come.
    fn rate_floor(&self) -> Option<Instant> {
        let earned = self.upload.bytes.checked_div(self.timeouts.body_rate)?;
        Some(self.started + self.timeouts.rate_grace + Duration::from_secs(earned))
    }

    /// Sends the response's body to the client; the head was sent.
    ///
    /// # Errors
    /// The reason why the response is incomplete.
    pub async fn body(&mut self) -> Result<(), Reason> {
        poll_fn(|cx| {
            // The response goes on whatever the upload waits for; once that is over, this only says
            // that nothing of it moved.
            let _ = self.poll_upload(cx)?;
            match self.download.poll(cx, self.up, self.down, None) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(response_broken(&broken))),
                Poll::Pending => self.body_waited = true,
            }
            let wait = self.download_wait();
            if wait.reason == Reason::ResponseStalled && self.down.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Reason::ClientClosed));
            }
            // A client that trickles its body must still read its answer.
            let moved = self.download.moved || (self.upload.moved && wait.reason != Reason::WriteTimeout);
            self.patience.poll(cx, wait, moved).map(Err)
        })
        .await
    }

    /// What the download waits for: the backend's next bytes, or room at the client.
    fn download_wait(&mut self) -> Wait {
        let bytes = self.download.bytes;
        if self.download.waits_for == WaitsFor::Source {
            if self.indulgence.is_running() {
                self.indulgence.pause(Instant::now(), bytes);
            }
            return Wait::new(Reason::ResponseStalled, self.timeouts.response_idle);
        }
        let until = Some(self.indulgence.end(Instant::now(), bytes));
        Wait { until, ..Wait::new(Reason::WriteTimeout, self.timeouts.write) }
    }

    /// Carries a tunnel until both directions have ended.
    pub async fn tunnel(&mut self) -> Result<(), Reason> {
        self.upload = Direction::new();
        let wait = Wait::new(Reason::TunnelIdle, self.timeouts.tunnel);
        poll_fn(|cx| {
            let up = self.upload.poll(cx, self.down, self.up, None);
            let down = self.download.poll(cx, self.up, self.down, None);
            match (up, down) {
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => {
                    return Poll::Ready(Ok(()));
                }
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
                _ => {}
            }
            self.patience.poll(cx, wait, self.upload.moved || self.download.moved).map(Err)
        })
        .await
    }
}

fn response_broken(broken: &Broken) -> Reason {
    match broken {
        Broken::Source(BodyError::Closed) => Reason::UpstreamClosed,
        Broken::Source(BodyError::Malformed | BodyError::TooLarge) | Broken::TooLong => {
            Reason::UpstreamBadResponse
        }
        Broken::Sink => Reason::ClientClosed,
    }
}

impl Respond for h1::Connection {
    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        request: &RequestHead,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), Failure>> {
        h1::Connection::poll_response(self, cx, &request.method, head).map_err(|failure| match failure {
            h1::NoResponse::ClosedBeforeFirstByte => Failure::Unanswered { processed: Processed::Perhaps },
            h1::NoResponse::Closed => Failure::Reason(Reason::UpstreamClosed),
            h1::NoResponse::Malformed => Failure::Reason(Reason::UpstreamBadResponse),
        })
    }

    fn switch(&mut self) {
        self.become_tunnel();
    }
}

impl Respond for h2::upstream::Stream {
    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        request: &RequestHead,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), Failure>> {
        let result = ready!(h2::upstream::Stream::poll_response(self, cx, head));
        if request.method == http::Method::HEAD {
            head.body = BodyLength::Empty;
        }
        Poll::Ready(result.map_err(|failure| match failure {
            h2::upstream::NoResponse::NotProcessed => Failure::Unanswered { processed: Processed::No },
            h2::upstream::NoResponse::Closed => Failure::Reason(Reason::UpstreamClosed),
            h2::upstream::NoResponse::Malformed => Failure::Reason(Reason::UpstreamBadResponse),
        }))
    }

    fn switch(&mut self) {
        // Never asked for: an HTTP/2 backend sends no 101 (RFC 9113 §8.6).
    }
}
