//! Picking a backend and finding a route: both on every request's way.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use portcullis::{
    config::{HostMatch, Route},
    proxy::route::RouteTable,
    upstream::balance::{RoundRobin, Tried},
};

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

criterion_group!(benches, pick, find_route);
criterion_main!(benches);
