//! A cluster while it runs: its settings, its backends, and the health that all threads share.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::OwnedMutexGuard,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use super::{
    health::{self, Health, Outcome, Transition},
    tls,
};
use crate::config;

/// How long a backend's addresses are used before its name is looked up again.
const ADDRESSES_LIVE: Duration = Duration::from_secs(5);
/// The same once a connection to them has failed.
const DISTRUSTED_LIVE: Duration = Duration::from_secs(1);

/// An address that no lookup has told for so long is the name's no more.
const GONE_AFTER: Duration = Duration::from_mins(1);

/// How long a lookup is waited for where there is something to go on with: less than a probe may take.
const LOOKUP_PATIENCE: Duration = Duration::from_millis(300);

/// A named group of interchangeable backends. Made anew by each reload; the backends' state stays.
#[derive(Debug)]
pub struct Cluster {
    pub config: config::Cluster,
    /// In the order of the config; an index into it names a backend everywhere in `upstream`.
    pub backends: Vec<Backend>,
    /// When the certificate that the private CA gave us is to be replaced.
    renew_at: Mutex<Option<SystemTime>>,
    /// Goes up with every change of what `eligible` says.
    epoch: AtomicU64,
    fails_open: AtomicBool,
    /// Held while `epoch` and `fails_open` follow a change of health.
    changing: Mutex<()>,
}

/// One address that serves.
#[derive(Debug)]
pub struct Backend {
    /// As written, `host:port`: its name in metrics, logs and the status.
    pub address: String,
    pub host: String,
    pub port: u16,
    pub weight: u32,
    /// `None`: clear text.
    pub tls: Option<tls::Connector>,
    state: Arc<State>,
}

/// What outlives a reload, by (cluster, address).
#[derive(Debug)]
struct State {
    up: AtomicBool,
    record: Mutex<Record>,
    addresses: ArcSwapOption<Addresses>,
    /// Held while the name is looked up.
    lookup: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Record {
    health: Health,
    since: SystemTime,
    last_error: Option<String>,
}

#[derive(Debug)]
struct Addresses {
    found: Vec<IpAddr>,
    until: Instant,
    /// Those that were found of late, and when: many names have more addresses than one answer tells.
    seen: Vec<(IpAddr, Instant)>,
}

/// What a change of TLS settings does to connections that were made before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outdate {
    Nothing,
    Connections,
}

/// A backend's health for people to read.
#[derive(Debug, Clone)]
pub struct Status {
    pub up: bool,
    /// When `up` last changed, or when the backend was first known.
    pub since: SystemTime,
    /// What the last failed probe said; `None` once one has passed.
    pub last_error: Option<String>,
}

