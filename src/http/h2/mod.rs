//! HTTP/2 (RFC 9113): our own towards clients, the h2 crate towards backends.
//!
//! `multiplexer` knows all of a client's connection and does no I/O; `downstream` reads and writes for it,
//! and each `stream` of it is one exchange. Streams are polled in their connection's own task; heads go
//! straight into the types that HTTP/1 uses.

pub mod downstream;
pub mod floods;
mod flow;
mod frame;
pub mod hpack;
mod incoming;
mod linger;
pub mod multiplexer;
mod outgoing;
pub mod request;
#[cfg(test)]
mod rules;
mod stream;
mod streams;
pub mod upstream;
