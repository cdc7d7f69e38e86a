//! Version 1: a line of text (`doc/proxy-protocol.txt` §2.1).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use super::{Ends, Malformed, Parsed};

pub(super) const SIGNATURE: &[u8] = b"PROXY ";
/// With its CRLF.
const LONGEST_LINE: usize = 107;

/// Reads a header that begins like the signature, as far as it goes.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let window = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = window.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if window.len() < LONGEST_LINE { Ok(Parsed::Incomplete) } else { Err(Malformed::TooLong) };
    };
    match &window[end..] {
        [b'\r', b'\n', ..] => Ok(Parsed::Complete { ends: line(&window[..end])?, length: end + 2 }),
        [b'\r'] if window.len() < LONGEST_LINE => Ok(Parsed::Incomplete),
        [b'\r'] => Err(Malformed::TooLong),
        _ => Err(Malformed::Line),
    }
}

/// A line without its end.
fn line(bytes: &[u8]) -> Result<Option<Ends>, Malformed> {
    if !bytes.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(Malformed::Line);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::Line)?;
    let mut words = text.split(' ').skip(1);
    match words.next() {
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => Ok(None),
        Some("TCP4") => ends::<Ipv4Addr>(words).map(Some).ok_or(Malformed::Line),
        Some("TCP6") => ends::<Ipv6Addr>(words).map(Some).ok_or(Malformed::Line),
        _ => Err(Malformed::Line),
    }
}

/// The addresses and ports behind the first two words, and nothing more.
///
/// The standard library's addresses are as strict as the protocol: no leading zeros, no zones.
fn ends<'t, A: FromStr + Into<IpAddr>>(mut words: impl Iterator<Item = &'t str>) -> Option<Ends> {
    let source: A = words.next()?.parse().ok()?;
    let destination: A = words.next()?.parse().ok()?;
    let (source_port, destination_port) = (port(words.next()?)?, port(words.next()?)?);
    let ends = Ends::new(
        SocketAddr::new(source.into(), source_port),
        SocketAddr::new(destination.into(), destination_port),
    );
    words.next().is_none().then_some(ends)
}

/// A port in digits, without the sign and the leading zeros that `parse` accepts.
fn port(text: &str) -> Option<u16> {
    let canonical = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Option<(String, String)>, Malformed> {
        match parse(line.as_bytes())? {
            Parsed::Complete { ends, length } => {
                assert_eq!(length, line.len());
                Ok(ends.map(|ends| (ends.source.to_string(), ends.destination.to_string())))
            }
            Parsed::Incomplete => panic!("{line:?} is not complete"),
        }
    }

    #[test]
    fn reads_the_lines_of_the_specification() {
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        for (line, source, destination) in [
            ("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", "192.168.0.1:56324", "192.168.0.11:443"),
            ("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n", "255.255.255.255:65535", "0.0.0.0:0"),
            ("PROXY TCP6 2001:DB8::1 ::1 1 2\r\n", "[2001:db8::1]:1", "[::1]:2"),
            (
                &format!("PROXY TCP6 {longest} {longest} 65535 65535\r\n"),
                &format!("[{longest}]:65535"),
                &format!("[{longest}]:65535"),
            ),
        ] {
            assert_eq!(read(line), Ok(Some((source.to_owned(), destination.to_owned()))), "{line:?}");
        }
    }

    #[test]
    fn unknown_ends_are_none_whatever_follows() {
        let worst = format!("PROXY UNKNOWN {} {} 65535 65535\r\n", "ffff:".repeat(8), "f".repeat(38));
        assert_eq!(worst.len(), LONGEST_LINE);
        for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN \r\n", "PROXY UNKNOWN 1.2.3.4 x\r\n", &worst] {
            assert_eq!(read(line), Ok(None), "{line:?}");
        }
    }

    #[test]
    fn refuses_every_other_line() {
        for line in [
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r \n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
            "PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4\t1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.256 5.6.7.8 1 2\r\n",
            "PROXY TCP4 0x1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 00 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 99999\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8  2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP4 1.2.3.4 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP6 ::1 [::1] 1 2\r\n",
            "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            "PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 1 2\r\n",
            "PROXY TCP6 1::2::3 ::1 1 2\r\n",
            "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY unknown\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY UNKNOWN \0\r\n",
            "PROXY UNKNOWN \u{e9}\r\n",
            "PROXY  UNKNOWN\r\n",
            "PROXY \r\n",
            "PROXY TCP4\r\n",
        ] {
            assert_eq!(read(line), Err(Malformed::Line), "{line:?}");
        }
    }

    #[test]
    fn a_line_is_at_most_107_bytes_long() {
        let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16)).into_bytes();
        assert_eq!(parse(&line(107)), Ok(Parsed::Complete { ends: None, length: 107 }));
        assert_eq!(parse(&line(108)), Err(Malformed::TooLong));
        assert_eq!(parse(&line(108)[..107]), Err(Malformed::TooLong));
        assert_eq!(parse(&line(109)[..107]), Err(Malformed::TooLong));
        assert_eq!(parse(&line(109)[..106]), Ok(Parsed::Incomplete));
    }
}
