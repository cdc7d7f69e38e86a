//! More work than there is room for: what is shed and what it is told; and who may hold a backend.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use bytes::Bytes;

use crate::support::{
    GUARD, Gate,
    backend::{Backend, ok},
    client::{Client, Response, tls_config},
    engine::{Engine, Setup},
    h2::{H2, block_on, read, request},
    until,
};

/// Answers what asks for `/hang` when the gate opens, and everything else at once.
fn hanging(gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::new(move |conversation| {
        while let Some(request) = conversation.request() {
            if request.head.starts_with("GET /hang") {
                gate.wait();
            }
            conversation.send(ok("done"));
        }
    })
}

fn until_hanging(backend: &Backend, count: usize) {
    until("hanging requests", || backend.all_received().matches("GET /hang").count() == count);
}

fn hang(engine: &Engine) -> Client {
    let mut client = Client::plain(engine.plain);
    client.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n");
    client
}

#[track_caller]
fn shed(answer: &Response) {
    assert_eq!((answer.status, answer.reason()), (503, Some("overloaded")), "{}", answer.head);
    assert_eq!(answer.field("retry-after"), Some("1"), "{}", answer.head);
    assert_eq!(answer.field("connection"), None, "a new connection would only be more work");
}

#[test]
fn requests_over_the_cap_are_shed_and_their_connections_kept() {
    for limit in [1, 3] {
        let gate = Gate::default();
        let backend = hanging(&gate);
        let engine = Setup::new(&[backend.address]).limits(format!("requests = {limit}")).start();
        let mut other = Client::plain(engine.plain);
        let mut hung = Vec::new();
        for running in 0..limit {
            assert_eq!(other.get("/").status, 200, "one more than {running} of {limit}");
            hung.push(hang(&engine));
            until_hanging(&backend, running + 1);
        }
        shed(&other.get("/"));
        shed(&other.get("/"));
        let over_h2 = block_on(async { H2::connect(engine.tls).await.get("/").await });
        assert_eq!((over_h2.status, over_h2.reason()), (503, Some("overloaded")));
        assert_eq!(over_h2.field("retry-after"), Some("1"));
        assert_eq!((engine.admin("/healthz").0, engine.admin("/readyz").0), (200, 200));
        gate.open();
        for mut client in hung {
            assert_eq!(client.response("GET").status, 200);
        }
        assert_eq!(other.get("/").status, 200);
        assert_eq!(engine.metrics().sum("portcullis_errors_total", &[("reason", "overloaded")]), 3);
        drop(other);
        engine.settled();
        let log = engine.stop();
        let shed = log.iter().filter(|line| line["reason"] == "overloaded");
        assert!(shed.clone().all(|line| line["status"] == 503 && line["attempts"] == 0));
        assert_eq!((shed.count(), log.len()), (3, 2 * limit + 4));
    }
}

#[test]
fn streams_over_the_cap_are_shed_and_their_connection_kept() {
    let gate = Gate::default();
    let backend = hanging(&gate);
    let engine = Setup::new(&[backend.address]).limits("requests = 2").start();
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let first = client.open(request("GET", "/hang"), true).await.0;
        let second = client.open(request("GET", "/hang"), true).await.0;
        until_hanging(&backend, 2);
        assert_eq!(client.get("/").await.reason(), Some("overloaded"));
        gate.open();
        assert_eq!((read(first).await.status, read(second).await.status), (200, 200));
        assert_eq!(client.get("/").await.status, 200);
    });
}

#[test]
fn a_backend_that_answers_nobody_gets_all_requests_all_the_same() {
    const CONNECTIONS: usize = 150;
    let gate = Gate::default();
    let backend = hanging(&gate);
    let engine = Engine::new(backend.address);
    let mut waiting: Vec<_> = (0..CONNECTIONS).map(|_| hang(&engine)).collect();
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let mut streams = Vec::new();
        for _ in 0..100 {
            streams.push(client.open(request("GET", "/hang"), true).await.0);
        }
        until_hanging(&backend, CONNECTIONS + streams.len());
        gate.open();
        for stream in streams {
            assert_eq!(read(stream).await.status, 200);
        }
    });
    assert!(waiting.iter_mut().all(|client| client.response("GET").status == 200));
}

