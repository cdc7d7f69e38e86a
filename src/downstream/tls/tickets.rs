//! Session tickets: a session's state, sealed, which the client keeps and brings back so that its next
//! handshake is short (RFC 5077, RFC 8446 §4.6.1).
//!
//! The first key seals, all of them open. Keys are random and roll over by themselves, or come from a
//! file that several instances share. A ticket is bound to the policy it was issued under: it opens
//! under no other, whoever shares the keys.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
    error::Unspecified,
    rand,
};
use rustls::server::ProducesTickets;

use crate::config::TicketSecret;

/// How long a ticket is good for, in seconds.
const LIFETIME: u32 = 12 * 60 * 60;
/// After this, a new random key seals.
const ROLL: Duration = Duration::from_hours(6);
/// Random keys that are kept: a ticket that the oldest one sealed last is over when it goes.
const KEPT: usize = 3;
const NAME_LEN: usize = 16;

/// The keys of a listener, shared by its workers.
#[derive(Debug)]
pub struct TicketKeys {
    /// Never empty.
    keys: ArcSwap<Vec<Arc<Key>>>,
    /// When the first of random keys was made; `None`: they come from a file.
    rolled: Mutex<Option<Instant>>,
}

/// Seals with random nonces. AES-GCM-SIV stays safe for as many tickets as a fleet can issue with one
/// key; a nonce that comes twice would only tell that two sessions are the same (RFC 8452 §6).
struct Key {
    /// In front of each ticket; says which key opens it.
    name: [u8; NAME_LEN],
    aead: LessSafeKey,
}

impl TicketKeys {
    /// Those of a file, or random ones where there are no secrets.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn new(secrets: &[TicketSecret], now: Instant) -> Result<Self, Unspecified> {
        let (keys, rolled) = match secrets {
            [] => (vec![Arc::new(Key::random()?)], Some(now)),
            secrets => (derived(secrets)?, None),
        };
        Ok(TicketKeys { keys: ArcSwap::from_pointee(keys), rolled: Mutex::new(rolled) })
    }

    /// Takes the keys of a file that changed. Tickets of those that are gone cost their clients one
    /// full handshake.
    ///
    /// # Errors
    /// The library can't make keys; nothing changes then.
    pub fn replace(&self, secrets: &[TicketSecret]) -> Result<(), Unspecified> {
        self.keys.store(Arc::new(derived(secrets)?));
        Ok(())
    }

    /// Puts a new random key in front when it is time, and forgets the oldest.
    pub fn roll(&self, now: Instant) {
        let mut rolled = self.rolled.lock().unwrap_or_else(PoisonError::into_inner);
        if rolled.is_none_or(|last| now.saturating_duration_since(last) < ROLL) {
            return;
        }
        // WHY: without random numbers the old key goes on, and this is tried again.
        let Ok(key) = Key::random() else { return };
        let keys = self.keys.load();
        let kept = keys.iter().take(KEPT - 1).cloned();
        self.keys.store(Arc::new(std::iter::once(Arc::new(key)).chain(kept).collect()));
        *rolled = Some(now);
    }
}

fn derived(secrets: &[TicketSecret]) -> Result<Vec<Arc<Key>>, Unspecified> {
    secrets.iter().map(|secret| Key::derived(secret.bytes()).map(Arc::new)).collect()
}

impl Key {
    fn random() -> Result<Self, Unspecified> {
        let mut secret = [0; 32];
        rand::fill(&mut secret)?;
        Key::derived(&secret)
    }

    /// The same on every instance that has the secret, which is random and long.
    fn derived(secret: &[u8]) -> Result<Self, Unspecified> {
        let labelled = |label: &[u8]| digest(&SHA256, &[label, secret].concat());
        let mut name = [0; NAME_LEN];
        name.copy_from_slice(&labelled(b"portcullis ticket key name ").as_ref()[..NAME_LEN]);
        let key = labelled(b"portcullis ticket key ");
        Ok(Key { name, aead: LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, key.as_ref())?) })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([hidden])")
    }
}

