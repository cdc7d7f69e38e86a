//! Who gets how many requests: exactly the share of each weight, nobody who is down, everybody when
//! too few are up; and how many connections stay for them.

use std::sync::{
    Arc, Barrier,
    atomic::{AtomicBool, Ordering},
};

use crate::support::{
    Refusing,
    backend::{Backend, ok},
    client::{Client, Response},
    engine::{Engine, Setup},
};

fn counts(backends: &[Backend]) -> Vec<usize> {
    backends.iter().map(|backend| backend.all_received().matches("GET / HTTP/1.1").count()).collect()
}

fn three() -> Vec<Backend> {
    (0..3).map(|_| Backend::saying("x")).collect()
}

fn addresses(backends: &[Backend]) -> Vec<std::net::SocketAddr> {
    backends.iter().map(|backend| backend.address).collect()
}

/// Requests on connections of their own, so that every worker gets some.
fn ask(engine: &Engine, connections: usize, requests: usize) {
    for _ in 0..connections {
        let mut client = Client::plain(engine.plain);
        for _ in 0..requests {
            assert_eq!(client.get("/").status, 200);
        }
    }
}

#[test]
fn gives_each_backend_the_same_from_one_worker() {
    let backends = three();
    let engine = Setup::new(&addresses(&backends)).start();
    ask(&engine, 3, 10);
    assert_eq!(counts(&backends), [10, 10, 10]);
    ask(&engine, 1, 1);
    let mut uneven = counts(&backends);
    uneven.sort_unstable();
    assert_eq!(uneven, [10, 10, 11]);
}

#[test]
fn is_exact_to_within_one_request_a_worker() {
    let backends = three();
    let engine = Setup::new(&addresses(&backends)).workers(2).start();
    ask(&engine, 20, 15);
    for count in counts(&backends) {
        assert!((98..=102).contains(&count), "{:?}", counts(&backends));
    }
}

#[test]
fn gives_each_backend_the_share_of_its_weight() {
    let backends = three();
    let engine = Setup::new(&[])
        .weighted(backends[0].address, 1)
        .weighted(backends[1].address, 2)
        .weighted(backends[2].address, 3)
        .start();
    ask(&engine, 2, 30);
    assert_eq!(counts(&backends), [10, 20, 30]);
}

#[test]
fn spreads_smoothly() {
    let heavy = Backend::saying("heavy");
    let light = Backend::saying("light");
    let engine = Setup::new(&[]).weighted(heavy.address, 2).weighted(light.address, 1).start();
    let mut client = Client::plain(engine.plain);
    let order: Vec<String> = (0..9).map(|_| client.get("/").text()).collect();
    assert!(!order.windows(3).any(|turn| turn.iter().all(|who| who == "heavy")), "{order:?}");
}

const FAST: &str = "health.interval = \"50ms\"\nhealth.timeout = \"1s\"\nhealth.rise = 2\nhealth.fall = 2";

#[test]
fn gives_nothing_to_a_backend_that_is_down() {
    let (down, backends) = (Refusing::new(), three());
    let mut all = addresses(&backends);
    all.push(down.address);
    let engine = Setup::new(&all).health(FAST).start();
    engine.until("three of four up", |metrics| metrics.sum("portcullis_backend_up", &[]) == 3);
    ask(&engine, 3, 10);
    assert_eq!(counts(&backends), [10, 10, 10]);
    let metrics = engine.metrics();
    let address = down.address.to_string();
    assert_eq!(metrics.sum("portcullis_upstream_requests_total", &[("backend", &address)]), 0);
    assert_eq!(metrics.sum("portcullis_upstream_retries_total", &[]), 0);
    assert_eq!(metrics.sum("portcullis_backend_up", &[("backend", &address)]), 0);
}

/// Serves well, but says what it is told to its health check.
fn checked(healthy: &Arc<AtomicBool>, text: &'static str) -> Backend {
    let healthy = Arc::clone(healthy);
    Backend::new(move |conversation| {
        while let Some(request) = conversation.request() {
            let sick = request.head.starts_with("GET /healthz ") && !healthy.load(Ordering::SeqCst);
            let answer = if sick { ok("sick").replace("200 OK", "500 Sick") } else { ok(text) };
            conversation.send(answer);
        }
    })
}

