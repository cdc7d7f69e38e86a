//! The PROXY protocol: who a connection is for, said in front of its first byte.
//!
//! After HAProxy's `doc/proxy-protocol.txt`. Reading is a function of the bytes so far, so a header
//! may come in any number of pieces; both versions are read, the binary one is written.

mod v1;
mod v2;

use std::{fmt, net::SocketAddr};

pub use self::v2::{LOCAL, write};

/// The longest header that is read, as nginx has it: addresses with the TLVs of every sender that is
/// known (cloud balancers, a client certificate's names) are shorter by far.
pub const LONGEST: usize = 4096;

/// The two ends of the connection that a client made; IPv4 addresses are never in their IPv6 form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client.
    pub source: SocketAddr,
    /// What the client reached.
    pub destination: SocketAddr,
}

/// What stands at the beginning of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Every byte so far belongs to the header, and more of it follows.
    Incomplete,
    Complete {
        /// `None`: the sender speaks for itself, or of ends that have no address.
        ends: Option<Ends>,
        /// Bytes of the header; what follows is the connection's own.
        length: usize,
    },
}

/// Why the bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Neither version begins like this.
    Signature,
    TooLong,
    /// The line of version 1 is not what the grammar says.
    Line,
    /// Another version than 2 behind the signature of version 2.
    Version,
    Command,
    /// No family that a TCP connection can have.
    Family,
    /// Shorter than the family's addresses.
    Addresses,
    /// The fields behind the addresses don't end where the header does.
    Tlv,
    Checksum,
}

/// Reads a header from the first bytes of a connection.
///
/// Says `Incomplete` only of fewer than `LONGEST` bytes. Cost: linear in the header.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    if begins(bytes, v2::SIGNATURE) {
        v2::parse(bytes)
    } else if begins(bytes, v1::SIGNATURE) {
        v1::parse(bytes)
    } else {
        Err(Malformed::Signature)
    }
}

/// Whether the bytes are the signature's beginning, or begin with it.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    let common = bytes.len().min(signature.len());
    bytes[..common] == signature[..common]
}

impl Ends {
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Ends { source: canonical(source), destination: canonical(destination) }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Signature => "no PROXY protocol header",
            Malformed::TooLong => "the header is too long",
            Malformed::Line => "the line of version 1 is malformed",
            Malformed::Version => "an unknown version",
            Malformed::Command => "an unknown command",
            Malformed::Family => "no address family of a TCP connection",
            Malformed::Addresses => "the addresses are cut short",
            Malformed::Tlv => "the fields behind the addresses are malformed",
            Malformed::Checksum => "the checksum is wrong",
        })
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn address(v6: bool) -> impl Strategy<Value = SocketAddr> {
        let ipv4 = any::<[u8; 4]>().prop_map(IpAddr::from);
        let ipv6 = any::<[u8; 16]>().prop_map(IpAddr::from);
        let ip = if v6 { ipv6.boxed() } else { ipv4.boxed() };
        (ip, any::<u16>()).prop_map(SocketAddr::from)
    }

    fn ends() -> impl Strategy<Value = Ends> {
        any::<bool>()
            .prop_flat_map(|v6| (address(v6), address(v6)))
            .prop_map(|(source, destination)| Ends::new(source, destination))
    }

    /// Both spellings of a header.
    fn headers(ends: &Ends) -> [Vec<u8>; 2] {
        let Ends { source, destination } = ends;
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let line = format!(
            "PROXY {family} {} {} {} {}\r\n",
            source.ip(),
            destination.ip(),
            source.port(),
            destination.port()
        );
        [line.into_bytes(), write(ends)]
    }

    proptest! {
        #[test]
        fn reads_what_is_written_and_leaves_the_rest(ends in ends(), rest in any::<Vec<u8>>()) {
            // A header names both ends in one family; a mapped address would be two.
            prop_assume!(ends.source.is_ipv4() == ends.destination.is_ipv4());
            for header in headers(&ends) {
                let bytes = [header.as_slice(), &rest].concat();
                let complete = Parsed::Complete { ends: Some(ends), length: header.len() };
                prop_assert_eq!(parse(&bytes), Ok(complete));
                for end in 0..header.len() {
                    prop_assert_eq!(parse(&bytes[..end]), Ok(Parsed::Incomplete));
                }
            }
        }

        #[test]
        fn what_is_decided_stays_decided(mut bytes in any::<Vec<u8>>(), kind in 0..3_usize, at in 0..60_usize) {
            let header: &[u8] = [&b""[..], v2::SIGNATURE, b"PROXY TCP4 "][kind];
            bytes.splice(..0, header.iter().copied());
            let first = bytes.get(..at.min(bytes.len())).map_or(Ok(Parsed::Incomplete), parse);
            if first != Ok(Parsed::Incomplete) {
                prop_assert_eq!(parse(&bytes), first);
            }
        }
    }

    #[test]
    fn what_begins_otherwise_is_refused_at_its_first_byte() {
        for bytes in [&b"G"[..], b"\x16\x03\x01", b"proxy TCP4", b"PROXX", b"\r\n\r\n\0\r\nQUIT\r", b" PROXY"]
        {
            assert_eq!(parse(bytes), Err(Malformed::Signature), "{}", bytes.escape_ascii());
        }
        assert_eq!(parse(b""), Ok(Parsed::Incomplete));
    }

    #[test]
    fn mapped_addresses_are_ipv4_addresses() {
        let line = b"PROXY TCP6 ::ffff:1.2.3.4 2001:db8::1 1 2\r\n";
        let Ok(Parsed::Complete { ends: Some(ends), .. }) = parse(line) else { panic!("not complete") };
        assert_eq!(ends.source, "1.2.3.4:1".parse().unwrap());
        assert_eq!(ends.destination, "[2001:db8::1]:2".parse().unwrap());
        let complete = Parsed::Complete { ends: Some(ends), length: write(&ends).len() };
        assert_eq!(parse(&write(&ends)), Ok(complete), "of two families, it is sent as IPv6");
    }
}
