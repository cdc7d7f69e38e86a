//! From header blocks to fields (RFC 7541 §3).
//!
//! Names and values are passed on as slices: of the block, of a table, or of one buffer that the
//! worker keeps for Huffman-coded strings.

use std::cell::Cell;

use super::{DEFAULT_TABLE_BYTES, FIELD_OVERHEAD, huffman, integer, static_table::STATIC, table::Table};

thread_local! {
    /// The texts of one field at a time; grows with the longest string, never shrinks. A block that its
    /// caller bounds to n bytes makes it 1.6 n at most.
    static TEXT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Why a block can't be decoded. The table is lost with it, so the connection is over
/// (COMPRESSION_ERROR, RFC 9113 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The block ends within a field.
    Truncated,
    /// An integer is longer than any length or index has reason to be.
    Integer,
    /// Neither table has a field of this index.
    Index,
    /// A Huffman-coded string has bits that are no code.
    Huffman,
    /// A table size that is too large, or not at the start of a block.
    TableSize,
    /// The fields are more than the decoder was made for.
    Bomb,
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// What one block may stand for: names, values and 32 bytes more for each field.
    most: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// For a peer that was told of no other table size than the default.
    pub fn new() -> Decoder {
        Decoder::bounded(usize::MAX)
    }

    /// The same; gives a block up once its fields are larger than `most` bytes, each with 32 more (RFC 9113
    /// §6.5.2).
    pub fn bounded(most: usize) -> Decoder {
        Decoder { table: Table::new(DEFAULT_TABLE_BYTES), most }
    }

    /// Calls `field(name, value)` for each field of a whole header block, in order. The table stays right
    /// whatever `field` does with them.
    ///
    /// Cost: no allocation in the long run; time by the length of the block, and of the names that go into
    /// the table. A block of n bytes can stand for n fields, each nearly as large as the table: with 4 KiB
    /// of it, 4,064 bytes for one, or 2,032 bytes of name to be copied for one: 32 KiB of the worst take about
    /// 9 ms where the decoder is not [`bounded`](Self::bounded). The caller bounds n, and what it keeps.
    ///
    /// That a field must never be indexed on the next hop (RFC 7541 §6.2.3) is not passed on.
    pub fn decode(&mut self, block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<(), DecodeError> {
        let mut text = TEXT.take();
        let left = Cell::new(self.most);
        let mut counted = |name: &[u8], value: &[u8]| {
            left.set(left.get().saturating_sub(name.len() + value.len() + FIELD_OVERHEAD));
            field(name, value);
        };
        let result = self.decode_with(block, &mut text, &mut counted, &left);
        TEXT.set(text);
        result
    }

    /// Bytes of memory.
    pub fn capacity(&self) -> usize {
        self.table.capacity()
    }

    fn decode_with(
        &mut self,
        block: &[u8],
        text: &mut Vec<u8>,
        field: &mut impl FnMut(&[u8], &[u8]),
        left: &Cell<usize>,
    ) -> Result<(), DecodeError> {
        let mut rest = Rest(block);
        self.resize(&mut rest)?;
        while let Some(first) = rest.0.first() {
            if left.get() == 0 {
                return Err(DecodeError::Bomb);
            }
            match first {
                0x80.. => {
                    let (name, value) = self.indexed(rest.integer(7)?)?;
                    field(name, value);
                }
                0x40.. => self.literal(6, &mut rest, text, field)?,
                0x20.. => return Err(DecodeError::TableSize),
                _ => self.literal(4, &mut rest, text, field)?,
            }
        }
        Ok(())
    }

    /// The table sizes at the start of a block (RFC 7541 §6.3).
    fn resize(&mut self, rest: &mut Rest<'_>) -> Result<(), DecodeError> {
        while let Some(0x20..0x40) = rest.0.first() {
            let size = rest.integer(5)?;
            if size > DEFAULT_TABLE_BYTES {
                return Err(DecodeError::TableSize);
            }
            self.table.set_max_size(size);
        }
        Ok(())
    }

    fn indexed(&self, index: usize) -> Result<(&[u8], &[u8]), DecodeError> {
        let found = match index.checked_sub(1) {
            Some(at) if at < STATIC.len() => Some(STATIC[at]),
            Some(at) => self.table.get(at - STATIC.len()),
            None => None,
        };
        found.ok_or(DecodeError::Index)
    }

    /// A field with a value of its own (RFC 7541 §6.2); goes into the table if the prefix of its name's
    /// index has six `bits`.
    fn literal(
        &mut self,
        bits: u32,
        rest: &mut Rest<'_>,
        text: &mut Vec<u8>,
        field: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), DecodeError> {
        let keep = bits == 6;
        let index = rest.integer(bits)?;
        if index == 0 {
            let (name, value) = rest.two_strings(text)?;
            field(name, value);
            if keep {
                self.table.insert(name, value);
            }
            return Ok(());
        }
        let value = rest.string(text)?;
        let (name, _) = self.indexed(index)?;
        field(name, value);
        match index.checked_sub(STATIC.len() + 1) {
            _ if !keep => {}
            Some(at) => self.table.insert_named_as(at, value),
            None => self.table.insert(STATIC[index - 1].0, value),
        }
        Ok(())
    }
}

/// What is left of a block.
struct Rest<'a>(&'a [u8]);

