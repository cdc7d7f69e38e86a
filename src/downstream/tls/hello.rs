//! What is read off a client hello before its session begins: whether it is all there, which cipher the client likes
//! best, and, where the settings depend on it, which name and protocols it asks for.
//!
//! For the cipher: the library chooses by one order for all clients, and who has no AES in hardware says so by the
//! order of its list (RFC 8446 §4.1.2). A look at the first bytes that arrived is enough; a hello
//! whose list is not among them counts as one without a preference.

use std::{future::poll_fn, io};

use rustls::server::{Accepted, Acceptor, ClientHello};
use tokio::net::TcpStream;

use crate::http::buffer::ReadBuffer;

/// TLS_CHACHA20_POLY1305_SHA256 and the two of TLS 1.2: ECDHE with RSA and with ECDSA.
const CHACHA20: [u16; 3] = [0x1303, 0xcca8, 0xcca9];
const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Where the session id begins: after the headers of record and message, version and random.
const SESSION_ID: usize = 5 + 4 + 2 + 32;

/// The most that a hello may take with its records: 64 KiB, which is what the library takes.
const LARGEST: usize = 96 * 1024;

/// More than a hello takes that is not made to be large: those with post-quantum keys have 2 KiB.
const USUAL: usize = 8 * 1024;

/// A whole hello, parsed; its bytes are still in the buffer.
#[expect(missing_debug_implementations, reason = "what the library parsed has none")]
pub struct Hello(Accepted);

impl Hello {
    pub fn parsed(&self) -> ClientHello<'_> {
        self.0.client_hello()
    }
}

/// Reads until the hello is whole. `None` is for what is none, or ends early: the session that then
/// begins with the same bytes says what is wrong.
pub async fn read(stream: &mut TcpStream, received: &mut ReadBuffer) -> io::Result<Option<Hello>> {
    let mut acceptor = Acceptor::default();
    let mut seen = 0;
    loop {
        let mut new = &received.data()[seen..];
        seen = received.data().len();
        while !new.is_empty() {
            if acceptor.read_tls(&mut new).is_err() {
                return Ok(None);
            }
            match acceptor.accept() {
                Ok(Some(accepted)) => return Ok(Some(Hello(accepted))),
                Ok(None) => {}
                Err(_) => return Ok(None),
            }
        }
        if seen > LARGEST || poll_fn(|cx| received.poll_read(stream, cx)).await? == 0 {
            return Ok(None);
        }
    }
}

/// Reads until the hello is whole, or until that is more than a usual one takes; returns how many bytes the last read
/// had, 0 at the end of the stream. What can't become a hello counts as whole: the session says what is wrong with it.
pub async fn arrive(stream: &mut TcpStream, received: &mut ReadBuffer) -> io::Result<usize> {
    loop {
        let count = poll_fn(|cx| received.poll_read(stream, cx)).await?;
        if count == 0 || received.data().len() > USUAL || is_whole(received.data()) {
            return Ok(count);
        }
    }
}

/// Whether the first message of the handshake is there to its end, or is none (RFC 8446 §4, §5.1).
pub fn is_whole(received: &[u8]) -> bool {
    let (mut rest, mut message) = (received, 0);
    let mut header = [0; 4];
    while let Some(&kind) = rest.first() {
        if kind != HANDSHAKE_RECORD {
            return true;
        }
        let Some(([_, _, _, length @ ..], more)) = rest.split_first_chunk::<5>() else { return false };
        let length = usize::from(u16::from_be_bytes(*length));
        if length == 0 {
            return true;
        }
        let Some((payload, after)) = more.split_at_checked(length) else { return false };
        let missing = &mut header[message.min(4)..];
        missing.iter_mut().zip(payload).for_each(|(to, from)| *to = *from);
        message += length;
        let [kind, length @ ..] = header;
        let wanted = 4 + length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        if message >= 4 && (kind != CLIENT_HELLO || message >= wanted) {
            return true;
        }
        rest = after;
    }
    false
}

/// Whether the client puts ChaCha20 first: it has no AES in hardware.
pub fn prefers_chacha20(received: &[u8]) -> bool {
    first_cipher_suite(received).is_some_and(|suite| CHACHA20.contains(&suite))
}

fn first_cipher_suite(received: &[u8]) -> Option<u16> {
    if received.first() != Some(&HANDSHAKE_RECORD) || received.get(5) != Some(&CLIENT_HELLO) {
        return None;
    }
    let (id_length, rest) = received.get(SESSION_ID..)?.split_first()?;
    let (length, list) = rest.get(usize::from(*id_length)..)?.split_first_chunk()?;
    let list = &list[..list.len().min(usize::from(u16::from_be_bytes(*length)))];
    let suites = list.chunks_exact(2).map(|suite| u16::from_be_bytes([suite[0], suite[1]]));
    suites.into_iter().find(|suite| !is_grease(*suite))
}

