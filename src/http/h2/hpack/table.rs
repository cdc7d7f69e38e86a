//! The dynamic table (RFC 7541 §2.3.2, §4): the fields that came last, newest first.
//!
//! Names and values lie in one run of bytes, each field behind the one before it; what is evicted
//! stays in front until the run is full, and is then closed up. That moves at most as many bytes as
//! were appended since the last time, and takes twice the table's size at most. A table that nothing
//! was put into has no memory.

use std::collections::VecDeque;

use super::FIELD_OVERHEAD;

#[derive(Debug)]
pub struct Table {
    bytes: Vec<u8>,
    /// Newest first.
    entries: VecDeque<Entry>,
    /// As RFC 7541 counts it.
    size: usize,
    max_size: usize,
    /// Fields that were ever put in; starts anew after 2^16.
    inserted: u16,
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
            self.entries.shrink_to(max_size / FIELD_OVERHEAD);
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
        name.len() + value.len() + FIELD_OVERHEAD
    }

    /// The number of the field that was put in last.
    pub fn newest(&self) -> u16 {
        self.inserted
    }

    /// The index of the field with this number, unless it was evicted; of another one for a number that
    /// is very old.
    pub fn index_of(&self, number: u16) -> Option<usize> {
        let index = usize::from(self.inserted.wrapping_sub(number));
        (index < self.entries.len()).then_some(index)
    }

    /// Bytes of memory.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// Finds room in memory for a field that the table can hold.
    fn begin_insert(&mut self, name_len: usize, value_len: usize) -> bool {
        let bytes = name_len + value_len;
        if bytes + FIELD_OVERHEAD > self.max_size {
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
        self.size += name_len + value.len() + FIELD_OVERHEAD;
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
            self.size -= oldest.name_len as usize + oldest.value_len as usize + FIELD_OVERHEAD;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(table: &Table) -> Vec<String> {
        let texts = (0..).map_while(|index| table.get(index));
        texts.map(|(name, value)| format!("{}: {}", name.escape_ascii(), value.escape_ascii())).collect()
    }

    #[test]
    fn evicts_the_oldest_for_a_new_one() {
        let mut table = Table::new(2 * (FIELD_OVERHEAD + 2));
        table.insert(b"a", b"1");
        table.insert(b"b", b"2");
        assert_eq!(fields(&table), ["b: 2", "a: 1"]);
        table.insert(b"c", b"");
        assert_eq!(fields(&table), ["c: ", "b: 2"]);
        table.insert(b"d", b"44");
        assert_eq!(fields(&table), ["d: 44", "c: "]);
        table.insert(b"e", b"55");
        assert_eq!(fields(&table), ["e: 55"]);
    }

    #[test]
    fn is_emptied_by_a_field_that_is_larger_than_itself() {
        let mut table = Table::new(FIELD_OVERHEAD + 4);
        table.insert(b"a", b"123");
        assert_eq!(fields(&table), ["a: 123"]);
        table.insert(b"b", b"1234");
        assert_eq!(fields(&table), [""; 0]);
        table.insert(b"c", b"1");
        table.insert_named_as(0, b"1234");
        assert_eq!(fields(&table), [""; 0]);
        assert_eq!(table.size, 0);
    }

    #[test]
    fn takes_the_name_of_a_field_that_goes() {
        let mut table = Table::new(FIELD_OVERHEAD + 10);
        for round in 0..100 {
            table.insert(b"name", b"old");
            table.insert_named_as(0, b"newer");
            assert_eq!(fields(&table), ["name: newer"], "{round}");
        }
    }

    #[test]
    fn becomes_smaller_and_larger() {
        let mut table = Table::new(4096);
        for value in [b"1", b"2", b"3"] {
            table.insert(b"a", value);
        }
        table.set_max_size(2 * (FIELD_OVERHEAD + 2));
        assert_eq!(fields(&table), ["a: 3", "a: 2"]);
        table.set_max_size(2 * (FIELD_OVERHEAD + 2) - 1);
        assert_eq!(fields(&table), ["a: 3"]);
        table.set_max_size(0);
        table.insert(b"", b"");
        assert_eq!((fields(&table).len(), table.capacity()), (0, 0));
        table.set_max_size(4096);
        table.insert(b"b", b"1");
        assert_eq!(fields(&table), ["b: 1"]);
    }

    #[test]
    fn finds_fields_by_number_until_they_go() {
        let mut table = Table::new(2 * (FIELD_OVERHEAD + 2));
        assert_eq!(table.index_of(table.newest()), None);
        table.insert(b"a", b"1");
        let first = table.newest();
        assert_eq!(
            (table.index_of(first), table.index_of(0), table.index_of(first + 1)),
            (Some(0), None, None)
        );
        table.insert(b"b", b"1");
        assert_eq!(table.index_of(first), Some(1));
        table.insert(b"c", b"1");
        assert_eq!(table.index_of(first), None);
    }

    #[test]
    fn has_no_memory_before_its_first_field() {
        assert_eq!(Table::new(4096).capacity(), 0);
    }

    /// What is done to a table.
    #[derive(Clone, Debug)]
    enum Step {
        Insert(Vec<u8>, Vec<u8>),
        InsertNamed(usize, Vec<u8>),
        Resize(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let text = || proptest::collection::vec(any::<u8>(), 0..60);
        proptest::collection::vec(
            prop_oneof![
                8 => (text(), text()).prop_map(|(name, value)| Step::Insert(name, value)),
                4 => (0..6_usize, text()).prop_map(|(index, value)| Step::InsertNamed(index, value)),
                1 => (0..MOST).prop_map(Step::Resize),
            ],
            0..60,
        )
    }

    const MOST: usize = 400;

    /// RFC 7541 §4 in the plainest way.
    fn insert(model: &mut Vec<(Vec<u8>, Vec<u8>)>, max_size: usize, field: Option<(Vec<u8>, Vec<u8>)>) {
        model.splice(0..0, field);
        let size = |model: &[(Vec<u8>, Vec<u8>)]| {
            model.iter().map(|(name, value)| name.len() + value.len() + FIELD_OVERHEAD).sum::<usize>()
        };
        while size(model) > max_size {
            model.pop();
        }
    }

    proptest! {
        #[test]
        fn holds_what_the_rfc_says_in_bounded_memory(steps in steps()) {
            let (mut table, mut model, mut max_size) = (Table::new(MOST), Vec::new(), MOST);
            for step in steps {
                match step {
                    Step::Insert(name, value) => {
                        table.insert(&name, &value);
                        insert(&mut model, max_size, Some((name, value)));
                    }
                    Step::InsertNamed(index, value) => {
                        table.insert_named_as(index, &value);
                        let name = model.get(index).map(|(name, _)| name.clone());
                        insert(&mut model, max_size, name.map(|name| (name, value)));
                    }
                    Step::Resize(size) => {
                        max_size = size;
                        table.set_max_size(size);
                        insert(&mut model, max_size, None);
                    }
                }
                for (index, (name, value)) in model.iter().enumerate() {
                    prop_assert_eq!(table.get(index), Some((&name[..], &value[..])));
                }
                prop_assert_eq!(table.get(model.len()), None);
                prop_assert!(table.bytes.capacity() <= 2 * MOST, "{}", table.bytes.capacity());
                prop_assert!(table.entries.capacity() <= 2 * MOST / FIELD_OVERHEAD, "{}", table.entries.capacity());
            }
        }
    }
}
