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
        fields::{Fields, is_forbidden_trailer},
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
                self.fields.retain(|id, name| {
                    let plain = limits.underscores == Underscores::Keep || !name.contains(&b'_');
                    plain && !is_forbidden_trailer(id, name)
                });
                Ok(())
            }
            Err(httparse::Error::TooManyHeaders) => Err(BodyError::TrailersTooLarge),
            _ => Err(BodyError::Trailer),
        }
    }
}
