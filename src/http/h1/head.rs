//! Where does a head end, and is it one that may be parsed at all?
//!
//! First step of the codec: the connection asks `find_head_end` after each read, then hands the
//! whole head to `request` or `response`.

use std::mem::MaybeUninit;

use memchr::memchr;

pub use crate::http::fields::Underscores;
use crate::http::fields::{FieldId, Fields};

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
    let mut start = scanned.saturating_sub(2).min(buffer.len());
    while let Some(window) = buffer[start..].first_chunk()
        && !may_hold_blank_line(window)
    {
        start += STRETCH;
    }
    while let Some(line) = memchr(b'\n', &buffer[start..]) {
        start += line + 1;
        match &buffer[start..] {
            [b'\n', ..] => return HeadEnd::Complete(start + 1),
            [b'\r', b'\n', ..] => return HeadEnd::Complete(start + 2),
            _ => {}
        }
    }
    HeadEnd::Partial { scanned: buffer.len() }
}

/// Bytes that are searched at once.
const STRETCH: usize = 32;

/// Whether a blank line may begin in the stretch; the window holds one byte more.
///
/// No early exit, and numbers instead of `bool`: the compiler makes vector instructions of it.
fn may_hold_blank_line(window: &[u8; STRETCH + 1]) -> bool {
    let is = |byte: u8, wanted: u8| u8::from(byte == wanted);
    let begins = |a: u8, b: u8| is(a, b'\n') & (is(b, b'\n') | is(b, b'\r'));
    window.iter().zip(&window[1..]).fold(0, |seen, (&a, &b)| seen | begins(a, b)) != 0
}

/// Fields that are tokenised without an allocation.
pub(super) const STACK_FIELDS: usize = 128;

pub(super) type Room<'b> = MaybeUninit<httparse::Header<'b>>;

/// Whether first line and blank line end in CRLF.
///
/// httparse takes a bare LF for a line end; that is all it forgives, so with the lines between them
/// checked by [`Loader`], CR, LF and NUL are nowhere but in line ends.
pub(super) fn has_strict_frame(head: &[u8]) -> bool {
    let first = memchr(b'\n', head).and_then(|end| head[..end].last());
    first == Some(&b'\r') && head.ends_with(b"\r\n\r\n")
}

/// Where `part` begins in `whole`, of which it is a slice.
pub(super) fn offset_in(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - whole.as_ptr().addr()
}

/// Brings tokenised fields into [`Fields`]: one copy of the lines, then each field by its place.
pub(super) struct Loader<'b> {
    lines: &'b [u8],
    /// What to add to a place in the lines to have it in the block of the fields.
    base: usize,
}

/// A field line that ends in a bare LF.
#[derive(Debug)]
pub(super) struct BareLineFeed;

impl<'b> Loader<'b> {
    /// Begins with `lines`, of which all fields to come are parts.
    pub(super) fn new(lines: &'b [u8], fields: &mut Fields) -> Loader<'b> {
        Loader { lines, base: fields.load(lines) }
    }

    /// Appends one field.
    pub(super) fn push(
        &self,
        header: &httparse::Header<'b>,
        fields: &mut Fields,
    ) -> Result<FieldId, BareLineFeed> {
        let (name, value) = (header.name.as_bytes(), header.value);
        let start = offset_in(self.lines, name);
        let value_start = offset_in(self.lines, value);
        let (before, after) = self.lines.split_at(value_start + value.len());
        let follows_directly = after.first() == Some(&b'\r');
        if follows_directly && value_start == start + name.len() + 2 && before[value_start - 1] == b' ' {
            return Ok(fields.push_line(self.base + start, name.len(), value.len()));
        }
        let end = after.iter().find(|byte| !matches!(byte, b' ' | b'\t'));
        if end == Some(&b'\r') { Ok(fields.push(name, value)) } else { Err(BareLineFeed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_the_end_of_a_head() {
        for (buffer, end) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], 18),
            (b"GET / HTTP/1.1\r\n\r\nGET", 18),
            (b"a\r\nb\r\n\r\nc\r\n\r\n", 8),
            (b"\r\na\r\n\r\n", 7),
            (b"\r\n\r\n", 4),
        ] {
            assert_eq!(find_head_end(buffer, 0), HeadEnd::Complete(end));
        }
    }

    #[test]
    fn ends_heads_with_bare_line_feeds_at_once() {
        for (buffer, end) in [
            (&b"a\n\n"[..], 3),
            (b"a\r\n\n", 4),
            (b"a\n\r\n", 4),
            (b"a\nb\n\nc", 5),
            (b"\n\n", 2),
            (b"\n\r\n", 3),
        ] {
            assert_eq!(find_head_end(buffer, 0), HeadEnd::Complete(end));
        }
    }

    #[test]
    fn waits_where_no_blank_line_is() {
        for buffer in
            [&b""[..], b"a", b"a\r", b"a\r\n", b"a\r\n\r", b"a\n\r", b"a\r\n\rb\r\n", b"\r\n", b"\r\r\n"]
        {
            assert_eq!(find_head_end(buffer, 0), HeadEnd::Partial { scanned: buffer.len() });
        }
    }

    /// The shortest beginning that ends in a blank line.
    fn naive_end(buffer: &[u8]) -> Option<usize> {
        let ends = |end: &usize| buffer[..*end].ends_with(b"\n\n") || buffer[..*end].ends_with(b"\n\r\n");
        (0..=buffer.len()).find(ends)
    }

    proptest! {
        #[test]
        fn finds_the_same_end_wherever_it_lies(buffer in "(a{0,40}[a\\r\\n]{0,8}){0,6}") {
            let expected = naive_end(buffer.as_bytes());
            let found = match find_head_end(buffer.as_bytes(), 0) {
                HeadEnd::Complete(end) => Some(end),
                HeadEnd::Partial { .. } => None,
            };
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn drips_find_the_same_end(buffer in "[a\\r\\n]{0,40}", cuts in proptest::collection::vec(0..40_usize, 0..6)) {
            let buffer = buffer.as_bytes();
            let whole = (0..=buffer.len()).find_map(|len| match find_head_end(&buffer[..len], 0) {
                HeadEnd::Complete(end) => Some(end),
                HeadEnd::Partial { .. } => None,
            });
            let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut < buffer.len()).collect();
            cuts.push(buffer.len());
            cuts.sort_unstable();
            for cuts in [cuts, (0..=buffer.len()).collect()] {
                let mut scanned = 0;
                let mut found = None;
                for cut in cuts {
                    match find_head_end(&buffer[..cut], scanned) {
                        HeadEnd::Complete(end) => { found = Some(end); break; }
                        HeadEnd::Partial { scanned: seen } => scanned = seen,
                    }
                }
                prop_assert_eq!(found, whole);
            }
        }
    }
}
