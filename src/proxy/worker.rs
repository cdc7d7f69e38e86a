//! What one worker thread has: its view of the configuration, its counters, its log.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::Waker,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::client;
use crate::{
    config::Listener,
    error::Reason,
    firewall::Refusal,
    http::{deadline::Deadline, message::RequestHead, proxy_protocol::Ends},
    observe::{ListenerCells, LogWriter, Record, Shard, Throttle},
    proxy::{
        challenges::HttpChallenges,
        load::{Load, Place},
        policies::ClientCertificate,
        turns::Turns,
        view::View,
    },
};

/// How large a request head that is kept for reuse may have grown, and all of them together.
const KEPT_HEAD_BYTES: usize = 8 * 1024;
const KEPT_BYTES: usize = 4 * 1024 * 1024;

/// Timers kept for reuse. Each keeps what it last woke in memory, so these are fewer.
const KEPT_DEADLINES: usize = 64;

/// The state of a worker thread; everything a connection task needs hangs off it.
#[derive(Debug)]
pub struct Worker {
    pub shard: Shard,
    load: Load,
    /// Whose request is read next.
    pub turns: Turns,
    /// What clear-text listeners prove to certificate directories.
    pub challenges: Arc<HttpChallenges>,
    view: RefCell<Rc<View>>,
    log: RefCell<LogWriter>,
    random: RefCell<fastrand::Rng>,
    draining: Cell<bool>,
    drain_began: tokio::sync::Notify,
    cutting: Cell<bool>,
    connections: RefCell<Connections>,
    /// Request heads that no request uses; idle connections hold none.
    #[expect(clippy::vec_box, reason = "a head moves from task to task, and its box is what moves")]
    heads: RefCell<Vec<Box<RequestHead>>>,
    /// The memory of those heads.
    head_bytes: Cell<usize>,
    deadlines: RefCell<Vec<Deadline>>,
    /// The same moment on both clocks.
    clocks: Cell<(Instant, SystemTime)>,
}

/// The open downstream connections, so that a drain can wake those that wait.
#[derive(Debug, Default)]
struct Connections {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
    /// Woken when the last one closes.
    empty: Option<Waker>,
}

/// A connection's place in the worker's list; leaves it on drop.
#[derive(Debug)]
pub struct Seat {
    worker: Rc<Worker>,
    index: usize,
}

impl Worker {
    pub fn new(view: View, shard: Shard, log: LogWriter, load: Load) -> Self {
        Worker {
            shard,
            load,
            turns: Turns::default(),
            challenges: Arc::default(),
            view: RefCell::new(Rc::new(view)),
            log: RefCell::new(log),
            random: RefCell::new(fastrand::Rng::new()),
            draining: Cell::new(false),
            drain_began: tokio::sync::Notify::new(),
            cutting: Cell::new(false),
            connections: RefCell::default(),
            heads: RefCell::default(),
            head_bytes: Cell::new(0),
            deadlines: RefCell::default(),
            clocks: Cell::new((Instant::now(), SystemTime::now())),
        }
    }

    /// The same worker, that answers these challenges.
    pub fn answering(self, challenges: Arc<HttpChallenges>) -> Self {
        Worker { challenges, ..self }
    }

    /// The snapshot in force.
    pub fn view(&self) -> Rc<View> {
        self.view.borrow().clone()
    }

    /// 128 random bits in hexadecimal.
    pub fn request_id(&self) -> [u8; 32] {
        let bytes = self.random.borrow_mut().u128(..).to_ne_bytes();
        std::array::from_fn(|index| {
            let half = bytes[index / 2] >> (index % 2 * 4);
            b"0123456789abcdef"[usize::from(half & 15)]
        })
    }

    /// An empty head with memory from earlier requests.
    pub fn take_head(&self) -> Box<RequestHead> {
        let Some(head) = self.heads.borrow_mut().pop() else { return Box::default() };
        self.head_bytes.set(self.head_bytes.get() - head.bytes());
        head
    }

    /// Keeps a head for a later request, unless its memory has grown large.
    pub fn give_head(&self, mut head: Box<RequestHead>) {
        let bytes = self.head_bytes.get() + head.bytes();
        if bytes <= KEPT_BYTES && head.bytes() <= KEPT_HEAD_BYTES {
            head.clear();
            self.head_bytes.set(bytes);
            self.heads.borrow_mut().push(head);
        }
    }

