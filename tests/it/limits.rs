//! The limits of a listener on sizes and numbers: just under, at, and just over, on both versions.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
};

use http::{HeaderName, HeaderValue};
use rustls::ClientConnection;

use crate::support::{
    backend::{Backend, Unreachable},
    client::{Client, Response, tls_config},
    engine::{Engine, Setup},
    h2::{H2, Reply, block_on, request},
    raw_h2::{DATA, END_STREAM, Fate, GOAWAY, PING, RawH2},
};

/// A GET whose head has exactly so many bytes.
fn head_of(bytes: usize) -> String {
    let frame = "GET / HTTP/1.1\r\nhost: a\r\nx-pad: \r\n\r\n".len();
    format!("GET / HTTP/1.1\r\nhost: a\r\nx-pad: {}\r\n\r\n", "p".repeat(bytes - frame))
}

fn ask(engine: &Engine, request: impl AsRef<[u8]>) -> Response {
    let mut client = Client::plain(engine.plain);
    client.send(request);
    client.response("GET")
}

#[track_caller]
fn refused(answer: &Response, status: u16, reason: &str) {
    assert_eq!((answer.status, answer.reason()), (status, Some(reason)), "{}", answer.head);
    assert_eq!(answer.field("connection"), Some("close"), "{}", answer.head);
}

#[track_caller]
fn refused_h2(answer: &Reply, status: u16, reason: &str) {
    assert_eq!((answer.status, answer.reason()), (status, Some(reason)), "{answer:?}");
}

/// An HTTP/2 GET with these fields.
fn ask_h2(engine: &Engine, path: &str, fields: &[(&str, &str)]) -> Reply {
    block_on(async {
        let mut asked = request("GET", path);
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            asked.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
        }
        H2::connect(engine.tls).await.ask(asked).await
    })
}

#[test]
fn request_head_bytes() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).limits("request_head_bytes = \"2KiB\"").start();
    for bytes in [2047, 2048] {
        assert_eq!(ask(&engine, head_of(bytes)).status, 200, "{bytes}");
    }
    for bytes in [2049, 4096, 20_000] {
        refused(&ask(&engine, head_of(bytes)), 431, "head_too_large");
    }
    let endless = "GET / HTTP/1.1\r\nx-pad: ".to_owned() + &"p".repeat(2049);
    refused(&ask(&engine, endless), 431, "head_too_large");
    let metrics = engine.settled();
    assert_eq!(metrics.sum("portcullis_rejections_total", &[("reason", "head_too_large")]), 4);
    let many: Vec<String> = (0..30).map(|at| format!("x-{at}")).collect();
    let fields: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "0123456789")).collect();
    assert_eq!(ask_h2(&engine, "/", &fields).status, 200);
    let pad = "p".repeat(2048);
    assert_eq!(ask_h2(&engine, "/", &[("x-pad", &pad)]).status, 431);
}

#[test]
fn uri_bytes() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).limits("uri_bytes = \"1KiB\"").start();
    let path = |bytes: usize| format!("/{}", "a".repeat(bytes - 1));
    for bytes in [1023, 1024] {
        let answer = ask(&engine, format!("GET {} HTTP/1.1\r\nhost: a\r\n\r\n", path(bytes)));
        assert_eq!(answer.status, 200, "{bytes}");
        assert_eq!(ask_h2(&engine, &path(bytes), &[]).status, 200, "{bytes}");
    }
    let answer = ask(&engine, format!("GET {} HTTP/1.1\r\nhost: a\r\n\r\n", path(1025)));
    refused(&answer, 414, "uri_too_long");
    refused_h2(&ask_h2(&engine, &path(1025), &[]), 414, "uri_too_long");
    let endless = format!("GET {}", path(40 << 10));
    refused(&ask(&engine, endless), 414, "uri_too_long");
}

#[test]
fn field_bytes() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).limits("field_bytes = \"1KiB\"").start();
    let value = |bytes: usize| "v".repeat(bytes - "x-pad".len());
    let get = |bytes| format!("GET / HTTP/1.1\r\nhost: a\r\nx-pad: {}\r\n\r\n", value(bytes));
    for bytes in [1023, 1024] {
        assert_eq!(ask(&engine, get(bytes)).status, 200, "{bytes}");
        assert_eq!(ask_h2(&engine, "/", &[("x-pad", &value(bytes))]).status, 200, "{bytes}");
    }
    refused(&ask(&engine, get(1025)), 431, "head_too_large");
    refused_h2(&ask_h2(&engine, "/", &[("x-pad", &value(1025))]), 431, "head_too_large");
}

#[test]
fn fields() {
    let backend = Backend::saying("ok");
    for limit in [10, 200] {
        let engine = Setup::new(&[backend.address]).limits(format!("fields = {limit}")).start();
        // One of them is the host.
        let get = |count: usize| format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(count - 1));
        for count in [limit - 1, limit] {
            assert_eq!(ask(&engine, get(count)).status, 200, "{count}");
            assert_eq!(ask_h2(&engine, "/", &vec![("x", "y"); count]).status, 200, "{count}");
        }
        refused(&ask(&engine, get(limit + 1)), 431, "head_too_large");
        refused_h2(&ask_h2(&engine, "/", &vec![("x", "y"); limit + 1]), 431, "head_too_large");
    }
}

