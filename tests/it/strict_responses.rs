//! What backends may not do: a bad response costs that request and that connection, never another
//! request, and a response that breaks off looks broken to the client.

use std::sync::{Arc, Mutex, mpsc};

use crate::support::{
    Gate,
    backend::{Backend, ok},
    client::{Client, End, fields},
    engine::{Engine, Setup},
    h2::{H2, block_on, request},
};

/// Plays one response after the other, each on a connection of its own.
fn playing(responses: Vec<Vec<u8>>) -> Backend {
    Backend::new(move |conversation| {
        if conversation.request().is_some() {
            conversation.send(&responses[conversation.index]);
            conversation.read_to_end();
        }
    })
}

#[track_caller]
fn answers_502_to_each(responses: &[&[u8]]) {
    let backend = playing(responses.iter().map(|response| response.to_vec()).collect());
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    for (index, response) in responses.iter().enumerate() {
        let shown = response.escape_ascii();
        let answer = client.get("/");
        assert_eq!(answer.status, 502, "{shown}");
        assert_eq!(answer.reason(), Some("upstream_bad_response"), "{shown}");
        backend.until_closed(index + 1);
    }
    assert_eq!(backend.connections(), responses.len());
}

#[test]
fn answers_502_to_a_response_that_is_no_http() {
    answers_502_to_each(&[
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTP/1.1 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\nx: y\n\n",
        b"HTTP/1.1 200 OK\r\nx: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    ]);
}

#[test]
fn answers_502_to_a_response_of_two_lengths() {
    answers_502_to_each(&[
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ]);
}

#[test]
fn answers_502_to_a_101_that_nobody_asked_for() {
    answers_502_to_each(&[
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ]);
}

#[test]
fn answers_502_to_more_than_16_interim_responses() {
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    let backend = Backend::new(move |conversation| {
        let count = if conversation.index == 0 { 16 } else { 17 };
        conversation.request();
        conversation.send(interim.repeat(count) + &ok("enough"));
        conversation.read_to_end();
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let all = client.rest();
    assert_eq!(all.matches("HTTP/1.1 103").count(), 16, "{all}");
    assert!(all.ends_with("enough"), "{all}");

    use_up(&engine, &backend);
    let answer = Client::plain(engine.plain).get("/");
    assert_eq!((answer.status, answer.reason()), (502, Some("upstream_bad_response")));
}

/// Has the engine drop its idle connection, whose script answers nothing more.
fn use_up(engine: &Engine, backend: &Backend) {
    let mut client = Client::plain(engine.plain);
    client.send("GET /used HTTP/1.1\r\nhost: a\r\n\r\n");
    backend.until_received(0, "GET /used");
    drop(client);
    backend.until_closed(1);
}

#[test]
fn gives_no_body_to_what_has_none_and_drops_the_connection_that_sent_one() {
    for (method, response) in [
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\nhello"),
        ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\nhello"),
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n\r\n"),
    ] {
        let backend = Backend::new(move |conversation| {
            while conversation.request().is_some() {
                conversation.send(if conversation.index == 0 { response.to_owned() } else { ok("clean") });
            }
        });
        let engine = Engine::new(backend.address);
        let mut client = Client::plain(engine.plain);
        client.send(format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert!(client.response(method).complete, "{response}");
        assert_eq!(client.get("/").text(), "clean", "{response}");
        assert_eq!(backend.connections(), 2, "{response}");
    }
}

#[test]
fn throws_away_an_idle_connection_that_talks() {
    let (idle, said) = (Gate::default(), Gate::default());
    let (when, done) = (idle.clone(), said.clone());
    let backend = Backend::new(move |conversation| {
        let first = conversation.index == 0;
        while conversation.request().is_some() {
            conversation.send(ok("clean"));
            if first {
                when.wait();
                conversation.send(ok("poison"));
                done.open();
            }
        }
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    assert_eq!(client.get("/").text(), "clean");
    idle.open();
    said.wait();
    assert_eq!(client.get("/").text(), "clean");
    assert_eq!(backend.connections(), 2);
}

#[test]
fn shows_a_truncated_response_as_broken_to_http1() {
    for response in [
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
    ] {
        let backend = Backend::new(move |conversation| {
            conversation.request();
            conversation.send(response);
        });
        let engine = Engine::new(backend.address);
        for mut client in [Client::plain(engine.plain), Client::tls(engine.tls)] {
            let answer = client.get("/");
            assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{response}");
            assert!(!answer.complete, "{response}");
        }
        let log = engine.stop();
        assert!(log.iter().all(|line| line["reason"].as_str().unwrap().starts_with("upstream_")), "{log:?}");
    }
}

#[test]
fn shows_a_truncated_response_as_broken_to_http_1_0() {
    let backend = Backend::new(move |conversation| {
        conversation.request();
        conversation.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send("GET / HTTP/1.0\r\nhost: a\r\n\r\n");
    client.head();
    client.take(5);
    assert_eq!(client.end(), End::Broken);
}

#[test]
fn shows_a_truncated_response_as_a_reset_stream_to_h2() {
    for response in [
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
    ] {
        let backend = Backend::new(move |conversation| {
            conversation.request();
            conversation.send(response);
        });
        let engine = Engine::new(backend.address);
        block_on(async {
            let mut client = H2::connect(engine.tls).await;
            let reply = client.get("/").await;
            // A reset may overtake the head.
            assert!(reply.error.is_some_and(|error| error.is_reset()), "{response}");
        });
    }
}

#[test]
fn answers_502_to_a_backend_that_closes_before_a_whole_head() {
    for response in ["", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n"] {
        let backend = Backend::new(move |conversation| {
            conversation.request();
            conversation.send(response);
        });
        let engine = Engine::new(backend.address);
        let answer = Client::plain(engine.plain).get("/");
        assert_eq!((answer.status, answer.reason()), (502, Some("upstream_closed")), "{response}");
        assert_eq!(backend.connections(), 1);
    }
}

#[test]
fn does_not_reuse_a_connection_whose_request_was_answered_early() {
    let backend = Backend::new(|conversation| {
        while conversation.head().is_some() {
            conversation.send(ok("early"));
        }
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 20000\r\n\r\nhalf");
    assert_eq!(client.response("POST").text(), "early");
    drop(client);
    backend.until_closed(1);
    assert_eq!(Client::plain(engine.plain).get("/").text(), "early");
    assert_eq!(backend.connections(), 2);
}

#[test]
fn does_not_reuse_it_either_where_the_body_ends_before_the_response_does() {
    let backend = Backend::new(|conversation| {
        while conversation.head().is_some() {
            conversation.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nea");
            conversation.take(20_000);
            conversation.send("rly");
        }
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 20000\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 200"));
    client.send(vec![b'x'; 20_000]);
    assert_eq!(client.take(5), b"early");
    backend.until_closed(1);
}

#[test]
fn removes_what_belongs_to_the_backends_connection() {
    let backend = Backend::answering(
        "HTTP/1.1 200 OK\r\nConnection: x-hop, keep-alive\r\nX-Hop: a\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nContent-Length: 2\r\nX-Kept: b\r\n\r\nok",
    );
    let engine = Engine::new(backend.address);
    let answer = Client::plain(engine.plain).get("/");
    assert_eq!(answer.text(), "ok");
    for gone in ["connection", "x-hop", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(answer.field(gone), None, "{}", answer.head);
    }
    assert_eq!(answer.field("x-kept"), Some("b"));
    block_on(async {
        let reply = H2::connect(engine.tls).await.get("/").await;
        assert_eq!((reply.text().as_str(), reply.field("x-kept")), ("ok", Some("b")));
    });
}

#[test]
fn removes_a_reason_that_a_backend_made_up() {
    let backend = Backend::answering(
        "HTTP/1.1 503 Busy\r\nX-Portcullis-Reason: denied\r\nx-portcullis-reason: draining\r\ncontent-length: 0\r\n\r\n",
    );
    let engine = Engine::new(backend.address);
    let answer = Client::plain(engine.plain).get("/");
    assert_eq!((answer.status, answer.reason()), (503, None));
    block_on(async {
        let reply = H2::connect(engine.tls).await.get("/").await;
        assert_eq!((reply.status, reply.reason()), (503, None));
    });
}

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\r\n";
const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-kept: yes\r\n\r\n";

#[test]
fn carries_a_tunnel_after_a_101_that_was_asked_for() {
    let backend = Backend::new(|conversation| {
        let head = conversation.head().unwrap();
        assert_eq!(fields(&head, "upgrade"), ["websocket"]);
        assert_eq!(fields(&head, "connection"), ["upgrade"]);
        conversation.send(format!("{SWITCHING}first"));
        while let Some(bytes) = conversation.take(4) {
            conversation.send(bytes);
        }
    });
    let engine = Engine::new(backend.address);
    for mut client in [Client::plain(engine.plain), Client::tls(engine.tls)] {
        client.send(UPGRADE);
        let response = client.response("GET");
        assert_eq!(response.status, 101);
        assert_eq!(response.field("upgrade"), Some("websocket"));
        assert_eq!(response.field("x-kept"), Some("yes"));
        assert_eq!(client.take(5), b"first");
        for bytes in [b"ping", b"\0\r\n\xff"] {
            client.send(bytes);
            assert_eq!(client.take(4), bytes);
        }
    }
}

#[test]
fn ends_a_tunnel_when_the_backend_does() {
    let backend = Backend::new(|conversation| {
        conversation.head();
        conversation.send(format!("{SWITCHING}bye"));
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send(UPGRADE);
    assert_eq!(client.response("GET").status, 101);
    assert_eq!(client.rest(), "bye");
    drop(client);
    engine.settled();
    let log = engine.stop();
    assert_eq!((log.len(), &log[0]["status"], &log[0]["reason"]), (1, &101.into(), &serde_json::Value::Null));
}

#[test]
fn forwards_nothing_behind_an_upgrade_before_the_101() {
    let switch = Gate::default();
    let wait = switch.clone();
    let backend = Backend::new(move |conversation| {
        conversation.head();
        wait.wait();
        conversation.send(SWITCHING);
        conversation.read_to_end();
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send(format!("{UPGRADE}GET /smuggled HTTP/1.1\r\n\r\n"));
    let before = backend.until_received(0, "\r\n\r\n");
    assert!(!before.contains("smuggled"), "{before}");
    switch.open();
    assert_eq!(client.response("GET").status, 101);
    backend.until_received(0, "GET /smuggled");
}

#[test]
fn parses_what_follows_a_refused_upgrade_as_the_next_request() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send(format!("{UPGRADE}GET /next HTTP/1.1\r\nhost: a\r\n\r\n"));
    assert!(client.response("GET").text().starts_with("GET /ws "));
    let next = client.response("GET").text();
    assert!(next.starts_with("GET /next ") && fields(&next, "upgrade").is_empty(), "{next}");
}

#[test]
fn answers_502_to_a_switch_to_another_protocol() {
    let backend = playing(vec![
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n".to_vec(),
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\r\n".to_vec(),
    ]);
    let engine = Engine::new(backend.address);
    for _ in 0..2 {
        let mut client = Client::plain(engine.plain);
        client.send(UPGRADE);
        let answer = client.response("GET");
        assert_eq!((answer.status, answer.reason()), (502, Some("upstream_bad_response")));
    }
}

#[test]
fn closes_a_tunnel_in_which_nothing_moves() {
    let backend = Backend::new(|conversation| {
        conversation.head();
        conversation.send(SWITCHING);
        conversation.read_to_end();
    });
    let engine = Setup::new(&[backend.address]).limits("tunnel_idle_timeout = \"200ms\"").start();
    let mut client = Client::plain(engine.plain);
    client.send(UPGRADE);
    assert_eq!(client.response("GET").status, 101);
    assert_eq!(client.rest(), "");
    drop(client);
    engine.settled();
    let log = engine.stop();
    assert_eq!((log.len(), &log[0]["reason"]), (1, &"tunnel_idle".into()));
}

#[test]
fn takes_a_response_that_ends_with_its_connection() {
    let backend = Backend::new(|conversation| {
        conversation.request();
        conversation.send("HTTP/1.0 200 OK\r\n\r\nuntil the end");
    });
    let engine = Engine::new(backend.address);
    let answer = Client::plain(engine.plain).get("/");
    assert_eq!((answer.text().as_str(), answer.complete), ("until the end", true));
    block_on(async {
        let reply = H2::connect(engine.tls).await.ask(request("GET", "/")).await;
        assert_eq!((reply.text().as_str(), reply.error.is_none()), ("until the end", true));
    });
}

#[test]
fn passes_no_response_on_to_the_next_client_of_an_aborted_request() {
    let (sender, receiver) = mpsc::channel::<()>();
    let receiver = Arc::new(Mutex::new(receiver));
    let backend = Backend::new(move |conversation| {
        while let Some(request) = conversation.request() {
            if conversation.index == 0 {
                let _ = receiver.lock().unwrap().recv();
            }
            conversation.send(ok(request.head.split(' ').nth(1).unwrap()));
        }
    });
    let engine = Engine::new(backend.address);
    let mut first = Client::plain(engine.plain);
    first.send("GET /first HTTP/1.1\r\nhost: a\r\n\r\n");
    backend.until_received(0, "GET /first");
    drop(first);
    engine.settled();
    drop(sender);
    assert_eq!(Client::plain(engine.plain).get("/second").text(), "/second");
    assert_eq!(backend.connections(), 2);
}
