//! The certificates of all listeners while the process serves: new ones are shown, and their end is
//! in the metrics.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::follow::Follower;
use crate::{
    config::{self, Certificate, ClientAuth, Config, OcspFile, Staple, TicketFile},
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
                followers.extend(certificate.ocsp.as_ref().map(|file| self.staple((index, slot), file)));
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

    /// Leaves out OCSP responses that have expired.
    pub(super) fn look_at_staples(&self, now: SystemTime) {
        for (listener, acceptor) in self.listeners.iter() {
            let Some(acceptor) = acceptor else { continue };
            for served in acceptor.certificates().look_at_staples(now) {
                tell_of_staple(listener, &served);
            }
        }
    }

    fn follower(&self, (listener, slot): (usize, Slot), certificate: &Certificate) -> Follower {
        let (chain, key) = (certificate.chain_file.clone(), certificate.key_file.clone());
        let what =
            format!("the certificate in {} of listener {}", chain.display(), self.listeners[listener].0);
        let (stores, stamps) = (self.clone(), certificate.stamps.clone());
        Follower::new(TlsFile::Certificate, what, stamps, move || {
            let mut certificate = Certificate::load(&chain, &key)?;
            certificate.ocsp = stores.staple_for((listener, slot), &certificate);
            stores.replace(listener, slot, &certificate)?;
            let until = config::date_text(certificate.not_after);
            Ok(format!("{}, serial {}, until {until}", certificate.names.join(", "), certificate.serial))
        })
    }

    /// The response in the file of a slot, for a certificate that comes into it.
    ///
    /// WHY no error: a renewed certificate without a response is better than the old one with it.
    fn staple_for(&self, (listener, slot): (usize, Slot), certificate: &Certificate) -> Option<OcspFile> {
        let before = self.of(listener)?.served_in(slot)?.ocsp?;
        let chain = &certificate.chain;
        let kept = || before.staple.and_then(|staple| Staple::read(&staple.response, chain).ok());
        let staple = Staple::load(&before.path, chain).map_err(|wrong| {
            let (file, name) = (before.path.display(), &self.listeners[listener].0);
            tracing::warn!("the OCSP response in {file} of listener {name} {wrong}");
        });
        Some(OcspFile { staple: staple.ok().or_else(kept), ..before })
    }

    /// Follows the file of OCSP responses for the certificate in a slot.
    fn staple(&self, (listener, slot): (usize, Slot), file: &OcspFile) -> Follower {
        let (stores, stamps, path) = (self.clone(), file.stamps.clone(), file.path.clone());
        let what =
            format!("the OCSP response in {} of listener {}", path.display(), self.listeners[listener].0);
        Follower::new(TlsFile::Ocsp, what, stamps, move || {
            let Some((store, served)) =
                stores.of(listener).and_then(|store| Some((store, store.served_in(slot)?)))
            else {
                return Err("has no certificate".to_owned());
            };
            let staple = Staple::load(&path, served.chain()).map_err(|wrong| format!("it {wrong}"))?;
            staple.check_dates().map_err(|wrong| format!("it {wrong}"))?;
            let until = config::date_text(staple.next_update);
            store.set_staple(slot, staple);
            stores.announce();
            Ok(format!("stapled until {until}"))
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

/// Says that a response has expired, or holds by now.
fn tell_of_staple(listener: &str, served: &Served) {
    let Some(OcspFile { path, staple: Some(staple), .. }) = &served.ocsp else { return };
    let (file, until) = (path.display(), config::date_text(staple.next_update));
    if served.is_stapled() {
        tracing::info!("the OCSP response in {file} of listener {listener} holds now: stapled until {until}");
    } else {
        tracing::warn!(
            "the OCSP response in {file} of listener {listener} expired on {until} and is left out: write a fresh one"
        );
    }
}

fn expiry(listener: &str, served: Served) -> CertificateExpiry {
    let Served { names, serial, not_after, ocsp, .. } = served;
    let staple_until = ocsp.map(|file| file.staple.map_or(0, |staple| staple.next_update));
    CertificateExpiry { listener: listener.to_owned(), names, serial, not_after, staple_until }
}
