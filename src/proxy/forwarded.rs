//! The `forwarded` field (RFC 7239): the chain that a trusted peer vouches for, and our link in it.
//!
//! The chain is read from its end, as the nearest proxies wrote that: whatever stands in front of an
//! element that is malformed, a quote that is never closed above all, can't change what they said.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::client::farthest;

/// Pairs of an element; the RFC names four, and the rest are extensions.
const PAIRS: usize = 16;

/// An element that is well formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'v> {
    /// As it was sent.
    pub text: &'v [u8],
    /// Whom it is `for`; `None`: for nobody, or for one without an address.
    pub address: Option<IpAddr>,
}

/// The client's address: the first one from the right that is not a trusted proxy. Only for requests
/// of a trusted peer; an element without an address ends the walk.
pub fn client<'v>(
    values: impl DoubleEndedIterator<Item = &'v [u8]>,
    trusted: &[IpNet],
    peer: IpAddr,
) -> IpAddr {
    farthest(elements(values).map(|element| element.address), trusted, peer)
}

/// The elements of all values from the last to the first, up to one that is malformed.
pub fn elements<'v>(values: impl DoubleEndedIterator<Item = &'v [u8]>) -> impl Iterator<Item = Element<'v>> {
    values.rev().flat_map(texts).map_while(parse)
}

/// Writes the elements of all values, from behind the last that is malformed, and `ours`.
pub fn chain<'v>(values: impl DoubleEndedIterator<Item = &'v [u8]>, ours: &[u8]) -> Vec<u8> {
    let mut texts: Vec<&[u8]> = elements(values).map(|element| element.text).collect();
    texts.reverse();
    texts.push(ours);
    texts.join(&b", "[..])
}

/// An element of ours: the peer that asked, for which host, and how; an empty host is left out.
pub fn element(peer: IpAddr, host: &str, proto: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    // WHY: writing to a vector can't fail.
    let _ = match peer {
        IpAddr::V4(peer) => write!(out, "for={peer}"),
        IpAddr::V6(peer) => write!(out, "for=\"[{peer}]\""),
    };
    if !host.is_empty() {
        out.extend_from_slice(b";host=");
        write_value(&mut out, host.as_bytes());
    }
    out.extend_from_slice(b";proto=");
    out.extend_from_slice(proto.as_bytes());
    out
}

/// A value as it is, or in quotes where it needs them.
fn write_value(out: &mut Vec<u8>, value: &[u8]) {
    if value.iter().copied().all(is_token) {
        return out.extend_from_slice(value);
    }
    out.push(b'"');
    for byte in value {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b'"');
}

/// What stands between the commas of a value, from its end; blanks around it are gone.
fn texts(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let value = rest?;
        let comma = last_comma(value);
        rest = comma.map(|comma| &value[..comma]);
        Some(comma.map_or(value, |comma| &value[comma + 1..]).trim_ascii())
    })
}

/// The last comma outside quotes; none where a quote is not opened.
fn last_comma(value: &[u8]) -> Option<usize> {
    let mut end = value.len();
    loop {
        let at = value[..end].iter().rposition(|byte| matches!(byte, b',' | b'"'))?;
        if value[at] == b',' {
            return Some(at);
        }
        end = opening_quote(&value[..at])?;
    }
}

/// The last quote that no backslash takes for a letter.
fn opening_quote(value: &[u8]) -> Option<usize> {
    let mut end = value.len();
    loop {
        let at = value[..end].iter().rposition(|byte| *byte == b'"')?;
        let backslashes = value[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
        if backslashes % 2 == 0 {
            return Some(at);
        }
        end = at;
    }
}

/// One element: pairs between semicolons, each name once.
fn parse(text: &[u8]) -> Option<Element<'_>> {
    let mut names: Vec<&[u8]> = Vec::with_capacity(4);
    let mut element = Element { text, address: None };
    let mut rest = text;
    loop {
        let (name, value, behind) = pair(rest)?;
        if names.len() == PAIRS || names.iter().any(|seen| seen.eq_ignore_ascii_case(name)) {
            return None;
        }
        names.push(name);
        if name.eq_ignore_ascii_case(b"for") {
            element.address = node(std::str::from_utf8(value).ok()?)?.address();
        }
        match behind {
            [] => return Some(element),
            [b';', more @ ..] => rest = more,
            _ => return None,
        }
    }
}

