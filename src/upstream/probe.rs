//! Active health checks: a loop for each backend, on the control thread.
//!
//! A loop probes, has `Cluster::observe` make a state of the result, logs the changes and reports
//! every probe to the caller. Probes use the cluster's own way to its backends (TLS, protocol), so
//! a backend that is up is one that requests can reach.

use std::{collections::HashMap, fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    cluster::{Backend, Cluster},
    connect::{ConnectError, Connected, connect_port},
    health::{Transition, first_probe_delay, probe_delay},
};
use crate::{
    config::{Check, Health, HttpCheck, Protocol},
    error::Reason,
    http::probe_client::{self, ProbeError, ProbeRequest, ProbeResponse},
};

/// How much of a body `expect_body` looks at.
const BODY_LIMIT: usize = 64 * 1024;

/// How a probe ended; the `result` label of `probes_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeResult {
    Ok,
    /// Not done within the check's `timeout`.
    Timeout,
    Refused,
    /// No connection for any other cause.
    Connect,
    Tls,
    /// The connection ended before the response was complete.
    Closed,
    BadResponse,
    /// A status that is not expected.
    Status,
    /// The expected text is not in the body.
    Body,
}

/// One probe, as told to the caller.
#[derive(Debug)]
pub struct ProbeReport<'a> {
    pub cluster: &'a Cluster,
    /// Index into the cluster's backends.
    pub backend: usize,
    pub result: ProbeResult,
    /// What was wrong; empty if nothing was.
    pub detail: &'a str,
    pub duration: Duration,
    /// The change of state that this probe made.
    pub transition: Option<Transition>,
}

