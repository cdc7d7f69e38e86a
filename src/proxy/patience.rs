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
