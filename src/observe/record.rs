//! What is one line of the access log?
//!
//! A record borrows everything from the request it is about and is written straight into the
//! buffer of the worker's log writer: no allocation, no `fmt`.

use std::time::{Duration, SystemTime};

use super::{
    Protocol,
    escape::{Quoted, quoted, quoted_part},
};
use crate::{config::LogFormat, error::Reason};

/// One request that is over, answered or not.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// When the request began.
    pub time: SystemTime,
    pub listener: &'a Quoted,
    /// An address, and an address with a port: the only texts that are not escaped.
    pub client_ip: &'a str,
    pub peer: &'a str,
    pub protocol: Protocol,
    /// `None` on a clear-text listener.
    pub tls: Option<TlsInfo<'a>>,
    /// Empty where the request could not be parsed, as are host and path.
    pub method: &'a str,
    pub host: &'a str,
    pub path: &'a str,
    /// Without the `?`.
    pub query: Option<&'a str>,
    pub route: Option<&'a Quoted>,
    pub cluster: Option<&'a Quoted>,
    /// That of the last attempt.
    pub backend: Option<&'a Quoted>,
    pub status: u16,
    /// Where the answer or the end is ours.
    pub reason: Option<Reason>,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    pub attempts: u32,
    pub duration: Duration,
    /// From the start of the last attempt until the head of its response.
    pub upstream_response: Option<Duration>,
    pub request_id: &'a [u8],
    pub user_agent: Option<&'a [u8]>,
    pub referer: Option<&'a [u8]>,
}

/// What was negotiated on the connection of a request.
#[derive(Clone, Debug)]
pub struct TlsInfo<'a> {
    /// Names of ours, like the next: they need no escaping.
    pub version: &'static str,
    pub cipher: &'static str,
    pub sni: Option<&'a str>,
    pub resumed: bool,
    /// The certificate that the client showed.
    pub client: Option<ClientInfo<'a>>,
}

/// A client certificate that was verified.
#[derive(Clone, Copy, Debug)]
pub struct ClientInfo<'a> {
    /// As in RFC 4514.
    pub subject: &'a str,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: &'a str,
}