/// Seals and opens the tickets of one policy.
#[derive(Debug)]
pub(super) struct Ticketer {
    pub(super) keys: Arc<TicketKeys>,
    /// Goes into every seal and into no ticket.
    pub(super) bound_to: &'static [u8],
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.keys.load();
        let key = keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let overhead = NAME_LEN + NONCE_LEN;
        let mut ticket = Vec::with_capacity(overhead + plain.len() + AES_256_GCM_SIV.tag_len());
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(plain);
        let (nonce, aad) = (Nonce::assume_unique_for_key(nonce), Aad::from(self.bound_to));
        let tag = key.aead.seal_in_place_separate_tag(nonce, aad, &mut ticket[overhead..]).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_LEN>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let keys = self.keys.keys.load();
        let key = keys.iter().find(|key| key.name == *name)?;
        let mut sealed = sealed.to_vec();
        let (nonce, aad) = (Nonce::assume_unique_for_key(*nonce), Aad::from(self.bound_to));
        let length = key.aead.open_in_place(nonce, aad, &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::config::TicketFile;

    const SESSION: &[u8] = b"the state of a session";

    fn secrets(text: &str) -> Vec<TicketSecret> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        TicketFile::load(file.path()).unwrap().secrets
    }

    fn ticketer(secrets: &[TicketSecret]) -> Ticketer {
        let keys = Arc::new(TicketKeys::new(secrets, Instant::now()).unwrap());
        Ticketer { keys, bound_to: b"one policy" }
    }

    #[test]
    fn a_ticket_opens_where_the_key_is_known_and_nowhere_else() {
        let [one, two] = ["11", "22"].map(|byte| byte.repeat(32));
        let first = ticketer(&secrets(&one));
        let ticket = first.encrypt(SESSION).unwrap();
        assert!(!ticket.windows(4).any(|part| part == b"stat"), "it is sealed");
        assert_ne!(first.encrypt(SESSION).unwrap(), ticket, "no two are the same");
        assert_eq!(first.decrypt(&ticket).unwrap(), SESSION);
        let another = ticketer(&secrets(&format!("{two}\n{one}")));
        assert_eq!(another.decrypt(&ticket).unwrap(), SESSION, "of the fleet, with a newer key in front");
        assert!(first.decrypt(&another.encrypt(SESSION).unwrap()).is_none());
        another.keys.replace(&secrets(&two)).unwrap();
        assert!(another.decrypt(&ticket).is_none(), "the old key is gone");
        assert!(ticketer(&[]).decrypt(&ticket).is_none());
    }

    #[test]
    fn a_ticket_opens_under_its_own_policy_only() {
        let one = ticketer(&secrets(&"11".repeat(32)));
        let other = Ticketer { keys: one.keys.clone(), bound_to: b"another policy" };
        assert!(other.decrypt(&one.encrypt(SESSION).unwrap()).is_none());
    }

    #[test]
    fn random_keys_roll_and_open_for_as_long_as_their_tickets_are_good() {
        let ticketer = ticketer(&[]);
        let start = Instant::now();
        let ticket = ticketer.encrypt(SESSION).unwrap();
        ticketer.keys.roll(start + ROLL / 2);
        assert_eq!(ticketer.keys.keys.load().len(), 1);
        for rolls in 1..KEPT {
            ticketer.keys.roll(start + ROLL * (2 * u32::try_from(rolls).unwrap()));
            assert_ne!(ticketer.encrypt(SESSION).unwrap()[..NAME_LEN], ticket[..NAME_LEN]);
            assert_eq!(ticketer.decrypt(&ticket).unwrap(), SESSION, "after {rolls}");
        }
        ticketer.keys.roll(start + ROLL * 100);
        assert!(ticketer.decrypt(&ticket).is_none());
        let kept_for = ROLL * u32::try_from(KEPT - 1).unwrap();
        assert!(kept_for >= Duration::from_secs(LIFETIME.into()));
    }

    #[test]
    fn keys_of_a_file_do_not_roll() {
        let ticketer = ticketer(&secrets(&"11".repeat(32)));
        let ticket = ticketer.encrypt(SESSION).unwrap();
        ticketer.keys.roll(Instant::now() + ROLL * 100);
        assert!(ticketer.decrypt(&ticket).is_some() && ticketer.keys.keys.load().len() == 1);
    }

    proptest! {
        #[test]
        fn a_ticket_with_any_bit_changed_does_not_open(at in 0_usize..66, bit in 0_u8..8) {
            let ticketer = ticketer(&[]);
            let mut ticket = ticketer.encrypt(SESSION).unwrap();
            let at = at % ticket.len();
            ticket[at] ^= 1 << bit;
            prop_assert!(ticketer.decrypt(&ticket).is_none());
        }

        #[test]
        fn takes_any_bytes(bytes in vec(any::<u8>(), 0..100)) {
            prop_assert!(ticketer(&[]).decrypt(&bytes).is_none());
        }
    }
}
