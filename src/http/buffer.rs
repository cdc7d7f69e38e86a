//! Where bytes from a socket wait: read buffers from a free list of the worker.
//!
//! A connection holds a block only while bytes are in it: an idle one has given it back. Blocks
//! come in two sizes, one for heads and small bodies and one for bulk.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Heads and small bodies.
pub const SMALL_BLOCK: usize = 16 * 1024;
/// Bulk: fewer, larger reads (a download costs 15–25 % less than with small blocks).
pub const LARGE_BLOCK: usize = 128 * 1024;
/// Four full TLS records with what sealing adds: fewer, larger writes.
pub const SEALED_BLOCK: usize = FRONT + 4 * (16 * 1024 + 128);
/// Left free at the front of large memory. The TLS library copies a payload behind the header of a record,
/// and the record to where it is sent from; all of that memory begins with a page. Where a copy moves
/// bytes by zero to some dozens modulo a page, AMD's Zen processors take several times as long for it.
const FRONT: usize = 2560;
/// Idle blocks kept for each size and worker.
const KEPT_BLOCKS: usize = 64;
/// Large blocks in use on a worker, and as many for sealed records: 6 MiB in all. Whoever comes then
/// does with small ones, so that peers that take nothing can't hold more.
const LARGE_BLOCKS: usize = 32;

#[derive(Default)]
struct FreeList {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    sealed: Vec<Box<[u8]>>,
    large_used: usize,
    sealed_used: usize,
    write: Vec<Vec<u8>>,
}

thread_local! {
    static FREE: RefCell<FreeList> = RefCell::default();
}

/// A window of unread bytes in a block that is borrowed from the worker's free list.
#[derive(Debug, Default)]
pub struct ReadBuffer {
    block: Box<[u8]>,
    start: usize,
    end: usize,
    /// The last read filled the block, or a small one would not have done: the next empty moment
    /// takes a large one.
    bulk: bool,
}

impl ReadBuffer {
    /// The unread bytes.
    pub fn data(&self) -> &[u8] {
        &self.block[self.start..self.end]
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Marks `count` bytes of `data` as read.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            self.start = front(self.block.len());
            self.end = self.start;
        }
    }

    /// Reads once; `Ready(0)` is the end of the stream. Holds no block while it is empty and the
    /// stream has nothing.
    pub fn poll_read<R: AsyncRead + Unpin>(
        &mut self,
        io: &mut R,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        let mut target = ReadBuf::new(&mut self.block[self.end..]);
        let result = Pin::new(io).poll_read(cx, &mut target);
        let (count, full) = (target.filled().len(), target.remaining() == 0);
        if result.is_pending() {
            self.release_if_empty();
        }
        ready!(result)?;
        self.bulk = full || count >= SMALL_BLOCK;
        self.end += count;
        Poll::Ready(Ok(count))
    }

    /// The unread bytes, to work on in place.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.block[self.start..self.end]
    }

    /// At least `wanted` bytes of room behind the unread ones; `extend` says how many were used.
    pub fn room(&mut self, wanted: usize) -> &mut [u8] {
        if self.block.len() - self.end < wanted {
            let held = self.end - self.start;
            let sizes = [SMALL_BLOCK, SEALED_BLOCK, LARGE_BLOCK];
            let size = sizes.into_iter().find(|size| *size - front(*size) >= held + wanted);
            self.move_to(size.unwrap_or(held + wanted));
        }
        &mut self.block[self.end..]
    }

    /// Counts `count` bytes of `room` as unread.
    pub fn extend(&mut self, count: usize) {
        self.end += count;
        debug_assert!(self.end <= self.block.len());
    }

    pub fn append(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.extend(bytes.len());
    }

    /// Gives the block back to the worker where no byte is in it.
    pub fn release_if_empty(&mut self) {
        if self.is_empty() && !self.block.is_empty() {
            give(std::mem::take(&mut self.block));
            self.start = 0;
            self.end = 0;
        }
    }

    /// Makes sure that at least one byte can be read: takes a block, moves the bytes to its front,
    /// or doubles it. The caller bounds how much it lets in.
    fn make_room(&mut self) {
        if self.is_empty() {
            let wanted = if self.bulk && self.may_be_large() { LARGE_BLOCK } else { SMALL_BLOCK };
            if self.block.len() != wanted {
                give(std::mem::replace(&mut self.block, take(wanted)));
            }
            self.start = front(wanted);
            self.end = self.start;
        } else if self.end == self.block.len() {
            let front = front(self.block.len());
            if self.start == front {
                self.move_to(self.block.len() * 2);
            } else if self.bulk && self.block.len() < LARGE_BLOCK && self.may_be_large() {
                self.move_to(LARGE_BLOCK);
            } else {
                self.block.copy_within(self.start..self.end, front);
                self.end -= self.start - front;
                self.start = front;
            }
        }
    }

    /// Whether a large block is there to be had, or had already.
    fn may_be_large(&self) -> bool {
        self.block.len() == LARGE_BLOCK || FREE.with_borrow(|free| free.large_used < LARGE_BLOCKS)
    }

    /// Takes another block that has room for the unread bytes.
    fn move_to(&mut self, size: usize) {
        let mut block = take(size);
        let (start, end) = (front(size), front(size) + self.end - self.start);
        block[start..end].copy_from_slice(self.data());
        give(std::mem::replace(&mut self.block, block));
        (self.start, self.end) = (start, end);
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.block));
    }
}