    /// A place among the requests in flight, or `None` where this one is to be turned away.
    pub fn enter(&self) -> Option<Place<'_>> {
        if self.is_shedding() { None } else { self.load.enter() }
    }

    /// Whether this piece of new work is to be turned away because the worker is late.
    pub fn is_shedding(&self) -> bool {
        let share = self.load.share();
        share > 0 && self.random.borrow_mut().u32(..) < share
    }

    /// Takes note of how late a task was that was due; returns the delay for which work is shed.
    pub fn notice_delay(&self, delay: Duration) -> Option<Duration> {
        let delay = delay.max(self.turns.delay());
        self.shard.worker_delay(delay);
        self.load.notice(delay)
    }

    /// A deadline that is not set. One from an earlier request has its timer already, which mostly
    /// need not be touched: it rings once in a while and finds that the deadline was moved.
    pub fn take_deadline(&self) -> Deadline {
        self.deadlines.borrow_mut().pop().unwrap_or_default()
    }

    pub fn give_deadline(&self, mut deadline: Deadline) {
        let mut deadlines = self.deadlines.borrow_mut();
        if deadlines.len() < KEPT_DEADLINES {
            deadline.clear();
            deadlines.push(deadline);
        }
    }

    /// Writes one access-log line.
    pub fn log(&self, record: &Record<'_>) {
        self.log.borrow_mut().record(record);
    }

    /// The time of day of an instant that is not long ago.
    pub fn wall_clock(&self, at: Instant) -> SystemTime {
        let (instant, time) = self.clocks.get();
        match at.checked_duration_since(instant) {
            Some(later) => time + later,
            None => time - (instant - at),
        }
    }

    /// Follows the system's clock; to be called now and then.
    pub fn set_clocks(&self) {
        self.clocks.set((Instant::now(), SystemTime::now()));
    }

    /// Hands what was logged to the log's own thread.
    pub fn flush_log(&self) {
        self.log.borrow_mut().flush();
    }

    /// Closes pooled connections that are too old, closed or talk out of turn.
    pub fn sweep_pools(&self) {
        let now = Instant::now();
        for cluster in &self.view().clusters {
            let config = &cluster.cluster.config;
            for (backend, shared) in cluster.backends.iter().zip(&cluster.cluster.backends) {
                let mut pool = backend.pool.borrow_mut();
                pool.follow(shared.tls_generation());
                if let Some(is_current) = shared.addresses_of_late() {
                    pool.leave_all_but(is_current);
                }
                pool.sweep(now, config.idle_timeout, config.idle_connections);
            }
        }
    }

    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// The drain's deadline has passed: what still runs is about to be dropped.
    pub fn cut(&self) {
        self.cutting.set(true);
    }

    pub fn is_cutting(&self) -> bool {
        self.cutting.get()
    }

    /// Waits for the beginning of a drain.
    pub async fn drained(&self) {
        if !self.is_draining() {
            self.drain_began.notified().await;
        }
    }

    /// From now on connections close at the end of their exchange; idle ones close at once.
    pub fn drain(&self) {
        self.draining.set(true);
        self.drain_began.notify_waiters();
        for waker in self.connections.borrow().wakers.iter().flatten() {
            waker.wake_by_ref();
        }
    }

    /// Ready when no downstream connection is open.
    pub fn poll_empty(&self, waker: &Waker) -> bool {
        let mut connections = self.connections.borrow_mut();
        connections.empty = Some(waker.clone());
        connections.count() == 0
    }
}

impl Connections {
    fn count(&self) -> usize {
        self.wakers.len() - self.free.len()
    }
}

impl Seat {
    /// Takes a place for a connection task; call `remember` from within the task.
    pub fn take(worker: &Rc<Worker>) -> Self {
        let mut connections = worker.connections.borrow_mut();
        let index = connections.free.pop().unwrap_or(connections.wakers.len());
        if index == connections.wakers.len() {
            connections.wakers.push(None);
        }
        drop(connections);
        Seat { worker: worker.clone(), index }
    }

