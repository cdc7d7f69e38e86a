//! Every wait on a peer ends at the deadline that the configuration names.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::support::{
    backend::{Backend, Unreachable, ok},
    client::{Client, End},
    engine::{Engine, Setup},
    h2::{H2, block_on, read, request},
    raw_h2::{DATA, RST_STREAM, RawH2, WINDOW_UPDATE},
};

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "site.example"), (":path", "/")];

/// How late an end may come, on a busy machine.
const LATE: Duration = Duration::from_secs(3);

/// Checks that something takes as long as configured.
#[track_caller]
fn takes<T>(configured: Duration, action: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = action();
    let took = start.elapsed();
    // Sockets and timers may be a little ahead of each other.
    assert!(took + Duration::from_millis(50) >= configured, "after {took:?} instead of {configured:?}");
    assert!(took < configured + LATE, "after {took:?} instead of {configured:?}");
    result
}

/// The same in an asynchronous test.
async fn takes_async<T>(configured: Duration, action: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let result = action.await;
    let took = start.elapsed();
    assert!(took + Duration::from_millis(50) >= configured, "after {took:?} instead of {configured:?}");
    assert!(took < configured + LATE, "after {took:?} instead of {configured:?}");
    result
}

const SHORT: Duration = Duration::from_millis(250);

fn engine(backend: &Backend, limit: &str) -> Engine {
    Setup::new(&[backend.address]).limits(limit).start()
}

/// The reason of the last line of the log, after the end.
#[track_caller]
fn last_reason(engine: Engine) -> String {
    engine.settled();
    let log = engine.stop();
    log.last().expect("a line")["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn head_timeout() {
    let backend = Backend::saying("ok");
    let engine = engine(&backend, "head_timeout = \"250ms\"");
    for mut client in [Client::plain(engine.plain), Client::tls(engine.tls)] {
        assert_eq!(client.get("/").status, 200, "a second request has a clock of its own");
        let answer = takes(SHORT, || {
            client.send("GET / HTTP/1.1\r\nhost: a\r\nx-slow");
            client.response("GET")
        });
        assert_eq!((answer.status, answer.reason()), (408, Some("request_timeout")));
        assert_eq!(client.end(), End::Closed);
    }
    assert_eq!(last_reason(engine), "request_timeout");
}

#[test]
fn head_timeout_counts_from_the_first_byte_however_many_follow() {
    let backend = Backend::saying("ok");
    let engine = engine(&backend, "head_timeout = \"400ms\"");
    let mut client = Client::plain(engine.plain);
    let answer = takes(Duration::from_millis(400), || {
        client.send("GET / HTTP/1.1\r\n");
        while client.is_silent(Duration::from_millis(50)) && client.try_send("x: y\r\n") {}
        client.response("GET")
    });
    assert_eq!(answer.status, 408);
}

#[test]
fn idle_timeout() {
    let backend = Backend::saying("ok");
    let engine = engine(&backend, "idle_timeout = \"250ms\"\nhead_timeout = \"10s\"");
    assert_eq!(takes(SHORT, || Client::plain(engine.plain).end()), End::Closed);
    assert_eq!(takes(SHORT, || Client::tls(engine.tls).end()), End::Closed);
    let mut client = Client::plain(engine.plain);
    assert_eq!(client.get("/").status, 200);
    assert_eq!(takes(SHORT, || client.end()), End::Closed);
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        assert_eq!(client.get("/").await.status, 200);
        // Either way: its last frame may meet a closed socket.
        let _ = takes_async(SHORT, client.ended()).await;
    });
    engine.settled();
    assert_eq!(engine.stop().len(), 2, "a connection without a request is no request");
}

