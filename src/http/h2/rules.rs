//! The rules of RFC 9113, frame by frame: what ends a connection, what ends a stream, what is ignored.

use std::{
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::task::{ArcWake, waker};
use http::StatusCode;
use proptest::prelude::*;
use tokio::time::Instant;

use super::{
    floods::{Flood, FrameLimits},
    frame::{
        Code::{self, CompressionError, FlowControlError, FrameSizeError, ProtocolError},
        MAX_DATA, MAX_PAYLOAD,
    },
    multiplexer::{Broken, Multiplexer, Settings},
    request::{Flaw, list_bytes},
    streams::Gone,
};
use crate::{
    error::Reason,
    http::{
        exchange::BodyError,
        fields::{Fields, Underscores},
        h1::HeadLimits,
        message::{BodyLength, ResponseHead},
    },
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WHOLE: u8 = END_STREAM | END_HEADERS;

const LIMITS: Settings = Settings {
    streams: 3,
    stream_window: 1000,
    connection_window: 100_000,
    send_buffer: 64 << 10,
    head: HeadLimits {
        head_bytes: 4096,
        uri_bytes: 1024,
        field_bytes: 4096,
        fields: 20,
        underscores: Underscores::Drop,
    },
    trailer_bytes: 2048,
    frames: FrameLimits {
        resets: 5,
        control_frames: 10,
        local_resets: 4,
        continuation_frames: 2,
        head_timeout: Duration::from_secs(10),
    },
    linger: Duration::ZERO,
};

/// GET https://a/.
const GET: &[u8] = b"\x82\x87\x84\x01\x01a";
const POST: &[u8] = b"\x83\x87\x84\x01\x01a";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let pair = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &values.iter().flat_map(pair).collect::<Vec<_>>())
}

fn widen(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, GET)
}

/// A POST without its body, perhaps with its length.
fn post(stream: u32, length: Option<&str>) -> Vec<u8> {
    let length =
        length.map(|text| [&[0x0f, 0x0d, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat());
    frame(HEADERS, END_HEADERS, stream, &[POST, &length.unwrap_or_default()].concat())
}

/// A connection that has got these frames behind SETTINGS and their acknowledgement.
fn after(frames: &[Vec<u8>]) -> Multiplexer {
    let mut multiplexer = Multiplexer::new(LIMITS);
    take(&mut multiplexer, &settings(&[]));
    take(&mut multiplexer, &frame(SETTINGS, ACK, 0, &[]));
    flush(&mut multiplexer);
    take(&mut multiplexer, &frames.concat());
    multiplexer
}

fn take(multiplexer: &mut Multiplexer, bytes: &[u8]) -> usize {
    multiplexer.receive(bytes, Instant::now(), &mut Box::default)
}

/// What was written, as (kind, flags, stream, payload).
fn flush(multiplexer: &mut Multiplexer) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let bytes = multiplexer.output().to_vec();
    multiplexer.wrote(bytes.len());
    frames_of(&bytes)
}

fn frames_of(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, flags, s, t, u, v, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        assert!(length <= MAX_PAYLOAD);
        frames.push((*kind, *flags, u32::from_be_bytes([*s, *t, *u, *v]), rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty());
    frames
}

/// Streams that were reset, with the codes.
fn resets(multiplexer: &mut Multiplexer) -> Vec<(u32, u32)> {
    let resets = flush(multiplexer).into_iter().filter(|frame| frame.0 == RST_STREAM);
    resets.map(|(_, _, stream, code)| (stream, u32::from_be_bytes(code.try_into().unwrap()))).collect()
}

fn idle() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn ok(body: BodyLength) -> ResponseHead {
    ResponseHead { body, ..ResponseHead::default() }
}

/// The place of the next request.
fn accept(multiplexer: &mut Multiplexer) -> usize {
    let request = multiplexer.requests.pop_front().expect("a request");
    assert_eq!(request.verdict, Ok(()));
    request.place
}

#[test]
fn says_its_settings_first() {
    let mut multiplexer = Multiplexer::new(LIMITS);
    let frames = flush(&mut multiplexer);
    let values = b"\0\x03\0\0\0\x03\0\x04\0\0\x03\xe8\0\x06\0\0\x22\x80".to_vec();
    assert_eq!(frames[0], (SETTINGS, 0, 0, values));
    assert_eq!(frames[1], (WINDOW_UPDATE, 0, 0, (100_000_u32 - 65_535).to_be_bytes().to_vec()));
    assert_eq!(frames.len(), 2);
}

#[track_caller]
fn ends_the_connection(cases: Vec<(Vec<Vec<u8>>, Code)>) {
    for (frames, code) in cases {
        let mut multiplexer = after(&frames);
        assert_eq!(multiplexer.broken, Some(Broken::Rule(code)), "{frames:?}");
        let (kind, _, _, payload) = flush(&mut multiplexer).pop().unwrap();
        assert_eq!((kind, &payload[4..]), (GOAWAY, &(code as u32).to_be_bytes()[..]));
        assert!(multiplexer.requests.is_empty() && multiplexer.is_over());
        assert_eq!(take(&mut multiplexer, b"whatever"), 8, "nothing more is looked at");
    }
}

#[test]
fn ends_the_connection_for_frames_of_streams_that_break_it() {
    let open_head = || frame(HEADERS, END_STREAM, 1, &GET[..2]);
    ends_the_connection(vec![
        // §4.2, §4.3
        (vec![frame(DATA, 0, 1, &[0; MAX_PAYLOAD + 1])], FrameSizeError),
        (vec![frame(0x42, 0, 0, &[0; MAX_PAYLOAD + 1])], FrameSizeError),
        (vec![frame(HEADERS, WHOLE, 1, &[0x80])], CompressionError),
        (vec![frame(HEADERS, WHOLE, 1, &[0xff; 20])], CompressionError),
        (vec![frame(HEADERS, WHOLE, 1, &GET[..5])], CompressionError),
        (vec![post(1, None), frame(HEADERS, WHOLE, 1, &[0x80])], CompressionError),
        // §6.1
        (vec![frame(DATA, 0, 0, b"x")], ProtocolError),
        (vec![frame(DATA, 0, 1, b"x")], ProtocolError),
        (vec![frame(DATA, 0, 2, b"x")], ProtocolError),
        (vec![get(3), frame(DATA, 0, 5, b"x")], ProtocolError),
        (vec![post(1, None), frame(DATA, PADDED, 1, b"\x01")], ProtocolError),
        (vec![post(1, None), frame(DATA, PADDED, 1, b"")], ProtocolError),
        // §6.2, §6.10
        (vec![frame(HEADERS, WHOLE, 0, GET)], ProtocolError),
        (vec![frame(HEADERS, WHOLE, 2, GET)], ProtocolError),
        (vec![frame(HEADERS, WHOLE | PADDED, 1, b"\x05abcd")], ProtocolError),
        (vec![frame(HEADERS, WHOLE | PADDED, 1, b"")], ProtocolError),
        (vec![frame(HEADERS, WHOLE | 0x20, 1, b"\0\0\0\0")], FrameSizeError),
        (vec![frame(CONTINUATION, END_HEADERS, 1, GET)], ProtocolError),
        (vec![get(1), frame(CONTINUATION, END_HEADERS, 1, GET)], ProtocolError),
        (vec![open_head(), frame(CONTINUATION, END_HEADERS, 3, &GET[2..])], ProtocolError),
        (vec![open_head(), frame(DATA, 0, 1, b"x")], ProtocolError),
        (vec![open_head(), get(3)], ProtocolError),
        (vec![open_head(), frame(PING, 0, 0, &[0; 8])], ProtocolError),
        (vec![open_head(), frame(0x42, 0, 0, b"")], ProtocolError),
        // §6.3, §6.4
        (vec![frame(PRIORITY, 0, 0, &[0; 5])], ProtocolError),
        (vec![frame(PRIORITY, 0, 1, &[0; 4])], FrameSizeError),
        (vec![frame(RST_STREAM, 0, 0, &[0; 4])], ProtocolError),
        (vec![frame(RST_STREAM, 0, 1, &[0; 4])], ProtocolError),
        (vec![get(1), frame(RST_STREAM, 0, 2, &[0; 4])], ProtocolError),
        (vec![get(1), frame(RST_STREAM, 0, 1, &[0; 3])], FrameSizeError),
        (vec![get(1), frame(RST_STREAM, 0, 1, &[0; 5])], FrameSizeError),
    ]);
}

#[test]
fn ends_the_connection_for_frames_of_its_own_that_break_it() {
    ends_the_connection(vec![
        // §6.5
        (vec![frame(SETTINGS, 0, 1, &[])], ProtocolError),
        (vec![frame(SETTINGS, 0, 0, &[0; 5])], FrameSizeError),
        (vec![frame(SETTINGS, ACK, 0, &[0; 6])], FrameSizeError),
        (vec![settings(&[(2, 2)])], ProtocolError),
        (vec![settings(&[(4, 1 << 31)])], FlowControlError),
        (vec![settings(&[(5, (1 << 14) - 1)])], ProtocolError),
        (vec![settings(&[(5, 1 << 24)])], ProtocolError),
        (vec![get(1), widen(1, 1), settings(&[(4, (1 << 31) - 1)])], FlowControlError),
        // §6.6 to §6.8
        (vec![frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])], ProtocolError),
        (vec![frame(PING, 0, 1, &[0; 8])], ProtocolError),
        (vec![frame(PING, 0, 0, &[0; 7])], FrameSizeError),
        (vec![frame(PING, ACK, 0, &[0; 9])], FrameSizeError),
        (vec![frame(GOAWAY, 0, 1, &[0; 8])], ProtocolError),
        (vec![frame(GOAWAY, 0, 0, &[0; 7])], FrameSizeError),
        // §6.9
        (vec![widen(0, 0)], ProtocolError),
        (vec![widen(0, 1 << 31)], ProtocolError),
        (vec![widen(1, 1)], ProtocolError),
        (vec![get(1), widen(2, 1)], ProtocolError),
        (vec![frame(WINDOW_UPDATE, 0, 0, &[0; 3])], FrameSizeError),
        (vec![frame(WINDOW_UPDATE, 0, 0, &[0; 5])], FrameSizeError),
        (vec![widen(0, (1 << 31) - 1 - 65_535), widen(0, 1)], FlowControlError),
    ]);
}

