//! What is one line of the access log?
//!
//! A record borrows everything from the request it is about and is written straight into the
//! buffer of the worker's log writer: no allocation, no `fmt` except for IPv6 addresses.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use super::{
    Protocol,
    escape::{quoted, quoted_part},
};
use crate::{config::LogFormat, error::Reason};

/// One request that is over, answered or not.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// When the request began.
    pub time: SystemTime,
    pub listener: &'a str,
    pub client_ip: IpAddr,
    pub peer: SocketAddr,
    pub protocol: Protocol,
    /// `None` on a clear-text listener.
    pub tls: Option<TlsInfo<'a>>,
    /// Empty where the request could not be parsed, as are host and path.
    pub method: &'a str,
    pub host: &'a str,
    pub path: &'a str,
    /// Without the `?`.
    pub query: Option<&'a str>,
    pub route: Option<&'a str>,
    pub cluster: Option<&'a str>,
    /// That of the last attempt.
    pub backend: Option<&'a str>,
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
    pub request_id: &'a str,
    pub user_agent: Option<&'a [u8]>,
    pub referer: Option<&'a [u8]>,
}

/// What was negotiated on the connection of a request.
#[derive(Clone, Debug)]
pub struct TlsInfo<'a> {
    pub version: &'a str,
    pub cipher: &'a str,
    pub sni: Option<&'a str>,
    pub resumed: bool,
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
        quoted(self.listener.as_bytes(), out);
        out.extend_from_slice(b",\"client_ip\":\"");
        write_ip(self.client_ip, out);
        out.extend_from_slice(b"\",\"peer\":\"");
        write_address(self.peer, out);
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
        write_or(NULL, self.route.map(str::as_bytes), out);
        out.extend_from_slice(b",\"cluster\":");
        write_or(NULL, self.cluster.map(str::as_bytes), out);
        out.extend_from_slice(b",\"backend\":");
        write_or(NULL, self.backend.map(str::as_bytes), out);
        self.write_outcome(out);
        out.extend_from_slice(b",\"request_id\":");
        quoted(self.request_id.as_bytes(), out);
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
        out.extend_from_slice(b"{\"version\":");
        quoted(tls.version.as_bytes(), out);
        out.extend_from_slice(b",\"cipher\":");
        quoted(tls.cipher.as_bytes(), out);
        out.extend_from_slice(b",\"sni\":");
        write_or(NULL, tls.sni.map(str::as_bytes), out);
        out.extend_from_slice(if tls.resumed { b",\"resumed\":true}" } else { b",\"resumed\":false}" });
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
        write_ip(self.client_ip, out);
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
        write_or(DASH, self.route.map(str::as_bytes), out);
        out.extend_from_slice(b" cluster=");
        write_or(DASH, self.cluster.map(str::as_bytes), out);
        out.extend_from_slice(b" backend=");
        write_or(DASH, self.backend.map(str::as_bytes), out);
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
        quoted(self.listener.as_bytes(), out);
        out.extend_from_slice(b" peer=");
        write_address(self.peer, out);
        out.extend_from_slice(b" protocol=");
        out.extend_from_slice(self.protocol.label().as_bytes());
        out.extend_from_slice(b" tls=");
        write_or(DASH, self.tls.as_ref().map(|tls| tls.version.as_bytes()), out);
        out.extend_from_slice(b" request_id=");
        quoted(self.request_id.as_bytes(), out);
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

fn write_number(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Six decimals: microseconds, cut off.
fn write_seconds(took: Duration, out: &mut Vec<u8>) {
    write_number(took.as_secs(), out);
    let micros = took.subsec_micros();
    out.push(b'.');
    out.extend_from_slice(&two_digits(micros / 10_000));
    out.extend_from_slice(&two_digits(micros / 100 % 100));
    out.extend_from_slice(&two_digits(micros % 100));
}

fn write_ip(ip: IpAddr, out: &mut Vec<u8>) {
    // An IPv4 client of an IPv6 socket is the same client.
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            write_number(a, out);
            for octet in [b, c, d] {
                out.push(b'.');
                write_number(octet, out);
            }
        }
        IpAddr::V6(ip) => write!(out, "{ip}").expect("a vector takes all"),
    }
}

fn write_address(address: SocketAddr, out: &mut Vec<u8>) {
    let ip = address.ip().to_canonical();
    if ip.is_ipv6() {
        out.push(b'[');
        write_ip(ip, out);
        out.push(b']');
    } else {
        write_ip(ip, out);
    }
    out.push(b':');
    write_number(address.port(), out);
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