/// The first pair of a name and a value, which may stand in quotes, and what is behind it.
fn pair(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name, rest) = token(text)?;
    let rest = rest.strip_prefix(b"=")?;
    let Some(quoted) = rest.strip_prefix(b"\"") else {
        let (value, rest) = token(rest)?;
        return Some((name, value, rest));
    };
    let mut at = 0;
    loop {
        match *quoted.get(at)? {
            b'"' => return Some((name, &quoted[..at], &quoted[at + 1..])),
            b'\\' if is_text(*quoted.get(at + 1)?) => at += 2,
            byte if is_text(byte) && byte != b'\\' => at += 1,
            _ => return None,
        }
    }
}

fn token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| !is_token(*byte)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What may stand in quotes, also behind a backslash (RFC 9110 §5.6.4).
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Whom a `for` names (RFC 7239 §6).
enum Node {
    Address(IpAddr),
    /// "unknown", or a name that says nothing.
    Nameless,
}

impl Node {
    fn address(self) -> Option<IpAddr> {
        match self {
            Node::Address(address) => Some(address.to_canonical()),
            Node::Nameless => None,
        }
    }
}

fn node(text: &str) -> Option<Node> {
    let (node, port) = if let Some(inner) = text.strip_prefix('[') {
        let (address, port) = inner.split_once(']')?;
        (Node::Address(address.parse::<Ipv6Addr>().ok()?.into()), port)
    } else {
        let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        match name.parse::<Ipv4Addr>() {
            Ok(address) => (Node::Address(address.into()), port),
            Err(_) if name == "unknown" || is_obfuscated(name) => (Node::Nameless, port),
            Err(_) => return None,
        }
    };
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(node)
}

fn is_port(text: &str) -> bool {
    let is_number = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number || is_obfuscated(text)
}

