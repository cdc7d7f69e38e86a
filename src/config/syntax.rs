//! TOML's own errors, and what is still said about a file that has some.

use std::collections::BTreeSet;

use toml::{Spanned, de::DeTable};

use super::diagnostics::{Diagnostics, Problem, Severity, Span};

/// The lines of a text that are not TOML.
pub(super) struct Syntax<'t> {
    text: &'t str,
    errors: Vec<Problem>,
    /// Where the lines begin that have an error.
    broken_lines: BTreeSet<usize>,
}

/// Reads as much of the text as can be understood.
pub(super) fn read(text: &str) -> (Spanned<DeTable<'_>>, Syntax<'_>) {
    let (tree, errors) = DeTable::parse_recoverable(text);
    let errors: Vec<Problem> = errors.iter().map(|error| syntax_problem(error, text)).collect();
    let spans = errors.iter().filter_map(|problem| problem.span.as_ref());
    let broken_lines =
        spans.flat_map(|span| [line_start(span.start, text), line_start(span.end, text)]).collect();
    (tree, Syntax { text, errors, broken_lines })
}

impl Syntax<'_> {
    pub(super) fn is_broken(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Joins the errors of the syntax with what else was found. Of a broken file only that is kept
    /// which can't come from a line that was misread: errors at a place outside those lines.
    pub(super) fn join(self, mut found: Vec<Problem>) -> Vec<Problem> {
        if self.is_broken() {
            found.retain(|problem| {
                let is_sound = |span: &Span| !self.touches_broken_line(span);
                problem.severity == Severity::Error && problem.span.as_ref().is_some_and(is_sound)
            });
            found.extend(self.errors);
        }
        found
    }

    fn touches_broken_line(&self, span: &Span) -> bool {
        let lines = line_start(span.start, self.text)..=line_start(span.end, self.text);
        self.broken_lines.range(lines).next().is_some()
    }
}

/// What the parser says where a value is not one of TOML's.
const UNQUOTED: &str = "string values must be quoted";

fn syntax_problem(error: &toml::de::Error, text: &str) -> Problem {
    let (message, expected) = match error.message().split_once(", expected ") {
        Some((message, expected)) => (message, Some(expected)),
        None => (error.message(), None),
    };
    let end = text.len();
    let span =
        error.span().map_or(end..end, |span| span.start.min(end)..span.end.clamp(span.start.min(end), end));
    let problem = Problem::error(span.clone(), message);
    let problem = match expected {
        Some(expected) if expected != "nothing" && message != UNQUOTED => {
            problem.note(format!("expected {expected}"))
        }
        _ => problem,
    };
    let found = text.get(span).unwrap_or_default();
    match message {
        UNQUOTED if found.is_empty() => Problem { message: "missing value".to_owned(), ..problem },
        UNQUOTED if !found.contains(['"', '\n']) => problem.help(format!("write \"{found}\"")),
        "duplicate key" => problem.help("keep one of them"),
        _ => problem,
    }
}

/// Where the line begins that holds the byte.
fn line_start(at: usize, text: &str) -> usize {
    text.as_bytes()[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1)
}

/// The problem of a file whose bytes are no text.
pub(super) fn not_utf8(name: &str, bytes: &[u8]) -> Diagnostics {
    let text = String::from_utf8_lossy(bytes);
    let valid = bytes.utf8_chunks().next().map_or(0, |chunk| chunk.valid().len());
    let problem = Problem::error(valid..valid + char::REPLACEMENT_CHARACTER.len_utf8(), "this is not UTF-8")
        .note("expected a text in UTF-8, as TOML files are");
    Diagnostics::new(name, &text, vec![problem])
}
