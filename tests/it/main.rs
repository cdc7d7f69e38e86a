//! The integration tests, in one binary: each module drives one part from outside.

mod config;
