//! How much of its answers does a connection hold for a client that does not read?
//!
//! The h2 crate bounds that for each stream, and a client may have a hundred of them. What all of them
//! may have waiting together is taken from here, and comes back when everything was written.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Shared by a connection and its streams.
#[derive(Clone, Debug)]
pub(super) struct Budget(Rc<State>);

#[derive(Debug)]
struct State {
    most: usize,
    left: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

impl Budget {
    pub(super) fn new(most: usize) -> Self {
        Budget(Rc::new(State { most, left: Cell::new(most), waiting: RefCell::default() }))
    }

    /// Takes up to `wanted` bytes, at least one; waits while there is none.
    pub(super) fn poll_take(&self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        let left = self.0.left.get();
        if left == 0 {
            self.0.waiting.borrow_mut().push(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = wanted.min(left);
        self.0.left.set(left - taken);
        Poll::Ready(taken)
    }

    /// Nothing waits any more.
    pub(super) fn refill(&self) {
        self.0.left.set(self.0.most);
        for waker in self.0.waiting.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;

    use super::*;

    #[test]
    fn gives_what_is_left_and_then_waits() {
        let budget = Budget::new(100);
        let stream = budget.clone();
        let cx = &mut Context::from_waker(noop_waker_ref());
        assert_eq!(stream.poll_take(cx, 60), Poll::Ready(60));
        assert_eq!(stream.poll_take(cx, 60), Poll::Ready(40));
        assert_eq!(stream.poll_take(cx, 60), Poll::Pending);
        budget.refill();
        assert_eq!(stream.poll_take(cx, 60), Poll::Ready(60));
    }
}
