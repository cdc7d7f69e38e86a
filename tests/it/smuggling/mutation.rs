//! Small changes to an attack: what a strict parser must still read in one way or refuse.

use fastrand::Rng;

use super::corpus::LINES;

/// Bytes that parsers treat in different ways.
const ODD: &[u8] = b"\r\n\0\t \x0b\x0c\x01\x1c\x7f\x80\x85\xa0\xff,;:+-_0\"'\\#%/?@=*.x";

const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    "\n\n",
    "\r\n ",
    "\r\n\t",
    "\r\r\n",
    "\0",
    "0\r\n\r\n",
    "chunked",
    "Content-Length: 3\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Host: b.example\r\n",
    " HTTP/1.1\r\n",
    " HTTP/1.0",
    ": ",
    " :",
    ";",
    ";a=b",
    "%0d%0a",
    "%00",
    "%2e%2e/",
    "/../",
    "http://",
    "GET ",
    "100-continue",
];

/// Changes the attack in a few places.
pub fn mutate(attack: &mut Vec<u8>, others: &[String], random: &mut Rng) {
    for _ in 0..random.usize(1..=4) {
        once(attack, others, random);
    }
}

fn once(attack: &mut Vec<u8>, others: &[String], random: &mut Rng) {
    let at = random.usize(..=attack.len());
    match random.u8(..14) {
        0 => attack.insert(at, *choose(ODD, random)),
        1 if at < attack.len() => attack[at] = *choose(ODD, random),
        2 if at < attack.len() => attack[at] ^= 1 << random.u8(..8),
        3 if at < attack.len() => _ = attack.remove(at),
        4 => splice(attack, at, choose(PIECES, random).as_bytes()),
        5 => attack.truncate(at),
        6 => digits(attack, random),
        7 => case(attack, at),
        8 => line_end(attack, random),
        9 | 10 => {
            let line = format!("{}\r\n", choose(LINES, random));
            let place = line_start(attack, random);
            splice(attack, place, line.as_bytes());
        }
        11 => swap_lines(attack, random),
        12 => {
            let line = lines(attack).swap_remove(random.usize(..lines(attack).len()));
            let place = line_start(attack, random);
            splice(attack, place, &line);
        }
        _ => {
            // The tail of another one.
            let other = choose(others, random).as_bytes();
            attack.truncate(at);
            attack.extend_from_slice(&other[random.usize(..other.len())..]);
        }
    }
}

fn choose<'t, T>(all: &'t [T], random: &mut Rng) -> &'t T {
    &all[random.usize(..all.len())]
}

fn splice(attack: &mut Vec<u8>, at: usize, piece: &[u8]) {
    attack.splice(at..at, piece.iter().copied());
}

/// Lines with their ends; never none.
fn lines(attack: &[u8]) -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = attack.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    lines.resize(lines.len().max(1), Vec::new());
    lines
}

fn line_start(attack: &[u8], random: &mut Rng) -> usize {
    let lines = lines(attack);
    lines[..random.usize(..lines.len())].iter().map(Vec::len).sum()
}

fn swap_lines(attack: &mut Vec<u8>, random: &mut Rng) {
    let mut lines = lines(attack);
    let (one, other) = (random.usize(..lines.len()), random.usize(..lines.len()));
    lines.swap(one, other);
    *attack = lines.concat();
}

/// Replaces the ends of one line or of all.
fn line_end(attack: &mut Vec<u8>, random: &mut Rng) {
    let end = *choose(&[&b"\n"[..], b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b""], random);
    let mut lines = lines(attack);
    let one = random.usize(..lines.len());
    let all = random.u8(..8) == 0;
    for (index, line) in lines.iter_mut().enumerate() {
        if (all || index == one) && line.ends_with(b"\r\n") {
            line.truncate(line.len() - 2);
            line.extend_from_slice(end);
        }
    }
    *attack = lines.concat();
}

/// Another number where one stands.
fn digits(attack: &mut Vec<u8>, random: &mut Rng) {
    let places: Vec<usize> =
        attack.iter().enumerate().filter(|(_, byte)| byte.is_ascii_digit()).map(|(at, _)| at).collect();
    if places.is_empty() {
        return;
    }
    let at = *choose(&places, random);
    let new = *choose(&["0", "1", "9", "-1", "+1", "00", "0x1", "1 ", " 1", "4294967296", "", "a"], random);
    attack.splice(at..=at, new.bytes());
}

/// Changes the case of a word.
fn case(attack: &mut [u8], at: usize) {
    for byte in attack[at..].iter_mut().take_while(|byte| byte.is_ascii_alphabetic()) {
        *byte ^= 0x20;
    }
}
