//! Who counts what, and how does Prometheus get to see it?
//!
//! Every thread that counts has a `Shard`, and for each listener, route, cluster and backend a
//! cell that nobody else writes. `Metrics::scrape` sums the cells of all threads; the `prometheus`
//! crate makes text of the sums.

mod cells;
mod counter;
mod histogram;
mod scrape;
mod series;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
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
    // Rare enough for a locked addition, and counted by threads that have no shard.
    log_lines_lost: AtomicU64,
    panics: AtomicU64,
    certificates: Mutex<Vec<CertificateExpiry>>,
    process: Mutex<ProcessCollector>,
}

/// Keeps what one thread writes out of the cache lines of the others.
#[derive(Debug, Default)]
#[repr(align(64))]
struct OwnLine<T>(T);

/// When a certificate that a listener serves ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CertificateExpiry {
    pub listener: String,
    /// The first subject alternative name.
    pub name: String,
    pub serial: String,
    /// Seconds since the epoch.
    pub not_after: i64,
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
            log_lines_lost: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            certificates: Mutex::default(),
            process: Mutex::new(ProcessCollector::for_self()),
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
        certificates.sort();
        certificates.dedup_by(|b, a| (&a.listener, &a.name, &a.serial) == (&b.listener, &b.name, &b.serial));
        *self.certificates.lock().unwrap_or_else(PoisonError::into_inner) = certificates;
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

    /// A task that panicked and took nothing but its connection with it.
    pub fn panic(&self) {
        self.metrics.panics.fetch_add(1, Ordering::Relaxed);
    }
}
