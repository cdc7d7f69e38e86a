//! Who counts what, and how does Prometheus get to see it?
//!
//! Every thread that counts has a `Shard`, and for each listener, route, cluster and backend a
//! cell that nobody else writes. `Metrics::scrape` sums the cells of all threads and makes text of
//! the sums; the `prometheus` crate adds what it knows of the process.

mod acme;
mod cells;
mod counter;
mod histogram;
mod scrape;
mod series;
mod text;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus::process_collector::ProcessCollector;

pub use self::cells::{BackendCells, ClusterCells, ListenerCells, RouteCells};
use self::{cells::ReasonCounts, series::Series};
use crate::error::Reason;

/// The route of requests that matched none.
pub const NO_ROUTE: &str = "none";

/// All metrics of the process.
pub struct Metrics {
    listeners: Series<ListenerCells, 1>,
    /// Listener, route.
    routes: Series<RouteCells, 2>,
    clusters: Series<ClusterCells, 1>,
    /// Cluster, backend.
    backends: Series<BackendCells, 2>,
    /// For each writer.
    errors: Vec<OwnLine<ReasonCounts>>,
    /// For each writer, how late it was last, in microseconds.
    delays: Vec<OwnLine<AtomicU64>>,
    // Rare enough for a locked addition, and counted by threads that have no shard.
    log_lines_lost: AtomicU64,
    panics: AtomicU64,
    bans: AtomicU64,
    networks: AtomicU64,
    /// Loads of changed firewall lists: those that went well, and those that did not.
    list_loads: [AtomicU64; 2],
    certificates: Mutex<Vec<CertificateExpiry>>,
    acme: acme::Acme,
    /// By kind of file and whether they went well.
    tls_file_loads: Mutex<BTreeMap<(TlsFile, bool), u64>>,
    process: Mutex<ProcessCollector>,
    /// Of the last scrape.
    scrape_bytes: AtomicUsize,
}

/// Keeps what one thread writes out of the cache lines of the others.
#[derive(Debug, Default)]
#[repr(align(64))]
struct OwnLine<T>(T);

/// What kind of file is followed while it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsFile {
    Certificate,
    ClientAuth,
    Ocsp,
    TicketKeys,
}

impl TlsFile {
    /// The label value.
    pub const fn code(self) -> &'static str {
        match self {
            TlsFile::Certificate => "certificate",
            TlsFile::ClientAuth => "client_auth",
            TlsFile::Ocsp => "ocsp",
            TlsFile::TicketKeys => "ticket_keys",
        }
    }
}

/// When a certificate that a listener serves ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CertificateExpiry {
    pub listener: String,
    /// Subject alternative names; the first one is the label.
    pub names: Vec<String>,
    pub serial: String,
    /// Seconds since the epoch, like the next.
    pub not_after: i64,
    /// When the OCSP response for it ends, where one is configured; 0 while there is none.
    pub staple_until: Option<i64>,
}

impl CertificateExpiry {
    fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

/// What a series belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeriesOwner<'a> {
    Listener(&'a str),
    Route { listener: &'a str, route: &'a str },
    Cluster(&'a str),
    Backend { cluster: &'a str, backend: &'a str },
}

/// What all threads together counted for a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendTotals {
    pub requests_in_flight: u64,
    /// Attempts that were started.
    pub requests_total: u64,
    pub connections: u64,
    pub connections_total: u64,
}

impl Metrics {
    /// `writers` is the number of threads that count: the workers and the control thread.
    pub fn new(writers: usize) -> Arc<Metrics> {
        Arc::new(Metrics {
            listeners: Series::new(writers),
            routes: Series::new(writers),
            clusters: Series::new(writers),
            backends: Series::new(writers),
            errors: (0..writers).map(|_| OwnLine::default()).collect(),
            delays: (0..writers).map(|_| OwnLine::default()).collect(),
            log_lines_lost: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            bans: AtomicU64::new(0),
            networks: AtomicU64::new(0),
            list_loads: Default::default(),
            certificates: Mutex::default(),
            acme: acme::Acme::default(),
            tls_file_loads: Mutex::default(),
            process: Mutex::new(ProcessCollector::for_self()),
            scrape_bytes: AtomicUsize::new(0),
        })
    }

