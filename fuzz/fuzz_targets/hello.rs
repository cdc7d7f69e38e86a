//! The client hello before TLS: no panic, whole where rustls takes it, and the cipher that rustls finds first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::downstream::tls::hello::{is_whole, prefers_chacha20};
use rustls::{CipherSuite, server::Acceptor};

fuzz_target!(|data: &[u8]| {
    let prefers = prefers_chacha20(data);
    // What comes later does not take back what was seen.
    if prefers {
        assert!(prefers_chacha20(&[data, b"more"].concat()));
    }
    // What the library takes for a hello is not waited for any longer.
    let (mut library, mut rest) = (Acceptor::default(), data);
    while !rest.is_empty() && matches!(library.read_tls(&mut rest), Ok(1..)) {
        match library.accept() {
            Ok(Some(_)) => {
                assert!(is_whole(&data[..data.len() - rest.len()]));
                break;
            }
            Ok(None) => {}
            Err(_) => break,
        }
    }
    // A message in several records is not looked into.
    let [_, _, _, high, low, _, 0, first, second, ..] = data else { return };
    if u16::from_be_bytes([*high, *low]) != u16::from_be_bytes([*first, *second]).saturating_add(4) {
        return;
    }
    let mut acceptor = Acceptor::default();
    if !matches!(acceptor.read_tls(&mut &data[..]), Ok(1..)) {
        return;
    }
    if let Ok(Some(accepted)) = acceptor.accept() {
        let hello = accepted.client_hello();
        let first = hello.cipher_suites().iter().find(|suite| !is_grease(**suite));
        let chacha20 = [
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ];
        assert_eq!(prefers, first.is_some_and(|suite| chacha20.contains(suite)));
    }
});

/// RFC 8701 §2.
fn is_grease(suite: CipherSuite) -> bool {
    let suite = u16::from(suite);
    suite & 0x0f0f == 0x0a0a && suite >> 8 == suite & 0xff
}
