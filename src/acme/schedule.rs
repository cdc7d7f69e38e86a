//! When is a certificate asked for, renewed, asked about? Pure: takes `now` and a random share, returns times.
//!
//! A certificate is renewed after two thirds of its life, or when the directory says so (ARI, RFC 9773); after a
//! failure, later and later: what went wrong with a thousand balancers at once must not become a thousand requests at
//! once. Times are seconds since the epoch.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long the clock of this machine is trusted to go on as before: it may be set, or the machine sleep.
const LONGEST_SLEEP: Duration = Duration::from_mins(10);
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
pub(super) const DAY: i64 = 24 * HOUR;

/// How often the directory may be asked when it wants a certificate renewed (RFC 9773 §4.3.2).
const ASK_AT_LEAST: i64 = MINUTE;
const ASK_AT_MOST: i64 = DAY;
/// Where it did not answer.
const ASK_AGAIN: i64 = HOUR;

/// From when and until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) begin: i64,
    pub(super) end: i64,
}

/// What kind of failure it was; decides how soon the next try may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setback {
    /// The directory could not be reached, so nothing counts against us there.
    Unreachable,
    /// It said no, or the challenge failed. Let's Encrypt allows five of those an hour for a name.
    Refused,
}

/// What is next, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask the directory when it wants the certificate renewed.
    Ask(i64),
    Order(i64),
}

impl Step {
    fn at(self) -> i64 {
        match self {
            Step::Ask(at) | Step::Order(at) => at,
        }
    }
}

/// What has to survive a restart, so that one is no way around the back-off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    /// Orders that failed, one after the other.
    pub(super) failures: u32,
    /// Renewals one after the other that the directory asked for early in the life of what they replaced.
    pub(super) hasty: u32,
    /// No order before this.
    pub(super) not_before: i64,
    /// When the directory wants it renewed: our moment in the window that it gave.
    pub(super) suggested: Option<i64>,
    /// When to ask it again.
    pub(super) ask_at: i64,
}

/// When the certificate in force is renewed if the directory does not say: after two thirds of its life, less up to a
/// twentieth of it so that certificates that were made together are not renewed together.
pub(super) fn renewal(life: Life, share: f64) -> i64 {
    let length = (life.end - life.begin).max(0);
    life.begin + length * 2 / 3 - part(length / 20, share)
}

impl Memory {
    /// What is due now, or else how long to wait before this is asked again. The clock may have been wrong until now.
    pub(super) fn due(&mut self, now: i64, life: Option<Life>, share: f64) -> Result<Step, Duration> {
        *self = self.sane(now);
        let step = self.next(life, share);
        match u64::try_from(step.at().saturating_sub(now)) {
            Ok(0) | Err(_) => Ok(step),
            Ok(left) => Err(Duration::from_secs(left).min(LONGEST_SLEEP)),
        }
    }

    /// What to do next for a certificate with this life; `None`: there is none that could be kept.
    fn next(self, life: Option<Life>, share: f64) -> Step {
        let order = self.order_at(life, share);
        if life.is_some() && self.ask_at < order { Step::Ask(self.ask_at) } else { Step::Order(order) }
    }

    /// When the next order is due.
    pub(super) fn order_at(self, life: Option<Life>, share: f64) -> i64 {
        let Some(life) = life else { return self.not_before };
        // A directory that says nothing sensible must not let it run out.
        let latest = life.begin + (life.end - life.begin) / 10 * 9;
        let renewal = self.suggested.unwrap_or_else(|| renewal(life, share)).min(latest);
        renewal.max(self.not_before)
    }

    /// The directory wants it renewed in a window, and to be asked again after `again` seconds.
    pub(super) fn suggest(&mut self, now: i64, window: Life, again: i64, share: f64) {
        let moment = window.begin + part((window.end - window.begin).max(0), share);
        let is_same = self.suggested.is_some_and(|known| (window.begin..=window.end).contains(&known));
        if !is_same {
            self.suggested = Some(moment);
        }
        self.ask_at = now + again.clamp(ASK_AT_LEAST, ASK_AT_MOST);
    }

    /// The directory has no such advice.
    pub(super) fn no_advice(&mut self, now: i64) {
        self.suggested = None;
        self.ask_at = now + ASK_AT_MOST;
    }

    /// It could not be asked.
    pub(super) fn ask_later(&mut self, now: i64, share: f64) {
        self.ask_at = now + ASK_AGAIN + part(ASK_AGAIN / 2, share);
    }

    /// An order failed; `wish` is what the directory asks us to wait, in seconds.
    pub(super) fn failed(&mut self, now: i64, setback: Setback, wish: Option<i64>, share: f64) {
        self.failures = self.failures.saturating_add(1);
        let wish = wish.unwrap_or(0).clamp(0, DAY);
        self.not_before = now + back_off(setback, self.failures, share).max(wish);
    }

