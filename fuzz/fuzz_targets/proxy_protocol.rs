//! PROXY protocol headers: no panic, drips find the same end, and what was read is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::http::proxy_protocol::{Ends, LONGEST, Parsed, parse, write};

fuzz_target!(|data: &[u8]| {
    let whole = parse(data);
    let decided = (0..=data.len()).find(|end| parse(&data[..*end]) != Ok(Parsed::Incomplete));
    match (whole, decided) {
        (Ok(Parsed::Incomplete), decided) => {
            assert_eq!(decided, None);
            assert!(data.len() < LONGEST);
        }
        // Bytes behind the header change nothing.
        (Ok(Parsed::Complete { ends, length }), decided) => {
            assert_eq!(decided, Some(length));
            assert!(length <= LONGEST);
            assert_eq!(parse(&data[..length]), whole);
            ends.iter().for_each(|ends| check(ends, &data[..length]));
        }
        (Err(malformed), decided) => assert_eq!(parse(&data[..decided.unwrap()]), Err(malformed)),
    }
});

/// The ends are those of the bytes, read another way.
fn check(ends: &Ends, header: &[u8]) {
    let written = write(ends);
    assert_eq!(parse(&written), Ok(Parsed::Complete { ends: Some(*ends), length: written.len() }));
    let Ends { source, destination } = ends;
    if header.starts_with(b"PROXY TCP4") {
        let (from, to) = (source.ip(), destination.ip());
        let line = format!("PROXY TCP4 {from} {to} {} {}\r\n", source.port(), destination.port());
        assert_eq!(line.as_bytes(), header);
    } else if !header.starts_with(b"PROXY") && header[13] == 0x11 {
        assert_eq!(written[16..], header[16..28]);
    }
}
