//! Where account keys, certificates and what must survive a restart are kept.
//!
//! ```text
//! STORAGE/                                   0700
//!   acme-v02.api.letsencrypt.org-directory/  0700, one for each directory
//!     account.json                           0600, the account's key
//!     example.com.pem                        0600, the key and the chain of one certificate
//!     example.com.json                       0600, failures and the next try
//!     example.com.lock
//! ```
//!
//! A file is written beside its place, synced and renamed, so what is read is whole: the old one or the new one. Key and
//! chain are one file, so they always belong together.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// Larger files are none of ours.
const LARGEST_FILE: u64 = 1 << 20;

/// The files of one certificate and of the account that it is ordered with.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    /// That of the directory.
    folder: PathBuf,
    /// The certificate's first name.
    name: String,
}

/// Nobody else orders this certificate as long as it lives.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "dropping it unlocks")] File);

/// What could not be done with which file.
#[derive(Debug)]
pub struct StorageError {
    pub path: PathBuf,
    pub error: io::Error,
}

impl std::fmt::Display for StorageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.error)
    }
}

impl std::error::Error for StorageError {}

type Stored<T> = Result<T, StorageError>;

impl Storage {
    /// Makes the folders where they are missing.
    pub(super) fn open(root: &Path, directory: &str, name: &str) -> Stored<Self> {
        let folder = folder(root, directory);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|error| StorageError { path: folder.clone(), error })?;
        let storage = Storage { folder, name: name.to_owned() };
        storage.probe()?;
        Ok(storage)
    }

    /// A folder that can't be written to would show only when the certificate has come.
    fn probe(&self) -> Stored<()> {
        let path = self.file("lock");
        open_lock(&path).map(drop).map_err(|error| StorageError { path, error })
    }

    /// `None`: somebody else has it, such as the process that this one takes over from.
    pub(super) fn lock(&self) -> Stored<Option<Lock>> {
        let path = self.file("lock");
        let failed = |error| StorageError { path: path.clone(), error };
        let file = open_lock(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The key and the chain as PEM; `None` if there are none yet.
    pub(super) fn certificate(&self) -> Stored<Option<Vec<u8>>> {
        read(&self.file("pem"))
    }

    pub(super) fn keep_certificate(&self, pem: &str) -> Stored<()> {
        write(&self.file("pem"), pem.as_bytes())
    }

    /// A file that is damaged reads as none: what it remembers is a courtesy.
    pub(super) fn memory<T: DeserializeOwned + Default>(&self) -> T {
        let read = read(&self.file("json")).ok().flatten();
        read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    pub(super) fn keep_memory(&self, memory: &impl Serialize) -> Stored<()> {
        write_json(&self.file("json"), memory)
    }

    /// The account; one that is damaged is an error, since to replace it would lose its key.
    pub(super) fn account<T: DeserializeOwned>(&self) -> Stored<Option<T>> {
        let path = self.account_file();
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let account = serde_json::from_slice(&bytes);
        account.map(Some).map_err(|error| StorageError { path, error: error.into() })
    }

    pub(super) fn keep_account(&self, account: &impl Serialize) -> Stored<()> {
        write_json(&self.account_file(), account)
    }

    pub(super) fn account_file(&self) -> PathBuf {
        self.folder.join("account.json")
    }

    pub(super) fn file(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.name))
    }
}

/// The folder of a directory: its URL without the scheme, what is special in file names as `-`.
fn folder(root: &Path, directory: &str) -> PathBuf {
    let bare = directory.split_once("://").map_or(directory, |(_, rest)| rest);
    let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '-' };
    let dotted = |character: char| if character == '.' { '.' } else { plain(character) };
    root.join(bare.chars().map(dotted).collect::<String>().trim_matches(['.', '-']))
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn read(path: &Path) -> Stored<Option<Vec<u8>>> {
    let failed = |error| StorageError { path: path.to_owned(), error };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    let length = file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if length as u64 > LARGEST_FILE {
        return Err(failed(io::Error::other("larger than 1 MiB")));
    }
    Ok(Some(bytes))
}

