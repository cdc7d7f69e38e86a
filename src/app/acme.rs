//! Which listeners show which certificates that are asked for, and who looks after them.

use std::sync::Arc;

use super::{StartError, certificates::Stores};
use crate::{
    acme::{Job, Outlet, Surroundings},
    config::{Acme, Config, Listener},
    downstream::tls::CertificateStore,
    observe::Metrics,
    proxy::challenges::HttpChallenges,
};

/// Everything that was opened before the process gave up what serving does not need.
#[derive(Debug)]
pub(super) struct Orders {
    jobs: Vec<Job>,
    surroundings: Surroundings,
}

impl Orders {
    /// Opens the storages and shows what is in them; listeners that ask for the same certificate share it.
    pub(super) fn open(
        config: &Config,
        stores: &Stores,
        challenges: &Arc<HttpChallenges>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let mut wanted: Vec<(&Acme, Vec<Outlet>)> = Vec::new();
        for (index, listener) in config.listeners.iter().enumerate() {
            let Some(acme) = listener.tls.as_ref().and_then(|tls| tls.acme.as_ref()) else { continue };
            let Some(outlet) = outlet(index, listener, acme, stores) else { continue };
            match wanted.iter_mut().find(|(same, _)| same.is_same(acme)) {
                Some((_, outlets)) => outlets.push(outlet),
                None => wanted.push((acme, vec![outlet])),
            }
        }
        let open = |(acme, outlets): (&Acme, Vec<Outlet>)| {
            let failed = |error: crate::acme::OpenError| StartError::Acme {
                name: acme.name().to_owned(),
                error: error.to_string(),
            };
            Job::open(acme.clone(), outlets).map_err(failed)
        };
        let jobs = wanted.into_iter().map(open).collect::<Result<_, _>>()?;
        let tls: Vec<Arc<CertificateStore>> =
            (0..config.listeners.len()).filter_map(|index| stores.of(index)).cloned().collect();
        let (http, metrics) = (challenges.clone(), metrics.clone());
        Ok(Orders { jobs, surroundings: Surroundings { tls, http, metrics, registering: Arc::default() } })
    }

    /// What runs beside the workers, one for each certificate.
    pub(super) fn tasks(self) -> impl Iterator<Item = impl Future<Output = ()> + Send + 'static> {
        let surroundings = self.surroundings;
        self.jobs.into_iter().map(move |job| job.run(surroundings.clone()))
    }
}

/// Gives the certificate a place behind those that the listener has files for.
fn outlet(index: usize, listener: &Listener, acme: &Acme, stores: &Stores) -> Option<Outlet> {
    let slot = stores.of(index)?.add_slot();
    let own =
        listener.tls.iter().flat_map(|tls| &tls.certificates).flat_map(|certificate| &certificate.names);
    let is_covered = |domain: &&String| own.clone().any(|name| is_for(name, domain));
    let covered = acme.domains.iter().filter(is_covered).cloned().collect();
    let stores = stores.clone();
    let show = Box::new(move |certificate: &_| stores.replace(index, slot, certificate));
    Some(Outlet { listener: listener.name.clone(), covered, show })
}

/// Whether a certificate with this name, perhaps a wildcard, is for the domain.
fn is_for(name: &str, domain: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(suffix) => domain.split_once('.').is_some_and(|(_, rest)| rest == suffix),
        None => name == domain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_for_one_label() {
        for (name, domain, expected) in [
            ("a.example", "a.example", true),
            ("a.example", "b.example", false),
            ("*.example", "a.example", true),
            ("*.example", "b.a.example", false),
            ("*.example", "example", false),
        ] {
            assert_eq!(is_for(name, domain), expected, "{name} {domain}");
        }
    }
}
