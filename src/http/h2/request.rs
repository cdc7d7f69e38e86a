//! From the fields of an HTTP/2 request to a head, or to what is wrong with it (RFC 9113 §8).
//!
//! What breaks HTTP/2 itself is malformed, and its stream is reset; what breaks only a rule of ours, the
//! same as for HTTP/1, is answered.

use super::hpack::FIELD_OVERHEAD;
use crate::{
    error::Reason,
    http::{
        fields::{FieldId, Fields, Underscores, is_forbidden_trailer, may_pass},
        h1::{HeadLimits, is_token, parse_content_length},
        message::{BodyLength, RequestHead, Version},
        target,
    },
};

/// What is wrong with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It is no HTTP/2.
    Malformed,
    /// It is, and is answered with this.
    Refused(Reason),
}

/// Parts of heads that are needed until they end; kept for the next.
#[derive(Debug, Default)]
pub struct Scratch {
    authority: Vec<u8>,
    cookie: Vec<u8>,
}

/// Takes the fields of one request, in order.
#[derive(Debug)]
pub struct RequestReader<'r> {
    limits: &'r HeadLimits,
    head: &'r mut RequestHead,
    scratch: &'r mut Scratch,
    /// Pseudo fields that were there.
    pseudo: u8,
    connect: bool,
    malformed: bool,
    too_large: bool,
    /// The size that it has of the one that we announced.
    listed: usize,
    /// What is wrong with the method, with host and path, with the fields.
    refusals: [Option<Reason>; 3],
    fields: usize,
    bytes: usize,
    host: bool,
    cookies: usize,
    length: Option<u64>,
}

const METHOD: u8 = 1;
const SCHEME: u8 = 2;
const PATH: u8 = 4;
const AUTHORITY: u8 = 8;

impl<'r> RequestReader<'r> {
    pub fn new(limits: &'r HeadLimits, scratch: &'r mut Scratch, head: &'r mut RequestHead) -> Self {
        head.clear();
        head.version = Version::H2;
        scratch.authority.clear();
        scratch.cookie.clear();
        RequestReader {
            limits,
            head,
            scratch,
            pseudo: 0,
            connect: false,
            malformed: false,
            too_large: false,
            listed: 0,
            refusals: [None; 3],
            fields: 0,
            bytes: 0,
            host: false,
            cookies: 0,
            length: None,
        }
    }

    /// Takes the next field; nothing is looked at behind what decides the head's fate, for a byte of
    /// the client's may stand for a field of kilobytes.
    pub fn field(&mut self, name: &[u8], value: &[u8]) {
        self.listed += name.len() + value.len() + FIELD_OVERHEAD;
        if self.malformed || self.too_large {
            return;
        }
        self.malformed = !is_value(value)
            || if name.first() == Some(&b':') {
                !self.take_pseudo(name, value)
            } else {
                self.fields += 1;
                !is_lower_case_name(name) || !self.take(name, value)
            };
    }

    /// Whether it is one that may be there, here and for the first time.
    fn take_pseudo(&mut self, name: &[u8], value: &[u8]) -> bool {
        let which = match name {
            b":method" => METHOD,
            b":scheme" => SCHEME,
            b":path" => PATH,
            b":authority" => AUTHORITY,
            _ => return false,
        };
        if self.fields > 0 || self.pseudo & which != 0 {
            return false;
        }
        self.pseudo |= which;
        match which {
            METHOD => {
                self.connect = value == b"CONNECT";
                match target::parse_method(value) {
                    Ok(method) => self.head.method = method,
                    Err(reason) => self.refusals[0] = Some(reason),
                }
            }
            SCHEME => return is_scheme(value),
            AUTHORITY => {
                self.bytes += value.len();
                self.scratch.authority.extend_from_slice(value);
                self.take_authority(value);
            }
            _ => {
                self.bytes += value.len();
                return !value.is_empty() && self.take_path(value);
            }
        }
        true
    }

