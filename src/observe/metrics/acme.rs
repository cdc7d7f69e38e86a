//! How do the certificates fare that are asked for at a directory? A handful of events a month, so one lock for all.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::text::{Labels, Text};

/// By listener.
#[derive(Debug, Default)]
pub(super) struct Acme(Mutex<BTreeMap<String, Counts>>);

#[derive(Debug, Default)]
struct Counts {
    orders: BTreeMap<&'static str, u64>,
    next: i64,
    failures: u32,
}

impl Acme {
    pub(super) fn order(&self, listener: &str, result: &'static str) {
        let mut all = self.lock();
        *all.entry(listener.to_owned()).or_default().orders.entry(result).or_default() += 1;
    }

    pub(super) fn plan(&self, listener: &str, next: i64, failures: u32) {
        let mut all = self.lock();
        let counts = all.entry(listener.to_owned()).or_default();
        // Shown as 0 from the start: a rate over a counter that appears with 1 misses the 1.
        counts.orders.entry("ok").or_default();
        (counts.next, counts.failures) = (next, failures);
    }

    pub(super) fn families(&self, out: &mut Text) {
        let all = self.lock();
        let each = || all.iter().map(|(listener, counts)| (Labels::new(["listener"], [listener]), counts));
        out.counters(
            "portcullis_acme_orders_total",
            "Orders of certificates by result: ok, or why none came.",
            each().flat_map(|(labels, counts)| {
                counts.orders.iter().map(move |(result, &count)| (labels.with("result", result), count))
            }),
        );
        out.gauges(
            "portcullis_acme_next_order_timestamp_seconds",
            "When the next order is due: a renewal, or the next try, in seconds since the epoch.",
            each().map(|(labels, counts)| (labels, counts.next)),
        );
        out.gauges(
            "portcullis_acme_failed_orders",
            "Orders that failed since the last that did not.",
            each().map(|(labels, counts)| (labels, counts.failures)),
        );
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
