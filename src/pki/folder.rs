//! The folder of the private CA: where what lies, and files that are there whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{PkiError, SubjectName};
use crate::config::private_ca;

/// Everybody may know it.
pub(super) const PUBLIC: u32 = 0o644;
/// For its owner alone.
pub(super) const SECRET: u32 = 0o600;
/// For its owner and a group.
pub(super) const SHARED: u32 = 0o640;

#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
}

/// Held while the folder changes; nobody else can then.
#[derive(Debug)]
pub(super) struct Lock {
    _folder: File,
}

impl Folder {
    pub(super) fn new(root: &Path) -> Self {
        Folder { root: root.to_owned() }
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.root.join("ca.crt")
    }

    pub(super) fn ca_key(&self) -> PathBuf {
        self.root.join("ca.key")
    }

    /// A file of the running balancer's part.
    pub(super) fn balancer(&self, name: &str) -> PathBuf {
        self.root.join(private_ca::FOLDER).join(name)
    }

    /// What is to be copied to the web server of this name.
    pub(super) fn issued(&self, name: &SubjectName) -> PathBuf {
        self.root.join("issued").join(name.file_name())
    }

    pub(super) fn archive(&self) -> PathBuf {
        self.root.join("archive")
    }

    /// Makes the folder and those in it.
    pub(super) fn make(&self) -> Result<(), PkiError> {
        make_folder(&self.root, 0o755)?;
        let parts = [private_ca::FOLDER, "issued", "archive"].map(|part| self.root.join(part));
        parts.iter().try_for_each(|part| make_folder(part, 0o755))
    }

    /// Waits for others that change the folder.
    pub(super) fn lock(&self) -> Result<Lock, PkiError> {
        let failed = |error| failure("locking", &self.root, error);
        let folder = File::open(&self.root).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PkiError::NoCa(self.root.clone()),
            _ => failed(error),
        })?;
        folder.lock().map_err(failed)?;
        Ok(Lock { _folder: folder })
    }
}

/// A new folder has this mode whatever the umask; one that is there stays as it is.
pub(super) fn make_folder(path: &Path, mode: u32) -> Result<(), PkiError> {
    let is_new = !path.exists();
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    let made = made
        .and_then(|()| if is_new { fs::set_permissions(path, Permissions::from_mode(mode)) } else { Ok(()) });
    made.map_err(|error| failure("making", path, error))
}

/// Writes a file beside its place and puts it there when it is whole. Mode and group are those of
/// the file that it replaces, if it does; else `mode`, and `group` if there is one.
pub(super) fn write(path: &Path, text: &str, mode: u32, group: Option<u32>) -> Result<(), PkiError> {
    write_whole(path, text, mode, group).map_err(|error| failure("writing", path, error))
}

fn write_whole(path: &Path, text: &str, mode: u32, group: Option<u32>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.new"));
    // What a crash has left behind.
    let _ = fs::remove_file(&temporary);
    let replaced = fs::metadata(path).ok();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(SECRET).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    let owner = replaced.as_ref().map(|old| (old.uid(), old.gid()));
    if let Some((user, group)) = owner {
        // WHY: only root can give a file away; everybody else keeps what is theirs.
        let _ = fchown(&file, Some(user), Some(group));
    } else if group.is_some() {
        fchown(&file, None, group)?;
    }
    let mode = replaced.map_or(mode, |old| old.permissions().mode() & 0o777);
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

pub(super) fn certificate(path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(read(path)?.as_bytes())
        .map_err(|error| PkiError::Broken { path: path.to_owned(), detail: error.to_string() })
}

pub(super) fn key(path: &Path) -> Result<KeyPair, PkiError> {
    KeyPair::from_pem(&read(path)?)
        .map_err(|error| PkiError::Broken { path: path.to_owned(), detail: error.to_string() })
}

pub(super) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|error| failure("reading", path, error))
}

pub(super) fn failure(what: &'static str, path: &Path, error: io::Error) -> PkiError {
    PkiError::Io { what, path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_has_its_mode_and_keeps_the_one_it_was_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write(&path, "one", SECRET, None).unwrap();
        assert_eq!((mode(&path), read(&path).unwrap().as_str()), (0o600, "one"));
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        write(&path, "two", SECRET, None).unwrap();
        assert_eq!((mode(&path), read(&path).unwrap().as_str()), (0o640, "two"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_a_crash_left_behind_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".key.new"), "half").unwrap();
        write(&folder.path().join("key"), "whole", SECRET, None).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