#[test]
fn a_client_that_leaves_gives_its_place_back() {
    let gate = Gate::default();
    let backend = hanging(&gate);
    let engine = Setup::new(&[backend.address]).limits("requests = 1").start();
    let mut other = Client::plain(engine.plain);
    for round in 1..=3 {
        let client = hang(&engine);
        until_hanging(&backend, round);
        shed(&other.get("/"));
        drop(client);
        until("a place", || other.get("/").status == 200);
    }
    gate.open();
}

#[test]
fn what_needs_no_backend_needs_no_place() {
    let gate = Gate::default();
    let backend = hanging(&gate);
    let engine = Setup::new(&[backend.address])
        .routes("[[routes]]\nhost = \"a\"\ncluster = \"web\"")
        .limits("requests = 1")
        .start();
    let mut hung = hang(&engine);
    until_hanging(&backend, 1);
    let mut client = Client::plain(engine.plain);
    client.send("GET / HTTP/1.1\r\nhost: b\r\n\r\n");
    assert_eq!(client.response("GET").reason(), Some("no_route"));
    gate.open();
    assert_eq!(hung.response("GET").status, 200);
}

#[test]
fn a_worker_that_is_late_sheds_until_it_no_longer_is() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).limits("overload_delay = \"2ms\"").start();
    let mut client = Client::plain(engine.plain);
    let (config, stop, start) =
        (Arc::new(tls_config(&["http/1.1"], rustls::ALL_VERSIONS)), AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && start.elapsed() < 2 * GUARD {
                    // Sooner or later they are closed before TLS.
                    let _ = Client::handshake(engine.tls, "site.example", config.clone());
                }
            });
        }
        until("a request that is shed", || {
            let answer = client.get("/");
            if answer.status == 200 {
                return false;
            }
            shed(&answer);
            true
        });
        until("a handshake that is shed", || {
            engine.metrics().sum("portcullis_tls_handshakes_total", &[("result", "overloaded")]) > 0
        });
        stop.store(true, Ordering::Relaxed);
    });
    until("a worker that is not late", || (0..50).all(|_| client.get("/").status == 200));
    assert!(engine.metrics().sum("portcullis_errors_total", &[("reason", "overloaded")]) >= 2);
}

/// A POST of which so many bytes of the body come with the head.
fn begin_post(engine: &Engine, fields: &str, body: &str) -> Client {
    let mut client = Client::plain(engine.plain);
    client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n{body}"));
    client
}

/// Waits until so many requests run, and returns how many of them have a backend.
#[track_caller]
fn at_a_backend(engine: &Engine, running: u64) -> u64 {
    engine.until("running requests", |metrics| metrics.sum("portcullis_requests_in_flight", &[]) == running);
    engine.metrics().sum("portcullis_backend_requests_in_flight", &[])
}

const LIMIT: usize = 2048;

