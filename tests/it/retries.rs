//! Which failed attempts are made again, and on whom: never what may have had an effect, and on the same backend
//! only where its connection had its end.

use crate::support::{
    Refusing,
    backend::{Backend, ok},
    client::Client,
    engine::{Engine, Setup},
    h2::{H2Backend, read_body, reply},
};

/// Answers so many requests on each connection, then closes at the sight of the next.
fn leaving_after(count: usize) -> Backend {
    Backend::new(move |conversation| {
        for _ in 0..count {
            if conversation.request().is_none() {
                return;
            }
            conversation.send(ok("first"));
        }
        conversation.request();
    })
}

fn post(client: &mut Client, body: &str) -> crate::support::client::Response {
    client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    client.response("POST")
}

#[test]
fn goes_to_the_next_backend_where_one_refuses() {
    let (refusing, backend) = (Refusing::new(), Backend::saying("well"));
    let engine = Setup::new(&[refusing.address, backend.address]).start();
    let mut client = Client::plain(engine.plain);
    for _ in 0..6 {
        assert_eq!(client.get("/").text(), "well");
        assert_eq!(post(&mut client, "hello").text(), "well");
    }
    drop(client);
    let retries = engine.settled().sum("portcullis_upstream_retries_total", &[("cluster", "web")]);
    assert!(retries > 0);
    assert_eq!(backend.all_received().matches("\r\n\r\nhello").count(), 6);
    let log = engine.stop();
    let attempts: u64 = log.iter().map(|line| line["attempts"].as_u64().unwrap()).sum();
    assert_eq!(attempts, 12 + retries);
}

#[test]
fn never_tries_a_backend_twice() {
    let (first, second) = (Refusing::new(), Refusing::new());
    let engine = Setup::new(&[first.address, second.address]).cluster("retries = 10").start();
    let answer = Client::plain(engine.plain).get("/");
    assert_eq!((answer.status, answer.reason()), (502, Some("connect_refused")));
    let log = engine.stop();
    assert_eq!(log[0]["attempts"], 2);
}

#[test]
fn makes_no_more_attempts_than_configured() {
    let refusing: Vec<Refusing> = (0..5).map(|_| Refusing::new()).collect();
    let addresses: Vec<_> = refusing.iter().map(|each| each.address).collect();
    for (retries, attempts) in [(0, 1), (2, 3)] {
        let engine = Setup::new(&addresses).cluster(format!("retries = {retries}")).start();
        assert_eq!(Client::plain(engine.plain).get("/").status, 502);
        assert_eq!(engine.stop()[0]["attempts"], attempts);
    }
}

/// Two requests warm both backends up, two more find one connection that dies.
#[track_caller]
fn four_requests(engine: &Engine, ask: impl Fn(&mut Client) -> u16) -> Vec<u16> {
    let mut client = Client::plain(engine.plain);
    (0..4).map(|_| ask(&mut client)).collect()
}

#[test]
fn sends_an_idempotent_request_again_when_a_reused_connection_dies() {
    for method in ["GET", "DELETE", "OPTIONS"] {
        let (leaving, staying) = (leaving_after(1), Backend::saying("well"));
        let engine = Setup::new(&[leaving.address, staying.address]).start();
        let statuses = four_requests(&engine, |client| {
            client.send(format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n"));
            client.response(method).status
        });
        assert_eq!(statuses, [200; 4], "{method}");
        assert_eq!(engine.metrics().sum("portcullis_upstream_retries_total", &[]), 1, "{method}");
    }
}

#[test]
fn never_sends_a_post_again_that_may_have_arrived() {
    let (leaving, staying) = (leaving_after(1), Backend::saying("well"));
    let engine = Setup::new(&[leaving.address, staying.address]).start();
    let mut statuses = four_requests(&engine, |client| {
        let answer = post(client, "hello");
        assert_eq!(answer.reason(), (answer.status == 502).then_some("upstream_closed"));
        answer.status
    });
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 502]);
    assert_eq!(staying.all_received().matches("hello").count(), 2);
    assert_eq!(leaving.all_received().matches("hello").count(), 2);
}

#[test]
fn never_sends_a_post_without_a_body_again() {
    let (leaving, staying) = (leaving_after(1), Backend::saying("well"));
    let engine = Setup::new(&[leaving.address, staying.address]).start();
    let mut statuses = four_requests(&engine, |client| post(client, "").status);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 502]);
}

#[test]
fn does_not_send_again_what_a_new_connection_did_not_answer() {
    let (leaving, staying) = (leaving_after(0), Backend::saying("well"));
    let engine = Setup::new(&[leaving.address, staying.address]).start();
    let mut statuses = four_requests(&engine, |client| client.get("/").status);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 502, 502]);
}