#[test]
fn body_idle_timeout() {
    let backend = Backend::silent();
    let engine = engine(&backend, "body_idle_timeout = \"250ms\"");
    // More than `request_buffer`, so that the backend has the request already.
    for framing in ["content-length: 20000", "transfer-encoding: chunked"] {
        let mut client = Client::plain(engine.plain);
        let answer = takes(SHORT, || {
            client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n5\r\nhe"));
            client.response("POST")
        });
        assert_eq!((answer.status, answer.reason()), (408, Some("body_timeout")));
        assert_eq!(answer.field("connection"), Some("close"));
        assert_eq!(client.end(), End::Closed);
    }
    backend.until_closed(2);
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let (response, mut upload) = client.open(request("POST", "/"), false).await;
        upload.send_data(Bytes::from_static(b"half"), false).unwrap();
        let reply = takes_async(SHORT, read(response)).await;
        assert_eq!((reply.status, reply.reason()), (408, Some("body_timeout")));
    });
    assert_eq!(last_reason(engine), "body_timeout");
}

#[test]
fn body_min_rate() {
    let backend = Backend::silent();
    let engine = engine(&backend, "body_min_rate = \"1KiB\"\nbody_rate_grace = \"300ms\"");
    let mut client = Client::plain(engine.plain);
    let answer = takes(Duration::from_millis(300), || {
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n");
        while client.is_silent(Duration::from_millis(20)) && client.try_send("b") {}
        client.response("POST")
    });
    assert_eq!((answer.status, answer.reason()), (408, Some("body_timeout")));
}

#[test]
fn body_min_rate_lets_faster_bodies_pass() {
    let backend = Backend::saying("ok");
    let engine = engine(&backend, "body_min_rate = \"1KiB\"\nbody_rate_grace = \"50ms\"");
    let mut client = Client::plain(engine.plain);
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 20000\r\n\r\n");
    for _ in 0..10 {
        client.send("b".repeat(2000));
        assert!(client.is_silent(Duration::from_millis(20)) || client.response("POST").status == 200);
    }
}

const FLOOD: usize = 64 << 20;

/// Sends more than any kernel holds; a piece again and again, for many conversations at the same time.
fn flooding() -> Backend {
    static PIECE: [u8; 64 << 10] = [b'x'; 64 << 10];
    Backend::new(|conversation| {
        conversation.request();
        conversation.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {FLOOD}\r\n\r\n"));
        for _ in 0..FLOOD / PIECE.len() {
            if !conversation.send(PIECE.as_slice()) {
                return;
            }
        }
    })
}

/// Has the kernel hold little for a client that reads nothing. It would take up to 32 MiB for it, as they come, and for
/// so long the client is not one that takes nothing.
fn holds_little(socket: &TcpStream) {
    socket2::SockRef::from(socket).set_recv_buffer_size(32 << 10).unwrap();
}

#[test]
fn write_timeout() {
    let backend = flooding();
    let engine = engine(&backend, "write_timeout = \"250ms\"");
    for (index, mut client) in [Client::plain(engine.plain), Client::tls(engine.tls)].into_iter().enumerate()
    {
        holds_little(client.socket());
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        takes(SHORT, || engine.until("it is over", |metrics| metrics.requests() == index as u64 + 1));
        assert!(!client.response("GET").complete);
    }
    assert_eq!(last_reason(engine), "write_timeout");
}

#[test]
fn write_timeout_of_an_h2_stream() {
    let backend = flooding();
    let engine = engine(&backend, "write_timeout = \"250ms\"");
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let (response, _) = client.open(request("GET", "/"), true).await;
        let response = response.await.unwrap();
        engine.until("it is over", |metrics| metrics.requests() == 1);
        let (body, _, error) = crate::support::h2::read_body(response.into_body()).await;
        assert!(body.len() < FLOOD && error.is_some(), "{} {error:?}", body.len());
    });
    assert_eq!(last_reason(engine), "write_timeout");
}

