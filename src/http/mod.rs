//! Codecs and message types; knows no route and no backend.

pub mod buffer;
pub mod deadline;
pub mod exchange;
pub mod fetch;
pub mod fields;
pub mod h1;
pub mod h2;
pub mod message;
pub mod plain;
pub mod probe_client;
pub mod proxy_protocol;
mod record_size;
pub mod target;
pub mod tls_stream;
pub mod transport;
