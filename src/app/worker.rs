//! A worker thread: its runtime, its accept loops, its housekeeping.

use std::{
    future::poll_fn,
    io,
    net::TcpListener,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, LocalOptions},
    sync::watch,
    task::spawn_local,
    time::{MissedTickBehavior, interval, sleep},
};

use super::Phase;
use crate::{
    config::{Cap, Config},
    downstream::{
        accept::{self, Door},
        admission::{Admission, Gate},
        tls::Acceptor,
    },
    firewall::Firewall,
    observe::{LogWriter, Shard, Throttle},
    proxy::{
        challenges::HttpChallenges,
        load::{Load, Places},
        view::View,
        worker::Worker,
    },
    upstream::cluster::Cluster,
};

/// How long a log line may wait for company.
const LOG_FLUSH: Duration = Duration::from_millis(100);
/// How often pools are looked through, in log flushes.
const SWEEP_EVERY: u32 = 10;
/// Before a task that panicked is begun again.
const PAUSE: Duration = Duration::from_millis(50);
/// Files kept for what is not a downstream connection: listeners, logs, probes, the admin address.
const FILE_RESERVE: usize = 256;

/// Shared by all workers: what makes one late mostly makes all of them late.
static COMPLAINTS: Mutex<Throttle> = Mutex::new(Throttle::new(Duration::from_secs(1)));

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
    pub(super) places: Option<Arc<Places>>,
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

/// Half of the files that are not kept for other things: for clients, or for backends.
fn half(nofile: usize) -> usize {
    nofile.saturating_sub(FILE_RESERVE).max(2) / 2
}

/// The places for requests in flight: unless configured, as many as may have a connection of their own.
pub(super) fn places(config: &Config, nofile: usize) -> Option<Arc<Places>> {
    let limit = match config.overload.requests {
        Cap::Derived => half(nofile),
        Cap::At(limit) => limit,
        Cap::Off => return None,
    };
    Some(Places::new(limit, config.workers))
}

/// The connection caps of all listeners; a cap that is not configured leaves half of the files for
/// upstream connections.
pub(super) fn admissions(config: &Config, nofile: usize) -> Vec<Arc<Admission>> {
    let process = Arc::new(Gate::new(half(nofile)));
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
            Ok(runtime) => {
                runtime.block_on(run(plan));
                // WHY: a resolver that hangs must not keep the process from its end.
                runtime.shutdown_background();
            }
            Err(error) => tracing::error!("worker {} can't start: {error}", plan.index),
        }
    })
}

async fn run(plan: Plan) {
    let Plan { index, config, firewall, clusters, doors, shard, log, places, challenges, mut phase } = plan;
    let view = View::new(&config, &firewall, &clusters, &shard, fastrand::u64(..));
    let load = Load::new(places, config.overload.delay);
    let worker = Rc::new(Worker::new(view, shard, log, load).answering(challenges));
    for door in doors {
        if let Err(error) = open(&worker, door) {
            tracing::error!("worker {index} can't listen: {error}");
        }
    }
    let house = worker.clone();
    keep_running(&worker, "the housekeeping of a worker", move || keep_house(house.clone()));
    let usher = worker.clone();
    keep_running(&worker, "the usher of a worker", move || {
        let worker = usher.clone();
        async move { worker.turns.usher().await }
    });
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
    let (accepting, door) = (worker.clone(), Rc::new(door));
    keep_running(worker, "an accept loop", move || accept::run(accepting.clone(), door.clone()));
    Ok(())
}

/// Runs a task that must not end before the worker does; one that panics is counted and begun again.
fn keep_running<F: Future<Output = ()> + 'static>(
    worker: &Rc<Worker>,
    what: &'static str,
    begin: impl Fn() -> F + 'static,
) {
    let worker = worker.clone();
    spawn_local(async move {
        while spawn_local(begin()).await.is_err() {
            worker.shard.panic();
            tracing::error!("{what} broke off: begun again");
            // What panics at once must not do so all the time.
            sleep(PAUSE).await;
        }
    });
}

/// Waits until the process has come that far; a sender that is gone means the end.
async fn reach(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

/// Tells the worker how late it is, hands log lines over and lets old upstream connections go.
async fn keep_house(worker: Rc<Worker>) {
    let mut ticks = interval(LOG_FLUSH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 0_u32.. {
        let due = ticks.tick().await;
        if let Some(delay) = worker.notice_delay(due.elapsed()) {
            complain(delay);
        }
        worker.flush_log();
        worker.set_clocks();
        if tick % SWEEP_EVERY == 0 {
            worker.sweep_pools();
        }
    }
}

fn complain(delay: Duration) {
    let mut complaints = COMPLAINTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(suppressed) = complaints.admit(Instant::now()) {
        tracing::warn!(
            "overloaded: a worker is {delay:?} late and sheds requests ({suppressed} more of these not shown)"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, path::Path};

    use super::*;
    use crate::{
        config,
        observe::{AccessLog, Metrics},
    };

    const CONFIG: &str = "[log]\naccess = \"off\"\n[[listeners]]\naddress = \"127.0.0.1:0\"\n\
                          redirect_to_https = true\n";

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_counted_and_begun_again() {
        let (config, _) = config::parse("test", CONFIG, Path::new("")).unwrap();
        let metrics = Metrics::new(1);
        let log = AccessLog::start(&config.log, &metrics).unwrap();
        let firewall = Arc::new(Firewall::new(&config));
        let view = View::new(&Arc::new(config), &firewall, &[], &metrics.shard(0), 0);
        let worker = Rc::new(Worker::new(view, metrics.shard(0), log.writer(), Load::new(None, None)));
        let begun = Rc::new(Cell::new(0));
        let tasks = tokio::task::LocalSet::new();
        let count = begun.clone();
        tasks
            .run_until(async move {
                keep_running(&worker, "a test", move || {
                    count.set(count.get() + 1);
                    let begun = count.get();
                    async move { assert!(begun == 3, "the expected panic of a test") }
                });
            })
            .await;
        tasks.await;
        assert_eq!(begun.get(), 3);
        assert!(metrics.scrape().contains("portcullis_panics_total 2\n"));
    }
}
