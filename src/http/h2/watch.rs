//! Does a client send frames that only make work? Counts them before the h2 crate sees them.
//!
//! The h2 crate bounds memory, not rates: it answers each PING, each SETTINGS and each stream that
//! is opened only to be reset (CVE-2023-44487, CVE-2019-9511 to 9518). What is counted is what an
//! honest client has little use for; what our own data or its own requests explain is on credit
//! and free: a WINDOW_UPDATE after each piece of a download, a PING to measure the line under one,
//! a PRIORITY for a stream.
//!
//! Counts start anew every ten seconds, so a client that knows when may send twice a limit within
//! ten seconds, and never more.

use std::time::Duration;

use tokio::time::Instant;

/// How long a count lasts.
const PERIOD: Duration = Duration::from_secs(10);

/// RFC 9113 §3.4; its content is the h2 crate's to check.
const PREFACE_BYTES: usize = 24;

const HEAD_BYTES: usize = 9;

/// The most that a client may have on credit: a burst of them is milliseconds of work, and a client
/// would need 40 MiB of data on the way to it for as many.
const CREDIT: u32 = 10_000;

/// Clients give the window of a stream and the connection's back, at the earliest after each frame,
/// or each time that they have read this much.
const REFRESH_BYTES: u32 = 4 * 1024;

/// Browsers say three times where a stream stands among the others, and where it went later.
const PRIORITIES_A_STREAM: u32 = 4;

/// What a client may send.
#[derive(Clone, Copy, Debug)]
pub struct FrameLimits {
    /// RST_STREAM in ten seconds.
    pub resets: usize,
    /// Frames of each other kind in ten seconds, beyond those that are explained.
    pub control_frames: usize,
    /// CONTINUATION frames of one head.
    pub continuation_frames: usize,
    /// From a head's first byte to its last.
    pub head_timeout: Duration,
}

/// What a client sent too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    Resets,
    Pings,
    Settings,
    Priorities,
    WindowUpdates,
    /// DATA without data that does not end its stream.
    EmptyData,
    /// GOAWAY, PUSH_PROMISE and what RFC 9113 doesn't know.
    Others,
    Continuations,
    /// A head that does not end.
    UnfinishedHead,
}

/// Kinds that are counted by time: the variants before `Continuations`.
const COUNTED: usize = Flood::Continuations as usize;

/// Follows both directions of one connection.
#[derive(Debug)]
pub struct Watcher {
    limits: FrameLimits,
    received: Frames,
    sent: Frames,
    counts: [usize; COUNTED],
    credits: [u32; COUNTED],
    /// When the counts start anew.
    period_end: Option<Instant>,
    head: Option<OpenHead>,
}

/// A head that has begun.
#[derive(Clone, Copy, Debug)]
struct OpenHead {
    since: Instant,
    continuations: usize,
    /// The frame that is arriving is its last.
    last: bool,
}

impl Watcher {
    pub fn new(limits: FrameLimits) -> Self {
        Watcher {
            limits,
            received: Frames::behind(PREFACE_BYTES),
            sent: Frames::behind(0),
            counts: [0; COUNTED],
            credits: [0; COUNTED],
            period_end: None,
            head: None,
        }
    }