/// A string in the block.
struct Coded<'a> {
    bytes: &'a [u8],
    huffman: bool,
}

impl<'a> Rest<'a> {
    fn integer(&mut self, bits: u32) -> Result<usize, DecodeError> {
        let Some((value, rest)) = integer::read(bits, self.0) else {
            let ends = self.0.iter().skip(1).any(|byte| byte & 0x80 == 0);
            return Err(if ends { DecodeError::Integer } else { DecodeError::Truncated });
        };
        self.0 = rest;
        Ok(value)
    }

    fn coded(&mut self) -> Result<Coded<'a>, DecodeError> {
        let huffman = self.0.first().is_some_and(|first| first & 0x80 != 0);
        let length = self.integer(7)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(Coded { bytes, huffman })
    }

    fn string<'t>(&mut self, text: &'t mut Vec<u8>) -> Result<&'t [u8], DecodeError>
    where
        'a: 't,
    {
        let coded = self.coded()?;
        if !coded.huffman {
            return Ok(coded.bytes);
        }
        make_room(text, huffman::text_bytes(coded.bytes.len()));
        coded.decode(text)
    }

    fn two_strings<'t>(&mut self, text: &'t mut Vec<u8>) -> Result<(&'t [u8], &'t [u8]), DecodeError>
    where
        'a: 't,
    {
        let (name, value) = (self.coded()?, self.coded()?);
        let middle = huffman::text_bytes(name.bytes.len());
        make_room(text, middle + huffman::text_bytes(value.bytes.len()));
        let (front, back) = text.split_at_mut(middle);
        Ok((name.decode(front)?, value.decode(back)?))
    }
}

impl<'a> Coded<'a> {
    fn decode<'t>(self, text: &'t mut [u8]) -> Result<&'t [u8], DecodeError>
    where
        'a: 't,
    {
        if !self.huffman {
            return Ok(self.bytes);
        }
        let length = huffman::decode(self.bytes, text).ok_or(DecodeError::Huffman)?;
        Ok(&text[..length])
    }
}

