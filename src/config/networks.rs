//! What the lists of a firewall say about an address: the longest prefix that holds it decides.
//!
//! Nested prefixes are flattened into ranges that don't overlap, so that a lookup is one binary
//! search over a plain array, whatever the lists hold. Half a million prefixes take about 5 MiB.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    net::IpAddr,
    path::Path,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::diagnostics::quote;

/// Complaints about one list file; more would only repeat the first ones.
const COMPLAINTS: usize = 5;
/// A file of lists is read whole: a million long prefixes.
const LARGEST_FILE: u64 = 64 << 20;

/// What a list says about its networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Admit,
    /// Wins where the very same prefix is in both lists.
    Deny,
}

/// Networks with their verdicts, ready for lookups.
#[derive(Debug, Default)]
pub struct Networks {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    prefixes: usize,
}

/// Ranges that follow each other without a gap: each reaches to the start of the next.
#[derive(Debug, Default)]
struct Ranges<A> {
    starts: Vec<A>,
    verdicts: Vec<Option<Verdict>>,
}

/// A prefix as first and last address.
struct Span<A> {
    first: A,
    last: A,
    verdict: Verdict,
}

/// An address as a number.
trait Address: Copy + Ord {
    const ZERO: Self;
    fn next(self) -> Option<Self>;
}

impl Address for u32 {
    const ZERO: Self = 0;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Address for u128 {
    const ZERO: Self = 0;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Networks {
    /// Networks as [`network_of`](super::network_of) reads them: mapped IPv4 ones are IPv4.
    pub fn new(entries: impl IntoIterator<Item = (IpNet, Verdict)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (network, verdict) in entries {
            match network {
                IpNet::V4(net) => v4.push(span_v4(net, verdict)),
                IpNet::V6(net) => v6.push(span_v6(net, verdict)),
            }
        }
        let prefixes = v4.len() + v6.len();
        Networks { v4: Ranges::new(v4), v6: Ranges::new(v6), prefixes }
    }

    /// The verdict of the longest prefix that holds the address, if one does; an IPv4 address mapped
    /// into IPv6 counts as IPv4.
    pub fn find(&self, address: IpAddr) -> Option<Verdict> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.find(address.to_bits()),
            IpAddr::V6(address) => self.v6.find(address.to_bits()),
        }
    }

    /// How many prefixes were put in.
    pub fn len(&self) -> usize {
        self.prefixes
    }

    pub fn is_empty(&self) -> bool {
        self.prefixes == 0
    }
}

fn span_v4(net: Ipv4Net, verdict: Verdict) -> Span<u32> {
    Span { first: net.network().to_bits(), last: net.broadcast().to_bits(), verdict }
}

fn span_v6(net: Ipv6Net, verdict: Verdict) -> Span<u128> {
    Span { first: net.network().to_bits(), last: net.broadcast().to_bits(), verdict }
}

impl<A: Address> Ranges<A> {
    fn new(mut spans: Vec<Span<A>>) -> Self {
        // Outer before inner; of equal ones the denial comes last and so lies on top.
        spans.sort_unstable_by(|a, b| (a.first, b.last, a.verdict).cmp(&(b.first, a.last, b.verdict)));
        let mut ranges = Ranges { starts: vec![A::ZERO], verdicts: vec![None] };
        // The prefixes that hold the current one, outermost first.
        let mut open: Vec<Span<A>> = Vec::new();
        for span in spans {
            ranges.close(&mut open, |top| top.last < span.first);
            ranges.push(span.first, Some(span.verdict));
            open.push(span);
        }
        ranges.close(&mut open, |_| true);
        ranges.starts.shrink_to_fit();
        ranges.verdicts.shrink_to_fit();
        ranges
    }

    /// Ends the prefixes on top of `open` that `ends` says; what lies under them holds again.
    fn close(&mut self, open: &mut Vec<Span<A>>, ends: impl Fn(&Span<A>) -> bool) {
        while open.last().is_some_and(&ends) {
            let Some(top) = open.pop() else { return };
            if let Some(after) = top.last.next() {
                self.push(after, open.last().map(|under| under.verdict));
            }
        }
    }

    /// From `start` on the verdict is this one.
    fn push(&mut self, start: A, verdict: Option<Verdict>) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.verdicts.pop();
        }
        if self.verdicts.last() != Some(&verdict) {
            self.starts.push(start);
            self.verdicts.push(verdict);
        }
    }

    fn find(&self, address: A) -> Option<Verdict> {
        let after = self.starts.partition_point(|start| *start <= address);
        *self.verdicts.get(after.checked_sub(1)?)?
    }
}

