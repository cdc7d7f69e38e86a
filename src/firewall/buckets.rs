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
    tag: Tag,
    /// Nanoseconds since the start of the process.
    full_at: u64,
}

/// The hash of what a bucket belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tag(u64);

/// A rate as it is counted, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Until one more token.
    interval: u64,
    /// How far a bucket may be away from full.
    tolerance: u64,
}

impl From<Rate> for Pace {
    fn from(rate: Rate) -> Self {
        let interval = nanos(rate.per) / u64::from(rate.count);
        Pace { interval, tolerance: interval.saturating_mul(u64::from(rate.burst)) }
    }
}

impl Tag {
    /// What the same key has in another table.
    ///
    /// One multiplication, whose halves are folded (as in wyhash): the hash is as good and as secret as
    /// before, and a request that counts against many limits hashes its key once.
    pub fn within(self, table: Tag) -> Tag {
        const ODD: u128 = 0x9e37_79b9_7f4a_7c15;
        let product = u128::from(self.0 ^ table.0) * ODD;
        // WHY: the two halves.
        #[expect(clippy::cast_possible_truncation, reason = "the low half, and the high one")]
        Tag(product as u64 ^ (product >> 64) as u64)
    }
}

impl Buckets {
    /// Room for `entries` keys; about 16 bytes each, all of it at once.
    pub fn new(entries: usize) -> Self {
        let sets = entries.div_ceil(WAYS).next_power_of_two();
        Buckets { sets: (0..sets).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    pub fn tag(&self, key: &impl Hash) -> Tag {
        Tag(self.hasher.hash_one(key))
    }

    /// Takes one token of a bucket at `now`, nanoseconds since any fixed moment.
    ///
    /// # Errors
    /// The bucket is empty: how long until there is a token again.
    pub fn take(&self, tag: Tag, pace: Pace, now: u64) -> Result<(), Duration> {
        let mut set = self.set(tag).lock().unwrap_or_else(PoisonError::into_inner);
        let place = set.iter().position(|bucket| bucket.tag == tag);
        let bucket = match place {
            Some(place) => &mut set[place],
            None => evict(&mut set, tag),
        };
        let full_at = bucket.full_at.max(now) + pace.interval;
        let latest = now.saturating_add(pace.tolerance);
        if full_at > latest {
            return Err(Duration::from_nanos(full_at - latest));
        }
        bucket.full_at = full_at;
        Ok(())
    }

    /// Fills a bucket.
    pub fn refill(&self, tag: Tag) {
        let mut set = self.set(tag).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = set.iter_mut().find(|bucket| bucket.tag == tag) {
            *bucket = Bucket::default();
        }
    }

    fn set(&self, tag: Tag) -> &Mutex<[Bucket; WAYS]> {
        // WHY: the mask keeps the low bits only, which is what is wanted.
        #[expect(clippy::cast_possible_truncation, reason = "the low bits choose the set")]
        let index = tag.0 as usize & (self.sets.len() - 1);
        &self.sets[index]
    }
}

/// Makes the bucket that is full soonest one for `tag`, full.
fn evict(set: &mut [Bucket; WAYS], tag: Tag) -> &mut Bucket {
    let mut place = 0;
    for index in 1..WAYS {
        if set[index].full_at < set[place].full_at {
            place = index;
        }
    }
    set[place] = Bucket { tag, full_at: 0 };
    &mut set[place]
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn pace(count: u32, burst: u32) -> Pace {
        Rate { count, per: Duration::from_secs(1), burst }.into()
    }

    impl Buckets {
        fn try_take(&self, key: &impl Hash, pace: Pace, now: u64) -> Result<(), Duration> {
            self.take(self.tag(key), pace, now)
        }
    }

    #[test]
    fn a_burst_goes_through_and_then_the_rate() {
        let buckets = Buckets::new(8);
        let limit = pace(10, 5);
        let now = 100 * SECOND;
        for _ in 0..5 {
            buckets.try_take(&"a", limit, now).unwrap();
        }
        assert_eq!(buckets.try_take(&"a", limit, now), Err(Duration::from_millis(100)));
        // What is refused costs nothing.
        assert_eq!(buckets.try_take(&"a", limit, now), Err(Duration::from_millis(100)));
        buckets.try_take(&"b", limit, now).unwrap();
        buckets.try_take(&"a", limit, now + SECOND / 10).unwrap();
        assert!(buckets.try_take(&"a", limit, now + SECOND / 10).is_err());
        buckets.refill(buckets.tag(&"a"));
        buckets.try_take(&"a", limit, now + SECOND / 10).unwrap();
    }

    #[test]
    fn lets_through_exactly_the_rate_over_any_time() {
        let buckets = Buckets::new(8);
        let limit = pace(1000, 10);
        let admitted = (0..100_000_u64).filter(|step| {
            // 10,000 a second for ten seconds.
            buckets.try_take(&1, limit, SECOND + step * SECOND / 10_000).is_ok()
        });
        assert!((10_000..=10_010).contains(&admitted.count()));
    }

    #[test]
    fn many_threads_share_one_bucket_exactly() {
        let buckets = Buckets::new(1024);
        let limit = pace(1, 500);
        let taken: usize = std::thread::scope(|scope| {
            let taker = || (0..1000).filter(|_| buckets.try_take(&"shared", limit, SECOND).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(taker)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 500);
    }

    #[test]
    fn a_flood_of_keys_does_not_free_a_key_in_debt() {
        let buckets = Buckets::new(64);
        let limit = pace(1, 10);
        while buckets.try_take(&"loud", limit, SECOND).is_ok() {}
        for key in 0..100_000 {
            buckets.try_take(&key, limit, SECOND).unwrap();
        }
        assert!(buckets.try_take(&"loud", limit, SECOND).is_err());
    }

    #[test]
    fn a_key_has_a_bucket_of_its_own_in_each_table() {
        let buckets = Buckets::new(1024);
        let tables: Vec<Tag> = (0..100).map(|table| buckets.tag(&table)).collect();
        for client in 0..100 {
            let client = buckets.tag(&("client", client));
            for table in &tables {
                buckets.take(client.within(*table), pace(1, 1), SECOND).unwrap();
            }
        }
        let once = buckets.tag(&("client", 0)).within(tables[0]);
        assert!(Buckets::new(8).take(once, pace(1, 1), SECOND).is_ok());
    }
}
