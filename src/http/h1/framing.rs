//! Takes the body of an HTTP/1 message apart: where is payload, where does it end?
//!
//! A state machine without buffers: the caller shows it what it has read and is told how many bytes
//! to skip and how many after them are payload. Only trailers are kept, up to their limit. Strict
//! by RFC 9112 §7.1: no blanks around sizes, CRLF only, extensions checked and counted.

use std::fmt;

use super::{
    head::{BareLineFeed, HeadEnd, Loader, Underscores, find_head_end},
    hop::is_token_byte,
};
use crate::{
    error::Reason,
    http::{
        fields::{Fields, is_forbidden_trailer, may_pass},
        message::BodyLength,
    },
};

/// Sizes of what comes beside the payload, for one message.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    pub trailer_bytes: usize,
    pub chunk_extension_bytes: usize,
    /// Number of trailers.
    pub fields: usize,
    pub underscores: Underscores,
}

/// What to do with the input of [`BodyDecoder::decode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Drop `skip` bytes; the `len` bytes after them are payload, `len` > 0. Say how many of those
    /// were taken with [`BodyDecoder::advance`], then ask again with what follows.
    Data { skip: usize, len: usize },
    /// Drop `skip` bytes, which is all of the input, and read on.
    NeedMore { skip: usize },
    /// Drop `skip` bytes; the message ends there.
    End { skip: usize },
}

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    ChunkSize,
    ChunkExtension,
    ExtensionsTooLarge,
    /// No CRLF where one must be.
    LineEnd,
    Trailer,
    TrailersTooLarge,
    /// The connection ended first.
    Truncated,
}

impl BodyError {
    /// Why a request with this body is refused.
    pub fn reason(self) -> Reason {
        match self {
            BodyError::TrailersTooLarge => Reason::HeadTooLarge,
            BodyError::Truncated => Reason::ClientClosed,
            BodyError::ChunkSize
            | BodyError::ChunkExtension
            | BodyError::ExtensionsTooLarge
            | BodyError::LineEnd
            | BodyError::Trailer => Reason::BadRequest,
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BodyError::ChunkSize => "invalid chunk size",
            BodyError::ChunkExtension => "invalid chunk extension",
            BodyError::ExtensionsTooLarge => "chunk extensions too large",
            BodyError::LineEnd => "no CRLF after a chunk",
            BodyError::Trailer => "malformed trailer",
            BodyError::TrailersTooLarge => "trailers too large",
            BodyError::Truncated => "body ends early",
        })
    }
}

impl std::error::Error for BodyError {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes are left.
    Counted(u64),
    UntilClose,
    Size {
        value: u64,
        digits: u8,
    },
    Extension(Extension),
    /// The LF of a size line.
    SizeEnd {
        value: u64,
    },
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    Trailers,
    Done,
    Failed(BodyError),
}

/// Where in `;name=value` or `;name="value"` we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    NameStart,
    Name,
    ValueStart,
    Value,
    Quoted,
    Escaped,
    QuoteEnd,
}

/// Decodes one body. Cost: no allocation but for trailers; payload is not looked at.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    limits: BodyLimits,
    extension_bytes: usize,
    /// Size of the chunk whose extensions are being read.
    pending: u64,
    trailers: Option<Box<Trailers>>,
}

#[derive(Debug, Default)]
struct Trailers {
    /// As received, behind one CRLF, so that no trailers at all is a blank line too.
    block: Vec<u8>,
    scanned: usize,
    fields: Fields,
}

impl BodyDecoder {
    pub fn new(length: BodyLength, limits: BodyLimits) -> BodyDecoder {
        let state = match length {
            BodyLength::Empty => State::Done,
            BodyLength::Exact(bytes) => State::Counted(bytes),
            BodyLength::Streamed => State::Size { value: 0, digits: 0 },
            BodyLength::UntilClose => State::UntilClose,
        };
        BodyDecoder { state, limits, extension_bytes: 0, pending: 0, trailers: None }
    }

