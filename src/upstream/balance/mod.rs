//! Which backend takes the next attempt? The face of the policies; one file a policy.
//!
//! Each worker has a `Balancer` of its own for each cluster, so a pick takes no lock and shares
//! no cache line: it reads the cluster's epoch and works on the worker's own memory.

mod round_robin;

pub use round_robin::RoundRobin;

use super::cluster::Cluster;

/// The backends that one request has already been sent to, by their index in the cluster.
///
/// Allocates only for indexes of 64 and more.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    low: u64,
    high: Vec<usize>,
}

impl Tried {
    pub fn insert(&mut self, index: usize) {
        if index < 64 {
            self.low |= 1 << index;
        } else if !self.high.contains(&index) {
            self.high.push(index);
        }
    }

    pub fn contains(&self, index: usize) -> bool {
        if index < 64 { self.low & (1 << index) != 0 } else { self.high.contains(&index) }
    }

    pub fn is_empty(&self) -> bool {
        self.low == 0 && self.high.is_empty()
    }

    pub fn len(&self) -> usize {
        self.low.count_ones() as usize + self.high.len()
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.low = 0;
        self.high.clear();
    }
}

/// A worker's policy state for one cluster, kept in step with the cluster's health.
#[derive(Debug)]
pub struct Balancer {
    rotation: RoundRobin,
    /// The cluster's epoch that `rotation` was last updated at.
    epoch: u64,
}

impl Balancer {
    /// State for a cluster as it is now; `seed` differs from worker to worker.
    pub fn new(cluster: &Cluster, seed: u64) -> Balancer {
        let weights: Vec<u32> = cluster.backends.iter().map(|backend| backend.weight).collect();
        let epoch = cluster.epoch();
        let mut rotation = RoundRobin::new(&weights, seed);
        rotation.update(|index| cluster.eligible(index));
        Balancer { rotation, epoch }
    }

    /// The backend for the next attempt: an eligible one that is not in `tried`, or `None`.
    ///
    /// `cluster` is the one that this was made for. Cost: O(log n), O(n) after a change of health.
    pub fn pick(&mut self, cluster: &Cluster, tried: &Tried) -> Option<usize> {
        // Read before the health bits: a change in between then shows at the next pick.
        let epoch = cluster.epoch();
        if self.epoch != epoch {
            self.rotation.update(|index| cluster.eligible(index));
            self.epoch = epoch;
        }
        self.rotation.pick(tried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tried_holds_low_and_high_indexes_once() {
        let mut tried = Tried::default();
        assert!(tried.is_empty() && !tried.contains(0) && !tried.contains(1_000));
        for index in [0, 63, 64, 999, 63, 64] {
            tried.insert(index);
            assert!(tried.contains(index));
        }
        assert_eq!(tried.len(), 4);
        assert!(!tried.contains(1) && !tried.contains(65));
        tried.clear();
        assert!(tried.is_empty());
    }
}
