//! A client's frames: no panic, every split leaves the connection in the same state, and no more frames
//! pass than limits and credit explain.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use portcullis::http::{
    h1::head::{HeadLimits, Underscores},
    h2::{
        floods::FrameLimits,
        multiplexer::{Multiplexer, Settings},
    },
};
use tokio::time::Instant;

const SETTINGS: Settings = Settings {
    streams: 3,
    stream_window: 1000,
    connection_window: 100_000,
    send_buffer: 64 << 10,
    head: HeadLimits {
        head_bytes: 4 << 10,
        uri_bytes: 1 << 10,
        field_bytes: 4 << 10,
        fields: 40,
        underscores: Underscores::Drop,
    },
    trailer_bytes: 2 << 10,
    frames: FrameLimits {
        resets: 3,
        control_frames: 4,
        local_resets: 4,
        continuation_frames: 2,
        head_timeout: Duration::from_secs(10),
    },
    linger: Duration::ZERO,
};
/// What is written for one frame of a client at most: an answer, or a GOAWAY.
const ANSWER: usize = 17;

fuzz_target!(|data: &[u8]| {
    let now = Instant::now();
    let whole = receive(data, data.len(), now);
    let state = state(&whole);
    for piece in [1, 2, 7, 9, 10] {
        assert_eq!(self::state(&receive(data, piece, now)), state, "pieces of {piece}");
    }
    let frames = frames(data);
    assert!(whole.output().len() <= 100 + ANSWER * (frames.len() + 2) * 2);
    if !whole.is_over() {
        check(&frames);
    }
});

/// The connection that has got all the bytes, in pieces of this size.
fn receive(data: &[u8], piece: usize, now: Instant) -> Multiplexer {
    let mut multiplexer = Multiplexer::new(SETTINGS);
    let mut here = Vec::new();
    for piece in data.chunks(piece.max(1)) {
        here.extend_from_slice(piece);
        let taken = multiplexer.receive(&here, now, &mut Box::default);
        here.drain(..taken);
    }
    multiplexer
}

/// All but the sizes of the memory that heads are in: what earlier ones left is used again.
fn state(multiplexer: &Multiplexer) -> String {
    let mut text = format!("{multiplexer:?}");
    for size in ["head_bytes: ", "trailer_bytes: "] {
        let mut parts = text.split(size);
        let first = parts.next().unwrap_or_default().to_owned();
        text = parts.fold(first, |all, part| all + part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    text
}

/// Kind, flags and length of each frame that is there as a whole.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, usize)> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(rest) = rest.get(length..) else { break };
        frames.push((*kind, *flags, length));
        bytes = rest;
    }
    frames
}

fn check(frames: &[(u8, u8, usize)]) {
    let limits = SETTINGS.frames;
    let count = |kind: u8| frames.iter().filter(|frame| frame.0 == kind).count();
    assert!(count(3) <= limits.resets);
    assert!(count(4) <= limits.control_frames);
    assert!(count(6) <= limits.control_frames);
    assert!(count(2) <= limits.control_frames + 4 * count(1));
    assert!(count(8) <= limits.control_frames + 2 * count(1));
    assert!(count(5) == 0 && frames.iter().all(|frame| frame.2 <= 16 << 10));
    let empty = |frame: &&(u8, u8, usize)| frame.0 == 0 && frame.2 == 0 && frame.1 & 1 == 0;
    // What is on its way when a stream is reset is no fault.
    assert!(frames.iter().filter(empty).count() <= limits.control_frames + 100 * count(1));
    let mut pieces = None;
    for (kind, flags, _) in frames {
        let ends = flags & 4 != 0;
        pieces = match (kind, pieces) {
            (1, None) => (!ends).then_some(0),
            (9, Some(count)) => {
                assert!(count < limits.continuation_frames);
                (!ends).then_some(count + 1)
            }
            (_, None) => None,
            (kind, Some(_)) => panic!("a frame of kind {kind} within a head"),
        };
    }
}
