//! Requests over HTTP/2 that would be two requests, or half of one, to an HTTP/1 backend.

use fastrand::Rng;

use crate::support::raw_h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Fate, HEADERS, PRIORITY, RawH2, WINDOW_UPDATE, block, frame,
};

use super::lane::Lane;

/// Requests on one connection, at most: answers fit into its first window.
const STREAMS: u32 = 200;

type Field = (Vec<u8>, Vec<u8>);

/// Fields that HTTP/2 forbids, or that HTTP/1 reads in its own way.
const FIELDS: &[(&str, &str)] = &[
    ("transfer-encoding", "chunked"),
    ("transfer-encoding", "identity"),
    ("transfer_encoding", "chunked"),
    ("connection", "close"),
    ("connection", "content-length"),
    ("keep-alive", "timeout=5"),
    ("proxy-connection", "keep-alive"),
    ("upgrade", "websocket"),
    ("upgrade", "h2c"),
    ("http2-settings", "AAMAAABkAARAAAAA"),
    ("te", "trailers"),
    ("te", "chunked"),
    ("host", "a.example"),
    ("host", "b.example"),
    ("host", ""),
    ("content-length", "0"),
    ("content-length", "5"),
    ("content-length", "+5"),
    ("content-length", "5, 5"),
    ("content-length", ""),
    ("content-length", "99999999999999999999"),
    ("expect", "100-continue"),
    ("expect", "x"),
    ("cookie", "a=b"),
    ("cookie", "{M}"),
    ("x-request-id", "chosen"),
    ("x-forwarded-for", "6.6.6.6"),
    ("forwarded", "for=6.6.6.6"),
    ("x-mark", "{M}"),
    ("x", "a\r\nx-smuggled: {M}"),
    ("x", "a\r\n\r\nGET /inner/{M} HTTP/1.1\r\nhost: inner.example\r\n\r\n"),
    ("x", "a\nb"),
    ("x", "a\rb"),
    ("x", "a\0b"),
    ("x", " a "),
    ("x\r\ny", "a"),
    ("x: y\r\nz", "a"),
    ("x y", "a"),
    ("x:", "a"),
    ("X-Upper", "a"),
    ("", "a"),
    (":path", "/second/{M}"),
    (":method", "POST"),
    (":authority", "b.example"),
    (":scheme", "http"),
    (":status", "200"),
    (":protocol", "websocket"),
    (":unknown", "a"),
];

const METHODS: &[&str] = &[
    "GET",
    "HEAD",
    "OPTIONS",
    "CONNECT",
    "TRACE",
    "get",
    "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET",
    "G T",
    "",
    "PRI",
];

const PATHS: &[&str] = &[
    "/early/{M}",
    "/deny/{M}",
    "/tunnel/{M}",
    "/h2/{M}?q=1",
    "/h2/{M}#f",
    "/h2/{M}/../x",
    "/h2/{M}/..%2fx",
    "/h2/{M} HTTP/1.1\r\nhost: inner.example\r\n\r\nGET /inner/{M}",
    "/h2/{M}\r\nx-smuggled: {M}",
    "/h2/{M} x",
    "/h2/{M}\n",
    "/h2/{M}\0",
    "/h2/{M}\u{e9}",
    "//b.example/{M}",
    "http://b.example/{M}",
    "h2/{M}",
    "*",
    "",
];

const AUTHORITIES: &[&str] = &[
    "a.example:80",
    "a.example:0",
    "A.Example.",
    "a.example, b.example",
    "user@a.example",
    "a.example/x",
    "a.example\r\nx-smuggled: {M}",
    "a example",
    "",
];

/// One request as frames.
struct Attack {
    fields: Vec<Field>,
    /// Frames of DATA.
    data: Vec<Vec<u8>>,
    trailers: Option<Vec<Field>>,
    /// END_STREAM is sent at all.
    ends: bool,
}

impl Attack {
    fn new(mark: &str, random: &mut Rng) -> Self {
        let inner = format!("GET /inner/{mark} HTTP/1.1\r\nhost: inner.example\r\n\r\n");
        let data: Vec<Vec<u8>> = match random.u8(..4) {
            0 => Vec::new(),
            1 => vec![inner.into_bytes()],
            2 => vec![b"0\r\n\r\n".to_vec(), inner.into_bytes()],
            _ => (0..random.usize(1..4)).map(|_| vec![b'b'; random.usize(..30)]).collect(),
        };
        let method = if data.is_empty() && random.bool() { "GET" } else { "POST" };
        let path = format!("/h2/{mark}");
        let start =
            [(":method", method), (":scheme", "https"), (":authority", "a.example"), (":path", &path)];
        let mut fields: Vec<Field> = start.map(|(name, value)| (name.into(), value.into())).to_vec();
        if random.bool() {
            let length: usize = data.iter().map(Vec::len).sum();
            let wrong = random.u8(..4) == 0;
            let length = if wrong { length.wrapping_add_signed(random.isize(-3..4)) } else { length };
            fields.push((b"content-length".to_vec(), length.to_string().into_bytes()));
        }
        Attack { fields, data, trailers: None, ends: random.u8(..16) > 0 }
    }

