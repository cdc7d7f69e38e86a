//! Lists of networks: no panic, and a lookup finds what a walk over all prefixes finds.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use portcullis::config::{Networks, Verdict, network_of};

// A network a line; one that begins with `!` is denied.
fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut entries = Vec::new();
    for line in text.lines().take(64) {
        let (verdict, line) = match line.strip_prefix('!') {
            Some(line) => (Verdict::Deny, line),
            None => (Verdict::Admit, line),
        };
        let Ok(network) = network_of(line) else { continue };
        assert_eq!(network_of(&network.to_string()), Ok(network));
        entries.push((network, verdict));
    }
    let networks = Networks::new(entries.iter().copied());
    for address in entries.iter().flat_map(|(network, _)| around(network)) {
        assert_eq!(networks.find(address), by_walking(&entries, address), "{address} in {entries:?}");
    }
});

/// First and last address of a network, their neighbours, and the IPv4 ones written as IPv6.
fn around(network: &IpNet) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for end in [network.network(), network.broadcast()] {
        match end {
            IpAddr::V4(end) => {
                for bits in [end.to_bits().wrapping_sub(1), end.to_bits(), end.to_bits().wrapping_add(1)] {
                    let address = Ipv4Addr::from_bits(bits);
                    addresses.extend([IpAddr::from(address), address.to_ipv6_mapped().into()]);
                }
            }
            IpAddr::V6(end) => {
                for bits in [end.to_bits().wrapping_sub(1), end.to_bits(), end.to_bits().wrapping_add(1)] {
                    addresses.push(Ipv6Addr::from_bits(bits).into());
                }
            }
        }
    }
    addresses
}

/// The longest prefix decides; of equal ones the denial.
fn by_walking(entries: &[(IpNet, Verdict)], address: IpAddr) -> Option<Verdict> {
    let address = address.to_canonical();
    let holding = entries.iter().filter(|(network, _)| network.contains(&address));
    holding.max_by_key(|(network, verdict)| (network.prefix_len(), *verdict)).map(|(_, verdict)| *verdict)
}