#[test]
fn a_connection_that_has_ended_waits_for_no_head() {
    let wrong = frame(HEADERS, END_HEADERS, 2, b"head");
    let mut multiplexer = Multiplexer::new(LIMITS);
    take(&mut multiplexer, &frame(SETTINGS, 0, 0, &[]));
    assert_eq!(multiplexer.receive(&wrong[..10], Instant::now(), &mut Box::default), 0);
    assert!(multiplexer.head_deadline().is_some());
    take(&mut multiplexer, &wrong);
    assert_eq!((multiplexer.broken, multiplexer.head_deadline()), (Some(Broken::Rule(ProtocolError)), None));
}

#[test]
fn begins_with_settings() {
    for first in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, ACK, 0, &[]), get(1), frame(0x42, 0, 0, b"")] {
        let mut multiplexer = Multiplexer::new(LIMITS);
        take(&mut multiplexer, &first);
        assert_eq!(multiplexer.broken, Some(Broken::Rule(ProtocolError)));
    }
}

#[test]
fn ends_a_stream_for_what_breaks_only_that() {
    let malformed = |fields: &[u8]| frame(HEADERS, WHOLE, 1, &[GET, fields].concat());
    for (frames, code) in [
        // §5.1
        (vec![get(1), frame(DATA, 0, 1, b"x")], Code::StreamClosed),
        (vec![get(1), frame(HEADERS, WHOLE, 1, GET)], Code::StreamClosed),
        (vec![get(1), frame(RST_STREAM, 0, 1, &[0; 4]), frame(DATA, 0, 1, b"x")], Code::StreamClosed),
        (vec![get(3), frame(DATA, 0, 1, b"x"), get(1)], Code::StreamClosed),
        // §6.9
        (vec![get(1), widen(1, 0)], ProtocolError),
        (vec![get(1), widen(1, 0x7fff_ffff)], FlowControlError),
        (vec![post(1, None), frame(DATA, 0, 1, &[b'x'; 1001])], FlowControlError),
        (vec![post(1, None), frame(DATA, PADDED, 1, &[200; 1001])], FlowControlError),
        // §8
        (vec![malformed(b"\0\x01X\x01a")], ProtocolError),
        (vec![malformed(b"\0\x0aconnection\x01a")], ProtocolError),
        (vec![malformed(b"\x82")], ProtocolError),
        (vec![frame(HEADERS, WHOLE, 1, &GET[1..])], ProtocolError),
        (vec![post(1, None), frame(HEADERS, END_HEADERS, 1, b"\0\x01x\x01a")], ProtocolError),
        (vec![post(1, None), frame(HEADERS, WHOLE, 1, b"\x84")], ProtocolError),
        (vec![post(1, Some("5")), frame(DATA, 0, 1, b"123456")], ProtocolError),
        (vec![post(1, Some("5")), frame(DATA, END_STREAM, 1, b"1234")], ProtocolError),
        (vec![post(1, Some("5")), frame(DATA, END_STREAM, 1, b"")], ProtocolError),
        (vec![post(1, Some("5")), frame(HEADERS, WHOLE, 1, b"\0\x01x\x01a")], ProtocolError),
        (vec![post(1, Some("0")), frame(DATA, 0, 1, b"1")], ProtocolError),
    ] {
        let mut multiplexer = after(&frames);
        assert_eq!(multiplexer.broken, None, "{frames:?}");
        assert_eq!(resets(&mut multiplexer), [(1, code as u32)], "{frames:?}");
        assert!(multiplexer.streams.find(1).is_none());
        // The connection goes on, and knows what it has said.
        take(&mut multiplexer, &[frame(DATA, 0, 1, b"late"), widen(1, 1), get(5)].concat());
        assert_eq!(resets(&mut multiplexer), [], "{frames:?}");
        assert!(multiplexer.streams.find(5).is_some());
    }
}

