//! The whole path in this process: a request over TLS, through the engine, to a backend on loopback
//! and back, on one worker.
//!
//! `cargo bench --bench path`; the figures hold the client and the backend too, so only their changes
//! mean something.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    thread,
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::{
    client::Client,
    engine::{Engine, Setup},
    h2::{H2, block_on},
};

const SMALL: usize = 100;
const LARGE: usize = 64 * 1024;
const AT_ONCE: usize = 10;

/// Answers every request with as many bytes as its path says, until the process ends.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_nodelay(true).expect("an option");
            thread::spawn(move || {
                let responses = [SMALL, LARGE].map(|length| {
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                    [head.into_bytes(), vec![b'x'; length]].concat()
                });
                let (mut buffer, mut filled) = ([0; 4096], 0);
                while let Ok(count @ 1..) = stream.read(&mut buffer[filled..]) {
                    filled += count;
                    if buffer[..filled].ends_with(b"\r\n\r\n") {
                        let response = &responses[usize::from(buffer.starts_with(b"GET /large "))];
                        if stream.write_all(response).is_err() {
                            return;
                        }
                        filled = 0;
                    }
                }
            });
        }
    });
    address
}

fn engine() -> Engine {
    Setup::new(&[backend()]).log("/dev/null").start()
}

fn over_http1(criterion: &mut Criterion) {
    let engine = engine();
    let mut client = Client::tls(engine.tls);
    let mut group = criterion.benchmark_group("path/https_http1");
    for (name, path, length) in [("small", "/small", SMALL), ("large", "/large", LARGE)] {
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| assert_eq!(client.get(path).body.len(), length));
        });
    }
    group.finish();
}

fn over_h2(criterion: &mut Criterion) {
    let engine = engine();
    let mut client = block_on(H2::connect(engine.tls));
    let mut group = criterion.benchmark_group("path/https_h2");
    for (name, path, length) in [("small", "/small", SMALL), ("large", "/large", LARGE)] {
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| assert_eq!(block_on(client.get(path)).body.len(), length));
        });
    }
    group.throughput(Throughput::Elements(AT_ONCE as u64));
    group.bench_function("ten_streams", |bencher| {
        bencher.iter(|| {
            block_on(async {
                let mut responses = Vec::with_capacity(AT_ONCE);
                for _ in 0..AT_ONCE {
                    responses.push(client.open(support::h2::request("GET", "/small"), true).await.0);
                }
                for response in responses {
                    assert_eq!(support::h2::read(response).await.body.len(), SMALL);
                }
            });
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = over_http1, over_h2
}
criterion_main!(benches);