    /// Looks at what was read and not dropped yet. After an error it returns that error for ever.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, BodyError> {
        let mut at = 0;
        loop {
            let left = match self.state {
                State::Done | State::Counted(0) => return Ok(Decoded::End { skip: at }),
                State::Failed(error) => return Err(error),
                State::Counted(left) | State::Chunk(left) => left,
                State::UntilClose => u64::MAX,
                State::Trailers => {
                    let taken = self.read_trailers(&input[at..]);
                    at += self.or_fail(taken)?;
                    if self.state == State::Done {
                        continue;
                    }
                    return Ok(Decoded::NeedMore { skip: at });
                }
                _ => 0,
            };
            let Some(&byte) = input.get(at) else { return Ok(Decoded::NeedMore { skip: at }) };
            if left > 0 {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - at);
                return Ok(Decoded::Data { skip: at, len });
            }
            let next = self.step(byte);
            self.state = self.or_fail(next)?;
            at += 1;
        }
    }

    /// Notes that `len` bytes of payload were taken; never more than `decode` just showed.
    pub fn advance(&mut self, len: usize) {
        let len = len as u64;
        match &mut self.state {
            State::Counted(left) => *left = left.saturating_sub(len),
            State::Chunk(left) => {
                *left = left.saturating_sub(len);
                if *left == 0 {
                    self.state = State::ChunkCr;
                }
            }
            _ => {}
        }
    }

    /// Payload bytes left, where the length was announced.
    pub fn left(&self) -> Option<u64> {
        if let State::Counted(left) = self.state { Some(left) } else { None }
    }

    /// Whether the message is complete and its connection stands at the next one.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done | State::Counted(0))
    }

    /// Whether the end of the connection here is the end of the body; `Truncated` where it is not.
    pub fn end_of_input(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            State::Failed(error) => Err(error),
            _ if self.is_done() => Ok(()),
            _ => Err(BodyError::Truncated),
        }
    }

    /// The trailers that may pass on; there after `End`.
    pub fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_deref().map(|trailers| &trailers.fields).filter(|fields| !fields.is_empty())
    }

    fn or_fail<T>(&mut self, result: Result<T, BodyError>) -> Result<T, BodyError> {
        result.inspect_err(|error| self.state = State::Failed(*error))
    }

    /// One byte of chunk framing.
    fn step(&mut self, byte: u8) -> Result<State, BodyError> {
        match (self.state, byte) {
            (State::Size { digits: 1.., value }, b'\r') => Ok(State::SizeEnd { value }),
            (State::Size { digits: 1.., value }, b';') => {
                self.pending = value;
                self.count_extension()?;
                Ok(State::Extension(Extension::NameStart))
            }
            (State::Size { value, digits }, _) => add_digit(value, digits, byte),
            (State::Extension(part), b'\r') if part.may_end() => Ok(State::SizeEnd { value: self.pending }),
            (State::Extension(part), _) => {
                self.count_extension()?;
                Ok(State::Extension(part.next(byte).ok_or(BodyError::ChunkExtension)?))
            }
            (State::SizeEnd { value: 0 }, b'\n') => Ok(State::Trailers),
            (State::SizeEnd { value }, b'\n') => Ok(State::Chunk(value)),
            (State::ChunkCr, b'\r') => Ok(State::ChunkLf),
            (State::ChunkLf, b'\n') => Ok(State::Size { value: 0, digits: 0 }),
            _ => Err(BodyError::LineEnd),
        }
    }

    fn count_extension(&mut self) -> Result<(), BodyError> {
        self.extension_bytes += 1;
        if self.extension_bytes > self.limits.chunk_extension_bytes {
            return Err(BodyError::ExtensionsTooLarge);
        }
        Ok(())
    }

    /// Takes input up to the end of the trailers; returns how much of it was taken.
    fn read_trailers(&mut self, input: &[u8]) -> Result<usize, BodyError> {
        if self.trailers.is_none() {
            if input.starts_with(b"\r\n") {
                self.state = State::Done;
                return Ok(2);
            }
            if input.is_empty() {
                return Ok(0);
            }
        }
        let trailers = self.trailers.get_or_insert_default();
        if trailers.block.is_empty() {
            trailers.block.extend_from_slice(b"\r\n");
        }
        let before = trailers.block.len();
        // Two bytes more than the limit are the CRLF of ours.
        let room = (self.limits.trailer_bytes + 2).saturating_sub(before);
        let taken = room.min(input.len());
        trailers.block.extend_from_slice(&input[..taken]);
        match find_head_end(&trailers.block, trailers.scanned) {
            HeadEnd::Complete(len) => {
                trailers.block.truncate(len);
                trailers.parse(&self.limits)?;
                self.state = State::Done;
                Ok(len - before)
            }
            HeadEnd::Partial { .. } if taken < input.len() => Err(BodyError::TrailersTooLarge),
            HeadEnd::Partial { scanned } => {
                trailers.scanned = scanned;
                Ok(taken)
            }
        }
    }
}