    /// Sees the next bytes that the client has sent.
    ///
    /// # Errors
    /// What there is too much of; nothing more is to be shown then.
    pub fn receive(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Flood> {
        while let Some(frame) = self.received.next(&mut bytes) {
            self.judge(frame, now)?;
        }
        if self.received.skip == 0 {
            self.close_head();
        }
        Ok(())
    }

    /// Sees the next bytes that were sent to the client.
    pub fn send(&mut self, mut bytes: &[u8]) {
        while let Some(frame) = self.sent.next(&mut bytes) {
            if frame.kind == kind::DATA && frame.length > 0 {
                self.credit(Flood::WindowUpdates, 2 + 2 * (frame.length / REFRESH_BYTES));
                self.credit(Flood::Pings, 1);
            }
        }
    }

    /// When a head must have ended that has begun and not ended yet.
    pub fn head_deadline(&self) -> Option<Instant> {
        self.head.map(|head| head.since + self.limits.head_timeout)
    }

    fn judge(&mut self, frame: Frame, now: Instant) -> Result<(), Flood> {
        // The frame before this one has come as a whole.
        self.close_head();
        match frame.kind {
            kind::HEADERS => {
                self.head =
                    Some(OpenHead { since: now, continuations: 0, last: frame.has(flag::END_HEADERS) });
                // Firefox and curl enlarge the window of each stream.
                self.credit(Flood::WindowUpdates, 2);
                self.credit(Flood::Priorities, PRIORITIES_A_STREAM);
                // PRIORITY_UPDATE (RFC 9218 §7.1).
                self.credit(Flood::Others, PRIORITIES_A_STREAM);
                Ok(())
            }
            kind::CONTINUATION => self.continue_head(frame),
            kind::DATA if frame.length > 0 || frame.has(flag::END_STREAM) => Ok(()),
            kind::DATA => self.count(Flood::EmptyData, now),
            kind::RST_STREAM => self.count(Flood::Resets, now),
            kind::PING => self.count(Flood::Pings, now),
            kind::SETTINGS => self.count(Flood::Settings, now),
            kind::PRIORITY => self.count(Flood::Priorities, now),
            kind::WINDOW_UPDATE => self.count(Flood::WindowUpdates, now),
            _ => self.count(Flood::Others, now),
        }
    }

    /// The last frame has come: if it was the last of a head, that is finished.
    fn close_head(&mut self) {
        if self.head.is_some_and(|head| head.last) {
            self.head = None;
        }
    }

    /// One without a head before it is a protocol error, which the h2 crate finds.
    fn continue_head(&mut self, frame: Frame) -> Result<(), Flood> {
        let Some(head) = &mut self.head else { return Ok(()) };
        head.continuations += 1;
        head.last = frame.has(flag::END_HEADERS);
        if head.continuations > self.limits.continuation_frames {
            return Err(Flood::Continuations);
        }
        Ok(())
    }

    fn count(&mut self, flood: Flood, now: Instant) -> Result<(), Flood> {
        let kind = flood as usize;
        if self.credits[kind] > 0 {
            self.credits[kind] -= 1;
            return Ok(());
        }
        if self.period_end.is_none_or(|end| now >= end) {
            self.period_end = Some(now + PERIOD);
            self.counts = [0; COUNTED];
        }
        self.counts[kind] += 1;
        let limit = if flood == Flood::Resets { self.limits.resets } else { self.limits.control_frames };
        if self.counts[kind] > limit { Err(flood) } else { Ok(()) }
    }

    fn credit(&mut self, flood: Flood, count: u32) {
        let credit = &mut self.credits[flood as usize];
        *credit = (*credit + count).min(CREDIT);
    }
}

/// The head of a frame (RFC 9113 §4.1), as far as it matters here.
#[derive(Clone, Copy, Debug)]
struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
}

impl Frame {
    fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// RFC 9113 §6.
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const PRIORITY: u8 = 2;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

mod flag {
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
}

/// Finds the heads of frames in bytes that come in any pieces.
#[derive(Debug)]
struct Frames {
    /// What is still to come before the next head.
    skip: usize,
    head: [u8; HEAD_BYTES],
    /// How much of the head has come.
    filled: usize,
}

impl Frames {
    fn behind(skip: usize) -> Self {
        Frames { skip, head: [0; HEAD_BYTES], filled: 0 }
    }

