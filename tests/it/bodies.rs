//! Bodies in every framing and in both directions, between both versions, never held as a whole.

use std::{
    io::{ErrorKind, Write},
    net::TcpStream,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};

use crate::support::{
    Gate,
    backend::{Backend, ok},
    client::{Client, fields},
    engine::{Engine, Setup},
    h2::{H2, H2Backend, block_on, one, read, read_body, reply, request, send_all},
    raw_h2::{HEADERS, RawH2},
};

const BIG: usize = 1 << 20;

/// Bytes that show a gap or a repetition.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251) % 251).unwrap()).collect()
}

/// Answers with the body that came, in the same framing.
fn mirror() -> Backend {
    Backend::new(|conversation| {
        while let Some(request) = conversation.request() {
            let framing = if fields(&request.head, "transfer-encoding").is_empty() {
                format!("content-length: {}", request.body.len())
            } else {
                "transfer-encoding: chunked".to_owned()
            };
            conversation.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"));
            conversation.send(request.body);
        }
    })
}

fn h2_engine(backend: &H2Backend) -> Engine {
    Setup::new(&[backend.address]).cluster("protocol = \"h2\"").start()
}

/// A chunked body of parts with these trailers.
fn chunked(parts: &[&[u8]], trailers: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for part in parts {
        body.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        body.extend_from_slice(part);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
    body
}

/// Posts in the framing asked for and returns what came back.
#[track_caller]
fn post_h1(client: &mut Client, body: &[u8], in_chunks: bool) -> (Vec<u8>, String) {
    if in_chunks {
        let (front, back) = body.split_at(body.len() / 3);
        let parts: Vec<&[u8]> = [front, back].into_iter().filter(|part| !part.is_empty()).collect();
        client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
        client.send(chunked(&parts, "x-sum: 1\r\n"));
    } else {
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len()));
        client.send(body);
    }
    let response = client.response("POST");
    assert_eq!((response.status, response.complete), (200, true), "{}", response.head);
    (response.body, response.trailers)
}

#[test]
fn carries_bodies_from_http1_to_http1() {
    let backend = mirror();
    let engine = Engine::new(backend.address);
    for mut client in [Client::plain(engine.plain), Client::tls(engine.tls)] {
        for length in [0, 1, 5, 4095, 4096, 4097, 16 * 1024, 100_000] {
            let body = pattern(length);
            assert_eq!(post_h1(&mut client, &body, false).0, body, "{length} bytes");
            let (echoed, trailers) = post_h1(&mut client, &body, true);
            assert_eq!((echoed, trailers.as_str()), (body, "x-sum: 1\r\n"), "{length} bytes in chunks");
        }
    }
    assert_eq!(backend.connections(), 1, "every connection was fit for reuse");
}

#[test]
fn carries_bodies_from_http1_to_h2() {
    let backend = H2Backend::mirror();
    let engine = h2_engine(&backend);
    for mut client in [Client::plain(engine.plain), Client::tls(engine.tls)] {
        for length in [0, 1, 5, 16 * 1024, 100_000] {
            let body = pattern(length);
            assert_eq!(post_h1(&mut client, &body, false).0, body, "{length} bytes");
            let (echoed, trailers) = post_h1(&mut client, &body, true);
            assert_eq!((echoed, trailers.as_str()), (body, "x-sum: 1\r\n"), "{length} bytes in chunks");
        }
    }
    assert_eq!(backend.connections(), 1);
}

fn sum() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("1"))])
}

async fn post_h2(client: &mut H2, length: usize) {
    let body = pattern(length);
    for trailers in [None, Some(sum())] {
        let with_trailers = trailers.is_some();
        let reply = client.send(request("POST", "/"), &body, trailers).await;
        assert!(reply.error.is_none(), "{:?}", reply.error);
        assert_eq!((reply.status, reply.body == body), (200, true), "{length} bytes");
        let sum = reply.trailers.as_ref().and_then(|trailers| one(trailers, "x-sum"));
        assert_eq!(sum, with_trailers.then_some("1"), "{length} bytes");
    }
}

#[test]
fn carries_bodies_from_h2_to_http1() {
    let backend = mirror();
    let engine = Engine::new(backend.address);
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        for length in [0, 1, 5, 16 * 1024, 100_000] {
            post_h2(&mut client, length).await;
        }
    });
    assert_eq!(backend.connections(), 1);
}

#[test]
fn carries_bodies_from_h2_to_h2() {
    let backend = H2Backend::mirror();
    let engine = h2_engine(&backend);
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        for length in [0, 1, 5, 16 * 1024, BIG] {
            post_h2(&mut client, length).await;
        }
    });
    assert_eq!(backend.connections(), 1);
}