fn write_json(path: &Path, value: &impl Serialize) -> Stored<()> {
    let bytes = serde_json::to_vec_pretty(value);
    let bytes = bytes.map_err(|error| StorageError { path: path.to_owned(), error: error.into() })?;
    write(path, &bytes)
}

/// Replaces a file whole, readable by its owner alone.
fn write(path: &Path, bytes: &[u8]) -> Stored<()> {
    let failed = |error| StorageError { path: path.to_owned(), error };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // One that is left over from a crash may have another mode.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        // Whatever the process' umask took away.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        // The name has to survive a crash too.
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    written().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acme::schedule::Memory;

    const DIRECTORY: &str = "https://acme.example/directory";

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn opened() -> (tempfile::TempDir, Storage) {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(&folder.path().join("acme"), DIRECTORY, "a.example").unwrap();
        (folder, storage)
    }

    #[test]
    fn each_directory_has_a_folder_of_its_own_that_nobody_else_enters() {
        let (folder, storage) = opened();
        let expected = folder.path().join("acme/acme.example-directory");
        assert_eq!(storage.folder, expected);
        assert_eq!([mode(&expected), mode(expected.parent().unwrap())], [0o700; 2]);
        for (url, name) in [
            ("https://localhost:14000/dir", "localhost-14000-dir"),
            ("https://a.example/../../etc/", "a.example-..-..-etc"),
            ("https://../..", ""),
        ] {
            assert_eq!(super::folder(Path::new("root"), url), Path::new("root").join(name));
        }
    }

    #[test]
    fn files_are_read_as_they_were_written_and_by_their_owner_alone() {
        let (_folder, storage) = opened();
        assert_eq!(storage.certificate().unwrap(), None);
        assert_eq!(storage.account::<String>().unwrap(), None);
        assert_eq!(storage.memory::<Memory>(), Memory::default());
        let memory = Memory { failures: 3, suggested: Some(5), ..Memory::default() };
        storage.keep_certificate("first").unwrap();
        storage.keep_certificate("second").unwrap();
        storage.keep_account(&"key").unwrap();
        storage.keep_memory(&memory).unwrap();
        assert_eq!(storage.certificate().unwrap().unwrap(), b"second");
        assert_eq!(storage.account::<String>().unwrap().unwrap(), "key");
        assert_eq!(storage.memory::<Memory>(), memory);
        for entry in fs::read_dir(&storage.folder).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            assert!(path.extension().unwrap() != "new");
        }
    }

    #[test]
    fn what_a_crash_left_over_is_replaced_with_its_mode() {
        let (_folder, storage) = opened();
        let left = storage.file("pem.new");
        fs::write(&left, "half").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
        storage.keep_certificate("whole").unwrap();
        assert_eq!(storage.certificate().unwrap().unwrap(), b"whole");
        assert_eq!(mode(&storage.file("pem")), 0o600);
    }

    #[test]
    fn a_damaged_account_is_an_error_and_a_damaged_memory_is_none() {
        let (_folder, storage) = opened();
        fs::write(storage.account_file(), "{").unwrap();
        fs::write(storage.file("json"), "{").unwrap();
        let error = storage.account::<String>().unwrap_err();
        assert!(error.to_string().contains("account.json"), "{error}");
        assert_eq!(storage.memory::<Memory>(), Memory::default());
    }

    #[test]
    fn a_file_just_over_the_limit_is_refused() {
        let (_folder, storage) = opened();
        let limit = usize::try_from(LARGEST_FILE).unwrap();
        fs::write(storage.file("pem"), vec![b'x'; limit]).unwrap();
        assert_eq!(storage.certificate().unwrap().unwrap().len(), limit);
        fs::write(storage.file("pem"), vec![b'x'; limit + 1]).unwrap();
        assert!(storage.certificate().is_err());
    }

    #[test]
    fn one_holds_the_lock_at_a_time() {
        let (_folder, storage) = opened();
        let lock = storage.lock().unwrap();
        assert!(lock.is_some());
        assert!(storage.lock().unwrap().is_none());
        drop(lock);
        assert!(storage.lock().unwrap().is_some());
    }

    #[test]
    fn a_folder_that_can_not_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Storage::open(&file, DIRECTORY, "a.example").unwrap_err();
        assert!(error.to_string().contains("acme.example-directory"), "{error}");
    }
}
