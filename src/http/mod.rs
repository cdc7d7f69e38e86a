//! Codecs and message types; knows no route and no backend.

pub mod fields;
pub mod h1;
pub mod message;
pub mod target;