    /// The shard of one thread; panics where `writer` is not below the number given to `new`.
    ///
    /// Two threads that use the same shard lose each other's counts.
    pub fn shard(self: &Arc<Self>, writer: usize) -> Shard {
        assert!(writer < self.errors.len(), "shard {writer} of {}", self.errors.len());
        Shard { metrics: Arc::clone(self), writer }
    }

    /// Everything in the text format of Prometheus.
    ///
    /// Takes milliseconds where there are a thousand backends; no thread that counts waits for it.
    pub fn scrape(&self) -> String {
        scrape::text(self)
    }

    /// Replaces the certificates whose expiry is shown.
    pub fn certificates(&self, mut certificates: Vec<CertificateExpiry>) {
        // Two series with the same labels would make Prometheus refuse the whole scrape.
        certificates.sort_by(|a, b| {
            (&a.listener, a.name(), &a.serial, a).cmp(&(&b.listener, b.name(), &b.serial, b))
        });
        certificates
            .dedup_by(|b, a| (&a.listener, a.name(), &a.serial) == (&b.listener, b.name(), &b.serial));
        *self.certificates.lock().unwrap_or_else(PoisonError::into_inner) = certificates;
    }

    /// The certificates that a listener shows now.
    pub fn certificates_of(&self, listener: &str) -> Vec<CertificateExpiry> {
        let all = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|each| each.listener == listener).cloned().collect()
    }

    /// Files of this kind are followed: their loads are counted from zero on, so that the first one is an increase.
    pub fn tls_file_followed(&self, file: TlsFile) {
        let mut loads = self.tls_file_loads.lock().unwrap_or_else(PoisonError::into_inner);
        for well in [true, false] {
            loads.entry((file, well)).or_default();
        }
    }

    /// A file changed and was loaded anew, or could not be.
    pub fn tls_file_loaded(&self, file: TlsFile, well: bool) {
        let mut loads = self.tls_file_loads.lock().unwrap_or_else(PoisonError::into_inner);
        *loads.entry((file, well)).or_default() += 1;
    }

    /// Drops the series of what is gone after a reload.
    ///
    /// A thread that still holds a dropped cell may go on writing to it; nobody reads it.
    pub fn retain(&self, keep: impl Fn(SeriesOwner<'_>) -> bool) {
        self.listeners.retain(|[listener]| keep(SeriesOwner::Listener(listener)));
        self.routes.retain(|[listener, route]| keep(SeriesOwner::Route { listener, route }));
        self.clusters.retain(|[cluster]| keep(SeriesOwner::Cluster(cluster)));
        self.backends.retain(|[cluster, backend]| keep(SeriesOwner::Backend { cluster, backend }));
    }

    /// Zeros for a backend that nobody counted anything for.
    pub fn backend_totals(&self, cluster: &str, backend: &str) -> BackendTotals {
        let mut totals = BackendTotals::default();
        for cell in self.backends.cells([cluster, backend]) {
            totals.requests_in_flight += cell.requests.now();
            totals.requests_total += cell.requests.total();
            totals.connections += cell.connections.now();
            totals.connections_total += cell.connections.total();
        }
        totals
    }

    /// How many bans hold.
    pub fn bans(&self, bans: usize) {
        self.bans.store(bans as u64, Ordering::Relaxed);
    }

    /// How many networks the firewall's lists have.
    pub fn networks(&self, networks: usize) {
        self.networks.store(networks as u64, Ordering::Relaxed);
    }

    /// Lists of the firewall changed and were loaded anew, or could not be.
    pub fn lists_loaded(&self, well: bool) {
        self.list_loads[usize::from(!well)].fetch_add(1, Ordering::Relaxed);
    }

    /// An order of a listener's certificate came to its end: `ok`, or why there is none.
    pub fn acme_order(&self, listener: &str, result: &'static str) {
        self.acme.order(listener, result);
    }

    /// When the next order of a listener's certificate is due, in seconds since the epoch, and how many failed since
    /// the last that did not.
    pub fn acme_plan(&self, listener: &str, next: i64, failures: u32) {
        self.acme.plan(listener, next, failures);
    }

    /// Access log lines that will never be written.
    pub(super) fn log_lines_lost(&self, lines: u64) {
        self.log_lines_lost.fetch_add(lines, Ordering::Relaxed);
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("writers", &self.errors.len()).finish_non_exhaustive()
    }
}

/// One thread's part in the metrics; only that thread may use it and its cells.
///
/// Getting a cell takes a lock and a look into a map: keep it with what it counts for.
#[derive(Clone, Debug)]
pub struct Shard {
    metrics: Arc<Metrics>,
    writer: usize,
}

impl Shard {
    pub fn listener(&self, listener: &str) -> Arc<ListenerCells> {
        self.metrics.listeners.cell(self.writer, [listener])
    }

