//! Frames as they lie on the wire: their heads, and how ours are written (RFC 9113 §4 and §6).

/// What a client begins with (§3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const HEAD_BYTES: usize = 9;

/// The payload that every peer must take, and the most that we take (§4.2).
pub const MAX_PAYLOAD: usize = 16 * 1024;

/// With its head, such a DATA frame is one full TLS record.
pub(super) const MAX_DATA: usize = MAX_PAYLOAD - HEAD_BYTES;

/// Stream ids have 31 bits, and so has the size of a window.
pub(super) const MAX_31: u32 = (1 << 31) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Headers,
    Priority,
    Reset,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    Unknown,
}

pub(super) mod flag {
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;
}

/// §6.5.2.
pub(super) mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Error codes that we send (§7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    NoError = 0,
    ProtocolError = 1,
    InternalError = 2,
    FlowControlError = 3,
    StreamClosed = 5,
    FrameSizeError = 6,
    RefusedStream = 7,
    Cancel = 8,
    CompressionError = 9,
    EnhanceYourCalm = 11,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub length: usize,
    pub kind: Kind,
    pub flags: u8,
    pub stream: u32,
}

impl Head {
    pub(super) fn parse(bytes: &[u8; HEAD_BYTES]) -> Head {
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        Head { length, kind: Kind::of(kind), flags, stream: u32::from_be_bytes(stream) & MAX_31 }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

impl Kind {
    fn of(byte: u8) -> Kind {
        const KNOWN: [Kind; 10] = [
            Kind::Data,
            Kind::Headers,
            Kind::Priority,
            Kind::Reset,
            Kind::Settings,
            Kind::PushPromise,
            Kind::Ping,
            Kind::GoAway,
            Kind::WindowUpdate,
            Kind::Continuation,
        ];
        KNOWN.get(usize::from(byte)).copied().unwrap_or(Kind::Unknown)
    }
}

/// The payload without its padding; `None` where that is longer than the rest (§6.1).
pub(super) fn without_padding<'p>(head: &Head, payload: &'p [u8]) -> Option<&'p [u8]> {
    if !head.has(flag::PADDED) {
        return Some(payload);
    }
    let (padding, rest) = payload.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(*padding))?)
}

/// A payload that is one number of 32 bits.
pub(super) fn number(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_be_bytes)
}

fn head(kind: Kind, flags: u8, stream: u32, length: usize) -> [u8; HEAD_BYTES] {
    debug_assert!(length <= MAX_PAYLOAD);
    let mut head = [0, 0, 0, kind as u8, flags, 0, 0, 0, 0];
    head[..3].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()[1..]);
    head[5..].copy_from_slice(&stream.to_be_bytes());
    head
}

fn write(out: &mut Vec<u8>, kind: Kind, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&head(kind, flags, stream, payload.len()));
    out.extend_from_slice(payload);
}

pub(super) fn write_data(out: &mut Vec<u8>, stream: u32, payload: &[u8], ends: bool) {
    write(out, Kind::Data, if ends { flag::END_STREAM } else { 0 }, stream, payload);
}

/// Writes a head with the block that `encode` appends, in as many frames as it takes.
pub(super) fn write_headers(out: &mut Vec<u8>, stream: u32, ends: bool, encode: impl FnOnce(&mut Vec<u8>)) {
    let flags = if ends { flag::END_STREAM } else { 0 };
    let start = out.len();
    out.extend_from_slice(&[0; HEAD_BYTES]);
    encode(out);
    let length = out.len() - start - HEAD_BYTES;
    if length <= MAX_PAYLOAD {
        let head = head(Kind::Headers, flags | flag::END_HEADERS, stream, length);
        out[start..start + HEAD_BYTES].copy_from_slice(&head);
        return;
    }
    let block = out.split_off(start + HEAD_BYTES);
    out.truncate(start);
    let (first, mut rest) = block.split_at(MAX_PAYLOAD);
    write(out, Kind::Headers, flags, stream, first);
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        let flags = if more.is_empty() { flag::END_HEADERS } else { 0 };
        write(out, Kind::Continuation, flags, stream, piece);
        rest = more;
    }
}

