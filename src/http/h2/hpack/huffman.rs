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
/// Bits that are left of a word when up to seven are shifted out.
const WORD_BITS: usize = 57;

/// The codes of one length.
#[derive(Clone, Copy)]
struct Group {
    /// The number behind its last code, moved up to the longest code's length.
    end: u32,
    first: u32,
    /// Where its first symbol stands in `IN_ORDER`.
    at: usize,
}

/// A code of at most `SHORT` bits; no length for the beginning of a longer one.
#[derive(Clone, Copy)]
struct ShortCode {
    symbol: u8,
    length: u8,
}

/// Symbols in the order of their codes, without the end of a string, which is the last.
static IN_ORDER: [u8; SYMBOLS - 1] = in_order();
static GROUPS: [Group; LONGEST + 1] = groups();
static SHORT_CODES: [ShortCode; 1 << SHORT] = short_codes();

/// Room that the text of so many coded bytes may take.
pub fn text_bytes(coded_bytes: usize) -> usize {
    // One more, for a code that ends behind the last byte and so is none.
    coded_bytes * 8 / SHORTEST + 2
}

/// Decodes a string into `out`, which has the room that [`text_bytes`] says; returns the text's
/// length.
///
/// `None` where the string ends with anything but less than eight ones, or holds its own end.
pub fn decode(input: &[u8], out: &mut [u8]) -> Option<usize> {
    let (mut bit, mut length) = (0, 0);
    loop {
        let mut word = word_at(bit, input);
        let word_end = bit + WORD_BITS;
        while bit + SHORT <= word_end {
            let code = SHORT_CODES[word.to_be_bytes()[0] as usize];
            if code.length == 0 {
                // The end is found here too: nothing but ones follows it.
                let Some((symbol, longer)) = long_code(bit, input)? else { return Some(length) };
                out[length] = symbol;
                length += 1;
                bit += longer;
                break;
            }
            out[length] = code.symbol;
            length += 1;
            word <<= code.length;
            bit += usize::from(code.length);
        }
    }
}

/// The 57 or more bits that begin here, at the top of a word; ones follow the last byte.
fn word_at(bit: usize, input: &[u8]) -> u64 {
    let rest = input.get(bit / 8..).unwrap_or_default();
    let word = rest.first_chunk().map_or_else(
        || {
            let mut last = [0xff; 8];
            last[..rest.len()].copy_from_slice(rest);
            u64::from_be_bytes(last)
        },
        |whole| u64::from_be_bytes(*whole),
    );
    let shift = bit % 8;
    (word << shift) | ((1 << shift) - 1)
}

/// The code of more than `SHORT` bits that begins here, as symbol and length; no code where the string
/// ends as it should.
///
/// No code but that of the end is all ones, so one that reaches over the last byte is no padding.
#[expect(clippy::option_option, reason = "an error, or the end, or a code")]
fn long_code(bit: usize, input: &[u8]) -> Option<Option<(u8, usize)>> {
    let left = (input.len() * 8).checked_sub(bit)?;
    let word = word_at(bit, input);
    if left < 8 && word == u64::MAX {
        return Some(None);
    }
    let bits = u32::try_from(word >> (u64::BITS as usize - LONGEST)).ok()?;
    let length = (SHORT + 1..=LONGEST).find(|length| bits < GROUPS[*length].end)?;
    let group = GROUPS[length];
    let symbol = IN_ORDER.get(group.at + (bits >> (LONGEST - length)) as usize - group.first as usize)?;
    (length <= left).then_some(Some((*symbol, length)))
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
            codes[bits as usize] = ShortCode {
                symbol: symbols[groups[length].at + code as usize],
                length: length.to_le_bytes()[0],
            };
            bits += 1;
        }
        length += 1;
    }
    codes
}
