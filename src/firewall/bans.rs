//! Who is banned, until when.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// A bounded table of bans; a look into an empty one is one atomic load.
#[derive(Debug)]
pub struct Bans {
    table: RwLock<Table>,
    count: AtomicUsize,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Table {
    until: HashMap<IpAddr, Instant>,
    /// No ban of a full table ends before this: until then it need not be looked through.
    full_until: Option<Instant>,
}

impl Table {
    /// Forgets bans that have ended.
    fn sweep(&mut self, now: Instant) {
        self.until.retain(|_, until| *until > now);
        self.full_until = self.until.values().min().copied();
    }
}

/// One ban, for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ban {
    /// An IPv4 address, or the first one of an IPv6 network.
    pub address: IpAddr,
    pub left: Duration,
}

impl Bans {
    pub fn new(capacity: usize) -> Self {
        Bans { table: RwLock::default(), count: AtomicUsize::new(0), capacity }
    }

    pub fn holds(&self, address: IpAddr, now: Instant) -> bool {
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.until.get(&address).is_some_and(|until| *until > now)
    }

    /// Bans an address; whether it is new. A full table takes no more until a ban ends.
    pub fn add(&self, address: IpAddr, until: Instant, now: Instant) -> bool {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.until.len() >= self.capacity && table.full_until.is_none_or(|end| end <= now) {
            table.sweep(now);
        }
        if table.until.len() >= self.capacity && !table.until.contains_key(&address) {
            return false;
        }
        let earlier = table.until.insert(address, until);
        table.full_until = table.full_until.map(|end| end.min(until));
        self.count.store(table.until.len(), Ordering::Relaxed);
        earlier.is_none_or(|earlier| earlier <= now)
    }

    /// Lifts a ban; whether there was one.
    pub fn lift(&self, address: IpAddr, now: Instant) -> bool {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let lifted = table.until.remove(&address);
        self.count.store(table.until.len(), Ordering::Relaxed);
        lifted.is_some_and(|until| until > now)
    }

    /// Forgets bans that have ended; returns how many are left.
    pub fn sweep(&self, now: Instant) -> usize {
        if self.count.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.sweep(now);
        self.count.store(table.until.len(), Ordering::Relaxed);
        table.until.len()
    }

    /// Every ban that holds, by address.
    pub fn list(&self, now: Instant) -> Vec<Ban> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<Ban> = table
            .until
            .iter()
            .filter_map(|(address, until)| {
                Some(Ban { address: *address, left: until.checked_duration_since(now)? })
            })
            .collect();
        list.sort_unstable_by_key(|ban| ban.address);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_ban_ends_by_itself_or_is_lifted() {
        let (bans, now) = (Bans::new(10), Instant::now());
        let minute = Duration::from_mins(1);
        assert!(!bans.holds(ip("1.1.1.1"), now));
        assert!(bans.add(ip("1.1.1.1"), now + minute, now));
        assert!(!bans.add(ip("1.1.1.1"), now + minute, now));
        assert!(bans.holds(ip("1.1.1.1"), now) && !bans.holds(ip("1.1.1.2"), now));
        assert_eq!(bans.list(now), [Ban { address: ip("1.1.1.1"), left: minute }]);
        assert!(!bans.holds(ip("1.1.1.1"), now + minute));
        assert_eq!(bans.sweep(now + minute), 0);
        assert!(bans.add(ip("1.1.1.1"), now + minute, now) && bans.lift(ip("1.1.1.1"), now));
        assert!(!bans.lift(ip("1.1.1.1"), now) && !bans.holds(ip("1.1.1.1"), now));
    }

    #[test]
    fn a_full_table_takes_a_new_ban_only_when_an_old_one_has_ended() {
        let (bans, now) = (Bans::new(2), Instant::now());
        let second = Duration::from_secs(1);
        assert!(bans.add(ip("1.1.1.1"), now + second, now));
        assert!(bans.add(ip("1.1.1.2"), now + 9 * second, now));
        for _ in 0..2 {
            assert!(!bans.add(ip("1.1.1.3"), now + 9 * second, now));
        }
        assert_eq!(
            bans.table.read().unwrap().full_until,
            Some(now + second),
            "it is not looked through before"
        );
        assert!(bans.add(ip("1.1.1.3"), now + 9 * second, now + second));
        assert_eq!(bans.list(now + second).len(), 2);
    }
}
