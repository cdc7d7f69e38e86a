//! May another request go to a backend? The cap on requests in flight, and the share of them that is
//! turned away while the worker is late.
//!
//! How late is told by a task that is due at a known time: whatever is ready waits as long for its
//! turn. Only a delay that stands counts, the lesser of two in a row, so that a moment in which the
//! machine did something else costs nobody an answer (the standing queue of CoDel, RFC 8289 §3.1).
//! From there the share grows with the delay, as random early detection does it (RED, RFC 2309
//! §3): none at the configured delay, nine in ten at twice of it.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Of 2^32 requests, the most that are turned away: some still get through whatever happens.
const LARGEST_SHARE: u32 = u32::MAX / 10 * 9;

/// Places that workers hold without a use, all together, are at most so small a part of all places.
const UNUSED_PART: usize = 64;
const LARGEST_HANDFUL: usize = 64;

/// The places for requests of all workers. Each takes them in handfuls, so that most requests touch
/// nothing that workers share.
#[derive(Debug)]
pub struct Places {
    free: AtomicUsize,
    handful: usize,
}

/// What one worker knows of its load.
#[derive(Debug)]
pub struct Load {
    /// `None`: any number of requests.
    places: Option<Arc<Places>>,
    /// Places that this worker holds and no request has.
    spare: Cell<usize>,
    /// From which delay on requests are shed; `None`: none are.
    allowed: Option<Duration>,
    /// As it was found last.
    delay: Cell<Duration>,
    /// Of 2^32 requests, so many are shed.
    share: Cell<u32>,
}

/// A request's place; given back when it is dropped.
#[derive(Debug)]
pub struct Place<'l>(&'l Load);

impl Places {
    pub fn new(limit: usize, workers: usize) -> Arc<Self> {
        let handful = (limit / (UNUSED_PART * 2 * workers)).clamp(1, LARGEST_HANDFUL);
        Arc::new(Places { free: AtomicUsize::new(limit), handful })
    }

    /// Takes up to a handful; how many it were.
    fn take(&self) -> usize {
        let taken = |free: usize| free.min(self.handful);
        let left = |free| Some(free - taken(free)).filter(|left| *left != free);
        let before = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        before.map_or(0, taken)
    }

    fn give(&self, count: usize) {
        self.free.fetch_add(count, Ordering::Relaxed);
    }
}

impl Load {
    pub fn new(places: Option<Arc<Places>>, allowed: Option<Duration>) -> Self {
        Load { places, spare: Cell::new(0), allowed, delay: Cell::new(Duration::ZERO), share: Cell::new(0) }
    }

    /// A place for one more request, or `None` where all are taken.
    pub fn enter(&self) -> Option<Place<'_>> {
        if let Some(places) = &self.places {
            let spare = if self.spare.get() == 0 { places.take() } else { self.spare.get() };
            self.spare.set(spare.checked_sub(1)?);
        }
        Some(Place(self))
    }

    fn leave(&self) {
        let Some(places) = &self.places else { return };
        let mut spare = self.spare.get() + 1;
        // A handful of one is never kept.
        if spare > 2 * (places.handful - 1) {
            places.give(places.handful);
            spare -= places.handful;
        }
        self.spare.set(spare);
    }

    /// Takes note of how late a task was; returns the delay that stands where requests are shed.
    pub fn notice(&self, delay: Duration) -> Option<Duration> {
        let standing = self.delay.replace(delay).min(delay);
        let share = self.allowed.map_or(0, |allowed| share(standing, allowed));
        self.share.set(share);
        (share > 0).then_some(standing)
    }

    /// Of 2^32 requests, so many are to be shed now.
    pub fn share(&self) -> u32 {
        self.share.get()
    }
}

fn share(delay: Duration, allowed: Duration) -> u32 {
    let excess = delay.saturating_sub(allowed).as_nanos();
    let share = excess.saturating_mul(u128::from(LARGEST_SHARE)) / allowed.as_nanos().max(1);
    u32::try_from(share).unwrap_or(u32::MAX).min(LARGEST_SHARE)
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(places) = &self.places {
            places.give(self.spare.get());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Duration = Duration::from_millis(500);

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn the_cap_is_exact_and_places_come_back() {
        for limit in [1, 2, 63, 1000, 100_000] {
            let places = Places::new(limit, 1);
            let load = Load::new(Some(places.clone()), None);
            let taken: Vec<_> = std::iter::from_fn(|| load.enter()).collect();
            assert_eq!(taken.len(), limit);
            assert!(load.enter().is_none());
            drop(taken);
            assert_eq!(std::iter::from_fn(|| load.enter().map(std::mem::forget)).count(), limit);
        }
        let load = Load::new(None, None);
        assert!((0..100_000).all(|_| load.enter().map(std::mem::forget).is_some()));
    }

    #[test]
    fn two_workers_never_have_more_than_the_cap_and_hardly_less() {
        for (limit, least) in [(1, 1), (2, 2), (100, 100), (10_000, 9_800)] {
            let places = Places::new(limit, 2);
            let workers = [0, 1].map(|_| Load::new(Some(places.clone()), None));
            // One has had all of them and given them back.
            drop(std::iter::from_fn(|| workers[0].enter()).collect::<Vec<_>>());
            let others = std::iter::from_fn(|| workers[1].enter()).collect::<Vec<_>>().len();
            assert!((least..=limit).contains(&others), "{others} of {limit}");
            let both: Vec<_> =
                std::iter::from_fn(|| workers[1].enter().or_else(|| workers[0].enter())).collect();
            assert_eq!(both.len(), limit);
        }
    }

    #[test]
    fn a_worker_that_ends_gives_its_places_back() {
        let places = Places::new(10_000, 1);
        let load = Load::new(Some(places.clone()), None);
        drop(load.enter());
        assert!(places.free.load(Ordering::Relaxed) < 10_000);
        drop(load);
        assert_eq!(places.free.load(Ordering::Relaxed), 10_000);
    }

    #[test]
    fn one_late_moment_sheds_nothing() {
        let load = Load::new(None, Some(ALLOWED));
        for delay in [0, 10_000, 0, 499, 10_000, 500, 10_000] {
            assert_eq!((load.notice(milliseconds(delay)), load.share()), (None, 0), "{delay}");
        }
        assert_eq!(load.notice(milliseconds(10_000)), Some(milliseconds(10_000)));
        assert_eq!(load.share(), LARGEST_SHARE);
        assert_eq!((load.notice(Duration::ZERO), load.share()), (None, 0), "over at once");
    }

    #[test]
    fn the_share_grows_from_the_delay_that_is_allowed_to_twice_of_it() {
        assert_eq!([0, 499, 500].map(|delay| share(milliseconds(delay), ALLOWED)), [0; 3]);
        assert!(share(milliseconds(501), ALLOWED) > 0);
        assert_eq!(share(milliseconds(750), ALLOWED), LARGEST_SHARE / 2);
        for delay in [1000, 1001, 1_000_000] {
            assert_eq!(share(milliseconds(delay), ALLOWED), LARGEST_SHARE);
        }
        assert_eq!(share(Duration::MAX, ALLOWED), LARGEST_SHARE);
    }

    #[test]
    fn without_a_delay_nothing_is_shed() {
        let load = Load::new(None, None);
        assert_eq!([10_000; 3].map(|delay| load.notice(milliseconds(delay))), [None; 3]);
        assert_eq!(load.share(), 0);
    }
}
