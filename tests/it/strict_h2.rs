//! HTTP/2 that no library would write: refused, and nothing of it at the backend.

use crate::support::{
    backend::Backend,
    client::fields,
    engine::{Engine, Setup},
    raw_h2::{CONTINUATION, DATA, END_HEADERS, END_STREAM, Fate, HEADERS, RawH2, block, frame},
};

const GOOD: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "site.example"), (":path", "/")];

/// Sends a request of these fields.
fn fate_of(engine: &Engine, fields: &[(&str, &str)]) -> Fate {
    let mut client = RawH2::connect(engine.tls);
    client.headers(1, true, fields);
    client.fate(1)
}

fn with<'f>(more: &[(&'f str, &'f str)]) -> Vec<(&'f str, &'f str)> {
    GOOD.iter().chain(more).copied().collect()
}

/// A good request with the field of that name replaced.
fn replacing<'f>(name: &str, value: &'f str) -> Vec<(&'f str, &'f str)> {
    GOOD.map(|(other, good)| if other == name { (other, value) } else { (other, good) }).to_vec()
}

#[track_caller]
fn refuses_each(requests: &[Vec<(&str, &str)>]) {
    let backend = Backend::saying("never");
    let engine = Engine::new(backend.address);
    assert_eq!(fate_of(&engine, &GOOD), Fate::Answered(0x88), "a good one");
    let served = backend.all_received();
    for request in requests {
        let fate = fate_of(&engine, request);
        let refused = matches!(fate, Fate::Reset(_) | Fate::Ended(_) | Fate::Answered(0x8c));
        assert!(refused, "{request:?}: {fate:?}");
    }
    assert_eq!(backend.all_received(), served, "nothing of the others");
    engine.settled();
}

#[test]
fn refuses_bytes_that_would_split_an_http1_request() {
    refuses_each(&[
        with(&[("x", "a\r\nx-smuggled: b")]),
        with(&[("x", "a\rb")]),
        with(&[("x", "a\nb")]),
        with(&[("x", "a\0b")]),
        with(&[("x\r\ny", "a")]),
        with(&[("x y", "a")]),
        with(&[("x\"y", "a")]),
        with(&[("x:", "a")]),
        with(&[("x", " a")]),
        with(&[("x", "a ")]),
        with(&[("x", "a\t")]),
        with(&[("", "a")]),
        with(&[("X-Upper", "a")]),
        replacing(":path", "/a\r\nx: y"),
        replacing(":path", "/a b"),
        replacing(":path", "/a HTTP/1.1"),
        replacing(":path", "/a\0"),
        replacing(":path", "/\u{e9}"),
        replacing(":method", "GET / HTTP/1.1\r\n"),
        replacing(":method", "G T"),
        replacing(":method", "0GET"),
        replacing(":path", "/..%3Bx/a"),
        replacing(":authority", "a\r\nx: y"),
        replacing(":authority", "a b"),
        replacing(":authority", "a/b"),
        replacing(":authority", "user@site.example"),
        replacing(":scheme", "https\r\n"),
    ]);
}

