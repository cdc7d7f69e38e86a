//! Is a backend up? What probes say, made into a state; pure, so it knows no clock and no socket.

use std::time::Duration;

/// What one probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
}

/// A change of state, with the number of probes in a row that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    Up { passed: u32 },
    Down { failed: u32 },
}

/// The health of one backend, as rise and fall see it.
///
/// A backend begins up on trust, so that a start serves at once, and its first probe settles the
/// matter: one failure then makes it down (HAProxy's `init-state up`). From there on it takes
/// `fall` failures in a row to go down and `rise` successes in a row to come up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Health {
    state: State,
    /// Outcomes in a row that speak against the state.
    contrary: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Trusted,
    Up,
    Down,
}

impl Health {
    pub fn is_up(self) -> bool {
        self.state != State::Down
    }

    /// Takes in one outcome; returns the change of state that it makes, if any.
    pub fn observe(&mut self, outcome: Outcome, rise: u32, fall: u32) -> Option<Transition> {
        let agrees = (outcome == Outcome::Passed) == self.is_up();
        if agrees {
            self.contrary = 0;
            if self.state == State::Trusted {
                self.state = State::Up;
            }
            return None;
        }
        self.contrary = self.contrary.saturating_add(1);
        let needed = match self.state {
            State::Trusted => 1,
            State::Up => fall,
            State::Down => rise,
        };
        if self.contrary < needed {
            return None;
        }
        let count = std::mem::take(&mut self.contrary);
        if self.is_up() {
            self.state = State::Down;
            Some(Transition::Down { failed: count })
        } else {
            self.state = State::Up;
            Some(Transition::Up { passed: count })
        }
    }
}

/// Whether so few backends are up that all count as up: fewer than `below` percent of them.
///
/// The few that are left would be run over, and a check that fails everywhere is more likely to be
/// wrong itself.
pub fn fails_open(up: usize, total: usize, below: u32) -> bool {
    up as u128 * 100 < total as u128 * u128::from(below)
}

/// When the next probe starts, counted from the start of the last one: the interval ± 10 %.
pub fn probe_delay(interval: Duration, seed: u64) -> Duration {
    let permille = u32::try_from(900 + seed % 201).unwrap_or(1_000);
    (interval / 1_000).saturating_mul(permille)
}

/// When the first probe starts: within 200 ms; where more than 200 backends are probed, within a
/// millisecond for each; in any case within the interval.
pub fn first_probe_delay(interval: Duration, backends: usize, seed: u64) -> Duration {
    let window = Duration::from_millis(u64::try_from(backends).unwrap_or(u64::MAX).max(200));
    part(interval.min(window), seed)
}

/// When the second probe starts, counted from the start of the first: the interval ± 50 %, so that
/// probes which began together are spread evenly over it from then on.
pub fn second_probe_delay(interval: Duration, seed: u64) -> Duration {
    (interval / 2).saturating_add(part(interval, seed))
}

