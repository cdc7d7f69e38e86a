//! Names that certificates are for, and what a CA is constrained to.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints, SanType};
use rustls::pki_types::ServerName;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
};

use super::PkiError;

/// What a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectName {
    /// Lower case.
    Dns(String),
    Ip(IpAddr),
}

/// A part of all names: a domain with what is below it, or a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subtree {
    Domain(String),
    Network(IpNet),
}

/// Names that nobody in the Internet has: ICANN's `internal`, and RFC 6761, 1918, 4193.
const PRIVATE: [&str; 8] = [
    "internal",
    "localhost",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "127.0.0.0/8",
    "fc00::/7",
    "::1/128",
];

impl SubjectName {
    /// Reads a DNS name or an address; wildcards are refused: a web server has its own certificate.
    pub fn parse(text: &str) -> Result<Self, PkiError> {
        match ServerName::try_from(text) {
            Ok(ServerName::DnsName(name)) => {
                Ok(SubjectName::Dns(name.as_ref().trim_end_matches('.').to_ascii_lowercase()))
            }
            Ok(ServerName::IpAddress(address)) => Ok(SubjectName::Ip(IpAddr::from(address).to_canonical())),
            Ok(_) | Err(_) => Err(PkiError::InvalidName(text.to_owned())),
        }
    }

    /// The name of its folder.
    pub(super) fn file_name(&self) -> String {
        self.to_string().replace(':', "-")
    }

    pub(super) fn alternative(&self) -> Result<SanType, PkiError> {
        Ok(match self {
            SubjectName::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            SubjectName::Ip(address) => SanType::IpAddress(*address),
        })
    }

    fn is_in(&self, subtree: &Subtree) -> bool {
        match (self, subtree) {
            (SubjectName::Dns(name), Subtree::Domain(domain)) => {
                name == domain || name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
            (SubjectName::Ip(address), Subtree::Network(network)) => network.contains(address),
            (SubjectName::Dns(_), Subtree::Network(_)) | (SubjectName::Ip(_), Subtree::Domain(_)) => false,
        }
    }
}

impl Subtree {
    /// Reads a domain, an address or a network.
    pub fn parse(text: &str) -> Result<Self, PkiError> {
        let refused = || PkiError::InvalidSubtree(text.to_owned());
        if let Ok(network) = text.parse::<IpNet>() {
            return Ok(Subtree::Network(network.trunc()));
        }
        match SubjectName::parse(text).map_err(|_| refused())? {
            SubjectName::Ip(address) => Ok(Subtree::Network(address.into())),
            SubjectName::Dns(domain) => Ok(Subtree::Domain(domain)),
        }
    }

    /// Names that are private everywhere.
    pub fn private() -> Vec<Self> {
        PRIVATE.iter().filter_map(|text| Subtree::parse(text).ok()).collect()
    }
}

/// Says no to a name that is in none of the subtrees.
pub(super) fn check(name: &SubjectName, permitted: &[Subtree]) -> Result<(), PkiError> {
    if permitted.iter().any(|subtree| name.is_in(subtree)) {
        return Ok(());
    }
    Err(PkiError::NotPermitted { name: name.clone(), permitted: permitted.to_vec() })
}

/// The extension of a CA that may sign for these subtrees alone; nothing at all if there are none.
///
/// A kind of names of which nothing is permitted has to be excluded: where only domains are
/// listed, verifiers take any address (RFC 5280 §4.2.1.10).
pub(super) fn constraints(permitted: &[Subtree]) -> NameConstraints {
    let mut excluded = Vec::new();
    if !permitted.iter().any(|each| matches!(each, Subtree::Domain(_))) {
        excluded.push(GeneralSubtree::DnsName(String::new()));
    }
    if !permitted.iter().any(|each| matches!(each, Subtree::Network(IpNet::V4(_)))) {
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)));
    }
    if !permitted.iter().any(|each| matches!(each, Subtree::Network(IpNet::V6(_)))) {
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)));
    }
    let permitted = permitted.iter().map(|each| match each {
        Subtree::Domain(domain) => GeneralSubtree::DnsName(domain.clone()),
        Subtree::Network(network) => GeneralSubtree::IpAddress(cidr(*network)),
    });
    NameConstraints { permitted_subtrees: permitted.collect(), excluded_subtrees: excluded }
}