    /// `route` is `NO_ROUTE` for requests that matched none.
    pub fn route(&self, listener: &str, route: &str) -> Arc<RouteCells> {
        self.metrics.routes.cell(self.writer, [listener, route])
    }

    pub fn cluster(&self, cluster: &str) -> Arc<ClusterCells> {
        self.metrics.clusters.cell(self.writer, [cluster])
    }

    pub fn backend(&self, cluster: &str, backend: &str) -> Arc<BackendCells> {
        self.metrics.backends.cell(self.writer, [cluster, backend])
    }

    /// For reasons that are not rejections; those are counted by their listener.
    pub fn error(&self, reason: Reason) {
        self.metrics.errors[self.writer].0.add(reason);
    }

    /// How late a task of this thread was that was due.
    pub fn worker_delay(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.metrics.delays[self.writer].0.store(delay, Ordering::Relaxed);
    }

    /// A task that panicked and took nothing but its connection with it.
    pub fn panic(&self) {
        self.metrics.panics.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;
    use crate::{error::Blame, observe::Protocol};

    const MILLI: Duration = Duration::from_millis(1);

    /// The samples of one metric, in order of appearance.
    fn samples(text: &str, name: &str) -> Vec<String> {
        let is_sample = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        };
        text.lines().filter(is_sample).map(|line| line[name.len()..].to_owned()).collect()
    }