    fn take_authority(&mut self, value: &[u8]) {
        if let Err(reason) = target::parse_authority(value, self.head) {
            self.refusals[1].get_or_insert(reason);
        }
    }

    fn take_path(&mut self, value: &[u8]) -> bool {
        if value.len() > self.limits.uri_bytes {
            self.refusals[1].get_or_insert(Reason::UriTooLong);
            return true;
        }
        // A fragment is not for servers; what is matched is what is forwarded.
        let end = memchr::memchr(b'#', value).unwrap_or(value.len());
        let parsed = match str::from_utf8(&value[..end]) {
            // Where the method is not known yet: see `finish`.
            Ok("*") => {
                self.head.target.push('*');
                Ok(())
            }
            Ok(path) => target::parse_path(path, self.head),
            Err(_) => Err(Reason::BadRequest),
        };
        if let Err(reason) = parsed {
            self.refusals[1].get_or_insert(reason);
        }
        true
    }

    /// Takes any other field; whether HTTP/2 allows it.
    fn take(&mut self, name: &[u8], value: &[u8]) -> bool {
        let size = name.len() + value.len();
        self.bytes += size;
        let limits = self.limits;
        if self.fields > limits.fields || size > limits.field_bytes || self.bytes > limits.head_bytes {
            self.too_large = true;
            return true;
        }
        if has_outer_blanks(value) {
            self.refuse(Reason::BadRequest);
        }
        let id = self.head.fields.push(name, value);
        if is_of_connection(id, value) {
            return false;
        }
        if !self.passes(id, name, value) {
            self.head.fields.pop();
        }
        true
    }

    fn refuse(&mut self, reason: Reason) {
        self.refusals[2].get_or_insert(reason);
    }

    /// Whether a field goes on; notes what a known one says. The same rules as for HTTP/1.
    fn passes(&mut self, id: FieldId, name: &[u8], value: &[u8]) -> bool {
        match id {
            FieldId::Other if name == b"cookie" => self.take_cookie(value),
            FieldId::Other => return may_pass(name, self.limits.underscores),
            FieldId::Host => self.take_host(value),
            FieldId::ContentLength => {
                let length = parse_content_length(value).filter(|_| self.length.is_none());
                match length {
                    Some(_) => self.length = length,
                    None => self.refuse(Reason::BadRequest),
                }
                return true;
            }
            FieldId::Expect if value.eq_ignore_ascii_case(b"100-continue") => {
                self.head.expects_continue = true;
            }
            FieldId::Expect => self.refuse(Reason::BadRequest),
            FieldId::Proxy | FieldId::Http2Settings => {}
            _ => return true,
        }
        false
    }

    /// Browsers send each cookie as a field of its own; HTTP/1 knows one (§8.2.3).
    fn take_cookie(&mut self, crumb: &[u8]) {
        self.cookies += 1;
        let cookie = &mut self.scratch.cookie;
        if !cookie.is_empty() && !crumb.is_empty() {
            cookie.extend_from_slice(b"; ");
        }
        cookie.extend_from_slice(crumb);
    }

    fn take_host(&mut self, value: &[u8]) {
        let differs = self.pseudo & AUTHORITY != 0 && !value.eq_ignore_ascii_case(&self.scratch.authority);
        if self.host || differs {
            self.refusals[1].get_or_insert(Reason::BadRequest);
        } else if self.pseudo & AUTHORITY == 0 {
            self.take_authority(value);
        }
        self.host = true;
    }