    /// Lets a drain wake this task from now on.
    pub fn remember(&self, waker: &Waker) {
        self.worker.connections.borrow_mut().wakers[self.index] = Some(waker.clone());
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut connections = self.worker.connections.borrow_mut();
        connections.wakers[self.index] = None;
        connections.free.push(self.index);
        if connections.count() == 0
            && let Some(waker) = connections.empty.take()
        {
            waker.wake();
        }
    }
}

/// Facts about a downstream connection that are the same for all its requests.
#[derive(Debug)]
pub struct Client {
    pub listener: usize,
    pub peer: SocketAddr,
    /// The client as far as the connection tells, in canonical form: the peer, or whom a PROXY
    /// protocol header names; `Flight::client_ip` knows more.
    pub ip: IpAddr,
    /// The same as text, for every request's log line and `x-forwarded-for`.
    pub ip_text: Box<str>,
    /// With the port.
    pub peer_text: Box<str>,
    /// The ends of the connection that the client itself made: those that a PROXY protocol header
    /// named, or, where a cluster has to be told, the socket's. `None`: the peer is the client.
    pub ends: Option<Box<Ends>>,
    pub tls: Option<TlsFacts>,
    /// Why we end the connection: requests that are cut then are on record as such.
    pub cut_for: Cell<Option<Reason>>,
}

#[derive(Debug)]
pub struct TlsFacts {
    pub version: &'static str,
    pub cipher: &'static str,
    pub sni: Option<String>,
    pub resumed: bool,
    /// Under which of the listener's policies the handshake was.
    pub policy: usize,
    /// Where a client certificate was asked for.
    pub identity: Option<Box<ClientCertificate>>,
}

impl Client {
    pub fn new(listener: usize, peer: SocketAddr) -> Self {
        let ip = peer.ip().to_canonical();
        Client {
            listener,
            peer,
            ip,
            ip_text: ip.to_string().into(),
            peer_text: SocketAddr::new(ip, peer.port()).to_string().into(),
            ends: None,
            tls: None,
            cut_for: Cell::new(None),
        }
    }

    /// Whether the connection is one of `trusted_proxies`: what goes wrong on it may be anybody's fault.
    pub fn is_trusted(&self, listener: &Listener) -> bool {
        !listener.trusted_proxies.is_empty() && client::is_trusted(&listener.trusted_proxies, self.ip)
    }

    /// The client is who made a connection with these ends.
    pub fn name(&mut self, ends: Ends) {
        self.ip = ends.source.ip().to_canonical();
        self.ip_text = self.ip.to_string().into();
        self.ends = Some(Box::new(ends));
    }
}

/// Counts a connection that was turned away before it had a request.
pub fn reject(worker: &Worker, listener: usize, reason: Reason) {
    worker.view().listeners[listener].cells.rejection(reason);
}

/// What is left of a refusal after a dry run, which only counts it.
pub fn enforced(refusal: Refusal, cells: &ListenerCells) -> Option<Refusal> {
    if refusal.dry_run {
        cells.dry_run(refusal.reason);
        return None;
    }
    Some(refusal)
}

/// Lets the firewall know of a rejection. One ban in a second is told: who has many addresses could fill the log.
pub fn report_rejection(
    view: &View,
    listener: usize,
    (client, reason): (IpAddr, Reason),
    now: std::time::Instant,
) {
    static TOLD: Mutex<Throttle> = Mutex::new(Throttle::new(Duration::from_secs(1)));
    let Some(banned_for) = view.firewall.rejected(listener, client, reason, now) else { return };
    let admitted = TOLD.lock().unwrap_or_else(PoisonError::into_inner).admit(now);
    if let Some(more) = admitted {
        let code = reason.code();
        tracing::info!(
            "{client} is banned for {banned_for:?}: rejected again with {code} ({more} more bans not shown)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_named_as_std_writes_addresses_and_a_mapped_one_by_its_ipv4_address() {
        for (peer, ip, text) in [
            ("255.0.10.1:65535", "255.0.10.1", "255.0.10.1:65535"),
            ("[2001:db8::1]:1", "2001:db8::1", "[2001:db8::1]:1"),
            ("[::]:80", "::", "[::]:80"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1", "192.0.2.1:80"),
        ] {
            let client = Client::new(0, peer.parse().unwrap());
            assert_eq!((&*client.ip_text, &*client.peer_text), (ip, text));
            assert_eq!(client.ip.to_string(), ip);
        }
    }
}