/// Reserved values that clients mix in so that nobody chokes on new ones (RFC 8701 §2).
fn is_grease(suite: u16) -> bool {
    let [high, low] = suite.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const AES: u16 = 0x1301;
    const GREASE: u16 = 0x4a4a;

    fn hello(session_id: usize, suites: &[u16]) -> Vec<u8> {
        let mut bytes = vec![22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3];
        bytes.extend([9; 32]);
        bytes.push(u8::try_from(session_id).unwrap());
        bytes.extend(vec![0x13; session_id]);
        bytes.extend(u16::try_from(suites.len() * 2).unwrap().to_be_bytes());
        bytes.extend(suites.iter().flat_map(|suite| suite.to_be_bytes()));
        bytes.extend([1, 0]);
        bytes
    }

    #[test]
    fn finds_chacha20_only_at_the_top_of_the_list() {
        for session_id in [0, 1, 32, 255] {
            for chacha20 in CHACHA20 {
                assert!(prefers_chacha20(&hello(session_id, &[chacha20, AES])));
                assert!(!prefers_chacha20(&hello(session_id, &[AES, chacha20])));
                assert!(prefers_chacha20(&hello(session_id, &[GREASE, chacha20, AES])));
                assert!(!prefers_chacha20(&hello(session_id, &[GREASE, AES, chacha20])));
            }
            assert!(!prefers_chacha20(&hello(session_id, &[])));
            assert!(!prefers_chacha20(&hello(session_id, &[GREASE])));
        }
    }

    #[test]
    fn does_not_look_past_the_end_of_the_list() {
        let mut bytes = hello(0, &[]);
        bytes.extend([0x13, 0x03]);
        assert!(!prefers_chacha20(&bytes));
    }

    #[test]
    fn has_no_preference_for_less_than_a_list() {
        let bytes = hello(32, &[0x1303, AES]);
        let list = SESSION_ID + 1 + 32 + 2;
        for length in 0..list + 2 {
            assert!(!prefers_chacha20(&bytes[..length]), "{length} bytes");
        }
        assert!(prefers_chacha20(&bytes[..list + 2]));
    }

    #[test]
    fn has_no_preference_for_what_is_no_client_hello() {
        for (at, byte) in [(0, 23), (0, 0), (5, 2), (5, 0)] {
            let mut bytes = hello(32, &[0x1303]);
            bytes[at] = byte;
            assert!(!prefers_chacha20(&bytes));
        }
    }

    /// A hello of so many bytes in records of at most so many.
    fn in_records(length: usize, record: usize) -> Vec<u8> {
        let mut message = vec![CLIENT_HELLO];
        message.extend(&u32::try_from(length).unwrap().to_be_bytes()[1..]);
        message.resize(4 + length, 9);
        let records = message.chunks(record).flat_map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[HANDSHAKE_RECORD, 3, 1], &length[..], part].concat()
        });
        records.collect()
    }

    #[test]
    fn is_whole_with_its_last_byte_however_it_is_cut() {
        for record in [1, 3, 4, 5, 250, 300] {
            let bytes = in_records(200, record);
            for length in 0..bytes.len() {
                assert!(!is_whole(&bytes[..length]), "{length} bytes in records of {record}");
            }
            assert!(is_whole(&bytes));
            assert!(is_whole(&[&bytes[..], b"more"].concat()));
        }
    }

    #[test]
    fn what_becomes_no_hello_is_not_waited_for() {
        let bytes = in_records(200, 20);
        for (at, byte) in [(0, 23), (0, b'G'), (5, 2), (25, 21)] {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            let records = at / 25 + 1;
            assert!(is_whole(&bytes[..records * 25]), "byte {at}");
        }
        assert!(is_whole(b"G"));
        assert!(is_whole(&[22, 3, 1, 0, 0]), "an empty record");
    }

    proptest! {
        #[test]
        fn what_the_library_takes_for_a_hello_is_whole_and_not_before(
            suites in vec(any::<u16>(), 1..90), session_id in 0_usize..=32, cut in 1_usize..300,
        ) {
            let hello = hello(session_id, &suites);
            let mut message = vec![CLIENT_HELLO];
            message.extend(&u32::try_from(hello.len() - 9).unwrap().to_be_bytes()[1..]);
            message.extend(&hello[9..]);
            let mut bytes = Vec::new();
            for part in message.chunks(cut) {
                bytes.extend([HANDSHAKE_RECORD, 3, 1]);
                bytes.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
                bytes.extend(part);
            }
            let mut acceptor = Acceptor::default();
            for (at, byte) in bytes.iter().enumerate() {
                acceptor.read_tls(&mut &[*byte][..]).unwrap();
                let taken = !matches!(acceptor.accept(), Ok(None));
                prop_assert_eq!(taken, is_whole(&bytes[..=at]), "at {} of {}", at, bytes.len());
                if taken {
                    break;
                }
            }
        }

        #[test]
        fn takes_any_bytes(mut bytes in vec(any::<u8>(), 0..400), begins_well: bool) {
            if begins_well && bytes.len() > 5 {
                (bytes[0], bytes[5]) = (22, 1);
            }
            prefers_chacha20(&bytes);
        }
    }
}
