//! The streams of a connection, by their id and by their place.
//!
//! A stream has a place for as long as somebody serves it, and is open under its id until both sides
//! have ended or one has reset it (RFC 9113 §5.1). Of those that are gone only the ids that we reset
//! last are remembered: the client may have sent more before it knew. Until it knows, a reset stream
//! counts among those that it may open, so it can't be more than these.

use std::{collections::VecDeque, task::Waker};

use super::flow::{ReceiveWindow, SendWindow};
use crate::http::fields::Fields;

/// Places of a connection without streams.
const KEPT: usize = 16;

/// Received data that lies together; less than that is not left on its own, so that many small
/// frames take no more memory than few large ones.
const CHUNK: usize = 16 * 1024;

/// Why nothing more comes on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// The client has reset it, or the connection is over.
    Closed,
    /// The client broke a rule on it.
    Malformed,
    TrailersTooLarge,
    /// We have given it up.
    Aborted,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub id: u32,
    pub gone: Option<Gone>,
    /// What may be received, and what may be sent.
    pub receive: ReceiveWindow,
    pub send: SendWindow,
    body: VecDeque<Vec<u8>>,
    /// Bytes in `body`.
    pub held: usize,
    /// Received, and not given back to the window of the connection.
    pub unreleased: usize,
    /// What the announced length has room for.
    pub left: Option<u64>,
    pub trailers: Option<Box<Fields>>,
    pub received_all: bool,
    /// Its answer has begun.
    pub answered: bool,
    pub sent_all: bool,
    /// What of its frames waits to be written since then.
    pub queued: usize,
    pub queued_since: u64,
    /// Memory of its head, until the answer begins.
    pub head_bytes: usize,
    /// Memory of its trailers, to its end.
    pub trailer_bytes: usize,
    pub waker: Option<Waker>,
}

impl Stream {
    pub(super) fn new(id: u32, receive: ReceiveWindow, send: SendWindow) -> Self {
        Stream {
            id,
            gone: None,
            receive,
            send,
            body: VecDeque::new(),
            held: 0,
            unreleased: 0,
            left: None,
            trailers: None,
            received_all: false,
            answered: false,
            sent_all: false,
            queued: 0,
            queued_since: 0,
            head_bytes: 0,
            trailer_bytes: 0,
            waker: None,
        }
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Has whoever polls it woken when something changes.
    pub(super) fn wait(&mut self, waker: &Waker) {
        if !self.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    pub(super) fn push_body(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.held += data.len();
        self.unreleased += data.len();
        match self.body.back_mut() {
            Some(last) if last.len() + data.len() <= CHUNK => last.extend_from_slice(data),
            _ => self.body.push_back(data.to_vec()),
        }
    }

    pub(super) fn pop_body(&mut self) -> Option<Vec<u8>> {
        let chunk = self.body.pop_front()?;
        self.held -= chunk.len();
        Some(chunk)
    }

    pub(super) fn drop_body(&mut self) {
        self.body = VecDeque::new();
        self.held = 0;
    }
}

#[derive(Debug)]
pub(super) struct Streams {
    /// Ids of resets that are remembered.
    remembered: usize,
    places: Vec<Option<Stream>>,
    free: Vec<usize>,
    /// Ids in order, with their places.
    open: Vec<(u32, usize)>,
    /// The highest id that the client has used.
    highest: u32,
    /// Ids that we have reset, the oldest first.
    reset: VecDeque<u32>,
    /// Places of those that wait for something that all of them share, the longest waiting first.
    waiting: VecDeque<usize>,
}

impl Streams {
    /// For a client that may have this many open.
    pub(super) fn new(most: u32) -> Self {
        Streams {
            // As many again may be refused before the client knows the limit.
            remembered: 2 * most as usize,
            places: Vec::new(),
            free: Vec::new(),
            open: Vec::new(),
            highest: 0,
            reset: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn highest(&self) -> u32 {
        self.highest
    }

    /// Whether the client has never opened it (§5.1.1); its own have odd ids.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        id > self.highest || id.is_multiple_of(2)
    }

    /// Takes note that the client has used an id.
    pub(super) fn use_id(&mut self, id: u32) {
        self.highest = id;
    }

    /// Streams that are open.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// Streams that somebody serves, open or not.
    pub(super) fn served(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Gives the stream a place; its id must be the highest.
    pub(super) fn insert(&mut self, stream: Stream) -> usize {
        let id = stream.id;
        let place = if let Some(place) = self.free.pop() {
            self.places[place] = Some(stream);
            place
        } else {
            self.places.push(Some(stream));
            self.places.len() - 1
        };
        self.open.push((id, place));
        place
    }

    /// The place of an open stream.
    pub(super) fn find(&self, id: u32) -> Option<usize> {
        let index = self.open.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.open[index].1)
    }

    pub(super) fn at(&mut self, place: usize) -> &mut Stream {
        self.places[place].as_mut().expect("a place is kept for as long as somebody knows it")
    }

    pub(super) fn get(&self, place: usize) -> &Stream {
        self.places[place].as_ref().expect("a place is kept for as long as somebody knows it")
    }

    /// All that have a place.
    pub(super) fn each(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.places.iter_mut().flatten()
    }

    /// Closes it under its id; whether it was open.
    pub(super) fn close(&mut self, id: u32) -> bool {
        let found = self.open.binary_search_by_key(&id, |(id, _)| *id);
        found.is_ok_and(|index| {
            self.open.remove(index);
            true
        })
    }

    pub(super) fn remove(&mut self, place: usize) -> Option<Stream> {
        let stream = self.places[place].take()?;
        self.close(stream.id);
        self.stop_waiting(place);
        self.free.push(place);
        if self.served() == 0 && self.places.len() > KEPT {
            // An idle connection keeps no more than it needs for a few.
            (self.places, self.free, self.open) = Default::default();
            self.waiting = VecDeque::new();
        }
        Some(stream)
    }

    pub(super) fn remember_reset(&mut self, id: u32) {
        if self.reset.len() == self.remembered {
            self.reset.pop_front();
        }
        self.reset.push_back(id);
    }

    pub(super) fn was_reset(&self, id: u32) -> bool {
        self.reset.contains(&id)
    }

    /// Has it woken with the others that wait for what all share; it keeps its turn until it gets
    /// some, or the first that is woken would always take all.
    pub(super) fn wait_in_turn(&mut self, place: usize) {
        if !self.waiting.contains(&place) {
            self.waiting.push_back(place);
        }
    }

    pub(super) fn stop_waiting(&mut self, place: usize) {
        if let Some(index) = self.waiting.iter().position(|other| *other == place) {
            self.waiting.remove(index);
        }
    }

    #[cfg(test)]
    pub(super) fn turns(&self) -> Vec<usize> {
        self.waiting.iter().copied().collect()
    }

    /// Wakes those that wait, in turn.
    pub(super) fn wake_waiting(&mut self) {
        for place in &self.waiting {
            if let Some(stream) = &mut self.places[*place] {
                stream.wake();
            }
        }
    }
}
