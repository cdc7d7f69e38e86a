//! Does a client send frames that only make work?
//!
//! Memory is bounded elsewhere, rates are here: each PING, each SETTINGS and each stream that is opened
//! only to be reset has to be answered or undone (CVE-2023-44487, CVE-2019-9511 to 9518). What is
//! counted is what an honest client has little use for; what our own data or its own requests explain
//! is on credit and free: a WINDOW_UPDATE after each piece of a download, a PING to measure the line
//! under one, a PRIORITY for a stream.
//!
//! Counts start anew every ten seconds, so a client that knows when may send twice a limit within
//! ten seconds, and never more.

use std::time::Duration;

use tokio::time::Instant;

/// How long a count lasts.
const PERIOD: Duration = Duration::from_secs(10);

/// The most that a client may have on credit: a burst of them is milliseconds of work, and a client
/// would need 40 MiB of data on the way to it for as many.
const CREDIT: usize = 10_000;

/// Clients give the window of a stream and the connection's back, at the earliest after each frame,
/// or each time that they have read this much.
const REFRESH_BYTES: usize = 4 * 1024;

/// Browsers say three times where a stream stands among the others, and where it went later.
const PRIORITIES_A_STREAM: usize = 4;

/// Frames of little data that may be on their way while we reset their stream: a chatty call's in a tenth of a second.
const LATE_FRAMES: usize = 100;

/// What a client may send.
#[derive(Clone, Copy, Debug)]
pub struct FrameLimits {
    /// RST_STREAM in ten seconds.
    pub resets: usize,
    /// Frames of each other kind in ten seconds, beyond those that are explained.
    pub control_frames: usize,
    /// Resets that it may make us send over the connection's life (CVE-2025-8671).
    pub local_resets: usize,
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
    /// DATA without data that does not end its stream, or with little for a stream that is over.
    EmptyData,
    /// Heads for which there is no room, or no stream any more.
    Heads,
    /// GOAWAY and what RFC 9113 doesn't know.
    Others,
    Continuations,
    /// A head that does not end in time, or in a block that is worth decoding, or that stands for far more than it is.
    UnfinishedHead,
    LocalResets,
    /// Answers that it provokes and does not read.
    Unread,
}

/// Kinds that are counted by time: the variants before `Continuations`.
const COUNTED: usize = Flood::Continuations as usize;

/// The counts of one connection.
#[derive(Debug)]
pub(super) struct Floods {
    limits: FrameLimits,
    counts: [usize; COUNTED],
    credits: [usize; COUNTED],
    /// When the counts start anew.
    period_end: Option<Instant>,
    local_resets: usize,
}

impl Floods {
    pub(super) fn new(limits: FrameLimits) -> Self {
        Floods { limits, counts: [0; COUNTED], credits: [0; COUNTED], period_end: None, local_resets: 0 }
    }

    pub(super) fn limits(&self) -> &FrameLimits {
        &self.limits
    }

