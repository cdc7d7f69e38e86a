//! The watch over HTTP/2 frames: no panic, every split gives the same verdict, and no more frames
//! pass than limits and credit explain.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use portcullis::http::h2::watch::{Flood, FrameLimits, Watcher};
use tokio::time::Instant;

const LIMITS: FrameLimits = FrameLimits {
    resets: 3,
    control_frames: 4,
    continuation_frames: 2,
    head_timeout: Duration::from_secs(10),
};
const PREFACE: usize = 24;
const PRIORITY: u8 = 2;
const PING: u8 = 6;

// A length, so many bytes that we sent, and what the client sends.
fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first() else { return };
    let (sent, received) = rest.split_at(rest.len().min(usize::from(*length)));
    let now = Instant::now();
    let whole = watch(sent, received, usize::MAX, now);
    for piece in [1, 2, 7, 9, 10] {
        assert_eq!(watch(sent, received, piece, now), whole, "pieces of {piece}");
    }
    if whole.is_ok() {
        check(sent, received);
    }
});

/// The flood, or when the head that is open must end.
fn watch(sent: &[u8], received: &[u8], piece: usize, now: Instant) -> Result<Option<Instant>, Flood> {
    let mut watcher = Watcher::new(LIMITS);
    sent.chunks(piece.min(sent.len().max(1))).for_each(|piece| watcher.send(piece));
    for piece in received.chunks(piece.min(received.len().max(1))) {
        watcher.receive(piece, now)?;
    }
    Ok(watcher.head_deadline())
}

/// Kind, flags and length of each frame whose head is there.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, usize)> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        frames.push((*kind, *flags, length));
        bytes = rest.get(length..).unwrap_or_default();
    }
    frames
}

fn check(sent: &[u8], received: &[u8]) {
    let Some(received) = received.get(PREFACE..) else { return };
    let received = frames(received);
    let count = |kind: u8| received.iter().filter(|frame| frame.0 == kind).count();
    let data = frames(sent).into_iter().filter(|frame| frame.0 == 0 && frame.2 > 0).count();
    assert!(count(3) <= LIMITS.resets);
    assert!(count(4) <= LIMITS.control_frames);
    assert!(count(PING) <= LIMITS.control_frames + data);
    assert!(count(PRIORITY) <= LIMITS.control_frames + 4 * count(1));
    assert!(received.iter().filter(|frame| frame.0 == 0 && frame.2 == 0 && frame.1 & 1 == 0).count() <= 4);
    let mut pieces = None;
    for (kind, flags, _) in received {
        let ends = flags & 4 != 0;
        pieces = match (kind, pieces) {
            (1, _) => (!ends).then_some(0),
            (9, Some(count)) => {
                assert!(count < LIMITS.continuation_frames);
                (!ends).then_some(count + 1)
            }
            (_, pieces) => pieces,
        };
    }
}
