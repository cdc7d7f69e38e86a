//! The Huffman code of string literals (RFC 7541 §5.2, appendix B).
//!
//! The code is canonical: codes of one length are consecutive numbers in the order of their symbols,
//! and each length goes on where the one before it ended. So the lengths say everything, and the
//! tables are made of them at compile time.
//!
//! Decoding looks at eight bits at a time, which hold a whole code for letters, digits and most of
//! what else is in a path. Longer codes are found by their length.

/// Bits of each symbol's code; the last one is the end of a string, which must not occur in one.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const SYMBOLS: usize = 257;
const LONGEST: usize = 30;
const SHORTEST: usize = 5;
/// Bits that are looked up at a time.
const SHORT: usize = 8;
/// Short codes that a word is sure to hold when up to seven bits are shifted out.
const RUN: usize = 7;

/// The codes of one length.
#[derive(Clone, Copy)]
struct Group {
    /// The number behind its last code, moved up to the longest code's length.
    end: usize,
    first: usize,
    /// Where its first symbol stands in `IN_ORDER`.
    at: usize,
}

/// A code of at most `SHORT` bits; no length for the beginning of a longer one.
#[derive(Clone, Copy)]
struct ShortCode {
    symbol: u8,
    length: u8,
}

/// Short codes that follow each other.
struct Run {
    symbols: usize,
    bits: usize,
}

/// Symbols in the order of their codes, without the end of a string, which is the last.
static IN_ORDER: [u8; SYMBOLS - 1] = in_order();
static GROUPS: [Group; LONGEST + 1] = groups();
static SHORT_CODES: [ShortCode; 1 << SHORT] = short_codes();

/// Room that decoding a string of so many coded bytes takes.
pub fn text_bytes(coded_bytes: usize) -> usize {
    coded_bytes * 8 / SHORTEST + RUN
}

/// Decodes a string into `out`, which has the room that [`text_bytes`] says; returns the text's
/// length.
///
/// `None` where the string ends with anything but less than eight ones, or holds its own end.
pub fn decode(input: &[u8], out: &mut [u8]) -> Option<usize> {
    let (mut bit, mut length) = (0, 0);
    loop {
        let run = short_run(word_at(bit, input), out.get_mut(length..)?.first_chunk_mut()?);
        bit += run.bits;
        length += run.symbols;
        if run.symbols < RUN {
            // A code that reaches over the end is found out here: there are less than no bits left.
            let left = (input.len() * 8).checked_sub(bit)?;
            if left < 8 {
                return ends_with_ones(input, left).then_some(length);
            }
            let (symbol, bits) = long_code(word_at(bit, input))?;
            *out.get_mut(length)? = symbol;
            length += 1;
            bit += bits;
        }
    }
}

/// Symbols in short codes that a word begins with, as many as it is sure to hold.
#[inline]
fn short_run(mut word: u64, out: &mut [u8; RUN]) -> Run {
    let mut bits = 0;
    for (symbols, out) in out.iter_mut().enumerate() {
        let code = SHORT_CODES[usize::from(word.to_be_bytes()[0])];
        if code.length == 0 {
            return Run { symbols, bits };
        }
        *out = code.symbol;
        word <<= code.length;
        bits += usize::from(code.length);
    }
    Run { symbols: RUN, bits }
}

/// The 57 or more bits that begin here, at the top of a word; ones follow the last byte. No code but the
/// end's is all ones, so none is made up of those.
fn word_at(bit: usize, input: &[u8]) -> u64 {
    let rest = input.get(bit / 8..).unwrap_or_default();
    let word = match rest.first_chunk() {
        Some(whole) => u64::from_be_bytes(*whole),
        None => rest.iter().rev().fold(u64::MAX, |word, byte| word >> 8 | u64::from(*byte) << 56),
    };
    let shift = bit % 8;
    word << shift | ((1 << shift) - 1)
}

