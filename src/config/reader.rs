//! Takes keys out of the TOML tree; whatever nobody asked for is an unknown key.
//!
//! Every problem is collected with its place and reading goes on, so that all of them are
//! reported at once.

use std::{cell::RefCell, collections::BTreeSet};

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{
    diagnostics::{Problem, Span, quote},
    suggest::nearest,
    values::{Refusal, describe},
};

/// A value and the place where it is written.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

/// What is gathered while a file is read.
#[derive(Debug, Default)]
pub(super) struct Reader {
    problems: RefCell<Vec<Problem>>,
    unknown: RefCell<Vec<Unknown>>,
    /// Every key that was asked for, with the path of its table.
    asked: RefCell<BTreeSet<(String, &'static str)>>,
    /// Lines are broken: a key that isn't there may be on one of them.
    broken: bool,
}

#[derive(Debug)]
struct Unknown {
    place: Place,
    key: At<String>,
}

/// Which table it is.
#[derive(Debug, Clone, Default)]
struct Place {
    /// With `*` for a name that is free: `clusters.*.health`; empty for the top.
    path: String,
    /// With the name that is written: `clusters.web.health`.
    written: String,
}

/// One table of the file; `finish` it when all keys are taken.
#[derive(Debug)]
#[must_use = "an unfinished table hides its unknown keys"]
pub(super) struct Table<'t> {
    reader: &'t Reader,
    /// `None`: the table isn't written.
    entries: Option<&'t DeTable<'t>>,
    pub(super) span: Span,
    place: Place,
    asked: Vec<&'static str>,
}

/// A value that may be `true`, `false` or a table.
pub(super) enum Switch<'t> {
    Off,
    On,
    Table(Table<'t>),
}

/// What may be written as one value, or as a table that says more.
pub(super) enum ValueOrTable<'t, T> {
    Value(At<T>),
    Table(Table<'t>),
}

/// A value that may be a certain word or a table.
pub(super) enum WordOr<'t> {
    Word(Span),
    Table(Table<'t>),
}

impl<T> At<T> {
    /// The value, or `default` where none is written.
    pub(super) fn or(written: Option<Self>, default: T) -> T {
        written.map_or(default, |at| at.value)
    }
}

impl Reader {
    pub(super) fn new(broken: bool) -> Self {
        Self { broken, ..Self::default() }
    }

    pub(super) fn report(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn top<'t>(&'t self, entries: &'t DeTable<'t>) -> Table<'t> {
        Table { reader: self, entries: Some(entries), span: 0..0, place: Place::default(), asked: Vec::new() }
    }

    /// Returns all problems, those about unknown keys among them.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        let asked = self.asked.into_inner();
        problems.extend(self.unknown.into_inner().into_iter().map(|unknown| unknown.into_problem(&asked)));
        problems
    }

    #[cfg(test)]
    pub(super) fn asked(&self) -> BTreeSet<String> {
        self.asked.borrow().iter().map(|(path, key)| join(path, key)).collect()
    }

    fn refuse(&self, what: &str, value: &Spanned<DeValue<'_>>, refusal: Refusal) {
        let mut problem = Problem::error(value.span(), format!("invalid value for {}", quote(what)))
            .note(format!("expected {}, found {}", refusal.expected, describe(value.get_ref())));
        problem.help = refusal.help;
        self.report(problem);
    }
}

impl Unknown {
    fn into_problem(self, asked: &BTreeSet<(String, &'static str)>) -> Problem {
        let key = &self.key.value;
        let path = &self.place.path;
        let place = match self.place.written.as_str() {
            "" => "at the top level".to_owned(),
            place => format!("in {}", header(place)),
        };
        let message = format!("unknown key {} {place}", quote(key));
        let problem = Problem::error(self.key.span, message);
        let here = || asked.iter().filter(|(other, _)| other == path).map(|(_, known)| *known);
        if let Some(known) = nearest(key, here()) {
            return problem.help(format!("did you mean \"{known}\"?"));
        }
        let elsewhere = asked.iter().find(|(_, known)| known == key);
        if let Some((path, _)) = elsewhere {
            return problem.help(format!("\"{key}\" is a key of {}", header(path)));
        }
        problem.note(format!("expected one of {}", here().collect::<Vec<_>>().join(", ")))
    }
}

impl<'t> Table<'t> {
    /// Returns the value of `key` with the key's own place.
    fn take(&mut self, key: &'static str) -> Option<(Span, &'t Spanned<DeValue<'t>>)> {
        self.asked.push(key);
        let (written, value) = self.entries?.iter().find(|(written, _)| written.get_ref() == key)?;
        Some((written.span(), value))
    }