    fn used_by_two_threads() -> Arc<Metrics> {
        let metrics = Metrics::new(3);
        let threads: Vec<_> = (0..2)
            .map(|writer| {
                let shard = metrics.shard(writer);
                std::thread::spawn(move || use_everything(&shard))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let control = metrics.shard(2).backend("web", "10.0.0.1:80");
        control.set_up(true);
        control.set_weight(3);
        control.probe("ok", MILLI);
        control.probe("timeout", 1000 * MILLI);
        metrics.tls_file_loaded(TlsFile::Certificate, true);
        metrics.certificates(vec![CertificateExpiry {
            listener: "https".into(),
            names: vec!["example.com".into()],
            serial: "0a1b".into(),
            not_after: 1_785_587_696,
            staple_until: Some(1_785_500_000),
        }]);
        metrics
    }

    fn use_everything(shard: &Shard) {
        let listener = shard.listener("https");
        listener.connection_opened();
        listener.connection_opened();
        listener.connection_closed();
        listener.handshake("ok", 2 * MILLI);
        listener.handshake("timeout", 5000 * MILLI);
        listener.request_started();
        listener.request_started();
        listener.request_finished();
        listener.rejection(Reason::BadRequest);
        let route = shard.route("https", "/api");
        route.request(Protocol::Http1, 200, MILLI);
        route.request(Protocol::H2, 200, MILLI);
        route.request(Protocol::H2, 404, 40_000 * MILLI);
        shard.route("https", NO_ROUTE);
        shard.cluster("web").retry();
        let backend = shard.backend("web", "10.0.0.1:80");
        backend.connection_opened(MILLI);
        (0..3).for_each(|_| backend.request_started());
        backend.request_finished(Some(200), Some(MILLI));
        backend.request_finished(None, None);
        shard.error(Reason::ConnectRefused);
        shard.panic();
    }

    #[test]
    fn a_scrape_sums_all_threads() {
        let text = used_by_two_threads().scrape();
        let of = |name| samples(&text, name);
        assert_eq!(of("portcullis_downstream_connections"), ["{listener=\"https\"} 2"]);
        assert_eq!(of("portcullis_downstream_connections_total"), ["{listener=\"https\"} 4"]);
        assert_eq!(
            of("portcullis_tls_handshakes_total"),
            ["{listener=\"https\",result=\"ok\"} 2", "{listener=\"https\",result=\"timeout\"} 2"]
        );
        assert_eq!(of("portcullis_tls_handshake_seconds_count"), ["{listener=\"https\"} 2"]);
        assert_eq!(of("portcullis_tls_handshake_seconds_sum"), ["{listener=\"https\"} 0.004"]);
        assert_eq!(
            of("portcullis_tls_certificate_expiry_timestamp_seconds"),
            ["{listener=\"https\",name=\"example.com\",serial=\"0a1b\"} 1785587696"]
        );
        assert_eq!(of("portcullis_requests_in_flight"), ["{listener=\"https\"} 2"]);
        let labels = "{listener=\"https\",route=\"/api\"";
        assert_eq!(
            of("portcullis_requests_total"),
            [
                format!("{labels},protocol=\"h2\",code=\"200\"}} 2"),
                format!("{labels},protocol=\"h2\",code=\"404\"}} 2"),
                format!("{labels},protocol=\"http1\",code=\"200\"}} 2"),
            ]
        );
        let buckets = of("portcullis_request_seconds_bucket");
        assert_eq!(buckets.len(), 18);
        assert_eq!(buckets[1], format!("{labels},le=\"0.001\"}} 4"));
        assert_eq!(buckets[16], format!("{labels},le=\"30\"}} 4"));
        assert_eq!(buckets[17], format!("{labels},le=\"+Inf\"}} 6"));
        assert_eq!(of("portcullis_request_seconds_count"), [format!("{labels}}} 6")]);
    }

    #[test]
    fn a_scrape_of_many_series_has_each_of_them_once_and_in_order() {
        let metrics = Metrics::new(1);
        let names: Vec<String> = (0..1_000).map(|n| format!("10.0.{n:03}.1:80")).collect();
        for name in &names {
            metrics.shard(0).backend("web", name).set_up(true);
        }
        let up = samples(&metrics.scrape(), "portcullis_backend_up");
        let expected: Vec<String> =
            names.iter().map(|name| format!("{{cluster=\"web\",backend=\"{name}\"}} 1")).collect();
        assert_eq!(up, expected);
    }

    #[test]
    fn a_scrape_shows_backends_and_failures() {
        let text = used_by_two_threads().scrape();
        let of = |name| samples(&text, name);
        assert_eq!(of("portcullis_upstream_retries_total"), ["{cluster=\"web\"} 2"]);
        let labels = "{cluster=\"web\",backend=\"10.0.0.1:80\"";
        assert_eq!(
            of("portcullis_upstream_requests_total"),
            [format!("{labels},code=\"none\"}} 2"), format!("{labels},code=\"200\"}} 2")]
        );
        for (name, value) in [
            ("upstream_response_seconds_count", 2),
            ("upstream_connect_seconds_count", 2),
            ("upstream_connections", 2),
            ("upstream_connections_total", 2),
            ("backend_up", 1),
            ("backend_weight", 3),
            ("backend_requests_in_flight", 2),
            ("probe_seconds_count", 2),
        ] {
            assert_eq!(
                samples(&text, &format!("portcullis_{name}")),
                [format!("{labels}}} {value}")],
                "{name}"
            );
        }
        assert_eq!(
            of("portcullis_probes_total"),
            [format!("{labels},result=\"ok\"}} 1"), format!("{labels},result=\"timeout\"}} 1")]
        );
        let errors = of("portcullis_errors_total");
        assert!(errors.contains(&"{reason=\"connect_refused\"} 2".to_owned()), "{errors:?}");
        assert!(errors.contains(&"{reason=\"no_route\"} 0".to_owned()), "{errors:?}");
        let rejections = of("portcullis_rejections_total");
        assert!(
            rejections.contains(&"{listener=\"https\",reason=\"bad_request\"} 2".to_owned()),
            "{rejections:?}"
        );
        assert!(
            rejections.contains(&"{listener=\"https\",reason=\"denied\"} 0".to_owned()),
            "{rejections:?}"
        );
        let reasons = errors.len() + rejections.len();
        let failures = Reason::ALL.iter().filter(|reason| reason.blame() != Blame::Nobody).count();
        assert_eq!(reasons, failures, "each reason that is a failure in one of the two");
        assert_eq!(of("portcullis_panics_total"), [" 2"]);
        assert_eq!(of("portcullis_log_lines_lost_total"), [" 0"]);
        let version = format!("{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        assert_eq!(of("portcullis_build_info"), [version]);
        assert_eq!(of("process_open_fds").len(), 1);
    }

    #[test]
    fn totals_of_a_backend_are_those_of_all_threads() {
        let metrics = used_by_two_threads();
        let expected =
            BackendTotals { requests_in_flight: 2, requests_total: 6, connections: 2, connections_total: 2 };
        assert_eq!(metrics.backend_totals("web", "10.0.0.1:80"), expected);
        assert_eq!(metrics.backend_totals("web", "10.0.0.2:80"), BackendTotals::default());
    }

    #[test]
    fn routes_without_requests_are_not_shown_and_gauges_are() {
        let metrics = Metrics::new(1);
        let shard = metrics.shard(0);
        for n in 0..10_000 {
            shard.route("http", &format!("/{n}"));
        }
        shard.listener("http");
        shard.backend("web", "a:1").set_up(false);
        let text = metrics.scrape();
        assert!(!text.contains("route="));
        assert_eq!(samples(&text, "portcullis_downstream_connections"), ["{listener=\"http\"} 0"]);
        assert_eq!(samples(&text, "portcullis_requests_in_flight"), ["{listener=\"http\"} 0"]);
        assert_eq!(samples(&text, "portcullis_backend_up"), ["{cluster=\"web\",backend=\"a:1\"} 0"]);
        assert!(!text.contains("tls_handshakes"), "not where there is no TLS");
    }

    #[test]
    fn the_series_of_what_is_gone_go_too() {
        let metrics = used_by_two_threads();
        metrics.shard(0).backend("web", "10.0.0.2:80").set_up(true);
        metrics.retain(|owner| {
            !matches!(
                owner,
                SeriesOwner::Backend { cluster: "web", backend: "10.0.0.1:80" }
                    | SeriesOwner::Route { listener: "https", route: "/api" }
                    | SeriesOwner::Cluster("web")
                    | SeriesOwner::Listener("https")
            )
        });
        metrics.certificates(Vec::new());
        let text = metrics.scrape();
        assert!(
            !text.contains("10.0.0.1:80") && !text.contains("=\"https\"") && !text.contains("retries"),
            "{text}"
        );
        assert!(text.contains("10.0.0.2:80"));
    }

    #[test]
    fn a_certificate_named_twice_is_shown_once() {
        let metrics = Metrics::new(1);
        let certificate = CertificateExpiry {
            listener: "a".into(),
            names: vec!["b".into()],
            serial: "1".into(),
            not_after: 5,
            staple_until: None,
        };
        let other = |serial: &str, second: &str| CertificateExpiry {
            names: vec!["b".into(), second.into()],
            serial: serial.into(),
            ..certificate.clone()
        };
        metrics.certificates(vec![
            CertificateExpiry { not_after: 6, ..certificate.clone() },
            other("1", "c"),
            other("2", "d"),
            other("1", "e"),
        ]);
        let shown = samples(&metrics.scrape(), "portcullis_tls_certificate_expiry_timestamp_seconds");
        assert_eq!(shown.len(), 2, "of serial 1 and of serial 2: {shown:?}");
    }

    #[test]
    fn hostile_names_do_not_break_the_text() {
        let metrics = Metrics::new(1);
        metrics.shard(0).route("a\"} 1\n#", "b\\").request(Protocol::Http1, 200, MILLI);
        let text = metrics.scrape();
        assert_eq!(
            samples(&text, "portcullis_requests_total"),
            ["{listener=\"a\\\"} 1\\n#\",route=\"b\\\\\",protocol=\"http1\",code=\"200\"} 1"]
        );
    }

    #[test]
    fn no_series_appears_twice() {
        let text = used_by_two_threads().scrape();
        let mut series: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .map(|s| s.0)
            .collect();
        let all = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), all);
    }

    #[test]
    fn promtool_finds_nothing_to_complain_about() {
        let Ok(mut promtool) = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            eprintln!("skipped: promtool is not installed");
            return;
        };
        promtool.stdin.take().unwrap().write_all(used_by_two_threads().scrape().as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}