#[test]
fn tells_a_backend_the_length_that_an_h2_client_announced() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let mut asked = request("POST", "/");
        asked.headers_mut().insert("content-length", HeaderValue::from_static("5"));
        let seen = client.send(asked, b"hello", None).await.text();
        assert_eq!(fields(&seen, "content-length"), ["5"]);
        assert_eq!(fields(&seen, "transfer-encoding"), [""; 0]);
        let seen = client.send(request("POST", "/"), b"hello", None).await.text();
        assert_eq!(fields(&seen, "transfer-encoding"), ["chunked"]);
        let seen = client.get("/").await.text();
        assert!(fields(&seen, "transfer-encoding").is_empty() && fields(&seen, "content-length").is_empty());
    });
    assert_eq!(backend.connections(), 1);
}

#[test]
fn drops_forbidden_trailers_of_h2() {
    let backend = Backend::saying("done");
    let engine = Engine::new(backend.address);
    let mut trailers = sum();
    for name in
        ["content-length", "host", "authorization", "x-forwarded-for", "x-request-id", "cookie", "a_b"]
    {
        trailers.insert(name, HeaderValue::from_static("6"));
    }
    block_on(async {
        let reply = H2::connect(engine.tls).await.send(request("POST", "/"), b"hello", Some(trailers)).await;
        assert_eq!(reply.status, 200);
    });
    let received = backend.all_received();
    assert!(received.ends_with("\r\n0\r\nx-sum: 1\r\n\r\n"), "{received}");
}

#[test]
fn drops_forbidden_trailers_of_a_backend() {
    let trailers = "x-sum: 1\r\ncontent-length: 5\r\nset-cookie: a\r\nx-portcullis-reason: denied\r\n";
    let body = chunked(&[b"hello"], trailers);
    let backend =
        Backend::answering([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", &body[..]].concat());
    let engine = Engine::new(backend.address);
    assert_eq!(Client::plain(engine.plain).get("/").trailers, "x-sum: 1\r\n");
    block_on(async {
        let reply = H2::connect(engine.tls).await.get("/").await;
        assert_eq!(reply.trailers, Some(sum()));
    });
}

#[test]
fn drops_forbidden_trailers_of_an_h2_backend() {
    let backend = H2Backend::new(|_, respond| async move {
        let mut trailers = sum();
        trailers.insert("x-portcullis-reason", HeaderValue::from_static("denied"));
        trailers.insert("set-cookie", HeaderValue::from_static("a"));
        reply(respond, Response::new(()), b"hello", Some(trailers)).await;
    });
    let engine = h2_engine(&backend);
    assert_eq!(Client::plain(engine.plain).get("/").trailers, "x-sum: 1\r\n");
    block_on(async {
        let reply = H2::connect(engine.tls).await.get("/").await;
        assert_eq!(reply.trailers, Some(sum()));
    });
}

const EXPECTING: &str = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";

#[test]
fn passes_100_continue_on_in_both_directions() {
    let backend = Backend::new(|conversation| {
        let head = conversation.head().unwrap();
        assert_eq!(fields(&head, "expect"), ["100-continue"]);
        conversation.send("HTTP/1.1 100 Continue\r\n\r\n");
        let body = conversation.take(5).unwrap();
        conversation.send(ok(&String::from_utf8(body).unwrap()));
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send(EXPECTING);
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello");
    assert_eq!(client.response("POST").text(), "hello");
}

#[test]
fn passes_a_refusal_on_instead_of_100_continue() {
    let backend = Backend::new(|conversation| {
        conversation.head();
        conversation.send("HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send(EXPECTING);
    assert!(client.head().starts_with("HTTP/1.1 413 "));
    assert_eq!(client.rest(), "", "the body was not read, so nothing can follow");
}

#[test]
fn passes_early_hints_on() {
    let hint = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n";
    let backend = Backend::answering(format!("{hint}{hint}{}", ok("page")));
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    for _ in 0..2 {
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 103 ") && head.contains("link: </style.css>\r\n"), "{head}");
        assert!(!head.contains("content-length"), "{head}");
    }
    assert_eq!(client.response("GET").text(), "page");
    client.send("GET / HTTP/1.0\r\nhost: a\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 200 "), "HTTP/1.0 knows no interim responses");
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let (mut response, _) = client.open(request("GET", "/"), true).await;
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!((interim.status().as_u16(), one(interim.headers(), "link")), (103, Some("</style.css>")));
        assert_eq!(read(response).await.text(), "page");
    });
}

#[test]
fn tells_the_length_of_what_head_leaves_out() {
    let backend = Backend::answering("HTTP/1.1 200 OK\r\ncontent-length: 12345\r\n\r\n");
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n");
        let response = client.response("HEAD");
        assert_eq!((response.status, response.field("content-length")), (200, Some("12345")));
    }
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let reply = client.ask(request("HEAD", "/")).await;
        assert_eq!((reply.field("content-length"), reply.body.len()), (Some("12345"), 0));
        assert!(reply.error.is_none(), "{:?}", reply.error);
    });
    assert_eq!(backend.connections(), 1);
}

#[test]
fn tells_the_length_of_what_head_leaves_out_from_h2() {
    let backend = H2Backend::new(|_, mut respond| async move {
        let response = Response::builder().header("content-length", "12345").body(()).unwrap();
        respond.send_response(response, true).unwrap();
    });
    let engine = h2_engine(&backend);
    let mut client = Client::plain(engine.plain);
    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.response("HEAD").field("content-length"), Some("12345"));
}