    /// Returns the place of the key if it is written, whatever its value.
    pub(super) fn place_of(&mut self, key: &'static str) -> Option<Span> {
        self.take(key).map(|(span, _)| span)
    }

    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&DeValue<'_>) -> Result<T, Refusal>,
    ) -> Option<At<T>> {
        let (_, value) = self.take(key)?;
        self.convert(key, value, convert)
    }

    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        convert: impl FnOnce(&DeValue<'_>) -> Result<T, Refusal>,
    ) -> Option<At<T>> {
        let Some((_, value)) = self.take(key) else {
            self.missing(key, example);
            return None;
        };
        self.convert(key, value, convert)
    }

    /// Returns the elements that could be converted; `None` if the key isn't written.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        mut convert: impl FnMut(&DeValue<'_>) -> Result<T, Refusal>,
    ) -> Option<Vec<At<T>>> {
        let values = self.elements(key)?;
        Some(values.iter().filter_map(|value| self.convert(key, value, &mut convert)).collect())
    }

    /// Returns the elements of a list as they stand; `None` if the key isn't written.
    pub(super) fn elements(&mut self, key: &'static str) -> Option<Vec<&'t Spanned<DeValue<'t>>>> {
        let (_, value) = self.take(key)?;
        if let DeValue::Array(values) = value.get_ref() {
            return Some(values.iter().collect());
        }
        let help = if value.get_ref().is_table() {
            format!(
                "write `{}`, once for each, or `{key} = [{{ … }}]`",
                header(&self.place.below(&format!("{key}[]")).written)
            )
        } else {
            "write the value in brackets: [ … ]".to_owned()
        };
        self.reader.refuse(key, value, Refusal::new("a list").help(help));
        Some(Vec::new())
    }

    /// The elements of a list that must be there and not be empty.
    pub(super) fn required_elements(
        &mut self,
        key: &'static str,
        example: &str,
    ) -> Vec<&'t Spanned<DeValue<'t>>> {
        match self.take(key) {
            None => self.missing(key, example),
            Some((_, value)) if value.get_ref().as_array().is_some_and(|list| list.is_empty()) => {
                let problem = Problem::error(value.span(), format!("\"{key}\" is empty"));
                self.report(problem.help(format!("write `{key} = {example}`")));
            }
            Some(_) => {}
        }
        self.elements(key).unwrap_or_default()
    }

    /// A table under `key`; one that isn't written reads as empty.
    pub(super) fn table(&mut self, key: &'static str) -> Table<'t> {
        let (entries, span) = match self.take(key) {
            None => (None, self.span.clone()),
            Some((_, value)) => (self.as_table(key, value), value.span()),
        };
        Table { reader: self.reader, entries, span, place: self.place.below(key), asked: Vec::new() }
    }

    /// The tables of a list of tables, `[[key]]`.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Table<'t>> {
        let values = self.elements(key).unwrap_or_default();
        values.into_iter().filter_map(|value| self.child(key, value)).collect()
    }

    /// The table that is an element of the list `key`.
    pub(super) fn child(&self, key: &str, value: &'t Spanned<DeValue<'t>>) -> Option<Table<'t>> {
        let entries = self.as_table(key, value)?;
        Some(self.inner(entries, value, self.place.below(&format!("{key}[]"))))
    }

    /// The tables `[key.name]` with their names, in alphabetical order.
    pub(super) fn named_tables(&mut self, key: &'static str) -> Vec<(At<String>, Table<'t>)> {
        let Some((_, value)) = self.take(key) else { return Vec::new() };
        let Some(entries) = self.as_table(key, value) else { return Vec::new() };
        let named = |(name, value): (&Spanned<DeString<'t>>, &'t Spanned<DeValue<'t>>)| {
            let name = At { value: name.get_ref().to_string(), span: name.span() };
            let entries = self.as_table(&format!("{key}.{}", name.value), value)?;
            let table = self.inner(entries, value, self.place.below(key).named(&name.value));
            Some((name, table))
        };
        let mut tables: Vec<_> = entries.iter().filter_map(named).collect();
        tables.sort_by(|(one, _), (other, _)| one.value.cmp(&other.value));
        tables
    }

    fn inner(&self, entries: &'t DeTable<'t>, value: &Spanned<DeValue<'_>>, place: Place) -> Table<'t> {
        Table { reader: self.reader, entries: Some(entries), span: value.span(), place, asked: Vec::new() }
    }

    /// A table that may be written as `true` or `false` too; `None` if it isn't written.
    pub(super) fn switch(&mut self, key: &'static str) -> Option<Switch<'t>> {
        let (_, value) = self.take(key)?;
        match value.get_ref() {
            DeValue::Boolean(false) => Some(Switch::Off),
            DeValue::Boolean(true) => Some(Switch::On),
            DeValue::Table(entries) => Some(Switch::Table(self.inner(entries, value, self.place.below(key)))),
            _ => {
                self.reader.refuse(key, value, Refusal::new("a table, true or false"));
                None
            }
        }
    }

    /// A value that may be a table instead; `None` if it isn't written or has a problem.
    pub(super) fn value_or_table<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&DeValue<'_>) -> Result<T, Refusal>,
    ) -> Option<ValueOrTable<'t, T>> {
        let (_, value) = self.take(key)?;
        match value.get_ref() {
            DeValue::Table(entries) => {
                Some(ValueOrTable::Table(self.inner(entries, value, self.place.below(key))))
            }
            _ => self.convert(key, value, convert).map(ValueOrTable::Value),
        }
    }

    /// A table that may be written as a word too; `None` if it isn't written.
    pub(super) fn word_or_table(&mut self, key: &'static str, word: &str) -> Option<WordOr<'t>> {
        let (_, value) = self.take(key)?;
        match value.get_ref() {
            DeValue::String(text) if text.as_ref() == word => Some(WordOr::Word(value.span())),
            DeValue::Table(entries) => Some(WordOr::Table(self.inner(entries, value, self.place.below(key)))),
            _ => {
                self.reader.refuse(key, value, Refusal::new(format!("a table or \"{word}\"")));
                None
            }
        }
    }

    pub(super) fn missing(&self, key: &str, example: &str) {
        if !self.reader.broken {
            let message = format!("missing key \"{key}\" in {}", header(&self.place.written));
            let problem = Problem::error(self.span.clone(), message);
            self.reader.report(problem.help(format!("add `{key} = {example}`")));
        }
    }

    pub(super) fn report(&self, problem: Problem) {
        self.reader.report(problem);
    }

    pub(super) fn is_written(&self) -> bool {
        self.entries.is_some()
    }

    /// Reports the keys that were not asked for.
    pub(super) fn finish(self) {
        for (key, _) in self.entries.into_iter().flatten() {
            if !self.asked.contains(&key.get_ref().as_ref()) {
                let key = At { value: key.get_ref().to_string(), span: key.span() };
                self.reader.unknown.borrow_mut().push(Unknown { place: self.place.clone(), key });
            }
        }
        let asked = self.asked.into_iter().map(|key| (self.place.path.clone(), key));
        self.reader.asked.borrow_mut().extend(asked);
    }

    pub(super) fn convert<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        convert: impl FnOnce(&DeValue<'_>) -> Result<T, Refusal>,
    ) -> Option<At<T>> {
        match convert(value.get_ref()) {
            Ok(converted) => Some(At { value: converted, span: value.span() }),
            Err(refusal) => {
                self.reader.refuse(key, value, refusal);
                None
            }
        }
    }

    fn as_table(&self, key: &str, value: &'t Spanned<DeValue<'t>>) -> Option<&'t DeTable<'t>> {
        if let DeValue::Table(entries) = value.get_ref() {
            return Some(entries);
        }
        self.reader.refuse(key, value, Refusal::new("a table"));
        None
    }
}

impl Place {
    /// The table under a key of this one.
    fn below(&self, key: &str) -> Self {
        Self { path: join(&self.path, key), written: join(&self.written, key) }
    }

    /// The table under a name that the file gives.
    fn named(&self, name: &str) -> Self {
        Self { path: join(&self.path, "*"), written: join(&self.written, name) }
    }
}

/// A table as its header is written: `[clusters.web]`, `[[listeners]]`.
fn header(path: &str) -> String {
    match path.strip_suffix("[]") {
        _ if path.is_empty() => "the top level".to_owned(),
        Some(list) => format!("[[{}]]", list.replace("[]", "")),
        None => format!("[{}]", path.replace("[]", "")),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