#[test]
fn tells_those_who_serve_a_stream_how_it_ended() {
    for (bytes, gone) in [
        (frame(RST_STREAM, 0, 1, &[0; 4]), Gone::Closed),
        (frame(DATA, 0, 1, b"123456"), Gone::Malformed),
        (frame(DATA, 0, 2, b""), Gone::Closed),
    ] {
        let mut multiplexer = after(&[post(1, Some("5"))]);
        let place = accept(&mut multiplexer);
        assert!(multiplexer.poll_body(&mut idle(), place).is_pending());
        assert!(multiplexer.poll_gone(&mut idle(), place).is_pending());
        take(&mut multiplexer, &bytes);
        assert_eq!(multiplexer.streams.get(place).gone, Some(gone));
        assert!(matches!(multiplexer.poll_body(&mut idle(), place), Poll::Ready(Err(_))));
        assert!(multiplexer.poll_gone(&mut idle(), place).is_ready());
        assert!(multiplexer.send_head(place, &ok(BodyLength::Empty)).is_err());
        assert!(matches!(multiplexer.poll_send(&mut idle(), place, b"x", true), Poll::Ready(Err(_))));
        multiplexer.leave(place);
        assert_eq!(multiplexer.streams.served(), 0);
    }
}

#[test]
fn each_flood_ends_the_connection() {
    let nothing: Vec<u8> = (0..5).flat_map(|turn| frame(HEADERS, WHOLE, 2 * turn + 1, b"")).collect();
    let ends = [frame(HEADERS, 0, 1, GET), frame(CONTINUATION, 0, 1, b"").repeat(3)].concat();
    let long = [frame(HEADERS, 0, 1, GET), frame(CONTINUATION, 0, 1, &[0; MAX_PAYLOAD])].concat();
    for (bytes, limit, flood) in [
        (frame(PING, 0, 0, &[0; 8]), 10, Flood::Pings),
        (frame(PING, ACK, 0, &[0; 8]), 10, Flood::Pings),
        // Two have come already.
        (settings(&[]), 8, Flood::Settings),
        (frame(PRIORITY, 0, 9, &[0; 5]), 10, Flood::Priorities),
        (widen(0, 1), 10, Flood::WindowUpdates),
        (frame(GOAWAY, 0, 0, &[0; 8]), 10, Flood::Others),
        (frame(0x42, 0, 7, b"x"), 10, Flood::Others),
    ] {
        let mut multiplexer = after(&[bytes.repeat(limit)]);
        assert_eq!(multiplexer.flood(), None, "{flood:?}");
        take(&mut multiplexer, &bytes);
        assert_eq!(multiplexer.flood(), Some(flood));
    }
    for (frames, flood) in [
        (vec![post(1, None), frame(DATA, 0, 1, b"").repeat(11)], Flood::EmptyData),
        (vec![post(1, None), frame(DATA, PADDED, 1, b"\x01\0").repeat(11)], Flood::EmptyData),
        (vec![ends], Flood::Continuations),
        (vec![long], Flood::UnfinishedHead),
        (vec![nothing], Flood::LocalResets),
    ] {
        assert_eq!(after(&frames).flood(), Some(flood), "{flood:?}");
    }
    let resets: Vec<u8> = (0..6_u32)
        .flat_map(|turn| [get(2 * turn + 1), frame(RST_STREAM, 0, 2 * turn + 1, &[0; 4])].concat())
        .collect();
    assert_eq!(after(&[resets]).flood(), Some(Flood::Resets));
}

#[test]
fn a_stream_over_the_limit_is_refused_and_counted() {
    let mut multiplexer = after(&[get(1), get(3), get(5), get(7)]);
    assert_eq!(resets(&mut multiplexer), [(7, Code::RefusedStream as u32)]);
    assert_eq!(multiplexer.requests.len(), 3);
    let place = accept(&mut multiplexer);
    multiplexer.send_head(place, &ok(BodyLength::Empty)).unwrap();
    take(&mut multiplexer, &get(9));
    assert_eq!(resets(&mut multiplexer), [], "one has ended");
    let more: Vec<u8> = (5..9).flat_map(|turn| get(2 * turn + 1)).collect();
    take(&mut multiplexer, &more);
    assert_eq!(multiplexer.flood(), Some(Flood::LocalResets));
}

#[test]
fn streams_that_are_reset_take_a_place_until_they_are_left() {
    let mut multiplexer = after(&[]);
    for turn in 0..3_u32 {
        take(&mut multiplexer, &[get(2 * turn + 1), frame(RST_STREAM, 0, 2 * turn + 1, &[0; 4])].concat());
    }
    take(&mut multiplexer, &[get(7), get(9), get(11)].concat());
    assert_eq!((multiplexer.streams.count(), multiplexer.streams.served()), (3, 6));
    take(&mut multiplexer, &[frame(RST_STREAM, 0, 7, &[0; 4]), get(13)].concat());
    assert_eq!(resets(&mut multiplexer), [(13, Code::RefusedStream as u32)]);
}