impl Record<'_> {
    /// Appends the line without its end.
    pub fn write(&self, format: LogFormat, out: &mut Vec<u8>) {
        match format {
            LogFormat::Json => self.write_json(out),
            LogFormat::Text => self.write_text(out),
        }
    }

    /// Appends one JSON object. What there is none of is `null`, except for `query`, which is left
    /// out; durations are seconds with six decimals.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"time\":\"");
        write_time(self.time, out);
        out.extend_from_slice(b"\",\"listener\":");
        out.extend_from_slice(self.listener.as_bytes());
        out.extend_from_slice(b",\"client_ip\":\"");
        out.extend_from_slice(self.client_ip.as_bytes());
        out.extend_from_slice(b"\",\"peer\":\"");
        out.extend_from_slice(self.peer.as_bytes());
        out.extend_from_slice(b"\",\"protocol\":\"");
        out.extend_from_slice(self.protocol.label().as_bytes());
        out.extend_from_slice(b"\",\"tls\":");
        self.write_tls(out);
        out.extend_from_slice(b",\"method\":");
        quoted(self.method.as_bytes(), out);
        out.extend_from_slice(b",\"host\":");
        quoted(self.host.as_bytes(), out);
        out.extend_from_slice(b",\"path\":");
        quoted(self.path.as_bytes(), out);
        if let Some(query) = self.query {
            out.extend_from_slice(b",\"query\":");
            quoted(query.as_bytes(), out);
        }
        out.extend_from_slice(b",\"route\":");
        write_name_or(NULL, self.route, out);
        out.extend_from_slice(b",\"cluster\":");
        write_name_or(NULL, self.cluster, out);
        out.extend_from_slice(b",\"backend\":");
        write_name_or(NULL, self.backend, out);
        self.write_outcome(out);
        out.extend_from_slice(b",\"request_id\":");
        quoted(self.request_id, out);
        out.extend_from_slice(b",\"user_agent\":");
        write_or(NULL, self.user_agent, out);
        out.extend_from_slice(b",\"referer\":");
        write_or(NULL, self.referer, out);
        out.push(b'}');
    }

    fn write_tls(&self, out: &mut Vec<u8>) {
        let Some(tls) = &self.tls else {
            return out.extend_from_slice(NULL);
        };
        out.extend_from_slice(b"{\"version\":\"");
        out.extend_from_slice(tls.version.as_bytes());
        out.extend_from_slice(b"\",\"cipher\":\"");
        out.extend_from_slice(tls.cipher.as_bytes());
        out.extend_from_slice(b"\",\"sni\":");
        write_or(NULL, tls.sni.map(str::as_bytes), out);
        out.extend_from_slice(if tls.resumed { b",\"resumed\":true" } else { b",\"resumed\":false" });
        if let Some(client) = &tls.client {
            out.extend_from_slice(b",\"client\":{\"subject\":");
            quoted(client.subject.as_bytes(), out);
            out.extend_from_slice(b",\"fingerprint\":");
            quoted(client.fingerprint.as_bytes(), out);
            out.push(b'}');
        }
        out.push(b'}');
    }

    fn write_outcome(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"status\":");
        write_number(self.status, out);
        out.extend_from_slice(b",\"reason\":");
        write_or(NULL, self.reason.map(|reason| reason.code().as_bytes()), out);
        out.extend_from_slice(b",\"bytes_in\":");
        write_number(self.bytes_in, out);
        out.extend_from_slice(b",\"bytes_out\":");
        write_number(self.bytes_out, out);
        out.extend_from_slice(b",\"attempts\":");
        write_number(self.attempts, out);
        out.extend_from_slice(b",\"duration_s\":");
        write_seconds(self.duration, out);
        out.extend_from_slice(b",\"upstream_response_s\":");
        match self.upstream_response {
            Some(took) => write_seconds(took, out),
            None => out.extend_from_slice(NULL),
        }
    }

    /// Appends the same for people: time, client, request, status and duration first, then
    /// `name=value`. Whatever a stranger or the config chose stands in quotation marks and is
    /// escaped as in JSON; what there is none of is `-`.
    pub fn write_text(&self, out: &mut Vec<u8>) {
        write_time(self.time, out);
        out.push(b' ');
        out.extend_from_slice(self.client_ip.as_bytes());
        out.extend_from_slice(b" \"");
        quoted_part(self.method.as_bytes(), out);
        out.push(b' ');
        quoted_part(self.host.as_bytes(), out);
        quoted_part(self.path.as_bytes(), out);
        if let Some(query) = self.query {
            out.push(b'?');
            quoted_part(query.as_bytes(), out);
        }
        out.extend_from_slice(b"\" ");
        write_number(self.status, out);
        out.push(b' ');
        write_seconds(self.duration, out);
        out.extend_from_slice(b"s reason=");
        out.extend_from_slice(self.reason.map_or("-", Reason::code).as_bytes());
        out.extend_from_slice(b" route=");
        write_name_or(DASH, self.route, out);
        out.extend_from_slice(b" cluster=");
        write_name_or(DASH, self.cluster, out);
        out.extend_from_slice(b" backend=");
        write_name_or(DASH, self.backend, out);
        self.write_text_details(out);
    }

    fn write_text_details(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b" upstream_response=");
        match self.upstream_response {
            Some(took) => {
                write_seconds(took, out);
                out.push(b's');
            }
            None => out.extend_from_slice(DASH),
        }
        out.extend_from_slice(b" attempts=");
        write_number(self.attempts, out);
        out.extend_from_slice(b" bytes_in=");
        write_number(self.bytes_in, out);
        out.extend_from_slice(b" bytes_out=");
        write_number(self.bytes_out, out);
        out.extend_from_slice(b" listener=");
        out.extend_from_slice(self.listener.as_bytes());
        out.extend_from_slice(b" peer=");
        out.extend_from_slice(self.peer.as_bytes());
        out.extend_from_slice(b" protocol=");
        out.extend_from_slice(self.protocol.label().as_bytes());
        out.extend_from_slice(b" tls=");
        write_or(DASH, self.tls.as_ref().map(|tls| tls.version.as_bytes()), out);
        out.extend_from_slice(b" request_id=");
        quoted(self.request_id, out);
        out.extend_from_slice(b" user_agent=");
        write_or(DASH, self.user_agent, out);
        out.extend_from_slice(b" referer=");
        write_or(DASH, self.referer, out);
    }
}

