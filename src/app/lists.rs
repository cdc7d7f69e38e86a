//! Keeps the firewall's tables: list files that change are loaded anew, bans that end are forgotten.

use std::{sync::Arc, time::Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::follow::LOOK;
use crate::{
    config::Stamps,
    firewall::{Firewall, Lists},
    observe::Metrics,
};

struct Watched {
    lists: Arc<Lists>,
    files: Stamps,
}

/// Runs for ever.
pub(super) async fn keep(firewall: Arc<Firewall>, metrics: Arc<Metrics>) {
    let mut watched: Vec<Watched> = firewall.lists().iter().cloned().map(Watched::new).collect();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        metrics.bans(firewall.sweep(Instant::now()));
        for each in &mut watched {
            if !each.files.changed() && !each.files.is_due() {
                continue;
            }
            let lists = each.lists.clone();
            // WHY: reading half a million lines takes long enough to be felt by probes and admin.
            let well = tokio::task::spawn_blocking(move || report(&lists)).await.unwrap_or(false);
            metrics.lists_loaded(well);
            if !well {
                each.files.try_again();
            }
        }
        metrics.networks(firewall.lists().iter().map(|lists| lists.len()).sum());
    }
}

impl Watched {
    fn new(lists: Arc<Lists>) -> Self {
        let files = Stamps::of(lists.written.files.iter().map(|(path, _)| path.clone()).collect());
        Watched { lists, files }
    }
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
