//! Version 2: binary (`doc/proxy-protocol.txt` §2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Ends, LONGEST, Malformed, Parsed};

pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// What every header has: signature, version and command, family, length.
const FIXED: usize = 16;
const VERSION: u8 = 2;

const COMMAND_LOCAL: u8 = 0;
const COMMAND_PROXY: u8 = 1;

const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const UNIX_STREAM: u8 = 0x31;

const CRC32C: u8 = 0x03;

/// The header of a connection that the sender makes for itself, such as a probe.
pub const LOCAL: [u8; FIXED] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// Reads a header that begins like the signature, as far as it goes.
///
/// Neither command nor family decides by itself whose addresses count: a local connection may carry
/// addresses, which mean nothing.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let rest = bytes.get(SIGNATURE.len()..).unwrap_or_default();
    let Some(&[version_and_command, family, high, low]) = rest.first_chunk() else {
        return Ok(Parsed::Incomplete);
    };
    if version_and_command >> 4 != VERSION {
        return Err(Malformed::Version);
    }
    let address_bytes = match (version_and_command & 15, family) {
        (COMMAND_LOCAL, _) | (COMMAND_PROXY, UNSPECIFIED) => None,
        (COMMAND_PROXY, TCP_OVER_IPV4) => Some(2 * 4 + 2 * 2),
        (COMMAND_PROXY, TCP_OVER_IPV6) => Some(2 * 16 + 2 * 2),
        (COMMAND_PROXY, UNIX_STREAM) => Some(2 * 108),
        (COMMAND_PROXY, _) => return Err(Malformed::Family),
        _ => return Err(Malformed::Command),
    };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST {
        return Err(Malformed::TooLong);
    }
    let Some(address_bytes) = address_bytes else {
        let complete = Parsed::Complete { ends: None, length };
        return Ok(if bytes.len() < length { Parsed::Incomplete } else { complete });
    };
    let tlvs = FIXED + address_bytes;
    if length < tlvs {
        return Err(Malformed::Addresses);
    }
    let Some(header) = bytes.get(..length) else { return Ok(Parsed::Incomplete) };
    check_tlvs(header, tlvs)?;
    Ok(Parsed::Complete { ends: ends(family, &header[FIXED..tlvs]), length })
}

/// The two ends in a block of addresses; `None` where they have none of the network.
fn ends(family: u8, block: &[u8]) -> Option<Ends> {
    let (source, destination, ports) = match family {
        TCP_OVER_IPV4 => {
            let (source, rest) = block.split_first_chunk::<4>()?;
            let (destination, ports) = rest.split_first_chunk::<4>()?;
            (IpAddr::from(*source), IpAddr::from(*destination), ports)
        }
        TCP_OVER_IPV6 => {
            let (source, rest) = block.split_first_chunk::<16>()?;
            let (destination, ports) = rest.split_first_chunk::<16>()?;
            (IpAddr::from(*source), IpAddr::from(*destination), ports)
        }
        _ => return None,
    };
    let &[a, b, c, d] = ports.first_chunk()?;
    let (source_port, destination_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Some(Ends::new(SocketAddr::new(source, source_port), SocketAddr::new(destination, destination_port)))
}

/// Walks the type-length-value fields from `start` to the header's end; a checksum among them must
/// be right.
fn check_tlvs(header: &[u8], start: usize) -> Result<(), Malformed> {
    let mut checksum = None;
    let mut at = start;
    while let Some(&[kind, high, low]) = header[at..].first_chunk() {
        let value = at + 3;
        let end = value + usize::from(u16::from_be_bytes([high, low]));
        let bytes = header.get(value..end).ok_or(Malformed::Tlv)?;
        if kind == CRC32C {
            let expected = bytes.try_into().map(u32::from_be_bytes).map_err(|_| Malformed::Tlv)?;
            if checksum.replace((value, expected)).is_some() {
                return Err(Malformed::Tlv);
            }
        }
        at = end;
    }
    if at != header.len() {
        return Err(Malformed::Tlv);
    }
    match checksum {
        Some((value, expected)) if crc32c(header, value) != expected => Err(Malformed::Checksum),
        _ => Ok(()),
    }
}

/// CRC-32C (RFC 4960, appendix B) with the four bytes at `checksum` taken as zeros. Bit by bit: few
/// senders have one, and then it is of a few hundred bytes once a connection.
fn crc32c(header: &[u8], checksum: usize) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = !0;
    for (at, byte) in header.iter().enumerate() {
        crc ^= if (checksum..checksum + 4).contains(&at) { 0 } else { u32::from(*byte) };
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
        }
    }
    !crc
}

