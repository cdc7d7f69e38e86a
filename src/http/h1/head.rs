//! Where does a head end, and is it one that may be parsed at all?
//!
//! First step of the codec: the connection asks `find_head_end` after each read, then hands the
//! whole head to `request` or `response`.

use std::mem::MaybeUninit;

use memchr::memchr_iter;

/// Sizes of one head, in bytes; over any of them it is refused.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// The whole head with its blank line.
    pub head_bytes: usize,
    /// The request target as it was sent.
    pub uri_bytes: usize,
    /// Name and value of one field.
    pub field_bytes: usize,
    /// Number of fields.
    pub fields: usize,
    pub underscores: Underscores,
}

/// What becomes of request fields whose name holds a `_`: CGI and its heirs can't tell it from `-`,
/// so `x_forwarded_for` would pass for a field of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underscores {
    #[default]
    Drop,
    Keep,
}

/// Answer of [`find_head_end`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadEnd {
    /// Bytes of the head, its blank line included.
    Complete(usize),
    /// No end yet; pass `scanned` on to the next call, when there are more bytes.
    Partial { scanned: usize },
}

/// Looks for the blank line that ends a head.
///
/// A blank line with a bare LF counts too: such a head is refused by the parsers, at once instead of
/// at a deadline. Cost: one pass over the new bytes and the two before them, however they arrive.
pub fn find_head_end(buffer: &[u8], scanned: usize) -> HeadEnd {
    let start = scanned.saturating_sub(2).min(buffer.len());
    for found in memchr_iter(b'\n', &buffer[start..]) {
        let next = start + found + 1;
        match &buffer[next..] {
            [b'\n', ..] => return HeadEnd::Complete(next + 1),
            [b'\r', b'\n', ..] => return HeadEnd::Complete(next + 2),
            _ => {}
        }
    }
    HeadEnd::Partial { scanned: buffer.len() }
}

/// Fields that are tokenised without an allocation.
pub(super) const STACK_FIELDS: usize = 128;

pub(super) type Room<'b> = MaybeUninit<httparse::Header<'b>>;

/// Whether every line ends in CRLF, and CR, LF and NUL are nowhere else.
///
/// httparse takes a bare LF for a line end. Cost: one vectorised pass.
pub(super) fn has_strict_line_ends(head: &[u8]) -> bool {
    let ([first, rest @ ..], Some(last)) = (head, head.last()) else { return false };
    let mut bad = u8::from(*first == b'\n' || *last == b'\r');
    for (&byte, &next) in head.iter().zip(rest) {
        bad |= (u8::from(byte == b'\r') ^ u8::from(next == b'\n')) | u8::from(byte == 0);
    }
    bad == 0
}

/// Where `part` begins in `whole`, of which it is a slice.
pub(super) fn offset_in(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - whole.as_ptr().addr()
}
