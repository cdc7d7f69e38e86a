//! HTTP/1: from bytes to heads and bodies and back (RFC 9112).
//!
//! The parts here do no I/O: `head` finds where a head ends, `request` and `response` make heads of
//! it, `framing` takes bodies apart, `encode` writes. `hop` and `length` hold the two questions that
//! requests and responses share: what belongs to this connection only, and how long the body is.

pub mod encode;
pub mod framing;
pub mod head;
mod hop;
mod length;
pub mod request;
pub mod response;
