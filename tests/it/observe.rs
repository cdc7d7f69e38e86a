//! Every request leaves exactly one line in the log and one count in the metrics, however it ends.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::support::{
    Refusing,
    backend::{Backend, ok},
    client::{Client, exchange},
    engine::{Engine, Setup},
    h2::{H2, block_on, request},
    raw_h2::RawH2,
};

/// Answers by path.
fn versatile() -> Backend {
    Backend::new(|conversation| {
        while let Some(request) = conversation.request() {
            let (response, last) = match request.head.split([' ', '?']).nth(1).unwrap() {
                "/silent" => return conversation.read_to_end(),
                "/close" => return,
                "/bad" => ("nonsense\r\n\r\n".to_owned(), true),
                "/short" => ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx".to_owned(), true),
                "/teapot" => ("HTTP/1.1 418 Teapot\r\ncontent-length: 0\r\n\r\n".to_owned(), false),
                _ => (ok("body"), false),
            };
            conversation.send(response);
            if last {
                return;
            }
        }
    })
}

const ROUTES: &str = "[[routes]]\nname = \"all\"\ncluster = \"web\"\nhost = \"site.example\"\n\
                      [[routes]]\nname = \"down\"\npath = \"/down\"\ncluster = \"down\"";

fn start(backend: &Backend, refusing: &Refusing) -> Engine {
    Setup::new(&[backend.address])
        .routes(ROUTES)
        .limits("body_bytes = \"1KiB\"")
        .limits("head_timeout = \"300ms\"")
        .cluster("response_timeout = \"300ms\"")
        .more(&format!("[clusters.down]\nhealth = false\nbackends = [\"{}\"]", refusing.address))
        .start()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n")
}

/// How often each status with each reason is in the log.
fn outcomes(log: &[serde_json::Value]) -> BTreeMap<(u64, String), usize> {
    let mut outcomes = BTreeMap::new();
    for line in log {
        let reason = line["reason"].as_str().unwrap_or("-").to_owned();
        *outcomes.entry((line["status"].as_u64().unwrap(), reason)).or_default() += 1;
    }
    outcomes
}

#[test]
fn counts_and_logs_every_http1_request_once() {
    let (backend, refusing) = (versatile(), Refusing::new());
    let engine = start(&backend, &refusing);
    let large = "POST / HTTP/1.1\r\nHost: site.example\r\nContent-Length: 1025\r\n\r\n".to_owned();
    let cases = [
        (get("/"), 200, "-"),
        (get("/teapot"), 418, "-"),
        (get("/close"), 502, "upstream_closed"),
        (get("/bad"), 502, "upstream_bad_response"),
        (get("/short"), 200, "upstream_closed"),
        (get("/silent"), 504, "response_timeout"),
        (get("/down").replace("site", "other"), 502, "connect_refused"),
        (get("/").replace("site", "other"), 404, "no_route"),
        (get("/").replace("GET", "TRACE"), 405, "method_not_allowed"),
        (get("/").replace("Host", "Hos t"), 400, "bad_request"),
        (get("/").replace("Connection", "Transfer-Encoding: gzip, chunked\r\nX"), 501, "not_implemented"),
        (get("/").replace("Connection", &"X: y\r\n".repeat(200)), 431, "head_too_large"),
        (get(&format!("/{}", "a".repeat(9000))), 414, "uri_too_long"),
        (large, 413, "body_too_large"),
        ("GET / HTTP/1.1\r\n".to_owned(), 408, "request_timeout"),
    ];
    let mut expected = BTreeMap::new();
    for (request, status, reason) in &cases {
        let answer = exchange(engine.plain, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}\n{answer}");
        *expected.entry((*status, (*reason).to_owned())).or_default() += 1;
    }
    // One that its client gives up.
    let mut client = Client::plain(engine.plain);
    client.send(get("/silent?abort"));
    backend.until_any_received("/silent?abort");
    drop(client);
    *expected.entry((499, "client_closed".to_owned())).or_default() += 1;

    let metrics = engine.settled();
    for (status, _) in expected.keys() {
        let code = status.to_string();
        let count =
            expected.iter().filter(|((other, _), _)| other == status).map(|(_, count)| count).sum::<usize>();
        let labels = [("code", code.as_str()), ("listener", "plain"), ("protocol", "http1")];
        assert_eq!(metrics.sum("portcullis_requests_total", &labels), count as u64, "{status}");
    }
    assert_eq!(metrics.requests(), cases.len() as u64 + 1);
    assert_eq!(metrics.sum("portcullis_request_seconds_count", &[]), cases.len() as u64 + 1);
    for ((_, reason), count) in &expected {
        if reason != "-" {
            let errors = metrics.sum("portcullis_errors_total", &[("reason", reason)]);
            let rejections = metrics.sum("portcullis_rejections_total", &[("reason", reason)]);
            let both = expected
                .iter()
                .filter(|((_, other), _)| other == reason)
                .map(|(_, count)| count)
                .sum::<usize>();
            assert_eq!(errors + rejections, both as u64, "{reason} {count}");
        }
    }
    assert_eq!(metrics.sum("portcullis_log_lines_lost_total", &[]), 0);
    assert_eq!(outcomes(&engine.stop()), expected);
}