#[test]
fn a_small_body_is_waited_for_before_a_backend_is_chosen() {
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address]).limits(format!("request_buffer = \"{LIMIT}B\"")).start();
    for length in [1, LIMIT - 1, LIMIT] {
        let body = "b".repeat(length);
        let (front, back) = body.split_at(length - 1);
        let mut client = begin_post(&engine, &format!("content-length: {length}"), front);
        assert_eq!(at_a_backend(&engine, 1), 0, "{length}");
        client.send(back);
        assert_eq!(client.response("POST").status, 200, "{length}");
        drop(client);
        engine.settled();
        assert!(backend.received(0).ends_with(&format!("\r\n\r\n{body}")), "{length}");
    }
    assert_eq!(backend.connections(), 1);
    drop(engine);
    let engine = Setup::new(&[backend.address]).limits(format!("request_buffer = \"{LIMIT}B\"")).start();
    for fields in [
        format!("content-length: {}", LIMIT + 1),
        "transfer-encoding: chunked".to_owned(),
        "content-length: 5\r\nexpect: 100-continue".to_owned(),
    ] {
        let client = begin_post(&engine, &fields, "");
        engine.until("a backend at once", |metrics| {
            metrics.sum("portcullis_backend_requests_in_flight", &[]) == 1
        });
        drop(client);
        engine.settled();
    }
}

#[test]
fn without_a_request_buffer_nothing_is_waited_for() {
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address]).limits("request_buffer = \"0\"").start();
    let _client = begin_post(&engine, "content-length: 5", "ab");
    engine
        .until("a backend at once", |metrics| metrics.sum("portcullis_backend_requests_in_flight", &[]) == 1);
}

#[test]
fn a_small_body_of_a_stream_is_waited_for_as_well() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let mut asked = request("POST", "/");
        asked.headers_mut().insert("content-length", 9.into());
        let (response, mut stream) = client.open(asked, false).await;
        stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
        stream.send_data(Bytes::from_static(b"def"), false).unwrap();
        assert_eq!(at_a_backend(&engine, 1), 0);
        stream.send_data(Bytes::from_static(b"ghi"), true).unwrap();
        assert_eq!(read(response).await.status, 200);
    });
    assert!(backend.received(0).ends_with("\r\n\r\nabcdefghi"));
}

#[test]
fn streams_that_wait_for_their_bodies_do_not_wait_for_each_other() {
    const STREAMS: usize = 64;
    const PIECE: usize = 1024;
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address]).limits("h2_connection_window = 65535").start();
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let mut open = Vec::new();
        for _ in 0..STREAMS {
            let mut asked = request("POST", "/");
            asked.headers_mut().insert("content-length", (16 * PIECE).into());
            open.push(client.open(asked, false).await);
        }
        // All of them are begun before any of them ends.
        for piece in 1..=16 {
            for (_, stream) in &mut open {
                crate::support::h2::send_all(stream, &[b'b'; PIECE], piece == 16).await.unwrap();
            }
        }
        for (response, _) in open {
            assert_eq!(read(response).await.status, 200);
        }
    });
}

#[test]
fn a_slow_small_body_meets_its_deadline_and_no_backend() {
    let backend = Backend::echo();
    for limit in [
        "body_idle_timeout = \"250ms\"",
        "body_min_rate = \"100B\"\nbody_rate_grace = \"250ms\"\nbody_idle_timeout = \"1m\"",
    ] {
        let engine = Setup::new(&[backend.address]).limits(limit).start();
        let mut client = begin_post(&engine, "content-length: 10", "abc");
        let answer = client.response("POST");
        assert_eq!((answer.status, answer.reason()), (408, Some("body_timeout")));
        assert_eq!(answer.field("connection"), Some("close"));
        let metrics = engine.settled();
        assert_eq!(metrics.sum("portcullis_rejections_total", &[("reason", "body_timeout")]), 1);
        let log = engine.stop();
        assert_eq!((&log[0]["attempts"], &log[0]["bytes_in"]), (&0.into(), &3.into()));
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_client_that_leaves_within_a_small_body_meets_no_backend() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    drop(begin_post(&engine, "content-length: 10", "abc"));
    until("its line", || engine.log().first().is_some_and(|line| line["reason"] == "client_closed"));
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_small_body_with_the_next_request_behind_it_is_cut_where_it_ends() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    let mut client = begin_post(&engine, "content-length: 3", "abcGET /next HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(client.response("POST").text().starts_with("POST / "));
    assert!(client.response("GET").text().starts_with("GET /next "));
}