const NULL: &[u8] = b"null";
const DASH: &[u8] = b"-";

fn write_or(absent: &[u8], value: Option<&[u8]>, out: &mut Vec<u8>) {
    match value {
        Some(value) => quoted(value, out),
        None => out.extend_from_slice(absent),
    }
}

fn write_name_or(absent: &[u8], name: Option<&Quoted>, out: &mut Vec<u8>) {
    out.extend_from_slice(name.map_or(absent, Quoted::as_bytes));
}

fn write_number(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Six decimals: microseconds, cut off.
fn write_seconds(took: Duration, out: &mut Vec<u8>) {
    write_number(took.as_secs(), out);
    // The one in front, which is cut off, keeps the zeros behind it.
    let mut digits = itoa::Buffer::new();
    out.push(b'.');
    out.extend_from_slice(&digits.format(1_000_000 + took.subsec_micros()).as_bytes()[1..]);
}

/// RFC 3339 in UTC with milliseconds: `2026-08-01T12:34:56.789Z`.
///
/// Computed from scratch each time: that takes a few nanoseconds, no more than to look whether a
/// cached date is still right.
fn write_time(time: SystemTime, out: &mut Vec<u8>) {
    // A clock before 1970 is broken; a line of the log is not the place to say so.
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let days = u32::try_from(since.as_secs() / 86_400).unwrap_or(0);
    let second = u32::try_from(since.as_secs() % 86_400).unwrap_or(0);
    let (year, month, day) = civil_from_days(days);
    let millis = since.subsec_millis();
    let [y1, y2] = two_digits(year / 100 % 100);
    let [y3, y4] = two_digits(year % 100);
    let [m1, m2] = two_digits(month);
    let [d1, d2] = two_digits(day);
    let [h1, h2] = two_digits(second / 3600);
    let [min1, min2] = two_digits(second / 60 % 60);
    let [s1, s2] = two_digits(second % 60);
    let [ms1, ms2] = two_digits(millis / 10);
    let ms3 = two_digits(millis % 10)[1];
    out.extend_from_slice(&[
        y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T', h1, h2, b':', min1, min2, b':', s1, s2, b'.', ms1,
        ms2, ms3, b'Z',
    ]);
}

/// Year, month and day of a day counted from 1970-01-01 in the Gregorian calendar.
///
/// Years begin in March here, so that the leap day is the last of its year; 400 years of 146,097
/// days repeat (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil_from_days(days: u32) -> (u32, u32, u32) {
    let since_march_of_year_0 = days + 719_468;
    let era = since_march_of_year_0 / 146_097;
    let day_of_era = since_march_of_year_0 % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u32::from(month <= 2), month, day)
}

