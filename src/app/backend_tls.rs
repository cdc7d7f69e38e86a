//! Keeps TLS towards the backends fresh: files that change are read anew, certificates of the private
//! CA are replaced before they end, and no session is resumed for ever.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::follow::LOOK;
use crate::{
    config::{ClusterTls, Stamps},
    upstream::cluster::{Cluster, Outdate},
};

/// A resumed session is at most so much older than the look at the backend's certificate: one that
/// has ended in the meantime must not be good for as long as connections go on.
const VERIFY_EVERY: Duration = Duration::from_hours(1);

/// The settings of one cluster.
struct Kept {
    cluster: Arc<Cluster>,
    /// In force.
    tls: ClusterTls,
    files: Stamps,
    verified: Instant,
}

/// Runs for ever.
pub(super) async fn keep(clusters: Vec<Arc<Cluster>>) {
    let mut kept: Vec<Kept> = clusters.iter().filter_map(Kept::new).collect();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for each in &mut kept {
            each.follow().await;
        }
    }
}

impl Kept {
    fn new(cluster: &Arc<Cluster>) -> Option<Self> {
        let tls = cluster.config.tls.clone()?;
        let files = Stamps::of(tls.files().into_iter().map(Path::to_owned).collect());
        Some(Kept { cluster: cluster.clone(), tls, files, verified: Instant::now() })
    }

    async fn follow(&mut self) {
        if self.files.changed() || self.files.is_due() {
            self.read_anew().await;
        } else if self.cluster.wants_identity(SystemTime::now()) {
            self.renew();
            tracing::debug!("cluster {}: a new certificate of the private CA is in use", self.cluster.name());
        } else if self.tls.verify && self.verified.elapsed() >= VERIFY_EVERY {
            self.renew();
        }
    }

    /// Takes over what changed; what can't be used leaves everything as it was.
    async fn read_anew(&mut self) {
        let (tls, changed) = (self.tls.clone(), self.files.pending());
        let names = listed(&changed);
        // WHY: a slow disk must not hold up probes and admin.
        let read = tokio::task::spawn_blocking(move || {
            tls.reread(|path: &Path| changed.iter().any(|changed| changed == path))
        });
        let read = read.await.unwrap_or_else(|error| Err(error.to_string()));
        let in_force = read.and_then(|fresh| {
            let replaced = self.cluster.replace_tls(&fresh, Outdate::Connections);
            replaced.map(|()| fresh).map_err(|error| error.to_string())
        });
        let name = self.cluster.name();
        match in_force {
            Ok(fresh) => {
                tracing::info!("cluster {name}: {names} changed and is in force");
                (self.tls, self.verified) = (fresh, Instant::now());
                self.files.taken_over();
            }
            Err(error) => {
                tracing::error!(
                    "cluster {name}: {names} changed and can't be used: {error}; what was in force stays"
                );
                self.files.try_again();
            }
        }
    }

    /// Has new connections agree anew by the settings in force, on what there is to agree on by now.
    fn renew(&mut self) {
        self.verified = Instant::now();
        if let Err(error) = self.cluster.replace_tls(&self.tls, Outdate::Nothing) {
            tracing::error!(
                "cluster {}: TLS can't be set up anew: {error}; what was in force stays",
                self.cluster.name()
            );
        }
    }
}

fn listed(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}
