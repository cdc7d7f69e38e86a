//! Integers with a prefix (RFC 7541 §5.1).

/// Bytes that may follow the prefix: enough for 256 MiB, and too few for anything to overflow.
const MOST_BYTES: usize = 4;

/// The integer that begins in the lower `bits` of the first byte, and what follows it; `None` where it
/// does not end, or takes more bytes than it may.
pub fn read(bits: u32, input: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = input.split_first()?;
    let most = (1_usize << bits) - 1;
    let value = usize::from(*first) & most;
    if value < most { Some((value, rest)) } else { read_more(most, rest) }
}

fn read_more(mut value: usize, rest: &[u8]) -> Option<(usize, &[u8])> {
    for (at, byte) in rest.iter().take(MOST_BYTES).enumerate() {
        value += usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, &rest[at + 1..]));
        }
    }
    None
}

/// Appends `value` in the lower `bits` of a byte, whose other bits are those of `kind`, and of as many
/// more as it takes.
#[inline]
pub fn write(kind: u8, bits: u32, value: usize, out: &mut Vec<u8>) {
    let most = (1 << bits) - 1;
    if value < most {
        out.push(kind | lowest_byte(value));
    } else {
        write_more(kind | lowest_byte(most), value - most, out);
    }
}

fn write_more(first: u8, mut left: usize, out: &mut Vec<u8>) {
    out.push(first);
    while left >= 0x80 {
        out.push(0x80 | lowest_byte(left));
        left >>= 7;
    }
    out.push(lowest_byte(left));
}

fn lowest_byte(value: usize) -> u8 {
    value.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bits: u32, value: usize) -> Vec<u8> {
        let mut out = Vec::new();
        write(0, bits, value, &mut out);
        out
    }

    #[test]
    fn reads_and_writes_the_examples_of_the_rfc() {
        // C.1.1, C.1.2, C.1.3
        for (bits, value, bytes) in [(5, 10, &[10][..]), (5, 1337, &[31, 154, 10]), (8, 42, &[42])] {
            assert_eq!(written(bits, value), bytes);
            assert_eq!(read(bits, bytes), Some((value, &[][..])));
        }
    }

    #[test]
    fn leaves_the_other_bits_of_the_first_byte_alone() {
        let mut out = Vec::new();
        write(0x40, 6, 12, &mut out);
        write(0x40, 6, 63, &mut out);
        assert_eq!(out, [0x4c, 0x7f, 0]);
        assert_eq!(read(4, &[0xf3, 7]), Some((3, &[7][..])));
    }

    #[test]
    fn reads_what_it_writes() {
        for bits in 4..=8 {
            for value in (0..2000).chain([16_383, 16_384, (1 << 28) - 1]) {
                let bytes = written(bits, value);
                assert_eq!(read(bits, &bytes), Some((value, &[][..])));
            }
        }
    }

    #[test]
    fn refuses_integers_that_do_not_end_or_are_too_long() {
        for cut in [&[][..], &[31], &[31, 0x80], &[31, 0xff, 0xff, 0xff, 0xff]] {
            assert_eq!(read(5, cut), None, "{cut:?}");
        }
        assert_eq!(read(5, &[31, 0xff, 0xff, 0xff, 0x7f]), Some((31 + (1 << 28) - 1, &[][..])));
        // Zero, in more bytes than it may take.
        assert_eq!(read(5, &[31, 0x80, 0x80, 0x80, 0x80, 0]), None);
        assert_eq!(read(5, &[0xff; 64]), None);
    }
}
