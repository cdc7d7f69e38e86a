//! How do log lines get from the workers to the sink without any worker ever waiting?
//!
//! Each worker formats its lines into a buffer of its own and hands it over when it is full, or
//! every so often. One thread writes the buffers and hands them back empty. A queue that is full
//! means the sink is slower than the traffic: then lines are lost, counted, and nothing waits.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use self::sink::{Settled, Sink};
use super::{Metrics, Record};
use crate::config::{AccessSink, Log, LogFormat};

mod sink;

/// A buffer of this size is handed over at once.
const BATCH_BYTES: usize = 32 * 1024;
/// What is kept of a buffer that a long line has grown.
const BUFFER_BYTES: usize = 2 * BATCH_BYTES;
/// Full buffers waiting for a sink that stalls: about 8 MiB.
const QUEUE_BATCHES: usize = 256;
/// Empty buffers on the way back to one worker.
const SPARE_BUFFERS: usize = 4;

/// The access log of the process; owns the thread that writes it.
#[derive(Debug)]
pub struct AccessLog {
    format: LogFormat,
    metrics: Arc<Metrics>,
    /// `None`: the log is off.
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
    /// Closes when the thread has written everything.
    done: Receiver<()>,
}

#[derive(Debug, Default)]
struct Shared {
    reopen: AtomicBool,
    finishing: AtomicBool,
    /// Lines handed over that are neither written nor lost yet.
    waiting: AtomicU64,
}

#[derive(Debug)]
enum Message {
    Batch(Batch),
    /// Nothing to write, but a flag of `Shared` to look at.
    Wake,
}

/// Whole lines, each with its end.
#[derive(Debug)]
struct Batch {
    text: Vec<u8>,
    /// Where the buffer goes when it is empty.
    home: SyncSender<Vec<u8>>,
}

impl AccessLog {
    /// Opens the sink and starts the thread; a file is appended to, or created with mode 0640.
    pub fn start(log: &Log, metrics: &Arc<Metrics>) -> io::Result<AccessLog> {
        let (file, path) = match &log.access {
            AccessSink::Off => return Ok(AccessLog::off(log.format, metrics)),
            // WHY a second descriptor: what std wraps around these has a buffer and a lock.
            AccessSink::Stdout => (File::from(io::stdout().as_fd().try_clone_to_owned()?), None),
            AccessSink::Stderr => (File::from(io::stderr().as_fd().try_clone_to_owned()?), None),
            AccessSink::File(path) => (sink::open(path)?, Some(path.clone())),
        };
        AccessLog::over(file, path, log.format, metrics)
    }

    fn off(format: LogFormat, metrics: &Arc<Metrics>) -> AccessLog {
        AccessLog { format, metrics: Arc::clone(metrics), running: None }
    }

    fn over(
        file: File,
        path: Option<PathBuf>,
        format: LogFormat,
        metrics: &Arc<Metrics>,
    ) -> io::Result<AccessLog> {
        let (queue, batches) = mpsc::sync_channel(QUEUE_BATCHES);
        let (closes_at_end, done) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let mut sink = Sink::new(file, path);
        let (thread_shared, thread_metrics) = (Arc::clone(&shared), Arc::clone(metrics));
        thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            let _closes_at_end: mpsc::Sender<()> = closes_at_end;
            write_all(&batches, &mut sink, &thread_shared, &thread_metrics);
        })?;
        let running = Some(Running { queue, shared, done });
        Ok(AccessLog { format, metrics: Arc::clone(metrics), running })
    }

    /// A writer for one worker.
    pub fn writer(&self) -> LogWriter {
        let handover = self.running.as_ref().map(|running| {
            let (home, spares) = mpsc::sync_channel(SPARE_BUFFERS);
            let (queue, shared) = (running.queue.clone(), Arc::clone(&running.shared));
            Handover { queue, shared, home, spares, text: Vec::new(), lines: 0 }
        });
        LogWriter { format: self.format, metrics: Arc::clone(&self.metrics), handover }
    }

    /// Has a file opened again by its name: after a rotation that has renamed it.
    ///
    /// Where that fails the old file stays in use.
    pub fn reopen(&self) {
        if let Some(Running { queue, shared, .. }) = &self.running {
            shared.reopen.store(true, Ordering::Release);
            // A full queue needs no waking.
            let _ = queue.try_send(Message::Wake);
        }
    }

    /// Waits until everything handed over is written, no longer than `deadline`, and returns how
    /// many lines are not; they count as lost.
    ///
    /// Blocks the thread. What a writer has not handed over is not waited for: drop writers first.
    pub fn finish(self, deadline: Duration) -> u64 {
        let Some(Running { queue, shared, done }) = self.running else {
            return 0;
        };
        shared.finishing.store(true, Ordering::Release);
        // A full queue needs no waking.
        let _ = queue.try_send(Message::Wake);
        drop(queue);
        // Nothing is ever sent: it is the thread's end that ends the wait.
        let _ = done.recv_timeout(deadline);
        let left = shared.waiting.load(Ordering::Acquire);
        self.metrics.log_lines_lost(left);
        left
    }
}

