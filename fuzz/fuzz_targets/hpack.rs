//! Header blocks of one connection: no panic, a table within its bound, and two more decoders that
//! read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::http::h2::hpack::{DecodeError, Decoder, Encoder};

const TABLE: usize = 4096;
/// A place in the table beside the bytes in it; each field counts 32.
const PLACE: usize = 12;

type Field = (Vec<u8>, Vec<u8>);

// Blocks, each behind its length; 255 is all that is left.
fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let mut decoder = Decoder::new();
    let mut oracle = loona_hpack::Decoder::new();
    let (mut encoder, mut own) = (Encoder::new(), Decoder::new());
    while let Some((length, behind)) = rest.split_first() {
        let length = if *length == 255 { behind.len() } else { behind.len().min((*length).into()) };
        let (block, behind) = behind.split_at(length);
        rest = behind;
        let Ok(fields) = decode(&mut decoder, block) else { return };
        assert!(decoder.capacity() <= 2 * TABLE + 2 * TABLE / 32 * PLACE, "{}", decoder.capacity());
        compare(&fields, &mut oracle, block);
        encoder.set_max_table(length * 32);
        assert_eq!(decode(&mut own, &encode(&mut encoder, &fields)).as_ref(), Ok(&fields));
    }
});

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, DecodeError> {
    let mut fields = Vec::new();
    decoder.decode(block, |name, value| fields.push((name.to_vec(), value.to_vec())))?;
    Ok(fields)
}

/// The oracle wants a field behind a table size.
fn compare(fields: &[Field], oracle: &mut loona_hpack::Decoder<'_>, block: &[u8]) {
    match oracle.decode(block) {
        Ok(read) => assert_eq!(read, fields),
        Err(error) => assert!(fields.is_empty(), "{error:?}: {}", block.escape_ascii()),
    }
}

fn encode(encoder: &mut Encoder, fields: &[Field]) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.begin(&mut block);
    for (name, value) in fields {
        encoder.field(name, value, &mut block);
    }
    block
}
