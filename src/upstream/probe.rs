//! Active health checks: a loop for each backend, on the control thread.
//!
//! A loop probes, has `Cluster::observe` make a state of the result, logs the changes and reports
//! every probe to the caller. Probes use the cluster's own way to its backends (TLS, protocol), so
//! a backend that is up is one that requests can reach.

use std::{collections::HashMap, fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use http::StatusCode;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    cluster::{Backend, Cluster},
    connect::{ConnectError, connect_port},
    health::{Transition, first_probe_delay, probe_delay, second_probe_delay},
    tls::{self, HandshakeError},
};
use crate::{
    config::{Check, Health, HttpCheck, Protocol},
    error::Reason,
    http::{
        probe_client::{self, ProbeError, ProbeRequest, ProbeResponse},
        proxy_protocol,
        transport::Transport,
    },
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
    /// This machine had no descriptor or port left for it: it says nothing of the backend.
    Local,
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
/// `all` is the number of backends that this process probes, those of other clusters among them: the
/// more, the longer their first probes are spread. Dropping the future ends all probes at once. A loop that panics is logged and begun again. For a
/// cluster without health checks it does nothing. Needs a tokio runtime of any kind.
pub async fn run<F>(cluster: Arc<Cluster>, all: usize, report: F)
where
    F: Fn(&ProbeReport<'_>) + Clone + Send + Sync + 'static,
{
    let mut loops = JoinSet::new();
    let mut backends = HashMap::new();
    if cluster.config.health.is_some() {
        for index in 0..cluster.backends.len() {
            let handle = loops.spawn(watch(Arc::clone(&cluster), index, all, report.clone()));
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
            let handle = loops.spawn(watch(Arc::clone(&cluster), index, all, report.clone()));
            backends.insert(handle.id(), index);
        }
    }
    std::future::pending::<()>().await;
}

/// The loop of one backend.
async fn watch<F>(cluster: Arc<Cluster>, index: usize, all: usize, report: F)
where
    F: Fn(&ProbeReport<'_>),
{
    let Some(rules) = &cluster.config.health else { return };
    let backend = &cluster.backends[index];
    sleep(first_probe_delay(rules.interval, all, fastrand::u64(..))).await;
    let mut delay = second_probe_delay(rules.interval, fastrand::u64(..));
    loop {
        let started = Instant::now();
        let failure = probe(&cluster, backend, rules).await.err();
        let duration = started.elapsed();
        let (result, detail) = failure.unwrap_or((ProbeResult::Ok, String::new()));
        let verdict = if result == ProbeResult::Ok { Ok(()) } else { Err(detail.as_str()) };
        // What is lacking here must not take backends down.
        let transition = if result == ProbeResult::Local { None } else { cluster.observe(index, verdict) };
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
        sleep_until(after(started, delay)).await;
        delay = probe_delay(rules.interval, fastrand::u64(..));
    }
}

type Failure = (ProbeResult, String);

/// One probe of one backend.
async fn probe(cluster: &Cluster, backend: &Backend, rules: &Health) -> Result<(), Failure> {
    let deadline = after(Instant::now(), rules.timeout);
    let port = rules.port.unwrap_or(backend.port);
    // A port for checks alone is taken to be an ordinary one.
    let has_header = cluster.config.proxy_protocol && rules.port.is_none();
    let header: &[u8] = if has_header { &proxy_protocol::LOCAL } else { &[] };
    let connected = connect_port(backend, port, rules.timeout, header).await;
    let mut transport = connected.map_err(connect_failure)?;
    let Check::Http(check) = &rules.check else { return Ok(()) };
    let wanted = ProbeRequest {
        path: &check.path,
        host: check.host.as_deref().unwrap_or(&backend.address),
        https: backend.tls.is_some(),
        body_limit: if check.expect_body.is_some() { BODY_LIMIT } else { 0 },
    };
    let exchange = async {
        match cluster.config.protocol {
            Protocol::Http1 => probe_client::http1(&mut transport, wanted).await,
            Protocol::H2 => probe_client::h2(&mut transport, wanted).await,
        }
    };
    match timeout_at(deadline, exchange).await {
        Ok(Ok(response)) => judge(check, &response),
        Ok(Err(error)) => Err(response_failure(error, &mut transport)),
        Err(_) => Err((ProbeResult::Timeout, format!("no complete answer after {:?}", rules.timeout))),
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
    start.checked_add(delay).unwrap_or(start + Duration::from_hours(365 * 24))
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
    pub const ALL: [ProbeResult; 10] = [
        ProbeResult::Ok,
        ProbeResult::Timeout,
        ProbeResult::Refused,
        ProbeResult::Connect,
        ProbeResult::Local,
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
            ProbeResult::Local => "local",
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
        _ if error.local => ProbeResult::Local,
        Reason::ConnectTimeout => ProbeResult::Timeout,
        Reason::ConnectRefused => ProbeResult::Refused,
        Reason::UpstreamTlsUnknownCa
        | Reason::UpstreamTlsExpired
        | Reason::UpstreamTlsNameMismatch
        | Reason::UpstreamTlsRevoked
        | Reason::UpstreamTlsClientCertificate
        | Reason::UpstreamTlsHandshake => ProbeResult::Tls,
        _ => ProbeResult::Connect,
    };
    match result {
        // The same code as in the answer that a request would get.
        ProbeResult::Tls => (result, format!("{}: {}", error.reason.code(), error.detail)),
        _ => (result, error.detail),
    }
}

fn response_failure(error: ProbeError, transport: &mut Transport) -> Failure {
    match error {
        ProbeError::Request(error) => (ProbeResult::BadResponse, format!("the check can't be sent: {error}")),
        ProbeError::Closed(error) => match transport.session_error().and_then(|error| tls::refusal(&error)) {
            Some(HandshakeError { reason, detail }) => {
                (ProbeResult::Tls, format!("{}: {detail}", reason.code()))
            }
            None => (ProbeResult::Closed, format!("the backend closed early: {error}")),
        },
        ProbeError::Invalid(detail) => {
            (ProbeResult::BadResponse, format!("the response is not valid HTTP: {detail}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::{
        net::TcpListener,
        sync::mpsc::{UnboundedReceiver, unbounded_channel},
        task::JoinHandle,
    };

    use super::*;
    use crate::{
        config,
        upstream::testing::{
            Authority, backend, closed_port, cluster_config, health, http_check, tls_backend,
        },
    };

    /// A report that outlives its probe.
    type Seen = (usize, ProbeResult, String, Option<Transition>);

    /// Probes until the handle is aborted.
    fn start(config: config::Cluster) -> (Arc<Cluster>, UnboundedReceiver<Seen>, JoinHandle<()>) {
        let cluster = Arc::new(Cluster::new(config, None).expect("good settings"));
        let (seen, reports) = unbounded_channel();
        let report = move |report: &ProbeReport<'_>| {
            let _ = seen.send((report.backend, report.result, report.detail.to_owned(), report.transition));
        };
        let probes = tokio::spawn(run(Arc::clone(&cluster), 1, report));
        (cluster, reports, probes)
    }

    /// The first report on one backend.
    async fn first(config: config::Cluster) -> (ProbeResult, String) {
        let (_, mut reports, probes) = start(config);
        let (_, result, detail, _) = reports.recv().await.expect("a report");
        probes.abort();
        (result, detail)
    }

    fn checked(address: &str, check: Check) -> config::Cluster {
        config::Cluster { health: Some(Health { check, ..health() }), ..cluster_config(&[address]) }
    }

    async fn first_http(answer: impl Into<Vec<u8>>, check: HttpCheck) -> (ProbeResult, String) {
        let address = backend(answer).await.to_string();
        first(checked(&address, Check::Http(check))).await
    }

    #[tokio::test]
    async fn an_open_port_passes_a_tcp_check_and_a_closed_one_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let open = listener.local_addr().expect("bound").to_string();
        assert_eq!(first(checked(&open, Check::Tcp)).await, (ProbeResult::Ok, String::new()));
        let (_socket, closed) = closed_port();
        let (result, detail) = first(checked(&closed.to_string(), Check::Tcp)).await;
        assert_eq!(result, ProbeResult::Refused);
        assert!(detail.starts_with(&format!("connect to {closed} failed")), "{detail}");
    }

    #[tokio::test]
    async fn the_status_has_to_be_in_a_range() {
        let check = |expect_status| HttpCheck { expect_status, ..http_check() };
        let cases = [
            ("200 OK", vec![200..=399], None),
            ("399 X", vec![200..=399], None),
            ("404 X", vec![200..=299, 404..=404], None),
            ("400 X", vec![200..=399], Some("status 400, expected 200-399")),
            ("503 X", vec![200..=299, 404..=404], Some("status 503, expected 200-299, 404")),
        ];
        for (line, ranges, problem) in cases {
            let found =
                first_http(format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n"), check(ranges)).await;
            let expected = problem.map_or((ProbeResult::Ok, ""), |detail| (ProbeResult::Status, detail));
            assert_eq!((found.0, found.1.as_str()), expected);
        }
    }

    #[tokio::test]
    async fn the_expected_text_has_to_be_in_the_first_64_kib() {
        let check = || HttpCheck { expect_body: Some("ready".to_owned()), ..http_check() };
        let cases =
            [(0, ProbeResult::Ok), (BODY_LIMIT - 5, ProbeResult::Ok), (BODY_LIMIT - 4, ProbeResult::Body)];
        for (before, expected) in cases {
            let body = format!("{}ready and more", " ".repeat(before));
            let (result, detail) = first_http(format!("HTTP/1.0 200 OK\r\n\r\n{body}"), check()).await;
            assert_eq!(result, expected, "{detail}");
        }
        let (_, detail) = first_http("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", check()).await;
        assert_eq!(detail, "the body does not contain \"ready\"");
    }

    #[tokio::test]
    async fn each_fault_of_an_answer_has_its_result() {
        assert_eq!(first_http("", http_check()).await.0, ProbeResult::Closed);
        assert_eq!(first_http("SSH-2.0-x\r\n", http_check()).await.0, ProbeResult::BadResponse);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let timeout = Duration::from_millis(50);
        let mut config = checked(&address, Check::Http(http_check()));
        config.health = config.health.map(|rules| Health { timeout, ..rules });
        assert_eq!(first(config).await, (ProbeResult::Timeout, "no complete answer after 50ms".to_owned()));
    }

    #[tokio::test]
    async fn probes_speak_tls_as_the_cluster_does() {
        let authority = Authority::new();
        let good = tls_backend(authority.acceptor("127.0.0.1", 2100, &[])).await;
        let bad = tls_backend(authority.acceptor("b.test", 2100, &[])).await;
        for (address, expected) in [(good, ProbeResult::Ok), (bad, ProbeResult::Tls)] {
            let config = checked(&address.to_string(), Check::Tcp);
            let found = first(config::Cluster { tls: Some(authority.tls()), ..config }).await;
            assert_eq!(found.0, expected, "{}", found.1);
        }
    }

    #[tokio::test]
    async fn probes_speak_h2_as_the_cluster_does() {
        let config = |address: String| config::Cluster {
            protocol: Protocol::H2,
            ..checked(&address, Check::Http(http_check()))
        };
        let address = backend("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(first(config(address.to_string())).await.0, ProbeResult::BadResponse);
    }

    #[tokio::test]
    async fn another_port_can_be_probed() {
        let address = backend("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let (_socket, closed) = closed_port();
        let mut config = checked(&closed.to_string(), Check::Http(http_check()));
        config.health = config.health.map(|rules| Health { port: Some(address.port()), ..rules });
        assert_eq!(first(config).await.0, ProbeResult::Ok);
    }

    #[tokio::test]
    async fn a_backend_goes_down_and_comes_back_with_its_probes() {
        let (socket, address) = closed_port();
        let (cluster, mut reports, _probes) = start(checked(&address.to_string(), Check::Tcp));
        let (_, result, _, transition) = reports.recv().await.expect("a report");
        assert_eq!((result, transition), (ProbeResult::Refused, Some(Transition::Down { failed: 1 })));
        assert!(!cluster.backends[0].is_up());
        let listener = socket.listen(16).expect("the port is ours");
        let up = loop {
            let (_, _, _, transition) = reports.recv().await.expect("a report");
            if transition.is_some() {
                break transition;
            }
        };
        assert_eq!(up, Some(Transition::Up { passed: 2 }));
        assert!(cluster.backends[0].is_up());
        drop(listener);
        let down = loop {
            let (_, _, _, transition) = reports.recv().await.expect("a report");
            if transition.is_some() {
                break transition;
            }
        };
        assert_eq!(down, Some(Transition::Down { failed: 3 }));
    }

    #[tokio::test]
    async fn every_backend_is_probed_and_all_stop_with_the_future() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let addresses: Vec<String> = (1..=20).map(|last| format!("127.0.0.{last}:{port}")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let config = config::Cluster { health: Some(health()), ..cluster_config(&addresses) };
        let (_, mut reports, probes) = start(config);
        let mut probed = std::collections::HashSet::new();
        while probed.len() < 20 {
            probed.insert(reports.recv().await.expect("a report").0);
        }
        probes.abort();
        // The channel ends when the last loop has dropped its end.
        while reports.recv().await.is_some() {}
    }

    #[tokio::test]
    async fn without_health_checks_nothing_is_probed() {
        let (_, mut reports, probes) = start(cluster_config(&["127.0.0.1:1"]));
        tokio::task::yield_now().await;
        assert!(reports.try_recv().is_err() && !probes.is_finished());
        probes.abort();
    }

    #[tokio::test]
    async fn a_loop_that_panics_is_begun_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let config = checked(&listener.local_addr().expect("bound").to_string(), Check::Tcp);
        let cluster = Arc::new(Cluster::new(config, None).expect("no TLS"));
        let (seen, mut reports) = unbounded_channel();
        let calls = Arc::new(AtomicU32::new(0));
        let report = move |_: &ProbeReport<'_>| {
            assert!(calls.fetch_add(1, Ordering::Relaxed) > 0, "the first report panics");
            let _ = seen.send(());
        };
        let probes = tokio::spawn(run(cluster, 1, report));
        reports.recv().await.expect("a report after the panic");
        probes.abort();
    }

    #[test]
    fn every_result_has_a_code_of_its_own() {
        let codes: std::collections::HashSet<&str> =
            ProbeResult::ALL.iter().map(|result| result.code()).collect();
        assert_eq!(codes.len(), ProbeResult::ALL.len());
    }
}
