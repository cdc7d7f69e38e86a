//! The fields that say who asks, and through whom: ours alone, unless a trusted peer vouches.

use crate::support::{
    backend::Backend,
    client::{Client, fields},
    engine::{Engine, Setup},
    h2::{H2, H2Backend, block_on, one, request},
    raw_h2::RawH2,
    until,
};

/// What a client that lies would send.
const CLAIMS: [(&str, &str); 6] = [
    ("x-forwarded-for", "6.6.6.6, 7.7.7.7"),
    ("x-forwarded-proto", "gopher"),
    ("x-forwarded-host", "evil.example"),
    ("x-request-id", "evil"),
    ("forwarded", "for=6.6.6.6"),
    ("via", "1.0 earlier"),
];

fn claims() -> String {
    let lines = CLAIMS.map(|(name, value)| format!("{name}: {value}\r\n"));
    lines.concat()
}

/// What the backend sees of an HTTP/1 request with these lines.
#[track_caller]
fn over_h1(mut client: Client, host: &str, lines: &str) -> String {
    client.send(format!("GET /p HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n"));
    client.response("GET").text()
}

/// What the backend sees of an HTTP/2 request with these fields.
fn over_h2(engine: &Engine, claims: &[(&str, &str)]) -> String {
    block_on(async {
        let mut asked = request("GET", "/p");
        for (name, value) in claims {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            asked.headers_mut().append(name, value.parse().unwrap());
        }
        H2::connect(engine.tls).await.ask(asked).await.text()
    })
}

#[track_caller]
fn assert_untrusted(seen: &str, proto: &str, host: &str, via: &str) {
    assert_eq!(fields(seen, "x-forwarded-for"), ["127.0.0.1"], "{seen}");
    assert_eq!(fields(seen, "x-forwarded-proto"), [proto], "{seen}");
    assert_eq!(fields(seen, "x-forwarded-host"), [host], "{seen}");
    assert_eq!(fields(seen, "forwarded"), [""; 0], "{seen}");
    assert_eq!(fields(seen, "host"), [host], "{seen}");
    assert_eq!(*fields(seen, "via").last().unwrap(), via, "{seen}");
    let [id] = fields(seen, "x-request-id")[..] else { panic!("not one id: {seen}") };
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
}

#[test]
fn replaces_what_an_untrusted_client_claims() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    for lines in [String::new(), claims()] {
        let seen = over_h1(Client::plain(engine.plain), "Site.Example:8080", &lines);
        assert_untrusted(&seen, "http", "site.example:8080", "1.1 portcullis");
        let seen = over_h1(Client::tls(engine.tls), "site.example", &lines);
        assert_untrusted(&seen, "https", "site.example", "1.1 portcullis");
    }
    for claims in [&[][..], &CLAIMS] {
        assert_untrusted(&over_h2(&engine, claims), "https", "site.example", "2 portcullis");
    }
}

#[test]
fn keeps_the_via_of_earlier_hops() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    let seen = over_h1(Client::plain(engine.plain), "a", "Via: 1.0 earlier\r\n");
    assert_eq!(fields(&seen, "via"), ["1.0 earlier", "1.1 portcullis"]);
}

#[test]
fn believes_a_trusted_peer() {
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address]).top("trusted_proxies = [\"127.0.0.0/8\"]").start();
    let seen = [
        over_h1(Client::plain(engine.plain), "a.example", &claims()),
        over_h1(Client::tls(engine.tls), "a.example", &claims()),
        over_h2(&engine, &CLAIMS),
    ];
    for seen in seen {
        assert_eq!(fields(&seen, "x-forwarded-for"), ["6.6.6.6, 7.7.7.7, 127.0.0.1"], "{seen}");
        assert_eq!(fields(&seen, "x-forwarded-proto"), ["gopher"], "{seen}");
        assert_eq!(fields(&seen, "x-forwarded-host"), ["evil.example"], "{seen}");
        assert_eq!(fields(&seen, "x-request-id"), ["evil"], "{seen}");
        assert_eq!(fields(&seen, "forwarded"), [""; 0], "{seen}");
    }
    let log = engine.stop();
    assert_eq!(log.len(), 3);
    for line in &log {
        assert_eq!(line["client_ip"], "7.7.7.7");
        assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
        assert_eq!(line["request_id"], "evil");
    }
}