#[test]
fn counts_and_logs_every_h2_request_once() {
    let (backend, refusing) = (versatile(), Refusing::new());
    let engine = start(&backend, &refusing);
    let mut expected = BTreeMap::new();
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        for (method, path, status, reason) in [
            ("GET", "/", 200, "-"),
            ("GET", "/teapot", 418, "-"),
            ("GET", "/close", 502, "upstream_closed"),
            ("GET", "/bad", 502, "upstream_bad_response"),
            ("GET", "/silent", 504, "response_timeout"),
            ("GET", "/down", 502, "connect_refused"),
            ("TRACE", "/", 405, "method_not_allowed"),
            ("GET", "/..%2f", 400, "bad_request"),
        ] {
            let mut asked = request(method, path);
            if path == "/down" {
                *asked.uri_mut() = "https://other.example/down".parse().unwrap();
            }
            let reply = client.ask(asked).await;
            assert_eq!((reply.status, reply.reason().unwrap_or("-")), (status, reason), "{path}");
            *expected.entry((u64::from(status), reason.to_owned())).or_default() += 1;
        }
        let reply = client.get("/short").await;
        assert!(reply.error.is_some());
        *expected.entry((200, "upstream_closed".to_owned())).or_default() += 1;
        let mut asked = request("GET", "/");
        *asked.uri_mut() = "https://other.example/".parse().unwrap();
        assert_eq!(client.ask(asked).await.reason(), Some("no_route"));
        *expected.entry((404, "no_route".to_owned())).or_default() += 1;
        let reply = client.send(request("POST", "/"), &[0; 1025], None).await;
        assert_eq!(reply.reason(), Some("body_too_large"));
        *expected.entry((413, "body_too_large".to_owned())).or_default() += 1;
        // One that its client resets, one whose connection goes.
        let (response, mut upload) = client.open(request("POST", "/silent?reset"), false).await;
        upload.send_data(Bytes::from_static(b"x"), false).unwrap();
        upload.send_reset(h2::Reason::CANCEL);
        drop(response);
        let (response, _) = client.open(request("GET", "/silent?gone"), true).await;
        backend.until_any_received("/silent?gone");
        drop((response, client));
        *expected.entry((499, "client_closed".to_owned())).or_default() += 2;
    });
    let metrics = engine.settled();
    let total: usize = expected.values().sum();
    assert_eq!(
        metrics.sum("portcullis_requests_total", &[("protocol", "h2"), ("listener", "tls")]),
        total as u64
    );
    let log = engine.stop();
    assert!(log.iter().all(|line| line["protocol"] == "h2" && line["tls"]["version"] == "TLSv1.3"));
    assert_eq!(outcomes(&log), expected);
}

#[test]
fn counts_an_h2_head_that_is_too_large() {
    let backend = Backend::saying("never");
    let engine = Setup::new(&[backend.address]).limits("request_head_bytes = \"1KiB\"").start();
    block_on(async {
        let mut asked = request("GET", "/");
        asked.headers_mut().insert("x-pad", "p".repeat(1500).parse().unwrap());
        assert_eq!(H2::connect(engine.tls).await.ask(asked).await.reason(), Some("head_too_large"));
    });
    assert_eq!(engine.settled().requests(), 1);
    assert_eq!(engine.stop().len(), 1);
}

