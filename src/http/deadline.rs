//! One timer for all the waits of a connection, cheap to move.
//!
//! Moving a deadline later, which happens several times a request, only stores an instant; the
//! runtime's timer is touched when it must ring earlier, or rings and finds that it was moved.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use tokio::{
    task::unconstrained,
    time::{Instant, Sleep, sleep_until},
};

#[derive(Debug, Default)]
pub struct Deadline {
    at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// When the timer rings, and whom for; `None`: it is not known to.
    armed: Option<(Instant, Waker)>,
}

impl Deadline {
    /// Rings at `at` instead of whatever was set before.
    pub fn set(&mut self, at: Instant) {
        self.at = Some(at);
    }

    /// Never rings until it is set again.
    pub fn clear(&mut self) {
        self.at = None;
    }

    /// Ready once the deadline has passed; stays ready until it is set or cleared.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_at(cx, None)
    }

    /// The same for a caller who may have just read the clock. Cost: with the time a few comparisons,
    /// without it a look at the timer; more only where that must ring earlier or has rung.
    pub fn poll_at(&mut self, cx: &mut Context<'_>, now: Option<Instant>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        if self.will_wake(cx.waker(), at, now) {
            return Poll::Pending;
        }
        self.armed = None;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        loop {
            if timer.deadline() > at {
                timer.as_mut().reset(at);
            }
            // Out of the runtime's budget: a task that has done much in one turn is told that nothing is ready,
            // and the timer would be taken for armed that was not even looked at.
            if pin!(unconstrained(timer.as_mut())).poll(cx).is_pending() {
                self.armed = Some((timer.deadline(), cx.waker().clone()));
                return Poll::Pending;
            }
            if timer.deadline() >= at {
                return Poll::Ready(());
            }
            timer.as_mut().reset(at);
        }
    }

    /// Whether the timer is still going to wake this task, by `at` at the latest.
    fn will_wake(&self, waker: &Waker, at: Instant, now: Option<Instant>) -> bool {
        let (Some((rings, rings_for)), Some(timer)) = (&self.armed, &self.timer) else { return false };
        *rings <= at
            && rings_for.will_wake(waker)
            && (now.is_some_and(|now| now < *rings) || !timer.is_elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    async fn ring(deadline: &mut Deadline) -> Duration {
        let start = Instant::now();
        poll_fn(|cx| deadline.poll(cx)).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn rings_at_the_last_instant_set() {
        let mut deadline = Deadline::default();
        let now = Instant::now();
        deadline.set(now + Duration::from_secs(5));
        let pending = poll_fn(|cx| Poll::Ready(deadline.poll_at(cx, Some(now)).is_pending())).await;
        assert!(pending);
        deadline.set(now + Duration::from_secs(9));
        assert_eq!(ring(&mut deadline).await.as_secs(), 9);
        deadline.set(now + Duration::from_secs(20));
        let _ = poll_fn(|cx| Poll::Ready(deadline.poll(cx))).await;
        deadline.set(now + Duration::from_secs(11));
        assert_eq!(ring(&mut deadline).await.as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn rings_for_a_task_that_has_used_up_its_budget() {
        let mut deadline = Deadline::default();
        deadline.set(Instant::now() + Duration::from_secs(1));
        let mut begun = false;
        let rung = poll_fn(|cx| {
            if !std::mem::replace(&mut begun, true) {
                // WHY: whatever it takes of the budget is wanted, and nothing else.
                while pin!(tokio::task::coop::consume_budget()).poll(cx).is_ready() {}
            }
            let now = Some(Instant::now());
            deadline.poll_at(cx, now)
        });
        assert!(tokio::time::timeout(Duration::from_secs(9), rung).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn stays_silent_once_cleared() {
        let mut deadline = Deadline::default();
        deadline.set(Instant::now());
        deadline.clear();
        let waited = tokio::time::timeout(Duration::from_secs(1), ring(&mut deadline)).await;
        assert!(waited.is_err());
    }
}
