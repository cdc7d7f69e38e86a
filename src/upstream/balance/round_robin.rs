//! Smooth weighted round robin whose every prefix is fair.
//!
//! The chairman assignment problem: R. Tijdeman, "The chairman assignment problem", Discrete
//! Mathematics 32 (1980). With n backends and a total weight of W, the turn k (from 0) of a
//! backend of weight w may be taken from slot ⌈(k + 1/(2n−2))·W/w⌉ on and has to be taken by slot
//! ⌊(k + 1 − 1/(2n−2))·W/w⌋ + 1; each slot goes to the turn, of those that may be taken, which has
//! to be taken first. After any N picks each backend is then within 1 − 1/(2n−2) of its share
//! N·w/W, and no rule can promise less. Stride scheduling is off by 25 where one backend of weight
//! 100 stands beside a hundred of weight 1; nginx's rule can be off by a little more than one.
//!
//! After W picks each backend has had exactly w turns, and the plan begins again.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::Tried;

/// Keeps the products of a plan inside 64 bits up to 10,000 backends; far above the config's 1,000.
const HEAVIEST: u32 = 65_535;
/// How far a detour moves a backend of weight 1 on.
const STRIDE: u64 = 1 << 24;

/// The plan of one worker for one cluster. Deterministic: weights, seed, health changes in, picks out.
#[derive(Debug)]
pub struct RoundRobin {
    lanes: Vec<Lane>,
    /// Eligible lanes' weights together: W.
    total: u64,
    /// 2n−2, at least 2.
    slack: u64,
    /// Picks so far under this plan.
    slot: u64,
    /// The backend that wins ties; the others follow in their order.
    first: usize,
    /// Turns that may be taken, by the slot they have to be taken in.
    due: BinaryHeap<Reverse<Turn>>,
    /// The other lanes' next turns, by the slot from which they may be taken.
    later: BinaryHeap<Reverse<Turn>>,
    /// The virtual time of detours.
    detour_now: u64,
}

#[derive(Debug)]
struct Lane {
    weight: u64,
    eligible: bool,
    /// The slot after which its current W slots began.
    base: u64,
    /// Turns taken since `base`; below `weight`.
    taken: u64,
    /// The virtual time of its next detour.
    detour: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    slot: u64,
    /// Settles ties.
    rank: usize,
    index: usize,
}

impl RoundRobin {
    /// A plan with every backend eligible.
    ///
    /// Weights are taken as 1 to 65,535. The seed says which of the backends that are due at the
    /// same time comes first, so that workers do not march in step; it leaves the bound as it is.
    pub fn new(weights: &[u32], seed: u64) -> RoundRobin {
        let lane = |&weight: &u32| Lane {
            weight: u64::from(weight.clamp(1, HEAVIEST)),
            eligible: true,
            base: 0,
            taken: 0,
            detour: 0,
        };
        let count = weights.len().max(1) as u64;
        let mut plan = RoundRobin {
            lanes: weights.iter().map(lane).collect(),
            total: 0,
            slack: 2,
            slot: 0,
            first: usize::try_from(seed % count).unwrap_or(0),
            due: BinaryHeap::with_capacity(weights.len()),
            later: BinaryHeap::with_capacity(weights.len()),
            detour_now: 0,
        };
        plan.restart();
        plan
    }