#[test]
fn write_timeout_of_an_h2_connection_of_which_nothing_is_read() {
    const STREAMS: u32 = 100;
    let backend = flooding();
    // Should each stream come to its own deadline before the connection does, that is idle then, for the kernel may
    // have taken all the rest.
    let engine = engine(&backend, "write_timeout = \"250ms\"\nidle_timeout = \"250ms\"");
    // Windows without an end: only TCP holds anything back.
    let mut client = RawH2::connect_with(engine.tls, &[(4, 0x7fff_ffff)]);
    holds_little(client.socket());
    client.send(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    let start = Instant::now();
    for stream in 0..STREAMS {
        client.headers(2 * stream + 1, true, &GET);
    }
    engine.until("the connection is over", |metrics| {
        metrics.sum("portcullis_downstream_connections", &[]) == 0
    });
    assert!(start.elapsed() + Duration::from_millis(50) >= SHORT, "{:?}", start.elapsed());
    engine.settled();
    assert!(engine.stop().iter().all(|line| line["reason"] == "write_timeout"));
}

#[test]
fn write_min_rate() {
    let backend = flooding();
    let engine = engine(&backend, "write_timeout = \"300ms\"\nwrite_min_rate = \"1GiB\"");
    let mut client = Client::plain(engine.plain);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    takes(Duration::from_millis(300), || {
        // It reads all the time, and far below the rate.
        while engine.metrics().requests() == 0 {
            client.take(64 << 10);
        }
    });
    assert_eq!(last_reason(engine), "write_timeout");
}

/// A client that takes a byte of an HTTP/2 stream, and another one as soon as it has come: how many it took
/// before it was cut, or `None` where it was not.
fn drip_h2(rate: &str) -> Option<usize> {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let backend = flooding();
    let engine = engine(&backend, &format!("write_timeout = \"1s\"\nwrite_min_rate = \"{rate}\""));
    let mut client = RawH2::connect_with(engine.tls, &[(4, 0)]);
    // However fast it takes them, the window of the connection is not what it waits for.
    client.send(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    client.headers(1, true, &GET);
    let (start, mut bytes, mut cut) = (Instant::now(), 0, false);
    while !cut && (rate == "1GiB" || start.elapsed() < 3 * TIMEOUT) {
        client.send(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes());
        let frame = client.frame().unwrap();
        match frame.kind {
            DATA => bytes += frame.payload.len(),
            RST_STREAM => cut = true,
            _ => {}
        }
    }
    assert!(start.elapsed() >= TIMEOUT, "{:?}", start.elapsed());
    drop(client);
    assert_eq!(last_reason(engine), if cut { "write_timeout" } else { "client_closed" }, "{rate}");
    cut.then_some(bytes)
}

#[test]
fn write_min_rate_of_an_h2_stream() {
    assert!(drip_h2("1GiB").is_some_and(|bytes| bytes > 5), "a byte now and then wins no time");
}

#[test]
fn write_min_rate_lets_faster_clients_and_all_where_it_is_off_go_on() {
    assert_eq!(drip_h2("1B"), None, "each byte wins a second");
    assert_eq!(drip_h2("0"), None);
}

#[test]
fn a_client_that_waits_for_leave_to_send_is_not_to_blame_for_a_slow_backend() {
    let backend = Backend::silent();
    let setup = Setup::new(&[backend.address]).limits("body_idle_timeout = \"100ms\"");
    let engine = setup.cluster("response_timeout = \"250ms\"").start();
    let mut client = Client::plain(engine.plain);
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    let answer = takes(SHORT, || client.response("POST"));
    assert_eq!((answer.status, answer.reason()), (504, Some("response_timeout")));
}

#[test]
fn response_timeout() {
    let backend = Backend::silent();
    let engine = Setup::new(&[backend.address]).cluster("response_timeout = \"250ms\"").start();
    for mut client in [Client::plain(engine.plain), Client::tls(engine.tls)] {
        let answer = takes(SHORT, || client.get("/"));
        assert_eq!((answer.status, answer.reason()), (504, Some("response_timeout")));
    }
    backend.until_closed(2);
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let reply = takes_async(SHORT, client.get("/")).await;
        assert_eq!((reply.status, reply.reason()), (504, Some("response_timeout")));
    });
    let metrics = engine.settled();
    assert_eq!(metrics.sum("portcullis_errors_total", &[("reason", "response_timeout")]), 3);
    assert_eq!(metrics.sum("portcullis_upstream_requests_total", &[("code", "none")]), 3);
}