/// Probes every backend of a cluster for as long as the future lives; never returns.
///
/// Dropping the future ends all probes at once. A loop that panics is logged and begun again. For a
/// cluster without health checks it does nothing. Needs a tokio runtime of any kind.
pub async fn run<F>(cluster: Arc<Cluster>, report: F)
where
    F: Fn(&ProbeReport<'_>) + Clone + Send + Sync + 'static,
{
    let mut loops = JoinSet::new();
    let mut backends = HashMap::new();
    if cluster.config.health.is_some() {
        for index in 0..cluster.backends.len() {
            let handle = loops.spawn(watch(Arc::clone(&cluster), index, report.clone()));
            backends.insert(handle.id(), index);
        }
    }
    while let Some(ended) = loops.join_next_with_id().await {
        let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
        if let Some(index) = backends.remove(&id) {
            let backend = &cluster.backends[index];
            tracing::error!(
                "the probes of backend {backend} of cluster {} broke off: begun again",
                cluster.name()
            );
            let handle = loops.spawn(watch(Arc::clone(&cluster), index, report.clone()));
            backends.insert(handle.id(), index);
        }
    }
    std::future::pending::<()>().await;
}

/// The loop of one backend.
async fn watch<F>(cluster: Arc<Cluster>, index: usize, report: F)
where
    F: Fn(&ProbeReport<'_>),
{
    let Some(rules) = &cluster.config.health else { return };
    let backend = &cluster.backends[index];
    sleep(first_probe_delay(rules.interval, fastrand::u64(..))).await;
    loop {
        let started = Instant::now();
        let failure = probe(backend, rules, cluster.config.protocol).await.err();
        let duration = started.elapsed();
        let (result, detail) = failure.unwrap_or((ProbeResult::Ok, String::new()));
        let verdict = if result == ProbeResult::Ok { Ok(()) } else { Err(detail.as_str()) };
        let transition = cluster.observe(index, verdict);
        if let Some(transition) = transition {
            log_transition(&cluster, backend, transition, &detail);
        }
        report(&ProbeReport {
            cluster: &cluster,
            backend: index,
            result,
            detail: &detail,
            duration,
            transition,
        });
        sleep_until(after(started, probe_delay(rules.interval, fastrand::u64(..)))).await;
    }
}

type Failure = (ProbeResult, String);

/// One probe of one backend.
async fn probe(backend: &Backend, rules: &Health, protocol: Protocol) -> Result<(), Failure> {
    let deadline = after(Instant::now(), rules.timeout);
    let port = rules.port.unwrap_or(backend.port);
    let stream = connect_port(backend, port, rules.timeout).await.map_err(connect_failure)?;
    let Check::Http(check) = &rules.check else { return Ok(()) };
    let https = backend.tls.is_some();
    let exchange = async {
        match stream {
            Connected::Tcp(stream) => request(stream, backend, check, protocol, https).await,
            Connected::Tls(stream) => request(stream, backend, check, protocol, https).await,
        }
    };
    match timeout_at(deadline, exchange).await {
        Ok(response) => judge(check, &response.map_err(response_failure)?),
        Err(_) => Err((ProbeResult::Timeout, format!("no complete answer after {:?}", rules.timeout))),
    }
}

async fn request<S>(
    stream: S,
    backend: &Backend,
    check: &HttpCheck,
    protocol: Protocol,
    https: bool,
) -> Result<ProbeResponse, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let wanted = ProbeRequest {
        path: &check.path,
        host: check.host.as_deref().unwrap_or(&backend.address),
        https,
        body_limit: if check.expect_body.is_some() { BODY_LIMIT } else { 0 },
    };
    match protocol {
        Protocol::Http1 => probe_client::http1(stream, wanted).await,
        Protocol::H2 => probe_client::h2(stream, wanted).await,
    }
}

/// Whether the answer is the expected one.
fn judge(check: &HttpCheck, response: &ProbeResponse) -> Result<(), Failure> {
    let status = response.status;
    if !check.expect_status.iter().any(|range| range.contains(&status.as_u16())) {
        return Err((ProbeResult::Status, unexpected_status(status, &check.expect_status)));
    }
    let Some(text) = &check.expect_body else { return Ok(()) };
    if memchr::memmem::find(&response.body, text.as_bytes()).is_none() {
        return Err((ProbeResult::Body, format!("the body does not contain {text:?}")));
    }
    Ok(())
}

fn unexpected_status(found: StatusCode, expected: &[RangeInclusive<u16>]) -> String {
    let range = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    let expected: Vec<String> = expected.iter().map(range).collect();
    format!("status {}, expected {}", found.as_u16(), expected.join(", "))
}

/// A moment that far away, or one a year away where the clock does not reach so far.
fn after(start: Instant, delay: Duration) -> Instant {
    start.checked_add(delay).unwrap_or(start + Duration::from_secs(365 * 86_400))
}

fn log_transition(cluster: &Cluster, backend: &Backend, transition: Transition, detail: &str) {
    let name = cluster.name();
    match transition {
        Transition::Up { passed } => {
            tracing::info!("backend {backend} of cluster {name} is up: {} passed", probes(passed));
        }
        Transition::Down { failed: 1 } => {
            tracing::warn!("backend {backend} of cluster {name} is down: 1 probe failed: {detail}");
        }
        Transition::Down { failed } => {
            tracing::warn!(
                "backend {backend} of cluster {name} is down: {failed} probes failed, the last: {detail}"
            );
        }
    }
}

fn probes(count: u32) -> String {
    if count == 1 { "1 probe".to_owned() } else { format!("{count} probes") }
}

impl ProbeResult {
    pub const ALL: [ProbeResult; 9] = [
        ProbeResult::Ok,
        ProbeResult::Timeout,
        ProbeResult::Refused,
        ProbeResult::Connect,
        ProbeResult::Tls,
        ProbeResult::Closed,
        ProbeResult::BadResponse,
        ProbeResult::Status,
        ProbeResult::Body,
    ];

    /// The stable snake_case code.
    pub const fn code(self) -> &'static str {
        match self {
            ProbeResult::Ok => "ok",
            ProbeResult::Timeout => "timeout",
            ProbeResult::Refused => "refused",
            ProbeResult::Connect => "connect",
            ProbeResult::Tls => "tls",
            ProbeResult::Closed => "closed",
            ProbeResult::BadResponse => "bad_response",
            ProbeResult::Status => "status",
            ProbeResult::Body => "body",
        }
    }
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// WHY a wildcard: a connection fails for the upstream reasons only, and of those that are not named
/// here each is some other connect failure.
fn connect_failure(error: ConnectError) -> Failure {
    let result = match error.reason {
        Reason::ConnectTimeout => ProbeResult::Timeout,
        Reason::ConnectRefused => ProbeResult::Refused,
        Reason::UpstreamTlsUnknownCa
        | Reason::UpstreamTlsExpired
        | Reason::UpstreamTlsNameMismatch
        | Reason::UpstreamTlsHandshake => ProbeResult::Tls,
        _ => ProbeResult::Connect,
    };
    (result, error.detail)
}

fn response_failure(error: ProbeError) -> Failure {
    match error {
        ProbeError::Request(error) => (ProbeResult::BadResponse, format!("the check can't be sent: {error}")),
        ProbeError::Closed(detail) => (ProbeResult::Closed, format!("the backend closed early: {detail}")),
        ProbeError::Invalid(detail) => {
            (ProbeResult::BadResponse, format!("the response is not valid HTTP: {detail}"))
        }
    }
}
