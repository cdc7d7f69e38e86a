//! Who the client is: the peer itself, or whom trusted peers in front of us name.

use std::net::IpAddr;

use ipnet::IpNet;

/// Whether `address` lies in one of the networks; an IPv4 address mapped into IPv6 counts as IPv4.
pub fn is_trusted(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// The client's address: walking `x-forwarded-for` from the right, the first one that is not a
/// trusted proxy. Only for requests of a trusted peer.
///
/// An entry that is no address ends the walk: what stands left of it can't be believed.
pub fn forwarded_for<'v>(
    values: impl DoubleEndedIterator<Item = &'v [u8]>,
    trusted: &[IpNet],
    peer: IpAddr,
) -> IpAddr {
    let entries = values.rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
    farthest(entries.map(parse_entry), trusted, peer)
}

/// The first address that is not a trusted proxy, or the last one; `peer` where there is none. What
/// is no address ends the walk.
pub fn farthest(hops: impl Iterator<Item = Option<IpAddr>>, trusted: &[IpNet], peer: IpAddr) -> IpAddr {
    let mut client = peer;
    for hop in hops {
        let Some(address) = hop else { break };
        client = address;
        if !is_trusted(trusted, address) {
            break;
        }
    }
    client
}

/// An address, with or without a port; IPv6 may stand in brackets.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    let address = text.parse().ok().or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|a| a.ip()));
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(bare).map(|address| IpAddr::to_canonical(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(values: &[&str], trusted: &[&str]) -> String {
        let trusted: Vec<IpNet> = trusted.iter().map(|network| network.parse().unwrap()).collect();
        let values = values.iter().map(|value| value.as_bytes());
        forwarded_for(values, &trusted, "10.0.0.1".parse().unwrap()).to_string()
    }

    #[test]
    fn takes_the_last_address_that_is_not_a_proxy() {
        let trusted = ["10.0.0.0/8", "fd00::/8"];
        assert_eq!(client(&["6.6.6.6, 1.2.3.4, 10.0.0.2"], &trusted), "1.2.3.4");
        assert_eq!(client(&["6.6.6.6", "1.2.3.4:55, 10.9.9.9"], &trusted), "1.2.3.4");
        assert_eq!(client(&["[2001:db8::1]:443, [fd00::5]"], &trusted), "2001:db8::1");
        assert_eq!(client(&["::ffff:1.2.3.4"], &trusted), "1.2.3.4");
    }

    #[test]
    fn stops_at_an_entry_that_is_no_address() {
        assert_eq!(client(&["1.2.3.4, unknown, 10.0.0.2"], &["10.0.0.0/8"]), "10.0.0.2");
        assert_eq!(client(&["1.2.3.4,,"], &["10.0.0.0/8"]), "10.0.0.1");
        assert_eq!(client(&[], &[]), "10.0.0.1");
    }

    #[test]
    fn falls_back_to_the_farthest_proxy_where_all_are_trusted() {
        assert_eq!(client(&["10.0.0.3, 10.0.0.2"], &["10.0.0.0/8"]), "10.0.0.3");
    }

    #[test]
    fn trusts_a_mapped_address_as_its_ipv4_form() {
        let networks = ["192.0.2.0/24".parse().unwrap()];
        assert!(is_trusted(&networks, "::ffff:192.0.2.9".parse().unwrap()));
        assert!(!is_trusted(&networks, "192.0.3.9".parse().unwrap()));
    }
}
