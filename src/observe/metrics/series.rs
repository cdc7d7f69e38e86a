//! Which cells belong to a set of label values?

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

/// For every set of `N` label values one cell a writer, made when the writer first asks for it.
///
/// The lock is held for a look-up, or for as long as it takes to copy the list of cells.
#[derive(Debug)]
pub(super) struct Series<C, const N: usize> {
    writers: usize,
    /// Sorted, so that a scrape always has the same order.
    map: RwLock<BTreeMap<Labels<N>, Writers<C>>>,
}

pub(super) type Labels<const N: usize> = [Arc<str>; N];
type Writers<C> = Arc<[OnceLock<Arc<C>>]>;

impl<C: Default, const N: usize> Series<C, N> {
    pub(super) fn new(writers: usize) -> Self {
        Series { writers, map: RwLock::default() }
    }

    pub(super) fn cell(&self, writer: usize, labels: [&str; N]) -> Arc<C> {
        let labels = labels.map(Arc::from);
        let known = self.read(|map| map.get(&labels).cloned());
        let cells = known.unwrap_or_else(|| {
            let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
            let empty = || (0..self.writers).map(|_| OnceLock::new()).collect();
            Arc::clone(map.entry(labels).or_insert_with(empty))
        });
        Arc::clone(cells[writer].get_or_init(Arc::default))
    }

    /// The cells of all writers for these labels.
    pub(super) fn cells(&self, labels: [&str; N]) -> Vec<Arc<C>> {
        let labels = labels.map(Arc::from);
        let writers = self.read(|map| map.get(&labels).cloned());
        writers.iter().flat_map(|cells| cells.iter().filter_map(OnceLock::get)).cloned().collect()
    }

    /// Sums the cells of every series with `add`, in the order of the labels.
    pub(super) fn totals<T: Default>(&self, add: impl Fn(&mut T, &C)) -> Vec<(Labels<N>, T)> {
        let list: Vec<_> =
            self.read(|map| map.iter().map(|(labels, cells)| (labels.clone(), Arc::clone(cells))).collect());
        let sum = |cells: Writers<C>| {
            let mut total = T::default();
            cells.iter().filter_map(OnceLock::get).for_each(|cell| add(&mut total, cell));
            total
        };
        list.into_iter().map(|(labels, cells)| (labels, sum(cells))).collect()
    }

    pub(super) fn retain(&self, keep: impl Fn([&str; N]) -> bool) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.retain(|labels, _| keep(labels.each_ref().map(AsRef::as_ref)));
    }

    // A panic under the lock leaves the map whole, so a poisoned lock is as good as any.
    fn read<R>(&self, look: impl FnOnce(&BTreeMap<Labels<N>, Writers<C>>) -> R) -> R {
        look(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }
}
