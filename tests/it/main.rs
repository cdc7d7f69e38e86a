//! The integration tests, in one binary: each module drives one part from outside.

// WHY: a panic is how a test fails, also in the functions that tests share.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod acme;
mod architecture;
mod backend_tls;
mod balancing;
mod bodies;
mod certificates;
mod client_certificates;
mod config;
mod docs;
mod firewall;
mod forwarding;
mod h2_abuse;
mod hsts;
mod life;
mod limits;
mod observe;
mod overload;
mod pki;
mod proxy_protocol;
mod retries;
mod secrets;
mod smuggling;
mod strict_h2;
mod strict_requests;
mod strict_responses;
mod timeouts;
mod tls;
