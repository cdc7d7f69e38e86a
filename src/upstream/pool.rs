//! The idle connections of one backend, kept by one worker.
//!
//! Last in, first out: the connection used last is the one least likely to have been closed, and
//! the rest grow old and are let go. What has not been needed for a while lies at the bottom, so the
//! age of an entry tells how many were in use of late, and nothing has to be counted.

use std::{future::poll_fn, net::IpAddr, pin::pin, sync::Arc, task::Context, time::Duration};

use tokio::{task::unconstrained, time::Instant};

use crate::{
    http::{h1, h2},
    observe::BackendCells,
};

/// Kept for as long as they may idle, where no cap is configured.
const KEPT: usize = 128;
/// How long those above `KEPT` are kept after their last use: beyond the pauses within a burst.
const KEPT_FOR: Duration = Duration::from_secs(5);

/// Counts a connection as open for as long as it lives.
#[derive(Debug)]
pub struct Open(Arc<BackendCells>);

/// What a connection was made by; where that has changed, it is not used any longer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Made {
    /// Of the backend's TLS settings before it was made.
    pub generation: u32,
    /// Where it leads to, if the backend has a name, which may move.
    pub address: Option<IpAddr>,
}

/// An HTTP/1 connection that one request has for itself.
#[derive(Debug)]
pub struct Lease {
    /// Boxed: it goes from the pool to a request and back, and should not be copied each time.
    pub connection: Box<h1::Connection>,
    /// It carried a request before.
    pub reused: bool,
    made: Made,
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
    made: Made,
    used: Instant,
}