/// Less than the whole.
fn part(whole: Duration, seed: u64) -> Duration {
    whole / 1_000 * u32::try_from(seed % 1_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds outcomes (`+` passed, `-` failed) with rise 2, fall 3; a letter for each result.
    fn run(outcomes: &str) -> String {
        let mut health = Health::default();
        let step = |outcome| {
            let outcome = if outcome == '+' { Outcome::Passed } else { Outcome::Failed };
            match health.observe(outcome, 2, 3) {
                Some(Transition::Up { .. }) => 'U',
                Some(Transition::Down { .. }) => 'D',
                None => '.',
            }
        };
        outcomes.chars().map(step).collect()
    }

    #[test]
    fn begins_up_and_the_first_probe_decides() {
        assert!(Health::default().is_up());
        assert_eq!(run("-"), "D");
        assert_eq!(run("+--"), "...");
        let mut health = Health::default();
        let down = health.observe(Outcome::Failed, 2, 3);
        assert_eq!(down, Some(Transition::Down { failed: 1 }));
        assert!(!health.is_up());
    }

    #[test]
    fn goes_down_after_fall_failures_in_a_row_and_up_after_rise_successes() {
        assert_eq!(run("+---"), "...D");
        assert_eq!(run("+--+--+---"), ".........D");
        assert_eq!(run("-++"), "D.U");
        assert_eq!(run("-+-+-++"), "D.....U");
        assert_eq!(run("-++--+---"), "D.U.....D");
    }

    #[test]
    fn a_state_that_is_confirmed_makes_no_transition() {
        assert_eq!(run("++++"), "....");
        assert_eq!(run("----"), "D...");
    }

    #[test]
    fn rise_and_fall_of_one_follow_every_probe() {
        let mut health = Health::default();
        assert_eq!(health.observe(Outcome::Failed, 1, 1), Some(Transition::Down { failed: 1 }));
        assert_eq!(health.observe(Outcome::Passed, 1, 1), Some(Transition::Up { passed: 1 }));
        assert_eq!(health.observe(Outcome::Failed, 1, 1), Some(Transition::Down { failed: 1 }));
    }

    #[test]
    fn opens_below_the_share_and_not_at_it() {
        let cases = [
            (0, 3, 50, true),
            (1, 3, 50, true),
            (2, 3, 50, false),
            (1, 2, 50, false),
            (0, 1, 50, true),
            (0, 3, 0, false),
            (2, 3, 100, true),
            (3, 3, 100, false),
            (0, 0, 50, false),
        ];
        for (up, total, below, expected) in cases {
            assert_eq!(fails_open(up, total, below), expected, "{up} of {total} up, below {below} %");
        }
    }

    proptest! {
        #[test]
        fn delays_stay_in_their_ranges(millis in 1_u64..100_000, seed: u64) {
            let interval = Duration::from_millis(millis);
            let delay = probe_delay(interval, seed);
            prop_assert!(delay >= interval.mul_f64(0.899) && delay <= interval.mul_f64(1.101));
            let second = second_probe_delay(interval, seed);
            prop_assert!(second >= interval.mul_f64(0.5) && second <= interval.mul_f64(1.5));
            let first = first_probe_delay(interval, 200, seed);
            prop_assert!(first < interval && first < Duration::from_millis(200));
            let of_many = first_probe_delay(interval, 1_000, seed);
            prop_assert!(of_many < interval && of_many < Duration::from_secs(1));
        }

        #[test]
        fn transitions_alternate_and_match_the_state(outcomes in prop::collection::vec(any::<bool>(), 0..200)) {
            let mut health = Health::default();
            for passed in outcomes {
                let before = health.is_up();
                let outcome = if passed { Outcome::Passed } else { Outcome::Failed };
                match health.observe(outcome, 2, 3) {
                    Some(Transition::Up { .. }) => prop_assert!(!before && health.is_up() && passed),
                    Some(Transition::Down { .. }) => prop_assert!(before && !health.is_up() && !passed),
                    None => prop_assert_eq!(before, health.is_up()),
                }
            }
        }
    }

    /// The most probes that start within a tenth of the interval, once all have started.
    #[test]
    fn probes_of_many_backends_do_not_come_in_bursts() {
        let (interval, backends) = (Duration::from_secs(2), 1_000);
        let mut random = fastrand::Rng::with_seed(7);
        let mut starts = [0_usize; 200];
        for _ in 0..backends {
            let mut at = first_probe_delay(interval, backends, random.u64(..));
            let mut delay = second_probe_delay(interval, random.u64(..));
            while let Some(slot) = starts.get_mut(usize::try_from(at.as_millis() / 200).unwrap()) {
                *slot += 1;
                at += delay;
                delay = probe_delay(interval, random.u64(..));
            }
        }
        // An even spread has 100 in each. In the first second every backend has its first probe.
        assert!(starts[..5].iter().all(|&starts| starts < 260), "{starts:?}");
        assert!(starts[5..].iter().all(|&starts| starts < 160), "{starts:?}");
        assert!(starts[20..].iter().all(|&starts| starts > 60), "{starts:?}");
    }

    #[test]
    fn endless_intervals_do_not_overflow() {
        assert!(probe_delay(Duration::MAX, 200) > Duration::from_secs(1));
        assert!(second_probe_delay(Duration::MAX, 999) > Duration::from_secs(1));
        assert!(first_probe_delay(Duration::MAX, 1, 999) < Duration::from_millis(200));
        assert!(first_probe_delay(Duration::MAX, usize::MAX, 999) > Duration::from_secs(1));
    }
}