    /// Counts a frame of a kind that is counted by time.
    ///
    /// # Errors
    /// There is too much of it.
    pub(super) fn count(&mut self, flood: Flood, now: Instant) -> Result<(), Flood> {
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

    /// Counts a reset that the client has made us send.
    pub(super) fn count_local_reset(&mut self) -> Result<(), Flood> {
        self.local_resets += 1;
        if self.local_resets > self.limits.local_resets { Err(Flood::LocalResets) } else { Ok(()) }
    }

    /// A head explains what goes with a stream.
    pub(super) fn explain_head(&mut self) {
        // Firefox and curl enlarge the window of each stream.
        self.credit(Flood::WindowUpdates, 2);
        self.credit(Flood::Priorities, PRIORITIES_A_STREAM);
        // PRIORITY_UPDATE (RFC 9218 §7.1).
        self.credit(Flood::Others, PRIORITIES_A_STREAM);
    }

    /// That we reset a stream explains what was on its way.
    pub(super) fn explain_reset(&mut self) {
        self.credit(Flood::EmptyData, LATE_FRAMES);
    }

    /// A DATA frame to the client explains what it says about it.
    pub(super) fn explain_data(&mut self, bytes: usize) {
        self.credit(Flood::WindowUpdates, 2 + 2 * (bytes / REFRESH_BYTES));
        self.credit(Flood::Pings, 1);
    }

    fn credit(&mut self, flood: Flood, count: usize) {
        let credit = &mut self.credits[flood as usize];
        *credit = (*credit + count).min(CREDIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits = FrameLimits {
        resets: 5,
        control_frames: 10,
        local_resets: 3,
        continuation_frames: 3,
        head_timeout: Duration::from_secs(10),
    };

    /// Each kind that is counted by time, and its limit.
    const KINDS: [(Flood, usize); COUNTED] = [
        (Flood::Resets, 5),
        (Flood::Pings, 10),
        (Flood::Settings, 10),
        (Flood::Priorities, 10),
        (Flood::WindowUpdates, 10),
        (Flood::EmptyData, 10),
        (Flood::Heads, 10),
        (Flood::Others, 10),
    ];

    /// How many of these frames a client may send at one time.
    fn allowed(floods: &mut Floods, flood: Flood, now: Instant) -> usize {
        (0..1_000_000).find(|_| floods.count(flood, now).is_err()).unwrap()
    }

    #[test]
    fn takes_each_kind_up_to_its_limit_and_counts_it_by_itself() {
        let mut floods = Floods::new(LIMITS);
        let now = Instant::now();
        for (flood, limit) in KINDS {
            assert_eq!(allowed(&mut floods, flood, now), limit, "{flood:?}");
            assert_eq!(floods.count(flood, now), Err(flood));
        }
        for count in 1..=5 {
            assert_eq!(floods.count_local_reset().is_ok(), count <= 3, "{count}");
        }
    }

    #[test]
    fn starts_anew_after_ten_seconds() {
        for (flood, limit) in KINDS {
            let start = Instant::now();
            for (later, verdict) in [(PERIOD, Ok(())), (Duration::from_millis(9999), Err(flood))] {
                let mut floods = Floods::new(LIMITS);
                for _ in 0..limit {
                    floods.count(flood, start).unwrap();
                }
                assert_eq!(floods.count(flood, start + later), verdict);
            }
        }
    }

    #[test]
    fn data_sent_explains_window_updates_and_pings() {
        for (bytes, frames, explained) in [(1, 5, 10), (4095, 1, 2), (4096, 1, 4), (16384, 2, 20)] {
            let mut floods = Floods::new(LIMITS);
            for _ in 0..frames {
                floods.explain_data(bytes);
            }
            for (flood, limit) in KINDS {
                let more = match flood {
                    Flood::WindowUpdates => explained,
                    Flood::Pings => frames,
                    _ => 0,
                };
                assert_eq!(allowed(&mut floods, flood, Instant::now()), limit + more, "{flood:?} {bytes}");
            }
        }
    }

    #[test]
    fn heads_explain_priorities_and_windows() {
        let mut floods = Floods::new(LIMITS);
        for _ in 0..3 {
            floods.explain_head();
        }
        for (flood, limit) in KINDS {
            let more = match flood {
                Flood::WindowUpdates => 6,
                Flood::Priorities | Flood::Others => 12,
                _ => 0,
            };
            assert_eq!(allowed(&mut floods, flood, Instant::now()), limit + more, "{flood:?}");
        }
    }

    #[test]
    fn credit_does_not_grow_for_ever() {
        let mut floods = Floods::new(LIMITS);
        for _ in 0..CREDIT {
            floods.explain_data(16384);
        }
        let count = allowed(&mut floods, Flood::WindowUpdates, Instant::now());
        assert_eq!(count, LIMITS.control_frames + CREDIT);
    }
}