fn cidr(network: IpNet) -> CidrSubnet {
    CidrSubnet::from_addr_prefix(network.addr(), network.prefix_len())
}

/// What a CA's certificate permits.
pub(super) fn permitted(ca: &X509Certificate<'_>) -> Vec<Subtree> {
    let constraints = ca.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::NameConstraints(constraints) => constraints.permitted_subtrees.as_ref(),
        _ => None,
    });
    constraints.into_iter().flatten().filter_map(|subtree| subtree_of(&subtree.base)).collect()
}

fn subtree_of(name: &GeneralName<'_>) -> Option<Subtree> {
    match name {
        GeneralName::DNSName(domain) => Some(Subtree::Domain((*domain).to_owned())),
        GeneralName::IPAddress(bytes) => {
            let (address, mask) = bytes.split_at(bytes.len() / 2);
            let network = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
                (Ok(address), _) => {
                    IpNet::with_netmask(address.into(), IpAddr::from(<[u8; 4]>::try_from(mask).ok()?))
                }
                (_, Ok(address)) => {
                    IpNet::with_netmask(address.into(), IpAddr::from(<[u8; 16]>::try_from(mask).ok()?))
                }
                _ => return None,
            };
            network.ok().map(Subtree::Network)
        }
        _ => None,
    }
}

/// The names of a certificate that was issued, in their order.
pub(super) fn subjects(certificate: &X509Certificate<'_>) -> Vec<SubjectName> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(SubjectName::Dns((*name).to_owned())),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| SubjectName::Ip(bytes.into())),
                _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| SubjectName::Ip(bytes.into())),
            },
            _ => None,
        })
        .collect()
}

impl fmt::Display for SubjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SubjectName::Dns(name) => f.write_str(name),
            SubjectName::Ip(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for Subtree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subtree::Domain(domain) => f.write_str(domain),
            Subtree::Network(network) => network.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_names_and_addresses_and_no_wildcards() {
        for (text, name) in [("Web1.Internal", "web1.internal"), ("10.0.0.1", "10.0.0.1"), ("::1", "::1")] {
            assert_eq!(SubjectName::parse(text).unwrap().to_string(), name);
        }
        for text in ["", "*.internal", "a b", "web:8080", "../x", "/", "."] {
            assert!(SubjectName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_is_within_its_domain_or_network() {
        let permitted = Subtree::private();
        assert_eq!(permitted.len(), PRIVATE.len());
        let ok = |name: &str| check(&SubjectName::parse(name).unwrap(), &permitted).is_ok();
        for name in ["web1.internal", "internal", "localhost", "10.255.255.255", "::1", "fd00::1"] {
            assert!(ok(name), "{name}");
        }
        for name in
            ["web1", "notinternal", "internal.example.com", "11.0.0.0", "8.8.8.8", "::2", "2001:db8::1"]
        {
            assert!(!ok(name), "{name}");
        }
    }

    #[test]
    fn a_kind_of_which_nothing_is_permitted_is_excluded() {
        let excluded = |texts: &[&str]| {
            let permitted: Vec<Subtree> = texts.iter().map(|text| Subtree::parse(text).unwrap()).collect();
            constraints(&permitted).excluded_subtrees.len()
        };
        assert_eq!(excluded(&["internal", "10.0.0.0/8", "fc00::/7"]), 0);
        assert_eq!(excluded(&["internal"]), 2);
        assert_eq!(excluded(&["10.0.0.0/8"]), 2);
        assert_eq!(excluded(&[]), 3);
    }
}