/// The header of a connection that is made for a client. Ends of two families are sent as IPv6.
pub fn write(ends: &Ends) -> Vec<u8> {
    let Ends { source, destination } = ends;
    let mut header = Vec::with_capacity(FIXED + 2 * 16 + 2 * 2);
    header.extend_from_slice(SIGNATURE);
    header.push(VERSION << 4 | COMMAND_PROXY);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header.extend_from_slice(&[TCP_OVER_IPV4, 0, 2 * 4 + 2 * 2]);
            header.extend([source, destination].iter().flat_map(Ipv4Addr::octets));
        }
        (source, destination) => {
            header.extend_from_slice(&[TCP_OVER_IPV6, 0, 2 * 16 + 2 * 2]);
            header.extend([source, destination].into_iter().flat_map(|ip| in_ipv6(ip).octets()));
        }
    }
    header.extend(source.port().to_be_bytes());
    header.extend(destination.port().to_be_bytes());
    header
}

fn in_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IPV4: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 0x12, 0x34, 0x01, 0xbb];

    /// A header with this body.
    fn header(version_and_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[version_and_command, family], &length, body].concat()
    }

    fn tcp4(tlvs: &[u8]) -> Vec<u8> {
        header(0x21, TCP_OVER_IPV4, &[IPV4, tlvs].concat())
    }

    fn read(bytes: &[u8]) -> Result<Option<(String, String)>, Malformed> {
        let Parsed::Complete { ends, length } = parse(bytes)? else { panic!("not complete") };
        assert_eq!(length, bytes.len());
        Ok(ends.map(|ends| (ends.source.to_string(), ends.destination.to_string())))
    }

    fn named() -> (String, String) {
        ("1.2.3.4:4660".to_owned(), "5.6.7.8:443".to_owned())
    }

    #[test]
    fn reads_both_families_of_tcp() {
        assert_eq!(read(&tcp4(b"")), Ok(Some(named())));
        let mut body = [[0xfd; 16], [0; 16]].concat();
        body.extend([0, 1, 0, 0]);
        let ends = ("[fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:1".to_owned(), "[::]:0".to_owned());
        assert_eq!(read(&header(0x21, TCP_OVER_IPV6, &body)), Ok(Some(ends)));
    }

    #[test]
    fn local_unspecified_and_unix_ends_are_none() {
        assert_eq!(read(&LOCAL), Ok(None));
        for bytes in [
            // Addresses that a local connection must not be believed.
            header(0x20, TCP_OVER_IPV4, IPV4),
            header(0x20, TCP_OVER_IPV4, b"short"),
            header(0x20, 0xff, b""),
            header(0x21, UNSPECIFIED, b""),
            header(0x21, UNSPECIFIED, IPV4),
            header(0x21, UNIX_STREAM, &[b'/'; 216]),
            header(0x21, UNIX_STREAM, &[&[b'/'; 216][..], &[4, 0, 0]].concat()),
        ] {
            assert_eq!(read(&bytes), Ok(None), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn refuses_other_versions_commands_and_families() {
        for (version_and_command, expected) in [
            (0x01, Malformed::Version),
            (0x11, Malformed::Version),
            (0x31, Malformed::Version),
            (0xf0, Malformed::Version),
            (0x22, Malformed::Command),
            (0x2f, Malformed::Command),
        ] {
            assert_eq!(parse(&header(version_and_command, TCP_OVER_IPV4, IPV4)), Err(expected));
        }
        for family in [0x01, 0x02, 0x10, 0x12, 0x13, 0x20, 0x22, 0x30, 0x32, 0x41, 0xff] {
            assert_eq!(parse(&header(0x21, family, &[0; 216])), Err(Malformed::Family), "{family:#x}");
        }
    }

    #[test]
    fn refuses_addresses_that_are_cut_short() {
        for (family, whole) in [(TCP_OVER_IPV4, 12), (TCP_OVER_IPV6, 36), (UNIX_STREAM, 216)] {
            for length in [0, 1, whole - 1] {
                let bytes = header(0x21, family, &vec![0; length]);
                assert_eq!(parse(&bytes), Err(Malformed::Addresses));
                assert_eq!(parse(&bytes[..FIXED]), Err(Malformed::Addresses), "before they are there");
            }
            assert!(read(&header(0x21, family, &vec![0; whole])).is_ok());
        }
    }

    #[test]
    fn a_header_is_at_most_so_long() {
        let with = |length: usize| {
            let value = length - FIXED - IPV4.len() - 3;
            let [high, low] = u16::try_from(value).unwrap().to_be_bytes();
            tcp4(&[&[4, high, low], vec![0; value].as_slice()].concat())
        };
        assert_eq!(read(&with(LONGEST)), Ok(Some(named())));
        assert_eq!(parse(&with(LONGEST)[..LONGEST - 1]), Ok(Parsed::Incomplete));
        assert_eq!(parse(&with(LONGEST + 1)[..FIXED]), Err(Malformed::TooLong));
        for command in [0x20, 0x21] {
            let endless = [SIGNATURE, &[command, TCP_OVER_IPV4, 0xff, 0xff]].concat();
            assert_eq!(parse(&endless), Err(Malformed::TooLong));
        }
    }

    #[test]
    fn fields_behind_the_addresses_fill_the_header() {
        for tlvs in [&b"\x04\0\0"[..], b"\x02\0\x03a.b\xe0\0\x01\0", b"\x20\0\0\x20\0\0"] {
            assert_eq!(read(&tcp4(tlvs)), Ok(Some(named())), "{}", tlvs.escape_ascii());
        }
        for tlvs in
            [&b"\x04"[..], b"\x04\0", b"\x04\0\x01", b"\x04\0\0\x04", b"\x04\xff\xff", b"\x02\0\x04a.b"]
        {
            assert_eq!(parse(&tcp4(tlvs)), Err(Malformed::Tlv), "{}", tlvs.escape_ascii());
        }
    }

    #[test]
    fn a_checksum_must_be_right_and_alone() {
        assert_eq!(crc32c(b"123456789", 9), 0xe306_9283);
        let tlv = |crc: u32| [&[CRC32C, 0, 4][..], &crc.to_be_bytes()].concat();
        let before = [&b"\x02\0\x03a.b"[..], &tlv(0), b"\x04\0\0"].concat();
        let right = crc32c(&tcp4(&before), usize::MAX - 4);
        let with = |crc| [&b"\x02\0\x03a.b"[..], &tlv(crc), b"\x04\0\0"].concat();
        assert_eq!(read(&tcp4(&with(right))), Ok(Some(named())));
        assert_eq!(parse(&tcp4(&with(right ^ 1))), Err(Malformed::Checksum));
        assert_eq!(parse(&tcp4(&tlv(0))), Err(Malformed::Checksum));
        assert_eq!(parse(&tcp4(&[tlv(right), tlv(right)].concat())), Err(Malformed::Tlv));
        for tlvs in [&b"\x03\0\0"[..], b"\x03\0\x03abc", b"\x03\0\x05abcde"] {
            assert_eq!(parse(&tcp4(tlvs)), Err(Malformed::Tlv));
        }
    }

    #[test]
    fn writes_the_bytes_of_the_specification() {
        let ends = Ends::new("1.2.3.4:4660".parse().unwrap(), "[::ffff:5.6.7.8]:443".parse().unwrap());
        assert_eq!(write(&ends), tcp4(b""));
        let ends = Ends::new("[2001:db8::1]:1".parse().unwrap(), "5.6.7.8:2".parse().unwrap());
        let written = write(&ends);
        assert_eq!(written[..FIXED], *b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24");
        assert_eq!(written.len(), FIXED + 36);
        assert_eq!(read(&written), Ok(Some(("[2001:db8::1]:1".to_owned(), "5.6.7.8:2".to_owned()))));
    }
}
