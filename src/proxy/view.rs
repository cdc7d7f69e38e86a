//! What a request looks at: one snapshot of the configuration, with a worker's own state beside each part.

use std::{
    cell::{OnceCell, RefCell},
    sync::Arc,
};

use super::{handshakes::Handshakes, policies::ClientPolicies, route::RouteTable};
use crate::{
    config::{Config, Listener},
    firewall::Firewall,
    http::h1::{BodyLimits, HeadLimits, RequestLimits, head::Underscores},
    observe::{BackendCells, ClusterCells, ListenerCells, NO_ROUTE, Quoted, RouteCells, Shard},
    upstream::{
        balance::{Balancer, Tried},
        cluster::Cluster,
        pool::Pool,
    },
};

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
    pub handshakes: Handshakes,
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
            handshakes: Handshakes::new(listener.limits.concurrent_handshakes),
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
