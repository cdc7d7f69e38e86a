//! HTTP/2 clients that only make work are sent away, at once and alone.

use std::time::{Duration, Instant};

use crate::support::{
    backend::Backend,
    engine::{Engine, Setup},
    raw_h2::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, Fate, HEADERS, PING, PRIORITY, RST_STREAM, RawH2,
        SETTINGS, WINDOW_UPDATE, block, frame,
    },
};

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "site.example"), (":path", "/")];
const CALM: Fate = Fate::Ended(0xb);
const OK: Fate = Fate::Answered(0x88);
/// No stream: only the end of the connection is waited for.
const NONE: u32 = 0;

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GET))
}

/// A request on the stream of this turn that is taken back at once.
fn reset(turn: u32) -> Vec<u8> {
    let stream = 2 * turn + 1;
    [get(stream), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
}

/// Sends the bytes of each turn by itself, as long as anybody takes them.
fn flood(client: &mut RawH2, turns: u32, bytes: impl Fn(u32) -> Vec<u8>) {
    for turn in 0..turns {
        if !client.send_bytes(&bytes(turn)) {
            return;
        }
    }
}

fn abused(engine: &Engine) -> u64 {
    engine.metrics().sum("portcullis_rejections_total", &[("listener", "tls"), ("reason", "h2_abuse")])
}

#[test]
fn ends_each_flood_at_once_while_others_are_served() {
    let backend = Backend::saying("ok");
    let engine = Engine::new(backend.address);
    let mut bystander = RawH2::connect(engine.tls);
    let floods: [(&str, Vec<u8>); 9] = [
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("PING that acknowledges", frame(PING, 1, 0, &[0; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("PRIORITY", frame(PRIORITY, 0, 99, &[0, 0, 0, 0, 16])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("empty DATA", frame(DATA, 0, 1, &[])),
        ("unknown", frame(0x42, 0, 0, &[])),
        ("CONTINUATION", frame(CONTINUATION, 0, 1, &[])),
        ("RST_STREAM", Vec::new()),
    ];
    for (index, (name, bytes)) in floods.iter().enumerate() {
        let mut client = RawH2::connect(engine.tls);
        let start = Instant::now();
        match *name {
            "empty DATA" => client.headers(1, false, &GET),
            "CONTINUATION" => _ = client.send(HEADERS, 0, 1, &block(&GET)),
            _ => {}
        }
        let burst: Vec<u8> = match *name {
            // Each on a stream of its own.
            "RST_STREAM" => (0..500).flat_map(reset).collect(),
            _ => bytes.repeat(500),
        };
        client.send_bytes(&burst);
        assert_eq!(client.fate(NONE), CALM, "{name}");
        assert!(start.elapsed() < Duration::from_secs(2), "{name}: {:?}", start.elapsed());
        assert_eq!(abused(&engine), index as u64 + 1, "{name}: once for the connection");
        let stream = 2 * u32::try_from(index).unwrap() + 1;
        bystander.headers(stream, true, &GET);
        assert_eq!(bystander.fate(stream), OK, "{name}");
    }
}

#[test]
fn takes_as_many_control_frames_as_the_limit_says() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).limits("h2_control_frames = 7").start();
    let ping = frame(PING, 0, 0, &[0; 8]);
    let mut client = RawH2::connect(engine.tls);
    flood(&mut client, 7, |_| ping.clone());
    client.headers(1, true, &GET);
    assert_eq!(client.fate(1), OK);
    // The response explains one more.
    client.send_bytes(&ping.repeat(2));
    assert_eq!(client.fate(NONE), CALM);
}

#[test]
fn takes_as_many_resets_as_the_limit_says() {
    let backend = Backend::silent();
    let engine = Setup::new(&[backend.address]).limits("h2_client_resets = 30").start();
    let mut client = RawH2::connect(engine.tls);
    let burst: Vec<u8> = (0..30).flat_map(reset).collect();
    client.send_bytes(&burst);
    client.send(PING, 0, 0, &[7; 8]);
    while client.frame().is_some_and(|frame| frame.payload != [7; 8]) {}
    assert_eq!(abused(&engine), 0);
    client.send_bytes(&reset(30));
    assert_eq!(client.fate(NONE), CALM);
    assert_eq!(abused(&engine), 1);
}

#[test]
fn starts_few_requests_for_a_client_that_resets_all_of_them() {
    let backend = Backend::silent();
    let engine = Setup::new(&[backend.address]).limits("h2_client_resets = 20").start();
    for together in [true, false] {
        let before = engine.metrics().requests();
        let mut client = RawH2::connect(engine.tls);
        if together {
            let burst: Vec<u8> = (0..2000).flat_map(reset).collect();
            client.send_bytes(&burst);
        } else {
            flood(&mut client, 2000, reset);
        }
        drop(client);
        let requests = engine.settled().requests() - before;
        assert!(requests <= 21, "{requests}");
    }
    assert!(backend.connections() <= 42, "{}", backend.connections());
    assert_eq!(abused(&engine), 2);
}

#[test]
fn cuts_what_runs_on_the_connection_and_says_why() {
    let backend = Backend::silent();
    let engine = Engine::new(backend.address);
    let mut client = RawH2::connect(engine.tls);
    client.headers(1, true, &GET);
    client.headers(3, true, &GET);
    // One that comes together with the flood is never begun.
    for connection in 0..2 {
        backend.until_received(connection, "GET /");
    }
    client.send_bytes(&frame(PING, 0, 0, &[0; 8]).repeat(101));
    assert_eq!(client.fate(NONE), CALM);
    drop(client);
    engine.settled();
    assert_eq!(abused(&engine), 1);
    backend.until_closed(backend.connections());
    let reasons: Vec<_> = engine.stop().iter().map(|line| line["reason"].clone()).collect();
    assert_eq!(reasons, ["h2_abuse", "h2_abuse"]);
}

#[test]
fn closes_on_a_client_that_never_reads() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).limits("write_timeout = \"300ms\"").start();
    let mut client = RawH2::connect(engine.tls);
    client.send_bytes(&frame(SETTINGS, 0, 0, &[]).repeat(5000));
    engine.settled();
    assert_eq!(abused(&engine), 1);
}

#[test]
fn ends_a_head_that_does_not_end() {
    let backend = Backend::saying("never");
    let engine = Setup::new(&[backend.address]).limits("head_timeout = \"200ms\"").start();
    let whole = get(1);
    for begun in [frame(HEADERS, END_STREAM, 1, &block(&GET)), whole[..whole.len() - 1].to_vec()] {
        let mut client = RawH2::connect(engine.tls);
        let start = Instant::now();
        client.send_bytes(&begun);
        assert_eq!(client.fate(NONE), CALM);
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(2), "{took:?}");
    }
    assert_eq!(backend.connections(), 0);
    assert_eq!(abused(&engine), 2);
}

