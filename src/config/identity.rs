//! Which fields of a stranger are dropped, because backends take them from the proxy in front of
//! them: the client's address, scheme, host and path, its certificate, its user.
//!
//! Every field of every request is looked at, so a name is first held against a table of how names
//! begin and how long they are; what nearly all fields have is not in it.

use std::sync::LazyLock;

use toml::de::DeValue;

use super::{
    reader::Table,
    values::{Outcome, Refusal, string},
};

/// What backends commonly believe, by who reads or writes it.
pub const DEFAULT: &[&str] = &[
    // Rails, Django, PHP, Java, and the proxies in front of them.
    "client-ip",
    "forwarded-for",
    "proxy-client-ip",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded",
    "x-forwarded-*",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-real-ip",
    // Scheme, host and path instead of those of the request: Rack, IIS, ASP.NET, Symfony.
    "front-end-https",
    "x-host",
    "x-http-host-override",
    "x-original-*",
    "x-rewrite-url",
    "x-scheme",
    "x-url-scheme",
    // Who the user is: CGI, Kubernetes, Grafana, oauth2-proxy, identity-aware proxies.
    "remote-addr",
    "remote-email",
    "remote-groups",
    "remote-name",
    "remote-user",
    "x-amzn-oidc-*",
    "x-auth-request-*",
    "x-authenticated-*",
    "x-goog-authenticated-*",
    "x-ms-client-principal*",
    "x-remote-*",
    "x-webauth-*",
    // The client's certificate: RFC 9440, nginx, HAProxy, AWS.
    "client-cert",
    "client-cert-chain",
    "ssl-client-*",
    "x-amzn-mtls-*",
    "x-client-cert*",
    "x-ssl-*",
    // Content delivery networks, clouds and other proxies.
    "cf-connecting-*",
    "cf-ipcountry",
    "cf-pseudo-ipv4",
    "cf-visitor",
    "do-connecting-ip",
    "fastly-client-ip",
    "fastly-ssl",
    "fly-client-ip",
    "fly-forwarded-*",
    "wl-proxy-*",
    "x-appengine-*",
    "x-arr-*",
    "x-azure-*",
    "x-envoy-*",
];

/// Names of fields, whole or by how they begin.
#[derive(Clone, Debug)]
pub struct IdentityFields {
    /// Lower case, as are the prefixes.
    names: Vec<Box<[u8]>>,
    prefixes: Vec<Box<[u8]>>,
    /// For each way to begin, a bit for each length that a name in here has.
    lengths: Box<[u64; BEGINNINGS]>,
}

const BEGINNINGS: usize = 64;
/// Stands for every length from here on.
const LONGEST: usize = 63;

impl IdentityFields {
    /// Reads patterns: names, or beginnings of names that end in `*`; at least two characters each.
    pub fn new<'p>(patterns: impl IntoIterator<Item = &'p str>) -> Self {
        let mut fields =
            IdentityFields { names: Vec::new(), prefixes: Vec::new(), lengths: Box::new([0; BEGINNINGS]) };
        for pattern in patterns {
            let pattern = pattern.to_ascii_lowercase().into_bytes();
            let (name, lengths, list) = match pattern.strip_suffix(b"*") {
                Some(prefix) => (prefix, prefix.len()..=LONGEST, &mut fields.prefixes),
                None => (&pattern[..], pattern.len()..=pattern.len(), &mut fields.names),
            };
            let lengths = lengths.fold(0, |bits, length| bits | bit(length));
            if let Some(beginning) = beginning(name) {
                fields.lengths[beginning] |= lengths;
                list.push(name.into());
            }
        }
        fields
    }

    /// Whether a field of this lower-case name is one of them, or read as one of them by programs that
    /// make variables of names (`x.real.ip`).
    pub fn holds(&self, name: &[u8]) -> bool {
        let may_hold =
            beginning(name).is_some_and(|beginning| self.lengths[beginning] & bit(name.len()) != 0);
        may_hold && self.is_listed(name)
    }

    #[cold]
    fn is_listed(&self, name: &[u8]) -> bool {
        let name: Vec<u8> = name.iter().copied().map(as_read).collect();
        self.names.iter().any(|each| **each == name[..])
            || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }
}

fn bit(length: usize) -> u64 {
    1 << length.min(LONGEST)
}

/// Which of the ways to begin this is: by the first two bytes, which few names share with `x-`.
fn beginning(name: &[u8]) -> Option<usize> {
    let [first, second, ..] = name else { return None };
    Some(usize::from(first.wrapping_mul(7) ^ as_read(*second)) % BEGINNINGS)
}

/// Symbols all become `_` in the names of variables, as `-` does.
fn as_read(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte } else { b'-' }
}