/// At most 16 hexadecimal digits, and the size below 2^63.
fn add_digit(value: u64, digits: u8, byte: u8) -> Result<State, BodyError> {
    let digit = char::from(byte).to_digit(16).ok_or(BodyError::ChunkSize)?;
    if digits == 16 || value >= 1 << 59 {
        return Err(BodyError::ChunkSize);
    }
    Ok(State::Size { value: value * 16 + u64::from(digit), digits: digits + 1 })
}

impl Extension {
    fn may_end(self) -> bool {
        matches!(self, Extension::Name | Extension::Value | Extension::QuoteEnd)
    }

    /// RFC 9112 §7.1.1, without the blanks that it tolerates between the parts.
    fn next(self, byte: u8) -> Option<Extension> {
        match (self, byte) {
            (Extension::Name | Extension::Value | Extension::QuoteEnd, b';') => Some(Extension::NameStart),
            (Extension::Name, b'=') => Some(Extension::ValueStart),
            (Extension::NameStart | Extension::Name, _) if is_token_byte(byte) => Some(Extension::Name),
            (Extension::ValueStart, b'"') => Some(Extension::Quoted),
            (Extension::ValueStart | Extension::Value, _) if is_token_byte(byte) => Some(Extension::Value),
            (Extension::Quoted, b'"') => Some(Extension::QuoteEnd),
            (Extension::Quoted, b'\\') => Some(Extension::Escaped),
            (Extension::Quoted | Extension::Escaped, b'\t' | b' '..=b'~' | 0x80..) => Some(Extension::Quoted),
            _ => None,
        }
    }
}

