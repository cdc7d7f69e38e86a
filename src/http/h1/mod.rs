//! HTTP/1: from bytes to heads and bodies and back (RFC 9112).
//!
//! `connection` does the I/O, `downstream` and `upstream` hold what the two sides do differently.
//! The parts below them do none: `head` finds where a head ends, `request` and `response` make heads
//! of it, `framing` takes bodies apart, `encode` writes. `hop` and `length` hold the two questions
//! that requests and responses share: what belongs to this connection only, how long the body is.

mod connection;
mod downstream;
pub mod encode;
pub mod framing;
pub mod head;
mod hop;
mod length;
pub mod request;
pub mod response;
mod upstream;

pub use connection::Connection;
pub use downstream::{NoRequest, RequestLimits};
pub use framing::BodyLimits;
pub use head::HeadLimits;
pub(super) use hop::is_token;
pub(super) use length::parse_content_length;
pub use upstream::NoResponse;
