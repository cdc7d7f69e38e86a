//! From fields to header blocks (RFC 7541 §6), for responses.
//!
//! A field goes into the dynamic table when the same name and value come again before they are
//! forgotten: `server`, `content-type` and the like, whatever they are called. From then on it is one
//! byte, or two. What is new in each response never gets there, and evicts nothing.
//!
//! Strings are written as they are, without the Huffman code (docs/decisions/0013-hpack.md).

use http::StatusCode;

use super::{
    DEFAULT_TABLE_BYTES, integer,
    known::{self, Policy},
    static_table::STATIC,
    table::Table,
};

const INDEXED: u8 = 0x80;
const LITERAL_TO_INDEX: u8 = 0x40;
const TABLE_SIZE: u8 = 0x20;
const LITERAL_NEVER_INDEXED: u8 = 0x10;
const LITERAL: u8 = 0;

/// The first `:status` of the static table.
const STATUS: usize = 8;

/// Places for fields of the table, by their hash or a few behind that.
const PLACES: usize = 128;
const PROBES: usize = 4;
/// Fields that are remembered to have come, of those that are not in the table.
const SEEN: usize = 32;

/// One direction of a connection.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// The smallest size of the table since the last block.
    smallest: Option<usize>,
    places: [Place; PLACES],
    /// Their hashes; the next one takes the place of the oldest.
    seen: [u32; SEEN],
    oldest: usize,
}

/// Where a field is in the table.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    hash: u16,
    number: u16,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    pub fn new() -> Encoder {
        Encoder {
            table: Table::new(DEFAULT_TABLE_BYTES),
            smallest: None,
            places: [Place::default(); PLACES],
            seen: [0; SEEN],
            oldest: 0,
        }
    }

    /// From the peer's SETTINGS_HEADER_TABLE_SIZE; more than the default is left unused.
    pub fn set_max_table(&mut self, bytes: usize) {
        let bytes = bytes.min(DEFAULT_TABLE_BYTES);
        if bytes != self.table.max_size() {
            self.smallest = Some(self.smallest.map_or(bytes, |smallest| smallest.min(bytes)));
            self.table.set_max_size(bytes);
        }
    }

    /// Begins a block: a table size that has changed comes first (RFC 7541 §4.2).
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        let Some(smallest) = self.smallest.take() else { return };
        if smallest < self.table.max_size() {
            integer::write(TABLE_SIZE, 5, smallest, out);
        }
        integer::write(TABLE_SIZE, 5, self.table.max_size(), out);
    }

    /// Appends the `:status` of a response.
    pub fn status(&mut self, status: StatusCode, out: &mut Vec<u8>) {
        let index = match status.as_u16() {
            200 => 8,
            204 => 9,
            206 => 10,
            304 => 11,
            400 => 12,
            404 => 13,
            500 => 14,
            _ => {
                integer::write(LITERAL, 4, STATUS, out);
                return write_string(status.as_str().as_bytes(), out);
            }
        };
        integer::write(INDEXED, 7, index, out);
    }

    /// Appends a field; the name is lower case.
    pub fn field(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        let name_hash = known::hash(0, name);
        let hash = short(known::hash(name_hash, value));
        if let Some(index) = self.find(hash, name, value) {
            return integer::write(INDEXED, 7, index, out);
        }
        let known = known::find(name_hash, name);
        match known.policy {
            Policy::Index => self.literal(known.index, hash, (name, value), out),
            Policy::Literal => write_literal(LITERAL, known.index, (name, value), out),
            Policy::NeverIndex => write_literal(LITERAL_NEVER_INDEXED, known.index, (name, value), out),
        }
    }

    /// Appends a field that is not in the table, and puts it there if it comes again.
    fn literal(&mut self, index: u8, hash: u32, (name, value): (&[u8], &[u8]), out: &mut Vec<u8>) {
        if !self.comes_again(hash) || !self.insert(hash, name, value) {
            return write_literal(LITERAL, index, (name, value), out);
        }
        integer::write(LITERAL_TO_INDEX, 6, index.into(), out);
        if index == 0 {
            write_string(name, out);
        }
        write_string(value, out);
    }

    /// The index of a field that is in the table.
    fn find(&self, hash: u32, name: &[u8], value: &[u8]) -> Option<usize> {
        let place = places_of(hash).map(|at| self.places[at]).find(|place| place.hash == upper(hash))?;
        let index = self.table.index_of(place.number)?;
        (self.table.get(index)? == (name, value)).then_some(STATIC.len() + 1 + index)
    }

    /// Whether a field is remembered; if not, it is from now on.
    fn comes_again(&mut self, hash: u32) -> bool {
        let again = self.seen.contains(&hash);
        if !again {
            self.seen[self.oldest] = hash;
            self.oldest = (self.oldest + 1) % SEEN;
        }
        again
    }

    /// Puts a field into the table, if it leaves room for others and there is a place to find it by.
    fn insert(&mut self, hash: u32, name: &[u8], value: &[u8]) -> bool {
        let free = |at: &usize| self.table.index_of(self.places[*at].number).is_none();
        let Some(place) = places_of(hash).find(free) else { return false };
        let fits = Table::size_of(name, value) <= self.table.max_size() / 2;
        if fits {
            self.table.insert(name, value);
            self.places[place] = Place { hash: upper(hash), number: self.table.newest() };
        }
        fits
    }
}

