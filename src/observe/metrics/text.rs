//! How does Prometheus read it? The text format, version 0.0.4, written straight from the sums.
//!
//! A thousand backends are 68,000 lines. Labels are escaped once for a series and not for each line,
//! and a line is a few copies; the prometheus crate's encoder, by way of its protocol types, takes
//! five times as long.

use std::{borrow::Borrow, time::Duration};

use super::histogram::HistogramTotal;

/// A scrape in the making.
pub(super) struct Text {
    out: String,
    /// The bounds of the buckets as they are written.
    bounds: Vec<String>,
}

/// The labels of a series as they are written: `cluster="web",backend="10.0.0.1:80"`.
#[derive(Clone, Debug)]
pub(super) struct Labels(String);

impl Labels {
    pub(super) fn none() -> Self {
        Labels(String::new())
    }

    pub(super) fn new<const N: usize>(names: [&str; N], values: [&str; N]) -> Self {
        let mut labels = Labels::none();
        names.into_iter().zip(values).for_each(|(name, value)| labels.push(name, value));
        labels
    }

    /// The same with one more.
    pub(super) fn with(&self, name: &str, value: &str) -> Self {
        let mut labels = self.clone();
        labels.push(name, value);
        labels
    }

    fn push(&mut self, name: &str, value: &str) {
        let Labels(text) = self;
        if !text.is_empty() {
            text.push(',');
        }
        text.extend([name, "=\""]);
        for character in value.chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '"' => text.push_str("\\\""),
                _ => text.push(character),
            }
        }
        text.push('"');
    }
}

impl Text {
    /// `size` is a guess at the bytes that it will have.
    pub(super) fn new(size: usize) -> Self {
        let bounds = HistogramTotal::default().cumulative().map(|(bound, _)| bound.to_string()).collect();
        Text { out: String::with_capacity(size), bounds }
    }

    pub(super) fn finish(self) -> String {
        self.out
    }

    pub(super) fn gauges<L: Borrow<Labels>, V: itoa::Integer>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, V)>,
    ) {
        self.samples(name, help, "gauge", series);
    }

    /// A duration, of the process as a whole.
    pub(super) fn gauge_seconds(&mut self, name: &str, help: &str, value: Duration) {
        self.header(name, help, "gauge");
        self.name(name, "", "");
        self.out.push_str(&value.as_secs_f64().to_string());
        self.out.push('\n');
    }

    pub(super) fn counters<L: Borrow<Labels>>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) {
        self.samples(name, help, "counter", series);
    }

    fn samples<L: Borrow<Labels>, V: itoa::Integer>(
        &mut self,
        name: &str,
        help: &str,
        kind: &str,
        series: impl IntoIterator<Item = (L, V)>,
    ) {
        let mut series = series.into_iter().peekable();
        if series.peek().is_some() {
            self.header(name, help, kind);
        }
        for (labels, value) in series {
            let Labels(labels) = labels.borrow();
            self.name(name, "", labels);
            self.value(value);
        }
    }

    /// Leaves out what was never observed: twenty lines of zeros say nothing.
    pub(super) fn histograms<'a, L: Borrow<Labels>>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, &'a HistogramTotal)>,
    ) {
        let mut series = series.into_iter().filter(|(_, total)| total.count() > 0).peekable();
        if series.peek().is_some() {
            self.header(name, help, "histogram");
        }
        for (labels, total) in series {
            self.histogram(name, labels.borrow(), total);
        }
    }

    fn histogram(&mut self, name: &str, Labels(labels): &Labels, total: &HistogramTotal) {
        let separator = if labels.is_empty() { "" } else { "," };
        let before = [name, "_bucket{", labels, separator, "le=\""].concat();
        for (index, (_, count)) in total.cumulative().enumerate() {
            self.out.extend([&before, self.bounds[index].as_str(), "\"} "]);
            self.value(count);
        }
        self.out.extend([&before, "+Inf\"} "]);
        self.value(total.count());
        self.name(name, "_sum", labels);
        self.out.push_str(&total.seconds.to_string());
        self.out.push('\n');
        self.name(name, "_count", labels);
        self.value(total.count());
    }

    fn header(&mut self, name: &str, help: &str, kind: &str) {
        self.out.extend(["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"]);
    }

    /// All of a line but its value.
    fn name(&mut self, name: &str, suffix: &str, labels: &str) {
        self.out.extend([name, suffix]);
        if !labels.is_empty() {
            self.out.extend(["{", labels, "}"]);
        }
        self.out.push(' ');
    }

    fn value(&mut self, value: impl itoa::Integer) {
        self.out.push_str(itoa::Buffer::new().format(value));
        self.out.push('\n');
    }

    /// What another encoder writes behind it.
    pub(super) fn buffer(&mut self) -> &mut String {
        &mut self.out
    }
}
