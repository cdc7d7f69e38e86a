//! Single values: from TOML to names, numbers, durations, sizes and choices.
//!
//! Each function takes a value as written and returns it, or says what was expected instead.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use toml::de::DeValue;

use super::{
    diagnostics::{printable, quote},
    suggest::nearest,
};

/// The longest duration that is accepted; far from every overflow.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// Why a value can't be what its key needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) expected: String,
    pub(super) help: Option<String>,
}

pub(super) type Outcome<T> = Result<T, Refusal>;

impl Refusal {
    pub(super) fn new(expected: impl Into<String>) -> Self {
        Self { expected: expected.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Says what stands in the file, for the "found" of a message.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.is_empty() => "an empty string".to_owned(),
        DeValue::String(text) => quote(text),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(date) => format!("the date {date}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

pub(super) fn string<'v>(value: &'v DeValue<'_>, expected: &str) -> Outcome<&'v str> {
    let DeValue::String(text) = value else {
        let refusal = Refusal::new(expected);
        return Err(match value {
            DeValue::Integer(_) | DeValue::Float(_) => refusal.help("write it in quotes"),
            _ => refusal,
        });
    };
    Ok(text)
}

pub(super) fn boolean(value: &DeValue<'_>) -> Outcome<bool> {
    match value {
        DeValue::Boolean(truth) => Ok(*truth),
        DeValue::String(text) if matches!(text.as_ref(), "true" | "false") => {
            Err(Refusal::new("true or false").help(format!("write it without quotes: {text}")))
        }
        _ => Err(Refusal::new("true or false")),
    }
}

/// A name that people read in metrics and logs.
pub(super) fn name(value: &DeValue<'_>) -> Outcome<String> {
    let expected = "a name of 1 to 100 visible characters";
    let text = string(value, expected)?;
    if is_name(text) { Ok(text.to_owned()) } else { Err(Refusal::new(expected)) }
}

/// Whether people can tell the name from others when they read it.
pub(super) fn is_name(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= 100 && printable(text) == text
}

/// Any text but the empty one.
pub(super) fn text(value: &DeValue<'_>) -> Outcome<String> {
    let text = string(value, "a text")?;
    if text.is_empty() { Err(Refusal::new("a text that is not empty")) } else { Ok(text.to_owned()) }
}

pub(super) fn file(value: &DeValue<'_>) -> Outcome<PathBuf> {
    let expected = "the path of a file";
    let text = string(value, expected)?;
    if text.is_empty() || text.contains('\0') { Err(Refusal::new(expected)) } else { Ok(text.into()) }
}

/// A whole number in a range that `T` can hold.
pub(super) fn number<T: TryFrom<i128>>(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Outcome<T> {
    move |value| {
        let refusal = || Refusal::new(format!("a whole number from {} to {}", range.start(), range.end()));
        let number = match value {
            DeValue::Integer(_) => integer(value),
            DeValue::String(text) if text.parse::<u64>().is_ok() => {
                return Err(refusal().help(format!("write it without quotes: {text}")));
            }
            _ => None,
        };
        number
            .filter(|number| (i128::from(*range.start())..=i128::from(*range.end())).contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(refusal)
    }
}

fn integer(value: &DeValue<'_>) -> Option<i128> {
    let DeValue::Integer(number) = value else { return None };
    i128::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A number, or the word that stands for "no limit": `None`.
pub(super) fn number_or<T: TryFrom<i128>>(
    word: &'static str,
    range: RangeInclusive<u64>,
) -> impl Fn(&DeValue<'_>) -> Outcome<Option<T>> {
    move |value| match value {
        DeValue::String(text) if text == word => Ok(None),
        _ => number(range.clone())(value).map(Some).map_err(|refusal| Refusal {
            expected: format!("{} or \"{word}\"", refusal.expected),
            ..refusal
        }),
    }
}

pub(super) fn weight(value: &DeValue<'_>) -> Outcome<u32> {
    number(1..=1000)(value).map_err(|refusal| match integer(value) {
        Some(0) => refusal.help("to send a backend nothing, take it out of the list"),
        _ => refusal,
    })
}

/// A duration with its unit, longer than nothing.
pub(super) fn duration(value: &DeValue<'_>) -> Outcome<Duration> {
    let refusal = || Refusal::new("a duration such as \"250ms\", \"2s\", \"5m\" or \"1h\"");
    let text = match value {
        DeValue::String(text) => text.as_ref(),
        DeValue::Integer(number) => {
            return Err(refusal().help(format!("add a unit and quotes: \"{number}s\"")));
        }
        _ => return Err(refusal()),
    };
    let (count, unit) = split_unit(text);
    let Ok(count) = count.parse::<u64>() else {
        return Err(refusal().help("write a whole number and one unit"));
    };
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        "" => return Err(refusal().help(format!("add a unit: \"{count}s\""))),
        _ if unit.contains(|character: char| character.is_ascii_digit()) => {
            return Err(refusal().help("write a whole number and one unit"));
        }
        _ => return Err(refusal().help("the units are ms, s, m, h and d")),
    };
    match count.checked_mul(milliseconds).map(Duration::from_millis) {
        Some(Duration::ZERO) => Err(refusal().help("a deadline can't be turned off, only made long")),
        Some(duration) if duration <= LONGEST => Ok(duration),
        _ => Err(Refusal::new("a duration of at most a year")),
    }
}

/// A duration, or the word that stands for "never": `None`.
pub(super) fn duration_or(word: &'static str) -> impl Fn(&DeValue<'_>) -> Outcome<Option<Duration>> {
    move |value| match value {
        DeValue::String(text) if text == word => Ok(None),
        _ => duration(value).map(Some).map_err(|refusal| Refusal {
            expected: format!("{} or \"{word}\"", refusal.expected),
            ..refusal
        }),
    }
}

/// A number of bytes in a range, with or without a unit.
pub(super) fn size<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Outcome<T> {
    move |value| {
        let bytes = any_size(value)?;
        let out_of_range = || {
            Refusal::new(format!("a size from {} to {}", size_text(*range.start()), size_text(*range.end())))
        };
        if range.contains(&bytes) {
            T::try_from(bytes).map_err(|_| out_of_range())
        } else {
            Err(out_of_range())
        }
    }
}

/// A size, or `"unlimited"`: `None`.
pub(super) fn size_or_unlimited(value: &DeValue<'_>) -> Outcome<Option<u64>> {
    match value {
        DeValue::String(text) if text == "unlimited" => Ok(None),
        _ => any_size(value).map(Some).map_err(|refusal| Refusal {
            expected: format!("{} or \"unlimited\"", refusal.expected),
            ..refusal
        }),
    }
}

const SIZE_UNITS: [(&str, u64); 8] = [
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
];

fn any_size(value: &DeValue<'_>) -> Outcome<u64> {
    let refusal = || Refusal::new("a size such as \"64KiB\" or \"10MB\"");
    let text = match value {
        DeValue::String(text) => text.as_ref(),
        DeValue::Integer(_) => {
            return integer(value).and_then(|bytes| bytes.try_into().ok()).ok_or_else(refusal);
        }
        _ => return Err(refusal()),
    };
    let (count, unit) = split_unit(text);
    let Ok(count) = count.parse::<u64>() else {
        return Err(refusal().help("write a whole number and one unit"));
    };
    if unit.is_empty() {
        return Ok(count);
    }
    match SIZE_UNITS.iter().find(|(known, _)| *known == unit) {
        Some((_, factor)) => {
            count.checked_mul(*factor).ok_or_else(|| Refusal::new("a size of less than 16 EiB"))
        }
        None => Err(refusal().help(match unit.chars().next().map(|first| first.to_ascii_uppercase()) {
            Some(first @ ('K' | 'M' | 'G')) => format!("write \"{count}{first}iB\""),
            _ => "the units are B, KiB, MiB, GiB, kB, MB and GB".to_owned(),
        })),
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(end);
    (count, unit.trim_start_matches(' '))
}

/// Writes a number of bytes with the largest unit that divides it.
pub(super) fn size_text(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// One of a few words, each with its meaning.
pub(super) fn choice<T: Clone>(known: &[(&'static str, T)]) -> impl Fn(&DeValue<'_>) -> Outcome<T> {
    move |value| {
        let refusal = Refusal::new(one_of(&known.iter().map(|(word, _)| quote(word)).collect::<Vec<_>>()));
        let DeValue::String(text) = value else { return Err(refusal) };
        if let Some((_, meaning)) = known.iter().find(|(word, _)| word == text) {
            return Ok(meaning.clone());
        }
        Err(match nearest(text, known.iter().map(|(word, _)| *word)) {
            Some(word) => refusal.help(format!("did you mean \"{word}\"?")),
            None => refusal,
        })
    }
}

/// What is expected where one of a few words is.
pub(super) fn one_of(words: &[String]) -> String {
    match words {
        [only] => only.clone(),
        words => format!("one of {}", words.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string_value(text: &str) -> DeValue<'_> {
        DeValue::String(text.into())
    }

    fn milliseconds(text: &str) -> Option<u128> {
        duration(&string_value(text)).ok().map(|duration| duration.as_millis())
    }

    #[test]
    fn durations_have_one_unit_and_are_longer_than_nothing() {
        let cases =
            [("1ms", 1), ("250ms", 250), ("2s", 2000), ("10 s", 10_000), ("5m", 300_000), ("1h", 3_600_000)];
        for (text, expected) in cases {
            assert_eq!(milliseconds(text), Some(expected), "{text}");
        }
        assert_eq!(milliseconds("365d"), Some(LONGEST.as_millis()));
        for text in
            ["", "s", "1", "0s", "-1s", "+1s", "1.5s", "1S", "1 s ", "1m30s", "366d", "99999999999999999999s"]
        {
            assert_eq!(milliseconds(text), None, "{text}");
        }
        assert_eq!(milliseconds(&format!("{}d", u64::MAX)), None);
    }

    #[test]
    fn sizes_have_binary_and_decimal_units_and_no_overflow() {
        let bytes = |text: &str| any_size(&string_value(text)).ok();
        let cases = [
            ("0", 0),
            ("100", 100),
            ("1B", 1),
            ("64KiB", 65_536),
            ("10MB", 10_000_000),
            ("1 GiB", 1 << 30),
            ("2kB", 2000),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in
            ["", "KiB", "64k", "64kib", "-1", "1.5MiB", "1KiB2", "18446744073709551616", "17179869184GiB"]
        {
            assert_eq!(bytes(text), None, "{text}");
        }
        assert_eq!(bytes("17179869183GiB"), Some(17_179_869_183 << 30));
    }

    #[test]
    fn a_range_of_sizes_includes_both_ends() {
        let size = size::<u32>(100..=200);
        let accepted = |text: &str| size(&string_value(text)).is_ok();
        assert_eq!(["99", "100", "200", "201"].map(accepted), [false, true, true, false]);
    }

    #[test]
    fn a_size_beyond_its_type_is_refused() {
        let size = size::<u32>(0..=u64::MAX);
        assert_eq!(size(&string_value("4294967295")), Ok(u32::MAX));
        assert!(size(&string_value("4GiB")).is_err());
    }

    #[test]
    fn writes_sizes_with_the_largest_unit_that_fits() {
        let cases = [(0, "0B"), (65_535, "65535B"), (1024, "1KiB"), (3 << 20, "3MiB"), (1 << 30, "1GiB")];
        for (bytes, text) in cases {
            assert_eq!(size_text(bytes), text);
        }
    }
}
