//! The idle connections of one backend, kept by one worker.
//!
//! Last in, first out: the connection used last is the one least likely to have been closed, and
//! the rest grow old and are let go.

use std::{sync::Arc, task::Context, time::Duration};

use tokio::time::Instant;

use crate::{
    http::{h1, h2},
    observe::BackendCells,
};

/// Counts a connection as open for as long as it lives.
#[derive(Debug)]
pub struct Open(Arc<BackendCells>);

/// An HTTP/1 connection that one request has for itself.
#[derive(Debug)]
pub struct Lease {
    pub connection: h1::Connection,
    /// It carried a request before.
    pub reused: bool,
    _open: Open,
}

#[derive(Debug)]
struct Idle {
    lease: Lease,
    since: Instant,
}

#[derive(Debug)]
struct Shared {
    handle: h2::upstream::Handle,
    used: Instant,
}

#[derive(Debug, Default)]
pub struct Pool {
    idle: Vec<Idle>,
    shared: Vec<Shared>,
}

impl Open {
    /// Counts a connection that took this long to make.
    pub fn count(cells: Arc<BackendCells>, took: Duration) -> Self {
        cells.connection_opened(took);
        Open(cells)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connection_closed();
    }
}

impl Lease {
    pub fn new(connection: h1::Connection, open: Open) -> Self {
        Lease { connection, reused: false, _open: open }
    }
}

impl Pool {
    /// The idle connection used last, if it is younger than `idle_timeout`, open and silent.
    pub fn take(&mut self, now: Instant, idle_timeout: Duration) -> Option<Lease> {
        while let Some(mut idle) = self.idle.pop() {
            if now.saturating_duration_since(idle.since) >= idle_timeout {
                // Everything below it is older.
                self.idle.clear();
                return None;
            }
            if is_usable(&mut idle.lease) {
                idle.lease.reused = true;
                return Some(idle.lease);
            }
        }
        None
    }

    /// Keeps a quiet connection for the next request; closes it where `limit` are kept already.
    pub fn give(&mut self, mut lease: Lease, since: Instant, limit: usize) {
        if self.idle.len() < limit && lease.connection.is_quiet() {
            lease.connection.rest();
            self.idle.push(Idle { lease, since });
        }
    }

    /// A shared connection that is open and has room for one more stream; lets go of closed ones,
    /// which would have room for ever.
    pub fn shared(&mut self) -> Option<h2::upstream::Handle> {
        while let Some(index) = self.shared.iter().position(|shared| shared.handle.has_room()) {
            let found = &mut self.shared[index];
            if found.handle.is_open() {
                found.used = Instant::now();
                return Some(found.handle.clone());
            }
            self.shared.swap_remove(index);
        }
        None
    }

    /// Adds a connection that requests share.
    pub fn share(&mut self, handle: h2::upstream::Handle) {
        self.shared.push(Shared { handle, used: Instant::now() });
    }

    /// Lets go of what is too old, closed or talks out of turn.
    pub fn sweep(&mut self, idle_timeout: Duration) {
        let now = Instant::now();
        self.idle
            .retain_mut(|idle| now.duration_since(idle.since) < idle_timeout && is_usable(&mut idle.lease));
        self.shared.retain_mut(|shared| {
            if shared.handle.is_busy() {
                shared.used = now;
            }
            now.duration_since(shared.used) < idle_timeout && shared.handle.is_open()
        });
    }

    /// Connections that wait for a request.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }
}

/// Asks the runtime, which has seen every event up to now, without a system call; the next request
/// registers its own waker.
fn is_usable(lease: &mut Lease) -> bool {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    lease.connection.poll_unusable(&mut cx).is_pending()
}
