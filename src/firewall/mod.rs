//! May this client come in? Lists of networks, rates and bans, shared by all workers.
//!
//! A connection is asked about before TLS, by the address of the peer; a request again, by the
//! address of the client, which trusted proxies may have named. Everything here is plain values and
//! a clock that the caller reads.

mod bans;
mod buckets;
pub mod export;

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

pub use self::bans::Ban;
use self::{
    bans::Bans,
    buckets::{Buckets, Pace, Tag},
};
use crate::{
    config::{
        BanRule, Config, FirewallTables, ListError, NetworkLists, Networks, Rate, RateKey, RateLimit, Verdict,
    },
    error::Reason,
};

/// The firewall of the process.
#[derive(Debug)]
pub struct Firewall {
    /// As in the configuration.
    listeners: Vec<ListenerRules>,
    routes: Vec<Option<RouteRules>>,
    /// Each that is in use, once.
    lists: Vec<Arc<Lists>>,
    buckets: Buckets,
    /// The table of those who were rejected.
    rejections: Tag,
    bans: Bans,
    tables: FirewallTables,
    /// Where the clock of the buckets begins.
    start: Instant,
}

#[derive(Debug)]
struct ListenerRules {
    lists: Arc<Lists>,
    dry_run: bool,
    connection_rate: Option<(Tag, Pace)>,
    rate_limits: Vec<Limit>,
}

#[derive(Debug)]
struct RouteRules {
    lists: Arc<Lists>,
    rate_limits: Vec<Limit>,
}

/// Lists whose files may change.
#[derive(Debug)]
pub struct Lists {
    pub written: Arc<NetworkLists>,
    networks: ArcSwap<Networks>,
}

/// A connection or request that must not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    /// For `retry-after`.
    pub retry_after: Option<Duration>,
    /// Others may have used up what it asked for: it says nothing of this client, and is no step towards a ban.
    pub shared: bool,
    /// The listener only counts: let it through.
    pub dry_run: bool,
}

/// A request, as far as the firewall looks at it.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    pub listener: usize,
    pub route: Option<usize>,
    pub client_ip: IpAddr,
    /// The connection was admitted by another address than this request's client.
    pub forwarded: bool,
}

/// A rate of requests, ready to be asked about.
#[derive(Debug)]
struct Limit {
    key: RateKey,
    pace: Pace,
    /// Of the keys that are clients, and of those that are values of a field: nobody can choose a value
    /// that counts as another client.
    clients: Tag,
    values: Tag,
}

/// A table of buckets; the numbers keep those of different limits apart.
#[derive(Hash)]
enum Table {
    Connections { listener: usize },
    Rejections,
    Requests { owner: Owner, limit: usize, of: Of },
}

#[derive(Hash, Clone, Copy)]
enum Owner {
    Listener(usize),
    Route(usize),
}

#[derive(Hash, Clone, Copy)]
enum Of {
    Clients,
    Values,
}

impl Firewall {
    pub fn new(config: &Config) -> Self {
        let mut lists = Vec::new();
        let mut share = |written: &Arc<NetworkLists>| {
            let known = lists.iter().find(|known: &&Arc<Lists>| Arc::ptr_eq(&known.written, written));
            known.cloned().unwrap_or_else(|| {
                let new = Arc::new(Lists::new(written));
                lists.push(new.clone());
                new
            })
        };
        let buckets = Buckets::new(if uses_buckets(config) { config.firewall.entries } else { 0 });
        let limits = |owner, written: &[RateLimit]| {
            let limit = |(index, limit): (usize, &RateLimit)| Limit::new(limit, &buckets, (owner, index));
            written.iter().enumerate().map(limit).collect()
        };
        let listeners = config.listeners.iter().enumerate().map(|(index, listener)| ListenerRules {
            lists: share(&listener.firewall.lists),
            dry_run: listener.firewall.dry_run,
            connection_rate: listener
                .firewall
                .connection_rate
                .map(|rate| (buckets.tag(&Table::Connections { listener: index }), rate.into())),
            rate_limits: limits(Owner::Listener(index), &listener.firewall.rate_limits),
        });
        let listeners = listeners.collect();
        let routes = config.routes.iter().enumerate().map(|(index, route)| {
            let written = route.firewall.as_ref()?;
            let rate_limits = limits(Owner::Route(index), &written.rate_limits);
            Some(RouteRules { lists: share(&written.lists), rate_limits })
        });
        let rejections = buckets.tag(&Table::Rejections);
        Firewall {
            listeners,
            routes: routes.collect(),
            lists,
            buckets,
            rejections,
            bans: Bans::new(config.firewall.entries),
            tables: config.firewall.clone(),
            start: Instant::now(),
        }
    }

