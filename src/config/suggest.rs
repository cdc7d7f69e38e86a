//! Which of the known words did somebody mean?

/// Returns the word nearest to `written`, if it is near enough to be a slip of the hand.
pub(super) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    // WHY: the distance takes time in the product of the lengths, and no word of ours is this long.
    if written.chars().count() > 100 {
        return None;
    }
    let length = written.chars().count();
    let allowed = (length / 3).clamp(1, 3);
    known
        .into_iter()
        // No edit changes the length by more than one; it spares most of a long list.
        .filter(|word| word.chars().count().abs_diff(length) <= allowed)
        .map(|word| (distance(&written, &word.to_lowercase()), word))
        .filter(|(distance, word)| *distance <= allowed && *distance < word.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Edits (insert, delete, replace, swap of neighbours) between two words: optimal string
/// alignment, the restricted form of Damerau's distance (CACM 7(3), 1964).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + replacement_cost(a[i - 1], b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// Another digit is another number rather than a slip: 2 for it.
fn replacement_cost(a: char, b: char) -> usize {
    match a {
        _ if a == b => 0,
        _ if a.is_ascii_digit() && b.is_ascii_digit() => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits_and_swaps() {
        let cases = [
            ("", "", 0),
            ("abc", "", 3),
            ("adress", "address", 1),
            ("wieght", "weight", 1),
            ("kitten", "sitting", 3),
        ];
        for (a, b, expected) in cases {
            assert_eq!((distance(a, b), distance(b, a)), (expected, expected), "{a} {b}");
        }
    }

    #[test]
    fn suggests_slips_but_not_other_words() {
        let known = ["address", "name", "tls", "limits"];
        assert_eq!(nearest("adress", known), Some("address"));
        assert_eq!(nearest("Limit", known), Some("limits"));
        assert_eq!(nearest("TLS", known), Some("tls"));
        assert_eq!(nearest("certificate", known), None);
        assert_eq!(nearest("http2", ["http1", "h2"]), None);
        assert_eq!(nearest("x", known), None);
        assert_eq!(nearest(&"tls".repeat(1000), known), None);
    }
}