#[test]
fn heads_are_decoded_once_each_whatever_becomes_of_them() {
    // Each adds a field to the table, and the last names that of the first three.
    let adds = |value: u8| [GET, &[0x40, 1, b'x', 1, value]].concat();
    let head = |stream, value| frame(HEADERS, WHOLE, stream, &adds(value));
    let named = [GET, b"\xbe\xbf\xc0\xc1"].concat();
    let mut multiplexer = after(&[
        head(1, b'a'),
        head(3, b'b'),
        head(5, b'c'),
        // Over the limit, then late.
        head(7, b'd'),
        frame(HEADERS, WHOLE, 7, &[0x40, 1, b'x', 1, b'e']),
        frame(RST_STREAM, 0, 1, &[0; 4]),
        frame(HEADERS, WHOLE, 9, &named),
    ]);
    let request = multiplexer.requests.pop_back().unwrap();
    let values: Vec<&[u8]> = request.head.fields.iter().map(|(_, _, value)| value).collect();
    assert_eq!(values, [b"e", b"d", b"c", b"b"]);
}

#[test]
fn answers_settings_and_pings() {
    let mut multiplexer = after(&[settings(&[(1, 0), (2, 0), (3, 0), (5, 1 << 14), (0x99, 7)])]);
    assert_eq!(flush(&mut multiplexer), [(SETTINGS, ACK, 0, vec![])]);
    take(&mut multiplexer, &frame(PING, 0, 0, b"01234567"));
    assert_eq!(flush(&mut multiplexer), [(PING, ACK, 0, b"01234567".to_vec())]);
    take(&mut multiplexer, &frame(PING, ACK, 0, b"01234567"));
    assert_eq!(flush(&mut multiplexer), []);
}

#[test]
fn a_head_in_pieces_has_a_deadline() {
    let start = Instant::now();
    let deadline = Some(start + LIMITS.frames.head_timeout);
    let later = start + Duration::from_secs(3);
    let head = frame(HEADERS, END_STREAM, 1, &GET[..2]);
    let (more, last) =
        (frame(CONTINUATION, 0, 1, &GET[2..4]), frame(CONTINUATION, END_HEADERS, 1, &GET[4..]));
    let mut multiplexer = after(&[]);
    let mut take = |bytes: &[u8], now| multiplexer.receive(bytes, now, &mut Box::default);
    let steps = [
        take(&head[..9], start),
        take(&head, later),
        take(&more, later),
        take(&last[..last.len() - 1], later),
    ];
    assert_eq!(steps, [0, head.len(), more.len(), 0]);
    assert_eq!(multiplexer.head_deadline(), deadline);
    assert_eq!(multiplexer.receive(&last, later, &mut Box::default), last.len());
    assert_eq!((multiplexer.head_deadline(), multiplexer.requests.len()), (None, 1));
    multiplexer.receive(&frame(DATA, 0, 1, b"body")[..12], later, &mut Box::default);
    assert_eq!(multiplexer.head_deadline(), None, "a body is not a head");
}

#[test]
fn reads_bodies_and_gives_their_windows_back() {
    let mut multiplexer = after(&[post(1, None), frame(DATA, 0, 1, &[b'x'; 600])]);
    let place = accept(&mut multiplexer);
    assert_eq!(
        multiplexer.poll_body(&mut idle(), place).map(Result::unwrap),
        Poll::Ready(Some(vec![b'x'; 600]))
    );
    assert!(multiplexer.poll_body(&mut idle(), place).is_pending());
    multiplexer.consume(place, 499);
    assert_eq!(flush(&mut multiplexer), []);
    multiplexer.consume(place, 101);
    assert_eq!(flush(&mut multiplexer), [(WINDOW_UPDATE, 0, 1, 600_u32.to_be_bytes().to_vec())]);
    take(&mut multiplexer, &frame(DATA, END_STREAM, 1, &[b'y'; 1000]));
    assert_eq!(
        multiplexer.poll_body(&mut idle(), place).map(Result::unwrap),
        Poll::Ready(Some(vec![b'y'; 1000]))
    );
    multiplexer.consume(place, 1000);
    assert_eq!(flush(&mut multiplexer), [], "nothing more comes on the stream");
    assert_eq!(multiplexer.poll_body(&mut idle(), place).map(Result::unwrap), Poll::Ready(None));
}

#[test]
fn padding_counts_and_goes_back_at_once() {
    let mut multiplexer = after(&[post(1, None)]);
    let place = accept(&mut multiplexer);
    let padded = [&[199][..], b"x", &[0; 199]].concat();
    for _ in 0..3 {
        take(&mut multiplexer, &frame(DATA, PADDED, 1, &padded));
    }
    assert_eq!(flush(&mut multiplexer), [(WINDOW_UPDATE, 0, 1, 600_u32.to_be_bytes().to_vec())]);
    assert_eq!(multiplexer.streams.get(place).held, 3);
}

/// What the connection's window has left.
fn connection_takes(multiplexer: &mut Multiplexer) -> usize {
    (0..1_000_000).find(|_| multiplexer.receive.receive(1).is_err()).unwrap()
}

#[test]
fn the_window_of_the_connection_never_leaks() {
    let body = frame(DATA, 0, 1, &[b'x'; 900]);
    let reset = frame(RST_STREAM, 0, 1, &[0; 4]);
    for (frames, unread) in [
        (vec![post(1, None), body.clone()], true),
        (vec![post(1, None), body.clone(), reset], false),
        (vec![post(1, None), body.clone(), frame(DATA, 0, 1, &[b'x'; 101])], false),
        (vec![post(1, Some("899")), body.clone()], false),
        (vec![get(1), body.clone(), body.clone(), body], false),
    ] {
        let mut multiplexer = after(&frames);
        let place = accept(&mut multiplexer);
        if !unread {
            assert_eq!(multiplexer.streams.get(place).unreleased, 0, "{frames:?}");
        }
        multiplexer.leave(place);
        // What is owed and not yet worth a frame goes back with what is.
        let _ = multiplexer.receive.release(50_000);
        assert_eq!(connection_takes(&mut multiplexer), 100_000, "{frames:?}");
    }
}

#[test]
fn a_client_that_sends_more_than_the_connection_takes_is_cut_off() {
    let mut frames = vec![post(1, None), frame(RST_STREAM, 0, 1, &[0; 4]), post(3, None)];
    // On a stream that is gone all goes back at once.
    frames.push(frame(DATA, 0, 3, &[0; 1001]));
    frames.extend((0..20).map(|_| frame(DATA, 0, 3, &[0; MAX_PAYLOAD])));
    assert_eq!(after(&frames).broken, None);
    let mut multiplexer = after(&[post(1, None)]);
    connection_takes(&mut multiplexer);
    take(&mut multiplexer, &frame(DATA, 0, 1, b"x"));
    assert_eq!(multiplexer.broken, Some(Broken::Rule(FlowControlError)));
}

