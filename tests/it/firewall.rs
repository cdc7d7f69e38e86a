//! The firewall: lists, rates and bans as clients and operators see them.

use std::fs;

use serde_json::Value;

use crate::support::{
    backend::Backend,
    client::Client,
    engine::{Engine, Setup},
    h2::{H2, block_on, request},
    until,
};

/// A trusted proxy on the loopback speaks for this client.
fn ask_as(engine: &Engine, client_ip: &str, path: &str, more: &str) -> (u16, Option<String>, Option<String>) {
    let mut client = Client::plain(engine.plain);
    client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {client_ip}\r\n{more}\r\n"));
    let answer = client.response("GET");
    (answer.status, answer.reason().map(str::to_owned), answer.field("retry-after").map(str::to_owned))
}

fn behind_a_proxy(backend: &Backend) -> Setup {
    Setup::new(&[backend.address]).top("trusted_proxies = [\"127.0.0.1\"]")
}

#[test]
fn a_denied_peer_is_closed_before_tls_and_a_dry_run_only_counts() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address])
        .more("[firewall]\ndeny = [\"127.0.0.0/8\"]")
        .plain("firewall.dry_run = true")
        .start();
    let mut client = Client::plain(engine.tls);
    client.try_send("\x16\x03\x01\x02\x00");
    client.end();
    assert_eq!(Client::plain(engine.plain).get("/").status, 200);
    let metrics = engine.settled();
    assert_eq!(metrics.sum("portcullis_rejections_total", &[("listener", "tls"), ("reason", "denied")]), 1);
    assert_eq!(metrics.sum("portcullis_rejections_total", &[("listener", "plain")]), 0);
    assert_eq!(
        metrics.sum("portcullis_firewall_dry_run_total", &[("listener", "plain"), ("reason", "denied")]),
        1
    );
    assert_eq!(metrics.sum("portcullis_tls_handshakes_total", &[]), 0);
}

#[test]
fn a_forwarded_client_is_looked_up_in_the_lists_of_listener_and_route() {
    let backend = Backend::saying("ok");
    let engine = behind_a_proxy(&backend)
        .more("[firewall]\ndeny = [\"192.0.2.0/24\", \"2001:db8::/32\"]\nadmit = [\"192.0.2.7\"]")
        .routes(
            "[[routes]]\ncluster = \"web\"\n[[routes]]\npath = \"/admin\"\ncluster = \"web\"\n\
             firewall = { default = \"deny\", admit = [\"10.0.0.0/8\"] }",
        )
        .start();
    let denied = || (403, Some("denied".to_owned()), None);
    assert_eq!(ask_as(&engine, "192.0.2.1", "/", ""), denied());
    assert_eq!(ask_as(&engine, "2001:db8::1", "/", ""), denied());
    assert_eq!(ask_as(&engine, "192.0.2.7", "/", "").0, 200);
    assert_eq!(ask_as(&engine, "192.0.2.7", "/admin/users", ""), denied());
    assert_eq!(ask_as(&engine, "10.1.1.1", "/admin/users", "").0, 200);
    assert_eq!(engine.settled().sum("portcullis_rejections_total", &[("reason", "denied")]), 3);
}

#[test]
fn rate_limits_answer_429_with_retry_after_on_both_versions() {
    let backend = Backend::saying("ok");
    let engine = behind_a_proxy(&backend)
        .more("[firewall]\nrate_limits = [{ rate = \"3/m\" }]")
        .routes(
            "[[routes]]\ncluster = \"web\"\n[[routes]]\npath = \"/login\"\ncluster = \"web\"\n\
             firewall.rate_limits = [{ key = \"header:x-user\", rate = \"1/h\" }]",
        )
        .start();
    for _ in 0..3 {
        assert_eq!(ask_as(&engine, "10.0.0.1", "/", "").0, 200);
    }
    let limited = |seconds: &str| (429, Some("rate_limited".to_owned()), Some(seconds.to_owned()));
    assert_eq!(ask_as(&engine, "10.0.0.1", "/", ""), limited("20"));
    assert_eq!(ask_as(&engine, "10.0.0.2", "/login", "x-user: eve\r\n").0, 200);
    assert_eq!(ask_as(&engine, "10.0.0.3", "/login", "x-user: eve\r\n"), limited("3600"));
    assert_eq!(ask_as(&engine, "10.0.0.3", "/login", "x-user: bob\r\n").0, 200);
    let answer = block_on(async {
        let mut asked = request("GET", "/");
        asked.headers_mut().insert("x-forwarded-for", "10.0.0.1".parse().unwrap());
        H2::connect(engine.tls).await.ask(asked).await
    });
    assert_eq!(answer.status, 200, "a limit is the listener's own");
}