/// Runs in the thread until the log and all its writers are gone, or the end is asked for and
/// nothing waits.
fn write_all(queue: &Receiver<Message>, sink: &mut Sink, shared: &Shared, metrics: &Metrics) {
    let settle = |settled: Settled| {
        metrics.log_lines_lost(settled.lost);
        shared.waiting.fetch_sub(settled.written + settled.lost, Ordering::AcqRel);
    };
    for message in queue {
        if shared.reopen.swap(false, Ordering::AcqRel) {
            settle(sink.reopen());
        }
        if let Message::Batch(Batch { mut text, home }) = message {
            settle(sink.write(&text));
            text.clear();
            text.shrink_to(BUFFER_BYTES);
            // A worker that has enough of them, or is gone, needs no buffer.
            let _ = home.try_send(text);
        }
        let unsettled = shared.waiting.load(Ordering::Acquire);
        if unsettled <= sink.torn_lines() && shared.finishing.load(Ordering::Acquire) {
            return;
        }
    }
}

/// One worker's way into the log. What is in it is handed over when it is dropped.
#[derive(Debug)]
pub struct LogWriter {
    format: LogFormat,
    metrics: Arc<Metrics>,
    /// `None`: the log is off, and a record costs nothing.
    handover: Option<Handover>,
}

#[derive(Debug)]
struct Handover {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
    home: SyncSender<Vec<u8>>,
    spares: Receiver<Vec<u8>>,
    text: Vec<u8>,
    lines: u64,
}

impl LogWriter {
    /// Formats a line; never waits.
    pub fn record(&mut self, record: &Record<'_>) {
        let Some(handover) = &mut self.handover else {
            return;
        };
        record.write(self.format, &mut handover.text);
        handover.text.push(b'\n');
        handover.lines += 1;
        if handover.text.len() >= BATCH_BYTES && !handover.hand_over() {
            self.metrics.log_lines_lost(handover.give_up());
        }
    }

    /// Hands over what is there; to be called every 100 ms or so. Never waits: what the queue has no
    /// room for stays here until the buffer is full.
    pub fn flush(&mut self) {
        if let Some(handover) = &mut self.handover {
            handover.hand_over();
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        if let Some(handover) = &mut self.handover
            && !handover.hand_over()
        {
            self.metrics.log_lines_lost(handover.give_up());
        }
    }
}

impl Handover {
    /// Whether the lines are now in the queue; otherwise they are still here.
    fn hand_over(&mut self) -> bool {
        if self.lines == 0 {
            return true;
        }
        let text = std::mem::take(&mut self.text);
        let batch = Batch { text, home: self.home.clone() };
        // Before it is sent: the thread may be done with it a moment later.
        self.shared.waiting.fetch_add(self.lines, Ordering::AcqRel);
        match self.queue.try_send(Message::Batch(batch)) {
            Ok(()) => {
                self.lines = 0;
                self.text = self.spares.try_recv().unwrap_or_default();
                true
            }
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => {
                self.shared.waiting.fetch_sub(self.lines, Ordering::AcqRel);
                if let Message::Batch(batch) = message {
                    self.text = batch.text;
                }
                false
            }
        }
    }

    /// Empties the buffer and returns how many lines were in it.
    fn give_up(&mut self) -> u64 {
        self.text.clear();
        self.text.shrink_to(BUFFER_BYTES);
        std::mem::take(&mut self.lines)
    }
}
