//! Keys of session tickets that several instances share, one a line.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::{
    Stamps,
    diagnostics::{Problem, quote},
    pem::{check_mode, system_text},
    reader::At,
};

/// Shorter ones could be guessed.
const SECRET_BYTES: usize = 32;
/// More are a mistake: each is tried for no ticket but its own, yet all are kept.
const MOST_SECRETS: usize = 16;
const LARGEST_FILE: u64 = 64 * 1024;

/// The file of `ticket_keys`, read and checked.
#[derive(Debug, Clone)]
pub struct TicketFile {
    pub path: PathBuf,
    /// Never empty; the first one seals.
    pub secrets: Vec<TicketSecret>,
    /// From before it was read.
    pub stamps: Stamps,
}

/// What a key is made of; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketSecret(Vec<u8>);

impl TicketSecret {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for TicketSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketSecret([hidden])")
    }
}

impl TicketFile {
    /// Reads a file: hexadecimal secrets of 32 bytes or more, one a line; `#` begins a comment.
    ///
    /// # Errors
    /// What is wrong, in one line that holds nothing of a secret.
    pub fn load(path: &Path) -> Result<Self, String> {
        let stamps = Stamps::of(vec![path.to_owned()]);
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(LARGEST_FILE).read_to_string(&mut text));
        read.map_err(|error| format!("can't be read: {}", system_text(&error)))?;
        let secrets = secrets(&text)?;
        Ok(TicketFile { path: path.to_owned(), secrets, stamps })
    }
}

fn secrets(text: &str) -> Result<Vec<TicketSecret>, String> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let secrets = lines.map(|(number, line)| match hexadecimal(line) {
        None => Err(format!("line {number} is not hexadecimal")),
        Some(bytes) if bytes.len() < SECRET_BYTES => {
            Err(format!("line {number} has {} bytes, expected {SECRET_BYTES} or more", bytes.len()))
        }
        Some(bytes) => Ok(TicketSecret(bytes)),
    });
    let secrets: Vec<TicketSecret> = secrets.collect::<Result<_, _>>()?;
    match secrets.len() {
        0 => Err("holds no key".to_owned()),
        count if count > MOST_SECRETS => {
            Err(format!("holds {count} keys, at most {MOST_SECRETS} are of use"))
        }
        _ => Ok(secrets),
    }
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// Reads the file that is named.
pub(super) fn resolve(written: &At<PathBuf>, base: &Path, problems: &mut Vec<Problem>) -> Option<TicketFile> {
    let path = base.join(&written.value);
    problems.extend(check_mode(&path, &written.span, "the file of ticket keys"));
    let read = TicketFile::load(&path).map_err(|wrong| {
        let message = format!("{} {wrong}", quote(&path.display().to_string()));
        let problem = Problem::error(written.span.clone(), message);
        problem.help("make a key with `openssl rand -hex 48`, and write one a line, the newest first")
    });
    read.map_err(|problem| problems.push(problem)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_32_bytes_or_more_and_there_are_16_at_most() {
        let key = |bytes: usize| "aB".repeat(bytes);
        assert_eq!(secrets(&key(32)).unwrap(), [TicketSecret(vec![0xab; 32])]);
        let two = format!("# the newest\n {} \n\n{}\r\n", key(48), key(33));
        assert_eq!(secrets(&two).unwrap(), [TicketSecret(vec![0xab; 48]), TicketSecret(vec![0xab; 33])]);
        let many = |count: usize| format!("{}\n", key(32)).repeat(count);
        assert_eq!(secrets(&many(16)).unwrap().len(), 16);
        for (text, wrong) in [
            (key(31), "line 1 has 31 bytes, expected 32 or more"),
            (many(17), "holds 17 keys, at most 16 are of use"),
            (String::new(), "holds no key"),
            (format!("#\n{}g", key(32)), "line 2 is not hexadecimal"),
            (format!("{}\u{e4}", key(31)), "line 1 is not hexadecimal"),
            (format!("+{}", &key(32)[1..]), "line 1 is not hexadecimal"),
        ] {
            assert_eq!(secrets(&text).unwrap_err(), wrong);
        }
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert!(!format!("{:?}", TicketSecret(vec![171, 205])).contains("171"));
    }
}
