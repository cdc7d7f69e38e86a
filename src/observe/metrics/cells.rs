//! What does a thread write while it works? One cell for each thing that has series of its own.
//!
//! A cell belongs to one writer; the scrape sums the cells of all writers. Calls here cost a few
//! nanoseconds and never wait; the first use of a cell, or of a status code, allocates.

use std::{sync::OnceLock, time::Duration};

use super::{
    counter::{CodeCounts, Counter, InFlight, ResultCounts, Setting},
    histogram::Histogram,
};
use crate::{error::Reason, observe::Protocol};

/// The `result` of a handshake that succeeded.
const OK: &str = "ok";

/// What is counted for a listener.
// WHY: cells of different threads must not share a cache line, or each write would fetch the line
// from the other core.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ListenerCells {
    pub(super) connections: InFlight,
    pub(super) requests: InFlight,
    pub(super) rejections: ReasonCounts,
    pub(super) dry_runs: ReasonCounts,
    pub(super) handshakes: OnceLock<Box<Timed>>,
}

impl ListenerCells {
    pub fn connection_opened(&self) {
        self.connections.start();
    }

    pub fn connection_closed(&self) {
        self.connections.finish();
    }

    /// `result` is `ok` or the reason of the failure; only handshakes that succeed are timed.
    pub fn handshake(&self, result: &'static str, took: Duration) {
        let handshakes = self.handshakes.get_or_init(Box::default);
        handshakes.results.add(result);
        if result == OK {
            handshakes.took.observe(took);
        }
    }

    pub fn request_started(&self) {
        self.requests.start();
    }

    pub fn request_finished(&self) {
        self.requests.finish();
    }

    pub fn rejection(&self, reason: Reason) {
        self.rejections.add(reason);
    }

    /// What the firewall would have refused.
    pub fn dry_run(&self, reason: Reason) {
        self.dry_runs.add(reason);
    }
}

/// What is counted for a route on a listener; a route without a request costs two words.
#[derive(Debug, Default)]
pub struct RouteCells {
    pub(super) requests: OnceLock<Box<RouteRequests>>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct RouteRequests {
    codes: CodeCounts,
    pub(super) took: Histogram,
}

impl RouteCells {
    /// A request that is over: the last byte of its answer went out after `took`.
    pub fn request(&self, protocol: Protocol, code: u16, took: Duration) {
        let requests = self.requests.get_or_init(Box::default);
        requests.codes.add(bounded(code) | protocol_bit(protocol));
        requests.took.observe(took);
    }
}

impl RouteRequests {
    pub(super) fn for_each_code(&self, mut each: impl FnMut(Protocol, u16, u64)) {
        self.codes.for_each(|key, count| {
            let protocol = if key & H2_BIT == 0 { Protocol::Http1 } else { Protocol::H2 };
            each(protocol, key & !H2_BIT, count);
        });
    }
}

const H2_BIT: u16 = 1 << 15;

const fn protocol_bit(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Http1 => 0,
        Protocol::H2 => H2_BIT,
    }
}

/// Keeps the number of series bounded whatever a backend sends; the codecs let no such code pass.
fn bounded(code: u16) -> u16 {
    code.clamp(100, 999)
}

/// What is counted for a cluster as a whole.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ClusterCells {
    pub(super) retries: Counter,
    pub(super) plaintext: Setting,
    pub(super) unverified: Setting,
}

impl ClusterCells {
    pub fn retry(&self) {
        self.retries.add(1);
    }

    /// Whether others on the way can read what the backends are sent, or pretend to be a backend. Of
    /// all writers only one may set it; both are shown from the first call on.
    pub fn set_exposed(&self, plaintext: bool, unverified: bool) {
        self.plaintext.set(u32::from(plaintext));
        self.unverified.set(u32::from(unverified));
    }
}

/// What is counted for a backend.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct BackendCells {
    pub(super) requests: InFlight,
    pub(super) connections: InFlight,
    codes: CodeCounts,
    pub(super) times: OnceLock<Box<BackendTimes>>,
    pub(super) probes: OnceLock<Box<Timed>>,
    pub(super) up: Setting,
    pub(super) weight: Setting,
}