    /// Completes the head; `ended`: the request has no body.
    ///
    /// # Errors
    /// What is wrong with it; the head holds nothing of use then.
    pub fn finish(mut self, ended: bool) -> Result<(), Flaw> {
        let needed = if self.connect { METHOD } else { METHOD | SCHEME | PATH };
        let excessive = self.listed > list_bytes(self.limits) as usize;
        if self.malformed || excessive || self.pseudo & !AUTHORITY != needed {
            return Err(Flaw::Malformed);
        }
        if self.too_large {
            // They are not all: the first ones may name another client.
            self.head.fields.clear();
        }
        if self.pseudo & AUTHORITY == 0 && !self.host {
            self.refusals[1].get_or_insert(Reason::BadRequest);
        }
        if self.head.target == "*" && target::parse_path("*", self.head).is_err() {
            self.refusals[1].get_or_insert(Reason::BadRequest);
        }
        if self.cookies > 0 {
            self.too_large |= self.scratch.cookie.len() > self.limits.field_bytes;
            self.head.fields.push(b"cookie", &self.scratch.cookie);
        }
        if self.too_large {
            self.refuse(Reason::HeadTooLarge);
        }
        if ended && self.length.is_some_and(|length| length > 0) {
            self.refuse(Reason::BadRequest);
        }
        if let Some(reason) = self.refusals.into_iter().flatten().next() {
            return Err(Flaw::Refused(reason));
        }
        self.head.body = match self.length {
            _ if ended => BodyLength::Empty,
            Some(length) => BodyLength::Exact(length),
            None => BodyLength::Streamed,
        };
        Ok(())
    }
}

/// The size of a decoded head, each field with 32 bytes more (§6.5.2), that we say is the most: twice
/// our limit, for what is between them is answered, and beyond it is malformed.
pub(super) fn list_bytes(limits: &HeadLimits) -> u32 {
    u32::try_from(2 * limits.head_bytes + FIELD_OVERHEAD * limits.fields).unwrap_or(u32::MAX)
}

/// Takes the fields behind a body.
#[derive(Debug)]
pub struct TrailerReader<'r> {
    limits: &'r HeadLimits,
    most: usize,
    fields: Fields,
    count: usize,
    bytes: usize,
    malformed: bool,
}

impl<'r> TrailerReader<'r> {
    /// For trailers of `most` bytes of names and values.
    pub fn new(limits: &'r HeadLimits, most: usize) -> Self {
        TrailerReader { limits, most, fields: Fields::default(), count: 0, bytes: 0, malformed: false }
    }

    pub fn field(&mut self, name: &[u8], value: &[u8]) {
        self.count += 1;
        self.bytes += name.len() + value.len();
        if self.malformed || self.is_too_large() {
            return;
        }
        self.malformed = !is_value(value)
            || !is_lower_case_name(name)
            || has_outer_blanks(value)
            || is_of_connection(FieldId::of(name), value);
        if self.malformed {
            return;
        }
        let id = self.fields.push(name, value);
        if !may_pass(name, Underscores::Drop) || is_forbidden_trailer(id, name) {
            self.fields.pop();
        }
    }

    fn is_too_large(&self) -> bool {
        self.count > self.limits.fields || self.bytes > self.most
    }

    /// Those that may pass on; the same rules as for HTTP/1.
    pub fn finish(self) -> Result<Option<Fields>, Flaw> {
        let listed = self.bytes + self.count * FIELD_OVERHEAD;
        if self.malformed || listed > list_bytes(self.limits) as usize {
            return Err(Flaw::Malformed);
        }
        if self.is_too_large() {
            return Err(Flaw::Refused(Reason::HeadTooLarge));
        }
        Ok((!self.fields.is_empty()).then_some(self.fields))
    }
}

/// Fields that belong to an HTTP/1 connection make a message malformed (§8.2.2).
fn is_of_connection(id: FieldId, value: &[u8]) -> bool {
    match id {
        FieldId::Connection
        | FieldId::KeepAlive
        | FieldId::ProxyConnection
        | FieldId::TransferEncoding
        | FieldId::Upgrade => true,
        FieldId::Te => value != b"trailers",
        _ => false,
    }
}

/// A token without a capital (§8.2.1), and no pseudo field.
fn is_lower_case_name(name: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'-';
    let others = || is_token(name) && !name.iter().any(u8::is_ascii_uppercase);
    !name.is_empty() && name.iter().all(plain) || others()
}

