//! Keeps the firewall's tables: list files that change are loaded anew, bans that end are forgotten.
//!
//! Files are looked at every few seconds instead of being watched: that works for mounted volumes
//! and for files that are replaced through symbolic links, and costs one `stat` a file.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    firewall::{Firewall, Lists},
    observe::Metrics,
};

/// How long a change may go unseen.
const LOOK: Duration = Duration::from_secs(2);

/// What tells one state of a file from the next: device, inode, size, time of change.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

struct Watched {
    lists: Arc<Lists>,
    stamps: Vec<Stamp>,
}

/// Runs for ever.
pub(super) async fn keep(firewall: Arc<Firewall>, metrics: Arc<Metrics>) {
    let mut watched: Vec<Watched> = firewall.lists().iter().cloned().map(Watched::new).collect();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        metrics.bans(firewall.sweep(Instant::now()));
        for each in watched.iter_mut().filter_map(Watched::changed) {
            // WHY: reading half a million lines takes long enough to be felt by probes and admin.
            let result = tokio::task::spawn_blocking(move || report(&each)).await.unwrap_or(false);
            metrics.lists_loaded(result);
        }
        metrics.networks(firewall.lists().iter().map(|lists| lists.len()).sum());
    }
}

impl Watched {
    fn new(lists: Arc<Lists>) -> Self {
        let mut watched = Watched { lists, stamps: Vec::new() };
        watched.stamps = watched.look();
        watched
    }

    fn look(&self) -> Vec<Stamp> {
        self.lists.written.files.iter().map(|(path, _)| stamp(path)).collect()
    }

    /// The lists, if a file of theirs has changed since the last look.
    fn changed(&mut self) -> Option<Arc<Lists>> {
        let stamps = self.look();
        if stamps == self.stamps {
            return None;
        }
        self.stamps = stamps;
        Some(self.lists.clone())
    }
}

fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

/// Loads lists anew and says so; whether it went well.
fn report(lists: &Lists) -> bool {
    match lists.reload() {
        Ok(()) => {
            tracing::info!("firewall lists changed: {} networks in force", lists.len());
            true
        }
        Err((path, error)) => {
            tracing::error!(
                "the firewall list {} changed and can't be used: {error}; what was in force stays",
                path.display()
            );
            false
        }
    }
}