#[test]
fn until_the_client_knows_our_window_the_default_holds() {
    let mut multiplexer = Multiplexer::new(LIMITS);
    let early = [settings(&[]), post(1, None), frame(DATA, 0, 1, &[0; 2000])].concat();
    take(&mut multiplexer, &early);
    assert_eq!(resets(&mut multiplexer), []);
    take(&mut multiplexer, &[frame(SETTINGS, ACK, 0, &[]), frame(DATA, 0, 1, b"x")].concat());
    assert_eq!(resets(&mut multiplexer), [(1, FlowControlError as u32)]);
}

#[test]
fn what_is_held_is_on_no_window() {
    let mut multiplexer = after(&[post(1, Some("1500")), frame(DATA, 0, 1, &[b'x'; 1000])]);
    let place = accept(&mut multiplexer);
    assert!(multiplexer.poll_hold(&mut idle(), place, 1500).is_pending());
    take(&mut multiplexer, &frame(DATA, END_STREAM, 1, &[b'x'; 500]));
    assert!(matches!(multiplexer.poll_hold(&mut idle(), place, 1500), Poll::Ready(Ok(()))));
    assert_eq!((multiplexer.streams.get(place).held, multiplexer.streams.get(place).unreleased), (1500, 0));
}

#[test]
fn trailers_end_a_body() {
    let mut multiplexer =
        after(&[post(1, Some("1")), frame(DATA, 0, 1, b"x"), frame(HEADERS, WHOLE, 1, b"\0\x05x-sum\x011")]);
    let place = accept(&mut multiplexer);
    assert_eq!(
        multiplexer.poll_body(&mut idle(), place).map(Result::unwrap),
        Poll::Ready(Some(b"x".to_vec()))
    );
    assert_eq!(multiplexer.poll_body(&mut idle(), place).map(Result::unwrap), Poll::Ready(None));
    let trailers = multiplexer.streams.at(place).trailers.take().unwrap();
    assert_eq!(trailers.find(b"x-sum"), Some(&b"1"[..]));
    let long = [&b"\0\x01x\x7f\x82\x1f"[..], &[b'y'; 127 + 0xf82]].concat();
    let mut multiplexer = after(&[post(1, None), frame(HEADERS, WHOLE, 1, &long)]);
    let place = accept(&mut multiplexer);
    let result = multiplexer.poll_body(&mut idle(), place);
    assert!(matches!(result, Poll::Ready(Err(BodyError::TooLarge))), "{result:?}");
    multiplexer.send_head(place, &ok(BodyLength::Empty)).unwrap();
}

#[test]
fn a_refused_head_is_answered() {
    let bad = frame(HEADERS, WHOLE, 1, &[GET, b"\x0f\x0d\x015"].concat());
    let mut multiplexer = after(&[bad]);
    let request = multiplexer.requests.pop_front().unwrap();
    assert_eq!(request.verdict, Err(Flaw::Refused(Reason::BadRequest)));
    multiplexer.send_head(request.place, &ok(BodyLength::Empty)).unwrap();
    multiplexer.leave(request.place);
    assert_eq!(flush(&mut multiplexer), [(HEADERS, WHOLE, 1, vec![0x88])]);
}

#[test]
fn a_hundred_bytes_do_not_buy_a_head_each() {
    let mut settings = LIMITS;
    (settings.streams, settings.head.head_bytes) = (1000, 32 << 10);
    let mut multiplexer = Multiplexer::new(settings);
    take(&mut multiplexer, &frame(SETTINGS, 0, 0, &[]));
    let long = [GET, b"\x40\x01x\x7f\x81\x1e", &[b'y'; 3968]].concat();
    take(&mut multiplexer, &frame(HEADERS, WHOLE, 1, &long));
    let bomb = [GET, &[0xbe; 7]].concat();
    for stream in 1..60 {
        take(&mut multiplexer, &frame(HEADERS, WHOLE, 2 * stream + 1, &bomb));
    }
    assert_eq!(multiplexer.flood(), Some(Flood::Heads));
    let refused = resets(&mut multiplexer);
    assert_eq!(refused.len(), 10);
    assert!(refused.iter().all(|(_, code)| *code == Code::RefusedStream as u32));
}

#[test]
fn sends_an_answer_in_as_few_frames_as_it_takes() {
    let mut multiplexer = after(&[settings(&[(4, 1 << 20)]), widen(0, 1 << 20), get(1)]);
    let place = accept(&mut multiplexer);
    flush(&mut multiplexer);
    multiplexer.send_head(place, &ok(BodyLength::Exact(40_000))).unwrap();
    let body = vec![b'x'; 40_000];
    assert_eq!(
        multiplexer.poll_send(&mut idle(), place, &body, true).map(Result::unwrap),
        Poll::Ready(40_000)
    );
    let frames = flush(&mut multiplexer);
    let lengths: Vec<_> =
        frames[1..].iter().map(|(kind, flags, _, payload)| (*kind, *flags, payload.len())).collect();
    assert_eq!((frames[0].0, frames[0].1, &frames[0].3[..2]), (HEADERS, END_HEADERS, &b"\x88\x0f"[..]));
    assert_eq!(lengths, [(DATA, 0, MAX_DATA), (DATA, 0, MAX_DATA), (DATA, 1, 40_000 - 2 * MAX_DATA)]);
    assert_eq!(multiplexer.streams.count(), 0);
    assert!(multiplexer.finish(place, None).is_ok());
    multiplexer.leave(place);
    assert_eq!(flush(&mut multiplexer), []);
}

#[test]
fn ends_an_answer_with_trailers_or_an_empty_frame() {
    let mut trailers = Fields::default();
    trailers.push(b"x-sum", b"1");
    for (trailers, kind, flags) in [(Some(&trailers), HEADERS, WHOLE), (None, DATA, END_STREAM)] {
        let mut multiplexer = after(&[get(1)]);
        let place = accept(&mut multiplexer);
        let early = ResponseHead { status: StatusCode::EARLY_HINTS, ..ok(BodyLength::Empty) };
        multiplexer.send_head(place, &early).unwrap();
        multiplexer.send_head(place, &ok(BodyLength::Streamed)).unwrap();
        assert!(multiplexer.send_head(place, &ok(BodyLength::Streamed)).is_err(), "one head only");
        assert!(multiplexer.poll_send(&mut idle(), place, b"x", false).is_ready());
        multiplexer.finish(place, trailers).unwrap();
        let frames = flush(&mut multiplexer);
        let heads: Vec<_> = frames.iter().map(|frame| (frame.0, frame.1)).collect();
        assert_eq!(heads, [(HEADERS, END_HEADERS), (HEADERS, END_HEADERS), (DATA, 0), (kind, flags)]);
    }
}