#[test]
fn sets_what_a_trusted_peer_left_out() {
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address]).top("trusted_proxies = [\"127.0.0.1\"]").start();
    let seen = over_h1(Client::plain(engine.plain), "a.example", "");
    assert_untrusted(&seen, "http", "a.example", "1.1 portcullis");
}

#[test]
fn trusts_by_listener() {
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address])
        .top("trusted_proxies = [\"127.0.0.1\"]")
        .plain("trusted_proxies = [\"10.0.0.0/8\"]")
        .start();
    let seen = over_h1(Client::plain(engine.plain), "a.example", &claims());
    assert_untrusted(&seen, "http", "a.example", "1.1 portcullis");
    let seen = over_h1(Client::tls(engine.tls), "a.example", &claims());
    assert_eq!(fields(&seen, "x-request-id"), ["evil"]);
}

/// Names that backends believe, in spellings that clients have tried.
const IDENTITIES: [&str; 16] = [
    "x-real-ip",
    "X-Real-IP",
    "True-Client-IP",
    "client-ip",
    "x-client-ip",
    "x-forwarded-port",
    "X-Forwarded-Prefix",
    "x-forwarded-client-cert",
    "x-original-url",
    "x-rewrite-url",
    "cf-connecting-ip",
    "Fastly-Client-IP",
    "ssl-client-verify",
    "client-cert",
    "remote-user",
    "x-remote-group",
];

fn identities() -> String {
    IDENTITIES.iter().fold(String::from("x-kept: 1\r\n"), |lines, name| lines + name + ": claimed\r\n")
}

fn lower_identities() -> Vec<(String, &'static str)> {
    let names = IDENTITIES.iter().map(|name| (name.to_ascii_lowercase(), "claimed"));
    names.chain([("x-kept".to_owned(), "1")]).collect()
}

#[test]
fn drops_what_only_a_proxy_may_say_of_the_client() {
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address]).plain("identity_fields = [\"X-Tenant\", \"x-re*\"]").start();
    // The list of the file.
    let pairs = lower_identities();
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    for seen in [over_h1(Client::tls(engine.tls), "a", &identities()), over_h2(&engine, &pairs)] {
        assert!(!seen.contains("claimed"), "{seen}");
        assert_eq!(fields(&seen, "x-kept"), ["1"]);
    }
    // That of the listener.
    let lines = "x-tenant: claimed\r\nx.tenant: claimed\r\nx-real-ip: claimed\r\nTrue-Client-IP: 6.6.6.6\r\n";
    let seen = over_h1(Client::plain(engine.plain), "a", lines);
    assert!(!seen.contains("claimed"), "{seen}");
    assert_eq!(fields(&seen, "true-client-ip"), ["6.6.6.6"]);
}

#[test]
fn takes_from_a_trusted_peer_what_it_says_of_the_client() {
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address]).top("trusted_proxies = [\"::ffff:127.0.0.0/104\"]").start();
    let pairs = lower_identities();
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    for seen in [over_h1(Client::plain(engine.plain), "a", &identities()), over_h2(&engine, &pairs)] {
        assert_eq!(seen.matches("claimed").count(), IDENTITIES.len(), "{seen}");
    }
}

/// What the backend gets of a body with these trailers.
fn sent_with_trailers(top: &str, trailers: &str) -> String {
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address]).top(top).start();
    let mut client = Client::plain(engine.plain);
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send(format!("3\r\nabc\r\n0\r\n{trailers}\r\n"));
    assert_eq!(client.response("POST").status, 200);
    backend.received(0)
}