pub(super) fn write_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    out.extend_from_slice(&head(Kind::Settings, 0, 0, 6 * settings.len()));
    for (id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

pub(super) fn write_settings_ack(out: &mut Vec<u8>) {
    write(out, Kind::Settings, flag::ACK, 0, &[]);
}

pub(super) fn write_ping(out: &mut Vec<u8>, flags: u8, payload: [u8; 8]) {
    write(out, Kind::Ping, flags, 0, &payload);
}

pub(super) fn write_reset(out: &mut Vec<u8>, stream: u32, code: Code) {
    write(out, Kind::Reset, 0, stream, &(code as u32).to_be_bytes());
}

pub(super) fn write_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    write(out, Kind::WindowUpdate, 0, stream, &increment.to_be_bytes());
}

pub(super) fn write_goaway(out: &mut Vec<u8>, last_stream: u32, code: Code) {
    out.extend_from_slice(&head(Kind::GoAway, 0, 0, 8));
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&(code as u32).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    #[test]
    fn writes_frames_as_they_go_on_the_wire() {
        assert_eq!(written(|out| write_data(out, 5, b"ab", true)), b"\0\0\x02\0\x01\0\0\0\x05ab");
        assert_eq!(written(|out| write_settings(out, &[(4, 7)])), b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\x07");
        assert_eq!(written(write_settings_ack), b"\0\0\0\x04\x01\0\0\0\0");
        assert_eq!(written(|out| write_reset(out, 1, Code::Cancel)), b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08");
        assert_eq!(written(|out| write_ping(out, 1, [9; 8]))[3..9], [6, 1, 0, 0, 0, 0]);
        assert_eq!(
            written(|out| write_goaway(out, MAX_31, Code::EnhanceYourCalm)),
            b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\x0b"
        );
        assert_eq!(written(|out| write_window_update(out, 3, 1)), b"\0\0\x04\x08\0\0\0\0\x03\0\0\0\x01");
    }

    #[test]
    fn cuts_a_long_block_into_continuations() {
        for (length, expected) in [
            (0, &[(Kind::Headers, 5, 0)][..]),
            (MAX_PAYLOAD, &[(Kind::Headers, 5, MAX_PAYLOAD)]),
            (MAX_PAYLOAD + 1, &[(Kind::Headers, 1, MAX_PAYLOAD), (Kind::Continuation, 4, 1)]),
            (
                3 * MAX_PAYLOAD,
                &[
                    (Kind::Headers, 1, MAX_PAYLOAD),
                    (Kind::Continuation, 0, MAX_PAYLOAD),
                    (Kind::Continuation, 4, MAX_PAYLOAD),
                ],
            ),
        ] {
            let out = written(|out| write_headers(out, 7, true, |out| out.resize(out.len() + length, b'x')));
            let (mut rest, mut heads) = (&out[..], Vec::new());
            while let Some((bytes, more)) = rest.split_first_chunk() {
                let head = Head::parse(bytes);
                assert!(more[..head.length].iter().all(|byte| *byte == b'x') && head.stream == 7);
                heads.push((head.kind, head.flags, head.length));
                rest = &more[head.length..];
            }
            assert_eq!(heads, expected);
        }
    }

    #[test]
    fn reads_heads_and_padding() {
        let head = Head::parse(b"\x01\x02\x03\x09\x04\xff\0\0\x01");
        let expected = Head { length: 0x1_0203, kind: Kind::Continuation, flags: 4, stream: 0x7f00_0001 };
        assert_eq!(head, expected);
        assert_eq!(Head::parse(&[0xff; 9]).kind, Kind::Unknown);
        let padded = Head { length: 0, kind: Kind::Data, flags: flag::PADDED, stream: 1 };
        for (payload, rest) in [
            (&b"\0ab"[..], Some(&b"ab"[..])),
            (b"\x01ab", Some(b"a")),
            (b"\x02ab", Some(b"")),
            (b"\x03ab", None),
            (b"\0", Some(b"")),
            (b"\x01", None),
            (b"", None),
        ] {
            assert_eq!(without_padding(&padded, payload), rest, "{payload:?}");
        }
        assert_eq!(without_padding(&Head { flags: 0, ..padded }, b"\x02ab"), Some(&b"\x02ab"[..]));
    }
}
