//! The PROXY protocol from balancers in front of us, and to backends.

use std::{
    fmt::Write,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use portcullis::http::proxy_protocol::{self, Ends, LOCAL};

use crate::support::{
    backend::{Backend, Conversation, ok},
    certificates::TRUSTED,
    client::{Client, exchange, fields, tls_config},
    engine::{Engine, Setup},
    h2::{H2, block_on},
    until,
};

/// Both listeners take headers from 127.0.0.1.
fn setup(backend: &Backend) -> Setup {
    let rule = "proxy_protocol.from = [\"127.0.0.1\"]";
    Setup::new(&[backend.address]).plain(rule).tls(rule)
}

fn line(source: &str) -> Vec<u8> {
    let family = if source.contains(':') { "TCP6 {} ::1" } else { "TCP4 {} 192.0.2.1" };
    format!("PROXY {} 56324 443\r\n", family.replace("{}", source)).into_bytes()
}

fn binary(source: &str, destination: &str) -> Vec<u8> {
    proxy_protocol::write(&Ends::new(source.parse().unwrap(), destination.parse().unwrap()))
}

/// A header of version 2 with this body.
fn raw(version_and_command: u8, family: u8, length: u16, body: &[u8]) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    [&LOCAL[..12], &[version_and_command, family, high, low], body].concat()
}

const REQUEST: &str = "GET /p HTTP/1.1\r\nhost: a.example\r\n\r\n";

fn behind(header: &[u8]) -> Vec<u8> {
    [header, REQUEST.as_bytes()].concat()
}

/// Whom the backend sees behind a header on a clear-text connection.
#[track_caller]
fn seen(engine: &Engine, header: &[u8]) -> String {
    let mut client = Client::plain(engine.plain);
    client.send(behind(header));
    let seen = client.response("GET").text();
    fields(&seen, "x-forwarded-for").concat()
}

fn tls_behind(header: &[u8], engine: &Engine) -> std::io::Result<Client> {
    let config = Arc::new(tls_config(&["http/1.1"], rustls::ALL_VERSIONS));
    Client::handshake_behind(header, engine.tls, "localhost", config)
}

fn rejections(engine: &Engine, reason: &str) -> u64 {
    engine.metrics().sum("portcullis_rejections_total", &[("reason", reason)])
}

#[test]
fn a_header_names_the_client() {
    let backend = Backend::echo();
    let engine = setup(&backend).start();
    let headers = [line("1.2.3.4"), binary("1.2.3.4:5", "192.0.2.1:443")];
    for header in &headers {
        assert_eq!(seen(&engine, header), "1.2.3.4");
        let mut client = tls_behind(header, &engine).unwrap();
        for _ in 0..2 {
            assert_eq!(fields(&client.get("/").text(), "x-forwarded-for"), ["1.2.3.4"]);
        }
        drop(client);
        let reply = block_on(async {
            H2::connect_behind(header, engine.tls, &h2::client::Builder::new()).await.get("/").await
        });
        assert_eq!(fields(&reply.text(), "x-forwarded-for"), ["1.2.3.4"]);
    }
    engine.settled();
    let log = engine.stop();
    assert_eq!(log.len(), 8);
    for line in &log {
        assert_eq!(line["client_ip"], "1.2.3.4");
        assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    }
}

#[test]
fn ipv6_clients_are_named_and_mapped_ones_are_ipv4() {
    let backend = Backend::echo();
    let engine = setup(&backend).start();
    assert_eq!(seen(&engine, &line("2001:DB8:0::1")), "2001:db8::1");
    assert_eq!(seen(&engine, &line("::ffff:1.2.3.4")), "1.2.3.4");
    assert_eq!(seen(&engine, &binary("[2001:db8::1]:5", "[::1]:443")), "2001:db8::1");
    let mapped = [&[0; 10][..], &[0xff, 0xff, 1, 2, 3, 4], &[0; 16], &[0, 1, 0, 2]].concat();
    assert_eq!(seen(&engine, &raw(0x21, 0x21, 36, &mapped)), "1.2.3.4");
}