#[test]
fn logs_what_a_request_was() {
    let backend = Backend::saying("body");
    let engine = Engine::new(backend.address);
    let mut client = Client::tls(engine.tls);
    client.send(
        "POST /a%20b?q=1 HTTP/1.1\r\nHost: Site.Example\r\nUser-Agent: test/1\r\nReferer: http://r/\r\n\
         Content-Length: 5\r\nConnection: close\r\n\r\nhello",
    );
    assert_eq!(client.rest().split("\r\n\r\n").nth(1), Some("body"));
    let peer = client.address().to_string();
    drop(client);
    engine.settled();
    let log = engine.stop();
    let line = &log[0];
    for (key, value) in [
        ("listener", "tls"),
        ("client_ip", "127.0.0.1"),
        ("peer", &peer),
        ("protocol", "http1"),
        ("method", "POST"),
        ("host", "site.example"),
        ("path", "/a%20b"),
        ("query", "q=1"),
        ("route", "all"),
        ("cluster", "web"),
        ("backend", &backend.address.to_string()),
        ("user_agent", "test/1"),
        ("referer", "http://r/"),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!((&line["status"], &line["reason"]), (&200.into(), &serde_json::Value::Null));
    assert_eq!((&line["bytes_in"], &line["bytes_out"], &line["attempts"]), (&5.into(), &4.into(), &1.into()));
    assert_eq!(line["tls"]["sni"], "localhost");
    assert!(line["tls"]["cipher"].as_str().unwrap().starts_with("TLS13_"));
    assert!(line["duration_s"].as_f64().unwrap() >= line["upstream_response_s"].as_f64().unwrap());
    assert!(line["time"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn no_bytes_of_a_client_break_a_line() {
    let backend = Backend::saying("body");
    let engine = Engine::new(backend.address);
    let agents: [&[u8]; 4] =
        [b"\"},{\"status\":1", b"\xff\xfe\x80", b"\\\" \\n", "\u{2028}\u{1b}".as_bytes()];
    let mut sent = 0;
    for agent in agents {
        let request =
            [&b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: "[..], agent, b"\r\nConnection: close\r\n\r\n"];
        exchange(engine.plain, request.concat());
        sent += 1;
    }
    for garbage in [&b"\0\0\0\0\r\n\r\n"[..], b"\x16\x03\x01\x02\r\n\r\n", b"{\"a\":\"\"}\n\n"] {
        exchange(engine.plain, garbage);
        sent += 1;
    }
    engine.settled();
    assert_eq!(engine.stop().len(), sent, "each line is a whole object");
}

#[test]
fn makes_no_series_of_what_clients_send() {
    let backend = Backend::saying("body");
    let engine = Setup::new(&[backend.address])
        .routes(ROUTES)
        .more("[clusters.down]\nbackends = [\"127.0.0.1:1\"]\nhealth = false")
        .start();
    let ask = |from: usize| {
        let mut client = Client::plain(engine.plain);
        for at in from..from + 50 {
            client.send(format!("M{at} /p{at} HTTP/1.1\r\nHost: h{at}.example\r\nUser-Agent: u{at}\r\n\r\n"));
            assert_eq!(client.response("GET").status, 404);
            client.send(format!("GET /p{at} HTTP/1.1\r\nHost: site.example\r\nX-{at}: {at}\r\n\r\n"));
            assert_eq!(client.response("GET").status, 200);
        }
        drop(client);
        engine.settled().0.lines().filter(|line| !line.starts_with('#')).count()
    };
    assert_eq!(ask(0), ask(50));
}

#[test]
fn counts_connections_and_handshakes() {
    let backend = Backend::saying("body");
    let engine = Engine::new(backend.address);
    for _ in 0..3 {
        Client::tls(engine.tls).get("/");
    }
    let mut client = Client::plain(engine.tls);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    client.rest();
    drop(client);
    let metrics = engine.settled();
    let tls = ("listener", "tls");
    assert_eq!(metrics.sum("portcullis_downstream_connections_total", &[tls]), 4);
    assert_eq!(metrics.sum("portcullis_tls_handshakes_total", &[tls, ("result", "ok")]), 3);
    assert_eq!(metrics.sum("portcullis_tls_handshakes_total", &[tls, ("result", "plain_http")]), 1);
    assert_eq!(metrics.sum("portcullis_tls_handshake_seconds_count", &[tls]), 3);
    assert_eq!(metrics.sum("portcullis_upstream_connections_total", &[("cluster", "web")]), 1);
    assert_eq!(metrics.sum("portcullis_upstream_requests_total", &[("code", "200")]), 3);
    assert_eq!(metrics.sum("portcullis_upstream_response_seconds_count", &[]), 3);
    assert_eq!(metrics.sum("portcullis_backend_requests_in_flight", &[]), 0);
    let expiry =
        metrics.sum("portcullis_tls_certificate_expiry_timestamp_seconds", &[tls, ("name", "localhost")]);
    assert!(expiry > 3_000_000_000, "{expiry}");
}

#[test]
fn a_pool_of_garbage_leaves_no_request_open() {
    let backend = Backend::saying("body");
    let engine = Engine::new(backend.address);
    let mut client = RawH2::connect(engine.tls);
    client.send_bytes(&[0xff; 100]);
    client.goaway();
    drop(client);
    assert_eq!(engine.settled().sum("portcullis_requests_in_flight", &[]), 0);
}

#[test]
fn a_log_that_cannot_be_written_costs_lines_and_no_request() {
    let backend = Backend::saying("body");
    let engine = Setup::new(&[backend.address]).log("/dev/full").start();
    let mut client = Client::plain(engine.plain);
    for _ in 0..20 {
        assert_eq!(client.get("/").text(), "body");
    }
    drop(client);
    engine.settled();
    engine
        .until("lost lines are counted", |metrics| metrics.sum("portcullis_log_lines_lost_total", &[]) == 20);
}

#[test]
fn serves_its_admin_pages() {
    let backend = Backend::saying("body");
    let engine = Engine::new(backend.address);
    assert_eq!(engine.admin("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(engine.admin("/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(engine.admin("/nowhere").0, 404);
    let (status, text) = engine.admin("/status");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 200);
    assert!(json.to_string().contains(&engine.tls.to_string()), "{json}");
    assert!(json.to_string().contains(&backend.address.to_string()), "{json}");
    let metrics = engine.metrics();
    assert_eq!(metrics.sum("portcullis_backend_up", &[("cluster", "web")]), 1);
    assert!(metrics.0.contains("portcullis_build_info{"), "{}", metrics.0);
}