impl Default for IdentityFields {
    fn default() -> Self {
        IdentityFields::new(DEFAULT.iter().copied())
    }
}

/// Whether a field of this lower-case name tells who the client is, whatever the configuration says.
pub fn is_identity(name: &[u8]) -> bool {
    static KNOWN: LazyLock<IdentityFields> = LazyLock::new(IdentityFields::default);
    KNOWN.holds(name)
}

/// Reads `identity_fields`, where it is written.
pub(super) fn read(table: &mut Table<'_>) -> Option<IdentityFields> {
    let patterns = table.list("identity_fields", pattern)?;
    Some(IdentityFields::new(patterns.iter().map(|at| at.value.as_str())))
}

fn pattern(value: &DeValue<'_>) -> Outcome<String> {
    let refusal = || Refusal::new("the name of a field such as \"x-real-ip\", or \"x-forwarded-*\"");
    let text = string(value, &refusal().expected)?;
    let name = text.strip_suffix('*').unwrap_or(text);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.contains('_') {
        return Err(refusal().help(format!("write \"{}\"", text.replace('_', "-"))));
    }
    if name.len() < 2 || !name.bytes().all(plain) {
        return Err(refusal());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_names_and_beginnings_and_what_is_read_as_one_of_them() {
        let fields = IdentityFields::default();
        for name in [
            "x-real-ip",
            "true-client-ip",
            "x-forwarded",
            "x-forwarded-",
            "x-forwarded-port",
            "x-forwarded-for",
            "x-original-url",
            "cf-connecting-ip",
            "cf-connecting-ipv6",
            "remote-user",
            "client-cert",
            "x.real.ip",
            "x_real_ip",
            "x-real~ip",
            "x-forwarded.user",
        ] {
            assert!(fields.holds(name.as_bytes()) && is_identity(name.as_bytes()), "{name}");
        }
        let long = format!("x-forwarded-{}", "x".repeat(100));
        assert!(fields.holds(long.as_bytes()));
        for name in [
            "",
            "x",
            "x-",
            "x-real-i",
            "x-real-ip2",
            "xx-real-ip",
            "x-forwarde",
            "accept",
            "cookie",
            "referer",
            "authorization",
            "x-requested-with",
            "content-type",
            "x-csrf-token",
            "cf-ray",
            "client-ips",
            "remote",
            "user-agent",
            "x-http-method-override",
            "sec-fetch-mode",
            "x-amzn-trace-id",
        ] {
            assert!(!fields.holds(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn holds_what_it_was_given_and_nothing_else() {
        let fields = IdentityFields::new(["X-Tenant", "ab*"]);
        for (name, held) in [
            ("x-tenant", true),
            ("x-tenants", false),
            ("x-real-ip", false),
            ("ab", true),
            ("abc", true),
            ("a", false),
            ("ac", false),
        ] {
            assert_eq!(fields.holds(name.as_bytes()), held, "{name}");
        }
        assert!(!IdentityFields::new([]).holds(b"x-real-ip"));
    }

    #[test]
    fn a_name_of_any_length_is_found() {
        for length in 2..=200 {
            let name = "n".repeat(length);
            let fields = IdentityFields::new([name.as_str()]);
            assert!(fields.holds(name.as_bytes()), "{length}");
            assert!(!fields.holds(&[name.as_bytes(), b"n"].concat()), "{length}");
        }
    }

    #[test]
    fn the_reference_lists_the_default() {
        let text = include_str!("../../config/reference.toml");
        let (_, list) = text.split_once("\nidentity_fields = [").unwrap();
        let (list, _) = list.split_once(']').unwrap();
        let names: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
        assert_eq!(names, DEFAULT);
    }

    #[test]
    fn common_fields_are_told_apart_by_the_table_alone() {
        let fields = IdentityFields::default();
        let common = [
            "accept",
            "accept-encoding",
            "accept-language",
            "authorization",
            "cache-control",
            "connection",
            "content-length",
            "content-type",
            "cookie",
            "dnt",
            "host",
            "if-modified-since",
            "if-none-match",
            "origin",
            "pragma",
            "priority",
            "range",
            "referer",
            "sec-ch-ua",
            "sec-ch-ua-mobile",
            "sec-ch-ua-platform",
            "sec-fetch-dest",
            "sec-fetch-mode",
            "sec-fetch-site",
            "sec-fetch-user",
            "te",
            "upgrade-insecure-requests",
            "user-agent",
        ];
        let slow = common.map(str::as_bytes).into_iter().filter(|name| {
            beginning(name).is_some_and(|beginning| fields.lengths[beginning] & bit(name.len()) != 0)
        });
        let slow: Vec<_> = slow.map(|name| name.escape_ascii().to_string()).collect();
        assert!(slow.is_empty(), "{slow:?}");
    }
}
