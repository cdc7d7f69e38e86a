//! Which wait of a request is running, and for how long it may.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use crate::{error::Reason, http::deadline::Deadline};

/// One wait at a time: it starts anew when something moved, or when another wait takes its place.
#[derive(Debug)]
pub struct Patience<'d> {
    deadline: &'d mut Deadline,
    waiting: Option<Reason>,
    /// The time that the caller has just read; good for one wait.
    now: Option<Instant>,
}

/// A wait: what it is called when it ends badly, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    pub reason: Reason,
    pub allowed: Duration,
    /// Ends the wait earlier, whatever moves.
    pub until: Option<Instant>,
}

impl Wait {
    pub fn new(reason: Reason, allowed: Duration) -> Self {
        Wait { reason, allowed, until: None }
    }
}

/// How long we wait for a client to take what is there for it: a while, used up by waiting and won
/// back by each byte that it takes. One that takes a byte now and then runs out of it.
#[derive(Clone, Copy, Debug)]
pub struct Indulgence {
    most: Duration,
    left: Duration,
    /// Bytes a second; 0: any byte wins back all of it.
    rate: u64,
    bytes: u64,
    /// While it runs: since when, and until when if nothing is taken.
    running: Option<(Instant, Instant)>,
}

impl Indulgence {
    pub fn new(most: Duration, rate: u64) -> Self {
        Indulgence { most, left: most, rate, bytes: 0, running: None }
    }

    /// When it is used up if the client, which has taken `bytes` since the beginning, takes no more.
    pub fn end(&mut self, now: Instant, bytes: u64) -> Instant {
        // The same instant for as long as nothing is taken: a timer that is moved never rings.
        if let Some((_, end)) = self.running.filter(|_| bytes == self.bytes) {
            return end;
        }
        self.settle(now, bytes);
        let end = now + self.left;
        self.running = Some((now, end));
        end
    }

    /// Something else is waited for from now on.
    pub fn pause(&mut self, now: Instant, bytes: u64) {
        self.settle(now, bytes);
        self.running = None;
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    fn settle(&mut self, now: Instant, bytes: u64) {
        let waited = self.running.map_or(Duration::ZERO, |(since, _)| now.saturating_duration_since(since));
        let taken = bytes - self.bytes;
        let won = match (taken * 1000).checked_div(self.rate) {
            Some(millis) => Duration::from_millis(millis),
            None if taken > 0 => self.most,
            None => Duration::ZERO,
        };
        self.left = self.left.saturating_sub(waited).saturating_add(won).min(self.most);
        self.bytes = bytes;
    }
}

impl<'d> Patience<'d> {
    pub fn new(deadline: &'d mut Deadline) -> Self {
        Patience { deadline, waiting: None, now: None }
    }

    /// Starts the next wait anew, at a time that was just read: it need not read the clock.
    pub fn tell(&mut self, now: Instant) {
        self.waiting = None;
        self.now = Some(now);
    }

    /// Nothing is waited for.
    pub fn rest(&mut self) {
        self.waiting = None;
        self.deadline.clear();
    }

    /// Ready with the reason when the wait has lasted too long.
    pub fn poll(&mut self, cx: &mut Context<'_>, wait: Wait, moved: bool) -> Poll<Reason> {
        let mut now = self.now.take();
        if moved || self.waiting != Some(wait.reason) {
            self.waiting = Some(wait.reason);
            let end = *now.get_or_insert_with(Instant::now) + wait.allowed;
            self.deadline.set(wait.until.map_or(end, |until| until.min(end)));
        }
        self.deadline.poll_at(cx, now).map(|()| wait.reason)
    }

    /// Runs `future` within one wait.
    ///
    /// # Errors
    /// The wait's reason when it ends first.
    pub async fn limit<T>(&mut self, wait: Wait, future: impl Future<Output = T>) -> Result<T, Reason> {
        let mut future = pin!(future);
        self.waiting = None;
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending => self.poll(cx, wait, false).map(Err),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(30);

    /// For how long a client is served that takes so many bytes each time, so often.
    fn served(rate: u64, bytes: u64, every: Duration) -> Option<Duration> {
        let mut indulgence = Indulgence::new(MOST, rate);
        let start = Instant::now();
        let (mut now, mut taken) = (start, 0);
        while now < start + 100 * MOST {
            let end = indulgence.end(now, taken);
            if end < now + every {
                return Some(end - start);
            }
            now += every;
            taken += bytes;
        }
        None
    }

    #[test]
    fn ends_with_a_client_that_takes_nothing() {
        assert_eq!(served(240, 0, Duration::from_secs(1)), Some(MOST));
        assert_eq!(served(0, 0, Duration::from_secs(1)), Some(MOST));
    }

    #[test]
    fn ends_with_one_that_takes_less_than_the_rate() {
        let second = Duration::from_secs(1);
        let took = served(240, 1, second).unwrap();
        assert!(took < MOST + second, "{took:?}");
        assert!(served(240, 120, second).unwrap() < 2 * MOST + second);
        assert_eq!(served(240, 240, second), None);
        assert_eq!(served(0, 1, second), None, "the rate is off");
    }

    #[test]
    fn bears_long_pauses_of_one_that_takes_enough() {
        assert_eq!(served(240, 240 * 29, Duration::from_secs(29)), None);
        assert_eq!(
            served(240, 1 << 20, Duration::from_secs(31)),
            Some(MOST),
            "what was taken is not saved up"
        );
    }

    #[test]
    fn does_not_count_the_time_in_between() {
        let mut indulgence = Indulgence::new(MOST, 240);
        let start = Instant::now();
        assert_eq!(indulgence.end(start, 0), start + MOST);
        indulgence.pause(start + MOST / 2, 0);
        let later = start + 10 * MOST;
        assert_eq!(indulgence.end(later, 0), later + MOST / 2);
    }
}