#[test]
fn response_idle_timeout() {
    let backend = Backend::new(|conversation| {
        conversation.request();
        conversation.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello");
        conversation.read_to_end();
    });
    let engine = Setup::new(&[backend.address]).cluster("response_idle_timeout = \"250ms\"").start();
    let mut client = Client::plain(engine.plain);
    let answer = takes(SHORT, || client.get("/"));
    assert_eq!((answer.text().as_str(), answer.complete), ("hello", false));
    backend.until_closed(1);
    drop(client);
    assert_eq!(last_reason(engine), "response_stalled");
}

#[test]
fn connect_timeout() {
    let backend = Unreachable::new();
    let engine = Setup::new(&[backend.address]).cluster("connect_timeout = \"250ms\"").start();
    let answer = takes(SHORT, || Client::plain(engine.plain).get("/"));
    assert_eq!((answer.status, answer.reason()), (504, Some("connect_timeout")));
}

#[test]
fn handshake_timeout() {
    let backend = Backend::saying("ok");
    let engine = engine(&backend, "handshake_timeout = \"250ms\"");
    for bytes in [&b""[..], b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"] {
        let mut client = Client::plain(engine.tls);
        takes(SHORT, || {
            client.send(bytes);
            client.rest()
        });
    }
    let timeouts = [("listener", "tls"), ("result", "timeout")];
    assert_eq!(engine.settled().sum("portcullis_tls_handshakes_total", &timeouts), 3);
    assert_eq!(engine.stop().len(), 0, "no request, no line");
}

#[test]
fn handshake_timeout_of_the_h2_preface() {
    let backend = Backend::saying("ok");
    let engine = engine(&backend, "handshake_timeout = \"250ms\"");
    let config = crate::support::client::tls_config(&["h2"], rustls::ALL_VERSIONS);
    let mut client = Client::handshake(engine.tls, "site.example", config.into()).unwrap();
    takes(SHORT, || client.rest());
}

#[test]
fn idle_timeout_ends_an_h2_head_that_never_does() {
    let backend = Backend::saying("ok");
    let engine = engine(&backend, "idle_timeout = \"250ms\"\nwrite_timeout = \"250ms\"");
    let mut client = RawH2::connect(engine.tls);
    takes(SHORT, || {
        client.send(crate::support::raw_h2::HEADERS, 0, 1, &[0x82]);
        client.goaway()
    });
}

#[test]
fn a_client_that_goes_away_ends_its_request_at_once() {
    let backend = Backend::silent();
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    backend.until_received(0, "\r\n\r\n");
    drop(client);
    backend.until_closed(1);
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let (response, _) = client.open(request("GET", "/2"), true).await;
        backend.until_received(1, "GET /2");
        drop(response);
    });
    backend.until_closed(2);
    engine.settled();
    let log = engine.stop();
    assert_eq!(log.len(), 2);
    assert!(log.iter().all(|line| line["reason"] == "client_closed" && line["status"] == 499), "{log:?}");
}

#[test]
fn a_slow_client_does_not_hold_others_up() {
    let backend = Backend::answering(ok("fast"));
    let engine = Engine::new(backend.address);
    let mut slow = Client::plain(engine.plain);
    slow.send("GET / HTTP/1.1\r\nhost: a\r\nx");
    let stuck = Client::plain(engine.tls);
    for _ in 0..10 {
        assert_eq!(Client::plain(engine.plain).get("/").text(), "fast");
        assert_eq!(Client::tls(engine.tls).get("/").text(), "fast");
    }
    drop(stuck);
    slow.send(": y\r\n\r\n");
    assert_eq!(slow.response("GET").text(), "fast");
}