#[test]
fn drops_identities_in_trailers_whoever_sends_them() {
    let seen = sent_with_trailers("trusted_proxies = [\"127.0.0.1\"]", &identities());
    assert!(seen.contains("x-kept: 1") && !seen.contains("claimed"), "{seen}");
}

#[test]
fn drops_identities_of_the_list_in_trailers_too() {
    let trailers = "X-Tenant: claimed\r\nx-kept: 1\r\nx.tenant: claimed\r\n";
    let seen = sent_with_trailers("identity_fields = [\"x-tenant\"]", trailers);
    assert!(seen.contains("x-kept: 1") && !seen.contains("claimed"), "{seen}");
}

/// A proxy in front says behind the client's own word who the client is: of half a head only the client's is left.
#[test]
fn a_head_that_was_refused_names_no_client() {
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address]).top("trusted_proxies = [\"127.0.0.1\"]").start();
    let mut client = Client::plain(engine.plain);
    client.send(
        "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 198.51.100.7\r\nexpect: x\r\nx-forwarded-for: 203.0.113.5\r\n\r\n",
    );
    assert_eq!(client.response("GET").status, 400);
    let mut over_h2 = RawH2::connect(engine.tls);
    let start = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")];
    let (theirs, ours) = (("x-forwarded-for", "198.51.100.7"), ("x-forwarded-for", "203.0.113.5"));
    over_h2.headers(1, true, &[&start[..], &[theirs], &[("x-a", "b"); 101], &[ours]].concat());
    engine.until("both are on record", |metrics| metrics.requests() == 2);
    drop((client, over_h2));
    engine.settled();
    for line in engine.stop() {
        assert_eq!(line["client_ip"], "127.0.0.1", "{line}");
    }
}

#[test]
fn an_empty_list_drops_none() {
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address]).top("identity_fields = []").start();
    let seen =
        over_h1(Client::plain(engine.plain), "a", "x-real-ip: 6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\n");
    assert_eq!(fields(&seen, "x-real-ip"), ["6.6.6.6"]);
    assert_eq!(fields(&seen, "x-forwarded-for"), ["127.0.0.1"], "that one is ours");
}

/// The fields that tell of the client, as a backend sees them.
fn told(seen: &str) -> [String; 4] {
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"]
        .map(|name| fields(seen, name).join(" | "))
}

const CHAIN: &str = "x-forwarded-for: 6.6.6.6, 7.7.7.7\r\nx-forwarded-proto: gopher\r\nx-forwarded-host: b.example\r\n\
                     forwarded: for=8.8.8.8;by=_b\r\nForwarded: for=\"[2001:db8::9]:80\";proto=http\r\n";