/// Bytes on their way out; holds memory only while there are some.
#[derive(Debug, Default)]
pub struct WriteBuffer {
    bytes: Vec<u8>,
    /// Bytes at the front that are no data: see `FRONT`.
    front: usize,
    /// Bytes that are written, or at the front.
    written: usize,
}

impl WriteBuffer {
    /// The bytes that are not written yet.
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    pub fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// To append to; never to shorten.
    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = FREE.with_borrow_mut(|free| free.write.pop()).unwrap_or_default();
        }
        if self.written > self.front {
            // A peer that never takes everything must not make it grow for ever.
            self.bytes.drain(self.front..self.written);
            self.written = self.front;
        }
        &mut self.bytes
    }

    /// Makes room for so many bytes more, in few steps: growing by each piece would copy each time, and
    /// leave the allocator with memory of each size. Room that nothing was written to costs none.
    pub fn reserve(&mut self, more: usize) {
        let bytes = self.bytes_mut();
        if bytes.capacity() - bytes.len() >= more {
            return;
        }
        let needed = self.len() + more;
        if needed <= SMALL_BLOCK {
            return self.bytes.reserve_exact(SMALL_BLOCK - self.bytes.len());
        }
        let step = if needed <= 4 * SMALL_BLOCK { 4 * SMALL_BLOCK } else { 16 * SMALL_BLOCK };
        let mut larger = WriteBuffer {
            bytes: Vec::with_capacity(FRONT + needed.next_multiple_of(step)),
            front: FRONT,
            written: FRONT,
        };
        larger.bytes.resize(FRONT, 0);
        larger.bytes.extend_from_slice(self.data());
        *self = larger;
    }

    /// Marks `count` bytes of `data` as written.
    pub fn advance(&mut self, count: usize) {
        self.written += count;
        debug_assert!(self.written <= self.bytes.len());
        if self.written == self.bytes.len() {
            self.bytes.clear();
            (self.front, self.written) = (0, 0);
            // At once: with thousands of requests under way the next one finds memory in the cache.
            self.release_if_empty();
        }
    }

    /// Lets go of the memory that a long head took, once that is written: its exchange may last.
    pub fn release_if_large(&mut self) {
        if self.bytes.capacity() > SMALL_BLOCK {
            self.release_if_empty();
        }
    }

    /// Gives the memory back to the worker where no byte is in it.
    pub fn release_if_empty(&mut self) {
        if !self.is_empty() || self.bytes.capacity() == 0 {
            return;
        }
        let bytes = std::mem::take(&mut self.bytes);
        // WHY: see `give`.
        let _ = FREE.try_with(|free| {
            let list = &mut free.borrow_mut().write;
            if list.len() < KEPT_BLOCKS && bytes.capacity() <= SMALL_BLOCK {
                list.push(bytes);
            }
        });
    }
}

impl Drop for WriteBuffer {
    fn drop(&mut self) {
        self.advance(self.len());
        self.release_if_empty();
    }
}

/// Where the bytes of a block of this size begin.
fn front(size: usize) -> usize {
    if matches!(size, SEALED_BLOCK | LARGE_BLOCK) { FRONT } else { 0 }
}

/// Whether another block for sealed records may be taken.
pub fn may_seal_at_large() -> bool {
    FREE.with_borrow(|free| free.sealed_used < LARGE_BLOCKS)
}

fn take(size: usize) -> Box<[u8]> {
    let kept = FREE.with_borrow_mut(|free| match size {
        SMALL_BLOCK => free.small.pop(),
        SEALED_BLOCK => {
            free.sealed_used += 1;
            free.sealed.pop()
        }
        LARGE_BLOCK => {
            free.large_used += 1;
            free.large.pop()
        }
        _ => None,
    });
    kept.unwrap_or_else(|| vec![0; size].into_boxed_slice())
}

