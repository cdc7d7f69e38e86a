//! An HTTP/2 client that writes its frames by hand, to send what no library would.

use std::{
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use super::client::{Client, tls_config};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// What became of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// The first byte of its head: `0x88` is 200, `0x8c` is 400, `0x8d` is 404.
    Answered(u8),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this code.
    Ended(u32),
    /// The connection ended without a GOAWAY.
    Closed,
}

#[derive(Debug)]
pub struct RawH2 {
    client: Client,
}

impl RawH2 {
    /// Connects and exchanges settings.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        RawH2::connect_with(address, &[])
    }

    /// With settings of its own: pairs of identifier and value.
    #[track_caller]
    pub fn connect_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let config = Arc::new(tls_config(&["h2"], rustls::ALL_VERSIONS));
        let mut client = Client::handshake(address, "site.example", config).unwrap();
        client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut raw = RawH2 { client };
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
            .collect();
        raw.send(SETTINGS, 0, 0, &payload);
        raw.send(SETTINGS, ACK, 0, &[]);
        raw
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.client.try_send(frame(kind, flags, stream, payload))
    }

    pub fn socket(&self) -> &TcpStream {
        self.client.socket()
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) -> bool {
        self.client.try_send(bytes)
    }

    /// Sends a head of these fields, whatever they hold.
    pub fn headers(&mut self, stream: u32, ended: bool, fields: &[(&str, &str)]) {
        let flags = END_HEADERS | if ended { END_STREAM } else { 0 };
        self.send(HEADERS, flags, stream, &block(fields));
    }

    /// The next frame; `None` at the end of the connection.
    #[track_caller]
    pub fn frame(&mut self) -> Option<Frame> {
        let head = self.client.take(9);
        if head.len() < 9 {
            return None;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = self.client.take(length);
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap()) & 0x7fff_ffff;
        (payload.len() == length).then_some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The same; pings are answered.
    #[track_caller]
    pub fn frame_answering_pings(&mut self) -> Option<Frame> {
        let frame = self.frame()?;
        if frame.kind == PING && frame.flags & ACK == 0 {
            self.send(PING, ACK, 0, &frame.payload);
        }
        Some(frame)
    }

    /// What becomes of a stream.
    #[track_caller]
    pub fn fate(&mut self, stream: u32) -> Fate {
        while let Some(frame) = self.frame() {
            match frame.kind {
                HEADERS if frame.stream == stream => return Fate::Answered(frame.payload[0]),
                RST_STREAM if frame.stream == stream => return Fate::Reset(number(&frame.payload)),
                GOAWAY => return Fate::Ended(number(&frame.payload[4..])),
                _ => {}
            }
        }
        Fate::Closed
    }

    /// The last GOAWAY before the connection ends, with its code.
    #[track_caller]
    pub fn goaway(&mut self) -> Option<u32> {
        let mut last = None;
        while let Some(frame) = self.frame() {
            if frame.kind == GOAWAY {
                last = Some(number(&frame.payload[4..]));
            }
        }
        last
    }
}

fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().unwrap())
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields in HPACK, each as a literal that is not indexed (RFC 7541 §6.2.2).
pub fn block(fields: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            integer(text.len(), &mut block);
            block.extend_from_slice(text);
        }
    }
    block
}

/// A length with a prefix of seven bits (RFC 7541 §5.1).
fn integer(mut value: usize, out: &mut Vec<u8>) {
    if value < 127 {
        return out.push(u8::try_from(value).unwrap());
    }
    out.push(127);
    value -= 127;
    while value >= 128 {
        out.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    out.push(u8::try_from(value).unwrap());
}