fn post(client: &mut Client, length: usize, in_chunks: bool) -> Response {
    let body = "b".repeat(length);
    if in_chunks {
        let (front, back) = body.split_at(length / 2);
        client.try_send(format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
             {:x}\r\n{front}\r\n{:x}\r\n{back}\r\n0\r\n\r\n",
            front.len(),
            back.len()
        ));
    } else {
        client.try_send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}"));
    }
    client.response("POST")
}

#[test]
fn body_bytes_of_an_announced_body() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).limits("body_bytes = \"1KiB\"").start();
    let mut client = Client::plain(engine.plain);
    for length in [0, 1023, 1024] {
        assert_eq!(post(&mut client, length, false).status, 200, "{length}");
    }
    assert_eq!(backend.connections(), 1);
    let before = backend.received(0);
    let answer = post(&mut client, 1025, false);
    assert_eq!((answer.status, answer.reason()), (413, Some("body_too_large")));
    let mut client = Client::plain(engine.plain);
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9223372036854775807\r\n\r\n");
    refused(&client.response("POST"), 413, "body_too_large");
    assert_eq!((backend.connections(), backend.received(0)), (1, before), "nothing of it was forwarded");
}

#[test]
fn body_bytes_of_a_chunked_body() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).limits("body_bytes = \"1KiB\"").start();
    let mut client = Client::plain(engine.plain);
    for length in [1023, 1024] {
        assert_eq!(post(&mut client, length, true).status, 200, "{length}");
    }
    let whole = backend.received(0).matches("\r\n0\r\n\r\n").count();
    let answer = post(&mut client, 1025, true);
    assert_eq!((answer.status, answer.reason()), (413, Some("body_too_large")));
    backend.until_closed(1);
    assert_eq!(backend.all_received().matches("\r\n0\r\n\r\n").count(), whole, "it never seemed whole");
}

#[test]
fn body_bytes_of_an_h2_body() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).limits("body_bytes = \"1KiB\"").start();
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        for announced in [false, true] {
            for (length, status) in [(1023, 200), (1024, 200), (1025, 413)] {
                let mut asked = request("POST", "/");
                if announced {
                    asked.headers_mut().insert("content-length", HeaderValue::from(length));
                }
                let reply = client.send(asked, &vec![b'b'; length], None).await;
                assert_eq!(reply.status, status, "{length} {announced} {reply:?}");
            }
        }
        assert_eq!(client.get("/").await.status, 200, "the connection goes on");
    });
}

#[test]
fn trailer_bytes() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).limits("trailer_bytes = \"1KiB\"").start();
    let post = |bytes: usize| {
        let value = "t".repeat(bytes - "x-sum: \r\n\r\n".len());
        format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-sum: {value}\r\n\r\n")
    };
    for bytes in [1000, 1022] {
        assert_eq!(ask(&engine, post(bytes)).status, 200, "{bytes}");
    }
    for bytes in [1027, 5000] {
        refused(&ask(&engine, post(bytes)), 431, "head_too_large");
    }
}

#[test]
fn chunk_extension_bytes() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).limits("chunk_extension_bytes = 100").start();
    let post = |each: usize| {
        let chunk = format!("1;a={}\r\nb\r\n", "e".repeat(each - 3));
        format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
            chunk.repeat(2)
        )
    };
    for each in [49, 50] {
        assert_eq!(ask(&engine, post(each)).status, 200, "{each}");
    }
    refused(&ask(&engine, post(51)), 400, "bad_request");
}

#[test]
fn limits_of_a_listener_replace_the_general_ones() {
    let backend = Backend::saying("ok");
    let engine =
        Setup::new(&[backend.address]).limits("uri_bytes = 100").plain("limits.uri_bytes = 200").start();
    let path = format!("/{}", "a".repeat(149));
    assert_eq!(ask(&engine, format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).status, 200);
    refused_h2(&ask_h2(&engine, &path, &[]), 414, "uri_too_long");
}

#[test]
fn connections() {
    let backend = Backend::saying("ok");
    for limit in ["connections = 2", "connections_per_ip = 2"] {
        let engine = Setup::new(&[backend.address]).workers(2).plain(format!("limits.{limit}")).start();
        let mut first = Client::plain(engine.plain);
        let mut second = Client::plain(engine.plain);
        assert_eq!((first.get("/").status, second.get("/").status), (200, 200));
        for _ in 0..3 {
            assert_eq!(Client::plain(engine.plain).rest(), "", "{limit}");
        }
        let rejected = [("listener", "plain"), ("reason", "connection_limit")];
        assert_eq!(engine.metrics().sum("portcullis_rejections_total", &rejected), 3);
        assert_eq!(Client::tls(engine.tls).get("/").status, 200, "the other listener has its own");
        drop(first);
        engine.until("the place is free", |metrics| {
            metrics.sum("portcullis_downstream_connections", &[("listener", "plain")]) == 1
        });
        assert_eq!(Client::plain(engine.plain).get("/").status, 200, "{limit}");
        assert_eq!(second.get("/").status, 200);
    }
}