impl Trailers {
    fn parse(&mut self, limits: &BodyLimits) -> Result<(), BodyError> {
        if !self.block.ends_with(b"\r\n\r\n") {
            return Err(BodyError::Trailer);
        }
        let lines = &self.block[2..];
        let mut room = vec![httparse::EMPTY_HEADER; limits.fields];
        match httparse::parse_headers(lines, &mut room) {
            Ok(httparse::Status::Complete((len, headers))) if len == lines.len() => {
                let loader = Loader::new(lines, &mut self.fields);
                for header in headers {
                    loader.push(header, &mut self.fields).map_err(|BareLineFeed| BodyError::Trailer)?;
                }
                self.fields
                    .retain(|id, name| may_pass(name, limits.underscores) && !is_forbidden_trailer(id, name));
                Ok(())
            }
            Err(httparse::Error::TooManyHeaders) => Err(BodyError::TrailersTooLarge),
            _ => Err(BodyError::Trailer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::encode;
    use proptest::prelude::*;

    const LIMITS: BodyLimits = BodyLimits {
        trailer_bytes: 16 << 10,
        chunk_extension_bytes: 16 << 10,
        fields: 100,
        underscores: Underscores::Drop,
    };

    #[derive(Debug, PartialEq, Eq)]
    struct Body {
        payload: Vec<u8>,
        /// Bytes of the message; what follows is another one's. `None` while it is not complete.
        end: Option<usize>,
        trailers: String,
    }

    /// Reads a body that arrives in pieces of these lengths, then the rest at once; payload is taken
    /// at most `appetite` bytes at a time.
    fn read(
        mut decoder: BodyDecoder,
        wire: &[u8],
        pieces: &[usize],
        appetite: usize,
    ) -> Result<Body, BodyError> {
        let (mut payload, mut start, mut seen) = (Vec::new(), 0, 0);
        let mut pieces = pieces.iter().copied();
        let end = loop {
            match decoder.decode(&wire[start..seen])? {
                Decoded::Data { skip, len } => {
                    assert!(len > 0);
                    let taken = len.min(appetite);
                    payload.extend_from_slice(&wire[start + skip..][..taken]);
                    decoder.advance(taken);
                    start += skip + taken;
                }
                Decoded::NeedMore { skip } => {
                    start += skip;
                    assert_eq!(start, seen, "nothing is left behind");
                    if seen == wire.len() {
                        break None;
                    }
                    seen = pieces.next().map_or(wire.len(), |piece| wire.len().min(seen + piece));
                }
                Decoded::End { skip } => break Some(start + skip),
            }
        };
        assert_eq!(decoder.is_done(), end.is_some());
        let mut trailers = Vec::new();
        if let Some(fields) = decoder.trailers() {
            fields.write_lines(&mut trailers, |_| true);
        }
        Ok(Body { payload, end, trailers: String::from_utf8(trailers).unwrap() })
    }

    fn chunked_with(wire: &[u8], limits: BodyLimits) -> Result<Body, BodyError> {
        read(BodyDecoder::new(BodyLength::Streamed, limits), wire, &[], usize::MAX)
    }

    fn chunked(wire: impl AsRef<[u8]>) -> Result<Body, BodyError> {
        chunked_with(wire.as_ref(), LIMITS)
    }

    #[track_caller]
    fn refuses(wires: &[&str], error: BodyError) {
        for wire in wires {
            assert_eq!(chunked(wire), Err(error), "{}", wire.escape_debug());
            let pieces = vec![1; wire.len()];
            let dripped = read(BodyDecoder::new(BodyLength::Streamed, LIMITS), wire.as_bytes(), &pieces, 1);
            assert_eq!(dripped, Err(error), "{} byte by byte", wire.escape_debug());
        }
    }

    #[test]
    fn rejects_chunk_sizes_that_are_not_plain_hexadecimal() {
        refuses(
            &[
                "+5\r\n",
                "-5\r\n",
                " 5\r\n",
                "\t5\r\n",
                "0x5\r\n",
                "5_0\r\n",
                "\r\n",
                ";a\r\n",
                "g\r\n",
                "5 \r\n",
                "5\t\r\n",
                "5 5\r\n",
                "\n",
                "5\n",
                "5\0\r\n",
                "5,\r\n",
                "00000000000000005\r\n",
                "10000000000000000\r\n",
                "8000000000000000\r\n",
                "ffffffffffffffff\r\n",
                "1\r\na\r\n\r\n",
                "1\r\na\r\n +0\r\n",
                "5 ;a\r\n",
                "\u{ff15}\r\n",
            ],
            BodyError::ChunkSize,
        );
        assert_eq!(chunked("7fffffffffffffff\r\n").unwrap().end, None);
        assert_eq!(chunked("0000000000000001\r\na\r\n0000000000000000\r\n\r\n").unwrap().end, Some(41));
    }

    #[test]
    fn rejects_what_is_not_crlf_around_chunks() {
        refuses(
            &[
                "1\r\r\n",
                "1\rx",
                "1\r\na\n0\r\n\r\n",
                "1\r\nab\r\n",
                "1\r\na\rb",
                "1\r\na\r\r\n",
                "1\r\na0\r\n\r\n",
                "1;a\rx",
                "0\rx\r\n",
            ],
            BodyError::LineEnd,
        );
    }

    #[test]
    fn rejects_chunk_extensions_that_hide_line_ends_or_break_the_grammar() {
        refuses(
            &[
                "1;\n",
                "1;a\nb\r\n",
                "1;a\0\r\n",
                "1;\r\n",
                "1; a\r\n",
                "1;a \r\n",
                "1;a =b\r\n",
                "1;a= b\r\n",
                "1;a=\r\n",
                "1;a=b;\r\n",
                "1;;a\r\n",
                "1;=b\r\n",
                "1;a=b=c\r\n",
                "1;a=\"b\r\n",
                "1;a=\"\n\"\r\n",
                "1;a=\"b\"c\r\n",
                "1;a=\"\0\"\r\n",
                "1;a=\"\\\r\n",
                "1;a\"b\"\r\n",
                "1;a,b\r\n",
                "1;a=(b)\r\n",
                "1;a=\"\x7f\"\r\n",
                "1;a\u{e9}\r\n",
                "0;\n\r\n",
                "1;a\x0b\r\n",
            ],
            BodyError::ChunkExtension,
        );
    }

    #[test]
    fn takes_chunk_extensions_and_forgets_them() {
        for extension in
            ["a", "a=b", "a;b;c=d", "a=\"b c;\\\"\t\u{e9}\"", "a=\"\"", "a=\"\\\\\";b", "!#$=%&'"]
        {
            let wire = format!("1;{extension}\r\nx\r\n0;{extension}\r\n\r\n");
            let body = chunked(&wire).unwrap();
            assert_eq!((body.payload.as_slice(), body.end), (&b"x"[..], Some(wire.len())), "{extension}");
        }
    }

    #[test]
    fn holds_the_extensions_of_a_message_to_the_byte() {
        // Nine bytes with their semicolons, over three chunks.
        let wire = b"1;ab\r\nx\r\n1;cde\r\nx\r\n0;f\r\n\r\n";
        let limit = |bytes| BodyLimits { chunk_extension_bytes: bytes, ..LIMITS };
        assert!(chunked_with(wire, limit(10)).is_ok());
        assert!(chunked_with(wire, limit(9)).is_ok());
        assert_eq!(chunked_with(wire, limit(8)), Err(BodyError::ExtensionsTooLarge));
        let endless = format!("1;{}", "a".repeat(16 << 10));
        assert_eq!(chunked(endless), Err(BodyError::ExtensionsTooLarge));
    }

    #[test]
    fn rejects_malformed_trailers() {
        refuses(
            &[
                "0\r\n\n",
                "0\r\nx\r\n\r\n",
                "0\r\n a: b\r\n\r\n",
                "0\r\na : b\r\n\r\n",
                "0\r\na: b\r\n c\r\n\r\n",
                "0\r\n: b\r\n\r\n",
                "0\r\na: b\n\r\n",
                "0\r\na: b\n\n",
                "0\r\na: b\r\n\n",
                "0\r\na: \0\r\n\r\n",
                "0\r\na: b\nc: d\r\n\r\n",
                "0\r\na: b\rc: d\r\n\r\n",
                "0\r\na:\n\r\n",
                "0\r\n\rx\r\n\r\n",
                "0\r\na: b\t\n\r\n",
            ],
            BodyError::Trailer,
        );
    }

    #[test]
    fn drops_forbidden_trailers() {
        let wire = "0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: b\r\nAuthorization: x\r\nCookie: x\r\n\
            Set-Cookie: x\r\nX-Forwarded-For: x\r\nX-Forwarded-Anything: x\r\nForwarded: x\r\nX-Request-Id: x\r\n\
            Via: x\r\nConnection: x\r\nTE: x\r\nTrailer: x\r\nUpgrade: x\r\nContent-Type: x\r\nContent-Encoding: x\r\n\
            Cache-Control: x\r\nExpect: x\r\nX-Real-IP: x\r\nX-Portcullis-Reason: x\r\nX_A: x\r\nKeep-Alive: x\r\n\
            Grpc-Status:  0 \r\nX-Sum: abc\r\nIf-Match: x\r\nProxy-Authorization: x\r\nWWW-Authenticate: x\r\n\r\n";
        let body = chunked(wire).unwrap();
        assert_eq!(
            (body.trailers.as_str(), body.end),
            ("grpc-status: 0\r\nx-sum: abc\r\n", Some(wire.len()))
        );
        let keep = BodyLimits { underscores: Underscores::Keep, ..LIMITS };
        assert_eq!(chunked_with(b"0\r\nx_a: b\r\n\r\n", keep).unwrap().trailers, "x_a: b\r\n");
    }

    #[test]
    fn holds_trailers_to_the_byte_and_the_field() {
        let wire = b"0\r\na: b\r\nc: d\r\n\r\n";
        let limits = |trailer_bytes, fields| BodyLimits { trailer_bytes, fields, ..LIMITS };
        assert!(chunked_with(wire, limits(15, 3)).is_ok());
        assert!(chunked_with(wire, limits(14, 2)).is_ok());
        assert_eq!(chunked_with(wire, limits(13, 2)), Err(BodyError::TrailersTooLarge));
        assert_eq!(chunked_with(wire, limits(14, 1)), Err(BodyError::TrailersTooLarge));
        let endless = format!("0\r\na: {}", "b".repeat(16 << 10));
        assert_eq!(chunked(endless), Err(BodyError::TrailersTooLarge));
        assert!(chunked_with(b"0\r\n\r\n", limits(0, 0)).is_ok());
    }

    #[test]
    fn leaves_what_follows_alone() {
        let follows = b"GET /next HTTP/1.1\r\n\r\n";
        for wire in [&b"3\r\nabc\r\n0\r\n\r\n"[..], b"3\r\nabc\r\n0\r\na: b\r\n\r\n"] {
            let body = chunked([wire, follows].concat()).unwrap();
            assert_eq!((body.payload.as_slice(), body.end), (&b"abc"[..], Some(wire.len())));
        }
        let exact = BodyDecoder::new(BodyLength::Exact(3), LIMITS);
        assert_eq!(read(exact, b"abcGET", &[], 2).unwrap().end, Some(3));
        let empty = BodyDecoder::new(BodyLength::Empty, LIMITS);
        assert_eq!(read(empty, follows, &[], 1).unwrap().end, Some(0));
    }

    #[test]
    fn an_error_is_for_ever() {
        let mut decoder = BodyDecoder::new(BodyLength::Streamed, LIMITS);
        assert_eq!(decoder.decode(b"x"), Err(BodyError::ChunkSize));
        assert_eq!(decoder.decode(b"0\r\n\r\n"), Err(BodyError::ChunkSize));
        assert_eq!(decoder.end_of_input(), Err(BodyError::ChunkSize));
        assert!(!decoder.is_done());
    }

    #[test]
    fn only_a_body_until_close_may_end_with_the_connection() {
        let end = |length, input: &[u8]| {
            let mut decoder = BodyDecoder::new(length, LIMITS);
            if let Ok(Decoded::Data { len, .. }) = decoder.decode(input) {
                decoder.advance(len);
            }
            decoder.end_of_input()
        };
        assert_eq!(end(BodyLength::UntilClose, b"abc"), Ok(()));
        assert_eq!(end(BodyLength::UntilClose, b""), Ok(()));
        assert_eq!(end(BodyLength::Exact(3), b"abc"), Ok(()));
        assert_eq!(end(BodyLength::Exact(4), b"abc"), Err(BodyError::Truncated));
        assert_eq!(end(BodyLength::Streamed, b"3\r\nabc"), Err(BodyError::Truncated));
        assert_eq!(end(BodyLength::Streamed, b"0\r\n"), Err(BodyError::Truncated));
        assert_eq!(end(BodyLength::Streamed, b""), Err(BodyError::Truncated));
        assert_eq!(end(BodyLength::Streamed, b"0\r\n\r\n"), Ok(()));
    }

    #[test]
    fn every_split_of_a_body_reads_the_same() {
        for wire in [
            &b"5\r\nhello\r\n10;a=\"b\\\"\"\r\n0123456789abcdef\r\n0\r\n\r\n"[..],
            b"1\r\n\r\r\n1\r\n\n\r\n0\r\ngrpc-status: 0\r\nhost: x\r\n\r\n",
            b"0\r\n\r\n",
            b"0\r\na:\r\n\r\nGET",
        ] {
            let whole = chunked(wire).unwrap();
            for first in 0..=wire.len() {
                for second in 0..=wire.len() - first {
                    let decoder = BodyDecoder::new(BodyLength::Streamed, LIMITS);
                    let split = read(decoder, wire, &[first, second], usize::MAX).unwrap();
                    assert_eq!(split, whole);
                }
            }
            let decoder = BodyDecoder::new(BodyLength::Streamed, LIMITS);
            assert_eq!(read(decoder, wire, &vec![1; wire.len()], 1).unwrap(), whole);
        }
    }

    /// What a chunked body without trailers and extensions is, read the slow way.
    fn model(mut wire: &[u8]) -> Option<(Vec<u8>, &[u8])> {
        let mut payload = Vec::new();
        loop {
            let end = wire.windows(2).position(|pair| pair == b"\r\n")?;
            let digits = str::from_utf8(&wire[..end]).ok()?;
            if digits.is_empty() || digits.len() > 16 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit())
            {
                return None;
            }
            let size = usize::from_str_radix(digits, 16).ok()?;
            wire = &wire[end + 2..];
            payload.extend_from_slice(wire.get(..size)?);
            wire = wire.get(size..)?.strip_prefix(b"\r\n")?;
            if size == 0 {
                return Some((payload, wire));
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_decoded(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..8),
            trailer in proptest::option::of("[ -~]{0,20}"),
            pieces in proptest::collection::vec(0..50_usize, 0..20),
            appetite in 1..100_usize,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                encode::write_chunk_header(&mut wire, chunk.len());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(encode::CRLF);
            }
            let mut trailers = Fields::default();
            match &trailer {
                Some(value) => {
                    trailers.push(b"x-sum", value.trim().as_bytes());
                    encode::write_trailers(&mut wire, &trailers);
                }
                None => wire.extend_from_slice(encode::LAST_CHUNK),
            }
            let body = read(BodyDecoder::new(BodyLength::Streamed, LIMITS), &wire, &pieces, appetite).unwrap();
            prop_assert_eq!(body.payload, chunks.concat());
            prop_assert_eq!(body.end, Some(wire.len()));
            let expected = trailer.map_or(String::new(), |value| format!("x-sum: {}\r\n", value.trim()));
            prop_assert_eq!(body.trailers, expected);
        }

        #[test]
        fn agrees_with_a_slow_reading(wire in "([0-3a]{0,2}(\r\n|\r|\n)?[ab]{0,3}(\r\n)?){0,4}(0\r\n\r\n)?[a0]?") {
            let body = chunked(&wire);
            match model(wire.as_bytes()) {
                Some((payload, rest)) => {
                    let body = body.unwrap();
                    prop_assert_eq!(body.payload, payload);
                    prop_assert_eq!(body.end, Some(wire.len() - rest.len()));
                }
                // Trailers are beyond the model.
                None => prop_assert!(body.map_or(true, |body| body.end.is_none() || !body.trailers.is_empty())),
            }
        }
    }
}
