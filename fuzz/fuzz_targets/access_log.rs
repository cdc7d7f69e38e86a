//! Lines of the access log: whatever a stranger sends, one line, valid JSON, nothing that a
//! terminal acts upon.
#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use portcullis::{
    config::LogFormat,
    observe::{Protocol, Quoted, Record, TlsInfo},
};

// User agent, referer, server name, host, path and query, separated by 0xFE, which is in no text.
fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == 0xfe);
    let (user_agent, referer) = (parts.next(), parts.next());
    let mut text = || parts.next().map(String::from_utf8_lossy);
    let (sni, host, path, query) = (text(), text(), text(), text());
    let record = Record {
        time: UNIX_EPOCH + Duration::from_secs(data.len() as u64 * 86_399),
        listener: &Quoted::new("public"),
        client_ip: "192.0.2.1",
        peer: "192.0.2.1:4711",
        protocol: Protocol::H2,
        tls: Some(TlsInfo { version: "1.3", cipher: "x", sni: sni.as_deref(), resumed: false, client: None }),
        method: "GET",
        host: host.as_deref().unwrap_or_default(),
        path: path.as_deref().unwrap_or_default(),
        query: query.as_deref(),
        route: None,
        cluster: None,
        backend: None,
        status: 200,
        reason: None,
        bytes_in: 1,
        bytes_out: u64::MAX,
        attempts: 1,
        duration: Duration::from_micros(data.len() as u64),
        upstream_response: None,
        request_id: b"0123456789abcdef0123456789abcdef",
        user_agent,
        referer,
    };
    let mut line = Vec::new();
    record.write(LogFormat::Json, &mut line);
    check_line(&line);
    let object: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
    let is = |key: &str, bytes: Option<&[u8]>| {
        let expected = bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert_eq!(object[key].as_str(), expected.as_deref(), "{key}");
    };
    is("user_agent", user_agent);
    is("referer", referer);
    is("host", Some(record.host.as_bytes()));
    is("path", Some(record.path.as_bytes()));
    is("query", query.as_ref().map(|query| query.as_bytes()));
    assert_eq!(object["tls"]["sni"].as_str(), sni.as_deref());

    line.clear();
    record.write(LogFormat::Text, &mut line);
    check_line(&line);
});

fn check_line(line: &[u8]) {
    let line = std::str::from_utf8(line).expect("UTF-8");
    let turns = |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    assert!(!line.chars().any(|c| c.is_control() || turns(c)), "{line:?}");
}
