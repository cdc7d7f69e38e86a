//! The control thread: probes, the admin address, signals, and the drain they start.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, watch},
    task::JoinSet,
};

use super::{
    Phase,
    acme::Orders,
    backend_tls,
    bind::{AdminDoor, SocketFile},
    certificates::Stores,
    follow, lists,
};
use crate::{
    admin::Admin,
    http::plain::{self, Entrance},
    observe::{AccessLog, Shard, flush_program_log},
    upstream::{
        cluster::Cluster,
        probe::{self, ProbeReport},
    },
};

/// How long the last access-log lines may take to be written.
pub(super) const LAST_LINES: Duration = Duration::from_secs(2);
/// How long workers may take to let go of what was cut.
const CUT: Duration = Duration::from_secs(1);

pub(super) struct Control<'c> {
    pub(super) admin: Arc<Admin>,
    pub(super) admin_door: Option<AdminDoor>,
    pub(super) certificates: Stores,
    pub(super) orders: Orders,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) log: &'c AccessLog,
    pub(super) stopper: Stopper,
}

/// Starts the drain from within the process, as a first SIGTERM does.
#[derive(Clone, Debug, Default)]
pub struct Stopper(Arc<Notify>);

impl Stopper {
    /// Returns at once; may come before the process serves.
    pub fn stop(&self) {
        self.0.notify_one();
    }
}

#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// What nginx opens its logs anew for.
    user: Signal,
    /// With a handler, a write beyond `ulimit -f` is an error and not the end of the process.
    _too_large: Signal,
}

/// The control thread before it runs. It listens for signals already: one that comes during the start takes effect once
/// all serve, where it would end the process, or be lost to the first process of a container.
#[derive(Debug)]
pub(super) struct Thread {
    runtime: Runtime,
    signals: Signals,
}

impl Thread {
    /// Starts none: it is the one that calls.
    pub(super) fn open() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = runtime.enter();
            Signals::new()?
        };
        Ok(Thread { runtime, signals })
    }

    /// Runs until a signal and the drain after it.
    pub(super) fn run(self, control: Control<'_>, workers: Vec<JoinHandle<()>>) -> io::Result<()> {
        let ended = self.runtime.block_on(serve(control, self.signals, workers));
        self.runtime.shutdown_background();
        ended
    }
}

async fn serve(control: Control<'_>, mut signals: Signals, workers: Vec<JoinHandle<()>>) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    let (entrance, socket_file) = control.admin_door.map(open).transpose()?.unzip();
    if let Some(entrance) = entrance {
        let admin = control.admin.clone();
        tasks.spawn(plain::serve(entrance, move |asked| admin.answer(asked)));
    }
    let shard = control.admin.metrics.shard(control.admin.config.workers);
    let probed = control.admin.clusters.iter().filter(|cluster| cluster.config.health.is_some());
    let all = probed.map(|cluster| cluster.backends.len()).sum();
    for cluster in &control.admin.clusters {
        tasks.spawn(probe::run(cluster.clone(), all, reporter(cluster, &shard)));
    }
    tasks.spawn(backend_tls::keep(control.admin.clusters.clone()));
    for task in control.orders.tasks() {
        tasks.spawn(task);
    }
    tasks.spawn(lists::keep(control.admin.firewall.clone(), control.admin.metrics.clone()));
    let certificates = control.certificates;
    let followers = certificates.followers(&control.admin.config);
    let look = move || {
        certificates.roll_tickets(Instant::now());
        certificates.look_at_staples(SystemTime::now());
    };
    tasks.spawn(follow::keep(followers, control.admin.metrics.clone(), look));
    loop {
        tokio::select! {
            () = signals.end(control.log) => break,
            () = control.stopper.0.notified() => break,
            Some(ended) = tasks.join_next() => if ended.is_err() {
                shard.panic();
                tracing::error!("a task of the control thread broke off: what it kept up to date stays as it is");
            }
        }
    }
    drain(&control.admin, &control.phase, (&mut signals, control.log), workers).await;
    drop(socket_file);
    Ok(())
}

/// The file of a unix socket is to be kept for as long as it is served.
fn open(door: AdminDoor) -> io::Result<(Entrance, Option<SocketFile>)> {
    Ok(match door {
        AdminDoor::Tcp(socket) => (Entrance::Tcp(tokio::net::TcpListener::from_std(socket)?), None),
        AdminDoor::Unix(socket, file) => {
            (Entrance::Unix(tokio::net::UnixListener::from_std(socket)?), Some(file))
        }
    })
}

/// Writes what a probe found into the metrics.
fn reporter(cluster: &Cluster, shard: &Shard) -> impl Fn(&ProbeReport<'_>) + Clone + Send + Sync + 'static {
    let cells: Arc<[_]> =
        cluster.backends.iter().map(|backend| shard.backend(cluster.name(), &backend.address)).collect();
    move |report| {
        let cells = &cells[report.backend];
        cells.probe(report.result.code(), report.duration);
        cells.set_up(report.cluster.backends[report.backend].is_up());
    }
}

/// Readiness goes first, then the workers finish; a second signal or the deadline cuts what is left.
async fn drain(
    admin: &Admin,
    phase: &watch::Sender<Phase>,
    (signals, log): (&mut Signals, &AccessLog),
    workers: Vec<JoinHandle<()>>,
) {
    admin.draining.store(true, Ordering::Relaxed);
    let limit = admin.config.drain_timeout;
    tracing::info!("draining: no new connections, up to {limit:?} for those that are open");
    phase.send_replace(Phase::Drain);
    let mut joined = tokio::task::spawn_blocking(move || {
        for worker in workers {
            if worker.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    });
    tokio::select! {
        _ = &mut joined => return tracing::info!("drained"),
        () = tokio::time::sleep(limit) => {
            tracing::warn!("connections were still open after {limit:?}: cut");
        }
        () = signals.end(log) => {
            tracing::warn!("second signal: ending at once");
            flush_program_log();
            std::process::exit(1);
        }
    }
    phase.send_replace(Phase::Stop);
    // WHY: a worker that does not come back must not keep the process alive.
    let _ = tokio::time::timeout(CUT, joined).await;
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
            _too_large: signal(SignalKind::from_raw(nix::libc::SIGXFSZ))?,
        })
    }

    /// Waits for the signal to end; others open the access log anew, for log rotation.
    async fn end(&mut self, log: &AccessLog) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    log.reopen();
                    tracing::info!("SIGHUP: access log opened anew; the configuration is read at start only");
                }
                _ = self.user.recv() => {
                    log.reopen();
                    tracing::info!("SIGUSR1: access log opened anew");
                }
            }
        }
    }
}
