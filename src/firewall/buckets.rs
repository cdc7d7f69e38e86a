//! Token buckets for any number of keys in a table of fixed size.
//!
//! A bucket is one number: the time at which it would be full again (the generic cell rate
//! algorithm, GCRA, of ITU-T I.371; the same answers as a token bucket without counting tokens).
//! The table is set-associative like a processor's cache: a key may lie in one of a few places, and
//! a new key takes the place of the bucket that is full soonest. A flood of new keys so pushes out
//! those that matter least, and memory never grows.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::config::Rate;

/// Places that a key may lie in.
const WAYS: usize = 8;

/// Shared by all workers: what one takes, the others see.
#[derive(Debug)]
pub struct Buckets {
    sets: Vec<Mutex<[Bucket; WAYS]>>,
    /// Seeded anew by each process, so that nobody can aim at a set.
    hasher: RandomState,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// The hash of its key. That two keys of one set share all 64 bits is a chance nobody can
    /// raise, and then they share a rate.
    tag: u64,
    /// Nanoseconds since the start of the process.
    full_at: u64,
}

impl Buckets {
    /// Room for `entries` keys; about 16 bytes each, all of it at once.
    pub fn new(entries: usize) -> Self {
        let sets = entries.div_ceil(WAYS).next_power_of_two();
        Buckets { sets: (0..sets).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Takes one token of the key's bucket at `now`, nanoseconds since any fixed moment.
    ///
    /// # Errors
    /// The bucket is empty: how long until there is a token again.
    pub fn take(&self, key: &impl Hash, rate: Rate, now: u64) -> Result<(), Duration> {
        let tag = self.hasher.hash_one(key);
        // WHY: the mask keeps the low bits only, which is what is wanted.
        #[expect(clippy::cast_possible_truncation, reason = "the low bits choose the set")]
        let index = tag as usize & (self.sets.len() - 1);
        let mut set = self.sets[index].lock().unwrap_or_else(PoisonError::into_inner);
        let place = set.iter().position(|bucket| bucket.tag == tag);
        let bucket = match place {
            Some(place) => &mut set[place],
            None => evict(&mut set, tag),
        };
        let full_at = bucket.full_at.max(now) + rate.interval();
        let latest = now.saturating_add(rate.tolerance());
        if full_at > latest {
            return Err(Duration::from_nanos(full_at - latest));
        }
        bucket.full_at = full_at;
        Ok(())
    }

    /// Gives the key a full bucket.
    pub fn refill(&self, key: &impl Hash) {
        let tag = self.hasher.hash_one(key);
        #[expect(clippy::cast_possible_truncation, reason = "the low bits choose the set")]
        let index = tag as usize & (self.sets.len() - 1);
        let mut set = self.sets[index].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = set.iter_mut().find(|bucket| bucket.tag == tag) {
            *bucket = Bucket::default();
        }
    }
}

/// Makes the bucket that is full soonest one for `tag`, full.
fn evict(set: &mut [Bucket; WAYS], tag: u64) -> &mut Bucket {
    let mut place = 0;
    for index in 1..WAYS {
        if set[index].full_at < set[place].full_at {
            place = index;
        }
    }
    set[place] = Bucket { tag, full_at: 0 };
    &mut set[place]
}

impl Rate {
    /// Nanoseconds until one more token.
    fn interval(self) -> u64 {
        nanos(self.per) / u64::from(self.count)
    }

    /// Nanoseconds that a bucket may be away from full.
    fn tolerance(self) -> u64 {
        self.interval().saturating_mul(u64::from(self.burst))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(count: u32, burst: u32) -> Rate {
        Rate { count, per: Duration::from_secs(1), burst }
    }

    #[test]
    fn a_burst_goes_through_and_then_the_rate() {
        let buckets = Buckets::new(8);
        let limit = rate(10, 5);
        let now = 100 * SECOND;
        for _ in 0..5 {
            buckets.take(&"a", limit, now).unwrap();
        }
        assert_eq!(buckets.take(&"a", limit, now), Err(Duration::from_millis(100)));
        // What is refused costs nothing.
        assert_eq!(buckets.take(&"a", limit, now), Err(Duration::from_millis(100)));
        buckets.take(&"b", limit, now).unwrap();
        buckets.take(&"a", limit, now + SECOND / 10).unwrap();
        assert!(buckets.take(&"a", limit, now + SECOND / 10).is_err());
        buckets.refill(&"a");
        buckets.take(&"a", limit, now + SECOND / 10).unwrap();
    }

    #[test]
    fn lets_through_exactly_the_rate_over_any_time() {
        let buckets = Buckets::new(8);
        let limit = rate(1000, 10);
        let admitted = (0..100_000_u64).filter(|step| {
            // 10,000 a second for ten seconds.
            buckets.take(&1, limit, SECOND + step * SECOND / 10_000).is_ok()
        });
        assert!((10_000..=10_010).contains(&admitted.count()));
    }

    #[test]
    fn many_threads_share_one_bucket_exactly() {
        let buckets = Buckets::new(1024);
        let limit = rate(1, 500);
        let taken: usize = std::thread::scope(|scope| {
            let taker = || (0..1000).filter(|_| buckets.take(&"shared", limit, SECOND).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(taker)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 500);
    }

    #[test]
    fn a_flood_of_keys_does_not_free_a_key_in_debt() {
        let buckets = Buckets::new(64);
        let limit = rate(1, 10);
        while buckets.take(&"loud", limit, SECOND).is_ok() {}
        for key in 0..100_000 {
            buckets.take(&key, limit, SECOND).unwrap();
        }
        assert!(buckets.take(&"loud", limit, SECOND).is_err());
    }
}