#[test]
fn follows_a_backend_down_and_up_again() {
    let healthy = Arc::new(AtomicBool::new(true));
    let (wavering, steady) = (checked(&healthy, "wavering"), Backend::saying("steady"));
    let engine = Setup::new(&[wavering.address, steady.address])
        .health(&format!("health.path = \"/healthz\"\n{FAST}"))
        .start();
    let address = wavering.address.to_string();
    let both = |client: &mut Client| (0..10).map(|_| client.get("/")).collect::<Vec<Response>>();
    let wavered = |answers: &[Response]| answers.iter().filter(|answer| answer.text() == "wavering").count();
    let mut client = Client::plain(engine.plain);
    engine.until("a probe", |metrics| {
        metrics.sum("portcullis_probes_total", &[("backend", &address), ("result", "ok")]) > 0
    });
    assert_eq!(wavered(&both(&mut client)), 5);
    for up in [false, true] {
        healthy.store(up, Ordering::SeqCst);
        engine.until("the change", |metrics| {
            metrics.sum("portcullis_backend_up", &[("backend", &address)]) == u64::from(up)
        });
        assert_eq!(wavered(&both(&mut client)), if up { 5 } else { 0 });
    }
    let (status, body) = engine.admin("/status");
    assert_eq!(status, 200);
    assert!(body.contains(&address), "{body}");
}

#[test]
fn uses_all_backends_when_fewer_than_half_are_up() {
    let healthy = Arc::new(AtomicBool::new(false));
    let backends = [checked(&healthy, "a"), checked(&healthy, "b"), checked(&healthy, "c")];
    let engine =
        Setup::new(&addresses(&backends)).health(&format!("health.path = \"/healthz\"\n{FAST}")).start();
    engine.until("all down", |metrics| metrics.sum("portcullis_backend_up", &[]) == 0);
    ask(&engine, 1, 30);
    assert_eq!(counts(&backends), [10, 10, 10]);
}

#[test]
fn answers_503_when_none_may_be_used() {
    let healthy = Arc::new(AtomicBool::new(false));
    let backend = checked(&healthy, "never");
    let engine = Setup::new(&[backend.address])
        .health(&format!("health.path = \"/healthz\"\nhealth.fail_open_below = 0\n{FAST}"))
        .start();
    engine.until("down", |metrics| metrics.sum("portcullis_backend_up", &[]) == 0);
    let answer = Client::plain(engine.plain).get("/");
    assert_eq!((answer.status, answer.reason()), (503, Some("no_healthy_backend")));
}

#[test]
fn keeps_idle_connections_up_to_the_cap() {
    let backend = Backend::saying("x");
    let engine = Setup::new(&[backend.address]).cluster("idle_connections = 0").start();
    let mut client = Client::plain(engine.plain);
    for _ in 0..3 {
        client.get("/");
    }
    assert_eq!(backend.connections(), 3);
}

#[test]
fn lets_idle_connections_go_at_their_age() {
    let backend = Backend::saying("x");
    let engine = Setup::new(&[backend.address]).cluster("idle_timeout = \"100ms\"").start();
    Client::plain(engine.plain).get("/");
    backend.until_closed(1);
    engine.until("no connection is counted", |metrics| {
        metrics.sum("portcullis_upstream_connections", &[]) == 0
    });
}

#[test]
fn keeps_no_more_idle_connections_to_a_backend_than_configured() {
    for cap in [0, 1, 2] {
        let both_are_here = Barrier::new(2);
        let backend = Backend::new(move |conversation| {
            if conversation.request().is_some() {
                both_are_here.wait();
                conversation.send(ok("well"));
                conversation.answer_all(ok("again").as_bytes());
            }
        });
        let setup = Setup::new(&[backend.address]).cluster(format!("idle_connections = {cap}"));
        let engine = setup.start();
        let mut clients = [Client::plain(engine.plain), Client::plain(engine.plain)];
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        }
        for client in &mut clients {
            assert_eq!(client.response("GET").text(), "well");
        }
        backend.until_closed(2 - cap);
        if cap > 0 {
            assert_eq!(clients[0].get("/").text(), "again");
        }
        assert_eq!(backend.connections(), 2);
    }
}
