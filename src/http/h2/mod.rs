//! HTTP/2 on the h2 crate itself, without a layer above it.
//!
//! Streams are polled in their connection's own task; heads are translated to the types that
//! HTTP/1 uses.

pub mod budget;
mod convert;
mod cork;
pub mod downstream;
pub mod hpack;
mod linger;
mod stream;
pub mod upstream;
pub mod watch;
mod watched;
