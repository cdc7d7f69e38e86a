//! What do the sums look like to Prometheus? Names, labels and help of every metric.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, atomic::Ordering},
};

use prometheus::{
    TextEncoder,
    core::Collector,
    proto::{self, LabelPair, Metric, MetricFamily, MetricType},
};

use super::{
    Metrics,
    cells::{BackendCells, ListenerCells, RouteCells, Timed},
    histogram::HistogramTotal,
    series::Labels,
};
use crate::{error::Reason, observe::Protocol};

/// Every metric with its series.
pub(super) fn text(metrics: &Metrics) -> String {
    let mut families = Vec::with_capacity(32);
    listener_families(metrics, &mut families);
    route_families(metrics, &mut families);
    cluster_families(metrics, &mut families);
    backend_families(metrics, &mut families);
    firewall_families(metrics, &mut families);
    process_families(metrics, &mut families);
    // The encoder refuses a metric without a series, and Prometheus has no use for one.
    families.retain(|family| !family.get_metric().is_empty());
    let mut text = String::with_capacity(64 * 1024);
    TextEncoder::new()
        .encode_utf8(&families, &mut text)
        .expect("a family with a name and series is encoded into a string");
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

fn listener_families(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let listeners = metrics.listeners.totals(ListenerTotal::add);
    let labels = |labels: &Labels<1>| pairs(["listener"], [&labels[0]]);
    let each = || listeners.iter().map(|(names, total)| (labels(names), total));
    out.push(gauges(
        "portcullis_downstream_connections",
        "Open connections of clients.",
        each().map(|(labels, total)| (labels, total.connections.now)),
    ));
    out.push(counters(
        "portcullis_downstream_connections_total",
        "Connections of clients that were accepted.",
        each().map(|(labels, total)| (labels, total.connections.all)),
    ));
    out.push(counters(
        "portcullis_tls_handshakes_total",
        "TLS handshakes with clients by result: ok, or why they failed.",
        each().flat_map(|(labels, total)| total.handshakes.by_result(labels)),
    ));
    out.push(histograms(
        "portcullis_tls_handshake_seconds",
        "Duration of the TLS handshakes with clients that succeeded.",
        each().map(|(labels, total)| (labels, &total.handshakes.took)),
    ));
    out.push(certificate_expiry(metrics));
    out.push(gauges(
        "portcullis_requests_in_flight",
        "Requests of clients that are being worked on.",
        each().map(|(labels, total)| (labels, total.requests.now)),
    ));
    out.push(counters(
        "portcullis_rejections_total",
        "Requests and connections that were refused because of the client, by reason.",
        each().flat_map(|(labels, total)| {
            total.rejections.iter().map(move |(reason, &count)| (with(&labels, "reason", reason), count))
        }),
    ));
    out.push(counters(
        "portcullis_firewall_dry_run_total",
        "Requests and connections that the firewall let through only because of dry_run, by reason.",
        each().flat_map(|(labels, total)| {
            total.dry_runs.iter().map(move |(reason, &count)| (with(&labels, "reason", reason), count))
        }),
    ));
}

fn certificate_expiry(metrics: &Metrics) -> MetricFamily {
    let certificates = metrics.certificates.lock().unwrap_or_else(PoisonError::into_inner);
    let series = certificates.iter().map(|certificate| {
        let values = [&certificate.listener, &certificate.name, &certificate.serial];
        let mut gauge = proto::Gauge::default();
        gauge.set_value(signed(certificate.not_after));
        let mut metric = Metric::from_gauge(gauge);
        metric.set_label(pairs(["listener", "name", "serial"], values.map(String::as_str)));
        metric
    });
    family(
        "portcullis_tls_certificate_expiry_timestamp_seconds",
        "When a certificate ends, in seconds since the epoch.",
        MetricType::GAUGE,
        series.collect(),
    )
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

fn route_families(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let mut routes = metrics.routes.totals(RouteTotal::add);
    routes.retain(|(_, total)| !total.codes.is_empty());
    let labels = |labels: &Labels<2>| pairs(["listener", "route"], [&labels[0], &labels[1]]);
    out.push(counters(
        "portcullis_requests_total",
        "Requests of clients that are over, by protocol and status code.",
        routes.iter().flat_map(|(names, total)| {
            total.codes.iter().map(move |(&(protocol, code), &count)| {
                let labels = with(&labels(names), "protocol", protocol);
                (with(&labels, "code", &code.to_string()), count)
            })
        }),
    ));
    out.push(histograms(
        "portcullis_request_seconds",
        "Duration of requests until the last byte of the answer was sent to the client.",
        routes.iter().map(|(names, total)| (labels(names), &total.took)),
    ));
}

fn cluster_families(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let clusters = metrics.clusters.totals(|total: &mut u64, cell| *total += cell.retries.value());
    out.push(counters(
        "portcullis_upstream_retries_total",
        "Attempts after the first of a request.",
        clusters.iter().map(|(names, total)| (pairs(["cluster"], [&names[0]]), *total)),
    ));
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

fn backend_families(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let backends = metrics.backends.totals(BackendTotal::add);
    let each = || {
        let labels = |names: &Labels<2>| pairs(["cluster", "backend"], [&names[0], &names[1]]);
        backends.iter().map(move |(names, total)| (labels(names), total))
    };
    out.push(counters(
        "portcullis_upstream_requests_total",
        "Attempts on a backend that are over, by status code; none where no response came.",
        each().flat_map(|(labels, total)| {
            let code = |code: Option<u16>| code.map_or_else(|| "none".to_owned(), |code| code.to_string());
            total.codes.iter().map(move |(&key, &count)| (with(&labels, "code", &code(key)), count))
        }),
    ));
    out.push(histograms(
        "portcullis_upstream_response_seconds",
        "Time from the start of an attempt until the head of the response.",
        each().map(|(labels, total)| (labels, &total.response)),
    ));
    out.push(gauges(
        "portcullis_upstream_connections",
        "Open connections to a backend.",
        each().map(|(labels, total)| (labels, total.connections.now)),
    ));
    out.push(counters(
        "portcullis_upstream_connections_total",
        "Connections to a backend that were made.",
        each().map(|(labels, total)| (labels, total.connections.all)),
    ));
    out.push(histograms(
        "portcullis_upstream_connect_seconds",
        "Time to connect to a backend, TLS included.",
        each().map(|(labels, total)| (labels, &total.connect)),
    ));
    out.push(gauges(
        "portcullis_backend_requests_in_flight",
        "Attempts on a backend that are running.",
        each().map(|(labels, total)| (labels, total.requests.now)),
    ));
    health_families(each, out);
}

fn health_families<'a, I>(each: impl Fn() -> I, out: &mut Vec<MetricFamily>)
where
    I: Iterator<Item = (Vec<LabelPair>, &'a BackendTotal)>,
{
    out.push(gauges(
        "portcullis_backend_up",
        "1 where a backend is up, 0 where it is down; where so few are up that a cluster fails open, those that are down get requests too.",
        each().filter_map(|(labels, total)| Some((labels, total.up?))),
    ));
    out.push(gauges(
        "portcullis_backend_weight",
        "Weight of a backend among those of its cluster.",
        each().filter_map(|(labels, total)| Some((labels, total.weight?))),
    ));
    out.push(counters(
        "portcullis_probes_total",
        "Probes of a backend by result: ok, or why they failed.",
        each().flat_map(|(labels, total)| total.probes.by_result(labels)),
    ));
    out.push(histograms(
        "portcullis_probe_seconds",
        "Duration of the probes of a backend.",
        each().map(|(labels, total)| (labels, &total.probes.took)),
    ));
}

fn firewall_families(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    out.push(gauges(
        "portcullis_firewall_bans",
        "Client addresses that are banned.",
        [(Vec::new(), metrics.bans.load(Ordering::Relaxed))],
    ));
    out.push(gauges(
        "portcullis_firewall_networks",
        "Networks in the firewall's lists.",
        [(Vec::new(), metrics.networks.load(Ordering::Relaxed))],
    ));
    let loads = metrics.list_loads.iter().zip(["ok", "failed"]);
    out.push(counters(
        "portcullis_firewall_list_loads_total",
        "Times that lists were loaded anew because a file changed; what was in force stays where it failed.",
        loads.map(|(count, result)| (pairs(["result"], [result]), count.load(Ordering::Relaxed))),
    ));
}

fn process_families(metrics: &Metrics, out: &mut Vec<MetricFamily>) {
    let errors = Reason::ALL.iter().filter_map(|&reason| {
        let count: u64 = metrics.errors.iter().map(|counts| counts.0.value(reason)).sum();
        (reason.is_error() || count > 0).then(|| (pairs(["reason"], [reason.code()]), count))
    });
    out.push(counters(
        "portcullis_errors_total",
        "Requests that failed because of a backend or of Portcullis, by reason.",
        errors,
    ));
    out.push(counters(
        "portcullis_log_lines_lost_total",
        "Access log lines that could not be written.",
        [(Vec::new(), metrics.log_lines_lost.load(Ordering::Relaxed))],
    ));
    out.push(counters(
        "portcullis_panics_total",
        "Tasks that panicked; each ended its own connection.",
        [(Vec::new(), metrics.panics.load(Ordering::Relaxed))],
    ));
    out.push(gauges(
        "portcullis_build_info",
        "1, with the version as a label.",
        [(pairs(["version"], [env!("CARGO_PKG_VERSION")]), 1)],
    ));
    out.extend(metrics.process.lock().unwrap_or_else(PoisonError::into_inner).collect());
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

    fn by_result(&self, labels: Vec<LabelPair>) -> impl Iterator<Item = (Vec<LabelPair>, u64)> {
        self.results.iter().map(move |(result, &count)| (with(&labels, "result", result), count))
    }
}

fn pairs<const N: usize>(names: [&str; N], values: [&str; N]) -> Vec<LabelPair> {
    // One more, as most label sets get a code or a result behind.
    let mut pairs = Vec::with_capacity(N + 1);
    pairs.extend(names.into_iter().zip(values).map(|(name, value)| pair(name, value)));
    pairs
}

fn with(labels: &[LabelPair], name: &str, value: &str) -> Vec<LabelPair> {
    labels.iter().cloned().chain([pair(name, value)]).collect()
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn gauges(name: &str, help: &str, series: impl IntoIterator<Item = (Vec<LabelPair>, u64)>) -> MetricFamily {
    let metric = |(labels, value)| {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(number(value));
        let mut metric = Metric::from_label(labels);
        metric.set_gauge(gauge);
        metric
    };
    family(name, help, MetricType::GAUGE, series.into_iter().map(metric).collect())
}

fn counters(name: &str, help: &str, series: impl IntoIterator<Item = (Vec<LabelPair>, u64)>) -> MetricFamily {
    let metric = |(labels, value)| {
        let mut counter = proto::Counter::default();
        counter.set_value(number(value));
        let mut metric = Metric::from_label(labels);
        metric.set_counter(counter);
        metric
    };
    family(name, help, MetricType::COUNTER, series.into_iter().map(metric).collect())
}

/// Leaves out what was never observed: twenty lines of zeros say nothing.
fn histograms<'a>(
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Vec<LabelPair>, &'a HistogramTotal)>,
) -> MetricFamily {
    let metric = |(labels, total): (Vec<LabelPair>, &HistogramTotal)| {
        let buckets = total.cumulative().map(|(bound, count)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(total.count());
        histogram.set_sample_sum(total.seconds);
        let mut metric = Metric::from_label(labels);
        metric.set_histogram(histogram);
        metric
    };
    let observed = series.into_iter().filter(|(_, total)| total.count() > 0);
    family(name, help, MetricType::HISTOGRAM, observed.map(metric).collect())
}

fn family(name: &str, help: &str, kind: MetricType, series: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(series);
    family
}

#[expect(clippy::cast_precision_loss, reason = "the value of a sample is a double, exact to 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "the value of a sample is a double, exact to 2^53")]
fn signed(seconds: i64) -> f64 {
    seconds as f64
}
