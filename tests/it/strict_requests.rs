//! HTTP/1 requests that two parsers could read in two ways: refused, closed, and nothing of them at
//! the backend.

use crate::support::{
    backend::{Backend, ok},
    client::{Client, End, exchange, fields},
    engine::{Engine, Setup},
};

/// What an attacker would have the backend see.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a.example\r\n\r\n";

/// A GET with these lines behind its host.
fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n\r\n")
}

/// A POST with these lines behind its host.
fn post(lines: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n\r\n{body}")
}

/// Sends each request with another behind it: one answer, with that status and its reason, then the
/// end, and not a connection to the backend.
#[track_caller]
fn refuses_each(status: u16, requests: &[impl AsRef<[u8]>]) {
    let backend = Backend::saying("never");
    let engine = Engine::new(backend.address);
    for request in requests {
        let bytes = [request.as_ref(), SMUGGLED.as_bytes()].concat();
        let shown = request.as_ref().escape_ascii().to_string();
        let answer = exchange(engine.plain, &bytes);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}\n{answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{shown}\n{answer}");
        assert_eq!(fields(&answer, "connection"), ["close"], "{shown}\n{answer}");
        assert_eq!(fields(&answer, "x-portcullis-reason").len(), 1, "{shown}\n{answer}");
    }
    assert_eq!(backend.connections(), 0);
    let metrics = engine.settled();
    assert_eq!(metrics.requests(), requests.len() as u64);
    assert_eq!(engine.stop().len(), requests.len());
}

#[test]
fn refuses_content_length_with_transfer_encoding() {
    let both = [
        post("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\nContent-Length: 5", "0\r\n\r\n"),
        post("Content-Length: 0\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
    ];
    refuses_each(400, &both);
}

#[test]
fn refuses_a_transfer_encoding_other_than_chunked() {
    let wrong = [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding:\tchunked",
        "Transfer-Encoding:  chunked",
        "Transfer-Encoding: chunked ",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\x0c",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:",
    ];
    refuses_each(400, &wrong.map(|lines| post(lines, "0\r\n\r\n")));
    refuses_each(501, &[post("Transfer-Encoding: gzip, chunked", "0\r\n\r\n")]);
}

#[test]
fn refuses_a_content_length_that_is_no_plain_number() {
    let wrong = [
        "",
        "+5",
        "-0",
        "-5",
        "5,5",
        "5, 6",
        "0x5",
        "1_0",
        "5 5",
        "9223372036854775808",
        "99999999999999999999",
    ];
    refuses_each(400, &wrong.map(|value| post(&format!("Content-Length: {value}"), "")));
    refuses_each(400, &[post("Content-Length: 5\r\nContent-Length: 6", "hello")]);
}

#[test]
fn takes_two_equal_content_lengths_for_one() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send(post("Content-Length: 5\r\nContent-Length: 5", "hello"));
    assert_eq!(fields(&client.response("POST").text(), "content-length"), ["5"]);
}

#[test]
fn refuses_http_1_0_bodies_without_a_length() {
    let wrong = [
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\n\r\nuntil the end",
        "PUT / HTTP/1.0\r\nHost: a\r\n\r\n",
    ];
    refuses_each(400, &wrong);
}