    fn mutate(&mut self, mark: &str, random: &mut Rng) {
        let fill = |text: &str| text.replace("{M}", mark).into_bytes();
        let pick = |all: &[&str], random: &mut Rng| fill(all[random.usize(..all.len())]);
        let at = random.usize(..self.fields.len());
        match random.u8(..12) {
            0..=3 => {
                let (name, value) = FIELDS[random.usize(..FIELDS.len())];
                // Mostly behind the pseudo fields, where they may be.
                let place = if random.u8(..4) == 0 { at } else { self.fields.len() };
                self.fields.insert(place, (fill(name), fill(value)));
            }
            4 => self.fields[0].1 = pick(METHODS, random),
            5 | 6 => self.replace(b":path", &pick(PATHS, random)),
            7 => self.replace(b":authority", &pick(AUTHORITIES, random)),
            8 if self.fields.len() > 1 => _ = self.fields.remove(at),
            9 => {
                let (name, value) = &mut self.fields[at];
                let part = if random.u8(..3) == 0 { name } else { value };
                let odd = b"\r\n\0\t :\x7f\x80A_#";
                part.insert(random.usize(..=part.len()), odd[random.usize(..odd.len())]);
            }
            10 => {
                let (name, value) = FIELDS[random.usize(..FIELDS.len())];
                self.trailers = Some(vec![(fill(name), fill(value))]);
            }
            _ => {
                let field = self.fields[at].clone();
                self.fields.push(field);
            }
        }
    }

    fn replace(&mut self, name: &[u8], value: &[u8]) {
        for field in self.fields.iter_mut().filter(|(other, _)| other == name) {
            field.1 = value.to_vec();
        }
    }

    /// The frames, now and then with bytes of them changed.
    fn frames(&self, stream: u32, random: &mut Rng) -> Vec<u8> {
        let mut head = block(&self.fields);
        if random.u8(..16) == 0 {
            let at = random.usize(..head.len());
            head[at] ^= 1 << random.u8(..8);
        }
        let bare = self.data.is_empty() && self.trailers.is_none();
        let end = |last: bool| if last && self.ends { END_STREAM } else { 0 };
        let cut = if random.u8(..4) == 0 { random.usize(..=head.len()) } else { head.len() };
        let (front, back) = head.split_at(cut);
        let mut bytes = if back.is_empty() {
            frame(HEADERS, END_HEADERS | end(bare), stream, front)
        } else {
            let more = frame(CONTINUATION, END_HEADERS, stream, back);
            [frame(HEADERS, end(bare), stream, front), more].concat()
        };
        for (index, data) in self.data.iter().enumerate() {
            let last = index + 1 == self.data.len() && self.trailers.is_none();
            bytes.extend(frame(DATA, end(last), stream, data));
            match random.u8(..32) {
                0 => bytes.extend(frame(DATA, 0, stream, b"excess")),
                1 => bytes.extend(frame(WINDOW_UPDATE, 0, stream, &[0; 4])),
                2 => bytes.extend(frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 16])),
                _ => {}
            }
        }
        if let Some(trailers) = &self.trailers {
            bytes.extend(frame(HEADERS, END_HEADERS | end(true), stream, &block(trailers)));
        }
        bytes
    }
}

/// The attacks of one lane, each with a victim behind it.
pub fn run(lane: &mut Lane, attacks: usize) {
    let mut connection: Option<(RawH2, u32)> = None;
    for _ in 0..attacks {
        let (mut client, stream) = connection.take().unwrap_or_else(|| (RawH2::connect(lane.engine.tls), 1));
        let mark = lane.mark();
        let random = lane.random();
        let mut attack = Attack::new(&mark, random);
        for _ in 0..random.usize(..4) {
            attack.mutate(&mark, random);
        }
        let bytes = attack.frames(stream, random);
        lane.note(mark, client.socket().local_addr().unwrap(), bytes.clone());
        let alive =
            client.send_bytes(&bytes) && matches!(client.fate(stream), Fate::Answered(_) | Fate::Reset(_));
        if alive && stream < 2 * STREAMS {
            connection = Some((client, stream + 2));
        }
        lane.victim();
    }
}
