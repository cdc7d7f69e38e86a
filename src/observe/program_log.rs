//! What does the program itself say, and how often?
//!
//! Events go to standard error, each on one line whatever is in it. A message that traffic can
//! provoke is held back by a `Throttle`, or a flood of connections would be a flood of lines. Once the process
//! serves, a thread of its own writes them: a reader of standard error that stalls keeps nobody from his work.

use std::{
    io::{self, Write},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
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

/// Events that wait for a standard error that stalls; those beyond are lost, and counted.
const QUEUE: usize = 1024;

/// How long the last events may take to be written.
const LAST_EVENTS: Duration = Duration::from_millis(500);

/// Set once the thread is there that writes what is queued.
static WRITER: OnceLock<Writer> = OnceLock::new();

#[derive(Debug)]
struct Writer {
    queue: SyncSender<Message>,
    lost: AtomicU64,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Tell when all before it is written.
    Flush(SyncSender<()>),
}

/// From now on events are written by a thread of their own, which has the restrictions of the calling thread. Does
/// nothing a second time.
pub fn detach_program_log() -> io::Result<()> {
    let (queue, messages) = mpsc::sync_channel(QUEUE);
    if WRITER.set(Writer { queue, lost: AtomicU64::new(0) }).is_ok() {
        let thread = thread::Builder::new().name("program-log".to_owned());
        thread.spawn(move || {
            write_all(&messages, &mut io::stderr(), || WRITER.get().map_or(0, Writer::take_lost));
        })?;
    }
    Ok(())
}

/// Waits until what was said so far is written, but not long: for the end of the process.
pub fn flush_program_log() {
    let Some(writer) = WRITER.get() else { return };
    let (written, all) = mpsc::sync_channel(1);
    if writer.queue.try_send(Message::Flush(written)).is_ok() {
        // WHY: a reader that stalls must not keep the process from its end.
        let _ = all.recv_timeout(LAST_EVENTS);
    }
}

impl Writer {
    fn say(&self, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

/// Writes until nobody can say anything any more. Errors are swallowed: there is nowhere left to tell of them.
fn write_all(messages: &Receiver<Message>, sink: &mut impl Write, mut lost: impl FnMut() -> u64) {
    for message in messages {
        match message {
            Message::Line(line) => _ = sink.write_all(&line),
            // Who asked may have left.
            Message::Flush(written) => _ = written.try_send(()),
        }
        let lost = lost();
        if lost > 0 {
            tracing::warn!("standard error was not read: {lost} messages were lost");
        }
    }
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
        match WRITER.get() {
            Some(writer) => writer.say(line(event)),
            None => _ = io::stderr().write_all(&line(event)),
        }
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
    fn a_reader_that_stalls_costs_messages_and_keeps_nobody() {
        let (mut reader, mut pipe) = io::pipe().unwrap();
        let (queue, messages) = mpsc::sync_channel(2);
        let writer = Writer { queue, lost: AtomicU64::new(0) };
        let stalled = thread::spawn(move || write_all(&messages, &mut pipe, || 0));
        // More than a pipe holds.
        let line = [vec![b'x'; 1 << 20], b"\n".to_vec()].concat();
        (0..10).for_each(|_| writer.say(line.clone()));
        let lost = writer.take_lost();
        assert!((7..=8).contains(&lost), "one is being written and two wait, {lost} are lost");
        let mut text = Vec::new();
        drop(writer);
        io::Read::read_to_end(&mut reader, &mut text).unwrap();
        assert_eq!(text, line.repeat(10 - usize::try_from(lost).unwrap()));
        stalled.join().unwrap();
    }

    #[test]
    fn a_flush_comes_back_when_all_before_it_is_written() {
        let (queue, messages) = mpsc::sync_channel(QUEUE);
        let (written, all) = mpsc::sync_channel(1);
        queue.send(Message::Line(b"one\n".to_vec())).unwrap();
        queue.send(Message::Flush(written)).unwrap();
        drop(queue);
        let mut sink = Vec::new();
        write_all(&messages, &mut sink, || 0);
        assert!(all.try_recv().is_ok());
        assert_eq!(sink, b"one\n");
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