/// The code of more than `SHORT` bits that a word begins with, as symbol and length.
fn long_code(word: u64) -> Option<(u8, usize)> {
    let bits = usize::try_from(word >> (u64::BITS as usize - LONGEST)).ok()?;
    let length = (SHORT + 1..=LONGEST).find(|length| bits < GROUPS[*length].end)?;
    let group = GROUPS[length];
    let nth = (bits >> (LONGEST - length)) - group.first;
    Some((*IN_ORDER.get(group.at + nth)?, length))
}

/// Whether the last `bits` of a string are the beginning of its end.
fn ends_with_ones(input: &[u8], bits: usize) -> bool {
    input.last().is_none_or(|last| last.trailing_ones() as usize >= bits)
}

const fn in_order() -> [u8; SYMBOLS - 1] {
    let mut symbols = [0; SYMBOLS - 1];
    let (mut length, mut at) = (SHORTEST, 0);
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < SYMBOLS - 1 {
            if LENGTHS[symbol] as usize == length {
                symbols[at] = symbol.to_le_bytes()[0];
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    symbols
}

const fn groups() -> [Group; LONGEST + 1] {
    let mut groups = [Group { end: 0, first: 0, at: 0 }; LONGEST + 1];
    let (mut length, mut code, mut at) = (SHORTEST, 0, 0);
    while length <= LONGEST {
        groups[length].first = code;
        groups[length].at = at;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                code += 1;
                at += 1;
            }
            symbol += 1;
        }
        groups[length].end = code << (LONGEST - length);
        code <<= 1;
        length += 1;
    }
    groups
}