impl Cluster {
    /// A cluster as configured; backends that `previous` had under the same address keep their state.
    ///
    /// Without health checks every backend is up, whatever it was before.
    pub fn new(config: config::Cluster, previous: Option<&Cluster>) -> Result<Cluster, tls::SetupError> {
        let connector = match &config.tls {
            Some(tls) => Some(tls::ClusterConnector::new(&config.name, tls, config.protocol)?),
            None => None,
        };
        let previous = previous.filter(|_| config.health.is_some());
        let state = |address: &str| {
            let same = previous?.backends.iter().find(|backend| backend.address == address)?;
            Some(Arc::clone(&same.state))
        };
        let mut backends = Vec::with_capacity(config.backends.len());
        for backend in &config.backends {
            backends.push(Backend {
                tls: connector.as_ref().map(|connector| connector.backend(&backend.host)).transpose()?,
                state: state(&backend.address).unwrap_or_default(),
                address: backend.address.clone(),
                host: backend.host.clone(),
                port: backend.port,
                weight: backend.weight,
            });
        }
        let cluster = Cluster {
            config,
            backends,
            renew_at: Mutex::new(connector.and_then(|connector| connector.renew_at())),
            epoch: AtomicU64::new(0),
            fails_open: AtomicBool::new(false),
            changing: Mutex::new(()),
        };
        cluster.follow_health();
        Ok(cluster)
    }

    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Whether it is time for a new certificate of the private CA.
    pub fn wants_identity(&self, now: SystemTime) -> bool {
        self.renew_at.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at <= now)
    }

    /// New connections follow `tls` from now on, and resume nothing that was agreed before.
    ///
    /// With `Outdate::Connections` those that are there serve nobody after the request they are at.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn replace_tls(&self, tls: &config::ClusterTls, outdate: Outdate) -> Result<(), tls::SetupError> {
        let connector = tls::ClusterConnector::new(self.name(), tls, self.config.protocol)?;
        for own in self.backends.iter().filter_map(|backend| backend.tls.as_ref()) {
            own.replace(&connector);
            if outdate == Outdate::Connections {
                own.outdate();
            }
        }
        *self.renew_at.lock().unwrap_or_else(PoisonError::into_inner) = connector.renew_at();
        Ok(())
    }

    /// A number that is another one after every change of what `eligible` says.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether requests may go to this backend: it is up, or so few are that all count as up.
    pub fn eligible(&self, index: usize) -> bool {
        self.backends[index].is_up() || self.fails_open()
    }

    /// Whether so few backends are up that all count as up.
    pub fn fails_open(&self) -> bool {
        self.fails_open.load(Ordering::Relaxed)
    }

    pub fn up_count(&self) -> usize {
        self.backends.iter().filter(|backend| backend.is_up()).count()
    }

    /// Takes in the result of one probe; `Err` says what is wrong. Returns the change it makes.
    ///
    /// Takes short locks; for the control thread.
    pub fn observe(&self, index: usize, result: Result<(), &str>) -> Option<Transition> {
        let rules = self.config.health.as_ref()?;
        let state = &self.backends[index].state;
        let outcome = if result.is_ok() { Outcome::Passed } else { Outcome::Failed };
        let transition = {
            let mut record = state.record.lock().unwrap_or_else(PoisonError::into_inner);
            record.last_error = result.err().map(str::to_owned);
            let transition = record.health.observe(outcome, rules.rise, rules.fall);
            if transition.is_some() {
                record.since = SystemTime::now();
                state.up.store(record.health.is_up(), Ordering::Relaxed);
            }
            transition
        };
        if transition.is_some() {
            self.follow_health();
        }
        transition
    }

    /// Brings `fails_open` and the epoch in line with the backends' health.
    fn follow_health(&self) {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let below = self.config.health.as_ref().map_or(0, |rules| rules.fail_open_below);
        let (up, total) = (self.up_count(), self.backends.len());
        let open = health::fails_open(up, total, below);
        let was_open = self.fails_open.swap(open, Ordering::Relaxed);
        self.epoch.fetch_add(1, Ordering::Release);
        let name = self.name();
        match (was_open, open) {
            (false, true) => {
                tracing::warn!(
                    "cluster {name} has {up} of {total} backends up, fewer than {below} %: all are used"
                );
            }
            (true, false) => {
                tracing::info!("cluster {name} has {up} of {total} backends up: only these are used");
            }
            (true, true) | (false, false) => {}
        }
    }
}

impl Backend {
    /// The number of its TLS settings; one for clear text.
    pub fn tls_generation(&self) -> u32 {
        self.tls.as_ref().map_or(0, tls::Connector::generation)
    }

    /// What its probes say, without regard to fail-open.
    pub fn is_up(&self) -> bool {
        self.state.up.load(Ordering::Relaxed)
    }

    /// Its health for people to read. Takes a short lock.
    pub fn status(&self) -> Status {
        let record = self.state.record.lock().unwrap_or_else(PoisonError::into_inner);
        Status { up: record.health.is_up(), since: record.since, last_error: record.last_error.clone() }
    }

