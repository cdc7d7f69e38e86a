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
const BATCH_BYTES: usize = 128 * 1024;
/// What is kept of a buffer that a long line has grown.
const BUFFER_BYTES: usize = 2 * BATCH_BYTES;
/// Full buffers waiting for a sink that stalls: about 8 MiB.
const QUEUE_BATCHES: usize = 64;
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
            write_all(&batches, &mut sink, &thread_shared, &thread_metrics);
            // In this order: what is handed over after the end is announced must find no queue.
            drop(batches);
            drop::<mpsc::Sender<()>>(closes_at_end);
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
                self.text = self.spares.try_recv().unwrap_or_else(|_| Vec::with_capacity(BUFFER_BYTES));
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

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        fs,
        io::{BufRead, BufReader, Read, pipe},
        os::{
            fd::OwnedFd,
            unix::{fs::PermissionsExt, net::UnixStream},
        },
        time::{Instant, SystemTime},
    };

    use super::*;
    use crate::observe::{Protocol, Quoted};

    const LONG: Duration = Duration::from_mins(1);

    fn record(request_id: &str) -> Record<'_> {
        Record {
            time: SystemTime::UNIX_EPOCH,
            listener: Box::leak(Box::new(Quoted::new("http"))),
            client_ip: "127.0.0.1",
            peer: "127.0.0.1:1",
            protocol: Protocol::Http1,
            tls: None,
            method: "GET",
            host: "example.com",
            path: "/",
            query: None,
            route: None,
            cluster: None,
            backend: None,
            status: 200,
            reason: None,
            bytes_in: 0,
            bytes_out: 0,
            attempts: 1,
            duration: Duration::ZERO,
            upstream_response: None,
            request_id: request_id.as_bytes(),
            user_agent: None,
            referer: None,
        }
    }

    fn log_to(access: AccessSink) -> (AccessLog, Arc<Metrics>) {
        let metrics = Metrics::new(1);
        let log = Log { access, format: LogFormat::Json, level: tracing::Level::INFO };
        (AccessLog::start(&log, &metrics).unwrap(), metrics)
    }

    fn log_over(sink: OwnedFd) -> (AccessLog, Arc<Metrics>) {
        let metrics = Metrics::new(1);
        (AccessLog::over(File::from(sink), None, LogFormat::Json, &metrics).unwrap(), metrics)
    }

    fn lost(metrics: &Metrics) -> u64 {
        let text = metrics.scrape();
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix("portcullis_log_lines_lost_total ")).unwrap().parse().unwrap()
    }

    /// The request ids in what was written; fails on a line that is not whole.
    fn ids(written: impl Read) -> Vec<String> {
        let id = |line: io::Result<String>| {
            let value: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            value["request_id"].as_str().unwrap().to_owned()
        };
        BufReader::new(written).lines().map(id).collect()
    }

    #[test]
    fn every_line_of_every_worker_arrives_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let (log, metrics) = log_to(AccessSink::File(path.clone()));
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let mut writer = log.writer();
                thread::spawn(move || {
                    // Below the queue's room altogether, so that none is lost.
                    for n in 0..4_000 {
                        writer.record(&record(&format!("{worker}-{n}")));
                        if n % 1000 == 0 {
                            writer.flush();
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(log.finish(LONG), 0);
        let ids = ids(File::open(&path).unwrap());
        assert_eq!(ids.len(), 16_000);
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 16_000);
        assert_eq!(lost(&metrics), 0);
    }

    #[test]
    fn a_new_file_is_not_for_everybody_to_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let (log, _) = log_to(AccessSink::File(path.clone()));
        assert_eq!(log.finish(LONG), 0);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777 & !0o640, 0);
    }

    #[test]
    fn a_file_is_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        for id in ["first", "second"] {
            let (log, _) = log_to(AccessSink::File(path.clone()));
            log.writer().record(&record(id));
            assert_eq!(log.finish(LONG), 0);
        }
        assert_eq!(ids(File::open(&path).unwrap()), ["first", "second"]);
    }

    #[test]
    fn a_sink_that_can_not_be_opened_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("no/such/folder")] {
            let log =
                Log { access: AccessSink::File(path), format: LogFormat::Json, level: tracing::Level::INFO };
            AccessLog::start(&log, &Metrics::new(1)).unwrap_err();
        }
    }

    #[test]
    fn nothing_happens_where_the_log_is_off() {
        let (log, metrics) = log_to(AccessSink::Off);
        let mut writer = log.writer();
        writer.record(&record("x"));
        writer.flush();
        log.reopen();
        assert!(writer.handover.is_none());
        assert_eq!((log.finish(Duration::ZERO), lost(&metrics)), (0, 0));
    }

    #[test]
    fn a_full_disk_loses_lines_and_counts_them() {
        let (log, metrics) = log_to(AccessSink::File("/dev/full".into()));
        let mut writer = log.writer();
        for _ in 0..5_000 {
            writer.record(&record("x"));
        }
        drop(writer);
        assert_eq!(log.finish(LONG), 0, "all are settled");
        assert_eq!(lost(&metrics), 5_000);
    }

    #[test]
    fn a_pipe_whose_reader_is_gone_loses_lines_and_counts_them() {
        let (reader, sink) = pipe().unwrap();
        drop(reader);
        let (log, metrics) = log_over(sink.into());
        log.writer().record(&record("x"));
        assert_eq!(log.finish(LONG), 0);
        assert_eq!(lost(&metrics), 1);
    }

    #[test]
    fn a_stalled_sink_costs_lines_and_never_a_wait() {
        let (reader, sink) = pipe().unwrap();
        let (log, metrics) = log_over(sink.into());
        let mut writer = log.writer();
        let lines = 60_000; // about 20 MiB, more than the queue takes
        for n in 0..lines {
            writer.record(&record(&n.to_string()));
        }
        let lost_while_stalled = lost(&metrics);
        assert!(lost_while_stalled > 0);
        assert!(lost_while_stalled < lines, "the queue is used");
        // From here on somebody reads.
        let reader = thread::spawn(move || ids(reader));
        let deadline = Instant::now() + LONG;
        while log.running.as_ref().unwrap().shared.waiting.load(Ordering::Acquire) > 0
            && Instant::now() < deadline
        {
            thread::yield_now();
        }
        drop(writer);
        assert_eq!(log.finish(LONG), 0);
        let written = reader.join().unwrap().len() as u64;
        assert_eq!(written + lost(&metrics), lines);
    }

    #[test]
    fn the_end_does_not_wait_for_a_stalled_sink_beyond_the_deadline() {
        let (reader, sink) = pipe().unwrap();
        let (log, metrics) = log_over(sink.into());
        let mut writer = log.writer();
        for _ in 0..2_000 {
            writer.record(&record("x"));
        }
        drop(writer);
        let left = log.finish(Duration::from_millis(20));
        assert!(left > 0);
        assert_eq!(lost(&metrics), left);
        drop(reader);
    }

    #[test]
    fn a_flush_keeps_lines_that_the_queue_has_no_room_for() {
        let (reader, sink) = pipe().unwrap();
        let (log, metrics) = log_over(sink.into());
        let mut writer = log.writer();
        // More than the pipe takes: stalls the sink.
        writer.record(&record(&"x".repeat(200_000)));
        let lines = u64::try_from(QUEUE_BATCHES).unwrap() + 20;
        for n in 0..lines {
            writer.record(&record(&n.to_string()));
            writer.flush();
        }
        assert!(writer.handover.as_ref().unwrap().lines > 0, "the queue is full");
        assert_eq!(lost(&metrics), 0);
        let reader = thread::spawn(move || ids(reader).len() as u64);
        while !writer.handover.as_mut().unwrap().hand_over() {
            thread::yield_now();
        }
        drop(writer);
        assert_eq!(log.finish(LONG), 0);
        assert_eq!((reader.join().unwrap(), lost(&metrics)), (lines + 1, 0));
    }

    #[test]
    fn a_sink_that_would_block_is_tried_again() {
        let (reader, sink) = UnixStream::pair().unwrap();
        sink.set_nonblocking(true).unwrap();
        let (log, metrics) = log_over(sink.into());
        let mut writer = log.writer();
        for _ in 0..4_000 {
            writer.record(&record("x"));
        }
        drop(writer);
        let reader = thread::spawn(move || ids(reader).len());
        assert_eq!(log.finish(LONG), 0);
        assert_eq!((reader.join().unwrap(), lost(&metrics)), (4_000, 0));
    }

    #[test]
    fn a_writer_that_outlives_the_log_loses_its_lines_and_counts_them() {
        let folder = tempfile::tempdir().unwrap();
        let (log, metrics) = log_to(AccessSink::File(folder.path().join("access.log")));
        let mut writer = log.writer();
        assert_eq!(log.finish(LONG), 0, "does not wait for the writer");
        writer.record(&record("x"));
        drop(writer);
        assert_eq!(lost(&metrics), 1);
    }

    #[test]
    fn a_rotated_file_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let (log, _) = log_to(AccessSink::File(path.clone()));
        let mut writer = log.writer();
        writer.record(&record("before"));
        writer.flush();
        while fs::metadata(&path).unwrap().len() == 0 {
            thread::yield_now();
        }
        fs::rename(&path, &old).unwrap();
        log.reopen();
        // Without a line: a rotation may want to compress the old file.
        while !path.exists() {
            thread::yield_now();
        }
        writer.record(&record("after"));
        drop(writer);
        assert_eq!(log.finish(LONG), 0);
        assert_eq!(ids(File::open(&old).unwrap()), ["before"]);
        assert_eq!(ids(File::open(&path).unwrap()), ["after"]);
    }

    #[test]
    fn buffers_come_back_to_their_worker() {
        let (log, _) = log_to(AccessSink::File("/dev/null".into()));
        let mut writer = log.writer();
        let mut buffers = HashSet::new();
        for _ in 0..100 {
            writer.record(&record("x"));
            let handover = writer.handover.as_mut().unwrap();
            buffers.insert(handover.text.as_ptr());
            assert!(handover.hand_over());
            if !buffers.contains(&handover.text.as_ptr()) {
                handover.text = handover.spares.recv().unwrap();
            }
        }
        assert_eq!(buffers.len(), 1);
    }

    #[test]
    fn a_long_line_does_not_keep_its_memory() {
        let (log, _) = log_to(AccessSink::File("/dev/null".into()));
        let mut writer = log.writer();
        writer.record(&record(&"x".repeat(1 << 20)));
        assert_eq!(log.finish(LONG), 0);
        let handover = writer.handover.as_mut().unwrap();
        assert!(handover.text.capacity() <= 2 * BUFFER_BYTES);
        assert!(handover.spares.try_iter().all(|spare| spare.capacity() <= 2 * BUFFER_BYTES));
    }
}
