//! Follows files of TLS while they are in use: what changed is loaded anew, or what was in force stays.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    config::Stamps,
    observe::{Metrics, TlsFile},
};

/// How long a change may go unseen.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Loads files anew and puts them in force; says what is in force now, or what is wrong.
type Load = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// Files that are loaded together.
pub(super) struct Follower {
    kind: TlsFile,
    /// What it is for, as a log line calls it.
    what: String,
    stamps: Stamps,
    load: Load,
    /// The last load failed, which was not told yet.
    in_doubt: bool,
}

impl Follower {
    pub(super) fn new(
        kind: TlsFile,
        what: String,
        stamps: Stamps,
        load: impl Fn() -> Result<String, String> + Send + Sync + 'static,
    ) -> Self {
        Follower { kind, what, stamps, load: Arc::new(load), in_doubt: false }
    }

    /// One look; whether files were loaded, and went well.
    ///
    /// Files that go together are rarely written together: what fails at first is looked at once more
    /// before it counts, and is told once for a change.
    async fn look(&mut self) -> Option<bool> {
        let changed = self.stamps.changed();
        if !changed && !self.in_doubt && !self.stamps.is_due() {
            return None;
        }
        let load = self.load.clone();
        // WHY: a slow disk must not be felt by probes and the admin address.
        let loaded = tokio::task::spawn_blocking(move || load()).await;
        match loaded.unwrap_or_else(|_| Err("it can't be read without a panic".to_owned())) {
            Ok(now) => {
                self.in_doubt = false;
                tracing::info!("{} changed: {now}", self.what);
                Some(true)
            }
            Err(_) if changed => {
                self.in_doubt = true;
                None
            }
            Err(_) if !self.in_doubt => {
                self.stamps.try_again();
                None
            }
            Err(error) => {
                self.in_doubt = false;
                self.stamps.try_again();
                tracing::warn!("{} changed and can't be used: {error}; what was in force stays", self.what);
                Some(false)
            }
        }
    }
}

/// Runs for ever; calls `tick` at each look.
pub(super) async fn keep(mut followers: Vec<Follower>, metrics: Arc<Metrics>, tick: impl Fn()) {
    for follower in &followers {
        metrics.tls_file_followed(follower.kind);
    }
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tick();
        for follower in &mut followers {
            if let Some(well) = follower.look().await {
                metrics.tls_file_loaded(follower.kind, well);
            }
        }
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("what", &self.what)
            .field("stamps", &self.stamps)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        sync::{
            Mutex,
            atomic::{AtomicBool, Ordering},
        },
    };

    use super::*;

    /// Loads a number into the returned place.
    fn follower(file: &Path) -> (Follower, Arc<Mutex<u32>>) {
        let number = Arc::new(Mutex::new(0));
        let (target, path) = (number.clone(), file.to_owned());
        let load = move || {
            let text = fs::read_to_string(&path).map_err(|error| error.to_string())?;
            *target.lock().unwrap() = text.parse().map_err(|_| format!("{text} is no number"))?;
            Ok(text)
        };
        let follower = Follower::new(
            TlsFile::Certificate,
            "the number".to_owned(),
            Stamps::of(vec![file.to_owned()]),
            load,
        );
        (follower, number)
    }

    #[tokio::test]
    async fn a_change_is_loaded_at_the_next_look_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        fs::write(&file, "1").unwrap();
        let (mut follower, number) = follower(&file);
        assert_eq!(follower.look().await, None);
        fs::write(&file, "22").unwrap();
        assert_eq!(follower.look().await, Some(true));
        assert_eq!(*number.lock().unwrap(), 22);
        assert_eq!(follower.look().await, None);
    }

    #[tokio::test]
    async fn what_is_bad_at_two_looks_is_told_once_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        fs::write(&file, "1").unwrap();
        let (mut follower, number) = follower(&file);
        fs::write(&file, "one").unwrap();
        assert_eq!(follower.look().await, None, "it may be half written");
        assert_eq!(follower.look().await, Some(false));
        assert_eq!(follower.look().await, None);
        fs::remove_file(&file).unwrap();
        assert_eq!([follower.look().await, follower.look().await], [None, Some(false)]);
        assert_eq!(*number.lock().unwrap(), 0);
    }

    #[tokio::test]
    async fn what_could_not_be_used_is_tried_again_without_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        fs::write(&file, "1").unwrap();
        let (mut follower, number) = follower(&file);
        let (load, valid) = (follower.load.clone(), Arc::new(AtomicBool::new(false)));
        let is_valid = valid.clone();
        follower.load = Arc::new(move || {
            let text = load()?;
            is_valid.load(Ordering::Relaxed).then_some(text).ok_or_else(|| "not valid yet".to_owned())
        });
        fs::write(&file, "22").unwrap();
        assert_eq!([follower.look().await, follower.look().await], [None, Some(false)]);
        for _ in 0..200 {
            assert_eq!(follower.look().await, None, "told once");
        }
        valid.store(true, Ordering::Relaxed);
        while follower.look().await.is_none() {}
        assert_eq!(*number.lock().unwrap(), 22);
    }

    #[tokio::test]
    async fn what_is_completed_by_the_next_look_was_never_bad() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        fs::write(&file, "1").unwrap();
        let (mut follower, number) = follower(&file);
        fs::write(&file, "").unwrap();
        assert_eq!(follower.look().await, None);
        fs::write(&file, "333").unwrap();
        assert_eq!([follower.look().await, follower.look().await], [Some(true), None]);
        assert_eq!(*number.lock().unwrap(), 333);
    }
}
