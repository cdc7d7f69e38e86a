//! The life of the process: bind, spawn, serve, drain.
//!
//! Nothing is bound before the configuration is known to be good, nothing is spawned before
//! everything is bound, and a drain ends with the last connection or at its deadline.

mod acme;
mod backend_tls;
mod bind;
mod certificates;
mod control;
mod follow;
mod lists;
mod privileges;
mod sandbox;
mod worker;

use std::{
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

pub use control::Stopper;
use tokio::sync::watch;

use crate::{
    admin::Admin,
    config::Config,
    downstream::tls,
    firewall::Firewall,
    observe::{AccessLog, Metrics, Shard, detach_program_log},
    upstream::cluster::Cluster,
};

/// How far the process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serve,
    /// Finish what runs, accept nothing new.
    Drain,
    /// Cut what still runs.
    Stop,
}

/// Why the process could not start.
#[derive(Debug)]
pub enum StartError {
    Bind { what: String, address: SocketAddr, error: io::Error },
    AdminSocket { path: PathBuf, error: io::Error },
    Tls { what: String, error: String },
    Acme { name: String, error: String },
    AccessLog(io::Error),
    Privileges(String),
    Thread(io::Error),
}

/// Everything bound and ready, not yet running.
#[derive(Debug)]
pub struct App {
    control: control::Thread,
    admin: Arc<Admin>,
    admin_door: Option<bind::AdminDoor>,
    workers: Vec<worker::Plan>,
    certificates: certificates::Stores,
    orders: acme::Orders,
    log: AccessLog,
    phase: watch::Sender<Phase>,
    stopper: Stopper,
}

impl App {
    /// Binds every address and prepares every thread.
    ///
    /// # Errors
    /// The first thing that the operator has to mend; nothing stays bound then.
    ///
    /// With a sandbox, the calling thread stays in it.
    pub fn new(mut config: Config) -> Result<App, StartError> {
        let own = control::Thread::open().map_err(StartError::Thread)?;
        let nofile = privileges::raise_file_limit();
        let clusters = clusters(&config)?;
        let acceptors = acceptors(&config)?;
        let sockets = bind::listeners(&mut config)?;
        let admin_tcp = config.admin.as_mut().map(bind::admin_tcp).transpose()?.flatten();
        let config = Arc::new(config);
        let firewall = Arc::new(Firewall::new(&config));
        privileges::drop_to(config.user.as_deref(), config.group.as_deref())
            .map_err(StartError::Privileges)?;
        let admin_unix = config.admin.as_ref().map(bind::admin_unix).transpose()?.flatten();
        let metrics = Metrics::new(config.workers + 1);
        let certificates = certificates::Stores::new(&config, &acceptors, &metrics);
        let challenges = Arc::default();
        let orders = acme::Orders::open(&config, &certificates, &challenges, &metrics)?;
        sandbox::enter(&config);
        detach_program_log().map_err(StartError::Thread)?;
        let log = AccessLog::start(&config.log, &metrics).map_err(StartError::AccessLog)?;
        announce(&clusters, &metrics.shard(config.workers));
        certificates.announce();
        let phase = watch::Sender::new(Phase::Serve);
        let (admissions, places) = (worker::admissions(&config, nofile), worker::places(&config, nofile));
        let workers = sockets
            .into_iter()
            .enumerate()
            .map(|(index, sockets)| worker::Plan {
                index,
                config: config.clone(),
                firewall: firewall.clone(),
                clusters: clusters.clone(),
                doors: sockets
                    .into_iter()
                    .enumerate()
                    .map(|(listener, socket)| worker::DoorPlan {
                        listener,
                        socket,
                        tls: acceptors[listener].clone(),
                        admission: admissions[listener].clone(),
                    })
                    .collect(),
                shard: metrics.shard(index),
                log: log.writer(),
                places: places.clone(),
                challenges: challenges.clone(),
                phase: phase.subscribe(),
            })
            .collect();
        let admin = Admin { config, firewall, clusters, metrics, draining: AtomicBool::new(false) };
        let (admin, admin_door) = (Arc::new(admin), admin_tcp.or(admin_unix));
        Ok(App {
            control: own,
            admin,
            admin_door,
            workers,
            certificates,
            orders,
            log,
            phase,
            stopper: Stopper::default(),
        })
    }

