//! Keeps the firewall's tables: list files that change are loaded anew, bans that end are forgotten.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    config::Stamps,
    firewall::{Firewall, Lists},
    observe::Metrics,
};

/// How long a change may go unseen.
const LOOK: Duration = Duration::from_secs(2);

/// Runs for ever.
pub(super) async fn keep(firewall: Arc<Firewall>, metrics: Arc<Metrics>) {
    let mut watched: Vec<(Stamps, Arc<Lists>)> = firewall.lists().iter().map(watch).collect();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        metrics.bans(firewall.sweep(Instant::now()));
        for (stamps, lists) in &mut watched {
            if !stamps.changed() {
                continue;
            }
            let lists = lists.clone();
            // WHY: reading half a million lines takes long enough to be felt by probes and admin.
            let result = tokio::task::spawn_blocking(move || report(&lists)).await.unwrap_or(false);
            metrics.lists_loaded(result);
        }
        metrics.networks(firewall.lists().iter().map(|lists| lists.len()).sum());
    }
}

fn watch(lists: &Arc<Lists>) -> (Stamps, Arc<Lists>) {
    (Stamps::of(lists.written.files.iter().map(|(path, _)| path.clone()).collect()), lists.clone())
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
