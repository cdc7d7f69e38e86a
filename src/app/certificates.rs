//! The certificates of all listeners while the process serves: new ones are shown, and their end is
//! in the metrics.

use std::{path::PathBuf, sync::Arc, time::Instant};

use super::follow::Follower;
use crate::{
    config::{self, Certificate, ClientAuth, Config, TicketFile},
    downstream::tls::{Acceptor, CertificateStore, Served, Slot, TicketKeys},
    observe::{CertificateExpiry, Metrics, TlsFile},
};

/// Where certificates are put: the stores of the listeners with TLS, in the order of the configuration.
#[derive(Debug, Clone)]
pub(super) struct Stores {
    /// By index of the listener, with its name.
    listeners: Arc<[(String, Option<Acceptor>)]>,
    metrics: Arc<Metrics>,
}

impl Stores {
    pub(super) fn new(config: &Config, acceptors: &[Option<Acceptor>], metrics: &Arc<Metrics>) -> Self {
        let names = config.listeners.iter().map(|listener| listener.name.clone());
        Stores { listeners: names.zip(acceptors.iter().cloned()).collect(), metrics: metrics.clone() }
    }

    /// The store of a listener; `None` where it has no TLS.
    pub(super) fn of(&self, listener: usize) -> Option<&Arc<CertificateStore>> {
        self.listeners[listener].1.as_ref().map(Acceptor::certificates)
    }

    /// Shows a certificate in place of what its slot held.
    ///
    /// # Errors
    /// What is wrong with its key; nothing changes then.
    pub(super) fn replace(
        &self,
        listener: usize,
        slot: Slot,
        certificate: &Certificate,
    ) -> Result<(), String> {
        let Some(store) = self.of(listener) else { return Ok(()) };
        store.replace(slot, certificate).map_err(|error| error.to_string())?;
        self.announce();
        Ok(())
    }

    /// Shows in the metrics what is served now.
    pub(super) fn announce(&self) {
        let served = self.listeners.iter().flat_map(|(listener, acceptor)| {
            let served = acceptor.iter().flat_map(|acceptor| acceptor.certificates().served());
            served.map(move |served| expiry(listener, served))
        });
        self.metrics.certificates(served.collect());
    }

    /// What follows the files that the configuration names.
    pub(super) fn followers(&self, config: &Config) -> Vec<Follower> {
        let mut followers = Vec::new();
        for (index, listener) in config.listeners.iter().enumerate() {
            let (Some(tls), Some(store)) = (&listener.tls, self.of(index)) else { continue };
            // The configured certificates are in the first slots, in their order.
            for (certificate, slot) in tls.certificates.iter().zip(store.slots()) {
                followers.push(self.follower((index, slot), certificate));
            }
        }
        for (name, acceptor) in self.listeners.iter() {
            let Some(acceptor) = acceptor else { continue };
            let policies = acceptor.client_auths();
            followers.extend(policies.map(|(policy, auth)| client_auth(name, acceptor, policy, auth)));
        }
        let tickets = |(listener, (name, acceptor)): (&config::Listener, &(String, Option<Acceptor>))| {
            let file = listener.tls.as_ref()?.ticket_keys.as_ref()?;
            Some(ticket_keys(name, acceptor.as_ref()?.tickets(), file))
        };
        followers.extend(config.listeners.iter().zip(self.listeners.iter()).filter_map(tickets));
        followers
    }

    /// Lets random ticket keys roll over, where it is time.
    pub(super) fn roll_tickets(&self, now: Instant) {
        for acceptor in self.listeners.iter().filter_map(|(_, acceptor)| acceptor.as_ref()) {
            acceptor.tickets().roll(now);
        }
    }

    fn follower(&self, (listener, slot): (usize, Slot), certificate: &Certificate) -> Follower {
        let [chain, key]: [PathBuf; 2] = [certificate.chain_file.clone(), certificate.key_file.clone()];
        let what =
            format!("the certificate in {} of listener {}", chain.display(), self.listeners[listener].0);
        let (stores, stamps) = (self.clone(), certificate.stamps.clone());
        Follower::new(TlsFile::Certificate, what, stamps, move || {
            let certificate = Certificate::load(&chain, &key)?;
            stores.replace(listener, slot, &certificate)?;
            let until = config::date_text(certificate.not_after);
            Ok(format!("{}, serial {}, until {until}", certificate.names.join(", "), certificate.serial))
        })
    }
}

/// Follows authorities and revocation lists of clients.
fn client_auth(listener: &str, acceptor: &Acceptor, policy: usize, auth: &Arc<ClientAuth>) -> Follower {
    let what = format!("what verifies clients of listener {listener}, {},", auth.ca_file.display());
    let (acceptor, auth, stamps) = (acceptor.clone(), auth.clone(), auth.stamps.clone());
    Follower::new(TlsFile::ClientAuth, what, stamps, move || {
        let new = auth.reload()?;
        acceptor.set_client_auth(policy, Arc::new(new)).map_err(|error| error.to_string())?;
        Ok("new connections are verified by it".to_owned())
    })
}

/// Follows the file of ticket keys.
fn ticket_keys(listener: &str, keys: &Arc<TicketKeys>, file: &TicketFile) -> Follower {
    let (keys, path, stamps) = (keys.clone(), file.path.clone(), file.stamps.clone());
    let what = format!("the ticket keys of listener {listener} in {}", path.display());
    Follower::new(TlsFile::TicketKeys, what, stamps, move || {
        let secrets = TicketFile::load(&path)?.secrets;
        keys.replace(&secrets).map_err(|error| error.to_string())?;
        Ok(format!("{} in use", secrets.len()))
    })
}

fn expiry(listener: &str, served: Served) -> CertificateExpiry {
    let Served { names, serial, not_after, .. } = served;
    CertificateExpiry { listener: listener.to_owned(), names, serial, not_after }
}