fn give(block: Box<[u8]>) {
    if block.is_empty() {
        return;
    }
    // WHY: a drop during thread exit may find the list gone; then the block is simply freed.
    let _ = FREE.try_with(|free| {
        let free = &mut *free.borrow_mut();
        let list = match block.len() {
            SMALL_BLOCK => &mut free.small,
            SEALED_BLOCK => {
                free.sealed_used = free.sealed_used.saturating_sub(1);
                &mut free.sealed
            }
            LARGE_BLOCK => {
                free.large_used = free.large_used.saturating_sub(1);
                &mut free.large
            }
            _ => return,
        };
        if list.len() < KEPT_BLOCKS {
            list.push(block);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn holds_what_is_not_written_wherever_it_has_to_move() {
        let mut buffer = WriteBuffer::default();
        let mut expected = Vec::new();
        for (more, written) in
            [(10, 3), (SMALL_BLOCK, 0), (100, 5000), (3 * SMALL_BLOCK, 7), (LARGE_BLOCK, 1)]
        {
            let piece: Vec<u8> = (0..=250).cycle().take(more).collect();
            buffer.reserve(more);
            let room = buffer.bytes.capacity();
            buffer.bytes_mut().extend_from_slice(&piece);
            assert_eq!(buffer.bytes.capacity(), room);
            expected.extend_from_slice(&piece);
            buffer.advance(written);
            expected.drain(..written);
            assert_eq!((buffer.data(), buffer.len()), (&expected[..], expected.len()));
        }
        buffer.advance(expected.len());
        assert!(buffer.is_empty() && buffer.bytes.capacity() == 0);
    }

    async fn read(buffer: &mut ReadBuffer, mut from: &[u8]) -> usize {
        poll_fn(|cx| buffer.poll_read(&mut from, cx)).await.unwrap()
    }

    #[tokio::test]
    async fn holds_no_block_while_idle() {
        let mut buffer = ReadBuffer::default();
        let (mut ours, _theirs) = tokio::io::duplex(64);
        let pending = poll_fn(|cx| Poll::Ready(buffer.poll_read(&mut ours, cx).is_pending())).await;
        assert!(pending);
        assert_eq!(buffer.block.len(), 0);
    }

    #[tokio::test]
    async fn grows_when_full_and_keeps_what_was_read() {
        let mut buffer = ReadBuffer::default();
        let text = vec![b'x'; SMALL_BLOCK + 100];
        assert_eq!(read(&mut buffer, &text).await, SMALL_BLOCK);
        assert_eq!(read(&mut buffer, &text[SMALL_BLOCK..]).await, 100);
        assert_eq!(buffer.data(), text);
    }

    #[tokio::test]
    async fn takes_the_rest_along_to_a_large_block() {
        let mut buffer = ReadBuffer::default();
        read(&mut buffer, &vec![b'x'; SMALL_BLOCK]).await;
        buffer.consume(SMALL_BLOCK - 10);
        read(&mut buffer, b"y").await;
        assert_eq!(buffer.data(), b"xxxxxxxxxxy");
        assert_eq!(buffer.block.len(), LARGE_BLOCK);
    }

    #[tokio::test]
    async fn moves_the_rest_to_the_front_before_it_grows() {
        let mut buffer = ReadBuffer::default();
        buffer.append(&vec![b'x'; LARGE_BLOCK - FRONT]);
        buffer.consume(LARGE_BLOCK - FRONT - 10);
        read(&mut buffer, b"y").await;
        assert_eq!(buffer.data(), b"xxxxxxxxxxy");
        assert_eq!(buffer.block.len(), LARGE_BLOCK);
    }

    #[test]
    fn makes_room_without_losing_a_byte() {
        let mut buffer = ReadBuffer::default();
        let mut expected = Vec::new();
        for size in [1, SMALL_BLOCK, SEALED_BLOCK, LARGE_BLOCK, 7] {
            let piece: Vec<u8> = (0..=250).cycle().take(size).collect();
            buffer.append(&piece);
            expected.extend_from_slice(&piece);
            assert_eq!(buffer.data(), expected);
        }
    }

    #[tokio::test]
    async fn takes_a_large_block_only_while_reads_fill_it() {
        let mut buffer = ReadBuffer::default();
        read(&mut buffer, &vec![b'x'; SMALL_BLOCK]).await;
        buffer.consume(SMALL_BLOCK);
        read(&mut buffer, b"small").await;
        assert_eq!(buffer.block.len(), LARGE_BLOCK);
        buffer.consume(5);
        read(&mut buffer, b"small").await;
        assert_eq!(buffer.block.len(), SMALL_BLOCK);
    }
}