#[test]
fn passes_what_has_no_body_on_without_one() {
    let backend = Backend::new(|conversation| {
        for response in [
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\ncontent-length: 7\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            conversation.request();
            conversation.send(response);
        }
        conversation.read_to_end();
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    let response = client.get("/");
    assert_eq!((response.status, response.field("content-length")), (204, None));
    let response = client.get("/");
    assert_eq!(
        (response.status, response.field("content-length"), response.field("etag")),
        (304, Some("7"), Some("\"x\""))
    );
    assert_eq!(client.get("/").field("content-length"), Some("0"));
    let response = client.get("/");
    assert_eq!((response.body.len(), response.complete), (0, true));
    assert_eq!(backend.connections(), 1);
}

#[test]
fn streams_in_both_directions_at_once() {
    let backend = H2Backend::new(|request, mut respond| async move {
        let mut body = request.into_body();
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            send_all(&mut stream, &data, false).await.unwrap();
        }
        stream.send_trailers(sum()).unwrap();
    });
    let engine = h2_engine(&backend);
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let (response, mut upload) = client.open(request("POST", "/"), false).await;
        let mut download = response.await.unwrap().into_body();
        for turn in 0..10_u8 {
            upload.send_data(Bytes::from(vec![turn; 100]), false).unwrap();
            let echoed = download.data().await.unwrap().unwrap();
            assert_eq!(echoed, vec![turn; 100]);
            download.flow_control().release_capacity(100).unwrap();
        }
        upload.send_data(Bytes::new(), true).unwrap();
        assert!(download.data().await.is_none());
        assert_eq!(download.trailers().await.unwrap(), Some(sum()));
    });
}

#[test]
fn hands_bytes_on_before_the_body_is_complete() {
    let go_on = Gate::default();
    let wait = go_on.clone();
    let backend = Backend::new(move |conversation| {
        conversation.request();
        conversation.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        wait.wait();
        conversation.send("6\r\nsecond\r\n0\r\n\r\n");
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    client.head();
    assert_eq!(client.take(10), b"5\r\nfirst\r\n");
    go_on.open();
    assert_eq!(client.take(16), b"6\r\nsecond\r\n0\r\n\r\n");
}

#[test]
fn passes_an_early_response_on_to_a_client_that_is_still_sending() {
    let backend = Backend::new(|conversation| {
        conversation.head();
        conversation.send(ok("early"));
        conversation.read_to_end();
    });
    let engine = Engine::new(backend.address);
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let (response, mut upload) = client.open(request("POST", "/"), false).await;
        upload.send_data(Bytes::from_static(b"later"), false).unwrap();
        assert_eq!(read(response).await.text(), "early");
    });
}

/// More than all socket buffers on the way hold.
const FLOOD: usize = 64 << 20;
const BUFFERED: usize = 32 << 20;