/// CVE-2025-8671: the client breaks a rule on each stream, so that we reset it.
#[test]
fn ends_a_client_that_makes_us_reset() {
    let backend = Backend::silent();
    let engine = Setup::new(&[backend.address]).limits("h2_local_resets = 20").start();
    let mut client = RawH2::connect(engine.tls);
    let provoke = |turn| {
        let stream = 2 * turn + 1;
        [get(stream), frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())].concat()
    };
    flood(&mut client, 20, provoke);
    for turn in 0..20 {
        assert_eq!(client.fate(2 * turn + 1), Fate::Reset(3), "{turn}");
    }
    flood(&mut client, 500, |turn| provoke(20 + turn));
    assert_eq!(client.fate(NONE), CALM);
    drop(client);
    let requests = engine.settled().requests();
    assert!(requests <= 21, "{requests}");
    assert_eq!(abused(&engine), 1);
}

/// Whether the h2 crate finds what is wrong, or we do.
#[test]
fn closes_on_a_client_that_never_stops() {
    let backend = Backend::saying("never");
    let engine = Engine::new(backend.address);
    let ping = frame(PING, 0, 0, &[0; 8]).repeat(1000);
    for first in [frame(DATA, 0, 1, b"idle stream"), ping.clone()] {
        let mut client = RawH2::connect(engine.tls);
        let start = Instant::now();
        client.send_bytes(&first);
        while client.send_bytes(&ping) {
            assert!(start.elapsed() < Duration::from_secs(2), "nobody closes");
        }
    }
    engine.settled();
    assert_eq!(backend.connections(), 0);
}

#[test]
fn leaves_a_download_alone_that_gives_its_window_back_in_small_pieces() {
    const SIZE: usize = 32 << 20;
    let backend = Backend::new(|conversation| {
        while conversation.request().is_some() {
            conversation.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n"));
            let block = vec![b'x'; 1 << 20];
            let all = (0..SIZE >> 20).all(|_| conversation.send(&block));
            assert!(all, "the download is read to its end");
        }
    });
    let engine = Engine::new(backend.address);
    let mut client = RawH2::connect(engine.tls);
    client.headers(1, true, &GET);
    let (mut received, mut owed) = (0, 0);
    while received < SIZE {
        let frame = client.frame().expect("the connection lives");
        assert!(!matches!(frame.kind, RST_STREAM | 7), "{} after {received}", frame.kind);
        if frame.kind != DATA {
            continue;
        }
        received += frame.payload.len();
        owed += frame.payload.len();
        if owed >= 16 * 1024 {
            let increment = u32::try_from(owed).unwrap().to_be_bytes();
            client.send(WINDOW_UPDATE, 0, 0, &increment);
            client.send(WINDOW_UPDATE, 0, 1, &increment);
            // A client that measures the line while it is used.
            client.send(PING, 0, 0, &[0; 8]);
            owed = 0;
        }
    }
    client.send(PING, 0, 0, &[7; 8]);
    while client.frame().expect("the connection lives").payload != [7; 8] {}
    assert_eq!(abused(&engine), 0);
}

#[test]
fn a_trusted_proxy_is_not_banned_for_what_one_of_its_clients_does() {
    let backend = Backend::saying("ok");
    for (trusted, floods, bans) in [("127.0.0.1", 3, false), ("192.0.2.1", 1, true)] {
        let engine = Setup::new(&[backend.address])
            .top(format!("trusted_proxies = [\"{trusted}\"]"))
            .more("[firewall.bans]\nafter = 1")
            .start();
        for count in 1..=floods {
            let mut client = RawH2::connect(engine.tls);
            flood(&mut client, 1000, reset);
            engine.until("it is sent away", |_| abused(&engine) >= count);
        }
        let banned = engine.admin("/bans").1 != "[]\n";
        assert_eq!(banned, bans, "{trusted}");
    }
}
