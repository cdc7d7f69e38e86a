//! Problems of a configuration file, and how they are shown to the person who has to fix them.
//!
//! A problem knows its place as a range of bytes; line and column are looked up when it is shown.
//! What is shown may hold bytes from the file, which may be hostile: nothing that moves the
//! cursor or turns the direction of writing reaches the terminal.

use std::{
    fmt::{self, Display, Formatter},
    ops::Range,
};

/// Bytes of the file.
pub type Span = Range<usize>;

/// Characters of a source line that are shown; of a longer one, the part around the problem.
const SHOWN_LINE: usize = 120;
/// Characters of a value that are quoted in a message.
const SHOWN_VALUE: usize = 80;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Error,
    Warning,
}

/// One thing that is wrong, or looks wrong.
#[derive(Debug, Clone)]
pub struct Problem {
    pub severity: Severity,
    /// `None`: the file as a whole.
    pub span: Option<Span>,
    pub message: String,
    /// Stands beside the caret; may be empty.
    pub label: String,
    /// What was expected and what was found, and similar facts.
    pub notes: Vec<String>,
    /// Other places that belong to it, each with what it is.
    pub related: Vec<(Span, &'static str)>,
    /// How to fix it.
    pub help: Option<String>,
}

impl Problem {
    pub fn error(span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            span: Some(span),
            message: message.into(),
            label: String::new(),
            notes: Vec::new(),
            related: Vec::new(),
            help: None,
        }
    }

    pub fn warning(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message) }
    }

    /// A problem of the file as a whole.
    pub fn whole_file(message: impl Into<String>) -> Self {
        Self { span: None, ..Self::error(0..0, message) }
    }

    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Message and notes, for a log.
    pub(super) fn in_one_line(&self) -> String {
        let notes = self.notes.iter().map(String::as_str);
        std::iter::once(self.message.as_str()).chain(notes).collect::<Vec<_>>().join(": ")
    }

    pub fn related(mut self, span: Span, what: &'static str) -> Self {
        self.related.push((span, what));
        self
    }
}

/// All problems of one file, in the order of their places; `Display` shows them.
#[derive(Debug, Clone)]
pub struct Diagnostics {
    name: String,
    text: String,
    problems: Vec<Problem>,
}

impl Diagnostics {
    /// `name` is what the file is called in the output.
    pub fn new(name: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| {
            let (start, end) = problem.span.as_ref().map_or((0, 0), |span| (span.start, span.end));
            (problem.span.is_some(), start, end)
        });
        Self { name: name.to_owned(), text: text.to_owned(), problems }
    }

    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    /// The same with errors in place of warnings; fatal if there is one.
    pub fn strict(mut self) -> Result<Self, Self> {
        for problem in &mut self.problems {
            problem.severity = Severity::Error;
        }
        self.check()
    }

    /// The same as a result: problems are fatal if one of them is an error.
    pub(super) fn check(self) -> Result<Self, Self> {
        if self.count(Severity::Error) == 0 { Ok(self) } else { Err(self) }
    }
}

impl std::error::Error for Diagnostics {}

impl Display for Diagnostics {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let source = Source::new(&self.name, &self.text);
        for problem in &self.problems {
            source.write_problem(out, problem)?;
            writeln!(out)?;
        }
        let counts: Vec<String> = [(Severity::Error, "error"), (Severity::Warning, "warning")]
            .into_iter()
            .filter_map(|(severity, word)| match self.count(severity) {
                0 => None,
                1 => Some(format!("1 {word}")),
                count => Some(format!("{count} {word}s")),
            })
            .collect();
        if counts.is_empty() {
            return Ok(());
        }
        writeln!(out, "{}: {}", source.name, counts.join(", "))
    }
}

/// The text with its line starts, so that a file with many problems is not read again for each.
struct Source<'a> {
    name: String,
    text: &'a str,
    line_starts: Vec<usize>,
}