/// `number` is below 100.
fn two_digits(number: u32) -> [u8; 2] {
    let digit = |n: u32| b'0' + u8::try_from(n % 10).unwrap_or(0);
    [digit(number / 10), digit(number)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn name(name: &str) -> &'static Quoted {
        Box::leak(Box::new(Quoted::new(name)))
    }

    fn record() -> Record<'static> {
        Record {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_785_587_696_789),
            listener: name("0.0.0.0:443"),
            client_ip: "203.0.113.7",
            peer: "10.0.0.1:50001",
            protocol: Protocol::H2,
            tls: Some(TlsInfo {
                version: "TLSv1.3",
                cipher: "TLS13_AES_128_GCM_SHA256",
                sni: Some("example.com"),
                resumed: true,
                client: None,
            }),
            method: "GET",
            host: "example.com",
            path: "/a/b",
            query: Some("c=d"),
            route: Some(name("example.com/a")),
            cluster: Some(name("web")),
            backend: Some(name("10.0.0.11:8080")),
            status: 200,
            reason: None,
            bytes_in: 0,
            bytes_out: 1024,
            attempts: 1,
            duration: Duration::from_micros(1_234),
            upstream_response: Some(Duration::from_nanos(12_000_987_654)),
            request_id: b"0123456789abcdef",
            user_agent: Some(b"curl/8.0"),
            referer: None,
        }
    }

    fn refused() -> Record<'static> {
        Record {
            tls: None,
            method: "",
            host: "",
            path: "",
            query: None,
            route: None,
            cluster: None,
            backend: None,
            status: 400,
            reason: Some(Reason::BadRequest),
            attempts: 0,
            upstream_response: None,
            user_agent: None,
            ..record()
        }
    }

    fn json(record: &Record<'_>) -> String {
        let mut out = Vec::new();
        record.write(LogFormat::Json, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn text(record: &Record<'_>) -> String {
        let mut out = Vec::new();
        record.write(LogFormat::Text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_has_every_field_in_the_order_of_the_design() {
        let expected = concat!(
            r#"{"time":"2026-08-01T12:34:56.789Z","listener":"0.0.0.0:443","client_ip":"203.0.113.7","#,
            r#""peer":"10.0.0.1:50001","protocol":"h2","tls":{"version":"TLSv1.3","#,
            r#""cipher":"TLS13_AES_128_GCM_SHA256","sni":"example.com","resumed":true},"method":"GET","#,
            r#""host":"example.com","path":"/a/b","query":"c=d","route":"example.com/a","cluster":"web","#,
            r#""backend":"10.0.0.11:8080","status":200,"reason":null,"bytes_in":0,"bytes_out":1024,"#,
            r#""attempts":1,"duration_s":0.001234,"upstream_response_s":12.000987,"#,
            r#""request_id":"0123456789abcdef","user_agent":"curl/8.0","referer":null}"#,
        );
        assert_eq!(json(&record()), expected);
    }

    #[test]
    fn json_says_null_for_what_there_is_none_of_and_leaves_out_the_query() {
        let expected = concat!(
            r#"{"time":"2026-08-01T12:34:56.789Z","listener":"0.0.0.0:443","client_ip":"203.0.113.7","#,
            r#""peer":"10.0.0.1:50001","protocol":"h2","tls":null,"method":"","host":"","path":"","#,
            r#""route":null,"cluster":null,"backend":null,"status":400,"reason":"bad_request","bytes_in":0,"#,
            r#""bytes_out":1024,"attempts":0,"duration_s":0.001234,"upstream_response_s":null,"#,
            r#""request_id":"0123456789abcdef","user_agent":null,"referer":null}"#,
        );
        assert_eq!(json(&refused()), expected);
    }

    #[test]
    fn text_puts_first_what_people_look_for() {
        let expected = concat!(
            r#"2026-08-01T12:34:56.789Z 203.0.113.7 "GET example.com/a/b?c=d" 200 0.001234s reason=- "#,
            r#"route="example.com/a" cluster="web" backend="10.0.0.11:8080" upstream_response=12.000987s "#,
            r#"attempts=1 bytes_in=0 bytes_out=1024 listener="0.0.0.0:443" peer=10.0.0.1:50001 protocol=h2 "#,
            r#"tls="TLSv1.3" request_id="0123456789abcdef" user_agent="curl/8.0" referer=-"#,
        );
        assert_eq!(text(&record()), expected);
        let expected = concat!(
            r#"2026-08-01T12:34:56.789Z 203.0.113.7 " " 400 0.001234s reason=bad_request route=- cluster=- "#,
            r#"backend=- upstream_response=- attempts=0 bytes_in=0 bytes_out=1024 listener="0.0.0.0:443" "#,
            r#"peer=10.0.0.1:50001 protocol=h2 tls=- request_id="0123456789abcdef" user_agent=- referer=-"#,
        );
        assert_eq!(text(&refused()), expected);
    }

    #[test]
    fn time_is_right_on_the_borders_of_the_calendar() {
        for (millis, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599_007, "2024-12-31T23:59:59.007Z"),
            (1_735_689_600_000, "2025-01-01T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            let mut out = Vec::new();
            write_time(SystemTime::UNIX_EPOCH + Duration::from_millis(millis), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn every_day_until_2500_has_its_date() {
        let is_leap =
            |year: u32| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let mut day = 0;
        for year in 1970..2500 {
            let february = if is_leap(year) { 29 } else { 28 };
            for (month, length) in (1..).zip([31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]) {
                for of_month in 1..=length {
                    assert_eq!(civil_from_days(day), (year, month, of_month));
                    day += 1;
                }
            }
        }
    }

    #[test]
    fn a_clock_before_1970_is_logged_as_1970() {
        let mut out = Vec::new();
        write_time(SystemTime::UNIX_EPOCH - Duration::from_secs(1), &mut out);
        assert_eq!(out, b"1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn the_largest_numbers_fit() {
        let line = json(&Record {
            bytes_in: u64::MAX,
            attempts: u32::MAX,
            duration: Duration::MAX,
            status: u16::MAX,
            ..record()
        });
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["bytes_in"], u64::MAX);
        assert!(line.contains(r#""duration_s":18446744073709551615.999999,"#), "{line}");
    }

    /// Reads a line of the text format: words, with `"…"` as JSON strings in them.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut inside, mut escaped) = (vec![String::new()], false, false);
        for c in line.chars() {
            match c {
                ' ' if !inside => words.push(String::new()),
                _ => words.last_mut().unwrap().push(c),
            }
            inside ^= c == '"' && !escaped;
            escaped = inside && c == '\\' && !escaped;
        }
        words
    }

    fn hostile_text() -> impl Strategy<Value = String> {
        let odd = prop::sample::select(vec![
            "\"",
            "\\",
            "\n",
            "\r\n",
            "\0",
            "\u{1b}[31m",
            "\u{7f}",
            "\u{85}",
            "\u{2028}",
            "\u{202e}",
            "é",
            " ",
            "}",
        ]);
        prop_oneof![prop::collection::vec(odd, 0..12).prop_map(|parts| parts.concat()), any::<String>()]
    }

    proptest! {
        #[test]
        fn no_input_breaks_a_json_line(
            texts in prop::array::uniform8(hostile_text()),
            agent in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
            micros in any::<u32>(),
        ) {
            let [listener, method, host, path, query, route, sni, request_id] = texts.each_ref().map(String::as_str);
            let tls = Some(TlsInfo { version: "TLSv1.2", cipher: "x", sni: Some(sni), resumed: false, client: None });
            let line = json(&Record {
                duration: Duration::from_micros(u64::from(micros)),
                user_agent: agent.as_deref(),
                query: Some(query), route: Some(&Quoted::new(route)), request_id: request_id.as_bytes(),
                listener: &Quoted::new(listener), tls, method, host, path,
                ..record()
            });
            prop_assert!(!line.chars().any(char::is_control));
            let value: Value = serde_json::from_str(&line).unwrap();
            let read = ["listener", "method", "host", "path", "query", "route"].map(|name| value[name].as_str().unwrap());
            prop_assert_eq!(read, [listener, method, host, path, query, route]);
            prop_assert_eq!(&value["tls"]["sni"], sni);
            prop_assert_eq!(&value["request_id"], request_id);
            let lossy = agent.as_deref().map(String::from_utf8_lossy);
            prop_assert_eq!(value["user_agent"].as_str(), lossy.as_deref());
            let duration = format!("\"duration_s\":{}.{:06},", micros / 1_000_000, micros % 1_000_000);
            prop_assert!(line.contains(&duration));
        }

        #[test]
        fn no_input_breaks_a_text_line(
            texts in prop::array::uniform6(hostile_text()),
            agent in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let [listener, method, host, path, route, request_id] = texts.each_ref().map(String::as_str);
            let line = text(&Record {
                method, host, path, query: None, route: Some(&Quoted::new(route)), user_agent: Some(&agent),
                listener: &Quoted::new(listener), request_id: request_id.as_bytes(),
                ..record()
            });
            prop_assert!(!line.chars().any(char::is_control));
            let words = words(&line);
            prop_assert_eq!(words.len(), words_of_a_plain_line());
            let string = |n: usize| {
                let word = &words[n];
                serde_json::from_str::<String>(&word[word.find('"').unwrap()..]).unwrap()
            };
            prop_assert_eq!(string(2), format!("{method} {host}{path}"));
            prop_assert_eq!(string(6), route);
            prop_assert_eq!(string(18), String::from_utf8_lossy(&agent).into_owned());
        }
    }

    fn words_of_a_plain_line() -> usize {
        words(&text(&record())).len()
    }
}
