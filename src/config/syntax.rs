//! From text to the file as written: TOML's own errors, and what is still said beside them.

use std::collections::BTreeSet;

use toml::de::DeTable;

use super::{
    diagnostics::{Diagnostics, Problem, Span},
    file::{self, File},
    reader::Reader,
};

/// Reads a text; `None` instead of the file if lines of it are not TOML, since what they say is
/// missing from it.
pub(super) fn read(text: &str) -> (Option<File>, Vec<Problem>) {
    let (tree, errors) = DeTable::parse_recoverable(text);
    let reader = Reader::new(!errors.is_empty());
    let file = file::read(reader.top(tree.get_ref()));
    let found = reader.into_problems();
    if errors.is_empty() {
        return (Some(file), found);
    }
    let mut problems: Vec<Problem> = errors.iter().map(|error| syntax_problem(error, text)).collect();
    let spans = problems.iter().filter_map(|problem| problem.span.as_ref());
    let broken_lines: BTreeSet<usize> =
        spans.flat_map(|span| [line_start(span.start, text), line_start(span.end, text)]).collect();
    // What was read from a broken line is a guess, and so is what is said about it.
    let on_broken_line = |span: &Span| {
        broken_lines.range(line_start(span.start, text)..=line_start(span.end, text)).next().is_some()
    };
    problems.extend(
        found.into_iter().filter(|problem| problem.span.as_ref().is_some_and(|span| !on_broken_line(span))),
    );
    (None, problems)
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
