//! The drain: readiness first, nothing new, what runs is finished, and a deadline for the rest.

use std::{net::TcpStream, time::Duration};

use crate::support::{
    Gate,
    backend::{Backend, ok},
    client::{Client, End},
    engine::Setup,
    h2::{H2, block_on, read, request},
    raw_h2::{DATA, Frame, GOAWAY, RawH2, WINDOW_UPDATE},
    until,
};

/// Answers when the gate opens.
fn waiting(gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::new(move |conversation| {
        while conversation.request().is_some() {
            gate.wait();
            conversation.send(ok("finished"));
        }
    })
}

#[test]
fn finishes_what_runs_and_takes_nothing_new() {
    let gate = Gate::default();
    let backend = waiting(&gate);
    let mut engine = Setup::new(&[backend.address]).drain_timeout("30s").workers(2).start();
    let mut busy = Client::plain(engine.plain);
    busy.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    backend.until_received(0, "\r\n\r\n");
    let mut idle = [Client::plain(engine.plain), Client::tls(engine.tls)];
    engine.until("all are accepted", |metrics| metrics.sum("portcullis_downstream_connections", &[]) == 3);
    assert_eq!(engine.admin("/readyz").0, 200);

    engine.drain();
    until("not ready", || engine.admin("/readyz").0 == 503);
    assert_eq!(engine.admin("/healthz").0, 200);
    for client in &mut idle {
        assert_eq!(client.end(), End::Closed);
    }
    until("refused connections", || TcpStream::connect(engine.plain).is_err());
    assert!(TcpStream::connect(engine.tls).is_err());
    assert!(busy.is_silent(Duration::from_millis(1)), "the request still runs");

    gate.open();
    let response = busy.response("GET");
    assert_eq!((response.text().as_str(), response.complete), ("finished", true));
    assert_eq!(response.field("connection"), Some("close"));
    assert_eq!(busy.end(), End::Closed);
    engine.join();
    let log = engine.log();
    assert_eq!((log.len(), &log[0]["status"]), (1, &200.into()));
}

#[test]
fn closes_a_connection_whose_head_was_under_way_after_its_answer() {
    let backend = Backend::saying("finished");
    let engine = Setup::new(&[backend.address]).drain_timeout("30s").start();
    let mut client = Client::plain(engine.plain);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n");
    let mut idle = Client::plain(engine.plain);
    engine.until("both are accepted", |metrics| metrics.sum("portcullis_downstream_connections", &[]) == 2);
    engine.drain();
    assert_eq!(idle.end(), End::Closed);
    client.send("\r\n");
    let response = client.response("GET");
    assert_eq!((response.status, response.field("connection")), (200, Some("close")));
    assert_eq!(client.end(), End::Closed);
}

#[test]
fn ends_h2_connections_in_order() {
    let gate = Gate::default();
    let backend = waiting(&gate);
    let mut engine = Setup::new(&[backend.address]).drain_timeout("30s").start();
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let (response, _) = client.open(request("GET", "/"), true).await;
        backend.until_received(0, "\r\n\r\n");
        engine.drain();
        // Streams that are opened before the GOAWAY arrives are served; then no more.
        client.until_refused().await;
        gate.open();
        assert_eq!(read(response).await.text(), "finished");
        // Either way: its last frame may meet a closed socket.
        let _ = client.ended().await;
    });
    engine.join();
    assert_eq!(engine.log().len(), 1);
}

#[test]
fn announces_the_end_of_h2_connections_before_it_names_the_last_stream() {
    let backend = Backend::saying("never");
    let engine = Setup::new(&[backend.address]).drain_timeout("30s").start();
    let mut client = RawH2::connect(engine.tls);
    engine.until("accepted", |metrics| metrics.sum("portcullis_tls_handshakes_total", &[]) == 1);
    // Its settings show that the engine is in the middle of HTTP/2.
    client.frame();
    engine.drain();
    let last_ids: Vec<u32> = std::iter::from_fn(|| client.frame_answering_pings())
        .filter(|frame: &Frame| frame.kind == GOAWAY)
        .map(|frame| u32::from_be_bytes(frame.payload[..4].try_into().unwrap()))
        .collect();
    assert_eq!(last_ids, [(1 << 31) - 1, 0]);
}