/// The upper half, of better quality.
fn short(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The bits that a place has not.
fn upper(hash: u32) -> u16 {
    (hash >> 16) as u16
}

fn places_of(hash: u32) -> impl Iterator<Item = usize> {
    (0..PROBES).map(move |probe| (hash as usize + probe) % PLACES)
}

/// Appends a field that stays out of the table.
fn write_literal(kind: u8, index: u8, (name, value): (&[u8], &[u8]), out: &mut Vec<u8>) {
    const MOST: u8 = 0x0f;
    if let Some(more) = index.checked_sub(MOST) {
        // All names of the static table but those of pseudo-fields.
        out.extend_from_slice(&[kind | MOST, more]);
    } else {
        out.push(kind);
        write_string(name, out);
    }
    write_string(value, out);
}

fn write_string(text: &[u8], out: &mut Vec<u8>) {
    integer::write(0, 7, text.len(), out);
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(encoder: &mut Encoder, name: &str, value: &str) -> Vec<u8> {
        let mut out = Vec::new();
        encoder.field(name.as_bytes(), value.as_bytes(), &mut out);
        out
    }

    fn begin(encoder: &mut Encoder) -> Vec<u8> {
        let mut out = Vec::new();
        encoder.begin(&mut out);
        out
    }

    #[test]
    fn writes_each_status() {
        for status in 100..1000 {
            let mut out = Vec::new();
            Encoder::new().status(StatusCode::from_u16(status).unwrap(), &mut out);
            let index = STATIC.iter().position(|(_, value)| *value == status.to_string().as_bytes());
            match index {
                Some(at) => assert_eq!(out, [0x81 + u8::try_from(at).unwrap()]),
                None => assert_eq!(out, [b"\x08\x03", status.to_string().as_bytes()].concat()),
            }
        }
    }

    #[test]
    fn a_field_that_comes_again_goes_into_the_table() {
        let encoder = &mut Encoder::new();
        assert_eq!(field(encoder, "server", "nginx"), b"\x0f\x27\x05nginx");
        assert_eq!(field(encoder, "x-frame-options", "deny"), b"\x00\x0fx-frame-options\x04deny");
        assert_eq!(field(encoder, "server", "nginx"), b"\x76\x05nginx");
        assert_eq!(field(encoder, "server", "nginx"), b"\xbe");
        assert_eq!(field(encoder, "x-frame-options", "deny"), b"\x40\x0fx-frame-options\x04deny");
        assert_eq!(field(encoder, "x-frame-options", "deny"), b"\xbe");
        assert_eq!(field(encoder, "server", "nginx"), b"\xbf");
        assert_eq!(field(encoder, "server", "other"), b"\x0f\x27\x05other");
    }

    #[test]
    fn all_fields_of_like_responses_get_into_the_table() {
        let encoder = &mut Encoder::new();
        let lengths =
            [(); 3].map(|()| (0..24).map(|nth| field(encoder, &format!("x-{nth}"), "same").len()).max());
        assert_eq!(lengths, [Some(11), Some(11), Some(1)]);
    }

    #[test]
    fn values_that_are_new_each_time_stay_out() {
        let encoder = &mut Encoder::new();
        for number in 0..1000 {
            assert_eq!(field(encoder, "x-runtime", &number.to_string())[0], 0);
            assert_eq!(field(encoder, "content-length", "1024"), b"\x0f\x0d\x041024");
            assert_eq!(field(encoder, "x-request-id", "same"), b"\x00\x0cx-request-id\x04same");
        }
        assert_eq!(encoder.table.capacity(), 0);
    }

    #[test]
    fn secrets_are_never_indexed() {
        let encoder = &mut Encoder::new();
        for _ in 0..3 {
            assert_eq!(field(encoder, "set-cookie", "a=b"), b"\x1f\x28\x03a=b");
            assert_eq!(field(encoder, "authorization", "x"), b"\x1f\x08\x01x");
            assert_eq!(field(encoder, "x-csrf-token", "x"), b"\x10\x0cx-csrf-token\x01x");
        }
        assert_eq!(encoder.table.capacity(), 0);
    }

    #[test]
    fn a_field_of_more_than_half_the_table_stays_out() {
        let encoder = &mut Encoder::new();
        let (fits, large) = ("x".repeat(2048 - 32 - 4), "x".repeat(2048 - 32 - 3));
        for kind in [0x0f, 0x6d, 0xbe] {
            assert_eq!(field(encoder, "link", &fits)[0], kind);
            assert_eq!(field(encoder, "link", &large)[0], 0x0f);
        }
    }

    #[test]
    fn a_field_that_was_evicted_goes_in_again() {
        let encoder = &mut Encoder::new();
        let date = |second: usize| format!("Thu, 26 Nov 2026 07:{:02}:{:02} GMT", second / 60, second % 60);
        let mut literal = 0;
        for second in 0..600 {
            for _ in 0..3 {
                literal += usize::from(field(encoder, "server", "nginx").len() > 2);
                field(encoder, "date", &date(second));
            }
        }
        // 4,096 bytes hold 63 dates, and each time two literals bring it back.
        assert!((10..=20).contains(&literal), "{literal}");
    }

    #[test]
    fn tells_of_each_table_size_once() {
        let encoder = &mut Encoder::new();
        assert_eq!(begin(encoder), b"");
        encoder.set_max_table(4096);
        encoder.set_max_table(65536);
        assert_eq!(begin(encoder), b"", "what the peer has anyway is enough");
        encoder.set_max_table(100);
        assert_eq!(begin(encoder), b"\x3f\x45");
        assert_eq!(begin(encoder), b"");
        encoder.set_max_table(0);
        encoder.set_max_table(200);
        encoder.set_max_table(50);
        assert_eq!(begin(encoder), b"\x20\x3f\x13");
        encoder.set_max_table(20);
        encoder.set_max_table(30);
        encoder.set_max_table(65536);
        assert_eq!(begin(encoder), b"\x34\x3f\xe1\x1f");
    }

    #[test]
    fn without_a_table_everything_is_literal() {
        let encoder = &mut Encoder::new();
        field(encoder, "server", "nginx");
        field(encoder, "server", "nginx");
        encoder.set_max_table(0);
        for _ in 0..3 {
            assert_eq!(field(encoder, "server", "nginx"), b"\x0f\x27\x05nginx");
        }
        assert_eq!(encoder.table.capacity(), 0);
    }
}