#[test]
fn refuses_line_ends_and_bytes_that_parsers_disagree_about() {
    let wrong: [&[u8]; 21] = [
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\rHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    refuses_each(400, &wrong);
}

#[test]
fn refuses_a_target_that_is_none() {
    let wrong: [&[u8]; 12] = [
        b"/a#b",
        b"/a b",
        b"/\x01",
        b"/\x7f",
        b"/\xc3\xa9",
        b"/%zz",
        b"/%00",
        b"a",
        b"*",
        b"http://b.example/",
        b"http://user@a.example/",
        b"/..%2fadmin",
    ];
    let wrong = wrong.map(|target| [b"GET ", target, b" HTTP/1.1\r\nHost: a.example\r\n\r\n"].concat());
    refuses_each(400, &wrong);
}

#[test]
fn refuses_a_host_that_is_missing_or_none() {
    let hosts =
        ["", "a,b", "a@b", "a/b", "a?b", "a#b", "a b", "a:0", "a:65536", "a:", "a:b", "a..b", "[::1", "%61"];
    refuses_each(400, &hosts.map(|host| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")));
    let wrong = ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"];
    refuses_each(400, &wrong);
}

#[test]
fn refuses_connect_and_trace() {
    let wrong = [
        "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    refuses_each(405, &wrong);
}

/// The head is good, so a backend is asked; the body is not, and it must never seem whole there.
#[track_caller]
fn breaks_off_each(bodies: &[String]) {
    let backend = Backend::silent();
    let engine = Engine::new(backend.address);
    for (index, body) in bodies.iter().enumerate() {
        let answer = exchange(engine.plain, post("Transfer-Encoding: chunked", &format!("{body}{SMUGGLED}")));
        let shown = body.escape_debug();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{shown}: {answer}");
        assert_eq!(fields(&answer, "connection"), ["close"], "{shown}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{shown}: {answer}");
        backend.until_closed(index + 1);
    }
    let received = backend.all_received();
    assert!(!received.contains("smuggled"), "{received}");
    assert!(!received.contains("\r\n0\r\n"), "{received}");
    assert_eq!(backend.connections(), bodies.len());
}

#[test]
fn breaks_off_chunks_with_a_bad_size() {
    let sizes = [
        "+5",
        "-5",
        " 5",
        "5 ",
        "0x5",
        "0_5",
        "",
        "g",
        "00000000000000005",
        "ffffffffffffffffff",
        "5\t",
        "5,5",
    ];
    breaks_off_each(&sizes.map(|size| format!("{size}\r\nhello\r\n0\r\n\r\n")));
}

#[test]
fn breaks_off_chunks_without_their_line_end() {
    breaks_off_each(&[
        "5\r\nhello0\r\n\r\n".to_owned(),
        "5\r\nhelloxx0\r\n\r\n".to_owned(),
        "5\r\nhello\n0\r\n\r\n".to_owned(),
        "5\nhello\r\n0\r\n\r\n".to_owned(),
        "5\rhello\r\n0\r\n\r\n".to_owned(),
        "5\r\nhello\r0\r\n\r\n".to_owned(),
    ]);
}

#[test]
fn breaks_off_chunk_extensions_that_parsers_disagree_about() {
    let extensions = [
        ";a\nb",
        ";a\rb",
        ";a\0b",
        ";a=\"\n\"",
        ";a\n",
        ";(",
        ";\x7f",
        &format!(";a={}", "b".repeat(17 << 10)),
    ];
    breaks_off_each(&extensions.map(|extension| format!("5{extension}\r\nhello\r\n0\r\n\r\n")));
}

#[test]
fn breaks_off_trailers_that_are_no_fields() {
    let trailers = ["no colon", " a: b", "a : b", "a: b\n", "a: \0", "a(: b", ": b"];
    breaks_off_each(&trailers.map(|trailer| format!("5\r\nhello\r\n0\r\n{trailer}\r\n\r\n")));
}

#[test]
fn forwards_no_chunk_extension() {
    let backend = Backend::saying("done");
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send(post("Transfer-Encoding: chunked", "5;a=b;c=\"d e\"\r\nhello\r\n0;last\r\n\r\n"));
    assert_eq!(client.response("POST").text(), "done");
    assert!(
        backend.all_received().ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        "{}",
        backend.all_received()
    );
}

#[test]
fn drops_forbidden_trailers_and_passes_the_others() {
    let backend = Backend::saying("done");
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    let trailers = "X-Sum: 1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: evil\r\n\
                    Authorization: evil\r\nX-Forwarded-For: 6.6.6.6\r\nX-Request-Id: evil\r\nCookie: evil\r\n\
                    Connection: close\r\nX_Forwarded_For: 6.6.6.6\r\n";
    client.send(post("Transfer-Encoding: chunked", &format!("5\r\nhello\r\n0\r\n{trailers}\r\n")));
    assert_eq!(client.response("POST").status, 200);
    let received = backend.all_received();
    assert!(received.ends_with("\r\n0\r\nx-sum: 1\r\n\r\n"), "{received}");
}

#[test]
fn drops_fields_with_an_underscore() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send(get("X_Forwarded_For: 6.6.6.6\r\nContent_Length: 5\r\nX-Kept: yes"));
    let seen = client.response("GET").text();
    assert!(!seen.contains('_'), "{seen}");
    assert_eq!(fields(&seen, "x-kept"), ["yes"]);
}

#[test]
fn removes_what_belongs_to_the_connection() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client
        .send(get("Connection: x-hop, keep-alive, x-forwarded-for, host, x-request-id\r\nX-Hop: secret\r\n\
         Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy: http://evil\r\nTE: gzip"));
    let seen = client.response("GET").text();
    for gone in ["x-hop", "keep-alive", "proxy-connection", "connection", "te", "proxy"] {
        assert_eq!(fields(&seen, gone), [""; 0], "{gone} in {seen}");
    }
    assert_eq!(fields(&seen, "host"), ["a.example"]);
    assert_eq!(fields(&seen, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(fields(&seen, "x-request-id").len(), 1);
}

#[test]
fn strips_the_upgrade_to_h2c() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send(get(
        "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    ));
    let response = client.response("GET");
    assert_eq!(response.status, 200);
    let seen = response.text();
    for gone in ["upgrade", "http2-settings", "connection"] {
        assert_eq!(fields(&seen, gone), [""; 0], "{seen}");
    }
}

#[test]
fn forwards_the_target_that_was_matched() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    for (sent, seen) in [
        ("/a/../b", "/b"),
        ("/%61dmin", "/admin"),
        ("/a/./b?x=/../y", "/a/b?x=/../y"),
        ("http://A.Example/p", "/p"),
        ("/a%2fb", "/a%2Fb"),
    ] {
        let mut client = Client::plain(engine.plain);
        client.send(format!("GET {sent} HTTP/1.1\r\nHost: a.example\r\n\r\n"));
        let head = client.response("GET").text();
        assert!(head.starts_with(&format!("GET {seen} HTTP/1.1\r\nhost: a.example\r\n")), "{sent}: {head}");
    }
}

#[test]
fn consumes_the_body_of_a_get_exactly() {
    let backend = Backend::answering(ok("answer"));
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    let body = "GET /inner HTTP/1.1\r\nhost: a\r\n\r\n";
    client.send(get(&format!("Content-Length: {}", body.len())) + body + &get("X-Second: yes"));
    assert_eq!(client.response("GET").text(), "answer");
    assert_eq!(client.response("GET").text(), "answer");
    let received = backend.all_received();
    assert_eq!(received.matches("x-request-id: ").count(), 2, "two requests: {received}");
    assert_eq!(fields(received.split(body).nth(1).unwrap(), "x-second"), ["yes"]);
}

#[test]
fn never_parses_a_body_as_a_request_after_an_answer_of_its_own() {
    let backend = Backend::saying("never");
    let engine =
        Setup::new(&[backend.address]).routes("[[routes]]\npath = \"/there\"\ncluster = \"web\"").start();
    let answer = exchange(engine.plain, post(&format!("Content-Length: {}", SMUGGLED.len() + 10), SMUGGLED));
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.").count(), 1, "{answer}");
    assert_eq!(backend.connections(), 0);
}

#[test]
fn keeps_the_connection_after_an_answer_of_its_own_to_a_whole_request() {
    let backend = Backend::saying("there");
    let engine =
        Setup::new(&[backend.address]).routes("[[routes]]\npath = \"/there\"\ncluster = \"web\"").start();
    let mut client = Client::plain(engine.plain);
    let response = client.get("/nowhere");
    assert_eq!((response.status, response.reason()), (404, Some("no_route")));
    assert_eq!(client.get("/there").text(), "there");
}

#[test]
fn answers_pipelined_requests_in_order() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    let post = "POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";
    client.send(format!("GET /1 HTTP/1.1\r\nhost: a\r\n\r\n{post}GET /3 HTTP/1.1\r\nhost: a\r\n\r\n"));
    for line in ["GET /1 ", "POST /2 ", "GET /3 "] {
        let seen = client.response("GET").text();
        assert!(seen.starts_with(line), "{seen}");
    }
}

#[test]
fn serves_a_request_however_it_is_cut_into_segments() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    for byte in get("X-Slow: yes").as_bytes() {
        client.send([*byte]);
    }
    assert_eq!(fields(&client.response("GET").text(), "x-slow"), ["yes"]);
}

#[test]
fn closes_after_a_request_that_asks_for_it() {
    let backend = Backend::saying("bye");
    let engine = Engine::new(backend.address);
    for request in [get("Connection: close"), "GET / HTTP/1.0\r\nHost: a\r\n\r\n".to_owned()] {
        let mut client = Client::plain(engine.plain);
        client.send(request);
        let response = client.response("GET");
        assert_eq!((response.text().as_str(), response.field("connection")), ("bye", Some("close")));
        assert_eq!(client.end(), End::Closed);
    }
}

#[test]
fn what_a_client_sends_behind_its_last_request_does_not_cost_it_the_answer() {
    let backend = Backend::saying("bye");
    let engine = Engine::new(backend.address);
    for mut client in [Client::plain(engine.plain), Client::tls(engine.tls)] {
        client.send([get("Connection: close").as_bytes(), &b"x".repeat(256 * 1024)].concat());
        assert_eq!(client.response("GET").text(), "bye");
        assert_eq!(client.end(), End::Closed);
    }
    assert_eq!(backend.all_received().matches("GET ").count(), 2);
}

#[test]
fn keeps_an_http_1_0_connection_that_asks_for_it() {
    let backend = Backend::saying("again");
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
        let response = client.response("GET");
        assert_eq!((response.text().as_str(), response.field("connection")), ("again", Some("keep-alive")));
    }
}