    /// Whether a peer may connect; takes one from its rate of connections.
    ///
    /// # Errors
    /// `Denied`, `Banned` or `RateLimited`.
    pub fn connection(&self, listener: usize, peer: IpAddr, now: Instant) -> Result<(), Refusal> {
        let rules = &self.listeners[listener];
        let refused =
            |reason, retry_after| Refusal { reason, retry_after, shared: false, dry_run: rules.dry_run };
        rules.lists.check(peer).map_err(|reason| refused(reason, None))?;
        let client = self.client(peer);
        if self.bans.holds(client, now) {
            return Err(refused(Reason::Banned, None));
        }
        if let Some((table, pace)) = rules.connection_rate {
            let taken = self.buckets.take(self.tag(client).within(table), pace, self.clock(now));
            taken.map_err(|wait| refused(Reason::RateLimited, Some(wait)))?;
        }
        Ok(())
    }

    /// Whether a request may go on; takes one from each rate that it counts against, up to the
    /// first that is used up. `field` finds the first value of a field by its name in lower case.
    ///
    /// # Errors
    /// `Denied`, `Banned` or `RateLimited`.
    pub fn request<'f>(
        &self,
        request: Request,
        field: impl Fn(&str) -> Option<&'f [u8]>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let rules = &self.listeners[request.listener];
        let route = request.route.and_then(|route| self.routes[route].as_ref());
        let refused =
            |reason, retry_after| Refusal { reason, retry_after, shared: false, dry_run: rules.dry_run };
        if request.forwarded {
            rules.lists.check(request.client_ip).map_err(|reason| refused(reason, None))?;
        }
        if let Some(route) = route {
            route.lists.check(request.client_ip).map_err(|reason| refused(reason, None))?;
        }
        let client = self.client(request.client_ip);
        if self.bans.holds(client, now) {
            return Err(refused(Reason::Banned, None));
        }
        let of_route = route.map_or(&[][..], |route| &route.rate_limits);
        if rules.rate_limits.is_empty() && of_route.is_empty() {
            return Ok(());
        }
        let (client, now) = (self.tag(client), self.clock(now));
        for limit in rules.rate_limits.iter().chain(of_route) {
            let (tag, shared) = match &limit.key {
                RateKey::Route => (limit.clients, true),
                RateKey::ClientIp => (client.within(limit.clients), false),
                RateKey::Header(name) => match field(name) {
                    Some(value) => (self.buckets.tag(&value).within(limit.values), true),
                    None => (client.within(limit.clients), false),
                },
            };
            let taken = self.buckets.take(tag, limit.pace, now);
            taken.map_err(|wait| Refusal { shared, ..refused(Reason::RateLimited, Some(wait)) })?;
        }
        Ok(())
    }

    /// Counts a rejection of a client; bans it where that was one too many. Returns for how long, if it is
    /// newly banned.
    pub fn rejected(
        &self,
        listener: usize,
        client_ip: IpAddr,
        reason: Reason,
        now: Instant,
    ) -> Option<Duration> {
        let rule = self.tables.bans?;
        if !reason.counts_towards_ban() || self.listeners[listener].dry_run {
            return None;
        }
        let client = self.client(client_ip);
        let tag = self.tag(client).within(self.rejections);
        if self.buckets.take(tag, rule.rate().into(), self.clock(now)).is_ok() {
            return None;
        }
        self.buckets.refill(tag);
        self.bans.add(client, now + rule.duration, now).then_some(rule.duration)
    }

    /// The bans that hold.
    pub fn bans(&self, now: Instant) -> Vec<Ban> {
        self.bans.list(now)
    }

    /// Lifts the ban of an address; whether there was one.
    pub fn lift(&self, address: IpAddr, now: Instant) -> bool {
        let client = self.client(address);
        self.buckets.refill(self.tag(client).within(self.rejections));
        self.bans.lift(client, now)
    }

    /// Forgets bans that have ended; returns how many hold.
    pub fn sweep(&self, now: Instant) -> usize {
        self.bans.sweep(now)
    }

    /// Every set of lists in use, to be loaded anew when a file changes.
    pub fn lists(&self) -> &[Arc<Lists>] {
        &self.lists
    }

    /// The clock of the buckets, in nanoseconds.
    fn clock(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.start);
        since.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(since.subsec_nanos()))
    }

    /// Of a client in no table yet. One number for either kind of address, which is hashed faster than an
    /// enum is.
    fn tag(&self, client: IpAddr) -> Tag {
        let bits = match client {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        };
        self.buckets.tag(&bits)
    }

    /// What counts as one client.
    fn client(&self, address: IpAddr) -> IpAddr {
        network(address, self.tables.ipv6_prefix)
    }
}

