//! What does it cost to count and log a request, and to be scraped?

use std::{
    hint::black_box,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use portcullis::{
    config::{AccessSink, Log, LogFormat},
    firewall::Firewall,
    http::message::RequestHead,
    observe::{AccessLog, Metrics, Protocol, Quoted, Record, Shard, TlsInfo},
    proxy::{
        flight::Flight,
        load::Load,
        view::View,
        worker::{Client, TlsFacts, Worker},
    },
    upstream::cluster::Cluster,
};
use tokio::time::Instant;

// The allocator of the binary: a scrape is half allocation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WRITERS: usize = 3;

fn name(name: &str) -> &'static Quoted {
    Box::leak(Box::new(Quoted::new(name)))
}

fn record() -> Record<'static> {
    Record {
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_785_587_696_789),
        listener: name("0.0.0.0:443"),
        client_ip: "203.0.113.7",
        peer: "203.0.113.7:50001",
        protocol: Protocol::Http1,
        tls: Some(TlsInfo {
            version: "TLSv1.3",
            cipher: "TLS13_AES_128_GCM_SHA256",
            sni: Some("www.example.com"),
            resumed: false,
            client: None,
        }),
        method: "GET",
        host: "www.example.com",
        path: "/assets/js/application-4f2a9c.js",
        query: Some("v=1234"),
        route: Some(name("www.example.com/assets")),
        cluster: Some(name("web")),
        backend: Some(name("10.0.0.11:8080")),
        status: 200,
        reason: None,
        bytes_in: 0,
        bytes_out: 10_240,
        attempts: 1,
        duration: Duration::from_micros(1_234),
        upstream_response: Some(Duration::from_micros(987)),
        request_id: b"0af7651916cd43dd8448eb211c80319c",
        user_agent: Some(b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        referer: Some(b"https://www.example.com/start"),
    }
}

fn one_record(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    let record = record();
    let mut line = Vec::with_capacity(4096);
    for (name, format) in [("json", LogFormat::Json), ("text", LogFormat::Text)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                line.clear();
                black_box(&record).write(format, &mut line);
                black_box(line.len())
            });
        });
    }
    let hostile = Record { user_agent: Some("\u{1b}[2J\"\n\u{e9}".repeat(10).leak().as_bytes()), ..record };
    group.bench_function("json, hostile user agent", |b| {
        b.iter(|| {
            line.clear();
            black_box(&hostile).write(LogFormat::Json, &mut line);
            black_box(line.len())
        });
    });
    group.finish();
}

/// Formatting and handing over, with the thread that writes to /dev/null beside it.
fn logged_record(c: &mut Criterion) {
    let metrics = Metrics::new(1);
    let access = AccessSink::File("/dev/null".into());
    let log = Log { access, format: LogFormat::Json, level: tracing::Level::INFO };
    let log = AccessLog::start(&log, &metrics).expect("/dev/null can be opened");
    let mut writer = log.writer();
    let record = record();
    c.bench_function("record, logged", |b| b.iter(|| writer.record(black_box(&record))));
    drop(writer);
    log.finish(Duration::from_secs(5));
}

fn request_metrics(c: &mut Criterion) {
    let shard = Metrics::new(WRITERS).shard(0);
    let listener = shard.listener("0.0.0.0:443");
    let route = shard.route("0.0.0.0:443", "www.example.com/assets");
    let backend = shard.backend("web", "10.0.0.11:8080");
    let (head_after, took) = (Duration::from_micros(987), Duration::from_micros(1_234));
    c.bench_function("metrics of one request", |b| {
        b.iter(|| {
            listener.request_started();
            backend.request_started();
            backend.request_finished(black_box(Some(200)), black_box(Some(head_after)));
            route.request(Protocol::Http1, black_box(200), black_box(took));
            listener.request_finished();
        });
    });
    c.bench_function("a cell by its labels", |b| {
        b.iter(|| shard.route("0.0.0.0:443", black_box("www.example.com/assets")));
    });
}

