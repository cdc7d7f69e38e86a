//! What do the sums look like to Prometheus? Names, labels and help of every metric.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use prometheus::{TextEncoder, core::Collector};

use super::{
    CertificateExpiry, Metrics,
    cells::{BackendCells, ClusterCells, ListenerCells, RouteCells, Timed},
    histogram::HistogramTotal,
    text::{Labels, Text},
};
use crate::{error::Reason, observe::Protocol};

/// Every metric with its series; a metric without one is left out.
pub(super) fn text(metrics: &Metrics) -> String {
    // As long as the last one, and a little more.
    let mut text = Text::new(metrics.scrape_bytes.load(Ordering::Relaxed) + 16 * 1024);
    listener_families(metrics, &mut text);
    route_families(metrics, &mut text);
    cluster_families(metrics, &mut text);
    backend_families(metrics, &mut text);
    firewall_families(metrics, &mut text);
    process_families(metrics, &mut text);
    let text = text.finish();
    metrics.scrape_bytes.store(text.len(), Ordering::Relaxed);
    text
}

#[derive(Default)]
struct ListenerTotal {
    connections: Running,
    requests: Running,
    handshakes: TimedTotal,
    rejections: BTreeMap<&'static str, u64>,
    dry_runs: BTreeMap<&'static str, u64>,
}

impl ListenerTotal {
    fn add(&mut self, cell: &ListenerCells) {
        self.connections.add(cell.connections.now(), cell.connections.total());
        self.requests.add(cell.requests.now(), cell.requests.total());
        self.handshakes.add(cell.handshakes.get().map(AsRef::as_ref));
        for &reason in Reason::ALL {
            let count = cell.rejections.value(reason);
            // Shown as 0 from the start: a rate over a counter that appears with 1 misses the 1.
            if reason.is_rejection() || count > 0 {
                *self.rejections.entry(reason.code()).or_default() += count;
            }
            let count = cell.dry_runs.value(reason);
            if reason.is_firewalls() || count > 0 {
                *self.dry_runs.entry(reason.code()).or_default() += count;
            }
        }
    }
}

fn listener_families(metrics: &Metrics, out: &mut Text) {
    let listeners = metrics.listeners.totals(["listener"], ListenerTotal::add);
    let each = || listeners.iter().map(|(labels, total)| (labels, total));
    out.gauges(
        "portcullis_downstream_connections",
        "Open connections of clients.",
        each().map(|(labels, total)| (labels, total.connections.now)),
    );
    out.counters(
        "portcullis_downstream_connections_total",
        "Connections of clients that were accepted.",
        each().map(|(labels, total)| (labels, total.connections.all)),
    );
    out.counters(
        "portcullis_tls_handshakes_total",
        "TLS handshakes with clients by result: ok, or why they failed.",
        each().flat_map(|(labels, total)| total.handshakes.by_result(labels)),
    );
    out.histograms(
        "portcullis_tls_handshake_seconds",
        "Duration of the TLS handshakes with clients that succeeded.",
        each().map(|(labels, total)| (labels, &total.handshakes.took)),
    );
    certificate_expiry(metrics, out);
    metrics.acme.families(out);
    out.gauges(
        "portcullis_requests_in_flight",
        "Requests of clients that are being worked on.",
        each().map(|(labels, total)| (labels, total.requests.now)),
    );
    out.counters(
        "portcullis_rejections_total",
        "Requests and connections that were refused because of the client, by reason.",
        each().flat_map(|(labels, total)| {
            total.rejections.iter().map(|(reason, &count)| (labels.with("reason", reason), count))
        }),
    );
    out.counters(
        "portcullis_firewall_dry_run_total",
        "Requests and connections that the firewall let through only because of dry_run, by reason.",
        each().flat_map(|(labels, total)| {
            total.dry_runs.iter().map(|(reason, &count)| (labels.with("reason", reason), count))
        }),
    );
}

fn certificate_expiry(metrics: &Metrics, out: &mut Text) {
    let certificates = metrics.certificates.lock().unwrap_or_else(PoisonError::into_inner);
    let labels = |certificate: &CertificateExpiry| {
        let values = [&certificate.listener, certificate.name(), &certificate.serial];
        Labels::new(["listener", "name", "serial"], values)
    };
    let series = certificates.iter().map(|certificate| (labels(certificate), certificate.not_after));
    out.gauges(
        "portcullis_tls_certificate_expiry_timestamp_seconds",
        "When a certificate ends, in seconds since the epoch.",
        series,
    );
    let staples = certificates.iter().filter_map(|each| each.staple_until.map(|until| (labels(each), until)));
    out.gauges(
        "portcullis_tls_ocsp_expiry_timestamp_seconds",
        "When the OCSP response for a certificate ends, in seconds since the epoch; 0 while there is none.",
        staples,
    );
    let loads = metrics.tls_file_loads.lock().unwrap_or_else(PoisonError::into_inner);
    let loads = loads.iter().map(|((file, well), count)| {
        let result = if *well { "ok" } else { "failed" };
        (Labels::new(["file", "result"], [file.code(), result]), *count)
    });
    out.counters(
        "portcullis_tls_file_loads_total",
        "Times that a file of TLS changed and was loaded anew; what was in force stays where it failed.",
        loads,
    );
}

