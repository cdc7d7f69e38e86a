//! How are lines written to a file or a pipe that may be full, broken or slow?

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::observe::Throttle;

/// Between two tries on a descriptor that somebody else has made non-blocking.
const RETRY_AFTER: Duration = Duration::from_millis(10);
/// Between two complaints about a sink that fails.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Where the lines go.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    /// `None`: a standard stream.
    path: Option<PathBuf>,
    /// The rest of a line whose beginning is written: it goes first, so that no half line is ever
    /// followed by another one.
    torn: Vec<u8>,
    complaints: Throttle,
}

/// What has become of lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) written: u64,
    pub(super) lost: u64,
}

/// Opens a log file as it is opened at the start and after a rotation.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

impl Sink {
    pub(super) fn new(file: File, path: Option<PathBuf>) -> Sink {
        Sink { file, path, torn: Vec::new(), complaints: Throttle::new(COMPLAIN_EVERY) }
    }

    /// Writes whole lines; waits for as long as the sink takes.
    ///
    /// After an error the lines that are not written are lost, except for one of which a part is
    /// written: it is settled by a later call.
    pub(super) fn write(&mut self, lines: &[u8]) -> Settled {
        let mut settled = self.mend();
        if !self.torn.is_empty() {
            settled.lost += count(lines);
            return settled;
        }
        let (done, rest) = lines.split_at(self.put(lines));
        settled.written += count(done);
        let whole_from = match done.last() {
            None | Some(b'\n') => 0,
            Some(_) => memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1),
        };
        self.torn.extend_from_slice(&rest[..whole_from]);
        settled.lost += count(&rest[whole_from..]);
        settled
    }

    /// Opens the file again; where that fails the old one stays.
    pub(super) fn reopen(&mut self) -> Settled {
        let Some(path) = &self.path else {
            return Settled::default();
        };
        match open(path) {
            Ok(file) => {
                let mut settled = self.mend();
                settled.lost += self.torn_lines();
                self.torn.clear();
                self.file = file;
                settled
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "access log is not reopened");
                Settled::default()
            }
        }
    }

    /// Lines that are written in part: 0 or 1.
    pub(super) fn torn_lines(&self) -> u64 {
        u64::from(!self.torn.is_empty())
    }

    /// Writes the rest of a torn line.
    fn mend(&mut self) -> Settled {
        let torn = std::mem::take(&mut self.torn);
        let done = self.put(&torn);
        let written = u64::from(!torn.is_empty() && done == torn.len());
        self.torn = torn[done..].to_vec();
        Settled { written, lost: 0 }
    }

    /// Writes until all is written or an error occurs, and returns how many bytes are.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.write(&bytes[done..]) {
                Ok(0) => {
                    self.complain(&ErrorKind::WriteZero.into());
                    break;
                }
                Ok(more) => done += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_AFTER),
                Err(error) => {
                    self.complain(&error);
                    break;
                }
            }
        }
        done
    }

    fn complain(&mut self, error: &io::Error) {
        if let Some(suppressed) = self.complaints.admit(Instant::now()) {
            tracing::warn!(%error, suppressed, "access log lines are lost: the sink can't be written");
        }
    }
}

fn count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}