/// A client that still talks while the last bytes are on their way: a socket that is closed with
/// something unread is reset by the kernel, and the bytes that wait in it are lost.
#[test]
fn a_slow_h2_client_gets_the_end_of_its_response_although_it_talks() {
    const LENGTH: usize = 120 << 10;
    let gate = Gate::default();
    let wait = gate.clone();
    let backend = Backend::new(move |conversation| {
        conversation.request();
        wait.wait();
        conversation.send(ok(&"x".repeat(LENGTH)));
        conversation.read_to_end();
    });
    let engine =
        Setup::new(&[backend.address]).limits("h2_send_buffer = \"1MiB\"").drain_timeout("30s").start();
    let mut client = RawH2::connect_with(engine.tls, &[(4, 1 << 20)]);
    client.send(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes());
    socket2::SockRef::from(client.socket()).set_recv_buffer_size(16 << 10).unwrap();
    let fields = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")];
    client.headers(1, true, &fields);
    backend.until_received(0, "\r\n\r\n");
    engine.drain();
    let mut body = 0;
    while let Some(frame) = client.frame_answering_pings() {
        if frame.kind == GOAWAY {
            gate.open();
        }
        if frame.kind == DATA {
            body += frame.payload.len();
            client.send(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes());
        }
    }
    assert_eq!(body, LENGTH);
}

#[test]
fn cuts_at_the_deadline_what_still_runs() {
    let backend = Backend::silent();
    let mut engine = Setup::new(&[backend.address]).drain_timeout("200ms").start();
    let mut h1 = Client::plain(engine.plain);
    h1.send("GET /h1 HTTP/1.1\r\nhost: a\r\n\r\n");
    backend.until_received(0, "GET /h1");
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let (response, _) = client.open(request("GET", "/h2"), true).await;
        backend.until_received(1, "GET /h2");
        engine.drain();
        assert!(read(response).await.error.is_some());
    });
    assert_eq!(h1.rest(), "");
    engine.join();
    let log = engine.log();
    assert_eq!(log.len(), 2);
    for line in &log {
        assert_eq!((&line["reason"], &line["status"]), (&"draining".into(), &503.into()), "{line}");
    }
}

#[test]
fn ends_at_once_when_nothing_is_open() {
    let backend = Backend::saying("x");
    let mut engine = Setup::new(&[backend.address]).drain_timeout("30s").workers(2).start();
    assert_eq!(Client::plain(engine.plain).get("/").status, 200);
    engine.settled();
    engine.drain();
    engine.join();
    assert_eq!(engine.log().len(), 1, "the last lines are written");
}

#[test]
fn a_tunnel_is_finished_too() {
    let backend = Backend::new(|conversation| {
        conversation.head();
        conversation
            .send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
        while let Some(bytes) = conversation.take(4) {
            conversation.send(bytes);
        }
    });
    let mut engine = Setup::new(&[backend.address]).drain_timeout("30s").start();
    let mut client = Client::plain(engine.plain);
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    assert_eq!(client.response("GET").status, 101);
    engine.drain();
    until("not ready", || engine.admin("/readyz").0 == 503);
    client.send("ping");
    assert_eq!(client.take(4), b"ping");
    drop(client);
    engine.join();
}

#[test]
fn says_what_holds_an_address() {
    let backend = Backend::saying("x");
    let engine = Setup::new(&[backend.address]).start();
    for taken in [engine.plain, engine.admin] {
        let text = format!(
            "[[listeners]]\naddress = \"{taken}\"\n[[routes]]\ncluster = \"web\"\n\
             [clusters.web]\nbackends = [\"127.0.0.1:1\"]\n"
        );
        let (config, _) = portcullis::config::parse("x", &text, std::path::Path::new("")).unwrap();
        let error = portcullis::app::App::new(config).unwrap_err().to_string();
        assert!(
            error.contains(&taken.to_string()) && error.contains("another program has that port"),
            "{error}"
        );
    }
    assert_eq!(Client::plain(engine.plain).get("/").status, 200);
}