    /// Takes over which backends may be picked.
    ///
    /// Where that changed, the plan begins anew from here: a backend that comes back gets its
    /// share from now on and nothing for the time away. Cost: O(n).
    pub fn update(&mut self, eligible: impl Fn(usize) -> bool) {
        let mut changed = false;
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let now = eligible(index);
            changed |= now != lane.eligible;
            lane.eligible = now;
        }
        if changed {
            self.restart();
        }
    }

    /// The backend whose turn it is, or `None` if every eligible one is in `tried`.
    ///
    /// Where the next turn belongs to one in `tried`, that turn stays its own and the pick is a
    /// detour outside the plan. Cost: O(log n); O(n) for a detour.
    pub fn pick(&mut self, tried: &Tried) -> Option<usize> {
        let slot = self.slot + 1;
        while let Some(&Reverse(turn)) = self.later.peek()
            && turn.slot <= slot
        {
            self.later.pop();
            let slot = self.last_slot(&self.lanes[turn.index]);
            self.due.push(Reverse(Turn { slot, ..turn }));
        }
        let &Reverse(turn) = self.due.peek()?;
        if tried.contains(turn.index) {
            return self.detour(tried);
        }
        self.due.pop();
        self.slot = slot;
        self.take(turn);
        Some(turn.index)
    }

    /// Books a turn and queues the lane's next one.
    fn take(&mut self, turn: Turn) {
        let total = self.total;
        let lane = &mut self.lanes[turn.index];
        lane.taken += 1;
        if lane.taken == lane.weight {
            lane.taken = 0;
            lane.base += total;
        }
        let slot = self.first_slot(&self.lanes[turn.index]);
        self.later.push(Reverse(Turn { slot, ..turn }));
        self.first = turn.index + 1;
    }

    /// Picks by plain stride scheduling among those that were not tried; the plan does not move.
    ///
    /// Booking such picks in the plan would leave a heavy backend that refuses connections with a
    /// claim that grows for as long as it does, and comes as a burst when it no longer does.
    fn detour(&mut self, tried: &Tried) -> Option<usize> {
        let now = self.detour_now;
        let allowed = |(index, lane): &(usize, &mut Lane)| lane.eligible && !tried.contains(*index);
        let lanes = self.lanes.iter_mut().enumerate().filter(allowed);
        let (index, lane) = lanes.min_by_key(|(_, lane)| lane.detour.max(now))?;
        self.detour_now = lane.detour.max(now);
        lane.detour = self.detour_now + STRIDE / lane.weight;
        Some(index)
    }

    fn restart(&mut self) {
        let eligible = self.lanes.iter().filter(|lane| lane.eligible);
        self.total = eligible.clone().map(|lane| lane.weight).sum();
        self.slack = (2 * eligible.count() as u64).saturating_sub(2).max(2);
        self.slot = 0;
        for lane in &mut self.lanes {
            (lane.base, lane.taken) = (0, 0);
        }
        let count = self.lanes.len();
        let turn = |(index, lane): (usize, &Lane)| {
            let rank = (index + count - self.first % count) % count;
            Reverse(Turn { slot: self.first_slot(lane), rank, index })
        };
        let turns = self.lanes.iter().enumerate().filter(|(_, lane)| lane.eligible).map(turn).collect();
        self.due.clear();
        self.later = turns;
    }

    fn first_slot(&self, lane: &Lane) -> u64 {
        let position = (lane.taken * self.slack + 1) * self.total;
        lane.base + position.div_ceil(self.slack * lane.weight)
    }

    fn last_slot(&self, lane: &Lane) -> u64 {
        let position = ((lane.taken + 1) * self.slack - 1) * self.total;
        lane.base + position / (self.slack * lane.weight) + 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn picks(plan: &mut RoundRobin, count: usize) -> Vec<usize> {
        (0..count).map(|_| plan.pick(&Tried::default()).expect("something is eligible")).collect()
    }

    fn letters(weights: &[u32], count: usize) -> String {
        let mut plan = RoundRobin::new(weights, 0);
        picks(&mut plan, count).into_iter().map(|index| ['a', 'b', 'c', 'd'][index]).collect()
    }

    fn tried(indexes: &[usize]) -> Tried {
        let mut tried = Tried::default();
        for &index in indexes {
            tried.insert(index);
        }
        tried
    }

    /// The farthest any backend strays from its share over `count` picks, in units of 1/total.
    fn worst_lag(plan: &mut RoundRobin, weights: &[u32], eligible: &[bool], count: usize) -> i64 {
        let share = |index: usize| if eligible[index] { i64::from(weights[index]) } else { 0 };
        let total: i64 = (0..weights.len()).map(share).sum();
        let mut taken = vec![0_i64; weights.len()];
        let mut worst = 0;
        for round in 1..=count {
            let index = plan.pick(&Tried::default()).expect("something is eligible");
            assert!(eligible[index], "picked {index}, which is not eligible");
            taken[index] += 1;
            let round = i64::try_from(round).expect("small");
            let lags = (0..weights.len()).map(|index| (taken[index] * total - round * share(index)).abs());
            worst = worst.max(lags.max().unwrap_or(0));
        }
        worst
    }

    fn total(weights: &[u32]) -> i64 {
        weights.iter().map(|&weight| i64::from(weight)).sum()
    }

    #[test]
    fn equal_weights_are_a_plain_rotation() {
        assert_eq!(letters(&[1, 1, 1], 7), "abcabca");
        assert_eq!(letters(&[7, 7, 7, 7], 9), "abcdabcda");
        assert_eq!(picks(&mut RoundRobin::new(&[1; 4], 6), 6), [2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn unequal_weights_are_spread_out() {
        assert_eq!(letters(&[5, 1, 1], 14), "aabaacaaabaaca");
        assert_eq!(letters(&[3, 1], 8), "aabaaaba");
        assert_eq!(letters(&[1, 2], 6), "babbab");
    }

    #[test]
    fn one_heavy_backend_among_a_hundred_light_ones_gets_every_other_pick() {
        let mut weights = vec![1; 101];
        weights[0] = 100;
        let chosen = picks(&mut RoundRobin::new(&weights, 0), 200);
        assert!(chosen.windows(2).all(|pair| (pair[0] == 0) != (pair[1] == 0)));
    }

    #[test]
    fn one_backend_is_always_picked_and_none_never() {
        assert_eq!(picks(&mut RoundRobin::new(&[9], 3), 20), [0; 20]);
        assert_eq!(RoundRobin::new(&[], 3).pick(&Tried::default()), None);
        let mut plan = RoundRobin::new(&[1, 1], 0);
        plan.update(|_| false);
        assert_eq!(plan.pick(&Tried::default()), None);
    }

    #[test]
    fn a_backend_that_comes_back_gets_no_burst() {
        let mut plan = RoundRobin::new(&[1, 1, 1], 0);
        plan.update(|index| index != 1);
        assert!(picks(&mut plan, 1_000).iter().all(|&index| index != 1));
        plan.update(|_| true);
        let mut first_rounds = picks(&mut plan, 9);
        first_rounds.chunks_mut(3).for_each(<[usize]>::sort_unstable);
        assert_eq!(first_rounds, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn an_update_that_changes_nothing_keeps_the_place() {
        let mut plan = RoundRobin::new(&[1, 1, 1], 0);
        assert_eq!(picks(&mut plan, 1), [0]);
        plan.update(|_| true);
        assert_eq!(picks(&mut plan, 3), [1, 2, 0]);
    }

    #[test]
    fn a_change_at_every_pick_still_rotates() {
        let mut plan = RoundRobin::new(&[1; 4], 0);
        let mut counts = [0; 4];
        for round in 0..400 {
            plan.update(|index| index != 3 || round % 2 == 0);
            counts[picks(&mut plan, 1)[0]] += 1;
        }
        assert!(counts[..3].iter().all(|&count| count >= 90), "{counts:?}");
    }

    #[test]
    fn a_retry_takes_the_next_turn_of_another_backend() {
        let mut plan = RoundRobin::new(&[1, 1, 1], 0);
        assert_eq!(plan.pick(&tried(&[])), Some(0));
        assert_eq!(plan.pick(&tried(&[0])), Some(1));
        assert_eq!(plan.pick(&tried(&[0, 1])), Some(2));
        assert_eq!(plan.pick(&tried(&[0, 1, 2])), None);
        assert_eq!(plan.pick(&tried(&[])), Some(0));
    }

    #[test]
    fn backends_that_refuse_leave_the_others_even() {
        let mut plan = RoundRobin::new(&[1, 1, 1, 1], 0);
        let mut served = [0; 4];
        for _ in 0..300 {
            let mut tried = Tried::default();
            while let Some(index) = plan.pick(&tried) {
                if index != 0 {
                    served[index] += 1;
                    break;
                }
                tried.insert(index);
            }
        }
        assert_eq!(served, [0, 100, 100, 100]);
    }

    #[test]
    fn detours_follow_the_weights_and_move_no_turn() {
        let mut plan = RoundRobin::new(&[1_000, 20, 10], 0);
        let mut detours = [0; 3];
        for _ in 0..300 {
            let index = plan.detour(&tried(&[0])).expect("two are left");
            detours[index] += 1;
        }
        assert_eq!(detours, [0, 200, 100]);
        assert!(worst_lag(&mut plan, &[1_000, 20, 10], &[true; 3], 2_060) < 1_030);
    }

    #[test]
    fn a_heavy_backend_that_refused_for_long_gets_no_burst() {
        let weights = [100, 1, 1];
        let mut plan = RoundRobin::new(&weights, 0);
        for _ in 0..1_020 {
            let index = plan.pick(&Tried::default()).expect("all are eligible");
            plan.pick(&tried(&[index]));
        }
        assert!(worst_lag(&mut plan, &weights, &[true; 3], 1_020) <= 2 * total(&weights));
    }

    proptest! {
        #[test]
        fn every_prefix_is_within_tijdemans_bound(
            weights in prop::collection::vec(1_u32..=1_000, 1..40), seed: u64,
        ) {
            let mut plan = RoundRobin::new(&weights, seed);
            let worst = worst_lag(&mut plan, &weights, &vec![true; weights.len()], 5_000);
            let slack = i64::try_from(2 * weights.len()).expect("small") - 2;
            prop_assert!(worst * slack <= total(&weights) * (slack - 1).max(0));
        }

        #[test]
        fn every_prefix_after_a_change_of_health_is_within_one(
            lanes in prop::collection::vec((1_u32..=20, any::<bool>()), 2..30), before in 0_usize..200, seed: u64,
        ) {
            let (weights, mut eligible): (Vec<u32>, Vec<bool>) = lanes.into_iter().unzip();
            let last = eligible.len() - 1;
            (eligible[0], eligible[last]) = (true, false);
            let mut plan = RoundRobin::new(&weights, seed);
            picks(&mut plan, before);
            plan.update(|index| eligible[index]);
            let up = weights.iter().zip(&eligible).filter(|(_, up)| **up).map(|(weight, _)| *weight);
            let total = total(&up.collect::<Vec<_>>());
            prop_assert!(worst_lag(&mut plan, &weights, &eligible, 2_000) < total);
        }

        #[test]
        fn a_full_cycle_gives_exactly_the_weights(
            weights in prop::collection::vec(1_u32..=50, 1..20), seed: u64, cycles in 1_usize..4,
        ) {
            let mut plan = RoundRobin::new(&weights, seed);
            let cycle: usize = weights.iter().map(|&weight| weight as usize).sum();
            let mut counts = vec![0; weights.len()];
            for index in picks(&mut plan, cycle * cycles) {
                counts[index] += 1;
            }
            let expected: Vec<usize> = weights.iter().map(|&weight| weight as usize * cycles).collect();
            prop_assert_eq!(counts, expected);
        }

        #[test]
        fn a_tried_backend_is_never_picked(
            weights in prop::collection::vec(1_u32..=100, 1..8),
            rounds in prop::collection::vec(any::<u8>(), 1..200), seed: u64,
        ) {
            let mut plan = RoundRobin::new(&weights, seed);
            for mask in rounds {
                let indexes: Vec<usize> = (0..weights.len()).filter(|&bit| mask & (1 << bit) != 0).collect();
                let pick = plan.pick(&tried(&indexes));
                prop_assert_eq!(pick.is_none(), indexes.len() == weights.len());
                prop_assert!(pick.is_none_or(|index| !indexes.contains(&index)));
            }
        }
    }
}
