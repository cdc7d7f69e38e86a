//! How are durations counted into buckets on one thread and summed on another?

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::counter::Counter;

/// Upper bounds of the buckets in microseconds, each inclusive; one more bucket takes the rest.
const BOUNDS_MICROS: [u32; 17] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 300_000, 500_000, 1_000_000,
    1_200_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
];
const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

/// A histogram that exactly one thread writes.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [Counter; BUCKETS],
    /// The bits of an `f64`. Nanoseconds in a `u64` would wrap after three weeks of ten thousand
    /// open tunnels.
    seconds: AtomicU64,
}

impl Histogram {
    pub(super) fn observe(&self, took: Duration) {
        let bucket = BOUNDS_MICROS
            .iter()
            .position(|&bound| took <= Duration::from_micros(u64::from(bound)))
            .unwrap_or(BOUNDS_MICROS.len());
        self.buckets[bucket].add(1);
        let seconds = f64::from_bits(self.seconds.load(Ordering::Relaxed)) + took.as_secs_f64();
        self.seconds.store(seconds.to_bits(), Ordering::Relaxed);
    }
}

/// The sum of the same histogram over all writers.
#[derive(Debug, Default)]
pub(super) struct HistogramTotal {
    buckets: [u64; BUCKETS],
    pub(super) seconds: f64,
}

impl HistogramTotal {
    pub(super) fn add(&mut self, cell: &Histogram) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&cell.buckets) {
            *sum += bucket.value();
        }
        self.seconds += f64::from_bits(cell.seconds.load(Ordering::Relaxed));
    }

    /// Always the sum of the buckets as they were read, so that a scrape is consistent in itself.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Upper bound in seconds and the count up to it, for all buckets but the last.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut below = 0;
        BOUNDS_MICROS.iter().zip(&self.buckets).map(move |(&bound, count)| {
            below += count;
            (f64::from(bound) / 1e6, below)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(observed: &[Duration]) -> HistogramTotal {
        let cell = Histogram::default();
        for &took in observed {
            cell.observe(took);
        }
        let mut total = HistogramTotal::default();
        total.add(&cell);
        total
    }

    #[test]
    fn bounds_are_those_of_the_design() {
        let bounds: Vec<f64> = HistogramTotal::default().cumulative().map(|(bound, _)| bound).collect();
        let design = [
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.3, 0.5, 1.0, 1.2, 2.5, 5.0, 10.0,
            30.0,
        ];
        assert_eq!(bounds, design);
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        for (n, &bound) in BOUNDS_MICROS.iter().enumerate() {
            let at = Duration::from_micros(u64::from(bound));
            assert_eq!(total(&[at]).buckets[n], 1, "{at:?}");
            assert_eq!(
                total(&[at.saturating_sub(Duration::from_nanos(1))]).buckets[n],
                1,
                "just below {at:?}"
            );
            assert_eq!(total(&[at + Duration::from_nanos(1)]).buckets[n + 1], 1, "just above {at:?}");
        }
    }

    #[test]
    fn extremes_are_counted() {
        let total = total(&[Duration::ZERO, Duration::MAX]);
        assert_eq!((total.buckets[0], total.buckets[BUCKETS - 1], total.count()), (1, 1, 2));
        assert!(total.seconds.is_finite());
    }

    #[test]
    fn buckets_are_cumulative_and_add_up_to_the_count() {
        let millis = [0, 1, 1, 3, 700, 40_000];
        let total = total(&millis.map(Duration::from_millis));
        let counts: Vec<u64> = total.cumulative().map(|(_, count)| count).collect();
        assert_eq!(counts, [1, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5]);
        assert_eq!(total.count(), 6);
        assert!((total.seconds - 40.705).abs() < 1e-9, "{}", total.seconds);
    }
}
