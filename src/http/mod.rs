//! Codecs and message types; knows no route and no backend.

pub mod fields;
pub mod message;
pub mod probe_client;