const CONFIG: &str = r#"
workers = 1
log.access = "/dev/null"
[[listeners]]
name = "0.0.0.0:443"
address = "127.0.0.1:0"
[[routes]]
name = "www.example.com/assets"
cluster = "web"
[clusters.web]
backends = ["10.0.0.11:8080"]
health = false
"#;

/// Everything that a request pays to be seen: its flight from the head to the record, with all
/// metrics, its id, two looks at the clock, and its line in the log. Must stay below a microsecond.
fn whole_flight(c: &mut Criterion) {
    let (config, _) = portcullis::config::parse("bench.toml", CONFIG, Path::new("")).expect("a good file");
    let config = Arc::new(config);
    let clusters = [Arc::new(Cluster::new(config.clusters[0].clone(), None).expect("no TLS"))];
    let metrics = Metrics::new(2);
    let log = AccessLog::start(&config.log, &metrics).expect("/dev/null can be opened");
    let shard = metrics.shard(0);
    let view = View::new(&config, &Arc::new(Firewall::new(&config)), &clusters, &shard, 7);
    let worker = Worker::new(view, shard, log.writer(), Load::new(None, None));
    let record = record();
    let tls = TlsFacts {
        version: "TLSv1.3",
        cipher: "TLS13_AES_128_GCM_SHA256",
        sni: Some("www.example.com".to_owned()),
        resumed: false,
        policy: 0,
        identity: None,
    };
    let mut client = Client::new(0, record.peer.parse().expect("an address"));
    client.tls = Some(tls);
    let mut head = RequestHead::default();
    head.host.push_str(record.host);
    head.path_len = record.path.len();
    head.target = format!("{}?{}", record.path, record.query.unwrap_or_default());
    head.fields.push(b"user-agent", record.user_agent.unwrap_or_default());
    head.fields.push(b"referer", record.referer.unwrap_or_default());
    c.bench_function("metrics and log of one request", |b| {
        b.iter(|| {
            let mut flight = Flight::new(&worker, &client, black_box(&mut head), Instant::now());
            (flight.route, flight.cluster, flight.backend) = (Some(0), Some(0), Some(0));
            let cells = flight.view.clusters[0].backends[0].cells.clone();
            cells.request_started();
            let head_after = Duration::from_micros(987);
            cells.request_finished(black_box(Some(200)), Some(head_after));
            (flight.status, flight.upstream_response) = (Some(200), Some(head_after));
            (flight.attempts, flight.bytes_out) = (1, black_box(10_240));
            flight.ended = Some(Instant::now());
        });
    });
    drop(worker);
    log.finish(Duration::from_secs(5));
}

fn with_backends(count: usize) -> Arc<Metrics> {
    let metrics = Metrics::new(WRITERS);
    for writer in 0..WRITERS {
        let shard = metrics.shard(writer);
        for n in 0..count {
            use_backend(&shard, &format!("10.0.{}.{}:8080", n / 250, n % 250));
        }
    }
    metrics
}

fn use_backend(shard: &Shard, backend: &str) {
    let cell = shard.backend("web", backend);
    cell.set_up(true);
    cell.set_weight(1);
    for n in 1..50 {
        let took = Duration::from_micros(n * n * 100);
        cell.connection_opened(took);
        cell.request_started();
        cell.request_finished(Some(if n % 10 == 0 { 404 } else { 200 }), Some(took));
        cell.probe("ok", took);
    }
}

fn scrape(c: &mut Criterion) {
    let mut group = c.benchmark_group("scrape");
    group.sample_size(20);
    for (name, count) in [("3 backends", 3), ("1000 backends", 1000)] {
        let metrics = with_backends(count);
        group.throughput(Throughput::Bytes(metrics.scrape().len() as u64));
        group.bench_function(name, |b| b.iter(|| metrics.scrape()));
    }
    group.finish();
}

criterion_group!(benches, one_record, logged_record, request_metrics, whole_flight, scrape);
criterion_main!(benches);