/// A name that says nothing, such as `_hidden`.
fn is_obfuscated(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    name.strip_prefix('_').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(is_letter))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOSTS: &str = "[a-z:\\[\\]\"\\\\,;=]{0,9}";
    const TRUSTED: [&str; 2] = ["10.0.0.0/8", "fd00::/8"];

    fn client_of(values: &[&str]) -> String {
        let trusted: Vec<IpNet> = TRUSTED.iter().map(|network| network.parse().unwrap()).collect();
        client(values.iter().map(|value| value.as_bytes()), &trusted, "10.0.0.1".parse().unwrap()).to_string()
    }

    fn chain_of(values: &[&str]) -> String {
        String::from_utf8(chain(values.iter().map(|value| value.as_bytes()), b"for=_ours")).unwrap()
    }

    #[test]
    fn takes_the_last_address_that_is_not_a_proxy() {
        for (values, expected) in [
            (&["for=1.2.3.4"][..], "1.2.3.4"),
            (&["for=6.6.6.6, for=1.2.3.4, for=10.0.0.2"], "1.2.3.4"),
            (&["for=6.6.6.6", "for=1.2.3.4,for=10.0.0.2"], "1.2.3.4"),
            (&["For=\"[2001:db8::1]:443\";Proto=https , for=\"[fd00::5]\""], "2001:db8::1"),
            (&["by=10.0.0.9;for=\"1.2.3.4:55\";host=\"a, b;c\\\"\";proto=http"], "1.2.3.4"),
            (&["for=\"[::ffff:1.2.3.4]\""], "1.2.3.4"),
            (&["for=\"1.2.3.4:_port\";a=\"\";b=\"\\,\""], "1.2.3.4"),
            (&["for=10.0.0.3, for=10.0.0.2"], "10.0.0.3"),
            (&[], "10.0.0.1"),
        ] {
            assert_eq!(client_of(values), expected, "{values:?}");
        }
    }

    #[test]
    fn ends_the_walk_where_there_is_no_address() {
        for element in [
            "for=unknown",
            "for=_hidden",
            "by=1.2.3.4",
            "",
            ";",
            "for=1.2.3.4;",
            ";for=1.2.3.4",
            "for=1.2.3.4; proto=http",
            "for =1.2.3.4",
            "for= 1.2.3.4",
            "for",
            "for=",
            "=1.2.3.4",
            "for=\"1.2.3.4",
            "for=\"1.2.3.4\"x",
            "for=1.2.3.4\"",
            "for=\"1.2.3.4\\\"",
            "for=\"1.2.3\\.4\"",
            "for=1.2.3.4;for=1.2.3.4",
            "for=1.2.3.4;FOR=unknown",
            "for=1.2.3.4;a=1;A=2",
            "for=01.2.3.4",
            "for=1.2.3.4:80",
            "for=\"1.2.3.4:\"",
            "for=\"1.2.3.4:123456\"",
            "for=\"1.2.3.4:+80\"",
            "for=\"1.2.3.4:_\"",
            "for=2001:db8::1",
            "for=\"2001:db8::1\"",
            "for=\"[2001:db8::1\"",
            "for=\"[2001:db8::1]x\"",
            "for=\"[1.2.3.4]\"",
            "for=\" 1.2.3.4\"",
            "for=localhost",
            "for=\u{e9}",
        ] {
            let value = format!("for=6.6.6.6, {element}, for=10.0.0.2");
            assert_eq!(client_of(&[&value]), "10.0.0.2", "{value}");
            assert_eq!(client_of(&["for=6.6.6.6", element]), "10.0.0.1", "{element}");
        }
    }

    #[test]
    fn what_a_stranger_wrote_in_front_changes_nothing() {
        for claim in ["\"", "for=\"", "for=\"\\", "for=\"a, b", "\\\"", "a=\"\\\", ", "\"\"\"", ",,,", "x"] {
            let value = format!("{claim}, for=1.2.3.4;host=\"a,\\\"b\", for=10.0.0.2");
            assert_eq!(client_of(&[&value]), "1.2.3.4", "{value}");
            assert_eq!(
                chain_of(&[&value]),
                "for=1.2.3.4;host=\"a,\\\"b\", for=10.0.0.2, for=_ours",
                "{value}"
            );
        }
    }

    #[test]
    fn an_element_has_so_many_pairs() {
        let element = |pairs: usize| {
            (0..pairs - 1).fold("for=1.2.3.4".to_owned(), |element, index| format!("{element};x{index}=1"))
        };
        assert_eq!(client_of(&[&element(PAIRS)]), "1.2.3.4");
        assert_eq!(client_of(&[&element(PAIRS + 1)]), "10.0.0.1");
    }

    #[test]
    fn adds_to_what_is_well_formed() {
        assert_eq!(chain_of(&[]), "for=_ours");
        assert_eq!(chain_of(&["for=1.2.3.4 ,  for=_x", "by=y"]), "for=1.2.3.4, for=_x, by=y, for=_ours");
        assert_eq!(chain_of(&["for=1.2.3.4", "for=\""]), "for=_ours");
        assert_eq!(chain_of(&["for=1.2.3.4, oops, for=5.6.7.8"]), "for=5.6.7.8, for=_ours");
    }

    #[test]
    fn writes_elements_in_the_grammar() {
        let write =
            |peer: &str, host| String::from_utf8(element(peer.parse().unwrap(), host, "https")).unwrap();
        assert_eq!(write("1.2.3.4", "a.example"), "for=1.2.3.4;host=a.example;proto=https");
        assert_eq!(write("1.2.3.4", "a:81"), "for=1.2.3.4;host=\"a:81\";proto=https");
        assert_eq!(write("2001:db8::1", "[::1]"), "for=\"[2001:db8::1]\";host=\"[::1]\";proto=https");
        assert_eq!(write("1.2.3.4", ""), "for=1.2.3.4;proto=https");
        assert_eq!(write("1.2.3.4", "a\"\\"), "for=1.2.3.4;host=\"a\\\"\\\\\";proto=https");
    }

    proptest! {
        #[test]
        fn our_element_is_read_behind_anything(before in ".{0,40}", bits in any::<[u8; 16]>(), host in HOSTS) {
            let ipv4 = *bits.first_chunk::<4>().unwrap();
            for peer in [IpAddr::from(bits), IpAddr::from(ipv4)] {
                let ours = element(peer, &host, "http");
                let value = [before.as_bytes(), b",", &ours].concat();
                let last = elements([value.as_slice()].into_iter()).next().unwrap();
                prop_assert_eq!(last, Element { text: &ours, address: Some(peer.to_canonical()) });
            }
        }

        #[test]
        fn a_chain_is_well_formed_to_its_first_element(value in "[a-c=\"\\\\,; ]{0,30}") {
            let chain = chain([value.as_bytes()].into_iter(), b"for=_ours");
            let kept: Vec<_> = elements([chain.as_slice()].into_iter()).collect();
            let length: usize = kept.iter().map(|element| element.text.len()).sum();
            prop_assert_eq!(length + 2 * (kept.len() - 1), chain.len());
        }
    }
}
