//! Which files have changed since the last look?
//!
//! Files are looked at every few seconds instead of being watched: that works for mounted volumes
//! and for files that are replaced through symbolic links, and costs one `stat` a file.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// What tells one state of a file from the next: device, inode, size, time of change.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// Files that belong together, and what they were when they were looked at last.
///
/// Taken before the files are read, so that a change in between is seen as one.
#[derive(Debug, Clone, Default)]
pub struct Stamps {
    files: Vec<PathBuf>,
    stamps: Vec<Stamp>,
}

impl Stamps {
    /// What the files are now counts as known.
    pub fn of(files: Vec<PathBuf>) -> Self {
        let stamps = files.iter().map(|file| stamp(file)).collect();
        Stamps { files, stamps }
    }

    /// Whether one of them has changed since the last look.
    pub fn changed(&mut self) -> bool {
        let stamps: Vec<Stamp> = self.files.iter().map(|file| stamp(file)).collect();
        let changed = stamps != self.stamps;
        self.stamps = stamps;
        changed
    }
}

fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

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
