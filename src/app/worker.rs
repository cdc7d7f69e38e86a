//! A worker thread: its runtime, its accept loops, its housekeeping.

use std::{
    future::poll_fn, io, net::TcpListener, rc::Rc, sync::Arc, task::Poll, thread::JoinHandle, time::Duration,
};

use tokio::{
    runtime::{Builder, LocalOptions},
    sync::watch,
    task::spawn_local,
    time::{MissedTickBehavior, interval},
};

use super::Phase;
use crate::{
    config::Config,
    downstream::{
        accept::{self, Door},
        admission::{Admission, Gate},
        tls::Acceptor,
    },
    firewall::Firewall,
    observe::{LogWriter, Shard},
    proxy::{
        challenges::HttpChallenges,
        worker::{View, Worker},
    },
    upstream::cluster::Cluster,
};

/// How long a log line may wait for company.
const LOG_FLUSH: Duration = Duration::from_millis(100);
/// How often pools are looked through, in log flushes.
const SWEEP_EVERY: u32 = 10;
/// Files kept for what is not a downstream connection: listeners, logs, probes, the admin address.
const FILE_RESERVE: usize = 256;

/// What a worker is made of; crosses to its thread.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) index: usize,
    pub(super) config: Arc<Config>,
    pub(super) firewall: Arc<Firewall>,
    pub(super) clusters: Vec<Arc<Cluster>>,
    pub(super) doors: Vec<DoorPlan>,
    pub(super) shard: Shard,
    pub(super) log: LogWriter,
    pub(super) challenges: Arc<HttpChallenges>,
    pub(super) phase: watch::Receiver<Phase>,
}

#[derive(Debug)]
pub(super) struct DoorPlan {
    pub(super) listener: usize,
    pub(super) socket: TcpListener,
    pub(super) tls: Option<Acceptor>,
    pub(super) admission: Arc<Admission>,
}

/// The connection caps of all listeners; a cap that is not configured leaves half of the files for
/// upstream connections.
pub(super) fn admissions(config: &Config, nofile: usize) -> Vec<Arc<Admission>> {
    let process = Arc::new(Gate::new(nofile.saturating_sub(FILE_RESERVE).max(2) / 2));
    config
        .listeners
        .iter()
        .map(|each| Admission::new(process.clone(), each.limits.connections, each.limits.connections_per_ip))
        .collect()
}

/// Starts the thread of a worker.
pub(super) fn start(plan: Plan) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("worker-{}", plan.index)).spawn(move || {
        match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => runtime.block_on(run(plan)),
            Err(error) => tracing::error!("worker {} can't start: {error}", plan.index),
        }
    })
}

async fn run(plan: Plan) {
    let Plan { index, config, firewall, clusters, doors, shard, log, challenges, mut phase } = plan;
    let view = View::new(&config, &firewall, &clusters, &shard, fastrand::u64(..));
    let worker = Rc::new(Worker::new(view, shard, log).answering(challenges));
    for door in doors {
        if let Err(error) = open(&worker, door) {
            tracing::error!("worker {index} can't listen: {error}");
        }
    }
    spawn_local(keep_house(worker.clone()));
    reach(&mut phase, Phase::Drain).await;
    worker.drain();
    let empty = poll_fn(|cx| if worker.poll_empty(cx.waker()) { Poll::Ready(()) } else { Poll::Pending });
    tokio::select! {
        () = empty => {}
        () = reach(&mut phase, Phase::Stop) => worker.cut(),
    }
    worker.flush_log();
}

fn open(worker: &Rc<Worker>, plan: DoorPlan) -> io::Result<()> {
    let socket = tokio::net::TcpListener::from_std(plan.socket)?;
    let door = Door { listener: plan.listener, socket, tls: plan.tls, admission: plan.admission };
    spawn_local(accept::run(worker.clone(), door));
    Ok(())
}

/// Waits until the process has come that far; a sender that is gone means the end.
async fn reach(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

/// Hands log lines over and lets old upstream connections go.
async fn keep_house(worker: Rc<Worker>) {
    let mut ticks = interval(LOG_FLUSH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 0_u32.. {
        ticks.tick().await;
        worker.flush_log();
        worker.set_clocks();
        if tick % SWEEP_EVERY == 0 {
            worker.sweep_pools();
        }
    }
}
