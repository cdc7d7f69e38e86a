//! From header blocks to fields (RFC 7541 §3).
//!
//! Names and values are passed on as slices: of the block, of a table, or of one buffer that the
//! worker keeps for Huffman-coded strings.

use std::cell::Cell;

use super::{DEFAULT_TABLE_BYTES, huffman, integer, static_table::STATIC, table::Table};

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
    /// A table size that is too large, not at the start of a block, or missing where one is due.
    TableSize,
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// What the peer may make of the table.
    limit: usize,
    /// The next block has to begin with a table of at most this size.
    due: Option<usize>,
}

impl Decoder {
    /// `max_table_bytes`: the SETTINGS_HEADER_TABLE_SIZE that we announce.
    ///
    /// A peer may use the default until it has seen it; if ours is less, tell
    /// [`set_max_table`](Self::set_max_table) when the peer has acknowledged it.
    pub fn new(max_table_bytes: usize) -> Decoder {
        let limit = max_table_bytes.max(DEFAULT_TABLE_BYTES);
        Decoder { table: Table::new(DEFAULT_TABLE_BYTES), limit, due: None }
    }

    /// The peer has acknowledged SETTINGS with this table size: where that is less than what its table
    /// has now, the next block must say so (RFC 7541 §4.2).
    pub fn set_max_table(&mut self, bytes: usize) {
        self.limit = bytes;
        if bytes < self.table.max_size() {
            self.due = Some(self.due.map_or(bytes, |due| due.min(bytes)));
        }
    }

    /// Calls `field(name, value)` for each field of a whole header block, in order. The table stays right
    /// whatever `field` does with them.
    ///
    /// Cost: no allocation in the long run; each field a bounded number of steps beside those for its
    /// own bytes in the block. A block of n bytes can name n fields, each nearly as large as the table:
    /// with 4 KiB of table a byte stands for up to 4,064. The caller bounds n, and what it keeps.
    ///
    /// That a field must never be indexed on the next hop (RFC 7541 §6.2.3) is not passed on.
    pub fn decode(&mut self, block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<(), DecodeError> {
        let mut text = TEXT.take();
        let result = self.decode_with(block, &mut text, &mut field);
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
    ) -> Result<(), DecodeError> {
        let mut rest = Rest(block);
        self.resize(&mut rest)?;
        while let Some(first) = rest.0.first() {
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
            if size > self.limit {
                return Err(DecodeError::TableSize);
            }
            self.due = self.due.filter(|due| size > *due);
            self.table.set_max_size(size);
        }
        if self.due.is_some() { Err(DecodeError::TableSize) } else { Ok(()) }
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
