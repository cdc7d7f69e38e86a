//! Picking a backend, finding a route, taking a connection: all on every request's way.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use portcullis::{
    config::{HostMatch, Route},
    http::{h1, transport::Transport},
    observe::Metrics,
    proxy::route::RouteTable,
    upstream::{
        balance::{RoundRobin, Tried},
        pool::{Lease, Made, Open, Pool},
    },
};
use tokio::time::Instant;

fn pick(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    for backends in [3_u32, 50, 1_000] {
        let weights = [("equal", vec![1; backends as usize]), ("unequal", (1..=backends).collect())];
        for (name, weights) in weights {
            let mut plan = RoundRobin::new(&weights, 7);
            let none = Tried::default();
            group.bench_function(BenchmarkId::new(name, backends), |bencher| {
                bencher.iter(|| plan.pick(black_box(&none)));
            });
        }
    }
    group.finish();
}

fn route(host: HostMatch, path: String) -> Route {
    Route { name: String::new(), host, path, listener: None, cluster: 0, firewall: None }
}

/// A third each: ten paths on a host, ten paths on a wildcard, paths of six segments on any host.
fn routes(count: usize) -> Vec<Route> {
    let each = |index: usize| {
        let (group, part) = (index / 30, index % 10);
        match index % 3 {
            0 => route(
                HostMatch::Exact(format!("host{group}.example.com")),
                format!("/application/part{part}"),
            ),
            1 => route(
                HostMatch::Wildcard(format!("w{group}.example.com")),
                format!("/application/part{part}"),
            ),
            _ => route(HostMatch::Any, format!("/shop/area{group}/a/deep/prefix/part{part}")),
        }
    };
    (0..count).map(each).collect()
}

/// Must cost the same however many routes there are.
fn find_route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for count in [10_usize, 1_000, 10_000] {
        let table = RouteTable::new(&routes(count), 0);
        let middle = count / 60;
        let exact = (format!("host{middle}.example.com"), "/application/part3/item/12".to_owned());
        let wildcard = (format!("a.b.w{middle}.example.com"), "/application/part4/item/12".to_owned());
        let deep = ("other.example.org".to_owned(), format!("/shop/area{middle}/a/deep/prefix/part5/x/y"));
        let none = (format!("host{middle}.example.com"), "/no/such/path".to_owned());
        for (name, (host, path)) in
            [("exact host", exact), ("wildcard host", wildcard), ("deep path", deep), ("none", none)]
        {
            assert_eq!(table.find(&host, &path).is_some(), name != "none", "{host}{path}");
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter(|| table.find(black_box(&host), black_box(&path)));
            });
        }
    }
    group.finish();
}

/// What a client can make a look-up cost: the longest paths and hosts that the limits let pass,
/// against routes that are made to be walked.
fn hostile_route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route, hostile");
    let many = RouteTable::new(&routes(10_000), 0);
    let slashes = "/".repeat(8 * 1024);
    group.bench_function("slashes", |bencher| {
        bencher.iter(|| many.find(black_box("host7.example.com"), black_box(&slashes)));
    });
    let (labels, segments) = (vec!["a"; 127].join("."), "/x".repeat(4 * 1024));
    group.bench_function("127 labels, 4096 segments", |bencher| {
        bencher.iter(|| many.find(black_box(&labels), black_box(&segments)));
    });
    // Routes of which each is one segment deeper than the one before: the path walks them all.
    let ladder = (1..=4_000).map(|depth| route(HostMatch::Any, "/x".repeat(depth)));
    let ladder = RouteTable::new(&ladder.collect::<Vec<_>>(), 0);
    group.bench_function("4096 segments down 4000 nested prefixes", |bencher| {
        bencher.iter(|| ladder.find(black_box("a"), black_box(&segments)));
    });
    // Every wildcard holds the host, and each is walked 80 segments deep before its paths turn off.
    let wildcards = (1..=125).flat_map(|depth| {
        let suffix = vec!["a"; depth].join(".");
        (0..80).map(move |part| {
            route(HostMatch::Wildcard(suffix.clone()), format!("{}/part{part}", "/x".repeat(80)))
        })
    });
    let wildcards = RouteTable::new(&wildcards.collect::<Vec<_>>(), 0);
    assert_eq!(wildcards.find(&labels, &segments), None);
    group.bench_function("125 nested wildcards of 80 deep paths", |bencher| {
        bencher.iter(|| wildcards.find(black_box(&labels), black_box(&segments)));
    });
    group.finish();
}

/// Taking an idle connection out of the pool and giving it back.
fn pool(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let stream =
        std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    stream.set_nonblocking(true).expect("an option");
    let stream = tokio::net::TcpStream::from_std(stream).expect("a runtime");
    let cells = Metrics::new(1).shard(0).backend("web", "127.0.0.1:1");
    let connection = h1::Connection::new(Transport::Tcp(stream));
    let (mut pool, now) = (Pool::default(), Instant::now());
    pool.give(Lease::new(connection, Open::count(cells, Duration::ZERO), Made::default()), now, None);
    criterion.bench_function("pool/take and give", |bencher| {
        bencher.iter(|| {
            let lease = pool.take(now, Duration::from_mins(1)).expect("the idle connection");
            pool.give(lease, now, None);
        });
    });
}

criterion_group!(benches, pick, find_route, hostile_route, pool);
criterion_main!(benches);