#[test]
fn h2_streams() {
    let backend = Backend::silent();
    let engine = Setup::new(&[backend.address]).limits("h2_streams = 2").drain_timeout("100ms").start();
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        // The settings of the other end have come once a ping has been answered.
        let (first, _) = client.open(request("GET", "/1"), true).await;
        backend.until_received(0, "GET /1");
        assert_eq!(client.sender.current_max_send_streams(), 2);
        drop(first);
    });
}

/// The fields of a request for `/`.
const fn head(method: &'static str) -> [(&'static str, &'static str); 4] {
    [(":method", method), (":scheme", "https"), (":authority", "site.example"), (":path", "/")]
}

const FLOW_CONTROL_ERROR: u32 = 3;
const REFUSED_STREAM: u32 = 7;

#[test]
fn a_stream_over_the_limit_is_refused_and_those_under_it_go_on() {
    let backend = Backend::silent();
    let engine = Setup::new(&[backend.address]).limits("h2_streams = 2").drain_timeout("100ms").start();
    let mut client = RawH2::connect(engine.tls);
    for stream in [1, 3, 5] {
        client.headers(stream, true, &head("GET"));
    }
    assert_eq!(client.fate(5), Fate::Reset(REFUSED_STREAM));
    engine.until("the others", |metrics| metrics.sum("portcullis_requests_in_flight", &[]) == 2);
}

#[test]
fn h2_stream_window() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).limits("h2_stream_window = \"1KiB\"").start();
    for (length, passes) in [(1023, true), (1024, true), (1025, false)] {
        let mut client = RawH2::connect(engine.tls);
        client.headers(1, false, &head("POST"));
        client.send(DATA, END_STREAM, 1, &vec![b'b'; length]);
        let expected = if passes { Fate::Answered(0x88) } else { Fate::Reset(FLOW_CONTROL_ERROR) };
        assert_eq!(client.fate(1), expected, "{length}");
    }
}

#[test]
fn h2_connection_window() {
    // Nothing is read of a body that has no backend yet.
    let backend = Unreachable::new();
    let limits = "h2_connection_window = \"64KiB\"\nh2_stream_window = \"1MiB\"";
    let engine = Setup::new(&[backend.address]).cluster("connect_timeout = \"1m\"").limits(limits).start();
    for (more, passes) in [(16_383, true), (16_384, true), (16_385, false)] {
        let mut client = RawH2::connect(engine.tls);
        for stream in [1, 3] {
            client.headers(stream, false, &head("POST"));
        }
        for stream in [1, 1, 3] {
            client.send(DATA, 0, stream, &[b'b'; 16 << 10]);
        }
        client.send(DATA, 0, 3, &vec![b'b'; more - 1]);
        client.send(DATA, 0, 1, b"b");
        client.send(PING, 0, 0, b"all here");
        let fate = loop {
            let frame = client.frame().expect("a frame");
            match frame.kind {
                PING if frame.payload == b"all here" => break None,
                GOAWAY => break Some(u32::from(frame.payload[7])),
                _ => {}
            }
        };
        assert_eq!(fate, (!passes).then_some(FLOW_CONTROL_ERROR), "{more}");
    }
}

#[test]
fn concurrent_handshakes() {
    let backend = Backend::saying("ok");
    for (limit, ended) in [(3, 0), (2, 1)] {
        let limits = format!("concurrent_handshakes = {limit}\nhandshake_timeout = \"1m\"");
        let engine = Setup::new(&[backend.address]).limits(&limits).start();
        let config = Arc::new(tls_config(&["http/1.1"], rustls::ALL_VERSIONS));
        let mut hello = Vec::new();
        let mut session = ClientConnection::new(config.clone(), "site.example".try_into().unwrap()).unwrap();
        session.write_tls(&mut hello).unwrap();
        let say = |bytes: &[u8]| {
            let mut stream = TcpStream::connect(engine.tls).unwrap();
            stream.write_all(bytes).unwrap();
            stream
        };
        let _silent = [(); 4].map(|()| say(b""));
        let _dripping = [(); 4].map(|()| say(&hello[..hello.len() - 1]));
        assert_eq!(Client::tls(engine.tls).get("/").status, 200, "who has not said hello takes no place");
        let mut stuck = [(); 2].map(|()| say(&hello));
        for stream in &mut stuck {
            stream.read_exact(&mut [0; 5]).expect("the server's hello");
        }
        let mut client = Client::handshake(engine.tls, "site.example", config).unwrap();
        assert_eq!(client.get("/").status, 200, "who is stuck makes room");
        let timeouts = engine.metrics().sum("portcullis_tls_handshakes_total", &[("result", "timeout")]);
        assert_eq!(timeouts, ended, "with {limit} places");
    }
}
