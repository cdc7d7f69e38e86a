//! Whose request is begun next, where more have come than can be served at once.
//!
//! Left alone, a worker begins every request that has come before it looks at the first answer of a backend. With
//! thousands of busy clients nearly all then have a request at a backend, each over a connection of its own, and
//! when its answer is read nothing of either connection is in the processor's caches any more. So a batch of
//! requests is begun in each pass over what is ready, answers come first, and the others wait in order; over HTTP/1
//! they wait unread.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{task::yield_now, time::Instant};

/// Requests that a worker begins in one pass: few enough that what they touch stays in the caches.
const BATCH: usize = 32;
/// One more for so much time that the last pass took. Where downloads or handshakes fill it, requests get their share
/// all the same; more than a request costs, or else passes that are long because of requests would grow longer.
const PACE: Duration = Duration::from_micros(200);

/// The turns of one worker.
#[derive(Debug, Default)]
pub struct Turns {
    /// The number that is drawn next.
    next: Cell<usize>,
    /// All numbers below may begin; never goes back.
    called: Cell<usize>,
    /// Who drew the numbers from `called` on, and when.
    waiting: RefCell<VecDeque<(Waker, Instant)>>,
    usher: RefCell<Option<Waker>>,
}

/// A number that was drawn, or none yet.
#[derive(Debug, Default)]
pub struct Ticket(Option<usize>);

impl Turns {
    /// Ready when it is the turn of whoever holds this ticket, for one request. A ticket that is given up
    /// uses a turn and keeps nobody waiting.
    pub fn poll(&self, cx: &mut Context<'_>, ticket: &mut Ticket) -> Poll<()> {
        let number = *ticket.0.get_or_insert_with(|| self.draw(cx));
        if number < self.called.get() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits for a turn.
    pub async fn wait(&self) {
        let mut ticket = Ticket::default();
        poll_fn(|cx| self.poll(cx, &mut ticket)).await;
    }

    fn draw(&self, cx: &mut Context<'_>) -> usize {
        let number = self.next.replace(self.next.get() + 1);
        if number >= self.called.get() {
            self.waiting.borrow_mut().push_back((cx.waker().clone(), Instant::now()));
            self.usher.take().inspect(Waker::wake_by_ref);
        }
        number
    }

    /// How long the first in the row has waited.
    pub fn delay(&self) -> Duration {
        self.waiting.borrow().front().map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// Lets a batch in with each pass for as long as somebody waits. Never ends; without it nobody's turn comes.
    pub async fn usher(&self) {
        self.call(BATCH);
        loop {
            poll_fn(|cx| self.poll_waiting(cx)).await;
            let began = Instant::now();
            // Comes back when the driver has looked for news, and behind all that is ready by then.
            yield_now().await;
            self.call(batch(began.elapsed()));
        }
    }

    fn poll_waiting(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiting.borrow().is_empty() {
            self.usher.replace(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn call(&self, count: usize) {
        self.called.set(self.called.get().saturating_add(count));
        let mut waiting = self.waiting.borrow_mut();
        let count = waiting.len().min(count);
        waiting.drain(..count).for_each(|(waker, _)| waker.wake());
    }
}

/// How many may begin after a pass that took so long.
fn batch(pass: Duration) -> usize {
    let more = pass.as_micros() / PACE.as_micros();
    BATCH.saturating_add(usize::try_from(more).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, rc::Rc};

    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    /// The numbers of those that had their turn, in the order in which they had it.
    #[derive(Clone, Default)]
    struct Begun(Rc<RefCell<Vec<usize>>>);

    impl Begun {
        fn count(&self) -> usize {
            self.0.borrow().len()
        }
    }

    fn come(turns: &Rc<Turns>, begun: &Begun, number: usize) -> tokio::task::JoinHandle<()> {
        let (turns, begun) = (turns.clone(), begun.clone());
        spawn_local(async move {
            turns.wait().await;
            begun.0.borrow_mut().push(number);
        })
    }

    fn open(turns: &Rc<Turns>) {
        let turns = turns.clone();
        spawn_local(async move { turns.usher().await });
    }

    #[tokio::test]
    async fn a_batch_begins_at_once_and_the_others_follow_in_order() {
        LocalSet::new()
            .run_until(async {
                let (turns, begun) = (Rc::new(Turns::default()), Begun::default());
                open(&turns);
                yield_now().await;
                for number in 0..3 * BATCH {
                    come(&turns, &begun, number);
                }
                let mut passes = Vec::new();
                while begun.count() < 3 * BATCH {
                    yield_now().await;
                    passes.push(begun.count());
                }
                assert_eq!(passes[0], BATCH);
                assert!(passes.contains(&(2 * BATCH)), "{passes:?}");
                assert!(begun.0.borrow().is_sorted());
            })
            .await;
    }

    #[test]
    fn a_pass_that_took_long_for_another_reason_lets_more_in() {
        assert_eq!(
            [0, 199, 200, 30_000].map(|micros| batch(Duration::from_micros(micros))),
            [32, 32, 33, 182]
        );
    }

    #[tokio::test]
    async fn who_gives_up_keeps_nobody_waiting() {
        LocalSet::new()
            .run_until(async {
                let (turns, begun) = (Rc::new(Turns::default()), Begun::default());
                let leaving: Vec<_> = (0..BATCH).map(|number| come(&turns, &begun, number)).collect();
                let staying: Vec<_> = (0..BATCH).map(|number| come(&turns, &begun, number)).collect();
                yield_now().await;
                assert_eq!(begun.count(), 0, "nobody has opened yet");
                leaving.iter().for_each(tokio::task::JoinHandle::abort);
                open(&turns);
                for staying in staying {
                    staying.await.unwrap();
                }
                assert_eq!(*begun.0.borrow(), (0..BATCH).collect::<Vec<_>>());
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_delay_is_that_of_the_first_in_the_row() {
        let (turns, cx) = (Turns::default(), &mut Context::from_waker(Waker::noop()));
        assert_eq!(turns.delay(), Duration::ZERO);
        let mut tickets = [(); 2].map(|()| Ticket::default());
        for ticket in &mut tickets {
            assert!(turns.poll(cx, ticket).is_pending());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(turns.delay(), Duration::from_secs(2));
        let mut usher = pin!(turns.usher());
        assert!(usher.as_mut().poll(cx).is_pending());
        assert_eq!(turns.delay(), Duration::ZERO);
    }
}
