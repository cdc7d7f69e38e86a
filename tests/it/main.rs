//! The integration tests, in one binary: each module drives one part from outside.

// WHY: a panic is how a test fails, also in the functions that tests share.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod config;
mod docs;
mod forwarding;
mod strict_requests;
mod strict_responses;