fn make_room(text: &mut Vec<u8>, bytes: usize) {
    if text.len() < bytes {
        text.resize(bytes, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `custom: value` as a literal that goes into the table.
    const CUSTOM: &[u8] = b"\x40\x06custom\x05value";

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, DecodeError> {
        let mut fields = Vec::new();
        decoder.decode(block, |name, value| {
            fields.push(format!("{}: {}", name.escape_ascii(), value.escape_ascii()));
        })?;
        Ok(fields)
    }

    fn error(block: &[u8]) -> Option<DecodeError> {
        decode(&mut Decoder::new(), block).err()
    }

    #[test]
    fn an_empty_block_has_no_fields() {
        assert_eq!(decode(&mut Decoder::new(), b"").unwrap(), [""; 0]);
    }

    #[test]
    fn reads_names_and_values_of_any_kind() {
        let mut decoder = Decoder::new();
        // Empty both, as they are and in the Huffman code.
        assert_eq!(decode(&mut decoder, b"\x00\x00\x00\x10\x80\x80").unwrap(), [": ", ": "]);
        // "a" and "0" in the Huffman code, each beside one that is not.
        assert_eq!(decode(&mut decoder, b"\x00\x81\x1f\x010\x00\x01a\x81\x07").unwrap(), ["a: 0", "a: 0"]);
        assert_eq!(decode(&mut decoder, b"\x00\x81\x1f\x81\x07").unwrap(), ["a: 0"]);
        // A name of the static table whose index has two bytes, and one of the dynamic table.
        assert_eq!(decode(&mut decoder, b"\x0f\x27\x01x").unwrap(), ["server: x"]);
        assert_eq!(decode(&mut decoder, CUSTOM).unwrap(), ["custom: value"]);
        assert_eq!(decode(&mut decoder, b"\x0f\x2f\x01x\xbe").unwrap(), ["custom: x", "custom: value"]);
        assert_eq!(
            decode(&mut decoder, b"\x7e\x01y\xbe\xbf").unwrap(),
            ["custom: y", "custom: y", "custom: value"]
        );
    }

    #[test]
    fn refuses_indexes_of_no_field() {
        for block in [&b"\x80"[..], b"\xbe", b"\x7e\x00", b"\x0f\x2f\x00", b"\xff\xff\x7f", b"\x82\xbe"] {
            assert_eq!(error(block), Some(DecodeError::Index), "{}", block.escape_ascii());
        }
        let mut decoder = Decoder::new();
        decode(&mut decoder, CUSTOM).unwrap();
        assert_eq!(decode(&mut decoder, b"\xbf"), Err(DecodeError::Index));
    }

    #[test]
    fn refuses_integers_that_are_too_long() {
        for start in [0xff, 0x7f, 0x3f, 0x1f, 0x0f] {
            let block = [start, 0x80, 0x80, 0x80, 0x80, 0];
            assert_eq!(error(&block), Some(DecodeError::Integer), "{start:x}");
            assert_eq!(error(&[start, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), Some(DecodeError::Integer));
        }
        assert_eq!(error(b"\x00\x7f\xff\xff\xff\xff\x01"), Some(DecodeError::Integer));
        assert_eq!(error(b"\x00\x01a\xff\xff\xff\xff\xff\x01"), Some(DecodeError::Integer));
    }

    #[test]
    fn refuses_blocks_that_are_cut_off_anywhere() {
        let block = [CUSTOM, b"\xff\x00\x0f\x27\x83\x1f\xff\xff\x3f\x00"].concat();
        let mut ends = Vec::new();
        for end in 0..block.len() {
            match error(&block[..end]) {
                None => ends.push(end),
                Some(error) => {
                    let expected = if end < 16 { DecodeError::Truncated } else { DecodeError::Index };
                    assert_eq!(error, expected);
                }
            }
        }
        assert_eq!(ends, [0, CUSTOM.len()]);
        assert_eq!(error(b"\x00\x7f\x80\x7f"), Some(DecodeError::Truncated), "a length beyond the block");
    }

    #[test]
    fn refuses_wrong_huffman_codes_in_names_and_values() {
        for coded in [&b"\x82\x1f\xff"[..], b"\x81\x18", b"\x84\xff\xff\xff\xff", b"\x81\xff", b"\x81\xf9"] {
            let name = [b"\x00", coded, b"\x00"].concat();
            let value = [b"\x00\x01a", coded].concat();
            let indexed = [b"\x44", coded].concat();
            for block in [name, value, indexed] {
                let expected = (coded != b"\x81\xf9").then_some(DecodeError::Huffman);
                assert_eq!(error(&block), expected, "{}", block.escape_ascii());
            }
        }
    }

    #[test]
    fn resizes_the_table_at_the_start_of_a_block_only() {
        let mut decoder = Decoder::new();
        decode(&mut decoder, CUSTOM).unwrap();
        // As small as the field, and as large as the limit.
        assert_eq!(decode(&mut decoder, b"\x3f\x0c\x3f\xe1\x1f\xbe").unwrap(), ["custom: value"]);
        assert_eq!(decode(&mut decoder, b"\x3f\x0b").unwrap(), [""; 0]);
        assert_eq!(decode(&mut decoder, b"\xbe"), Err(DecodeError::Index));
        assert_eq!(error(b"\x82\x20"), Some(DecodeError::TableSize));
        assert_eq!(error(&[CUSTOM, b"\x3f\xe1\x1f"].concat()), Some(DecodeError::TableSize));
    }

    #[test]
    fn refuses_a_table_above_the_limit() {
        assert_eq!(error(b"\x3f\xe1\x1f"), None, "4,096");
        assert_eq!(error(b"\x3f\xe2\x1f"), Some(DecodeError::TableSize), "4,097");
    }

    #[test]
    fn keeps_the_table_right_for_fields_that_are_not_wanted() {
        let mut decoder = Decoder::new();
        decoder.decode(CUSTOM, |_, _| {}).unwrap();
        assert_eq!(decode(&mut decoder, b"\xbe").unwrap(), ["custom: value"]);
    }

    #[test]
    fn a_bomb_allocates_nothing() {
        let mut decoder = Decoder::new();
        let value = [b'x'; 4063];
        let mut block = b"\x40\x01a\x7f\xe0\x1e".to_vec();
        block.extend_from_slice(&value);
        block.resize(block.len() + 16_384, 0xbe);
        let mut bytes = 0;
        decoder.decode(&block, |name, value| bytes += name.len() + value.len()).unwrap();
        assert_eq!(bytes, 4064 * 16_385);
        assert!(decoder.capacity() <= 2 * 4096 + 256, "{}", decoder.capacity());
    }
}