/// Why a list file can't be used.
#[derive(Debug)]
pub enum ListError {
    Io(io::Error),
    TooLarge,
    /// What is wrong with its first bad lines, and how many bad lines there are.
    Lines(Vec<String>, usize),
}

/// Reads a list: a network or an address a line; blank lines are skipped, and so is what follows a
/// `#` or a `;`.
///
/// # Errors
/// An unreadable file, or one with any line that is neither; nothing is taken from it then.
pub fn read_list(path: &Path) -> Result<Vec<IpNet>, ListError> {
    let file = File::open(path).map_err(ListError::Io)?;
    let mut text = Vec::new();
    // The size that a file claims is nothing to go by: a device has none, and no end.
    file.take(LARGEST_FILE + 1).read_to_end(&mut text).map_err(ListError::Io)?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(ListError::TooLarge);
    }
    parse_list(&String::from_utf8_lossy(&text))
}

fn parse_list(text: &str) -> Result<Vec<IpNet>, ListError> {
    let mut networks = Vec::new();
    let (mut complaints, mut bad) = (Vec::new(), 0);
    for (index, line) in text.lines().enumerate() {
        let entry = line.split(['#', ';']).next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        match parse_network(entry) {
            Ok(network) => networks.push(network),
            Err(meant) => {
                bad += 1;
                if complaints.len() < COMPLAINTS {
                    complaints.push(format!("line {}: {}", index + 1, complaint(entry, meant)));
                }
            }
        }
    }
    if bad == 0 { Ok(networks) } else { Err(ListError::Lines(complaints, bad)) }
}

/// Reads a network such as `10.0.0.0/8`, or one address. IPv4 mapped into IPv6
/// (`::ffff:10.0.0.0/104`) is read as IPv4: whoever looks an address up writes it so.
///
/// # Errors
/// For a network with bits set after its prefix, the one that may be meant.
pub(super) fn parse_network(text: &str) -> Result<IpNet, Option<IpNet>> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let network: IpNet = text.parse().map_err(|_| None)?;
    let whole = canonical(network.trunc());
    if network.trunc() == network { Ok(whole) } else { Err(Some(whole)) }
}

fn canonical(network: IpNet) -> IpNet {
    match network {
        IpNet::V6(net) if net.prefix_len() >= 96 => match net.network().to_ipv4_mapped() {
            Some(address) => Ipv4Net::new(address, net.prefix_len() - 96).map_or(network, IpNet::V4),
            None => network,
        },
        IpNet::V4(_) | IpNet::V6(_) => network,
    }
}

pub(super) fn complaint(entry: &str, meant: Option<IpNet>) -> String {
    let shown = quote(entry);
    match meant {
        Some(meant) => format!("{shown} has bits set after its prefix: did you mean {meant}?"),
        None => format!("expected an IP address or a network such as 10.0.0.0/8, found {shown}"),
    }
}

impl fmt::Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListError::Io(error) => write!(f, "it can't be read: {}", super::pem::system_text(error)),
            ListError::TooLarge => write!(f, "it is larger than {} MiB", LARGEST_FILE >> 20),
            ListError::Lines(complaints, bad) => {
                f.write_str(&complaints.join("; "))?;
                match bad - complaints.len() {
                    0 => Ok(()),
                    more => write!(f, "; and {more} more"),
                }
            }
        }
    }
}