#[test]
fn what_is_left_unfinished_is_reset() {
    for (answer, code) in [
        (None, Code::Cancel),
        (Some(BodyLength::Streamed), Code::Cancel),
        (Some(BodyLength::Empty), Code::NoError),
    ] {
        let mut multiplexer = after(&[post(1, None)]);
        let place = accept(&mut multiplexer);
        if let Some(body) = answer {
            multiplexer.send_head(place, &ok(body)).unwrap();
        }
        multiplexer.leave(place);
        assert_eq!(resets(&mut multiplexer), [(1, code as u32)]);
    }
    let mut multiplexer = after(&[get(1)]);
    let place = accept(&mut multiplexer);
    multiplexer.abort(place, Code::InternalError);
    multiplexer.abort(place, Code::InternalError);
    multiplexer.leave(place);
    assert_eq!(resets(&mut multiplexer), [(1, Code::InternalError as u32)]);
}

#[test]
fn frames_that_cross_the_reset_of_as_many_streams_as_there_may_be_are_no_fault() {
    const STREAMS: u32 = 100;
    let frames = FrameLimits { local_resets: 1, ..LIMITS.frames };
    let mut multiplexer = Multiplexer::new(Settings { streams: STREAMS, frames, ..LIMITS });
    take(&mut multiplexer, &settings(&[]));
    let ids = || (0..STREAMS).map(|turn| 2 * turn + 1);
    take(&mut multiplexer, &ids().flat_map(|id| post(id, None)).collect::<Vec<_>>());
    for _ in ids() {
        let place = accept(&mut multiplexer);
        multiplexer.leave(place);
    }
    assert_eq!(resets(&mut multiplexer).len(), STREAMS as usize);
    take(&mut multiplexer, &ids().flat_map(|id| frame(DATA, END_STREAM, id, b"late")).collect::<Vec<_>>());
    assert_eq!(multiplexer.broken, None);
    assert_eq!(resets(&mut multiplexer), []);
}

#[derive(Default)]
struct Woken(std::sync::atomic::AtomicUsize);

