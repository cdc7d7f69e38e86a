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
const COMPLAIN_EVERY: Duration = Duration::from_mins(1);

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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read, pipe},
        os::fd::OwnedFd,
    };

    use super::*;

    fn settled(written: u64, lost: u64) -> Settled {
        Settled { written, lost }
    }

    /// A sink over a pipe that broke in the middle of the second of three lines.
    fn torn_in_the_second_line() -> (Sink, Vec<u8>) {
        let lines = [b"a\n".to_vec(), vec![b'b'; 400_000], b"\nc\n".to_vec()].concat();
        let (mut reader, writer) = pipe().unwrap();
        let mut sink = Sink::new(File::from(OwnedFd::from(writer)), None);
        let reading = thread::spawn(move || {
            let mut read = vec![0; 100_000];
            reader.read_exact(&mut read).unwrap();
        });
        assert_eq!(sink.write(&lines), settled(1, 1), "the torn line is neither yet");
        reading.join().unwrap();
        assert_eq!(sink.torn_lines(), 1);
        (sink, lines)
    }

    #[test]
    fn a_torn_line_is_finished_before_the_next_one() {
        let (mut sink, lines) = torn_in_the_second_line();
        assert_eq!(sink.write(b"lost\nlost\n"), settled(0, 2), "still broken");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        sink.file = open(&path).unwrap();
        assert_eq!(sink.write(b"d\n"), settled(2, 0));
        assert_eq!(sink.torn_lines(), 0);
        let written = fs::read(&path).unwrap();
        let rest = written.strip_suffix(b"\nd\n").unwrap();
        assert!(!rest.is_empty() && rest.iter().all(|&byte| byte == b'b'));
        assert!(written.len() < lines.len());
    }

    #[test]
    fn a_torn_line_does_not_get_into_the_next_file() {
        let (mut sink, _) = torn_in_the_second_line();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        sink.path = Some(path.clone());
        assert_eq!(sink.reopen(), settled(0, 1));
        assert_eq!(sink.write(b"d\n"), settled(1, 0));
        assert_eq!(fs::read(&path).unwrap(), b"d\n");
    }

    #[test]
    fn a_file_that_can_not_be_reopened_stays_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("logs/access.log"), folder.path().join("old"));
        fs::create_dir(folder.path().join("logs")).unwrap();
        let mut sink = Sink::new(open(&path).unwrap(), Some(path));
        fs::rename(folder.path().join("logs"), &moved).unwrap();
        assert_eq!(sink.reopen(), settled(0, 0));
        assert_eq!(sink.write(b"a\n"), settled(1, 0));
        assert_eq!(fs::read(moved.join("access.log")).unwrap(), b"a\n");
    }
}