#[test]
fn does_not_send_again_after_a_byte_of_a_response() {
    let leaving = Backend::new(|conversation| {
        conversation.request();
        conversation.send(ok("first"));
        conversation.request();
        conversation.send("H");
    });
    let staying = Backend::saying("well");
    let engine = Setup::new(&[leaving.address, staying.address]).start();
    let mut statuses = four_requests(&engine, |client| client.get("/").status);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 502]);
}

#[test]
fn asks_the_only_backend_again_where_it_let_a_reused_connection_die() {
    let leaving = leaving_after(1);
    let engine = Engine::new(leaving.address);
    let mut client = Client::plain(engine.plain);
    for turn in 1..=3 {
        assert_eq!(client.get("/").status, 200);
        assert_eq!(leaving.connections(), turn, "on a new connection, once");
    }
    let answer = post(&mut client, "hello");
    assert_eq!(
        (answer.status, answer.reason()),
        (502, Some("upstream_closed")),
        "not what may have had an effect"
    );
    assert_eq!(leaving.connections(), 3);
}

#[test]
fn asks_a_backend_again_whose_connection_died_where_the_others_refuse() {
    let (leaving, refusing) = (leaving_after(1), Refusing::new());
    let engine = Setup::new(&[leaving.address, refusing.address]).start();
    assert_eq!(four_requests(&engine, |client| client.get("/").status), [200; 4]);
}

#[test]
fn asks_no_backend_again_where_retries_are_off() {
    let leaving = leaving_after(1);
    let engine = Setup::new(&[leaving.address]).cluster("retries = 0").start();
    let mut client = Client::plain(engine.plain);
    assert_eq!(client.get("/").status, 200);
    let answer = client.get("/");
    assert_eq!((answer.status, answer.reason()), (502, Some("upstream_closed")));
    assert_eq!(leaving.connections(), 1);
}

#[test]
fn asks_the_only_backend_once_where_a_new_connection_was_not_answered() {
    let leaving = leaving_after(0);
    let engine = Engine::new(leaving.address);
    let answer = Client::plain(engine.plain).get("/");
    assert_eq!((answer.status, answer.reason()), (502, Some("upstream_closed")));
    assert_eq!(leaving.connections(), 1);
}

#[test]
fn takes_a_new_connection_where_the_idle_one_was_closed() {
    let backend = Backend::new(|conversation| {
        conversation.request();
        conversation.send(ok("once"));
    });
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    for turn in 1..=3 {
        assert_eq!(client.get("/").text(), "once");
        assert_eq!(backend.connections(), turn);
        // On loopback the end is with the engine as soon as it is sent.
        backend.until_finished(turn);
    }
}

#[test]
fn sends_again_what_an_h2_backend_refused_to_process() {
    let refusing = H2Backend::new(|_, mut respond| async move {
        respond.send_reset(h2::Reason::REFUSED_STREAM);
    });
    let taking = H2Backend::new(|request, respond| async move {
        read_body(request.into_body()).await;
        reply(respond, http::Response::new(()), b"well", None).await;
    });
    let engine = Setup::new(&[refusing.address, taking.address]).cluster("protocol = \"h2\"").start();
    let mut client = Client::plain(engine.plain);
    for method in ["GET", "POST", "GET", "POST"] {
        client.send(format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert_eq!(client.response(method).text(), "well", "{method}");
    }
    assert_eq!(refusing.requests().len() + taking.requests().len(), 4 + refusing.requests().len());
    assert!(!refusing.requests().is_empty());
}

#[test]
fn does_not_send_again_what_an_h2_backend_broke_off() {
    let breaking = H2Backend::new(|_, mut respond| async move {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
    });
    let taking = H2Backend::mirror();
    let engine = Setup::new(&[breaking.address, taking.address]).cluster("protocol = \"h2\"").start();
    let mut statuses = four_requests(&engine, |client| client.get("/").status);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 502, 502]);
}

#[test]
fn opens_a_new_h2_connection_after_the_old_one_ended() {
    let backend = Backend::new(|conversation| {
        // Reads the preface of HTTP/2 and hangs up.
        conversation.take(24);
    });
    let engine = Setup::new(&[backend.address]).cluster("protocol = \"h2\"").cluster("retries = 0").start();
    for _ in 0..2 {
        let answer = Client::plain(engine.plain).get("/");
        assert_eq!((answer.status, answer.reason()), (502, Some("upstream_closed")));
    }
    assert_eq!(backend.connections(), 2);
}