/// Whether a value holds no control byte but tabs. Cost: no early exit, so that the compiler makes
/// vector instructions of it.
fn is_value(value: &[u8]) -> bool {
    value.iter().fold(0, |bad, byte| bad | u8::from((*byte < b' ' && *byte != b'\t') || *byte == 0x7f)) == 0
}

/// Blanks around a value (§8.2.1).
fn has_outer_blanks(value: &[u8]) -> bool {
    matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t'])
}

/// RFC 3986 §3.1.
fn is_scheme(value: &[u8]) -> bool {
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    value.first().is_some_and(u8::is_ascii_alphabetic) && value.iter().all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits {
        head_bytes: 1024,
        uri_bytes: 200,
        field_bytes: 512,
        fields: 10,
        underscores: Underscores::Drop,
    };
    const GOOD: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "https"), (":authority", "a.example"), (":path", "/")];

    fn read(fields: &[(&str, &str)], ended: bool) -> Result<RequestHead, Flaw> {
        let (mut head, mut scratch) = (RequestHead::default(), Scratch::default());
        let mut reader = RequestReader::new(&LIMITS, &mut scratch, &mut head);
        for (name, value) in fields {
            reader.field(name.as_bytes(), value.as_bytes());
        }
        reader.finish(ended).map(|()| head)
    }

    fn with<'f>(more: &[(&'f str, &'f str)]) -> Vec<(&'f str, &'f str)> {
        GOOD.iter().chain(more).copied().collect()
    }

    fn replacing<'f>(name: &str, value: &'f str) -> Vec<(&'f str, &'f str)> {
        GOOD.map(|(other, good)| if other == name { (other, value) } else { (other, good) }).to_vec()
    }

    fn without(name: &str) -> Vec<(&'static str, &'static str)> {
        GOOD.into_iter().filter(|(other, _)| *other != name).collect()
    }

    #[track_caller]
    fn flaw(fields: &[(&str, &str)]) -> Flaw {
        read(fields, true).map(|head| format!("{head:?}")).expect_err(&format!("{fields:?}"))
    }

    #[test]
    fn a_head_beyond_what_was_announced_is_malformed_and_one_within_is_answered() {
        // With the good ones, 2,307 of the 2,368 bytes that may be listed.
        let long = "y".repeat(500);
        for (last, expected) in [(28, Flaw::Refused(Reason::HeadTooLarge)), (29, Flaw::Malformed)] {
            let last = "y".repeat(last);
            let fields = [vec![("x", long.as_str()); 4], vec![("x", &last)]].concat();
            assert_eq!(flaw(&with(&fields)), expected);
        }
        assert_eq!(list_bytes(&LIMITS), 2368);
    }

    #[test]
    fn what_is_no_http2_is_malformed() {
        for fields in [
            without(":method"),
            without(":scheme"),
            without(":path"),
            with(&[(":method", "GET")]),
            with(&[(":scheme", "https")]),
            with(&[(":authority", "a.example")]),
            with(&[(":path", "/")]),
            with(&[(":status", "200")]),
            with(&[(":protocol", "websocket")]),
            with(&[(":unknown", "")]),
            with(&[("x", "y"), (":path", "/")]),
            [("x", "y")].iter().chain(&GOOD).copied().collect(),
            replacing(":path", ""),
            replacing(":path", "/a\r\nx: y"),
            replacing(":path", "/a\0"),
            replacing(":scheme", ""),
            replacing(":scheme", "1s"),
            replacing(":scheme", "https:"),
            replacing(":method", "GET\n"),
            replacing(":method", "CONNECT"),
            with(&[("", "a")]),
            with(&[("X", "a")]),
            with(&[("x y", "a")]),
            with(&[("x:", "a")]),
            with(&[("x\"", "a")]),
            with(&[("x\r\ny", "a")]),
            with(&[("x\u{e9}", "a")]),
            with(&[("x", "a\rb")]),
            with(&[("x", "a\nb")]),
            with(&[("x", "a\0b")]),
            with(&[("x", "a\u{7f}b")]),
            with(&[("connection", "close")]),
            with(&[("keep-alive", "timeout=5")]),
            with(&[("proxy-connection", "close")]),
            with(&[("transfer-encoding", "chunked")]),
            with(&[("upgrade", "websocket")]),
            with(&[("te", "gzip")]),
            with(&[("te", "Trailers")]),
            with(&[("te", "trailers, gzip")]),
        ] {
            assert_eq!(flaw(&fields), Flaw::Malformed, "{fields:?}");
        }
        assert_eq!(read(&[], true).unwrap_err(), Flaw::Malformed);
    }

    #[test]
    fn what_breaks_a_rule_of_ours_is_answered() {
        let long = "p".repeat(512);
        let path = format!("/{}", "p".repeat(200));
        for (fields, reason) in [
            (replacing(":method", "get"), Reason::BadRequest),
            (replacing(":method", "TRACE"), Reason::MethodNotAllowed),
            (vec![(":method", "CONNECT"), (":authority", "a:1")], Reason::MethodNotAllowed),
            (without(":authority"), Reason::BadRequest),
            (replacing(":authority", ""), Reason::BadRequest),
            (replacing(":authority", "user@a"), Reason::BadRequest),
            (replacing(":path", "relative"), Reason::BadRequest),
            (replacing(":path", "*"), Reason::BadRequest),
            (replacing(":path", "#"), Reason::BadRequest),
            (replacing(":path", "http://a/"), Reason::BadRequest),
            (replacing(":path", "/a b"), Reason::BadRequest),
            (replacing(":path", "/\u{e9}"), Reason::BadRequest),
            (replacing(":path", &path), Reason::UriTooLong),
            (with(&[("host", "b.example")]), Reason::BadRequest),
            (with(&[("host", "a.example"), ("host", "a.example")]), Reason::BadRequest),
            (with(&[("x", " a")]), Reason::BadRequest),
            (with(&[("x", "a\t")]), Reason::BadRequest),
            (with(&[("content-length", "5")]), Reason::BadRequest),
            (with(&[("content-length", "+0")]), Reason::BadRequest),
            (with(&[("content-length", "")]), Reason::BadRequest),
            (with(&[("content-length", "0"), ("content-length", "0")]), Reason::BadRequest),
            (with(&[("content-length", "9223372036854775808")]), Reason::BadRequest),
            (with(&[("expect", "x")]), Reason::BadRequest),
            (with(&[("x", &long)]), Reason::HeadTooLarge),
            (with(&[("x", "y"); 11]), Reason::HeadTooLarge),
            (with(&[("x", &long[..500]); 3]), Reason::HeadTooLarge),
            (with(&[("cookie", &long[..300]); 2]), Reason::HeadTooLarge),
        ] {
            assert_eq!(flaw(&fields), Flaw::Refused(reason), "{fields:?}");
        }
    }

    #[test]
    fn nothing_is_looked_at_behind_what_is_too_large() {
        let mut fields = with(&[("x", "y"); 11]);
        fields.push(("connection", "close"));
        assert_eq!(flaw(&fields), Flaw::Refused(Reason::HeadTooLarge));
        fields.swap(5, 15);
        assert_eq!(flaw(&fields), Flaw::Malformed);
    }

    #[test]
    fn reads_what_a_request_says_in_any_order_of_its_pseudo_fields() {
        let more = [("te", "trailers"), ("x_y", "z"), ("proxy", "p"), ("x", ""), ("host", "A.example")];
        for turn in 0..4 {
            let mut fields = with(&more);
            fields[..4].rotate_left(turn);
            let head = read(&fields, false).unwrap();
            assert_eq!((head.method.as_str(), &*head.host, &*head.target), ("GET", "a.example", "/"));
            assert_eq!((head.body, head.version), (BodyLength::Streamed, Version::H2));
            let names: Vec<&[u8]> = head.fields.iter().map(|(_, name, _)| name).collect();
            assert_eq!(names, [&b"te"[..], b"x"]);
        }
        let asterisk = [(":path", "*"), (":method", "OPTIONS"), (":scheme", "https"), ("host", "b")];
        let head = read(&asterisk, true).unwrap();
        assert_eq!((&*head.target, head.path_len, &*head.host), ("*", 1, "b"));
        assert_eq!(read(&replacing(":path", "/a?b#c"), true).unwrap().target, "/a?b");
    }

    #[test]
    fn the_length_is_what_the_field_says_or_what_comes() {
        for (length, ended, body) in [
            (None, true, BodyLength::Empty),
            (None, false, BodyLength::Streamed),
            (Some("0"), true, BodyLength::Empty),
            (Some("0"), false, BodyLength::Exact(0)),
            (Some("7"), false, BodyLength::Exact(7)),
        ] {
            let fields: Vec<_> = length.map(|length| ("content-length", length)).into_iter().collect();
            assert_eq!(read(&with(&fields), ended).unwrap().body, body);
        }
    }

    #[test]
    fn crumbs_become_one_cookie() {
        for (crumbs, cookie) in [
            (&["a=b"][..], Some("a=b")),
            (&["a=b", "c=d"], Some("a=b; c=d")),
            (&["", "a=b", "", "c=d", ""], Some("a=b; c=d")),
            (&["", ""], Some("")),
            (&["a=b ", "c=d"], None),
        ] {
            let crumbs: Vec<_> = crumbs.iter().map(|crumb| ("cookie", *crumb)).collect();
            let head = read(&with(&crumbs), true).ok();
            let found = head.as_ref().and_then(|head| head.fields.find(b"cookie"));
            assert_eq!(found, cookie.map(str::as_bytes), "{crumbs:?}");
            assert!(head.is_none_or(|head| head.fields.len() == 1));
        }
    }

    #[test]
    fn trailers_follow_the_rules_of_fields() {
        let read = |fields: &[(&str, &str)]| {
            let mut reader = TrailerReader::new(&LIMITS, 30);
            for (name, value) in fields {
                reader.field(name.as_bytes(), value.as_bytes());
            }
            reader.finish().map(|fields| fields.map(|fields| fields.len()))
        };
        assert_eq!(read(&[("x-sum", "1"), ("host", "a"), ("a_b", "c"), ("cookie", "d")]), Ok(Some(1)));
        assert_eq!(read(&[("host", "a")]), Ok(None));
        assert_eq!(read(&[]), Ok(None));
        for fields in
            [(":path", "/"), ("X", ""), ("", ""), ("x", "\n"), ("te", "x"), ("upgrade", "a"), ("x", " ")]
        {
            assert_eq!(read(&[("x-sum", "1"), fields]), Err(Flaw::Malformed), "{fields:?}");
        }
        assert_eq!(read(&[("x", "y"); 10]), Ok(Some(10)));
        assert_eq!(read(&[("x", "y"); 11]), Err(Flaw::Refused(Reason::HeadTooLarge)));
        let long = |bytes: usize| "y".repeat(bytes - 1);
        assert_eq!(read(&[("x", &long(30))]), Ok(Some(1)));
        assert_eq!(read(&[("x", &long(31))]), Err(Flaw::Refused(Reason::HeadTooLarge)));
        let most = list_bytes(&LIMITS) as usize - FIELD_OVERHEAD;
        assert_eq!(read(&[("x", &long(most))]), Err(Flaw::Refused(Reason::HeadTooLarge)));
        assert_eq!(read(&[("x", &long(most + 1))]), Err(Flaw::Malformed), "more than we say is the most");
    }

    #[test]
    fn every_byte_of_a_name_is_judged_as_its_token() {
        for byte in 0..=u8::MAX {
            let name = [b'a', byte];
            assert_eq!(is_lower_case_name(&name), is_token(&name) && !byte.is_ascii_uppercase(), "{byte}");
        }
    }
}
