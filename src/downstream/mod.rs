//! The clients' side: accept, TLS, and the loops that take requests off a connection.

pub mod accept;
pub mod admission;
mod announcement;
mod connection;
mod h1;
mod h2;
pub mod tls;
