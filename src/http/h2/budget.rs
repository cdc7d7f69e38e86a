//! How much does a connection hold for all its streams together?
//!
//! The h2 crate bounds what waits of each answer, and a client may have a hundred of them that it does
//! not read: what all of them may have waiting is taken from a budget, and comes back when everything
//! was written. A head of 32 KiB costs a client a hundred bytes where it names the same field again and
//! again (RFC 7541 §2.3): beyond a number of bytes, heads stay in the h2 crate as it has them, a
//! reference for each field, until some are answered.

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

    /// Whether a stream waits for a part of it.
    pub(super) fn is_wanted(&self) -> bool {
        !self.0.waiting.borrow().is_empty()
    }

    /// Nothing waits any more.
    pub(super) fn refill(&self) {
        self.0.left.set(self.0.most);
        for waker in self.0.waiting.take() {
            waker.wake();
        }
    }
}

/// The memory of the request heads of a connection that are not answered yet.
#[derive(Debug)]
pub(super) struct Heads(Rc<Held>);

#[derive(Debug)]
struct Held {
    most: usize,
    bytes: Cell<usize>,
    waiting: RefCell<Option<Waker>>,
}

/// The part of one head; comes back when it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    bytes: usize,
    held: Rc<Held>,
}

impl Heads {
    pub(super) fn new(most: usize) -> Self {
        Heads(Rc::new(Held { most, bytes: Cell::default(), waiting: RefCell::default() }))
    }

    /// Ready when another head may be taken; the last one may go beyond.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.bytes.get() < self.0.most {
            return Poll::Ready(());
        }
        self.0.waiting.replace(Some(cx.waker().clone()));
        Poll::Pending
    }

    pub(super) fn claim(&self, bytes: usize) -> Claim {
        self.0.bytes.set(self.0.bytes.get() + bytes);
        Claim { bytes, held: self.0.clone() }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.held.bytes.set(self.held.bytes.get() - self.bytes);
        if let Some(waker) = self.held.waiting.take() {
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
        assert!(budget.is_wanted());
        budget.refill();
        assert!(!budget.is_wanted());
        assert_eq!(stream.poll_take(cx, 60), Poll::Ready(60));
    }

    #[test]
    fn takes_heads_until_there_is_no_room() {
        let heads = Heads::new(100);
        let cx = &mut Context::from_waker(noop_waker_ref());
        let first = heads.claim(99);
        assert!(heads.poll_room(cx).is_ready());
        let _second = heads.claim(1);
        assert!(heads.poll_room(cx).is_pending());
        drop(first);
        assert!(heads.poll_room(cx).is_ready());
    }
}
