//! Chunked bodies: no panic, every split reads the same, and httparse's chunk sizes and
//! hyper agree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::http::{
    h1::{
        framing::{BodyDecoder, BodyError, BodyLimits, Decoded},
        head::Underscores,
    },
    message::BodyLength,
};

const LIMITS: BodyLimits =
    BodyLimits { trailer_bytes: 512, chunk_extension_bytes: 64, fields: 8, underscores: Underscores::Drop };

#[derive(Debug, PartialEq, Eq)]
struct Body {
    payload: Vec<u8>,
    /// `None` while it is not complete.
    end: Option<usize>,
    trailers: Vec<(Vec<u8>, Vec<u8>)>,
}

fuzz_target!(|data: &[u8]| {
    let whole = read(data, usize::MAX, usize::MAX);
    for (piece, appetite) in [(1, usize::MAX), (1, 1), (2, 1), (3, 2), (7, 5), (usize::MAX, 1)] {
        assert_eq!(read(data, piece, appetite), whole, "pieces of {piece}");
    }
    if let Ok(Body { payload, end: Some(end), trailers }) = &whole {
        assert_eq!(payload, &by_httparse(&data[..*end]));
        check_with_hyper(&data[..*end], payload, trailers);
        for (name, _) in trailers {
            let forbidden: [&[u8]; 5] =
                [b"content-length", b"transfer-encoding", b"host", b"authorization", b"x-forwarded-for"];
            assert!(!forbidden.contains(&name.as_slice()));
        }
    }
});

/// Reads a body of which `piece` bytes arrive at a time and `appetite` bytes of payload are taken.
fn read(wire: &[u8], piece: usize, appetite: usize) -> Result<Body, BodyError> {
    let mut decoder = BodyDecoder::new(BodyLength::Streamed, LIMITS);
    let (mut payload, mut start, mut seen) = (Vec::new(), 0, 0);
    let end = loop {
        match decoder.decode(&wire[start..seen])? {
            Decoded::Data { skip, len } => {
                assert!(len > 0);
                let taken = len.min(appetite);
                payload.extend_from_slice(&wire[start + skip..][..taken]);
                decoder.advance(taken);
                start += skip + taken;
            }
            Decoded::NeedMore { skip } => {
                start += skip;
                assert_eq!(start, seen);
                if seen == wire.len() {
                    break None;
                }
                seen = wire.len().min(seen.saturating_add(piece));
            }
            Decoded::End { skip } => break Some(start + skip),
        }
    };
    let trailers = decoder.trailers().map_or(Vec::new(), |fields| {
        fields.iter().map(|(_, name, value)| (name.to_vec(), value.to_vec())).collect()
    });
    Ok(Body { payload, end, trailers })
}

/// The payload of a body that we took, by a parser that takes more.
fn by_httparse(mut wire: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(wire) else {
            panic!("httparse refuses {}", wire.escape_ascii());
        };
        let size = usize::try_from(size).unwrap();
        if size == 0 {
            return payload;
        }
        payload.extend_from_slice(&wire[start..start + size]);
        wire = wire[start + size..].strip_prefix(b"\r\n").expect("CRLF after data");
    }
}

/// hyper finds the same payload, the trailers that we pass on, and the next request behind them.
fn check_with_hyper(wire: &[u8], payload: &[u8], trailers: &[(Vec<u8>, Vec<u8>)]) {
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let seen = hyper_oracle::requests(&[head, wire, hyper_oracle::NEXT].concat());
    let [first, next] = &seen[..] else { panic!("{} for {}", seen.len(), wire.escape_ascii()) };
    assert!(first.body.is_complete, "hyper refuses {}", wire.escape_ascii());
    assert_eq!(first.body.payload, payload);
    for (name, value) in trailers {
        let mut fields = first.body.trailers.iter();
        assert!(
            fields.any(|(theirs, held)| theirs.as_str().as_bytes() == name && held.as_bytes() == value),
            "{:?} for {}",
            first.body.trailers,
            wire.escape_ascii()
        );
    }
    assert_eq!(next.uri, "/next");
}
