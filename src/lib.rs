//! Portcullis: a TLS-terminating load balancer.
//!
//! ```text
//!  clients ─▶ downstream ─▶ http ─▶ proxy ─▶ upstream ─▶ backends
//!             accept, TLS   codecs  route,    cluster, pick,
//!                                   attempt   pool, probe
//!  operators ─▶ admin       everybody reports to observe ─▶ Prometheus, access log
//! ```
//!
//! Modules in the order of their imports: each one may use those above it.

pub mod config;
pub mod error;
pub mod http;
pub mod observe;