#[test]
fn connections_beyond_their_rate_are_closed() {
    let backend = Backend::saying("ok");
    let engine =
        Setup::new(&[backend.address]).plain("firewall.connection_rate = { rate = \"2/h\" }").start();
    for _ in 0..2 {
        assert_eq!(Client::plain(engine.plain).get("/").status, 200);
    }
    let mut third = Client::plain(engine.plain);
    third.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    third.end();
    let metrics = engine.settled();
    assert_eq!(
        metrics.sum("portcullis_rejections_total", &[("listener", "plain"), ("reason", "rate_limited")]),
        1
    );
    assert_eq!(metrics.sum("portcullis_downstream_connections_total", &[("listener", "plain")]), 2);
}

#[test]
fn nobody_is_banned_for_a_limit_that_others_have_used_up() {
    let backend = Backend::saying("ok");
    let limits =
        "rate_limits = [{ key = \"route\", rate = \"1/h\" }, { key = \"header:x-key\", rate = \"1/h\" }]";
    let engine =
        behind_a_proxy(&backend).more(&format!("[firewall]\n{limits}\n[firewall.bans]\nafter = 1")).start();
    assert_eq!(ask_as(&engine, "10.0.0.1", "/", "x-key: a\r\n").0, 200);
    for _ in 0..3 {
        assert_eq!(ask_as(&engine, "10.0.0.2", "/", "x-key: a\r\n").1.as_deref(), Some("rate_limited"));
    }
    assert_eq!(engine.admin("/bans").1, "[]\n");
}

#[test]
fn a_client_that_is_rejected_too_often_is_banned_until_the_ban_is_lifted() {
    let backend = Backend::saying("ok");
    let engine = behind_a_proxy(&backend).more("[firewall.bans]\nafter = 3").start();
    for _ in 0..3 {
        assert_eq!(ask_as(&engine, "10.0.0.1", "/", "te\u{0}: x\r\n").0, 400);
    }
    // What the proxy itself got wrong is nobody's client.
    assert_eq!(engine.admin("/bans").1, "[]\n");
    let mut kept = Client::plain(engine.plain);
    for _ in 0..3 {
        let traced = "TRACE / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.0.0.1\r\n\r\n";
        let mut client = Client::plain(engine.plain);
        client.send(traced);
        assert_eq!(client.response("TRACE").status, 405);
    }
    kept.send("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.0.0.1\r\n\r\n");
    let answer = kept.response("GET");
    assert_eq!((answer.status, answer.reason()), (403, Some("banned")));
    assert_eq!(ask_as(&engine, "10.0.0.2", "/", "").0, 200);
    let bans: Value = serde_json::from_str(&engine.admin("/bans").1).unwrap();
    assert_eq!(bans[0]["address"], "10.0.0.1");
    assert!(bans[0]["seconds_left"].as_f64().unwrap() > 500.0, "{bans}");
    let delete = |address: &str| {
        let mut client = Client::plain(engine.admin);
        client.send(format!("DELETE /bans/{address} HTTP/1.1\r\nhost: admin\r\n\r\n"));
        client.response("DELETE").status
    };
    assert_eq!([delete("10.0.0.1"), delete("10.0.0.1"), delete("nobody")], [200, 404, 400]);
    assert_eq!(ask_as(&engine, "10.0.0.1", "/", "").0, 200);
}

#[test]
fn a_changed_list_comes_into_force_and_a_broken_one_does_not() {
    let backend = Backend::saying("ok");
    let engine = behind_a_proxy(&backend)
        .more("[firewall]\ndeny_files = [\"blocked.txt\"]")
        .file("blocked.txt", "192.0.2.1\n")
        .start();
    let file = engine.log_file().with_file_name("blocked.txt");
    let status = |client: &str| ask_as(&engine, client, "/", "").0;
    assert_eq!([status("192.0.2.1"), status("192.0.2.2")], [403, 200]);
    fs::write(&file, "192.0.2.2 # moved\n").unwrap();
    until("the list is in force", || status("192.0.2.2") == 403);
    assert_eq!(status("192.0.2.1"), 200);
    fs::write(&file, "192.0.2.0/33\n").unwrap();
    let failed = [("result", "failed")];
    engine.until("the list is refused", |metrics| {
        metrics.sum("portcullis_firewall_list_loads_total", &failed) == 1
    });
    assert_eq!([status("192.0.2.1"), status("192.0.2.2")], [200, 403]);
    assert_eq!(engine.settled().sum("portcullis_firewall_networks", &[]), 1);
}