impl ArcWake for Woken {
    fn wake_by_ref(this: &std::sync::Arc<Self>) {
        this.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Woken {
    fn take(&self) -> bool {
        self.0.swap(0, std::sync::atomic::Ordering::Relaxed) > 0
    }
}

/// Three streams that have begun to answer, each with what wakes it.
fn answering(settings: Settings) -> (Multiplexer, Vec<(usize, std::sync::Arc<Woken>)>) {
    let mut multiplexer = Multiplexer::new(settings);
    take(&mut multiplexer, &[frame(SETTINGS, 0, 0, b"\0\x04\0\x10\0\0"), get(1), get(3), get(5)].concat());
    let streams = (0..3).map(|_| (accept(&mut multiplexer), std::sync::Arc::default())).collect::<Vec<_>>();
    for (place, _) in &streams {
        multiplexer.send_head(*place, &ok(BodyLength::Streamed)).unwrap();
    }
    flush(&mut multiplexer);
    (multiplexer, streams)
}

fn send(
    multiplexer: &mut Multiplexer,
    (place, woken): &(usize, std::sync::Arc<Woken>),
    data: &[u8],
) -> Option<usize> {
    let waker = waker(woken.clone());
    match multiplexer.poll_send(&mut Context::from_waker(&waker), *place, data, false) {
        Poll::Ready(result) => Some(result.unwrap()),
        Poll::Pending => None,
    }
}

fn forget_wakes(streams: &[(usize, std::sync::Arc<Woken>)]) {
    for (_, woken) in streams {
        woken.take();
    }
}

#[test]
fn streams_share_the_window_of_the_connection_in_turn() {
    let mut settings = LIMITS;
    settings.frames.control_frames = 1000;
    let (mut multiplexer, streams) = answering(settings);
    let data = vec![b'x'; 100_000];
    let mut got = [0; 3];
    // The first takes all there is.
    while send(&mut multiplexer, &streams[0], &data).is_some() {
        flush(&mut multiplexer);
    }
    assert_eq!([1, 2].map(|index| send(&mut multiplexer, &streams[index], &data)), [None; 2]);
    forget_wakes(&streams);
    for _ in 0..30 {
        take(&mut multiplexer, &widen(0, 10));
        for (index, stream) in streams.iter().enumerate() {
            assert!(stream.1.take(), "each is woken");
            while let Some(count) = send(&mut multiplexer, stream, &data) {
                got[index] += count;
            }
        }
        flush(&mut multiplexer);
        forget_wakes(&streams);
    }
    assert_eq!(got.iter().sum::<usize>(), 300);
}

#[test]
fn those_that_wait_are_woken_in_the_order_in_which_they_came() {
    let (mut multiplexer, streams) = answering(LIMITS);
    let data = vec![b'x'; 100_000];
    while send(&mut multiplexer, &streams[0], &data).is_some() {
        flush(&mut multiplexer);
    }
    assert_eq!([1, 2].map(|index| send(&mut multiplexer, &streams[index], &data)), [None; 2]);
    assert_eq!(multiplexer.streams.turns(), [streams[0].0, streams[1].0, streams[2].0]);
    take(&mut multiplexer, &widen(0, 10));
    assert_eq!(send(&mut multiplexer, &streams[0], &data), Some(10));
    assert_eq!([0, 1, 2].map(|index| send(&mut multiplexer, &streams[index], &data)), [None; 3]);
    assert_eq!(
        multiplexer.streams.turns(),
        [streams[1].0, streams[2].0, streams[0].0],
        "who had some is last"
    );
    multiplexer.leave(streams[2].0);
    assert_eq!(multiplexer.streams.turns(), [streams[1].0, streams[0].0]);
}

#[test]
fn what_waits_to_be_written_is_bounded() {
    let mut settings = LIMITS;
    settings.send_buffer = 1000;
    let (mut multiplexer, streams) = answering(settings);
    let data = [b'x'; 10_000];
    for stream in &streams {
        assert_eq!(send(&mut multiplexer, stream, &data), Some(1000 - 9));
        assert_eq!(send(&mut multiplexer, stream, &data), None);
    }
    assert_eq!(multiplexer.output().len(), 3000);
    multiplexer.wrote(1500);
    assert!(streams.iter().all(|(_, woken)| !woken.take()));
    assert_eq!(send(&mut multiplexer, &streams[0], &data), None, "it is not known whose was written");
    multiplexer.wrote(1500);
    assert!(streams.iter().all(|(_, woken)| woken.take()));
    assert_eq!(send(&mut multiplexer, &streams[0], &data), Some(1000 - 9));
}

#[test]
fn heads_that_nobody_reads_end_the_connection() {
    let mut settings = LIMITS;
    settings.streams = 1000;
    let mut multiplexer = Multiplexer::new(settings);
    take(&mut multiplexer, &frame(SETTINGS, 0, 0, &[]));
    let mut head = ok(BodyLength::Empty);
    head.fields.push(b"x", &vec![b'y'; 30_000]);
    let mut stream = 1;
    while multiplexer.broken.is_none() {
        take(&mut multiplexer, &get(stream));
        stream += 2;
        if let Some(request) = multiplexer.requests.pop_front() {
            multiplexer.send_head(request.place, &head).unwrap();
            multiplexer.leave(request.place);
        }
    }
    assert_eq!(multiplexer.flood(), Some(Flood::Unread));
    assert!(multiplexer.output().len() < 2 << 20);
}

#[test]
fn a_window_that_becomes_smaller_is_waited_for() {
    let mut multiplexer = after(&[settings(&[(4, 10)]), get(1)]);
    let stream = (accept(&mut multiplexer), std::sync::Arc::<Woken>::default());
    multiplexer.send_head(stream.0, &ok(BodyLength::Streamed)).unwrap();
    assert_eq!(send(&mut multiplexer, &stream, &[b'x'; 20]), Some(10));
    take(&mut multiplexer, &settings(&[(4, 5)]));
    assert_eq!(send(&mut multiplexer, &stream, b"x"), None);
    take(&mut multiplexer, &widen(1, 5));
    assert!(stream.1.take());
    assert_eq!(send(&mut multiplexer, &stream, b"x"), None, "that only makes up for what was too much");
    take(&mut multiplexer, &settings(&[(4, 6)]));
    assert!(stream.1.take());
    assert_eq!(send(&mut multiplexer, &stream, b"xy"), Some(1));
}

#[test]
fn announces_the_end_names_the_last_stream_and_finishes_it() {
    let mut multiplexer = after(&[get(1)]);
    multiplexer.drain();
    multiplexer.drain();
    let frames = flush(&mut multiplexer);
    assert_eq!(frames[0], (GOAWAY, 0, 0, b"\x7f\xff\xff\xff\0\0\0\0".to_vec()));
    assert_eq!((frames.len(), frames[1].0), (2, PING));
    // What comes before the answer is served.
    take(&mut multiplexer, &[get(3), frame(PING, ACK, 0, &frames[1].3)].concat());
    assert_eq!(flush(&mut multiplexer), [(GOAWAY, 0, 0, b"\0\0\0\x03\0\0\0\0".to_vec())]);
    take(&mut multiplexer, &[get(5), frame(PING, ACK, 0, &frames[1].3)].concat());
    assert_eq!(resets(&mut multiplexer), [(5, Code::RefusedStream as u32)]);
    for _ in 0..2 {
        assert!(!multiplexer.is_over());
        let place = accept(&mut multiplexer);
        multiplexer.send_head(place, &ok(BodyLength::Empty)).unwrap();
        multiplexer.leave(place);
    }
    assert!(multiplexer.is_over() && multiplexer.broken.is_none());
}

/// A conversation that has something of everything.
fn script() -> Vec<u8> {
    [
        settings(&[(4, 100), (1, 100)]),
        frame(SETTINGS, ACK, 0, &[]),
        frame(HEADERS, END_STREAM, 1, &GET[..3]),
        frame(CONTINUATION, END_HEADERS, 1, &GET[3..]),
        frame(PING, 0, 0, b"01234567"),
        post(3, Some("11")),
        frame(DATA, PADDED, 3, b"\x03hello\0\0\0"),
        widen(3, 50),
        frame(DATA, 0, 3, b" world"),
        frame(HEADERS, WHOLE, 3, b"\0\x05x-sum\x011"),
        frame(PRIORITY, 0, 5, &[0; 5]),
        frame(0x42, 7, 9, b"unknown"),
        frame(HEADERS, WHOLE, 5, &[0x80 | 1]),
        get(7),
        frame(RST_STREAM, 0, 7, &[0; 4]),
        frame(GOAWAY, 0, 0, &[0; 8]),
    ]
    .concat()
}

/// What comes out when the bytes come in these pieces.
fn outcome<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Option<Broken>, Vec<String>) {
    let now = Instant::now();
    let mut multiplexer = Multiplexer::new(LIMITS);
    let mut buffer = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let taken = multiplexer.receive(&buffer, now, &mut Box::default);
        buffer.drain(..taken);
    }
    let requests =
        multiplexer.requests.iter().map(|request| format!("{:?} {:?}", request.head, request.verdict));
    (multiplexer.output().to_vec(), multiplexer.broken, requests.collect())
}

#[test]
fn takes_the_same_of_bytes_that_come_in_any_pieces() {
    let bytes = script();
    let whole = outcome([&bytes[..]].into_iter());
    assert_eq!((whole.1, whole.2.len()), (None, 3));
    for at in 0..=bytes.len() {
        assert_eq!(outcome([&bytes[..at], &bytes[at..]].into_iter()), whole, "cut at {at}");
    }
    assert_eq!(outcome(bytes.chunks(1)), whole);
}

/// Serves what there is at random, and checks that nothing grows beyond its bound.
fn serve(multiplexer: &mut Multiplexer, served: &mut Vec<usize>, turn: u8) {
    served.extend(multiplexer.requests.drain(..).map(|request| request.place));
    let Some(index) = served.len().checked_sub(1).map(|last| usize::from(turn) % (last + 1)) else { return };
    let place = served[index];
    let cx = &mut idle();
    match turn % 8 {
        0 => _ = multiplexer.send_head(place, &ok(BodyLength::Streamed)),
        1 | 2 => _ = multiplexer.poll_send(cx, place, &[b'x'; 3000], turn > 127),
        3 => _ = multiplexer.finish(place, None),
        4 | 5 => {
            if let Poll::Ready(Ok(Some(chunk))) = multiplexer.poll_body(cx, place) {
                multiplexer.consume(place, chunk.len());
            }
        }
        6 => _ = multiplexer.poll_hold(cx, place, 500),
        _ => multiplexer.leave(served.swap_remove(index)),
    }
}

fn check_bounds(multiplexer: &mut Multiplexer) {
    assert!(multiplexer.streams.served() <= 6 && multiplexer.streams.count() <= 3);
    let held: usize = multiplexer.streams.each().map(|stream| stream.held).sum();
    assert!(held <= 100_000 + 6 * 65_535, "{held}");
    assert!(multiplexer.output().len() <= 4 * LIMITS.send_buffer + (2 << 20));
    assert!(multiplexer.head_bytes <= 6 * 10_000, "{}", multiplexer.head_bytes);
}

