//! The dynamic table (RFC 7541 §2.3.2, §4): the fields that came last, newest first.
//!
//! Names and values lie in one run of bytes, each field behind the one before it; what is evicted
//! stays in front until the run is full, and is then closed up. That moves at most as many bytes as
//! were appended since the last time, and takes twice the table's size at most. A table that nothing
//! was put into has no memory.

use std::collections::VecDeque;

/// What a field counts beside its bytes (RFC 7541 §4.1).
const OVERHEAD: usize = 32;

#[derive(Debug)]
pub struct Table {
    bytes: Vec<u8>,
    /// Newest first.
    entries: VecDeque<Entry>,
    /// As RFC 7541 counts it.
    size: usize,
    max_size: usize,
    /// Fields that were ever put in; starts anew after 2^32.
    inserted: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    name_len: u32,
    value_len: u32,
}

impl Table {
    pub fn new(max_size: usize) -> Table {
        Table { bytes: Vec::new(), entries: VecDeque::new(), size: 0, max_size, inserted: 0 }
    }

    pub fn max_size(&self) -> usize {
        self.max_size
    }

    /// Evicts what a smaller table has no room for.
    pub fn set_max_size(&mut self, max_size: usize) {
        self.max_size = max_size;
        self.evict();
        if self.bytes.capacity() > 2 * max_size {
            self.close_up();
            self.bytes.shrink_to(2 * max_size);
            self.entries.shrink_to(max_size / OVERHEAD);
        }
    }

    /// Name and value of a field; the newest has index 0.
    pub fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        self.entries.get(index).map(|entry| entry.of(&self.bytes))
    }

    /// Puts a field in; one that is larger than the table empties it (RFC 7541 §4.4).
    pub fn insert(&mut self, name: &[u8], value: &[u8]) {
        if self.begin_insert(name.len(), value.len()) {
            self.bytes.extend_from_slice(name);
            self.end_insert(name.len(), value);
        }
    }

    /// Puts a field in that has the name of another, which may be evicted for it.
    pub fn insert_named_as(&mut self, index: usize, value: &[u8]) {
        let Some(entry) = self.entries.get(index).copied() else { return };
        let name_len = entry.name_len as usize;
        if self.begin_insert(name_len, value.len()) {
            // Closing up may have moved it.
            let start = self.entries[index].start as usize;
            self.bytes.extend_from_within(start..start + name_len);
            self.end_insert(name_len, value);
        }
    }

    /// What a field takes of a table (RFC 7541 §4.1).
    pub fn size_of(name: &[u8], value: &[u8]) -> usize {
        name.len() + value.len() + OVERHEAD
    }

    /// The number of the field that was put in last.
    pub fn newest(&self) -> u32 {
        self.inserted
    }

    /// The index of the field with this number, unless it was evicted.
    pub fn index_of(&self, number: u32) -> Option<usize> {
        let index = self.inserted.wrapping_sub(number) as usize;
        (index < self.entries.len()).then_some(index)
    }

    /// Bytes of memory.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// Finds room in memory for a field that the table can hold.
    fn begin_insert(&mut self, name_len: usize, value_len: usize) -> bool {
        let bytes = name_len + value_len;
        if bytes + OVERHEAD > self.max_size {
            self.entries.clear();
            self.bytes.clear();
            self.size = 0;
            return false;
        }
        if self.bytes.len() + bytes > self.bytes.capacity() {
            self.close_up();
            // As much again, so that closing up is rare; the table's own size at most.
            let wanted = (2 * (self.bytes.len() + bytes)).min(2 * self.max_size);
            self.bytes.reserve_exact(wanted.saturating_sub(self.bytes.len()));
        }
        true
    }

    /// The name is there already.
    fn end_insert(&mut self, name_len: usize, value: &[u8]) {
        let start = self.bytes.len() - name_len;
        self.bytes.extend_from_slice(value);
        self.size += name_len + value.len() + OVERHEAD;
        let entry =
            Entry { start: offset(start), name_len: offset(name_len), value_len: offset(value.len()) };
        self.entries.push_front(entry);
        self.inserted = self.inserted.wrapping_add(1);
        self.evict();
    }

    fn evict(&mut self) {
        while self.size > self.max_size
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.name_len as usize + oldest.value_len as usize + OVERHEAD;
        }
    }

    /// Moves the fields to the front of the memory.
    fn close_up(&mut self) {
        let gone = self.entries.back().map_or(self.bytes.len(), |oldest| oldest.start as usize);
        self.bytes.drain(..gone);
        for entry in &mut self.entries {
            entry.start -= offset(gone);
        }
    }
}

impl Entry {
    fn of<'a>(&self, bytes: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let start = self.start as usize;
        let end = start + self.name_len as usize + self.value_len as usize;
        bytes[start..end].split_at(self.name_len as usize)
    }
}

fn offset(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a table is far below 2 GiB")
}
