//! Which files have changed since the last look?
//!
//! Files are looked at every few seconds instead of being watched: that works for mounted volumes
//! and for files that are replaced through symbolic links, and costs one `stat` a file.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a change may go unseen.
pub(super) const LOOK: Duration = Duration::from_secs(2);

/// What tells one state of a file from the next: device, inode, size, time of change.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// Files that something is made of.
#[derive(Debug)]
pub(super) struct Files(Vec<Watched>);

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    stamp: Stamp,
    /// Not yet taken over.
    changed: bool,
}

impl Files {
    /// Takes what is there now for what is known.
    pub(super) fn new<'p>(paths: impl IntoIterator<Item = &'p Path>) -> Self {
        let watched = |path: &Path| Watched { path: path.to_owned(), stamp: stamp(path), changed: false };
        Files(paths.into_iter().map(watched).collect())
    }

    /// Whether there is something that the last look has not seen.
    pub(super) fn look(&mut self) -> bool {
        let mut is_new = false;
        for file in &mut self.0 {
            let now = stamp(&file.path);
            if now != file.stamp {
                (file.stamp, file.changed, is_new) = (now, true, true);
            }
        }
        is_new
    }

    /// Those that have changed since the last `taken_over`.
    pub(super) fn changed(&self) -> Vec<PathBuf> {
        self.0.iter().filter(|file| file.changed).map(|file| file.path.clone()).collect()
    }

    /// What has been seen is in force.
    pub(super) fn taken_over(&mut self) {
        self.0.iter_mut().for_each(|file| file.changed = false);
    }
}

fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_once_and_kept_until_it_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        fs::write(&one, "1").unwrap();
        let mut files = Files::new([one.as_path(), &other]);
        assert!(!files.look() && files.changed().is_empty());
        fs::write(&one, "12").unwrap();
        assert!(files.look() && !files.look());
        assert_eq!(files.changed(), std::slice::from_ref(&one));
        fs::write(&other, "1").unwrap();
        assert!(files.look());
        assert_eq!(files.changed(), [one.clone(), other]);
        files.taken_over();
        assert!(!files.look() && files.changed().is_empty());
        fs::remove_file(&one).unwrap();
        assert!(files.look());
    }
}
