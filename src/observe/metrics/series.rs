//! Which cells belong to a set of label values?

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use super::text;

/// Series that are copied under one lock.
const PAGE: usize = 128;

/// For every set of `N` label values one cell a writer, made when the writer first asks for it.
///
/// The lock is held for a look-up, or for as long as it takes to copy a page of the list of cells.
#[derive(Debug)]
pub(super) struct Series<C, const N: usize> {
    writers: usize,
    /// Sorted, so that a scrape always has the same order.
    map: RwLock<BTreeMap<Labels<N>, Writers<C>>>,
}

type Labels<const N: usize> = [Arc<str>; N];
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

    /// Sums the cells of every series with `add`, in the order of the labels; `names` are theirs.
    pub(super) fn totals<T: Default>(
        &self,
        names: [&str; N],
        add: impl Fn(&mut T, &C),
    ) -> Vec<(text::Labels, T)> {
        let mut totals = Vec::new();
        let mut page = self.page(None);
        while let Some((last, _)) = page.last() {
            let next = self.page(Some(last));
            for (labels, cells) in page {
                let mut total = T::default();
                cells.iter().filter_map(OnceLock::get).for_each(|cell| add(&mut total, cell));
                totals.push((text::Labels::new(names, labels.each_ref().map(AsRef::as_ref)), total));
            }
            page = next;
        }
        totals
    }

    /// Some of the series behind `last`; the lock is held for microseconds only, however many there
    /// are, since a worker waits for it with the first request of a route.
    fn page(&self, last: Option<&Labels<N>>) -> Vec<(Labels<N>, Writers<C>)> {
        let from = (last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let copy = |(labels, cells): (&Labels<N>, &Writers<C>)| (labels.clone(), Arc::clone(cells));
        self.read(|map| map.range::<Labels<N>, _>(from).take(PAGE).map(copy).collect())
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