#[test]
fn sets_the_fields_of_the_policy_and_no_others() {
    let backend = Backend::echo();
    let x = ["127.0.0.1", "http", "a.example:81", ""];
    let rfc = ["", "", "", "for=127.0.0.1;host=\"a.example:81\";proto=http"];
    let both = ["127.0.0.1", "http", "a.example:81", rfc[3]];
    let vouched_x = ["6.6.6.6, 7.7.7.7, 127.0.0.1", "gopher", "b.example", ""];
    let chain = format!("for=8.8.8.8;by=_b, for=\"[2001:db8::9]:80\";proto=http, {}", rfc[3]);
    let vouched_rfc = ["", "", "", chain.as_str()];
    let vouched_both = [vouched_x[0], vouched_x[1], vouched_x[2], chain.as_str()];
    for (policy, own, vouched, client) in [
        ("x_forwarded", x, vouched_x, "7.7.7.7"),
        ("rfc7239", rfc, vouched_rfc, "2001:db8::9"),
        ("both", both, vouched_both, "7.7.7.7"),
        ("off", [""; 4], [""; 4], "7.7.7.7"),
    ] {
        // Over the whole file, and over one listener.
        for (top, plain) in [(policy, None), ("both", Some(policy))] {
            let start = |trusted: &str| {
                let setup = Setup::new(&[backend.address]).top(format!("forwarded = \"{top}\"")).top(trusted);
                match plain {
                    Some(policy) => setup.plain(format!("forwarded = \"{policy}\"")).start(),
                    None => setup.start(),
                }
            };
            let engine = start("");
            let seen = over_h1(Client::plain(engine.plain), "a.example:81", CHAIN);
            assert_eq!(told(&seen), own, "{policy}: {seen}");
            assert_eq!(fields(&seen, "via"), ["1.1 portcullis"]);
            assert_eq!(fields(&seen, "x-request-id").len(), 1);
            let engine = start("trusted_proxies = [\"127.0.0.1\"]");
            let seen = over_h1(Client::plain(engine.plain), "a.example:81", CHAIN);
            assert_eq!(told(&seen), vouched, "{policy}: {seen}");
            let seen = over_h1(Client::plain(engine.plain), "a.example:81", "");
            assert_eq!(told(&seen), own, "{policy}: {seen}");
            let log = engine.stop();
            assert_eq!((&log[0]["client_ip"], &log[1]["client_ip"]), (&client.into(), &"127.0.0.1".into()));
        }
    }
}

#[test]
fn forwarded_says_https_and_quotes_ipv6() {
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address])
        .top("forwarded = \"rfc7239\"")
        .plain("proxy_protocol.from = [\"127.0.0.1\"]")
        .start();
    let seen = over_h1(Client::tls(engine.tls), "a.example", "");
    assert_eq!(told(&seen)[3], "for=127.0.0.1;host=a.example;proto=https");
    assert_eq!(told(&over_h2(&engine, &CLAIMS))[3], "for=127.0.0.1;host=site.example;proto=https");
    let mut client = Client::plain(engine.plain);
    client.send("PROXY TCP6 2001:db8::1 ::1 1 2\r\nGET / HTTP/1.0\r\n\r\n");
    assert_eq!(told(&client.response("GET").text())[3], "for=\"[2001:db8::1]\";proto=http");
}

#[test]
fn a_malformed_chain_is_cut_off_before_ours() {
    let backend = Backend::echo();
    let engine = Setup::new(&[backend.address])
        .top("forwarded = \"rfc7239\"")
        .top("trusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]")
        .start();
    let ours = "for=127.0.0.1;host=a;proto=http";
    for (chain, expected, client) in [
        ("for=6.6.6.6, for=\", for=1.2.3.4", "for=1.2.3.4, ", "1.2.3.4"),
        ("for=6.6.6.6, oops, for=10.0.0.9", "for=10.0.0.9, ", "10.0.0.9"),
        ("for=6.6.6.6, for=unknown, for=10.0.0.9", "for=6.6.6.6, for=unknown, for=10.0.0.9, ", "10.0.0.9"),
        ("for=\"", "", "127.0.0.1"),
        ("for=2001:db8::1", "", "127.0.0.1"),
    ] {
        let seen = over_h1(Client::plain(engine.plain), "a", &format!("forwarded: {chain}\r\n"));
        assert_eq!(told(&seen)[3], format!("{expected}{ours}"), "{chain}");
        until("the line", || engine.log().last().is_some_and(|line| line["client_ip"] == client));
    }
}