#[test]
fn who_speaks_for_itself_stays_the_client() {
    let backend = Backend::echo();
    let engine = setup(&backend).start();
    let addresses = [1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 2];
    for header in [
        LOCAL.to_vec(),
        raw(0x20, 0x11, 12, &addresses),
        raw(0x21, 0x00, 12, &addresses),
        raw(0x21, 0x31, 216, &[b'/'; 216]),
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(),
    ] {
        assert_eq!(seen(&engine, &header), "127.0.0.1", "{}", header.escape_ascii());
    }
}

#[test]
fn a_header_may_come_in_any_pieces() {
    let backend = Backend::echo();
    let engine = setup(&backend).start();
    let long =
        raw(0x21, 0x11, 1015, &[&[1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 2, 4, 3, 232][..], &[0; 1000]].concat());
    for header in [line("1.2.3.4"), binary("1.2.3.4:5", "192.0.2.1:443"), long] {
        let whole = behind(&header);
        for size in [1, 2, 7, 100, 300] {
            let mut client = Client::plain(engine.plain);
            whole.chunks(size).for_each(|piece| client.send(piece));
            assert_eq!(fields(&client.response("GET").text(), "x-forwarded-for"), ["1.2.3.4"], "{size}");
        }
        for end in (1..header.len()).step_by(header.len() / 25) {
            let mut client = Client::plain(engine.plain);
            client.send(&header[..end]);
            assert!(client.is_silent(Duration::from_millis(1)));
            client.send(&whole[end..]);
            assert_eq!(fields(&client.response("GET").text(), "x-forwarded-for"), ["1.2.3.4"], "{end}");
        }
    }
}

