//! `x-forwarded-for` and `forwarded`: no panic, what a stranger writes can't change what proxies
//! behind it say, and the chain that we pass on has one reading.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use portcullis::proxy::{client, forwarded};

const PEER: [u8; 4] = [10, 0, 0, 1];
const OURS: &[u8] = b"for=\"[2001:db8::1]\";host=\"a:1\";proto=https";

// Values of several fields of one name, a line each.
fuzz_target!(|data: &[u8]| {
    let values: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let (trusted, peer) = (["10.0.0.0/8".parse().unwrap()], IpAddr::from(PEER));

    let of = |values: &[&[u8]]| {
        let walk = |values: &[&[u8]]| client::forwarded_for(values.to_vec().into_iter(), &trusted, peer);
        (walk(values), forwarded::client(values.to_vec().into_iter(), &trusted, peer))
    };
    for found in [of(&values).0, of(&values).1] {
        assert_eq!(found, found.to_canonical());
    }

    // A trusted proxy adds to the last field, or a field of its own; a stranger asked it.
    let named = IpAddr::from([192, 0, 2, 7]);
    for (x, rfc) in [("192.0.2.7", "for=192.0.2.7"), ("192.0.2.7, 10.0.0.9", "for=192.0.2.7, for=10.0.0.9")] {
        for separator in [&b", "[..], b","] {
            let with = |added: &str| [data, separator, added.as_bytes()].concat();
            let (x, rfc) = (with(x), with(rfc));
            let lines =
                |value: &[u8]| value.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
            let (x, rfc) = (lines(&x), lines(&rfc));
            assert_eq!(of(&x.iter().map(Vec::as_slice).collect::<Vec<_>>()).0, named);
            assert_eq!(of(&rfc.iter().map(Vec::as_slice).collect::<Vec<_>>()).1, named);
        }
    }

    let chain = forwarded::chain(values.iter().copied(), OURS);
    let kept: Vec<&[u8]> = forwarded::elements([chain.as_slice()].into_iter()).map(|one| one.text).collect();
    assert_eq!(kept[0], OURS);
    let forward = from_the_left(&chain);
    assert!(forward.iter().eq(kept.iter().rev()), "{}", chain.escape_ascii());
});

/// The elements as a backend finds them that reads from the left.
fn from_the_left(chain: &[u8]) -> Vec<&[u8]> {
    let (mut elements, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in chain.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                elements.push(chain[start..at].trim_ascii());
                start = at + 1;
            }
            _ => {}
        }
    }
    assert!(!quoted);
    elements.push(chain[start..].trim_ascii());
    elements
}