#[derive(Debug, Default)]
pub struct Pool {
    idle: Vec<Idle>,
    shared: Vec<Shared>,
    /// Of the TLS settings; what is of another is not kept.
    generation: u32,
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
    pub fn new(connection: h1::Connection, open: Open, made: Made) -> Self {
        Lease { connection: Box::new(connection), reused: false, made, _open: open }
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

    /// Keeps a quiet connection for the next request; closes it where as many as `cap` idle already.
    pub fn give(&mut self, mut lease: Lease, since: Instant, cap: Option<usize>) {
        let has_room = cap.is_none_or(|cap| self.idle.len() < cap);
        if has_room && lease.made.generation >= self.generation && lease.connection.is_quiet() {
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
    pub fn share(&mut self, handle: h2::upstream::Handle, made: Made) {
        // Where a backend takes no streams at all, there would soon be a connection for each request.
        self.shared.retain(|shared| shared.handle.has_room() || shared.handle.is_busy());
        self.shared.push(Shared { handle, made, used: Instant::now() });
    }

    /// Lets go of connections that were made by earlier TLS settings than these.
    pub fn follow(&mut self, generation: u32) {
        if self.generation != generation {
            self.generation = generation;
            self.idle.retain(|idle| idle.lease.made.generation >= generation);
            self.shared.retain(|shared| shared.made.generation >= generation);
        }
    }

    /// Lets go of connections to addresses that the backend's name had.
    pub fn leave_all_but(&mut self, is_current: impl Fn(IpAddr) -> bool) {
        let stays = |made: &Made| made.address.is_none_or(&is_current);
        self.idle.retain(|idle| stays(&idle.lease.made));
        self.shared.retain(|shared| stays(&shared.made));
    }

    /// Lets go of what is too old, closed or talks out of turn, and of what is left of a burst.
    ///
    /// `cap` is the one of `give`. Cost: O(n), to be called now and then.
    pub fn sweep(&mut self, now: Instant, idle_timeout: Duration, cap: Option<usize>) {
        let mut spare = if cap.is_none() { self.idle.len().saturating_sub(KEPT) } else { 0 };
        self.idle.retain_mut(|idle| {
            let age = now.saturating_duration_since(idle.since);
            let allowed = if spare > 0 { KEPT_FOR.min(idle_timeout) } else { idle_timeout };
            let kept = age < allowed && is_usable(&mut idle.lease);
            spare = spare.saturating_sub(usize::from(!kept));
            kept
        });
        self.shared.retain_mut(|shared| {
            if shared.handle.is_busy() {
                shared.used = now;
            }
            now.duration_since(shared.used) < idle_timeout && shared.handle.is_open()
        });
    }

    /// Connections that wait for a request.
    #[cfg(test)]
    fn idle(&self) -> usize {
        self.idle.len()
    }
}

/// Asks the runtime, which has seen every event up to now, without a system call; the next request
/// registers its own waker.
///
/// Out of the runtime's budget: a task that has done much in one turn is told that nothing is ready, and a connection
/// with a stray answer on it would pass for a quiet one.
fn is_usable(lease: &mut Lease) -> bool {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let unusable = poll_fn(|cx| lease.connection.poll_unusable(cx));
    pin!(unconstrained(unusable)).poll(&mut cx).is_pending()
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::SocketAddr};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{
        http::{exchange::Exchange, message::BodyLength, transport::Transport},
        observe::Metrics,
    };

    const LONG: Duration = Duration::from_mins(1);

    /// A backend's listening socket, and leases on connections to it.
    struct Peer {
        listener: TcpListener,
        cells: Arc<BackendCells>,
    }

    impl Peer {
        async fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            Peer { listener, cells: Metrics::new(1).shard(0).backend("web", "a:1") }
        }

        /// A lease, the address of its end, and the backend's end.
        async fn lease(&self) -> (Lease, SocketAddr, TcpStream) {
            let ours = TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap();
            let (theirs, address) = self.listener.accept().await.unwrap();
            let open = Open::count(self.cells.clone(), Duration::ZERO);
            (Lease::new(h1::Connection::new(Transport::Tcp(ours)), open, Made::default()), address, theirs)
        }
    }

    /// Sweeps until nothing is idle; the runtime hears of the backend's doings in between.
    async fn until_empty(pool: &mut Pool) {
        let swept = async {
            while pool.idle() > 0 {
                pool.sweep(Instant::now(), LONG, Some(8));
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, swept).await.unwrap();
    }

    #[tokio::test]
    async fn connections_of_earlier_settings_are_closed_and_not_kept() {
        let peer = Peer::new().await;
        let mut pool = Pool::default();
        let ((idle, _, _end), (busy, _, _other), now) =
            (peer.lease().await, peer.lease().await, Instant::now());
        pool.give(idle, now, None);
        pool.follow(0);
        assert_eq!(pool.idle(), 1);
        pool.follow(1);
        assert_eq!(pool.idle(), 0);
        pool.give(busy, now, None);
        assert_eq!(pool.idle(), 0);
        let (mut fresh, _, _fresh) = peer.lease().await;
        fresh.made.generation = 1;
        pool.give(fresh, now, None);
        assert_eq!(pool.idle(), 1);
    }

    #[tokio::test]
    async fn connections_to_where_the_name_does_not_lead_any_more_are_closed() {
        let peer = Peer::new().await;
        let mut pool = Pool::default();
        let [here, gone] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let mut ends = Vec::new();
        for address in [None, Some(here), Some(gone)] {
            let (mut lease, _, end) = peer.lease().await;
            lease.made.address = address;
            pool.give(lease, Instant::now(), None);
            ends.push(end);
        }
        pool.leave_all_but(|ip| ip == here);
        let left: Vec<_> = pool.idle.iter().map(|idle| idle.lease.made.address).collect();
        assert_eq!(left, [None, Some(here)]);
    }

    #[tokio::test]
    async fn gives_the_connection_used_last_and_marks_it_as_reused() {
        let peer = Peer::new().await;
        let (first, first_address, mut ends) = peer.lease().await;
        let (last, last_address, other) = peer.lease().await;
        let (mut pool, now) = (Pool::default(), Instant::now());
        pool.give(first, now, Some(8));
        pool.give(last, now, Some(8));
        let mut used = pool.take(now, LONG).unwrap();
        assert!(used.reused);
        let (mut last_end, mut byte) = (other, [0]);
        for (end, address) in [(&mut last_end, last_address), (&mut ends, first_address)] {
            assert_eq!(end.peer_addr().unwrap(), address);
            used.connection.send_request(&http::Method::GET, "/", BodyLength::Empty, |_| {});
            poll_fn(|cx| used.connection.poll_flush(cx)).await.unwrap();
            assert_eq!(end.read(&mut byte).await.unwrap(), 1);
            if let Some(next) = pool.take(now, LONG) {
                used = next;
            }
        }
    }

    #[tokio::test]
    async fn keeps_no_more_than_its_limit() {
        let peer = Peer::new().await;
        let mut pool = Pool::default();
        for _ in 0..3 {
            let (lease, _, _theirs) = peer.lease().await;
            pool.give(lease, Instant::now(), Some(2));
        }
        assert_eq!(pool.idle(), 2);
    }

    #[tokio::test]
    async fn keeps_what_a_burst_used_for_a_while_where_no_cap_is_set() {
        let peer = Peer::new().await;
        let (mut pool, start, mut ends) = (Pool::default(), Instant::now(), Vec::new());
        for _ in 0..KEPT + 3 {
            let (lease, _, theirs) = peer.lease().await;
            pool.give(lease, start, None);
            ends.push(theirs);
        }
        let almost = start + KEPT_FOR - Duration::from_millis(1);
        pool.sweep(almost, LONG, None);
        assert_eq!(pool.idle(), KEPT + 3);
        let used = pool.take(almost, LONG).unwrap();
        pool.give(used, almost, None);
        pool.sweep(start + KEPT_FOR, LONG, None);
        assert_eq!(pool.idle(), KEPT, "the oldest went, as many as are above what is always kept");
        pool.sweep(start + LONG, LONG, None);
        assert_eq!(pool.idle(), 1, "the rest ages as ever");
    }

    #[tokio::test]
    async fn keeps_all_that_were_used_of_late_however_many() {
        let peer = Peer::new().await;
        let (mut pool, start, mut ends) = (Pool::default(), Instant::now(), Vec::new());
        for index in 0..2 * KEPT {
            let (lease, _, theirs) = peer.lease().await;
            let last_used = if index < 5 { start } else { start + KEPT_FOR };
            pool.give(lease, last_used, None);
            ends.push(theirs);
        }
        pool.sweep(start + KEPT_FOR, LONG, None);
        assert_eq!(pool.idle(), 2 * KEPT - 5);
    }

    #[tokio::test]
    async fn lets_go_of_shared_connections_that_take_no_stream() {
        let peer = Peer::new().await;
        let mut pool = Pool::default();
        let open = async {
            for _ in 0..3 {
                let ours = TcpStream::connect(peer.listener.local_addr().unwrap()).await.unwrap();
                let theirs = peer.listener.accept().await.unwrap().0;
                tokio::task::spawn_local(async move {
                    let builder = ::h2::server::Builder::new().max_concurrent_streams(0).clone();
                    let mut backend = builder.handshake::<_, &[u8]>(theirs).await.unwrap();
                    while backend.accept().await.is_some() {}
                });
                let (handle, drive) = h2::upstream::handshake(Transport::Tcp(ours)).await.unwrap();
                tokio::task::spawn_local(drive);
                while handle.has_room() {
                    tokio::task::yield_now().await;
                }
                pool.share(handle, Made::default());
            }
        };
        tokio::task::LocalSet::new().run_until(open).await;
        assert_eq!(pool.shared.len(), 1);
    }

    #[tokio::test]
    async fn keeps_nothing_where_the_cap_is_zero() {
        let peer = Peer::new().await;
        let mut pool = Pool::default();
        let (lease, _, _theirs) = peer.lease().await;
        pool.give(lease, Instant::now(), Some(0));
        assert_eq!(pool.idle(), 0);
    }

    #[tokio::test]
    async fn lets_go_of_what_is_too_old() {
        let peer = Peer::new().await;
        let (mut pool, now) = (Pool::default(), Instant::now());
        let (lease, _, _theirs) = peer.lease().await;
        pool.give(lease, now, Some(8));
        pool.sweep(now, LONG, Some(8));
        assert_eq!(pool.idle(), 1);
        assert!(pool.take(now + LONG, LONG).is_none());
        assert_eq!(pool.idle(), 0);
    }

    #[tokio::test]
    async fn notices_it_within_a_turn_in_which_much_was_done() {
        let peer = Peer::new().await;
        let mut pool = Pool::default();
        let (lease, _, mut theirs) = peer.lease().await;
        pool.give(lease, Instant::now(), Some(8));
        theirs.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        // Until the runtime has heard of it.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let taken = poll_fn(|cx| {
            // WHY: whatever it takes of the budget is wanted, and nothing else.
            while pin!(tokio::task::coop::consume_budget()).poll(cx).is_ready() {}
            std::task::Poll::Ready(pool.take(Instant::now(), LONG))
        });
        assert!(taken.await.is_none());
    }

    #[tokio::test]
    async fn notices_a_backend_that_closed_or_speaks_out_of_turn() {
        let peer = Peer::new().await;
        let mut pool = Pool::default();
        let (dead, _, theirs) = peer.lease().await;
        pool.give(dead, Instant::now(), Some(8));
        drop(theirs);
        until_empty(&mut pool).await;
        let (chatty, _, mut theirs) = peer.lease().await;
        pool.give(chatty, Instant::now(), Some(8));
        theirs.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        until_empty(&mut pool).await;
    }
}