    /// Where to connect to, on this port: at least one address.
    ///
    /// An address as host costs nothing. A name is looked up at most every 5 s, once at a time; meanwhile, and where a
    /// lookup fails or takes long, what was known serves. Cancel safe: a lookup goes on and its result is kept, whoever
    /// still waits for it. Without anything known there is no deadline.
    pub async fn socket_addresses(&self, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = self.bare_host().parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let known = self.state.addresses.load_full();
        if let Some(known) = &known
            && Instant::now() < known.until
        {
            return Ok(known.on_port(port));
        }
        let lookup = Arc::clone(&self.state.lookup);
        let guard = match (&known, lookup.clone().try_lock_owned()) {
            (_, Ok(guard)) => guard,
            (Some(known), Err(_)) => return Ok(known.on_port(port)),
            (None, Err(_)) => lookup.lock_owned().await,
        };
        // Another caller may have been faster while this one waited for the lock.
        if let Some(fresh) = self.state.addresses.load_full()
            && Instant::now() < fresh.until
        {
            return Ok(fresh.on_port(port));
        }
        let found = self.look_up(guard);
        match known {
            Some(known) => {
                let fresh = timeout(LOOKUP_PATIENCE, found).await.ok().and_then(|found| found.ok()?.ok());
                if fresh.is_none() {
                    self.put_off(&known);
                }
                Ok(fresh.unwrap_or(known).on_port(port))
            }
            None => Ok(found.await??.on_port(port)),
        }
    }

    /// Has the name looked up again soon, since an address could not be connected to; within 1 s,
    /// so that a thousand failures a second are not a thousand lookups.
    pub fn distrust_addresses(&self) {
        let soon = Instant::now() + DISTRUSTED_LIVE;
        if let Some(known) = self.state.addresses.load_full()
            && soon < known.until
        {
            self.state.addresses.store(Some(Arc::new(known.until(soon))));
        }
    }

