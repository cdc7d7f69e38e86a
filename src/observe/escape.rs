//! How do bytes that a stranger chose get into a log line without breaking it?
//!
//! Everything that ends a line, moves a cursor or turns the direction of text is written as
//! `\uXXXX`, and so are bytes that are no UTF-8 (as `\ufffd`, the replacement character).

/// A name that is escaped once, for all the lines that it will stand in.
#[derive(Clone, Debug)]
pub struct Quoted(Box<[u8]>);

impl Quoted {
    pub fn new(name: &str) -> Self {
        let mut text = Vec::with_capacity(name.len() + 2);
        quoted(name.as_bytes(), &mut text);
        Quoted(text.into())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Appends `"…"`, a JSON string that decodes to `bytes` (what is no UTF-8 becomes U+FFFD).
pub(super) fn quoted(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    quoted_part(bytes, out);
    out.push(b'"');
}

/// The same without the quotation marks, for a string made of several parts.
pub(super) fn quoted_part(bytes: &[u8], out: &mut Vec<u8>) {
    if is_plain(bytes) {
        out.extend_from_slice(bytes);
    } else {
        escape(bytes, |c| matches!(c, '"' | '\\') || breaks_a_line(c), out);
    }
}

/// Whether there is nothing to escape, as is nearly always so: printable ASCII without `"` and `\`.
///
/// Eight bytes at a time: most strings are too short for what the compiler makes of a loop over
/// bytes.
fn is_plain(bytes: &[u8]) -> bool {
    let Some(last) = bytes.last_chunk() else {
        return bytes.iter().all(|&byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\');
    };
    // The last eight are looked at whatever came before them.
    let (words, _) = bytes.as_chunks();
    words.iter().fold(odd_ones(*last), |seen, word| seen | odd_ones(*word)) == 0
}

/// Not 0 where one of the bytes is not plain (Sean Anderson, "Bit Twiddling Hacks").
fn odd_ones(word: [u8; 8]) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let word = u64::from_ne_bytes(word);
    // The upper bit of each byte that is below `bound`, or at least of the lowest such byte.
    let below = |word: u64, bound: u64| word.wrapping_sub(ONES * bound) & !word;
    let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let del_or_beyond = word | word.wrapping_add(ONES);
    (below(word, 0x20) | is(b'"') | is(b'\\') | del_or_beyond) & (ONES << 7)
}

/// Appends `bytes` with only what could break a line escaped.
pub(super) fn one_line(bytes: &[u8], out: &mut Vec<u8>) {
    escape(bytes, breaks_a_line, out);
}

/// Control characters (C0, DEL, C1), line separators, and marks that reorder text on a screen.
fn breaks_a_line(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cold]
fn escape(bytes: &[u8], must: impl Fn(char) -> bool, out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(at) = rest.find(&must) {
            let (clean, tail) = rest.split_at(at);
            out.extend_from_slice(clean.as_bytes());
            let mut characters = tail.chars();
            if let Some(c) = characters.next() {
                escape_one(c, out);
            }
            rest = characters.as_str();
        }
        out.extend_from_slice(rest.as_bytes());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

fn escape_one(c: char, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    match c {
        '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
        _ => {
            // Nothing beyond the basic plane is ever escaped: one unit is enough.
            let unit = c as usize;
            let digit = |shift: u32| DIGITS[(unit >> shift) & 15];
            out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(write: fn(&[u8], &mut Vec<u8>), bytes: &[u8]) -> String {
        let mut out = Vec::new();
        write(bytes, &mut out);
        String::from_utf8(out).expect("always UTF-8")
    }

    #[test]
    fn hostile_bytes_are_escaped() {
        let cases: &[(&[u8], &str)] = &[
            (b"", r#""""#),
            (b"plain /a?b=c~", r#""plain /a?b=c~""#),
            (b"\"\\", r#""\"\\""#),
            (b"a\r\nb\tc\0\x1b[2J", r#""a\u000d\u000ab\u0009c\u0000\u001b[2J""#),
            (b"\x7f", r#""\u007f""#),
            ("\u{80}\u{85}\u{9f}\u{a0}".as_bytes(), "\"\\u0080\\u0085\\u009f\u{a0}\""),
            ("\u{2028}\u{2029}".as_bytes(), r#""\u2028\u2029""#),
            ("\u{202e}\u{2066}\u{200f}".as_bytes(), r#""\u202e\u2066\u200f""#),
            ("Zoë 🦀".as_bytes(), "\"Zoë 🦀\""),
            (b"a\xffb", r#""a\ufffdb""#),
            // An overlong NUL, a surrogate, a sequence that is cut short.
            (b"\xc0\x80", r#""\ufffd\ufffd""#),
            (b"\xed\xa0\x80", r#""\ufffd\ufffd\ufffd""#),
            (b"\xf0\x9f\xa6", r#""\ufffd""#),
        ];
        for (bytes, expected) in cases {
            assert_eq!(with(quoted, bytes), *expected, "{bytes:?}");
        }
    }

    #[test]
    fn every_byte_is_judged_alike_wherever_it_stands() {
        for byte in 0..=u8::MAX {
            let plain = matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
            for length in 1..=25 {
                for at in 0..length {
                    let mut bytes = vec![b'a'; length];
                    bytes[at] = byte;
                    assert_eq!(is_plain(&bytes), plain, "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn one_line_keeps_quotes_and_backslashes() {
        assert_eq!(with(one_line, b"path \"a\\b\"\n{"), "path \"a\\b\"\\u000a{");
    }

    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let odd = prop::sample::select(vec![
            &b"\""[..],
            b"\\",
            b"\n",
            b"\r",
            b"\0",
            b"\x1b",
            b"\x7f",
            b"\xc2\x85",
            b"\xe2\x80\xa8",
            b"\xff",
            b"\xe2\x80",
            b"\xf0\x9f",
            b"a",
            b"\\u000a",
        ]);
        let parts = prop::collection::vec(odd, 0..20).prop_map(|parts| parts.concat());
        prop_oneof![parts, prop::collection::vec(any::<u8>(), 0..64), any::<String>().prop_map(Into::into)]
    }

    proptest! {
        #[test]
        fn a_quoted_string_decodes_to_what_went_in(bytes in hostile()) {
            let line = with(quoted, &bytes);
            let decoded: String = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(decoded, String::from_utf8_lossy(&bytes).into_owned());
            prop_assert!(!line.chars().any(breaks_a_line));
        }

        #[test]
        fn one_line_is_one_line(bytes in hostile()) {
            prop_assert!(!with(one_line, &bytes).chars().any(breaks_a_line));
        }
    }
}
