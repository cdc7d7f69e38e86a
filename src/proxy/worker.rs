//! What one worker thread has: its view of the configuration, its pools, its counters, its log.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    task::Waker,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use crate::{
    config::{Config, Listener},
    error::Reason,
    firewall::{Firewall, Refusal},
    http::{
        deadline::Deadline,
        h1::{BodyLimits, HeadLimits, RequestLimits, head::Underscores},
        message::RequestHead,
        proxy_protocol::Ends,
    },
    observe::{
        BackendCells, ClusterCells, ListenerCells, LogWriter, NO_ROUTE, Quoted, Record, RouteCells, Shard,
    },
    proxy::{
        challenges::HttpChallenges,
        load::{Load, Place},
        policies::{ClientCertificate, ClientPolicies},
        route::RouteTable,
    },
    upstream::{
        balance::{Balancer, Tried},
        cluster::Cluster,
        pool::Pool,
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

/// One immutable snapshot of everything a request looks at, with this worker's own state beside
/// each part; a connection takes it anew for each request, so a new one comes into force at once.
#[derive(Debug)]
pub struct View {
    pub config: Arc<Config>,
    pub firewall: Arc<Firewall>,
    pub listeners: Vec<ListenerView>,
    pub clusters: Vec<ClusterView>,
    /// The routes' names.
    pub routes: Vec<Quoted>,
    /// Some cluster tells its backends a connection's two ends, so each connection has to know them.
    pub names_clients: bool,
}

#[derive(Debug)]
pub struct ListenerView {
    pub name: String,
    pub quoted_name: Quoted,
    pub routes: RouteTable,
    pub cells: Arc<ListenerCells>,
    pub limits: RequestLimits,
    /// One permit for each TLS handshake that may run at once.
    pub handshakes: tokio::sync::Semaphore,
    /// Where `redirect_to_https` sends: the port of a TLS listener.
    pub https_port: Option<u16>,
    /// Where its hosts ask for different client certificates.
    pub policies: Option<ClientPolicies>,
    unrouted: OnceCell<Arc<RouteCells>>,
    routed: Vec<OnceCell<Arc<RouteCells>>>,
}

#[derive(Debug)]
pub struct ClusterView {
    pub name: Quoted,
    pub cluster: Arc<Cluster>,
    pub cells: Arc<ClusterCells>,
    pub backends: Vec<BackendView>,
    balance: RefCell<Balancer>,
}

#[derive(Debug)]
pub struct BackendView {
    pub name: Quoted,
    pub cells: Arc<BackendCells>,
    pub pool: RefCell<Pool>,
    /// Held while a shared connection is being made, so that a burst makes one and not hundreds.
    pub connecting: tokio::sync::Mutex<()>,
}

impl Worker {
    pub fn new(view: View, shard: Shard, log: LogWriter, load: Load) -> Self {
        Worker {
            shard,
            load,
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

impl View {
    /// Lays this worker's state beside the shared one.
    pub fn new(
        config: &Arc<Config>,
        firewall: &Arc<Firewall>,
        clusters: &[Arc<Cluster>],
        shard: &Shard,
        seed: u64,
    ) -> Self {
        let https_port = https_port(&config.listeners);
        View {
            config: config.clone(),
            firewall: firewall.clone(),
            listeners: (0..config.listeners.len())
                .map(|index| ListenerView::new(config, index, https_port, shard))
                .collect(),
            clusters: clusters.iter().map(|cluster| ClusterView::new(cluster, shard, seed)).collect(),
            routes: config.routes.iter().map(|route| Quoted::new(&route.name)).collect(),
            names_clients: clusters.iter().any(|cluster| cluster.config.proxy_protocol),
        }
    }
}

/// The port that a redirect names: 443 where it is served, else the first TLS listener's.
fn https_port(listeners: &[Listener]) -> Option<u16> {
    let mut ports = listeners.iter().filter(|each| each.tls.is_some()).map(|each| each.address.port());
    let first = ports.next();
    if first == Some(443) || ports.any(|port| port == 443) { Some(443) } else { first }
}

impl ListenerView {
    fn new(config: &Config, index: usize, https_port: Option<u16>, shard: &Shard) -> Self {
        let listener = &config.listeners[index];
        ListenerView {
            name: listener.name.clone(),
            quoted_name: Quoted::new(&listener.name),
            routes: RouteTable::new(&config.routes, index),
            cells: shard.listener(&listener.name),
            limits: request_limits(listener),
            handshakes: tokio::sync::Semaphore::new(listener.limits.concurrent_handshakes),
            https_port,
            policies: listener.tls.as_ref().map(ClientPolicies::new).filter(ClientPolicies::differ),
            unrouted: OnceCell::new(),
            routed: (0..config.routes.len()).map(|_| OnceCell::new()).collect(),
        }
    }

    /// The counters of a route on this listener; made when it is first used.
    pub fn route_cells(&self, config: &Config, shard: &Shard, route: Option<usize>) -> &RouteCells {
        match route {
            None => self.unrouted.get_or_init(|| shard.route(&self.name, NO_ROUTE)),
            Some(index) => {
                self.routed[index].get_or_init(|| shard.route(&self.name, &config.routes[index].name))
            }
        }
    }
}

fn request_limits(listener: &Listener) -> RequestLimits {
    let limits = &listener.limits;
    RequestLimits {
        head: HeadLimits {
            head_bytes: limits.request_head_bytes,
            uri_bytes: limits.uri_bytes,
            field_bytes: limits.field_bytes,
            fields: limits.fields,
            underscores: Underscores::Drop,
        },
        body: BodyLimits {
            trailer_bytes: limits.trailer_bytes,
            chunk_extension_bytes: limits.chunk_extension_bytes,
            fields: limits.fields,
            underscores: Underscores::Drop,
        },
    }
}

impl ClusterView {
    fn new(cluster: &Arc<Cluster>, shard: &Shard, seed: u64) -> Self {
        ClusterView {
            name: Quoted::new(cluster.name()),
            cluster: cluster.clone(),
            cells: shard.cluster(cluster.name()),
            backends: cluster
                .backends
                .iter()
                .map(|backend| BackendView {
                    name: Quoted::new(&backend.address),
                    cells: shard.backend(cluster.name(), &backend.address),
                    pool: RefCell::default(),
                    connecting: tokio::sync::Mutex::new(()),
                })
                .collect(),
            balance: RefCell::new(Balancer::new(cluster, seed)),
        }
    }

    /// Chooses a backend that was not tried yet.
    pub fn pick(&self, tried: &Tried) -> Option<usize> {
        self.balance.borrow_mut().pick(&self.cluster, tried)
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
