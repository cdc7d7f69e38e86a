//! The backends' side: clusters, their health, choosing and reaching a backend.
//!
//! Workers pick (`balance`) and connect (`connect`, `tls`); the control thread probes (`probe`)
//! and both meet in `cluster`, whose shared state is atomics that a worker reads without a lock.

pub mod balance;
pub mod cluster;
pub mod connect;
pub mod health;
pub mod pool;
pub mod probe;
pub mod tls;

#[cfg(test)]
mod testing;
