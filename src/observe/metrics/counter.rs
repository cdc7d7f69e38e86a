//! Which numbers can one thread write and another read without a locked instruction?
//!
//! Everything here has a single writer. A plain load, an addition and a plain store are then
//! enough; `fetch_add` would cost a locked instruction for each of the dozen updates a request
//! makes. A second writer would lose counts, never memory safety.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// A count that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        // Release: whoever sees this count sees what the writer counted before it.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Release);
    }

    pub(super) fn value(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Things that begin and end: how many there were, and how many there are now.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    started: Counter,
    finished: Counter,
}

impl InFlight {
    pub(super) fn start(&self) {
        self.started.add(1);
    }

    pub(super) fn finish(&self) {
        self.finished.add(1);
    }

    pub(super) fn total(&self) -> u64 {
        self.started.value()
    }

    /// Reads the end before the beginning, so that nothing is seen to end that has not begun.
    pub(super) fn now(&self) -> u64 {
        let finished = self.finished.value();
        self.started.value().saturating_sub(finished)
    }
}

/// A gauge that has no value until it is set.
#[derive(Debug, Default)]
pub(super) struct Setting(AtomicU64);

impl Setting {
    pub(super) fn set(&self, value: u32) {
        self.0.store(u64::from(value) + 1, Ordering::Relaxed);
    }

    pub(super) fn value(&self) -> Option<u64> {
        self.0.load(Ordering::Relaxed).checked_sub(1)
    }
}

const KEY_SHIFT: u32 = 48;
const CODE_SLOTS: usize = 6;

/// Counts for each of a few small keys, exact for all of them; the keys are status codes.
///
/// A slot holds its key in the upper 16 bits and the count below, so that one load reads both. A
/// new key takes the next free slot, and a full table grows by another one behind it: the usual
/// codes are found in the first cache line, and an unusual one costs memory only where it occurs.
#[derive(Debug, Default)]
pub(super) struct CodeCounts {
    slots: [AtomicU64; CODE_SLOTS],
    more: OnceLock<Box<CodeCounts>>,
}

impl CodeCounts {
    /// `key` is not 0, which marks a free slot.
    pub(super) fn add(&self, key: u16) {
        debug_assert_ne!(key, 0);
        let mut table = self;
        loop {
            for slot in &table.slots {
                let held = slot.load(Ordering::Relaxed);
                if held >> KEY_SHIFT == u64::from(key) {
                    return slot.store(held + 1, Ordering::Relaxed);
                }
                if held == 0 {
                    return slot.store((u64::from(key) << KEY_SHIFT) | 1, Ordering::Relaxed);
                }
            }
            table = table.more.get_or_init(Box::default);
        }
    }

    /// Calls `each` with every key that was counted, in the order of first use.
    pub(super) fn for_each(&self, mut each: impl FnMut(u16, u64)) {
        let mut table = Some(self);
        while let Some(CodeCounts { slots, more }) = table {
            for slot in slots {
                let held = slot.load(Ordering::Relaxed);
                if let Ok(key @ 1..) = u16::try_from(held >> KEY_SHIFT) {
                    each(key, held & ((1 << KEY_SHIFT) - 1));
                }
            }
            table = more.get().map(AsRef::as_ref);
        }
    }
}

const RESULT_SLOTS: usize = 4;

/// Counts for each of a few results, named by constants of the program.
#[derive(Debug, Default)]
pub(super) struct ResultCounts {
    slots: [(OnceLock<&'static str>, Counter); RESULT_SLOTS],
    more: OnceLock<Box<ResultCounts>>,
}

impl ResultCounts {
    pub(super) fn add(&self, result: &'static str) {
        let mut table = self;
        loop {
            for (name, count) in &table.slots {
                if *name.get_or_init(|| result) == result {
                    return count.add(1);
                }
            }
            table = table.more.get_or_init(Box::default);
        }
    }

    pub(super) fn for_each(&self, mut each: impl FnMut(&'static str, u64)) {
        let mut table = Some(self);
        while let Some(ResultCounts { slots, more }) = table {
            for (name, count) in slots {
                if let Some(name) = name.get() {
                    each(name, count.value());
                }
            }
            table = more.get().map(AsRef::as_ref);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_code_is_counted_exactly() {
        let counts = CodeCounts::default();
        for round in 0..3 {
            for code in 100..=999 {
                for _ in 0..=(code % 3) * round {
                    counts.add(code);
                }
            }
        }
        let mut seen = BTreeMap::new();
        counts.for_each(|code, count| assert_eq!(seen.insert(code, count), None));
        assert_eq!(seen.len(), 900);
        for (code, count) in seen {
            assert_eq!(count, u64::from(3 + (code % 3) * 3), "{code}");
        }
    }

    #[test]
    fn more_results_than_slots_are_all_counted() {
        let names = ["ok", "a", "b", "c", "d", "e", "f", "g", "h"];
        let counts = ResultCounts::default();
        for (n, name) in names.iter().enumerate() {
            for _ in 0..=n {
                counts.add(name);
            }
        }
        let mut seen = Vec::new();
        counts.for_each(|name, count| seen.push((name, count)));
        let expected: Vec<_> = names.iter().copied().zip(1..).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn in_flight_is_never_negative() {
        let requests = InFlight::default();
        requests.finish();
        assert_eq!((requests.now(), requests.total()), (0, 0));
        requests.start();
        requests.start();
        assert_eq!((requests.now(), requests.total()), (1, 2));
    }

    #[test]
    fn in_flight_is_never_negative_while_it_is_written() {
        let requests = InFlight::default();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..200_000 {
                    requests.start();
                    requests.finish();
                }
            });
            while !writer.is_finished() {
                let finished = requests.finished.value();
                assert!(requests.started.value() >= finished);
            }
        });
        assert_eq!(requests.now(), 0);
    }

    #[test]
    fn a_setting_tells_zero_from_unset() {
        let weight = Setting::default();
        assert_eq!(weight.value(), None);
        weight.set(0);
        assert_eq!(weight.value(), Some(0));
        weight.set(u32::MAX);
        assert_eq!(weight.value(), Some(u64::from(u32::MAX)));
    }
}