    /// As it is kept while an order is under way: should the process end in the middle, and end again each time it is
    /// started, the next orders come later and later all the same.
    pub(super) fn trying(mut self, now: i64, share: f64) -> Self {
        self.failed(now, Setback::Unreachable, None, share);
        self
    }

    /// A certificate came in place of one with the life `old`.
    pub(super) fn issued(&mut self, now: i64, old: Option<Life>, new: Life, share: f64) {
        let failures = self.failures;
        *self = Memory { hasty: self.hasty, ..Memory::default() };
        let early = old.is_some_and(|old| now < old.begin + (old.end - old.begin) / 3);
        self.hasty = if early { self.hasty.saturating_add(1) } else { 0 };
        if early {
            self.not_before = now + back_off(Setback::Refused, self.hasty, share);
        }
        // One that would have to be renewed at once: a clock is wrong, and the next would be no better.
        if renewal(new, 1.0) <= now {
            self.failures = failures;
            self.failed(now, Setback::Refused, None, share);
        }
    }

    /// Forgets what no clock that is right can have written.
    pub(super) fn sane(mut self, now: i64) -> Self {
        let farthest = now + DAY + DAY / 4;
        self.not_before = self.not_before.min(farthest);
        self.ask_at = self.ask_at.min(farthest);
        self
    }
}

/// Seconds until the next try after so many failures, a random quarter more or less.
fn back_off(setback: Setback, failures: u32, share: f64) -> i64 {
    let (first, most) = match setback {
        Setback::Unreachable => (15, HOUR),
        Setback::Refused => (8 * MINUTE, 8 * HOUR),
    };
    let doubled = first << failures.saturating_sub(1).min(12);
    let wait = i64::min(doubled, most);
    wait - wait / 4 + part(wait / 2, share)
}