/// Writes until nothing moves for a moment; returns how much was taken.
fn flood(stream: &mut TcpStream) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(400))).unwrap();
    let block = vec![b'x'; 64 << 10];
    let mut taken = 0;
    while taken < FLOOD {
        let rest = block.len().min(FLOOD - taken);
        match stream.write(&block[..rest]) {
            Ok(count) => taken += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_write_timeout(Some(crate::support::GUARD)).unwrap();
    taken
}

/// A backend that sends all it can while nobody reads, then the rest.
fn flooding(stalled: std::sync::mpsc::SyncSender<usize>) -> Backend {
    Backend::new(move |conversation| {
        conversation.request();
        conversation.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {FLOOD}\r\n\r\n"));
        let mut stream = conversation.socket().try_clone().unwrap();
        let taken = flood(&mut stream);
        stalled.send(taken).unwrap();
        conversation.send(vec![b'x'; FLOOD - taken]);
    })
}

#[test]
fn does_not_buffer_a_response_for_an_http1_client_that_does_not_read() {
    let (stalled, taken) = std::sync::mpsc::sync_channel(1);
    let backend = flooding(stalled);
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let taken = taken.recv().unwrap();
    assert!(taken < BUFFERED, "{taken} bytes were taken from the backend");
    let response = client.response("GET");
    assert_eq!((response.body.len(), response.complete), (FLOOD, true));
}

#[test]
fn does_not_buffer_a_response_for_an_h2_client_that_does_not_read() {
    let (stalled, taken) = std::sync::mpsc::sync_channel(1);
    let backend = flooding(stalled);
    let engine = Engine::new(backend.address);
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let (response, _) = client.open(request("GET", "/"), true).await;
        let response = response.await.unwrap();
        let taken = taken.recv().unwrap();
        assert!(taken < BUFFERED, "{taken} bytes were taken from the backend");
        let (body, _, error) = read_body(response.into_body()).await;
        assert_eq!((body.len(), error.is_none()), (FLOOD, true));
    });
}

#[test]
fn does_not_buffer_a_request_for_a_backend_that_does_not_read() {
    let go_on = Gate::default();
    let wait = go_on.clone();
    let backend = Backend::new(move |conversation| {
        wait.wait();
        conversation.request();
        conversation.send(ok("all of it"));
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {FLOOD}\r\n\r\n"));
    let mut stream = client.socket().try_clone().unwrap();
    let taken = flood(&mut stream);
    assert!(taken < BUFFERED, "{taken} bytes were taken from the client");
    go_on.open();
    client.send(vec![b'x'; FLOOD - taken]);
    assert_eq!(client.response("POST").text(), "all of it");
}

#[test]
fn says_so_where_a_post_has_no_body() {
    let backend = Backend::saying("yes");
    let engine = Setup::new(&[backend.address]).start();
    let mut client = Client::plain(engine.plain);
    client.send("POST / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!((client.response("POST").status, client.response("GET").status), (200, 200));
    let heads = backend.all_received();
    assert_eq!(heads.matches("content-length: 0\r\n").count(), 1, "{heads}");
}

#[test]
fn clients_that_do_not_read_hold_up_nobody_elses_answer() {
    let backend = H2Backend::new(|request: http::Request<_>, respond| async move {
        let size = if request.uri().path() == "/large" { 4 << 20 } else { 100 };
        reply(respond, Response::new(()), &vec![b'x'; size], None).await;
    });
    let engine = Setup::new(&[backend.address]).cluster("protocol = \"h2\"").start();
    let mut idle = RawH2::connect_with(engine.tls, &[(4, 0)]);
    let get = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/large")];
    (1..80).step_by(2).for_each(|stream| idle.headers(stream, true, &get));
    let mut heads = 0;
    while heads < 40 {
        heads += usize::from(idle.frame().expect("a frame").kind == HEADERS);
    }
    for _ in 0..20 {
        assert_eq!(Client::plain(engine.plain).get("/").text().len(), 100);
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_connection_on_which_nothing_came_in_time_takes_no_new_requests() {
    let backend = H2Backend::new(|request: http::Request<_>, respond| async move {
        if request.uri().path() == "/silent" {
            std::future::pending::<()>().await;
        }
        reply(respond, Response::new(()), b"ok", None).await;
    });
    let lines = "protocol = \"h2\"\nresponse_timeout = \"300ms\"";
    let engine = Setup::new(&[backend.address]).cluster(lines).start();
    let mut client = Client::plain(engine.plain);
    for (path, status, connections) in [("/", 200, 1), ("/silent", 504, 1), ("/", 200, 2), ("/", 200, 2)] {
        assert_eq!(client.get(path).status, status, "{path}");
        assert_eq!(backend.connections(), connections, "{path}");
    }
}

#[test]
fn clients_that_leave_do_not_end_a_connection_that_others_share() {
    let backend = H2Backend::new(|request: http::Request<_>, respond| async move {
        let size = if request.uri().path() == "/large" { 1 << 20 } else { 100 };
        reply(respond, Response::new(()), &vec![b'x'; size], None).await;
    });
    let engine = Setup::new(&[backend.address]).cluster("protocol = \"h2\"").start();
    let get = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/large")];
    for _ in 0..60 {
        let mut leaving = RawH2::connect(engine.tls);
        (1..180).step_by(2).for_each(|stream| leaving.headers(stream, true, &get));
        while leaving.frame().expect("a frame").kind != HEADERS {}
        drop(leaving);
        engine.settled();
    }
    assert_eq!(Client::plain(engine.plain).get("/").text().len(), 100);
    assert_eq!(backend.connections(), 1);
}