impl Limit {
    fn new(written: &RateLimit, buckets: &Buckets, (owner, limit): (Owner, usize)) -> Self {
        let table = |of| buckets.tag(&Table::Requests { owner, limit, of });
        Limit {
            key: written.key.clone(),
            pace: written.rate.into(),
            clients: table(Of::Clients),
            values: table(Of::Values),
        }
    }
}

/// Whether anything is counted at all.
fn uses_buckets(config: &Config) -> bool {
    let of_listeners = |listener: &crate::config::Listener| {
        listener.firewall.connection_rate.is_some() || !listener.firewall.rate_limits.is_empty()
    };
    config.firewall.bans.is_some()
        || config.listeners.iter().any(of_listeners)
        || config
            .routes
            .iter()
            .any(|route| route.firewall.as_ref().is_some_and(|firewall| !firewall.rate_limits.is_empty()))
}

/// An IPv4 address as it is, of an IPv6 address the first `prefix` bits.
fn network(address: IpAddr, prefix: u8) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let host_bits = 128_u32.saturating_sub(u32::from(prefix));
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

impl Lists {
    fn new(written: &Arc<NetworkLists>) -> Self {
        Lists { written: written.clone(), networks: ArcSwap::new(written.loaded.clone()) }
    }

    fn check(&self, address: IpAddr) -> Result<(), Reason> {
        match self.networks.load().find(address).unwrap_or(self.written.default) {
            Verdict::Admit => Ok(()),
            Verdict::Deny => Err(Reason::Denied),
        }
    }

    /// How many prefixes are in force.
    pub fn len(&self) -> usize {
        self.networks.load().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the files anew; what was in force stays so if one of them can't be used. Takes time:
    /// a second for a million prefixes.
    ///
    /// # Errors
    /// The first file that can't be used.
    pub fn reload(&self) -> Result<(), (std::path::PathBuf, ListError)> {
        self.networks.store(Arc::new(self.written.load()?));
        Ok(())
    }
}

impl BanRule {
    /// The rejections that a client may have without a ban.
    fn rate(self) -> Rate {
        Rate { count: self.after, per: self.window, burst: self.after - 1 }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    const SECOND: Duration = Duration::from_secs(1);

    fn firewall(extra: &str) -> Firewall {
        let text = format!(
            "[[listeners]]\naddress = \"127.0.0.1:80\"\n[[routes]]\ncluster = \"web\"\nfirewall.rate_limits = \
             [{{ key = \"route\", rate = \"3/s\" }}]\n[clusters.web]\nbackends = [\"127.0.0.1:1\"]\n{extra}"
        );
        let parsed = config::parse("test", &text, Path::new(""));
        Firewall::new(&parsed.unwrap_or_else(|problems| panic!("{problems}")).0)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn request(client: &str) -> Request {
        Request { listener: 0, route: None, client_ip: ip(client), forwarded: false }
    }

    fn nothing(_: &str) -> Option<&'static [u8]> {
        None
    }

    #[test]
    fn a_denied_peer_is_refused_as_a_connection_and_as_a_forwarded_client() {
        let firewall =
            firewall("[firewall]\ndefault = \"deny\"\nadmit = [\"10.0.0.0/8\"]\ndeny = [\"10.6.0.0/16\"]");
        let now = Instant::now();
        let reason = |peer| firewall.connection(0, ip(peer), now).map_err(|refusal| refusal.reason);
        assert_eq!(reason("10.1.2.3"), Ok(()));
        assert_eq!(reason("::ffff:10.1.2.3"), Ok(()));
        assert_eq!(reason("10.6.2.3"), Err(Reason::Denied));
        assert_eq!(reason("192.0.2.1"), Err(Reason::Denied));
        let forwarded = Request { forwarded: true, ..request("10.6.0.1") };
        assert_eq!(firewall.request(forwarded, nothing, now).unwrap_err().reason, Reason::Denied);
        // Its peer was asked about when it connected.
        assert_eq!(firewall.request(request("10.6.0.1"), nothing, now), Ok(()));
    }

    #[test]
    fn connections_are_counted_by_address_and_ipv6_network() {
        let firewall =
            firewall("[firewall]\nipv6_prefix = 56\nconnection_rate = { rate = \"60/m\", burst = 2 }");
        let now = Instant::now();
        let connect = |peer, after| {
            firewall.connection(0, ip(peer), now + after).map_err(|refusal| refusal.retry_after)
        };
        connect("2001:db8::1", Duration::ZERO).unwrap();
        connect("2001:db8:0:ff::1", Duration::ZERO).unwrap();
        assert_eq!(connect("2001:db8::2", Duration::ZERO), Err(Some(SECOND)));
        connect("2001:db8:0:100::1", Duration::ZERO).unwrap();
        connect("2001:db8::2", SECOND).unwrap();
    }

    #[test]
    fn limits_of_a_route_and_of_a_field_hold_beside_each_other() {
        let firewall = firewall("[firewall]\nrate_limits = [{ key = \"header:x-key\", rate = \"2/s\" }]");
        let now = Instant::now();
        let ask = |route, key: Option<&'static str>| {
            let asked = Request { route, ..request("10.0.0.1") };
            let refused =
                firewall.request(asked, |name| key.filter(|_| name == "x-key").map(str::as_bytes), now);
            refused.map_err(|refusal| refusal.reason)
        };
        let limited = Err(Reason::RateLimited);
        assert_eq!(
            [ask(None, Some("a")), ask(None, Some("a")), ask(None, Some("a"))],
            [Ok(()), Ok(()), limited]
        );
        assert_eq!([ask(None, None), ask(None, None), ask(None, None)], [Ok(()), Ok(()), limited]);
        // The route's three are shared by all.
        let asked = [
            ask(Some(0), Some("b")),
            ask(Some(0), Some("b")),
            ask(Some(0), Some("c")),
            ask(Some(0), Some("d")),
        ];
        assert_eq!(asked, [Ok(()), Ok(()), Ok(()), limited]);
    }