/// A share, from 0 to 1, of a number of seconds.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "seconds of a few years")]
fn part(seconds: i64, share: f64) -> i64 {
    (seconds as f64 * share.clamp(0.0, 1.0)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life { begin: 1000 * DAY, end: 1090 * DAY };
    const NOW: i64 = 1000 * DAY;

    fn asked() -> Memory {
        Memory { ask_at: i64::MAX, ..Memory::default() }
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life_or_a_little_earlier() {
        assert_eq!(renewal(LIFE, 0.0), 1060 * DAY);
        assert_eq!(renewal(LIFE, 1.0), 1060 * DAY - 90 * DAY / 20);
        assert_eq!(asked().next(Some(LIFE), 0.0), Step::Order(1060 * DAY));
        let backwards = Life { begin: 10, end: 5 };
        assert_eq!(renewal(backwards, 0.5), 10);
    }

    #[test]
    fn a_clock_that_was_ahead_delays_nothing_once_it_is_right() {
        let mut memory = asked();
        memory.failed(NOW + 400 * DAY, Setback::Refused, None, 0.5);
        let ran_out = Life { begin: NOW - 90 * DAY, end: NOW };
        assert_eq!(memory.due(NOW, Some(ran_out), 0.5), Err(LONGEST_SLEEP));
        assert!(memory.not_before < NOW + 2 * DAY, "{memory:?}");
        assert_eq!(memory.due(memory.not_before - 5, None, 0.5), Err(Duration::from_secs(5)));
        let due = memory.not_before;
        assert_eq!(memory.due(due, Some(ran_out), 0.5), Ok(Step::Order(due)));
    }

    #[test]
    fn orders_that_never_end_come_later_and_later() {
        let mut memory = Memory::default();
        let mut waits = Vec::new();
        for _ in 0..3 {
            memory = memory.trying(NOW, 0.5);
            waits.push(memory.not_before - NOW);
        }
        assert_eq!(waits, [15, 30, 60]);
    }

    #[test]
    fn without_a_certificate_one_is_ordered_at_once() {
        assert_eq!(Memory::default().next(None, 0.5), Step::Order(0));
        let failed = Memory { not_before: NOW + 5, ..Memory::default() };
        assert_eq!(failed.next(None, 0.5), Step::Order(NOW + 5));
    }

    #[test]
    fn the_directory_is_asked_before_it_is_time_to_renew() {
        let mut memory = Memory::default();
        assert_eq!(memory.next(Some(LIFE), 0.0), Step::Ask(0));
        memory.suggest(NOW, Life { begin: 1030 * DAY, end: 1032 * DAY }, 6 * HOUR, 0.5);
        assert_eq!(memory.next(Some(LIFE), 0.0), Step::Ask(NOW + 6 * HOUR));
        memory.ask_at = i64::MAX;
        assert_eq!(memory.next(Some(LIFE), 0.0), Step::Order(1031 * DAY));
    }

    #[test]
    fn the_moment_in_a_window_is_chosen_once() {
        let mut memory = Memory::default();
        let window = Life { begin: 1030 * DAY, end: 1032 * DAY };
        memory.suggest(NOW, window, HOUR, 0.25);
        let chosen = memory.suggested;
        memory.suggest(NOW + HOUR, window, HOUR, 0.75);
        assert_eq!(memory.suggested, chosen);
        memory.suggest(NOW + HOUR, Life { begin: NOW - DAY, end: NOW - HOUR }, HOUR, 1.0);
        assert_eq!(memory.suggested, Some(NOW - HOUR), "a new window counts at once");
    }

    #[test]
    fn how_often_the_directory_is_asked_has_bounds() {
        let mut memory = Memory::default();
        for (wish, expected) in
            [(-5, MINUTE), (59, MINUTE), (60, MINUTE), (61, 61), (DAY, DAY), (DAY + 1, DAY)]
        {
            memory.suggest(NOW, LIFE, wish, 0.0);
            assert_eq!(memory.ask_at, NOW + expected, "{wish}");
        }
        memory.no_advice(NOW);
        assert_eq!((memory.ask_at, memory.suggested), (NOW + DAY, None));
    }

    #[test]
    fn advice_can_not_let_a_certificate_run_out() {
        let mut memory = asked();
        memory.suggested = Some(2000 * DAY);
        assert_eq!(memory.next(Some(LIFE), 0.0), Step::Order(1081 * DAY));
    }

    #[test]
    fn failures_wait_longer_and_longer_up_to_a_cap_of_hours() {
        let waits = |setback| (1..=40).map(move |failures| back_off(setback, failures, 0.5));
        let refused: Vec<i64> = waits(Setback::Refused).collect();
        assert_eq!(refused[..4], [8 * MINUTE, 16 * MINUTE, 32 * MINUTE, 64 * MINUTE]);
        assert_eq!(refused[39], 8 * HOUR);
        let unreachable: Vec<i64> = waits(Setback::Unreachable).collect();
        assert_eq!(unreachable[..3], [15, 30, 60]);
        assert_eq!(unreachable[39], HOUR);
        assert!(refused.is_sorted() && unreachable.is_sorted());
    }

    #[test]
    fn at_most_four_refusals_fall_into_an_hour() {
        let mut memory = Memory::default();
        let (mut now, mut tries) = (NOW, 0);
        while now < NOW + HOUR {
            tries += 1;
            memory.failed(now, Setback::Refused, None, 0.0);
            now = memory.not_before;
        }
        assert!(tries <= 4, "{tries}");
    }

    #[test]
    fn a_wish_to_wait_is_respected_up_to_a_day() {
        let mut memory = Memory::default();
        memory.failed(NOW, Setback::Refused, Some(5 * HOUR), 0.5);
        assert_eq!(memory.not_before, NOW + 5 * HOUR);
        memory.failed(NOW, Setback::Refused, Some(i64::MAX), 0.5);
        assert_eq!(memory.not_before, NOW + DAY);
        memory.failed(NOW, Setback::Unreachable, Some(1), 0.5);
        assert_eq!((memory.failures, memory.not_before), (3, NOW + MINUTE));
    }

    #[test]
    fn a_certificate_that_comes_ends_the_failures() {
        let mut memory = Memory::default();
        memory.failed(NOW, Setback::Refused, None, 0.5);
        memory.issued(NOW, None, LIFE, 0.5);
        assert_eq!(memory, Memory::default());
    }

    #[test]
    fn a_certificate_that_is_due_already_counts_as_a_failure() {
        let mut memory = Memory::default();
        memory.issued(LIFE.end, None, LIFE, 0.5);
        assert_eq!((memory.failures, memory.not_before), (1, LIFE.end + 8 * MINUTE));
        memory.issued(LIFE.end, None, LIFE, 0.5);
        assert_eq!((memory.failures, memory.not_before), (2, LIFE.end + 16 * MINUTE), "later and later");
    }

    #[test]
    fn a_directory_that_always_says_now_is_obeyed_less_and_less_often() {
        let mut memory = Memory::default();
        for (round, wait) in [(1, 8 * MINUTE), (2, 16 * MINUTE), (3, 32 * MINUTE)] {
            memory.issued(NOW, Some(LIFE), LIFE, 0.5);
            memory.suggest(NOW, Life { begin: NOW - 2, end: NOW - 1 }, i64::MAX, 0.5);
            assert_eq!((memory.hasty, memory.not_before), (round, NOW + wait));
            assert_eq!(memory.next(Some(LIFE), 0.5), Step::Order(NOW + wait));
        }
        memory.issued(
            LIFE.end - 30 * DAY,
            Some(LIFE),
            Life { begin: LIFE.end, end: LIFE.end + 90 * DAY },
            0.5,
        );
        assert_eq!((memory.hasty, memory.not_before), (0, 0), "one that was due ends it");
    }

    #[test]
    fn what_a_wrong_clock_wrote_does_not_wait_for_ever() {
        let wrong = Memory { not_before: i64::MAX, ask_at: i64::MAX, ..Memory::default() };
        let memory = wrong.sane(NOW);
        assert!(memory.not_before < NOW + 2 * DAY && memory.ask_at < NOW + 2 * DAY);
    }
}