impl std::error::Error for ListError {}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::{Verdict::*, *};

    fn networks(entries: &[(&str, Verdict)]) -> Networks {
        Networks::new(entries.iter().map(|(text, verdict)| (parse_network(text).unwrap(), *verdict)))
    }

    fn find(networks: &Networks, address: &str) -> Option<Verdict> {
        networks.find(address.parse().unwrap())
    }

    #[test]
    fn the_longest_prefix_decides() {
        let networks = networks(&[
            ("10.1.2.0/24", Admit),
            ("10.0.0.0/8", Deny),
            ("10.1.2.3/32", Deny),
            ("10.1.0.0/16", Admit),
            ("255.255.255.255/32", Deny),
            ("2001:db8::/32", Deny),
            ("2001:db8:1::/48", Admit),
        ]);
        let cases = [
            ("9.255.255.255", None),
            ("10.0.0.0", Some(Deny)),
            ("10.1.0.0", Some(Admit)),
            ("10.1.2.2", Some(Admit)),
            ("10.1.2.3", Some(Deny)),
            ("10.1.2.4", Some(Admit)),
            ("10.1.255.255", Some(Admit)),
            ("10.2.0.0", Some(Deny)),
            ("10.255.255.255", Some(Deny)),
            ("11.0.0.0", None),
            ("255.255.255.255", Some(Deny)),
            ("::ffff:10.1.2.3", Some(Deny)),
            ("2001:db8::1", Some(Deny)),
            ("2001:db8:1::1", Some(Admit)),
            ("2001:db9::", None),
        ];
        for (address, expected) in cases {
            assert_eq!(find(&networks, address), expected, "{address}");
        }
    }

    #[test]
    fn denial_wins_in_both_lists_and_everything_may_be_denied() {
        for entries in
            [[("1.2.3.0/24", Admit), ("1.2.3.0/24", Deny)], [("1.2.3.0/24", Deny), ("1.2.3.0/24", Admit)]]
        {
            assert_eq!(find(&networks(&entries), "1.2.3.4"), Some(Deny));
        }
        let all = networks(&[("0.0.0.0/0", Deny), ("::/0", Deny), ("::ffff:1.2.3.0/120", Admit)]);
        assert_eq!(find(&all, "0.0.0.0"), Some(Deny));
        assert_eq!(find(&all, "255.255.255.255"), Some(Deny));
        assert_eq!(find(&all, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Some(Deny));
        assert_eq!(find(&all, "1.2.3.4"), Some(Admit));
        assert_eq!(find(&Networks::default(), "1.2.3.4"), None);
    }

    #[test]
    fn a_list_may_have_comments_and_every_bad_line_is_counted() {
        let networks = parse_list("# head\n\n 10.0.0.0/8 ; SBL1\r\n2001:db8::1\t# one\n1.2.3.4").unwrap();
        let text: Vec<_> = networks.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.0.0.0/8", "2001:db8::1/128", "1.2.3.4/32"]);
        let bad =
            parse_list("10.0.0.1/8\nexample.com\n1.2.3.4\n1.2.3.4/33\nx\nx\nx\nx\n").unwrap_err().to_string();
        assert!(
            bad.contains("line 1: \"10.0.0.1/8\" has bits set after its prefix: did you mean 10.0.0.0/8?"),
            "{bad}"
        );
        assert!(
            bad.contains("line 2:") && bad.contains("\"example.com\"") && bad.ends_with("and 2 more"),
            "{bad}"
        );
    }

    #[test]
    fn reads_ipv4_mapped_into_ipv6_as_ipv4() {
        for (written, meant) in [
            ("::ffff:10.0.0.0/104", Ok("10.0.0.0/8")),
            ("::ffff:a00:0/104", Ok("10.0.0.0/8")),
            ("::ffff:0.0.0.0/96", Ok("0.0.0.0/0")),
            ("::ffff:10.1.2.3/128", Ok("10.1.2.3/32")),
            ("::ffff:10.1.2.3", Ok("10.1.2.3/32")),
            ("::ffff:10.1.2.3/104", Err(Some("10.0.0.0/8"))),
            ("::10.0.0.0/104", Ok("::a00:0/104")),
            ("::/95", Ok("::/95")),
            ("::/0", Ok("::/0")),
        ] {
            let net = |text: &str| text.parse::<IpNet>().unwrap();
            let meant = meant.map(net).map_err(|meant| meant.map(net));
            assert_eq!(parse_network(written), meant, "{written}");
        }
    }

    #[test]
    fn a_device_is_no_list() {
        assert!(matches!(read_list(Path::new("/dev/zero")), Err(ListError::TooLarge)));
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_of_all_prefixes_finds(
            entries in prop::collection::vec((any::<u16>(), 16_u8..=32, any::<bool>()), 0..60),
            probes in prop::collection::vec(any::<u16>(), 20),
        ) {
            // Crowded into few addresses, so that prefixes nest and touch.
            let entries: Vec<(IpNet, Verdict)> = entries
                .iter()
                .map(|(bits, length, deny)| {
                    let net = Ipv4Net::new(Ipv4Addr::from_bits(u32::from(*bits)), *length).unwrap().trunc();
                    (IpNet::V4(net), if *deny { Deny } else { Admit })
                })
                .collect();
            let networks = Networks::new(entries.clone());
            for probe in probes {
                let address = IpAddr::V4(Ipv4Addr::from_bits(u32::from(probe)));
                let best = entries
                    .iter()
                    .filter(|(net, _)| net.contains(&address))
                    .max_by_key(|(net, verdict)| (net.prefix_len(), *verdict));
                prop_assert_eq!(networks.find(address), best.map(|(_, verdict)| *verdict));
            }
        }
    }
}
