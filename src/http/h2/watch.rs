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
pub(super) enum Flood {
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
pub(super) struct Watcher {
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
    pub(super) fn new(limits: FrameLimits) -> Self {
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
    pub(super) fn receive(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Flood> {
        while let Some(frame) = self.received.next(&mut bytes) {
            self.judge(frame, now)?;
        }
        if self.received.is_between() && self.head.is_some_and(|head| head.last) {
            self.head = None;
        }
        Ok(())
    }

    /// Sees the next bytes that were sent to the client.
    pub(super) fn send(&mut self, mut bytes: &[u8]) {
        while let Some(frame) = self.sent.next(&mut bytes) {
            if frame.kind == kind::DATA && frame.length > 0 {
                self.credit(Flood::WindowUpdates, 2 + 2 * (frame.length / REFRESH_BYTES));
                self.credit(Flood::Pings, 1);
            }
        }
    }

    /// When a head must have ended that has begun and not ended yet.
    pub(super) fn head_deadline(&self) -> Option<Instant> {
        self.head.map(|head| head.since + self.limits.head_timeout)
    }

    fn judge(&mut self, frame: Frame, now: Instant) -> Result<(), Flood> {
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

    /// Whether the last frame has come as a whole, and nothing of the next.
    fn is_between(&self) -> bool {
        self.skip == 0 && self.filled == 0
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
