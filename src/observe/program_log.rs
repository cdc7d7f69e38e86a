//! What does the program itself say, and how often?
//!
//! Events go to standard error, each on one line whatever is in it. A message that traffic can
//! provoke is held back by a `Throttle`, or a flood of connections would be a flood of lines.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use tracing::Level;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::MakeWriter,
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use super::escape::one_line;
use crate::config::{Log, LogFormat};

/// Starts the program log; fails where the process has one already.
///
/// The level is that of our own events. Libraries speak up from `warn` on: their debugging would
/// drown ours, and shows what clients send.
pub fn start_program_log(log: &Log) -> Result<(), TryInitError> {
    let registry = tracing_subscriber::registry().with(levels(log.level));
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(OneLine);
    match log.format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        LogFormat::Text => registry.with(lines).try_init(),
    }
}

fn levels(level: Level) -> Targets {
    let others = LevelFilter::from_level(level).min(LevelFilter::WARN);
    Targets::new().with_default(others).with_target(env!("CARGO_PKG_NAME"), level)
}

/// Standard error, with each event kept on one line.
#[derive(Clone, Copy, Debug)]
struct OneLine;

impl MakeWriter<'_> for OneLine {
    type Writer = OneLine;

    fn make_writer(&self) -> OneLine {
        OneLine
    }
}

impl Write for OneLine {
    /// `event` is a whole event with its line end, as the formatting layer writes it. Errors are
    /// swallowed: there is nowhere left to tell of them.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().lock().write_all(&line(event));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn line(event: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(event.len() + 1);
    one_line(event.strip_suffix(b"\n").unwrap_or(event), &mut line);
    line.push(b'\n');
    line
}

/// Lets a message through at most once in a while, and counts those it held back.
#[derive(Debug)]
pub struct Throttle {
    every: Duration,
    next: Option<Instant>,
    suppressed: u64,
}

impl Throttle {
    pub const fn new(every: Duration) -> Throttle {
        Throttle { every, next: None, suppressed: 0 }
    }

    /// `Some` where the message may be written: the number held back since the last one.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.next.is_some_and(|next| now < next) {
            self.suppressed += 1;
            return None;
        }
        self.next = Some(now + self.every);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_an_interval_is_let_through_and_the_rest_counted() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut throttle = Throttle::new(second);
        assert_eq!(throttle.admit(start), Some(0));
        assert_eq!(throttle.admit(start), None);
        assert_eq!(throttle.admit(start + Duration::from_nanos(999_999_999)), None);
        assert_eq!(throttle.admit(start + second), Some(2));
        assert_eq!(throttle.admit(start + 10 * second), Some(0));
    }

    #[test]
    fn an_event_never_breaks_its_line() {
        assert_eq!(line(b"bad host \"a\nb\x1b[2J\"\n"), b"bad host \"a\\u000ab\\u001b[2J\"\n");
        assert_eq!(line(b"no end"), b"no end\n");
    }

    #[test]
    fn libraries_are_quiet_where_we_are_not() {
        let levels = levels(Level::DEBUG);
        assert!(levels.would_enable("portcullis::proxy", &Level::DEBUG));
        assert!(!levels.would_enable("h2::codec", &Level::INFO));
        assert!(levels.would_enable("h2::codec", &Level::WARN));
        assert!(!self::levels(Level::ERROR).would_enable("h2::codec", &Level::WARN));
    }
}