#[derive(Default)]
struct RouteTotal {
    codes: BTreeMap<(&'static str, u16), u64>,
    took: HistogramTotal,
}

impl RouteTotal {
    fn add(&mut self, cell: &RouteCells) {
        if let Some(requests) = cell.requests.get() {
            requests.for_each_code(|protocol: Protocol, code, count| {
                *self.codes.entry((protocol.label(), code)).or_default() += count;
            });
            self.took.add(&requests.took);
        }
    }
}

fn route_families(metrics: &Metrics, out: &mut Text) {
    let mut routes = metrics.routes.totals(["listener", "route"], RouteTotal::add);
    routes.retain(|(_, total)| !total.codes.is_empty());
    out.counters(
        "portcullis_requests_total",
        "Requests of clients that are over, by protocol and status code.",
        routes.iter().flat_map(|(labels, total)| {
            total.codes.iter().map(|(&(protocol, code), &count)| {
                (labels.with("protocol", protocol).with("code", itoa::Buffer::new().format(code)), count)
            })
        }),
    );
    out.histograms(
        "portcullis_request_seconds",
        "Duration of requests until the last byte of the answer was sent to the client.",
        routes.iter().map(|(labels, total)| (labels, &total.took)),
    );
}

#[derive(Default)]
struct ClusterTotal {
    retries: u64,
    plaintext: Option<u64>,
    unverified: Option<u64>,
}

impl ClusterTotal {
    fn add(&mut self, cell: &ClusterCells) {
        self.retries += cell.retries.value();
        self.plaintext = self.plaintext.or(cell.plaintext.value());
        self.unverified = self.unverified.or(cell.unverified.value());
    }
}

fn cluster_families(metrics: &Metrics, out: &mut Text) {
    let clusters = metrics.clusters.totals(["cluster"], ClusterTotal::add);
    let each = || clusters.iter().map(|(labels, total)| (labels, total));
    out.counters(
        "portcullis_upstream_retries_total",
        "Attempts after the first of a request.",
        each().map(|(labels, total)| (labels, total.retries)),
    );
    out.gauges(
        "portcullis_cluster_plaintext",
        "1 where a backend of another machine is sent clear text.",
        each().filter_map(|(labels, total)| Some((labels, total.plaintext?))),
    );
    out.gauges(
        "portcullis_cluster_unverified",
        "1 where TLS does not verify who the backends are.",
        each().filter_map(|(labels, total)| Some((labels, total.unverified?))),
    );
}

#[derive(Default)]
struct BackendTotal {
    requests: Running,
    connections: Running,
    codes: BTreeMap<Option<u16>, u64>,
    response: HistogramTotal,
    connect: HistogramTotal,
    probes: TimedTotal,
    up: Option<u64>,
    weight: Option<u64>,
}

impl BackendTotal {
    fn add(&mut self, cell: &BackendCells) {
        self.requests.add(cell.requests.now(), cell.requests.total());
        self.connections.add(cell.connections.now(), cell.connections.total());
        cell.for_each_code(|code, count| *self.codes.entry(code).or_default() += count);
        if let Some(times) = cell.times.get() {
            self.response.add(&times.response);
            self.connect.add(&times.connect);
        }
        self.probes.add(cell.probes.get().map(AsRef::as_ref));
        self.up = self.up.or(cell.up.value());
        self.weight = self.weight.or(cell.weight.value());
    }
}

fn backend_families(metrics: &Metrics, out: &mut Text) {
    let backends = metrics.backends.totals(["cluster", "backend"], BackendTotal::add);
    let each = || backends.iter().map(|(labels, total)| (labels, total));
    out.counters(
        "portcullis_upstream_requests_total",
        "Attempts on a backend that are over, by status code; none where no response came.",
        each().flat_map(|(labels, total)| {
            let code = |code: Option<u16>| code.map_or_else(|| "none".to_owned(), |code| code.to_string());
            total.codes.iter().map(move |(&key, &count)| (labels.with("code", &code(key)), count))
        }),
    );
    out.histograms(
        "portcullis_upstream_response_seconds",
        "Time from the start of an attempt until the head of the response.",
        each().map(|(labels, total)| (labels, &total.response)),
    );
    out.gauges(
        "portcullis_upstream_connections",
        "Open connections to a backend.",
        each().map(|(labels, total)| (labels, total.connections.now)),
    );
    out.counters(
        "portcullis_upstream_connections_total",
        "Connections to a backend that were made.",
        each().map(|(labels, total)| (labels, total.connections.all)),
    );
    out.histograms(
        "portcullis_upstream_connect_seconds",
        "Time to connect to a backend, TLS included.",
        each().map(|(labels, total)| (labels, &total.connect)),
    );
    out.gauges(
        "portcullis_backend_requests_in_flight",
        "Attempts on a backend that are running.",
        each().map(|(labels, total)| (labels, total.requests.now)),
    );
    health_families(each, out);
}

fn health_families<'a, I>(each: impl Fn() -> I, out: &mut Text)
where
    I: Iterator<Item = (&'a Labels, &'a BackendTotal)>,
{
    out.gauges(
        "portcullis_backend_up",
        "1 where a backend is up, 0 where it is down; where so few are up that a cluster fails open, those that are down get requests too.",
        each().filter_map(|(labels, total)| Some((labels, total.up?))),
    );
    out.gauges(
        "portcullis_backend_weight",
        "Weight of a backend among those of its cluster.",
        each().filter_map(|(labels, total)| Some((labels, total.weight?))),
    );
    out.counters(
        "portcullis_probes_total",
        "Probes of a backend by result: ok, or why they failed.",
        each().flat_map(|(labels, total)| total.probes.by_result(labels)),
    );
    out.histograms(
        "portcullis_probe_seconds",
        "Duration of the probes of a backend.",
        each().map(|(labels, total)| (labels, &total.probes.took)),
    );
}

fn firewall_families(metrics: &Metrics, out: &mut Text) {
    out.gauges(
        "portcullis_firewall_bans",
        "Client addresses that are banned.",
        [(Labels::none(), metrics.bans.load(Ordering::Relaxed))],
    );
    out.gauges(
        "portcullis_firewall_networks",
        "Networks in the firewall's lists.",
        [(Labels::none(), metrics.networks.load(Ordering::Relaxed))],
    );
    let loads = metrics.list_loads.iter().zip(["ok", "failed"]);
    out.counters(
        "portcullis_firewall_list_loads_total",
        "Times that lists were loaded anew because a file changed; what was in force stays where it failed.",
        loads.map(|(count, result)| (Labels::new(["result"], [result]), count.load(Ordering::Relaxed))),
    );
}

fn process_families(metrics: &Metrics, out: &mut Text) {
    let errors = Reason::ALL.iter().filter_map(|&reason| {
        let count: u64 = metrics.errors.iter().map(|counts| counts.0.value(reason)).sum();
        (reason.is_error() || count > 0).then(|| (Labels::new(["reason"], [reason.code()]), count))
    });
    out.counters(
        "portcullis_errors_total",
        "Requests that failed because of a backend or of Portcullis, by reason.",
        errors,
    );
    let delay = metrics.delays.iter().map(|delay| delay.0.load(Ordering::Relaxed)).max();
    out.gauge_seconds(
        "portcullis_worker_delay_seconds",
        "How late a task of the most loaded worker was that was due.",
        Duration::from_micros(delay.unwrap_or_default()),
    );
    out.counters(
        "portcullis_log_lines_lost_total",
        "Access log lines that could not be written.",
        [(Labels::none(), metrics.log_lines_lost.load(Ordering::Relaxed))],
    );
    out.counters(
        "portcullis_panics_total",
        "Tasks that panicked; each ended its own connection.",
        [(Labels::none(), metrics.panics.load(Ordering::Relaxed))],
    );
    out.gauges(
        "portcullis_build_info",
        "1, with the version as a label.",
        [(Labels::new(["version"], [env!("CARGO_PKG_VERSION")]), 1_u64)],
    );
    let process = metrics.process.lock().unwrap_or_else(PoisonError::into_inner).collect();
    TextEncoder::new()
        .encode_utf8(&process, out.buffer())
        .expect("a family with a name and series is encoded into a string");
}

/// How many run, and how many there ever were.
#[derive(Default)]
struct Running {
    now: u64,
    all: u64,
}

impl Running {
    fn add(&mut self, now: u64, all: u64) {
        self.now += now;
        self.all += all;
    }
}

#[derive(Default)]
struct TimedTotal {
    results: BTreeMap<&'static str, u64>,
    took: HistogramTotal,
}

impl TimedTotal {
    fn add(&mut self, cell: Option<&Timed>) {
        if let Some(timed) = cell {
            timed.results.for_each(|result, count| *self.results.entry(result).or_default() += count);
            self.took.add(&timed.took);
        }
    }

    fn by_result(&self, labels: &Labels) -> impl Iterator<Item = (Labels, u64)> {
        self.results.iter().map(move |(result, &count)| (labels.with("result", result), count))
    }
}