    /// What will be served, with the ports that the kernel chose where 0 was configured.
    pub fn config(&self) -> &Config {
        &self.admin.config
    }

    /// Ends `run` from another thread.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Serves until a signal or a stopper asks to end and the drain is over.
    ///
    /// # Errors
    /// A thread that could not be started.
    pub fn run(self) -> Result<(), StartError> {
        let threads: Vec<_> = self
            .workers
            .into_iter()
            .map(worker::start)
            .collect::<Result<_, _>>()
            .map_err(StartError::Thread)?;
        let control = control::Control {
            admin: self.admin.clone(),
            admin_door: self.admin_door,
            certificates: self.certificates,
            orders: self.orders,
            phase: self.phase,
            log: &self.log,
            stopper: self.stopper,
        };
        let result = self.control.run(control, threads);
        let lost = self.log.finish(control::LAST_LINES);
        if lost > 0 {
            tracing::warn!("{lost} access log lines could not be written");
        }
        result.map_err(StartError::Thread)
    }
}

fn clusters(config: &Config) -> Result<Vec<Arc<Cluster>>, StartError> {
    let make = |cluster: &crate::config::Cluster| {
        let failed = |error: crate::upstream::tls::SetupError| StartError::Tls {
            what: format!("cluster \"{}\"", cluster.name),
            error: error.to_string(),
        };
        Cluster::new(cluster.clone(), None).map(Arc::new).map_err(failed)
    };
    config.clusters.iter().map(make).collect()
}

fn acceptors(config: &Config) -> Result<Vec<Option<tls::Acceptor>>, StartError> {
    let make = |listener: &crate::config::Listener| {
        let failed = |error: tls::SetupError| StartError::Tls {
            what: format!("listener \"{}\"", listener.name),
            error: error.to_string(),
        };
        listener.tls.as_ref().map(tls::acceptor).transpose().map_err(failed)
    };
    config.listeners.iter().map(make).collect()
}

/// Fills in the metrics that are there from the start.
fn announce(clusters: &[Arc<Cluster>], shard: &Shard) {
    for cluster in clusters {
        let unverified = cluster.config.tls.as_ref().is_some_and(|tls| !tls.verify);
        shard.cluster(cluster.name()).set_exposed(cluster.config.is_plaintext(), unverified);
        for backend in &cluster.backends {
            let cells = shard.backend(cluster.name(), &backend.address);
            cells.set_up(backend.is_up());
            cells.set_weight(backend.weight);
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Bind { what, address, error } if error.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "{what} can't listen on {address}: another program has that port; stop it or choose another \
                 address (see who it is with: ss -ltnp 'sport = :{}')",
                address.port()
            ),
            StartError::Bind { what, address, error } if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(
                    f,
                    "{what} can't listen on {address}: ports below 1024 need root or the capability \
                     CAP_NET_BIND_SERVICE"
                )
            }
            StartError::Bind { what, address, error } => {
                write!(f, "{what} can't listen on {address}: {error}")
            }
            StartError::AdminSocket { path, error } => {
                write!(f, "the admin address can't listen on unix:{}: {error}", path.display())
            }
            StartError::Tls { what, error } => write!(f, "the TLS of {what} can't be set up: {error}"),
            StartError::Acme { name, error } => {
                write!(f, "the certificate of {name} can't be looked after: {error}")
            }
            StartError::AccessLog(error) => write!(f, "the access log can't be opened: {error}"),
            StartError::Privileges(error) => f.write_str(error),
            StartError::Thread(error) => write!(f, "a thread can't be started: {error}"),
        }
    }
}

impl std::error::Error for StartError {}
