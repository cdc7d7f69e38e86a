//! Header compression (HPACK, RFC 7541), without an allocation for each field.
//!
//! `decoder` and `encoder` are what a connection has one of each; both stand on the `table` of fields
//! that came before, on the one that never changes (`static_table`), and on the two ways to write
//! numbers and strings (`integer`, `huffman`). `known` tells the encoder which names have values that
//! come again.

mod decoder;
mod encoder;
#[cfg(test)]
mod examples;
mod huffman;
mod integer;
mod known;
#[cfg(test)]
mod round_trips;
mod static_table;
mod table;

pub use decoder::{DecodeError, Decoder};
pub use encoder::Encoder;

/// What each field counts besides its name and value (RFC 7541 §4.1, RFC 9113 §6.5.2).
pub const FIELD_OVERHEAD: usize = 32;
/// What a table holds before SETTINGS say otherwise (RFC 9113 §6.5.2).
const DEFAULT_TABLE_BYTES: usize = 4096;
