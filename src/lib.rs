//! Portcullis: a TLS-terminating load balancer.
//!
//! ```text
//!  clients ─▶ downstream ─▶ http ─▶ proxy ─▶ upstream ─▶ backends
//!             accept, TLS   codecs  route,    cluster, pick,
//!                  │                attempt   pool, probe
//!                  └── firewall ───────┘
//!  operators ─▶ admin       everybody reports to observe ─▶ Prometheus, access log
//! ```
//!
//! Modules in the order of their imports: each one may use those above it.

pub mod error;

pub mod config;

pub mod observe;

pub mod firewall;

pub mod http;

pub mod pki;

pub mod upstream;

pub mod proxy;

pub mod downstream;

pub mod acme;

pub mod admin;

pub mod app;

pub mod demo;

pub mod cli;