#[test]
fn refuses_fields_that_belong_to_an_http1_connection() {
    refuses_each(&[
        with(&[("connection", "close")]),
        with(&[("keep-alive", "timeout=5")]),
        with(&[("proxy-connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "websocket")]),
        with(&[("te", "gzip")]),
    ]);
}

#[test]
fn refuses_pseudo_fields_that_are_missing_doubled_or_late() {
    let without = |name: &str| GOOD.into_iter().filter(|(other, _)| *other != name).collect::<Vec<_>>();
    refuses_each(&[
        without(":method"),
        without(":path"),
        without(":scheme"),
        with(&[(":method", "POST")]),
        with(&[(":path", "/b")]),
        with(&[(":authority", "b.example")]),
        with(&[("x", "y"), (":path", "/b")]),
        with(&[(":status", "200")]),
        with(&[(":unknown", "x")]),
        replacing(":path", ""),
        replacing(":path", "relative"),
        replacing(":path", "*"),
        replacing(":path", "http://evil.example/"),
        replacing(":authority", ""),
        with(&[("host", "evil.example")]),
        with(&[("host", "site.example"), ("host", "site.example")]),
    ]);
}

#[test]
fn refuses_lengths_that_no_number_is() {
    refuses_each(&[
        with(&[("content-length", "5")]),
        with(&[("content-length", "+0")]),
        with(&[("content-length", "")]),
        with(&[("content-length", "0"), ("content-length", "1")]),
        with(&[("content-length", "99999999999999999999")]),
        with(&[("expect", "something")]),
    ]);
}

/// The http crate cuts a fragment off before anybody sees it; what is matched is what is forwarded.
#[test]
fn forwards_a_path_without_its_fragment() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    assert_eq!(fate_of(&engine, &replacing(":path", "/a#b")), Fate::Answered(0x88));
    assert!(backend.all_received().starts_with("GET /a HTTP/1.1\r\n"));
}

#[test]
fn takes_a_host_that_is_the_authority() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    assert_eq!(fate_of(&engine, &with(&[("host", "site.example")])), Fate::Answered(0x88));
    assert_eq!(fields(&backend.all_received(), "host"), ["site.example"]);
}

/// A POST with this announced length, then frames of DATA at once, the last of which ends the stream.
fn post(engine: &Engine, length: &str, frames: &[&str]) -> Fate {
    let mut client = RawH2::connect(engine.tls);
    let mut fields = replacing(":method", "POST");
    fields.push(("content-length", length));
    client.headers(1, false, &fields);
    let mut bytes = Vec::new();
    for (index, data) in frames.iter().enumerate() {
        let last = index + 1 == frames.len();
        bytes.extend(frame(DATA, if last { END_STREAM } else { 0 }, 1, data.as_bytes()));
    }
    client.send_bytes(&bytes);
    client.fate(1)
}

#[test]
fn refuses_a_body_that_is_not_as_long_as_announced() {
    for frames in [&["1234"][..], &["12345", "6"], &["123456"], &[""], &["1", "2", "3", "4", ""]] {
        let backend = Backend::silent();
        let engine = Setup::new(&[backend.address]).drain_timeout("200ms").start();
        let fate = post(&engine, "5", frames);
        assert!(matches!(fate, Fate::Reset(_) | Fate::Answered(0x8c)), "{frames:?}: {fate:?}");
        if backend.connections() > 0 {
            backend.until_closed(1);
        }
        let received = backend.all_received();
        assert!(!received.ends_with("12345"), "{frames:?}: {received}");
    }
}

#[test]
fn takes_a_body_as_long_as_announced_in_any_frames() {
    let backend = Backend::saying("ok");
    let engine = Engine::new(backend.address);
    for frames in [&["12345"][..], &["12", "", "345"], &["12345", ""]] {
        assert_eq!(post(&engine, "5", frames), Fate::Answered(0x88), "{frames:?}");
    }
    assert_eq!(backend.connections(), 1, "no connection owes a byte");
}

#[test]
fn refuses_a_head_that_other_frames_interrupt() {
    let backend = Backend::saying("never");
    let engine = Engine::new(backend.address);
    let head = block(&GOOD);
    let mut client = RawH2::connect(engine.tls);
    client.send(HEADERS, END_STREAM, 1, &head[..10]);
    client.send(DATA, 0, 1, b"x");
    assert_eq!(client.goaway(), Some(1));
    let mut client = RawH2::connect(engine.tls);
    client.send(HEADERS, END_STREAM, 1, &head[..10]);
    client.send(CONTINUATION, END_HEADERS, 3, &head[10..]);
    assert_eq!(client.goaway(), Some(1));
    assert_eq!(backend.connections(), 0);
}

#[test]
fn takes_a_head_in_pieces() {
    let backend = Backend::saying("ok");
    let engine = Engine::new(backend.address);
    let head = block(&GOOD);
    let mut client = RawH2::connect(engine.tls);
    client.send(HEADERS, END_STREAM, 1, &head[..10]);
    client.send(CONTINUATION, 0, 1, &head[10..20]);
    client.send(CONTINUATION, END_HEADERS, 1, &head[20..]);
    assert_eq!(client.fate(1), Fate::Answered(0x88));
}

#[test]
fn ends_connections_that_are_no_http2() {
    let backend = Backend::saying("never");
    let engine = Engine::new(backend.address);
    for frame in [
        frame(HEADERS, END_STREAM | END_HEADERS, 2, &block(&GOOD)),
        frame(HEADERS, END_STREAM | END_HEADERS, 0, &block(&GOOD)),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x80]),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff; 20]),
        frame(DATA, 0, 1, b"idle stream"),
        vec![0xff; 9],
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
    ] {
        let mut client = RawH2::connect(engine.tls);
        client.send_bytes(&frame);
        assert!(client.goaway().is_some_and(|code| code != 0), "{frame:?}");
    }
    assert_eq!(backend.connections(), 0);
}