#[test]
fn names_the_same_request_id_in_log_and_request() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    let ids: Vec<String> =
        (0..3).map(|_| fields(&client.get("/").text(), "x-request-id")[0].to_owned()).collect();
    drop(client);
    let logged: Vec<String> =
        engine.stop().iter().map(|line| line["request_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, logged);
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
}

#[test]
fn says_the_same_to_an_http2_backend() {
    let backend = H2Backend::mirror();
    let engine = Setup::new(&[backend.address]).cluster("protocol = \"h2\"").start();
    let mut client = Client::plain(engine.plain);
    client.send(format!(
        "GET /p?q HTTP/1.1\r\nHost: a.example:81\r\n{}Connection: x-hop\r\nX-Hop: 1\r\n\r\n",
        claims()
    ));
    assert_eq!(client.response("GET").status, 200);
    let seen = &backend.requests()[0];
    assert_eq!(seen.uri.to_string(), "http://a.example:81/p?q");
    for (name, value) in [
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("a.example:81")),
        ("forwarded", None),
        ("x-hop", None),
        ("host", None),
        ("connection", None),
    ] {
        assert_eq!(one(&seen.headers, name), value, "{name}");
    }
    assert_eq!(one(&seen.headers, "x-request-id").unwrap().len(), 32);
}

#[test]
fn names_the_backend_to_it_where_the_client_named_no_host() {
    let backend = Backend::echo();
    let engine = Engine::new(backend.address);
    let mut client = Client::plain(engine.plain);
    client.send("GET / HTTP/1.0\r\n\r\n");
    let seen = client.response("GET").text();
    assert_eq!(fields(&seen, "host"), [backend.address.to_string()]);
    assert_eq!(fields(&seen, "via"), ["1.0 portcullis"]);
    assert_eq!(fields(&seen, "x-forwarded-host"), [""; 0]);
}

#[test]
fn routes_by_host_and_path() {
    let (site, api, other) = (Backend::saying("site"), Backend::saying("api"), Backend::saying("other"));
    let routes = "[[routes]]\nhost = \"site.example\"\ncluster = \"web\"\n\
                  [[routes]]\nhost = \"site.example\"\npath = \"/api\"\ncluster = \"api\"\n\
                  [[routes]]\nhost = \"*.example\"\ncluster = \"other\"";
    let engine = Setup::new(&[site.address])
        .routes(routes)
        .more(&format!("[clusters.api]\nhealth = false\nbackends = [\"{}\"]", api.address))
        .more(&format!("[clusters.other]\nhealth = false\nbackends = [\"{}\"]", other.address))
        .start();
    let mut client = Client::plain(engine.plain);
    for (host, path, expected) in [
        ("site.example", "/", "site"),
        ("SITE.example.", "/api", "api"),
        ("site.example:80", "/api/x?y", "api"),
        ("site.example", "/apix", "site"),
        ("site.example", "/x/../api", "api"),
        ("deep.site.example", "/api", "other"),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.response("GET").text(), expected, "{host}{path}");
    }
    client.send("GET / HTTP/1.1\r\nHost: example\r\n\r\n");
    assert_eq!(client.response("GET").reason(), Some("no_route"));
}

#[test]
fn redirects_to_https() {
    let backend = Backend::saying("never");
    let engine = Setup::new(&[backend.address]).plain("redirect_to_https = true").start();
    let mut client = Client::plain(engine.plain);
    client.send("POST /a?b=c HTTP/1.1\r\nHost: site.example:80\r\nContent-Length: 0\r\n\r\n");
    let answer = client.response("POST");
    assert_eq!((answer.status, answer.reason()), (308, Some("redirect_to_https")));
    let location = answer.field("location").unwrap();
    assert!(location.starts_with("https://site.example") && location.ends_with("/a?b=c"), "{location}");
    assert_eq!(location, format!("https://site.example:{}/a?b=c", engine.tls.port()));
    assert_eq!(backend.connections(), 0);
}

#[test]
fn answers_in_json_where_it_is_asked_for() {
    let backend = Backend::saying("never");
    let engine =
        Setup::new(&[backend.address]).routes("[[routes]]\npath = \"/x\"\ncluster = \"web\"").start();
    let mut client = Client::plain(engine.plain);
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n\r\n");
    let answer = client.response("GET");
    assert_eq!(answer.field("content-type"), Some("application/json"));
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["reason"], "no_route");
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response("HEAD").reason(), Some("no_route"));
    assert_eq!(client.get("/").reason(), Some("no_route"), "a HEAD has no body");
}