#[test]
fn whatever_is_no_header_is_closed_and_counted() {
    let backend = Backend::saying("never");
    let engine = setup(&backend).start();
    let text = |line: &str| behind(line.as_bytes());
    let crc = [1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 2, 3, 0, 4, 0, 0, 0, 0];
    let rows = [
        ("no header", REQUEST.as_bytes().to_vec()),
        ("a client hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("line feed alone", text("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n")),
        ("carriage return alone", text("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r")),
        ("leading zero in an address", text("PROXY TCP4 1.2.3.04 5.6.7.8 1 2\r\n")),
        ("leading zero in a port", text("PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n")),
        ("port too large", text("PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n")),
        ("IPv6 as TCP4", text("PROXY TCP4 ::1 ::1 1 2\r\n")),
        ("IPv4 as TCP6", text("PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n")),
        ("two families", text("PROXY TCP4 1.2.3.4 ::1 1 2\r\n")),
        ("lower case", text("proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n")),
        ("two blanks", text("PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n")),
        ("one word more", text("PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n")),
        ("a datagram", text("PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n")),
        ("108 bytes", text(&format!("PROXY UNKNOWN {}\r\n", "x".repeat(92)))),
        ("an endless line", text(&format!("PROXY UNKNOWN {}", "x".repeat(5000)))),
        ("a binary length of 65535", raw(0x21, 0x11, 65_535, &[0; 12])),
        ("LOCAL with a length of 65535", raw(0x20, 0x00, 65_535, b"")),
        ("version 1 in binary", raw(0x11, 0x11, 12, &[0; 12])),
        ("an unknown command", raw(0x22, 0x11, 12, &[0; 12])),
        ("an unknown family", raw(0x21, 0x41, 216, &[0; 216])),
        ("UDP", raw(0x21, 0x12, 12, &[0; 12])),
        ("unix datagrams", raw(0x21, 0x32, 216, &[0; 216])),
        ("no addresses", raw(0x21, 0x11, 0, b"")),
        ("addresses of IPv4 as IPv6", raw(0x21, 0x21, 12, &[0; 12])),
        ("half a field", raw(0x21, 0x11, 14, &[0; 14])),
        ("a field beyond the end", raw(0x21, 0x11, 15, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1])),
        ("a wrong checksum", raw(0x21, 0x11, 19, &crc)),
    ];
    let count = rows.len();
    for (what, bytes) in rows {
        let start = Instant::now();
        assert_eq!(exchange(engine.plain, bytes), "", "{what}");
        assert!(start.elapsed() < Duration::from_secs(2), "{what}: not refused at sight");
    }
    assert_eq!(rejections(&engine, "proxy_protocol"), count as u64);
    assert!(tls_behind(b"", &engine).is_err());
    assert!(tls_behind(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", &engine).is_err());
    assert_eq!(rejections(&engine, "proxy_protocol"), count as u64 + 2);
    let metrics = engine.settled();
    assert_eq!((metrics.requests(), metrics.sum("portcullis_tls_handshakes_total", &[])), (0, 0));
    assert_eq!(backend.connections(), 0);
    assert!(engine.stop().is_empty(), "no request is on record");
}

#[test]
fn a_header_has_a_deadline() {
    let backend = Backend::saying("never");
    let timeout = "proxy_protocol.timeout = \"250ms\"";
    let engine = setup(&backend).plain(timeout).tls(timeout).start();
    let long = raw(0x21, 0x11, 4000, &[1; 2000]);
    let starts = [&b""[..], b"P", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r", &LOCAL[..15], &long];
    for (index, start) in starts.into_iter().enumerate() {
        for address in [engine.plain, engine.tls] {
            let began = Instant::now();
            assert_eq!(exchange(address, start), "");
            let took = began.elapsed();
            assert!(took > Duration::from_millis(200) && took < Duration::from_secs(3), "{index}: {took:?}");
        }
    }
    assert_eq!(rejections(&engine, "proxy_protocol"), 2 * 5);
}

#[test]
fn who_closes_within_the_header_is_counted_and_who_says_nothing_is_not() {
    let backend = Backend::saying("never");
    let engine = setup(&backend).start();
    for count in 1..4 {
        drop(Client::plain(engine.plain));
        let mut client = Client::plain(engine.plain);
        client.send("PROXY ");
        drop(client);
        until("one rejection more", || rejections(&engine, "proxy_protocol") == count);
    }
    engine.settled();
    assert_eq!(rejections(&engine, "proxy_protocol"), 3);
}

#[test]
fn a_header_from_elsewhere_is_not_believed() {
    let backend = Backend::echo();
    let engine = setup(&backend).start();
    for header in [line("1.2.3.4"), binary("1.2.3.4:5", "192.0.2.1:443"), LOCAL.to_vec()] {
        let mut client = Client::plain_from([127, 0, 0, 2], engine.plain);
        client.send(behind(&header));
        let answer = client.response("GET");
        assert_eq!((answer.status, answer.reason()), (400, Some("bad_request")));
        let mut client = Client::plain_from([127, 0, 0, 2], engine.tls);
        client.send(&header);
        assert!(!client.rest().contains("HTTP"));
    }
    let mut client = Client::plain_from([127, 0, 0, 2], engine.plain);
    assert_eq!(fields(&client.get("/").text(), "x-forwarded-for"), ["127.0.0.2"], "without one it is served");
    drop(client);
    let metrics = engine.settled();
    assert_eq!(metrics.sum("portcullis_tls_handshakes_total", &[("result", "not_tls")]), 3);
    assert_eq!(metrics.sum("portcullis_rejections_total", &[("reason", "proxy_protocol")]), 0);
    assert_eq!(metrics.sum("portcullis_rejections_total", &[("reason", "bad_request")]), 3);
    for line in engine.stop() {
        assert_eq!(line["client_ip"], "127.0.0.2");
    }
}

#[test]
fn a_second_header_is_a_bad_request() {
    let backend = Backend::saying("never");
    let engine = setup(&backend).start();
    let mut client = Client::plain(engine.plain);
    client.send([line("1.2.3.4"), behind(&line("5.6.7.8"))].concat());
    assert_eq!(client.response("GET").reason(), Some("bad_request"));
    drop(client);
    assert_eq!(engine.stop()[0]["client_ip"], "1.2.3.4");
}

#[test]
fn connections_per_ip_counts_the_address_that_is_named() {
    let backend = Backend::saying("ok");
    let engine = setup(&backend).limits("connections_per_ip = 1").start();
    let open = |source: &str| {
        let mut client = Client::plain(engine.plain);
        client.send(behind(&line(source)));
        client
    };
    let mut first = open("1.2.3.4");
    assert_eq!(first.response("GET").status, 200);
    assert_eq!(open("5.6.7.8").response("GET").status, 200);
    assert_eq!(open("2001:db8::1").response("GET").status, 200);
    assert_eq!(open("1.2.3.4").rest(), "", "the second connection of one client");
    assert_eq!(rejections(&engine, "connection_limit"), 1);
    assert_eq!(first.get("/").status, 200);
    drop(first);
    engine.settled();
    assert_eq!(open("1.2.3.4").response("GET").status, 200, "the place was given back");
}

#[test]
fn the_firewall_looks_at_the_address_that_is_named() {
    let backend = Backend::saying("ok");
    let engine = setup(&backend)
        .more("[firewall]\ndeny = [\"192.0.2.0/24\", \"127.0.0.1\"]\nconnection_rate = { rate = \"2/h\" }")
        .start();
    let answer =
        |source: &str| exchange(engine.plain, [&line(source)[..], b"GET / HTTP/1.0\r\n\r\n"].concat());
    assert_eq!(answer("192.0.2.7"), "");
    assert_eq!(rejections(&engine, "denied"), 1);
    for source in ["198.51.100.1", "198.51.100.2"] {
        assert!(answer(source).starts_with("HTTP/1.1 200"), "the peer itself is on the list");
        assert!(answer(source).starts_with("HTTP/1.1 200"));
        assert_eq!(answer(source), "", "the third connection of {source}");
    }
    assert_eq!(rejections(&engine, "rate_limited"), 2);
    assert!(tls_behind(&line("192.0.2.7"), &engine).is_err());
    assert_eq!(rejections(&engine, "denied"), 2);
}

#[test]
fn trusted_proxies_looks_at_the_address_that_is_named() {
    let backend = Backend::echo();
    let engine = setup(&backend).top("trusted_proxies = [\"127.0.0.1\", \"9.9.9.9\"]").start();
    let chain = |header: &[u8]| {
        let mut client = Client::plain(engine.plain);
        client.send([header, b"GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 6.6.6.6\r\n\r\n"].concat());
        fields(&client.response("GET").text(), "x-forwarded-for").concat()
    };
    assert_eq!(chain(&line("1.2.3.4")), "1.2.3.4");
    assert_eq!(chain(&line("9.9.9.9")), "6.6.6.6, 9.9.9.9");
    assert_eq!(chain(&LOCAL), "6.6.6.6, 127.0.0.1");
    engine.settled();
    let clients: Vec<String> =
        engine.stop().iter().map(|line| line["client_ip"].as_str().unwrap().to_owned()).collect();
    assert_eq!(clients, ["1.2.3.4", "6.6.6.6", "6.6.6.6"]);
}

/// A backend that answers each request with the header in front of its connection, in hexadecimal.
fn header_backend() -> Backend {
    Backend::new(|conversation: &mut Conversation| {
        let Some(fixed) = conversation.take(16) else { return };
        let length = usize::from(fixed[15]);
        let addresses = conversation.take(length).expect("a whole header");
        conversation.answer_all(ok(&hexadecimal(&[fixed, addresses].concat())).as_bytes());
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn header_of(source: &str, destination: &str) -> String {
    hexadecimal(&binary(source, destination))
}

#[test]
fn backends_are_told_of_each_client() {
    let backend = header_backend();
    let engine =
        setup(&backend).top("trusted_proxies = [\"127.0.0.3\"]").cluster("proxy_protocol = \"v2\"").start();
    let from = |source| Client::plain_from([127, 0, 0, source], engine.plain);
    let reached = engine.plain.to_string();
    let mut client = from(2);
    for _ in 0..2 {
        let expected = header_of(&client.address().to_string(), &reached);
        assert_eq!(client.get("/").text(), expected);
    }
    assert_eq!(backend.connections(), 2, "none is used twice");
    let mut other = from(4);
    let expected = header_of(&other.address().to_string(), &reached);
    assert_eq!(other.get("/").text(), expected);

    let mut announced = Client::plain(engine.plain);
    announced.send(behind(&binary("[2001:db8::1]:5", "[2001:db8::2]:443")));
    assert_eq!(announced.response("GET").text(), header_of("[2001:db8::1]:5", "[2001:db8::2]:443"));
    let mut local = Client::plain(engine.plain);
    local.send(behind(&LOCAL));
    assert_eq!(local.response("GET").text(), header_of(&local.address().to_string(), &reached));

    let mut vouched = from(3);
    for (named, expected) in [
        ("6.6.6.6", header_of("6.6.6.6:0", &reached)),
        ("2001:db8::7", header_of("[2001:db8::7]:0", &reached)),
        ("127.0.0.3", header_of(&vouched.address().to_string(), &reached)),
    ] {
        vouched.send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {named}\r\n\r\n"));
        assert_eq!(vouched.response("GET").text(), expected, "{named}");
    }
}

#[test]
fn backends_are_told_of_http2_clients_one_by_one() {
    let backend = header_backend();
    let engine = Setup::new(&[backend.address]).cluster("proxy_protocol = \"v2\"").start();
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        let texts = [client.get("/").await.text(), client.get("/").await.text()];
        assert_eq!(texts[0], texts[1]);
        assert!(texts[0].ends_with(&format!("{:04x}", engine.tls.port())), "{texts:?}");
    });
    assert_eq!(backend.connections(), 2);
}

#[test]
fn the_header_to_a_backend_comes_before_tls() {
    let backend = Backend::new(|conversation: &mut Conversation| {
        conversation.take(28);
        assert_eq!(conversation.take(2).expect("a client hello"), [0x16, 0x03]);
    });
    let engine = Setup::new(&[backend.address])
        .cluster("proxy_protocol = \"v2\"\ntls = { ca = \"ca.crt\" }\nretries = 0")
        .file("ca.crt", &TRUSTED.pem)
        .start();
    let answer = Client::plain(engine.plain).get("/");
    assert_eq!(answer.status, 502);
    assert_eq!(backend.connections(), 1);
}

/// The first bytes that a backend gets from a probe.
fn probed(check: &str, count: usize) -> Vec<u8> {
    let (report, first) = std::sync::mpsc::channel();
    let backend = Backend::new(move |conversation: &mut Conversation| {
        let bytes = conversation.take(count).unwrap_or_default();
        let _ = report.send(bytes);
    });
    let port = backend.address.port();
    let closed = SocketAddr::from(([127, 0, 0, 1], 1));
    let (address, check) = match check.strip_suffix("PORT") {
        Some(check) => (closed, format!("{check}{port}")),
        None => (backend.address, check.to_owned()),
    };
    let engine = Setup::new(&[])
        .weighted(address, 1)
        .cluster("proxy_protocol = \"v2\"")
        .health(&format!("health.interval = \"10ms\"\n{check}"))
        .start();
    let bytes = first.recv_timeout(Duration::from_secs(10)).unwrap();
    drop(engine);
    bytes
}

#[test]
fn probes_speak_for_themselves() {
    assert_eq!(probed("", 16), LOCAL);
    assert_eq!(probed("health.path = \"/up\"", 23), [&LOCAL[..], b"GET /up"].concat());
    assert_eq!(
        probed("health.path = \"/up\"\nhealth.port = PORT", 7),
        b"GET /up",
        "no header to a port of its own"
    );
}