    /// The next head; without one, all bytes were taken.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        *bytes = &bytes[skipped..];
        let taken = (HEAD_BYTES - self.filled).min(bytes.len());
        self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        *bytes = &bytes[taken..];
        if self.filled < HEAD_BYTES {
            return None;
        }
        self.filled = 0;
        let [a, b, c, kind, flags, ..] = self.head;
        let length = u32::from_be_bytes([0, a, b, c]);
        self.skip = length as usize;
        Some(Frame { length, kind, flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits = FrameLimits {
        resets: 5,
        control_frames: 10,
        continuation_frames: 3,
        head_timeout: Duration::from_secs(10),
    };
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// A watcher behind the preface.
    fn watcher() -> Watcher {
        let mut watcher = Watcher::new(LIMITS);
        watcher.receive(PREFACE, Instant::now()).unwrap();
        watcher
    }

    /// How many of these frames a client may send, one after the other at one time.
    fn allowed(watcher: &mut Watcher, bytes: &[u8], now: Instant) -> usize {
        (0..1_000_000).find(|_| watcher.receive(bytes, now).is_err()).unwrap()
    }

    /// Each kind that is counted by time, an example, and its limit.
    fn kinds() -> Vec<(Flood, Vec<u8>, usize)> {
        vec![
            (Flood::Resets, frame(kind::RST_STREAM, 0, &[0; 4]), 5),
            (Flood::Pings, frame(kind::PING, 0, &[0; 8]), 10),
            (Flood::Pings, frame(kind::PING, 1, &[0; 8]), 10),
            (Flood::Settings, frame(kind::SETTINGS, 0, &[]), 10),
            (Flood::Settings, frame(kind::SETTINGS, 0, &[0; 6 * 100]), 10),
            (Flood::Priorities, frame(kind::PRIORITY, 0, &[0; 5]), 10),
            (Flood::WindowUpdates, frame(kind::WINDOW_UPDATE, 0, &[0, 0, 0, 1]), 10),
            (Flood::EmptyData, frame(kind::DATA, 0, &[]), 10),
            (Flood::Others, frame(5, 0, &[]), 10),
            (Flood::Others, frame(7, 0, &[0; 8]), 10),
            (Flood::Others, frame(0x10, 0, b"u=1"), 10),
            (Flood::Others, frame(0xff, 0xff, &[]), 10),
        ]
    }

    #[test]
    fn takes_each_kind_up_to_its_limit() {
        for (flood, bytes, limit) in kinds() {
            let now = Instant::now();
            let mut watcher = watcher();
            watcher.receive(&bytes.repeat(limit), now).unwrap();
            assert_eq!(watcher.receive(&bytes, now), Err(flood));
        }
    }

    #[test]
    fn counts_each_kind_by_itself() {
        let now = Instant::now();
        let mut watcher = watcher();
        let each = [2, 3, 5, 6, 7, 10].map(|at| kinds().swap_remove(at));
        for (_, bytes, limit) in each {
            watcher.receive(&bytes.repeat(limit), now).unwrap_or_default();
        }
        assert_eq!(watcher.receive(&kinds()[0].1.repeat(5), now), Ok(()));
    }

    #[test]
    fn starts_anew_after_ten_seconds() {
        for (flood, bytes, limit) in kinds() {
            let start = Instant::now();
            let mut watcher = watcher();
            watcher.receive(&bytes.repeat(limit), start).unwrap();
            assert_eq!(allowed(&mut watcher, &bytes, start + PERIOD), limit, "{flood:?}");
        }
        for (flood, bytes, limit) in kinds() {
            let start = Instant::now();
            let mut watcher = watcher();
            watcher.receive(&bytes.repeat(limit), start).unwrap();
            assert_eq!(watcher.receive(&bytes, start + PERIOD - Duration::from_millis(1)), Err(flood));
        }
    }

    #[test]
    fn finds_frames_at_every_split() {
        let reset = frame(kind::RST_STREAM, 0, &[0; 4]);
        let body = frame(kind::DATA, 0, &frame(kind::RST_STREAM, 0, &[0; 4]).repeat(20));
        let head = frame(kind::HEADERS, flag::END_HEADERS, b"head");
        let all = [PREFACE, &head, &reset, &body, &reset, &reset, &head, &reset, &reset].concat();
        let now = Instant::now();
        for at in 0..=all.len() {
            let mut watcher = Watcher::new(LIMITS);
            watcher.receive(&all[..at], now).unwrap();
            watcher.receive(&all[at..], now).unwrap();
            assert_eq!(watcher.head_deadline(), None, "split at {at}");
        }
        let flood = [&all[..], &reset].concat();
        for at in 0..=flood.len() {
            let mut watcher = Watcher::new(LIMITS);
            let verdict = watcher.receive(&flood[..at], now);
            let verdict = verdict.and_then(|()| watcher.receive(&flood[at..], now));
            assert_eq!(verdict, Err(Flood::Resets), "split at {at}");
        }
        let mut watcher = Watcher::new(LIMITS);
        for byte in &all {
            watcher.receive(&[*byte], now).unwrap();
        }
        assert_eq!(allowed(&mut watcher, &reset, now), 0);
    }

    #[test]
    fn takes_data_that_has_a_purpose() {
        let now = Instant::now();
        let mut watcher = watcher();
        for bytes in [frame(kind::DATA, flag::END_STREAM, &[]), frame(kind::DATA, 0, b"x")] {
            watcher.receive(&bytes.repeat(1000), now).unwrap();
        }
    }

    #[test]
    fn counts_the_pieces_of_each_head() {
        let (head, more) = (frame(kind::HEADERS, 0, b"h"), frame(kind::CONTINUATION, 0, b"m"));
        let end = frame(kind::CONTINUATION, flag::END_HEADERS, b"e");
        for (pieces, verdict) in [(2, Ok(())), (3, Ok(())), (4, Err(Flood::Continuations))] {
            let block = [&head[..], &more.repeat(pieces - 1), &end].concat();
            let mut watcher = watcher();
            assert_eq!(watcher.receive(&block, Instant::now()), verdict, "{pieces}");
        }
        let block = [&head[..], &more.repeat(2), &end].concat();
        assert_eq!(watcher().receive(&block.repeat(100), Instant::now()), Ok(()));
    }

    #[test]
    fn tells_since_when_a_head_is_not_finished() {
        let start = Instant::now();
        let end = start + LIMITS.head_timeout;
        let later = start + Duration::from_secs(3);
        let mut watcher = watcher();
        watcher.receive(&frame(kind::HEADERS, 0, b"h"), start).unwrap();
        assert_eq!(watcher.head_deadline(), Some(end));
        watcher.receive(&frame(kind::CONTINUATION, 0, b"m"), later).unwrap();
        assert_eq!(watcher.head_deadline(), Some(end));
        let last = frame(kind::CONTINUATION, flag::END_HEADERS, b"end");
        watcher.receive(&last[..last.len() - 1], later).unwrap();
        assert_eq!(watcher.head_deadline(), Some(end), "a byte is missing");
        watcher.receive(&last[last.len() - 1..], later).unwrap();
        assert_eq!(watcher.head_deadline(), None);
        let whole = frame(kind::HEADERS, flag::END_HEADERS, b"h");
        watcher.receive(&whole[..whole.len() - 1], start).unwrap();
        assert_eq!(watcher.head_deadline(), Some(end), "one slow frame");
        watcher.receive(&[whole[whole.len() - 1..].to_vec(), whole[..1].to_vec()].concat(), later).unwrap();
        assert_eq!(watcher.head_deadline(), None, "the next frame has begun");
        let rest = &whole[1..];
        watcher.receive(&[rest, &frame(kind::DATA, 0, b"body")[..12]].concat(), start).unwrap();
        assert_eq!(watcher.head_deadline(), None, "a body is not a head");
    }

    #[test]
    fn data_sent_explains_window_updates() {
        for (length, frames, explained) in [(0, 5, 0), (1, 5, 10), (4095, 1, 2), (4096, 1, 4), (16384, 2, 20)]
        {
            let update = frame(kind::WINDOW_UPDATE, 0, &[0, 0, 0, 1]);
            let mut watcher = watcher();
            let sent = frame(kind::DATA, 0, &vec![0; length]).repeat(frames);
            for piece in sent.chunks(7) {
                watcher.send(piece);
            }
            let count = allowed(&mut watcher, &update, Instant::now());
            assert_eq!(count, LIMITS.control_frames + explained, "{frames} of {length}");
        }
    }

    #[test]
    fn data_sent_explains_pings_and_nothing_else() {
        for (flood, bytes, limit) in kinds() {
            let mut watcher = watcher();
            watcher.send(&frame(kind::DATA, 0, b"x").repeat(7));
            let more = match flood {
                Flood::Pings => 7,
                Flood::WindowUpdates => 14,
                _ => 0,
            };
            assert_eq!(allowed(&mut watcher, &bytes, Instant::now()), limit + more, "{flood:?}");
        }
    }

    #[test]
    fn streams_explain_priorities_and_windows() {
        let head = frame(kind::HEADERS, flag::END_HEADERS, b"h");
        for (flood, bytes, limit) in kinds() {
            let mut watcher = watcher();
            watcher.receive(&head.repeat(3), Instant::now()).unwrap();
            let more = match flood {
                Flood::WindowUpdates => 6,
                Flood::Priorities | Flood::Others => 12,
                _ => 0,
            };
            assert_eq!(allowed(&mut watcher, &bytes, Instant::now()), limit + more, "{flood:?}");
        }
    }

    #[test]
    fn credit_does_not_grow_for_ever() {
        let mut watcher = watcher();
        let sent = frame(kind::DATA, 0, &[0; 16384]);
        for _ in 0..CREDIT {
            watcher.send(&sent);
        }
        let update = frame(kind::WINDOW_UPDATE, 0, &[0, 0, 0, 1]);
        let count = allowed(&mut watcher, &update, Instant::now());
        assert_eq!(count, LIMITS.control_frames + CREDIT as usize);
    }
}
