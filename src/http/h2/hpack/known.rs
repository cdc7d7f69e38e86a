//! Names of fields that the encoder knows: their index in the static table, and what their values are
//! like.

use super::static_table::STATIC;

/// What becomes of a field whose value may come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Goes into the dynamic table when it does.
    Index,
    /// Stays out: it hardly ever does.
    Literal,
    /// Stays out on every hop: whoever can watch the sizes of blocks and send fields of their own must
    /// not be able to guess it (RFC 7541 §7.1.3).
    NeverIndex,
}

#[derive(Clone, Copy, Debug)]
pub struct Known {
    name: &'static [u8],
    /// In the static table; 0 for none.
    pub index: u8,
    pub policy: Policy,
}

const LITERAL: [&[u8]; 10] = [
    b"age",
    b"content-length",
    b"content-location",
    b"content-range",
    b"location",
    b"proxy-authenticate",
    b"refresh",
    b"retry-after",
    b"www-authenticate",
    b"x-request-id",
];
const NEVER_INDEX: [&[u8]; 7] = [
    b"authentication-info",
    b"authorization",
    b"cookie",
    b"proxy-authentication-info",
    b"proxy-authorization",
    b"set-cookie",
    b"x-csrf-token",
];

/// Those before it are pseudo-fields.
const FIRST_NAME: usize = 14;
const SLOTS: usize = 256;
const UNKNOWN: Known = Known { name: b"", index: 0, policy: Policy::Index };

/// By the top bits of a name's hash, or in a slot behind that.
static KNOWN: [Known; SLOTS] = known();

/// What is known of a name with this [`hash`].
pub fn find(hash: u64, name: &[u8]) -> &'static Known {
    let mut slot = slot_of(hash);
    while KNOWN[slot].name != name && !KNOWN[slot].name.is_empty() {
        slot = (slot + 1) % SLOTS;
    }
    &KNOWN[slot]
}

/// A cheap hash of both ends of a text and its length: who takes two texts for one must compare them.
#[inline]
pub const fn hash(seed: u64, text: &[u8]) -> u64 {
    let (front, back) = ends(text);
    let front = (front ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(text.len() as u64);
    (front.rotate_left(32) ^ back).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

const fn ends(text: &[u8]) -> (u64, u64) {
    if let (Some(front), Some(back)) = (text.first_chunk(), text.last_chunk()) {
        return (u64::from_le_bytes(*front), u64::from_le_bytes(*back));
    }
    if let (Some(front), Some(back)) = (text.first_chunk(), text.last_chunk()) {
        return (u32::from_le_bytes(*front) as u64, u32::from_le_bytes(*back) as u64);
    }
    match text {
        [first, .., last] => (*first as u64, (text[text.len() / 2] as u64) << 8 | *last as u64),
        [only] => (*only as u64, 0),
        [] => (0, 0),
    }
}

const fn slot_of(hash: u64) -> usize {
    (hash >> 56) as usize
}

const fn known() -> [Known; SLOTS] {
    let mut slots = [UNKNOWN; SLOTS];
    let mut at = FIRST_NAME;
    while at < STATIC.len() {
        place(&mut slots, STATIC[at].0, (at + 1).to_le_bytes()[0]);
        at += 1;
    }
    let mut at = 0;
    while at < LITERAL.len() {
        place(&mut slots, LITERAL[at], 0);
        at += 1;
    }
    let mut at = 0;
    while at < NEVER_INDEX.len() {
        place(&mut slots, NEVER_INDEX[at], 0);
        at += 1;
    }
    slots
}

/// Puts a name where `find` looks for it, unless it is there already.
const fn place(slots: &mut [Known; SLOTS], name: &'static [u8], index: u8) {
    let mut slot = slot_of(hash(0, name));
    while !slots[slot].name.is_empty() {
        if is_same(slots[slot].name, name) {
            return;
        }
        slot = (slot + 1) % SLOTS;
    }
    let policy = if is_among(name, &NEVER_INDEX) {
        Policy::NeverIndex
    } else if is_among(name, &LITERAL) {
        Policy::Literal
    } else {
        Policy::Index
    };
    slots[slot] = Known { name, index, policy };
}

const fn is_among(name: &[u8], names: &[&[u8]]) -> bool {
    let mut at = 0;
    while at < names.len() {
        if is_same(name, names[at]) {
            return true;
        }
        at += 1;
    }
    false
}

const fn is_same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &[u8]) -> (u8, Policy) {
        let found = find(hash(0, name), name);
        (found.index, found.policy)
    }

    #[test]
    fn finds_each_name_of_the_static_table() {
        for (name, _) in &STATIC[FIRST_NAME..] {
            let first = STATIC.iter().position(|(each, _)| each == name).unwrap() + 1;
            assert_eq!(usize::from(known(name).0), first, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn knows_what_must_not_be_indexed() {
        assert_eq!(known(b"set-cookie"), (55, Policy::NeverIndex));
        assert_eq!(known(b"authorization"), (23, Policy::NeverIndex));
        assert_eq!(known(b"x-csrf-token"), (0, Policy::NeverIndex));
        assert_eq!(known(b"location"), (46, Policy::Literal));
        assert_eq!(known(b"date"), (33, Policy::Index));
        assert_eq!(known(b"x-request-id"), (0, Policy::Literal));
        assert_eq!(known(b"content-type"), (31, Policy::Index));
    }

    #[test]
    fn knows_nothing_of_other_names() {
        for name in [&b""[..], b"x", b"datf", b"x-request-ie", b":status", b"set-cookie2"] {
            assert_eq!(known(name), (0, Policy::Index), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn hashes_of_short_texts_differ() {
        let texts: [&[u8]; 9] = [b"", b"a", b"b", b"ab", b"ba", b"abc", b"abcd", b"abcde", b"abcdefgh"];
        let hashes: std::collections::HashSet<u64> = texts.iter().map(|text| hash(7, text)).collect();
        assert_eq!(hashes.len(), texts.len());
    }
}