    /// Has what was known serve a little longer: a resolver in trouble is not asked for each connection.
    fn put_off(&self, known: &Arc<Addresses>) {
        let until = Instant::now() + DISTRUSTED_LIVE;
        // A lookup that took long may have come back just now.
        if self.state.addresses.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, known)) {
            self.state.addresses.store(Some(Arc::new(known.until(until))));
        }
    }

    /// Whether its host is a name, which may move, and no address.
    pub fn has_name(&self) -> bool {
        self.bare_host().parse::<IpAddr>().is_err()
    }

    /// The addresses that its name has had of late; `None` where nothing was looked up.
    pub fn addresses_of_late(&self) -> Option<impl Fn(IpAddr) -> bool> {
        let known = self.state.addresses.load_full()?;
        Some(move |ip| known.seen.iter().any(|(seen, _)| *seen == ip))
    }

    /// Runs to its end, and keeps the guard as long: a resolver that hangs is asked once at a time.
    fn look_up(&self, guard: OwnedMutexGuard<()>) -> JoinHandle<io::Result<Arc<Addresses>>> {
        let (state, host, port) = (Arc::clone(&self.state), self.bare_host().to_owned(), self.port);
        spawn_blocking(move || {
            let _one_at_a_time = guard;
            let mut found: Vec<IpAddr> = Vec::new();
            for address in (host.as_str(), port).to_socket_addrs()? {
                if !found.contains(&address.ip()) {
                    found.push(address.ip());
                }
            }
            if found.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"));
            }
            let before = state.addresses.load_full();
            let fresh = Arc::new(Addresses::new(found, before.as_deref(), Instant::now()));
            state.addresses.store(Some(Arc::clone(&fresh)));
            Ok(fresh)
        })
    }

    fn bare_host(&self) -> &str {
        let bare = self.host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        bare.unwrap_or(&self.host)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl Addresses {
    fn new(found: Vec<IpAddr>, before: Option<&Addresses>, now: Instant) -> Self {
        let mut seen: Vec<(IpAddr, Instant)> = found.iter().map(|ip| (*ip, now)).collect();
        let earlier = before.map_or(&[][..], |before| &before.seen);
        let kept = |(ip, at): &&(IpAddr, Instant)| !found.contains(ip) && now - *at < GONE_AFTER;
        seen.extend(earlier.iter().filter(kept));
        Addresses { found, until: now + ADDRESSES_LIVE, seen }
    }

    /// The same, for a different time.
    fn until(&self, until: Instant) -> Self {
        Addresses { found: self.found.clone(), until, seen: self.seen.clone() }
    }

    fn on_port(&self, port: u16) -> Vec<SocketAddr> {
        self.found.iter().map(|&ip| SocketAddr::new(ip, port)).collect()
    }
}

impl Default for State {
    fn default() -> State {
        State {
            up: AtomicBool::new(true),
            record: Mutex::new(Record {
                health: Health::default(),
                since: SystemTime::now(),
                last_error: None,
            }),
            addresses: ArcSwapOption::empty(),
            lookup: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{
        balance::{Balancer, Tried},
        testing::{cluster_config, health},
    };

    fn cluster(addresses: &[&str]) -> Cluster {
        let config = config::Cluster { health: Some(health()), ..cluster_config(addresses) };
        Cluster::new(config, None).expect("no TLS")
    }

    fn fail(cluster: &Cluster, index: usize) -> Option<Transition> {
        (0..3).find_map(|_| cluster.observe(index, Err("refused")))
    }

    #[test]
    fn a_change_of_health_moves_the_epoch_and_nothing_else_does() {
        let cluster = cluster(&["a:1", "b:1", "c:1"]);
        let start = cluster.epoch();
        assert_eq!(cluster.observe(0, Ok(())), None);
        assert_eq!(cluster.observe(0, Err("refused")), None);
        assert_eq!(cluster.epoch(), start);
        assert_eq!(fail(&cluster, 0), Some(Transition::Down { failed: 3 }));
        assert_ne!(cluster.epoch(), start);
        let status = cluster.backends[0].status();
        assert!(!status.up && !cluster.backends[0].is_up() && !cluster.eligible(0));
        assert_eq!(status.last_error.as_deref(), Some("refused"));
        assert_eq!(cluster.up_count(), 2);
    }

    #[test]
    fn a_passed_probe_clears_the_last_error() {
        let cluster = cluster(&["a:1", "b:1"]);
        fail(&cluster, 0);
        cluster.observe(0, Ok(()));
        assert!(!cluster.backends[0].is_up() && cluster.backends[0].status().last_error.is_none());
        assert_eq!(cluster.observe(0, Ok(())), Some(Transition::Up { passed: 2 }));
        assert!(cluster.backends[0].is_up());
    }

    #[test]
    fn with_less_than_half_up_all_are_eligible() {
        let cluster = cluster(&["a:1", "b:1", "c:1"]);
        fail(&cluster, 0);
        assert!(!cluster.fails_open() && !cluster.eligible(0));
        fail(&cluster, 1);
        assert!(cluster.fails_open() && (0..3).all(|index| cluster.eligible(index)));
        assert_eq!(cluster.up_count(), 1);
        cluster.observe(1, Ok(()));
        cluster.observe(1, Ok(()));
        assert!(!cluster.fails_open() && !cluster.eligible(0) && cluster.eligible(1));
    }

    #[test]
    fn a_reload_keeps_the_state_of_an_address_that_stays() {
        let old = cluster(&["a:1", "b:1", "c:1"]);
        fail(&old, 1);
        let config = config::Cluster { health: Some(health()), ..cluster_config(&["d:1", "b:1", "a:1"]) };
        let new = Cluster::new(config, Some(&old)).expect("no TLS");
        let up: Vec<bool> = new.backends.iter().map(Backend::is_up).collect();
        assert_eq!(up, [true, false, true]);
        assert!(!new.eligible(1));
        new.observe(1, Ok(()));
        new.observe(1, Ok(()));
        assert!(old.backends[1].is_up());
    }

    #[test]
    fn a_reload_that_turns_health_checks_off_makes_all_backends_up() {
        let old = cluster(&["a:1", "b:1", "c:1"]);
        fail(&old, 1);
        let new = Cluster::new(cluster_config(&["a:1", "b:1"]), Some(&old)).expect("no TLS");
        assert!(new.backends.iter().all(Backend::is_up));
        assert_eq!(fail(&new, 0), None);
        assert!(new.eligible(0));
    }

    #[test]
    fn a_balancer_follows_health_at_its_next_pick() {
        let cluster = cluster(&["a:1", "b:1", "c:1"]);
        let mut balancer = Balancer::new(&cluster, 0);
        let mut picks = |count: usize| -> Vec<Option<usize>> {
            (0..count).map(|_| balancer.pick(&cluster, &Tried::default())).collect()
        };
        assert_eq!(picks(4), [Some(0), Some(1), Some(2), Some(0)]);
        fail(&cluster, 1);
        assert!(picks(10).iter().all(|pick| *pick != Some(1)));
        fail(&cluster, 2);
        assert!(picks(3).contains(&Some(1)), "fails open");
    }

    #[tokio::test]
    async fn an_address_is_never_looked_up() {
        for (address, expected) in [("127.0.0.1:80", "127.0.0.1:81"), ("[::1]:80", "[::1]:81")] {
            let cluster = cluster(&[address]);
            let found = cluster.backends[0].socket_addresses(81).await.expect("an address");
            assert_eq!(found, [expected.parse().expect("an address")]);
            assert!(cluster.backends[0].state.addresses.load().is_none());
        }
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_and_sooner_again_when_distrusted() {
        let cluster = cluster(&["localhost:80"]);
        let backend = &cluster.backends[0];
        let known = || backend.state.addresses.load_full().expect("looked up");
        let found = backend.socket_addresses(80).await.expect("localhost has an address");
        assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 80));
        let first = known();
        backend.socket_addresses(81).await.expect("known");
        assert!(Arc::ptr_eq(&first, &known()));
        backend.distrust_addresses();
        let distrusted = known();
        assert!(distrusted.until < first.until);
        backend.distrust_addresses();
        assert_eq!(distrusted.until, known().until);
    }

    #[tokio::test]
    async fn a_lookup_goes_on_without_who_asked_for_it() {
        let cluster = cluster(&["localhost:80"]);
        let backend = &cluster.backends[0];
        let _ = timeout(Duration::ZERO, backend.socket_addresses(80)).await;
        while backend.state.addresses.load().is_none() {
            tokio::task::yield_now().await;
        }
        drop(backend.state.lookup.lock().await);
    }

    #[tokio::test]
    async fn while_one_looks_up_the_others_use_what_was_known() {
        let cluster = cluster(&["localhost:80"]);
        let backend = &cluster.backends[0];
        let known =
            Addresses::new(vec![IpAddr::from([127, 0, 0, 9])], None, Instant::now()).until(Instant::now());
        backend.state.addresses.store(Some(Arc::new(known)));
        let _lookup = backend.state.lookup.lock().await;
        let found = backend.socket_addresses(80).await.expect("known");
        assert_eq!(found, ["127.0.0.9:80".parse().expect("an address")]);
    }

    #[tokio::test]
    async fn what_was_known_serves_when_the_lookup_fails() {
        let cluster = cluster(&["no such name:80"]);
        let backend = &cluster.backends[0];
        backend.socket_addresses(80).await.expect_err("no such name");
        let known =
            Addresses::new(vec![IpAddr::from([127, 0, 0, 1])], None, Instant::now()).until(Instant::now());
        backend.state.addresses.store(Some(Arc::new(known)));
        let found = backend.socket_addresses(80).await.expect("still known");
        assert_eq!(found, ["127.0.0.1:80".parse().expect("an address")]);
        let put_off = backend.state.addresses.load_full().expect("still known");
        assert!(Instant::now() < put_off.until, "the resolver is left alone for a while");
    }

    #[test]
    fn an_address_is_the_names_until_no_lookup_has_told_it_for_a_while() {
        let [one, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let start = Instant::now();
        let first = Addresses::new(vec![one], None, start);
        let almost = start + GONE_AFTER / 2;
        let second = Addresses::new(vec![other], Some(&first), almost);
        assert_eq!(second.seen, [(other, almost), (one, start)]);
        let third = Addresses::new(vec![other], Some(&second), start + GONE_AFTER);
        assert_eq!(third.seen, [(other, start + GONE_AFTER)]);
        assert_eq!(third.until(start).seen, third.seen);
    }
}