const fn short_codes() -> [ShortCode; 1 << SHORT] {
    let mut codes = [ShortCode { symbol: 0, length: 0 }; 1 << SHORT];
    let (groups, symbols) = (groups(), in_order());
    let (mut length, mut bits) = (SHORTEST, 0);
    while length <= SHORT {
        while bits < groups[length].end >> (LONGEST - SHORT) {
            let code = (bits >> (SHORT - length)) - groups[length].first;
            codes[bits] =
                ShortCode { symbol: symbols[groups[length].at + code], length: length.to_le_bytes()[0] };
            bits += 1;
        }
        length += 1;
    }
    codes
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    /// Each symbol's code as zeros and ones.
    static CODES: LazyLock<Vec<String>> = LazyLock::new(|| (0..SYMBOLS).map(code).collect());

    fn code(symbol: usize) -> String {
        let length = usize::from(LENGTHS[symbol]);
        let group = GROUPS[length];
        let nth = LENGTHS[..symbol].iter().filter(|each| usize::from(**each) == length).count();
        format!("{:0length$b}", group.first + nth)
    }

    /// Packs zeros and ones into bytes; ones fill the last.
    fn packed(bits: &str) -> Vec<u8> {
        let bits = format!("{bits}{}", "1".repeat((8 - bits.len() % 8) % 8));
        (0..bits.len() / 8).map(|at| u8::from_str_radix(&bits[8 * at..8 * at + 8], 2).unwrap()).collect()
    }

    fn encoded(text: &[u8]) -> Vec<u8> {
        packed(&text.iter().map(|byte| &CODES[usize::from(*byte)][..]).collect::<String>())
    }

    fn decoded(input: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; text_bytes(input.len())];
        let length = decode(input, &mut out)?;
        out.truncate(length);
        Some(out)
    }

    /// A bit at a time, as RFC 7541 §5.2 has it.
    fn decoded_by_the_book(input: &[u8]) -> Option<Vec<u8>> {
        let bits: String = input.iter().map(|byte| format!("{byte:08b}")).collect::<Vec<_>>().concat();
        let (mut text, mut at) = (Vec::new(), 0);
        while let Some(symbol) = (0..SYMBOLS).find(|symbol| bits[at..].starts_with(&CODES[*symbol])) {
            at += usize::from(LENGTHS[symbol]);
            text.push(u8::try_from(symbol).ok()?);
        }
        (bits.len() - at < 8 && bits[at..].chars().all(|bit| bit == '1')).then_some(text)
    }

    #[test]
    fn has_the_codes_of_the_rfc() {
        for (symbol, length, bits) in [
            (usize::from(b' '), 6, 0x14),
            (usize::from(b'0'), 5, 0),
            (usize::from(b'a'), 5, 0x3),
            (usize::from(b'Z'), 8, 0xfd),
            (usize::from(b'~'), 13, 0x1ffd),
            (usize::from(b'\\'), 19, 0x7fff0),
            (0, 13, 0x1ff8),
            (10, 30, 0x3fff_fffc),
            (127, 28, 0x0fff_fffc),
            (200, 26, 0x03ff_ffe2),
            (255, 26, 0x03ff_ffee),
            (256, 30, 0x3fff_ffff),
        ] {
            assert_eq!(CODES[symbol], format!("{bits:0length$b}"), "{symbol}");
        }
    }

    #[test]
    fn reads_each_symbol_behind_each_other() {
        for first in 0..=255 {
            assert_eq!(decoded(&encoded(&[first])), Some(vec![first]));
            let text: Vec<u8> = (0..=255).flat_map(|second| [first, second]).collect();
            assert_eq!(decoded(&encoded(&text)), Some(text));
        }
    }

    #[test]
    fn reads_texts_of_any_length() {
        for byte in [b'a', b'0', b'Z', b'?', b'\n', 0xff] {
            for length in 0..100 {
                let text = vec![byte; length];
                assert_eq!(decoded(&encoded(&text)), Some(text));
            }
        }
    }

    #[test]
    fn refuses_padding_of_eight_bits_or_more() {
        // "0" and "a" leave three bits, "&" none.
        for text in [&b""[..], b"0", b"a", b"&", b"www.example.com"] {
            let mut coded = encoded(text);
            assert!(decoded(&coded).is_some());
            coded.push(0xff);
            assert_eq!(decoded(&coded), None, "{}", text.escape_ascii());
        }
        assert_eq!(decoded(&packed("00011111")), Some(vec![b'a']));
    }

    #[test]
    fn refuses_padding_that_is_not_all_ones() {
        for bits in ["00011110", "00011011", "00011000", "0001111111111110"] {
            assert_eq!(decoded(&packed(bits)), None, "{bits}");
        }
        // Seven bits of "*", which would end with a one more.
        let bits = format!("{}{}{}1111100", CODES[97], CODES[32], CODES[32]);
        assert_eq!((bits.len(), decoded(&packed(&bits))), (24, None));
    }

    #[test]
    fn refuses_the_end_of_a_string_within_it() {
        let end = &CODES[SYMBOLS - 1];
        for bits in [end.clone(), format!("{}{end}", CODES[48]), format!("{end}{}", CODES[48])] {
            assert_eq!(decoded(&packed(&bits)), None, "{bits}");
        }
        assert_eq!(decoded(&[0xff; 32]), None);
    }

    #[test]
    fn refuses_codes_that_are_cut_off() {
        let coded = encoded(b"\n\xf9\xff");
        for end in 1..coded.len() {
            assert_eq!(decoded(&coded[..end]), decoded_by_the_book(&coded[..end]), "{end}");
        }
        assert_eq!(decoded(&coded[..3]), None);
    }

    #[test]
    fn reads_all_short_strings_by_the_book() {
        for word in 0..=u16::MAX {
            let input = word.to_be_bytes();
            if word < 0x100 {
                assert_eq!(decoded(&input[1..]), decoded_by_the_book(&input[1..]), "{word:x}");
            }
            // All of them would take minutes.
            if word % 251 == 0 || word >= 0xff00 {
                assert_eq!(decoded(&input), decoded_by_the_book(&input), "{word:x}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn reads_any_bytes_by_the_book(input in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xff)], 0..24)) {
            prop_assert_eq!(decoded(&input), decoded_by_the_book(&input));
        }

        #[test]
        fn reads_any_text(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(decoded(&encoded(&text)), Some(text));
        }
    }
}