struct Place<'a> {
    /// Both count from 1; the column counts characters.
    line: usize,
    column: usize,
    /// The line without its end, and the problem's bytes in it.
    content: &'a str,
    marked: Span,
}

impl<'a> Source<'a> {
    fn new(name: &str, text: &'a str) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { name: printable(name), text, line_starts: std::iter::once(0).chain(newlines).collect() }
    }

    fn place(&self, span: &Span) -> Place<'a> {
        let start = char_border(self.text, span.start);
        let end = char_border(self.text, span.end.max(start));
        let index = self.line_starts.partition_point(|line| *line <= start).saturating_sub(1);
        let line_start = self.line_starts[index];
        let rest = &self.text[line_start..];
        let content = rest.split('\n').next().unwrap_or(rest);
        let content = content.strip_suffix('\r').unwrap_or(content);
        let marked =
            (start - line_start).min(content.len())..(end.max(start) - line_start).min(content.len());
        Place { line: index + 1, column: content[..marked.start].chars().count() + 1, content, marked }
    }

    fn write_problem(&self, out: &mut Formatter<'_>, problem: &Problem) -> fmt::Result {
        let severity = match problem.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        writeln!(out, "{severity}: {}", printable(&problem.message))?;
        let margin = if let Some(span) = &problem.span {
            self.write_snippet(out, span, &problem.label)?
        } else {
            writeln!(out, " --> {}", self.name)?;
            " ".to_owned()
        };
        for note in &problem.notes {
            writeln!(out, "{margin} = {}", printable(note))?;
        }
        for (span, what) in &problem.related {
            let place = self.place(span);
            writeln!(out, "{margin} = {what} at {}:{}:{}", self.name, place.line, place.column)?;
        }
        match &problem.help {
            Some(help) => writeln!(out, "{margin} = help: {}", printable(help)),
            None => Ok(()),
        }
    }

    /// Writes place, line and caret; returns blanks as wide as the line number.
    fn write_snippet(&self, out: &mut Formatter<'_>, span: &Span, label: &str) -> Result<String, fmt::Error> {
        let place = self.place(span);
        let margin = " ".repeat(place.line.to_string().len());
        let (before, marked, after) = cut_line(&place);
        writeln!(out, "{margin}--> {}:{}:{}", self.name, place.line, place.column)?;
        writeln!(out, "{margin} |")?;
        writeln!(out, "{} | {}", place.line, format!("{before}{marked}{after}").trim_end())?;
        let indent = " ".repeat(before.chars().count());
        let carets = "^".repeat(marked.chars().count().max(1));
        writeln!(out, "{margin} | {}", format!("{indent}{carets} {}", printable(label)).trim_end())?;
        writeln!(out, "{margin} |")?;
        Ok(margin)
    }
}

/// Returns what is shown before, at and after the marked place of a line.
fn cut_line(place: &Place<'_>) -> (String, String, String) {
    let (before, rest) = place.content.split_at(place.marked.start);
    let (marked, after) = rest.split_at(place.marked.len());
    if place.content.chars().nth(SHOWN_LINE).is_none() {
        return (printable(before), printable(marked), printable(after));
    }
    let before_count = before.chars().count();
    let before = if before_count > SHOWN_LINE / 2 {
        let kept: String = before.chars().skip(before_count - SHOWN_LINE / 2).collect();
        format!("…{}", printable(&kept))
    } else {
        printable(before)
    };
    let room = SHOWN_LINE.saturating_sub(before_count.min(SHOWN_LINE / 2));
    let marked = shorten(marked, room);
    let after = shorten(after, room.saturating_sub(marked.chars().count()));
    (before, printable(&marked), printable(&after))
}

