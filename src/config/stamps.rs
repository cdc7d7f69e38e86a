//! Which files have changed since the last look?
//!
//! Files are looked at every few seconds instead of being watched: that works for mounted volumes
//! and for files that are replaced through symbolic links, and costs one `stat` a file.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// What tells one state of a file from the next: device, inode, size, and when anything of it changed, the permission to
/// read it included.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// Files that belong together, and what they were when they were looked at last.
///
/// Taken before the files are read, so that a change in between is seen as one.
#[derive(Debug, Clone, Default)]
pub struct Stamps {
    files: Vec<Stamped>,
    /// Looks until files that could not be used are tried again.
    retry: Option<u32>,
}

/// Looks between two tries: what can't be used may become so without a change, such as a certificate that is not valid
/// yet, or files that could not be opened for want of descriptors.
const RETRY: u32 = 60;

#[derive(Debug, Clone)]
struct Stamped {
    path: PathBuf,
    stamp: Stamp,
    /// Changed, and not yet taken over.
    pending: bool,
}

impl Stamps {
    /// What the files are now counts as known.
    pub fn of(files: Vec<PathBuf>) -> Self {
        let stamped = |path: PathBuf| Stamped { stamp: stamp(&path), path, pending: false };
        Stamps { files: files.into_iter().map(stamped).collect(), retry: None }
    }

    /// Whether one of them has changed since the last look.
    pub fn changed(&mut self) -> bool {
        let mut changed = false;
        for file in &mut self.files {
            let now = stamp(&file.path);
            if now != file.stamp {
                (file.stamp, file.pending, changed) = (now, true, true);
            }
        }
        if changed {
            self.retry = None;
        }
        changed
    }

    /// What is there can't be used: it is due again after a while, changed or not.
    pub fn try_again(&mut self) {
        self.retry = Some(RETRY);
    }

    /// Whether it is time to try again; to be asked at each look.
    pub fn is_due(&mut self) -> bool {
        self.retry = self.retry.map(|looks| looks - 1);
        self.retry.take_if(|looks| *looks == 0).is_some()
    }

    /// Those that have changed since the last `taken_over`.
    pub fn pending(&self) -> Vec<PathBuf> {
        self.files.iter().filter(|file| file.pending).map(|file| file.path.clone()).collect()
    }

    /// What has been seen is in force.
    pub fn taken_over(&mut self) {
        self.files.iter_mut().for_each(|file| file.pending = false);
    }
}

fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn sees_each_change_once() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| folder.path().join(name));
        fs::write(&files[0], "1").unwrap();
        let mut stamps = Stamps::of(files.to_vec());
        assert!(!stamps.changed());
        fs::write(&files[1], "new").unwrap();
        assert!(stamps.changed() && !stamps.changed());
        fs::write(&files[0], "longer").unwrap();
        assert!(stamps.changed() && !stamps.changed());
        fs::remove_file(&files[0]).unwrap();
        assert!(stamps.changed() && !stamps.changed());
    }

    #[test]
    fn sees_that_a_file_may_be_read_now() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        fs::write(&file, "1").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
        let mut stamps = Stamps::of(vec![file.clone()]);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(stamps.changed() && !stamps.changed());
    }

    #[test]
    fn what_could_not_be_used_is_due_once_more_unless_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let mut stamps = Stamps::of(vec![file.clone()]);
        assert!((0..2 * RETRY).all(|_| !stamps.is_due()));
        stamps.try_again();
        let due: Vec<u32> = (1..3 * RETRY).filter(|_| stamps.is_due()).collect();
        assert_eq!(due, [RETRY]);
        stamps.try_again();
        fs::write(&file, "new").unwrap();
        assert!(stamps.changed());
        assert!((0..2 * RETRY).all(|_| !stamps.is_due()));
    }

    #[test]
    fn a_change_is_pending_until_it_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        fs::write(&one, "1").unwrap();
        let mut stamps = Stamps::of(vec![one.clone(), other.clone()]);
        assert!(!stamps.changed() && stamps.pending().is_empty());
        fs::write(&one, "12").unwrap();
        assert!(stamps.changed() && !stamps.changed());
        assert_eq!(stamps.pending(), std::slice::from_ref(&one));
        fs::write(&other, "1").unwrap();
        assert!(stamps.changed());
        assert_eq!(stamps.pending(), [one, other]);
        stamps.taken_over();
        assert!(!stamps.changed() && stamps.pending().is_empty());
    }

    #[test]
    fn sees_a_folder_exchanged_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("file"), "same").unwrap();
        }
        // As Kubernetes does it: the file is a link into a link, which is exchanged.
        symlink("one", folder.path().join("data")).unwrap();
        symlink("data/file", folder.path().join("file")).unwrap();
        let mut stamps = Stamps::of(vec![folder.path().join("file")]);
        symlink("two", folder.path().join("next")).unwrap();
        fs::rename(folder.path().join("next"), folder.path().join("data")).unwrap();
        assert!(stamps.changed() && !stamps.changed());
    }
}