    #[test]
    fn so_many_rejections_ban_and_a_lifted_ban_begins_anew() {
        let firewall = firewall("[firewall.bans]\nafter = 3\nwindow = \"30s\"\nduration = \"1m\"");
        let (now, bad) = (Instant::now(), ip("10.0.0.9"));
        let reject = |reason| firewall.rejected(0, bad, reason, now).is_some();
        // Going away is no offence.
        assert!((0..100).all(|_| !reject(Reason::ClientClosed)));
        assert_eq!(
            [reject(Reason::BadRequest), reject(Reason::Denied), reject(Reason::BadRequest)],
            [false, false, true]
        );
        assert_eq!(firewall.connection(0, bad, now).unwrap_err().reason, Reason::Banned);
        assert_eq!(firewall.request(request("10.0.0.9"), nothing, now).unwrap_err().reason, Reason::Banned);
        assert_eq!(firewall.connection(0, ip("10.0.0.8"), now), Ok(()));
        assert_eq!(firewall.bans(now), [Ban { address: bad, left: 60 * SECOND }]);
        assert!(firewall.lift(bad, now));
        assert_eq!(firewall.connection(0, bad, now), Ok(()));
        assert_eq!([reject(Reason::BadRequest), reject(Reason::BadRequest)], [false, false]);
        // Slowly enough, forever.
        assert!(
            (1..100).all(|times| firewall
                .rejected(0, bad, Reason::BadRequest, now + times * 11 * SECOND)
                .is_none())
        );
    }

    #[test]
    fn a_dry_run_refuses_and_says_that_it_is_none() {
        let firewall = firewall("[firewall]\ndry_run = true\ndeny = [\"10.0.0.1\"]\nbans = { after = 1 }");
        let now = Instant::now();
        let refusal = firewall.connection(0, ip("10.0.0.1"), now).unwrap_err();
        assert!(refusal.dry_run && refusal.reason == Reason::Denied);
        assert!(firewall.rejected(0, ip("10.0.0.1"), Reason::Denied, now).is_none());
    }

    #[test]
    fn lists_follow_their_files_and_keep_the_last_good_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("blocked.txt");
        std::fs::write(&file, "10.0.0.1\n").unwrap();
        let firewall = firewall(&format!("[firewall]\ndeny_files = [{file:?}]"));
        let denied = |peer| firewall.connection(0, ip(peer), Instant::now()).is_err();
        assert!(denied("10.0.0.1") && !denied("10.0.0.2"));
        std::fs::write(&file, "10.0.0.2\n").unwrap();
        let lists = firewall.lists().iter().find(|lists| !lists.written.files.is_empty()).unwrap();
        lists.reload().unwrap();
        assert!(!denied("10.0.0.1") && denied("10.0.0.2"));
        std::fs::write(&file, "10.0.0.1\nno address\n").unwrap();
        let (path, error) = lists.reload().unwrap_err();
        assert_eq!(path, file);
        assert!(error.to_string().starts_with("line 2: "), "{error}");
        assert!(!denied("10.0.0.1") && denied("10.0.0.2"));
    }
}
