//! May another connection be opened? The caps on connections, for the process, a listener and an
//! address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Counts connections against one cap.
#[derive(Debug)]
pub struct Gate {
    open: AtomicUsize,
    limit: usize,
}

/// The caps that a listener's connections are held against.
#[derive(Debug)]
pub struct Admission {
    process: Arc<Gate>,
    listener: Gate,
    per_ip: Option<PerIp>,
}

#[derive(Debug)]
struct PerIp {
    limit: usize,
    /// Bounded: an address is in it only while it has a connection open.
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection that was let in; gives its places back when it is dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    /// Counted under this address; `None` where addresses are not counted, or not yet.
    address: Option<IpAddr>,
}

impl Gate {
    pub fn new(limit: usize) -> Self {
        Gate { open: AtomicUsize::new(0), limit }
    }

    fn enter(&self) -> bool {
        let entered = self.open.fetch_add(1, Ordering::Relaxed) < self.limit;
        if !entered {
            self.leave();
        }
        entered
    }

    fn leave(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    /// `listener` and `per_ip` are the caps of one listener; `None` is no cap.
    pub fn new(process: Arc<Gate>, listener: Option<usize>, per_ip: Option<usize>) -> Arc<Self> {
        Arc::new(Admission {
            process,
            listener: Gate::new(listener.unwrap_or(usize::MAX)),
            per_ip: per_ip.map(|limit| PerIp { limit, open: Mutex::default() }),
        })
    }

    /// A place for one more connection of this address, or `None`.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Admitted> {
        let mut admitted = self.admit_unnamed()?;
        admitted.name(address).then_some(admitted)
    }

    /// A place for one more connection that has yet to say for which address it is.
    pub fn admit_unnamed(self: &Arc<Self>) -> Option<Admitted> {
        if !self.process.enter() {
            return None;
        }
        if !self.listener.enter() {
            self.process.leave();
            return None;
        }
        Some(Admitted { admission: self.clone(), address: None })
    }
}

impl Admitted {
    /// Counts the connection under an address, once; `false` if that has too many already.
    pub fn name(&mut self, address: IpAddr) -> bool {
        let Some(per_ip) = &self.admission.per_ip else { return true };
        let address = network(address);
        let entered = self.address.is_some() || per_ip.enter(address);
        if entered {
            self.address.get_or_insert(address);
        }
        entered
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let (Some(per_ip), Some(address)) = (&self.admission.per_ip, self.address) {
            per_ip.leave(address);
        }
        self.admission.listener.leave();
        self.admission.process.leave();
    }
}

impl PerIp {
    fn enter(&self, address: IpAddr) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_insert(0);
        if *count >= self.limit {
            return false;
        }
        *count += 1;
        true
    }

    fn leave(&self, address: IpAddr) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&address);
            }
        }
    }
}

/// What counts as one client: an IPv4 address, or an IPv6 /64, which one customer usually has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn admits_up_to_each_cap_and_takes_places_back() {
        let process = Arc::new(Gate::new(3));
        let admission = Admission::new(process.clone(), Some(2), None);
        let other = Admission::new(process, None, None);
        let first = admission.admit(ip("1.1.1.1")).unwrap();
        let _second = admission.admit(ip("1.1.1.1")).unwrap();
        assert!(admission.admit(ip("1.1.1.1")).is_none());
        let _third = other.admit(ip("1.1.1.1")).unwrap();
        assert!(other.admit(ip("2.2.2.2")).is_none());
        drop(first);
        assert!(other.admit(ip("2.2.2.2")).is_some());
        assert!(admission.admit(ip("2.2.2.2")).is_some());
    }

    #[test]
    fn counts_an_address_and_an_ipv6_network_as_one_client() {
        let admission = Admission::new(Arc::new(Gate::new(100)), None, Some(1));
        let first = admission.admit(ip("2001:db8::1"));
        assert!(first.is_some());
        assert!(admission.admit(ip("2001:db8::2")).is_none());
        let other = admission.admit(ip("2001:db8:0:1::1"));
        assert!(other.is_some());
        let mapped = admission.admit(ip("::ffff:10.0.0.1"));
        assert!(mapped.is_some());
        assert!(admission.admit(ip("10.0.0.1")).is_none());
        drop(first);
        assert!(admission.admit(ip("2001:db8::2")).is_some());
    }

    #[test]
    fn counts_a_connection_under_the_address_that_it_names_later() {
        let admission = Admission::new(Arc::new(Gate::new(3)), None, Some(1));
        let mut first = admission.admit_unnamed().unwrap();
        let mut second = admission.admit_unnamed().unwrap();
        assert!(first.name(ip("10.0.0.1")) && first.name(ip("10.0.0.1")));
        assert!(!second.name(ip("10.0.0.1")));
        assert!(second.name(ip("10.0.0.2")));
        assert!(admission.admit(ip("10.0.0.1")).is_none());
        drop(first);
        let _third = admission.admit(ip("10.0.0.1")).unwrap();
        assert!(admission.admit_unnamed().is_some(), "its place was given back");
        drop(admission.admit_unnamed());
        drop(second);
        assert_eq!(admission.per_ip.as_ref().unwrap().open.lock().unwrap().len(), 1);
    }

    #[test]
    fn forgets_an_address_without_connections() {
        let admission = Admission::new(Arc::new(Gate::new(100)), None, Some(5));
        drop(admission.admit(ip("10.0.0.1")));
        let per_ip = admission.per_ip.as_ref().unwrap();
        assert!(per_ip.open.lock().unwrap().is_empty());
    }
}