#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct BackendTimes {
    pub(super) response: Histogram,
    pub(super) connect: Histogram,
}

/// The key of an attempt that got no response.
const NO_CODE: u16 = 1;

impl BackendCells {
    pub fn request_started(&self) {
        self.requests.start();
    }

    /// `code` is `None` where no response came; `head_after` is the time until its head was there.
    pub fn request_finished(&self, code: Option<u16>, head_after: Option<Duration>) {
        self.codes.add(code.map_or(NO_CODE, bounded));
        if let Some(took) = head_after {
            self.times.get_or_init(Box::default).response.observe(took);
        }
        self.requests.finish();
    }

    pub fn connection_opened(&self, connect_took: Duration) {
        self.connections.start();
        self.times.get_or_init(Box::default).connect.observe(connect_took);
    }

    pub fn connection_closed(&self) {
        self.connections.finish();
    }

    pub fn probe(&self, result: &'static str, took: Duration) {
        let probes = self.probes.get_or_init(Box::default);
        probes.results.add(result);
        probes.took.observe(took);
    }

    /// Of all writers only one may set it; `backend_up` is shown from the first call on.
    pub fn set_up(&self, up: bool) {
        self.up.set(u32::from(up));
    }

    /// Of all writers only one may set it; `backend_weight` is shown from the first call on.
    pub fn set_weight(&self, weight: u32) {
        self.weight.set(weight);
    }

    /// Calls `each` with `None` for the attempts that got no response.
    pub(super) fn for_each_code(&self, mut each: impl FnMut(Option<u16>, u64)) {
        self.codes.for_each(|key, count| each((key != NO_CODE).then_some(key), count));
    }
}

/// Something with a result and a duration: a handshake, a probe.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Timed {
    pub(super) results: ResultCounts,
    pub(super) took: Histogram,
}

/// A count for every reason there is.
#[derive(Debug)]
pub(super) struct ReasonCounts([Counter; Reason::ALL.len()]);

impl Default for ReasonCounts {
    fn default() -> Self {
        ReasonCounts(std::array::from_fn(|_| Counter::default()))
    }
}

impl ReasonCounts {
    pub(super) fn add(&self, reason: Reason) {
        self.0[reason as usize].add(1);
    }

    pub(super) fn value(&self, reason: Reason) -> u64 {
        self.0[reason as usize].value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_count_of_its_own() {
        let counts = ReasonCounts::default();
        for (n, &reason) in Reason::ALL.iter().enumerate() {
            (0..=n).for_each(|_| counts.add(reason));
        }
        for (n, &reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(counts.value(reason), n as u64 + 1, "{reason:?}");
        }
    }

    #[test]
    fn codes_of_both_protocols_are_kept_apart() {
        let route = RouteCells::default();
        route.request(Protocol::Http1, 200, Duration::ZERO);
        route.request(Protocol::H2, 200, Duration::ZERO);
        route.request(Protocol::H2, 999, Duration::ZERO);
        let mut seen = Vec::new();
        route.requests.get().unwrap().for_each_code(|protocol, code, n| seen.push((protocol, code, n)));
        assert_eq!(seen, [(Protocol::Http1, 200, 1), (Protocol::H2, 200, 1), (Protocol::H2, 999, 1)]);
    }

    #[test]
    fn an_impossible_code_adds_no_series_beyond_the_range() {
        let backend = BackendCells::default();
        for code in [0, 1, 99, 1000, u16::MAX] {
            backend.request_finished(Some(code), None);
        }
        let mut seen = Vec::new();
        backend.for_each_code(|code, n| seen.push((code, n)));
        assert_eq!(seen, [(Some(100), 3), (Some(999), 2)]);
    }

    #[test]
    fn an_unused_route_is_two_words() {
        assert!(size_of::<RouteCells>() <= 2 * size_of::<usize>());
    }
}