fn shorten(text: &str, room: usize) -> String {
    match text.char_indices().nth(room) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The nearest border between characters at or before `at`.
fn char_border(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// User input as it stands in a message.
pub(super) fn quote(value: &str) -> String {
    format!("\"{}\"", shorten(value, SHOWN_VALUE))
}

/// Escapes what a terminal would act upon instead of showing it; a tab is four blanks.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\t' => shown.push_str("    "),
            _ if character.is_control() || turns_or_hides(character) => {
                shown.extend(character.escape_default());
            }
            _ => shown.push(character),
        }
    }
    shown
}

/// Characters that have no width, break lines, or change the direction of what follows them
/// (Unicode UAX #9; the attack is known as Trojan Source).
fn turns_or_hides(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, problem: Problem) -> String {
        Diagnostics::new("a.toml", text, vec![problem]).to_string()
    }

    #[test]
    fn shows_line_caret_notes_help_and_counts() {
        let problem = Problem::error(9..12, "bad value")
            .label("this one")
            .note("expected 1, found 2")
            .related(0..1, "first written")
            .help("write 1");
        let expected = "\
error: bad value
 --> a.toml:2:3
  |
2 | b = 222
  |   ^^^ this one
  |
  = expected 1, found 2
  = first written at a.toml:1:1
  = help: write 1

a.toml: 1 error
";
        assert_eq!(shown("a = 11\nb = 222\n", problem), expected);
    }

    #[test]
    fn orders_by_place_and_counts_each_severity() {
        let problems = vec![
            Problem::warning(4..5, "third"),
            Problem::error(0..1, "second"),
            Problem::whole_file("first"),
        ];
        let text = Diagnostics::new("a", "x = y", problems).to_string();
        let order: Vec<&str> = text.lines().filter(|line| line.contains(": ")).collect();
        assert_eq!(order, ["error: first", "error: second", "warning: third", "a: 2 errors, 1 warning"]);
    }

    #[test]
    fn a_strict_check_takes_warnings_for_errors() {
        let warnings = Diagnostics::new("a", "x = y", vec![Problem::warning(4..5, "looks odd")]);
        assert!(warnings.clone().check().is_ok());
        let errors = warnings.strict().unwrap_err().to_string();
        assert!(errors.starts_with("error: looks odd\n") && errors.ends_with("a: 1 error\n"), "{errors}");
        assert!(Diagnostics::new("a", "", Vec::new()).strict().is_ok());
    }

    #[test]
    fn columns_count_characters_not_bytes() {
        let text = "ä = \"ü\" x";
        let at = text.find('x').unwrap();
        let text = shown(text, Problem::error(at..at + 1, "m"));
        assert!(text.contains(":1:9\n"), "{text}");
        assert!(text.contains("\n  |         ^\n"), "{text}");
    }

    #[test]
    fn hostile_characters_are_escaped_and_the_caret_still_fits() {
        let text = "a\u{1b}[2J\u{202e} = \t1\r\nb = 2";
        let at = text.find('1').unwrap();
        let shown = shown(text, Problem::error(at..at + 1, "\u{7}bell \u{85}"));
        assert!(!shown.chars().any(|c| c != '\n' && (c.is_control() || turns_or_hides(c))), "{shown:?}");
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[4].find('^'), lines[3].rfind('1'), "{shown}");
    }

    #[test]
    fn a_span_outside_the_text_or_inside_a_character_is_moved() {
        for span in [50..60, 1..2, 0..1, 3..90, 2..2, Span { start: 2, end: 0 }] {
            shown("ää\n", Problem::error(span, "m"));
            shown("", Problem::error(0..0, "m"));
        }
    }

    #[test]
    fn a_very_long_line_is_cut_around_the_problem() {
        let text = format!("{}HERE{}", "x".repeat(5000), "y".repeat(5000));
        let shown = shown(&text, Problem::error(5000..5004, "m"));
        assert!(shown.contains("HERE") && shown.lines().all(|line| line.chars().count() < 140), "{shown}");
        assert!(shown.contains("a.toml:1:5001"), "{shown}");
    }
}
