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
        pool::{Lease, Open, Pool},
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

/// Ten paths a host, each host on its own.
fn routes(count: usize) -> Vec<Route> {
    let route = |index: usize| Route {
        name: index.to_string(),
        host: HostMatch::Exact(format!("host{}.example.com", index / 10)),
        path: format!("/application/part{}", index % 10),
        listener: None,
        cluster: 0,
        firewall: None,
    };
    (0..count).map(route).collect()
}

fn find_route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for count in [10_usize, 10_000] {
        let table = RouteTable::new(&routes(count), 0);
        let host = format!("host{}.example.com", count / 20);
        group.bench_function(BenchmarkId::new("hit", count), |bencher| {
            bencher.iter(|| table.find(black_box(&host), black_box("/application/part5/item/12")));
        });
        let slashes = "/".repeat(8 * 1024);
        group.bench_function(BenchmarkId::new("slashes", count), |bencher| {
            bencher.iter(|| table.find(black_box(&host), black_box(&slashes)));
        });
    }
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
    pool.give(Lease::new(connection, Open::count(cells, Duration::ZERO)), now, 1);
    criterion.bench_function("pool/take and give", |bencher| {
        bencher.iter(|| {
            let lease = pool.take(now, Duration::from_mins(1)).expect("the idle connection");
            pool.give(lease, now, 1);
        });
    });
}

criterion_group!(benches, pick, find_route, pool);
criterion_main!(benches);
