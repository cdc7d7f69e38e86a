//! How long is the body, by the fields of its head? (RFC 9112 §6.3, strictly)
//!
//! Everything that two parsers could read in two ways is an error.

use super::head::offset_in;

/// What `content-length` and `transfer-encoding` of one head say.
#[derive(Debug, Default)]
pub(super) struct Length<'b> {
    content_length: Option<(&'b [u8], u64)>,
    chunked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LengthError {
    /// Not a plain number below 2^63, or two that differ.
    ContentLength,
    /// Neither exactly `chunked` nor a list that ends in it.
    TransferEncoding,
    /// Codings that we do not have, and `chunked` last.
    UnsupportedCoding,
    /// `content-length` beside `transfer-encoding`.
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Unsaid,
    Exact(u64),
    Chunked,
}

impl<'b> Length<'b> {
    /// Takes one `content-length`; `Ok(false)` for one that repeats what is known.
    pub(super) fn content_length(&mut self, value: &'b [u8]) -> Result<bool, LengthError> {
        match self.content_length {
            Some((first, _)) if first == value => Ok(false),
            Some(_) => Err(LengthError::ContentLength),
            None => {
                let number = parse_content_length(value).ok_or(LengthError::ContentLength)?;
                self.content_length = Some((value, number));
                Ok(true)
            }
        }
    }

    /// Takes one `transfer-encoding`, a part of `head`.
    pub(super) fn transfer_encoding(&mut self, head: &[u8], value: &[u8]) -> Result<(), LengthError> {
        if self.chunked || !has_plain_blanks(head, value) {
            return Err(LengthError::TransferEncoding);
        }
        if value.eq_ignore_ascii_case(b"chunked") {
            self.chunked = true;
            return Ok(());
        }
        Err(refusal_of_coding(value))
    }

    pub(super) fn framing(&self) -> Result<Framing, LengthError> {
        match (self.content_length, self.chunked) {
            (Some(_), true) => Err(LengthError::Both),
            (None, true) => Ok(Framing::Chunked),
            (Some((_, number)), false) => Ok(Framing::Exact(number)),
            (None, false) => Ok(Framing::Unsaid),
        }
    }
}

/// Digits only, below 2^63.
pub(in crate::http) fn parse_content_length(value: &[u8]) -> Option<u64> {
    // 2^63 has 19 digits, so nothing of this length overflows.
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    let mut number = 0;
    for byte in value {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number * 10 + u64::from(byte - b'0');
    }
    (number < 1 << 63).then_some(number)
}

/// Whether at most one space stands between the colon and the value and nothing behind it: odd
/// blanks around `chunked` are how one parser is made to miss it.
fn has_plain_blanks(head: &[u8], value: &[u8]) -> bool {
    let start = offset_in(head, value);
    let end = start + value.len();
    let (before, after) = (&head[..start], &head[end..]);
    (before.ends_with(b":") || before.ends_with(b": ")) && after.starts_with(b"\r\n")
}

fn refusal_of_coding(value: &[u8]) -> LengthError {
    let mut codings = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).rev();
    let chunked_is_last = codings.next().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
    let known = |coding: &[u8]| {
        [&b"gzip"[..], b"x-gzip", b"deflate", b"compress", b"x-compress"]
            .iter()
            .any(|known| coding.eq_ignore_ascii_case(known))
    };
    if chunked_is_last && codings.all(known) {
        LengthError::UnsupportedCoding
    } else {
        LengthError::TransferEncoding
    }
}