/// Frames that are mostly whole, of any kind and with any payload.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(GET.to_vec()),
        Just(POST.to_vec()),
        Just(0_u32.to_be_bytes().to_vec()),
        Just(500_u32.to_be_bytes().to_vec()),
        Just(vec![b'd'; 700]),
        Just(vec![0; 8]),
    ];
    (0..11_u8, any::<u8>(), 0..12_u32, payload)
        .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload))
}

proptest! {
    #[test]
    fn any_frames_leave_all_within_bounds(
        frames in proptest::collection::vec((any_frame(), any::<u8>()), 0..60),
        noise in proptest::collection::vec(any::<u8>(), 0..30),
    ) {
        let mut multiplexer = Multiplexer::new(LIMITS);
        take(&mut multiplexer, &settings(&[]));
        let mut served = Vec::new();
        for (bytes, turn) in frames {
            take(&mut multiplexer, &bytes);
            check_bounds(&mut multiplexer);
            serve(&mut multiplexer, &mut served, turn);
            if turn % 3 == 0 {
                flush(&mut multiplexer);
            }
        }
        take(&mut multiplexer, &noise);
        serve(&mut multiplexer, &mut served, 0);
        for place in served {
            multiplexer.leave(place);
        }
        check_bounds(&mut multiplexer);
        prop_assert_eq!((multiplexer.streams.served(), multiplexer.head_bytes), (0, 0));
    }

    #[test]
    fn any_bytes_end_the_same_in_any_pieces(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        piece in 1..50_usize,
    ) {
        let mut mutated = script();
        for (index, byte) in changes {
            let at = index.index(mutated.len());
            mutated[at] = byte;
        }
        for bytes in [bytes, mutated] {
            prop_assert_eq!(outcome(bytes.chunks(piece)), outcome([&bytes[..]].into_iter()));
        }
    }
}

#[test]
fn trailers_wake_whoever_waits_for_the_end_of_a_body() {
    for trailers in [&b"\0\x05x-sum\x011"[..], &b"\x90".repeat(21)] {
        let mut multiplexer = after(&[post(1, None)]);
        let place = accept(&mut multiplexer);
        let woken = std::sync::Arc::<Woken>::default();
        let waiting = multiplexer.poll_body(&mut Context::from_waker(&waker(woken.clone())), place);
        assert!(waiting.is_pending() && !woken.take());
        take(&mut multiplexer, &frame(HEADERS, WHOLE, 1, trailers));
        assert!(woken.take(), "{trailers:?}");
        assert!(multiplexer.poll_body(&mut idle(), place).is_ready());
    }
}

#[test]
fn trailers_that_are_too_large_count_as_resets_that_the_client_provokes() {
    let mut multiplexer = after(&[]);
    for id in (1..).step_by(2) {
        take(&mut multiplexer, &[post(id, None), frame(HEADERS, WHOLE, id, &b"\x90".repeat(21))].concat());
        if multiplexer.broken.is_some() {
            assert_eq!(id as usize, 2 * LIMITS.frames.local_resets + 1);
            break;
        }
        let place = accept(&mut multiplexer);
        assert!(multiplexer.poll_gone(&mut idle(), place).is_pending(), "it may still be answered");
        multiplexer.leave(place);
    }
    assert_eq!(multiplexer.flood(), Some(Flood::LocalResets));
}

#[test]
fn a_block_that_stands_for_far_more_than_may_be_is_not_read_to_its_end() {
    // A long name in the table, and then again and again with another value.
    let bomb = [&b"\x40\x7f\xf1\x0e"[..], &[b'a'; 2032], b"\0", &b"\x7e\0".repeat(4000)].concat();
    let bomb = |id| frame(HEADERS, WHOLE, id, &bomb);
    for frames in [vec![bomb(1)], vec![post(1, None), bomb(1)], vec![get(1), bomb(1)]] {
        assert_eq!(after(&frames).flood(), Some(Flood::UnfinishedHead));
    }
    // `accept-encoding: gzip, deflate` counts 60 bytes.
    let fields = 4 * list_bytes(&LIMITS.head) as usize / 60;
    let just_under = frame(HEADERS, WHOLE, 1, &b"\x90".repeat(fields));
    assert_eq!(resets(&mut after(&[just_under])), [(1, ProtocolError as u32)]);
}

#[test]
fn trailers_have_room_within_that_of_heads() {
    let streams = 400;
    let head = HeadLimits { head_bytes: 32 << 10, fields: 100, ..LIMITS.head };
    let frames = FrameLimits { local_resets: 1000, control_frames: 1000, ..LIMITS.frames };
    let mut multiplexer =
        Multiplexer::new(Settings { streams, head, frames, trailer_bytes: 16 << 10, ..LIMITS });
    take(&mut multiplexer, &settings(&[]));
    let insert = [&b"\x40\x01a\x7f\x91\x1b"[..], &[b'x'; 3600]].concat();
    let (mut memory, mut places) = (0, Vec::new());
    for id in (1..).step_by(2).take(streams as usize) {
        let trailers = if id == 1 { insert.clone() } else { b"\xbe".repeat(4) };
        take(&mut multiplexer, &[post(id, None), frame(HEADERS, WHOLE, id, &trailers)].concat());
        let Some(request) = multiplexer.requests.pop_front() else { break };
        let stream = multiplexer.streams.at(request.place);
        memory += stream.trailers.as_ref().map_or(0, |fields| fields.capacity());
        places.push(request.place);
    }
    assert_eq!(multiplexer.broken, None);
    assert!(memory > 500 << 10 && memory < (1 << 20) + (64 << 10), "{memory}");
    assert!(!resets(&mut multiplexer).is_empty());
    for place in places {
        multiplexer.leave(place);
    }
    assert_eq!(multiplexer.head_bytes, 0);
}

#[test]
fn small_frames_for_a_stream_that_is_over_are_counted() {
    for (payload, flags) in [(&b""[..], END_STREAM), (b"", 0), (b"x", 0)] {
        let late = frame(DATA, flags, 1, payload);
        let reset = [get(1), frame(DATA, 0, 1, b"not asked for")];
        let mut multiplexer = after(&reset);
        let mut taken = 0;
        while multiplexer.broken.is_none() && taken < 10_000 {
            take(&mut multiplexer, &late);
            taken += 1;
        }
        assert_eq!(multiplexer.flood(), Some(Flood::EmptyData), "{payload:?}");
        assert!((100..120).contains(&taken), "{taken}: what is on its way is no fault");
    }
}
