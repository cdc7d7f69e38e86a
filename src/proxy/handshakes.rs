//! How many TLS handshakes run at once, and whose turn is next.
//!
//! A client that says hello and then nothing costs it little and holds a place until its deadline. Where others
//! wait for one, it has less time: what an honest client needs to answer.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    pin::pin,
    task::{Poll, Waker},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::yield_now,
    time::{Instant, sleep_until},
};

/// For how long a handshake may run while others wait. Ours is done in a fraction of a millisecond, so this is two or
/// three round trips of a client that is far away, or one and a lost packet.
const PATIENCE: Duration = Duration::from_secs(1);

/// The handshakes of one listener on one worker.
#[derive(Debug)]
pub struct Handshakes {
    places: Semaphore,
    /// Those that hold a place, the oldest first.
    running: RefCell<BTreeMap<u64, Running>>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Running {
    since: Instant,
    waker: Waker,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Handshake<'h> {
    all: &'h Handshakes,
    number: u64,
    _place: SemaphorePermit<'h>,
}

impl Handshakes {
    pub fn new(limit: usize) -> Self {
        Handshakes { places: Semaphore::new(limit), running: RefCell::default(), next: Cell::new(0) }
    }

    /// Waits for a place; first come, first served.
    pub async fn begin(&self) -> Handshake<'_> {
        let place = match self.places.try_acquire() {
            Ok(place) => place,
            Err(_) => self.wait().await,
        };
        let number = self.next.replace(self.next.get() + 1);
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        self.running.borrow_mut().insert(number, Running { since: Instant::now(), waker });
        Handshake { all: self, number, _place: place }
    }

    async fn wait(&self) -> SemaphorePermit<'_> {
        let mut place = pin!(self.places.acquire());
        loop {
            let oldest = self.running.borrow().first_key_value().map(|(_, oldest)| oldest.since);
            let patience = oldest.unwrap_or_else(Instant::now) + PATIENCE;
            tokio::select! {
                biased;
                place = &mut place => return place.expect("the semaphore is never closed"),
                () = sleep_until(patience) => {
                    self.end_oldest();
                    // Its place comes back before anybody ends the next.
                    yield_now().await;
                }
            }
        }
    }

    /// Ends the oldest if it has had its time; whoever waits ends one, and so gets its place.
    fn end_oldest(&self) {
        let mut running = self.running.borrow_mut();
        if let Some(oldest) = running.first_entry()
            && oldest.get().since.elapsed() >= PATIENCE
        {
            oldest.remove().waker.wake();
        }
    }
}

impl Handshake<'_> {
    /// Whether the place is needed for somebody else; the task that began is woken when it is.
    pub fn has_ended(&self) -> bool {
        !self.all.running.borrow().contains_key(&self.number)
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.all.running.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::{
        task::{JoinHandle, LocalSet, spawn_local},
        time::sleep,
    };

    use super::*;

    /// Runs for so long, unless it is ended: when it began and how it went.
    fn come(all: &Rc<Handshakes>, lasts: Duration) -> JoinHandle<(Duration, bool)> {
        let (all, came) = (all.clone(), Instant::now());
        spawn_local(async move {
            let handshake = all.begin().await;
            let waited = came.elapsed();
            let mut done = pin!(sleep(lasts));
            let completed = poll_fn(|cx| match done.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(true),
                Poll::Pending if handshake.has_ended() => Poll::Ready(false),
                Poll::Pending => Poll::Pending,
            });
            (waited, completed.await)
        })
    }

    const STUCK: Duration = Duration::from_mins(1);
    const QUICK: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn nobody_is_ended_while_nobody_waits() {
        LocalSet::new()
            .run_until(async {
                let all = Rc::new(Handshakes::new(2));
                let both = [come(&all, STUCK), come(&all, STUCK)];
                for handshake in both {
                    assert_eq!(handshake.await.unwrap(), (Duration::ZERO, true));
                }
                assert!(all.running.borrow().is_empty());
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_place_of_one_that_is_done_first() {
        LocalSet::new()
            .run_until(async {
                let all = Rc::new(Handshakes::new(2));
                let (stuck, quick) = (come(&all, STUCK), come(&all, QUICK));
                let waiting = come(&all, QUICK);
                assert_eq!(quick.await.unwrap(), (Duration::ZERO, true));
                assert_eq!(waiting.await.unwrap(), (QUICK, true));
                assert_eq!(stuck.await.unwrap(), (Duration::ZERO, true));
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_ends_one_that_is_stuck_and_no_more_than_that() {
        LocalSet::new()
            .run_until(async {
                let all = Rc::new(Handshakes::new(5));
                let stuck: Vec<_> = (0..5).map(|_| come(&all, STUCK)).collect();
                yield_now().await;
                let waiting: Vec<_> = (0..2).map(|_| come(&all, QUICK)).collect();
                for each in waiting {
                    let (waited, completed) = each.await.unwrap();
                    // A timer rings at the end of its millisecond.
                    assert!(completed && waited.abs_diff(PATIENCE) < Duration::from_millis(5), "{waited:?}");
                }
                let mut completed = Vec::new();
                for each in stuck {
                    completed.push(each.await.unwrap().1);
                }
                assert_eq!(completed, [false, false, true, true, true], "the oldest first");
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_that_is_longer_than_there_are_places_moves_on_for_as_long_as_it_is_stuck() {
        LocalSet::new()
            .run_until(async {
                let all = Rc::new(Handshakes::new(1));
                let stuck: Vec<_> = (0..4).map(|_| come(&all, STUCK)).collect();
                for (place, each) in (0..4).zip(stuck) {
                    let (waited, completed) = each.await.unwrap();
                    assert!(waited.abs_diff(place * PATIENCE) < Duration::from_millis(20), "{waited:?}");
                    assert_eq!(completed, place == 3, "nobody waits for the last one's place");
                }
            })
            .await;
    }
}
