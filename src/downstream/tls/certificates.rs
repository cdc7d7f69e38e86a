//! The certificates of a listener by the names they are for; exchanged while handshakes go on.
//!
//! A handshake looks at one immutable table, which a change replaces as a whole: it sees the old
//! certificates or the new ones, never a mixture, and never waits.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{
    Error, SignatureAlgorithm, SignatureScheme,
    crypto::aws_lc_rs,
    pki_types::CertificateDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::ASKED_NAME;
use crate::config::{Certificate, ListenerTls, OcspFile, Staple};

/// All certificates of one listener, shared by its workers and by whoever brings new ones.
///
/// They lie in slots, in the order of the configuration; a slot is filled, and later filled anew,
/// by one owner: the files that are watched, or an ACME account.
#[derive(Debug)]
pub struct CertificateStore {
    /// Without a default certificate.
    strict_sni: bool,
    slots: Mutex<Vec<Option<Served>>>,
    table: ArcSwap<Table>,
    challenges: ArcSwap<HashMap<String, Arc<CertifiedKey>>>,
    has_challenges: AtomicBool,
}

/// A place in the order of a store's certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(usize);

/// A certificate that is shown to clients, and what it says about itself.
#[derive(Debug, Clone)]
pub struct Served {
    certified: Arc<CertifiedKey>,
    pub names: Vec<String>,
    pub serial: String,
    /// Seconds since the epoch.
    pub not_after: i64,
    /// Stapled while it holds.
    pub ocsp: Option<OcspFile>,
}

/// The certificates by name, for look-ups.
///
/// For one name: those that list it before those whose wildcard holds it (one label, RFC 6125
/// §6.4.3); of these ECDSA before Ed25519 before RSA, and for one kind in the order of the slots. The
/// first whose signatures the client takes is shown. A name that none is for gets the first slot's
/// certificate, unless `strict_sni`.
#[derive(Debug, Default)]
struct Table {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By what follows `*.`.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// Of the first slot that is filled come first those that share a name with it.
    default: Vec<Arc<CertifiedKey>>,
}

impl CertificateStore {
    /// A store with the configured certificates in its first slots, in their order.
    ///
    /// # Errors
    /// A key of a kind that the TLS library does not support.
    pub fn new(tls: &ListenerTls) -> Result<Self, Error> {
        let slots = tls.certificates.iter().map(|each| Served::new(each).map(Some));
        let slots: Vec<Option<Served>> = slots.collect::<Result<_, _>>()?;
        Ok(CertificateStore {
            strict_sni: tls.strict_sni,
            table: ArcSwap::from_pointee(Table::new(&slots, tls.strict_sni)),
            slots: Mutex::new(slots),
            challenges: ArcSwap::default(),
            has_challenges: AtomicBool::new(false),
        })
    }

    /// The slots that there are by now.
    pub fn slots(&self) -> Vec<Slot> {
        (0..self.lock().len()).map(Slot).collect()
    }

    /// Adds an empty slot behind all others.
    pub fn add_slot(&self) -> Slot {
        let mut slots = self.lock();
        slots.push(None);
        Slot(slots.len() - 1)
    }

    /// Shows this certificate, instead of what the slot held, in every handshake that begins from
    /// now on. Sessions of before go on and resume.
    ///
    /// # Errors
    /// A key of a kind that the TLS library does not support; nothing changes then.
    pub fn replace(&self, slot: Slot, certificate: &Certificate) -> Result<(), Error> {
        self.replace_all([(slot, certificate)])
    }

    /// The same for several slots at once; either all change, or none. Cost: all names of the store.
    pub fn replace_all<'c>(
        &self,
        changes: impl IntoIterator<Item = (Slot, &'c Certificate)>,
    ) -> Result<(), Error> {
        let changes = changes.into_iter().map(|(slot, certificate)| Ok((slot, Served::new(certificate)?)));
        let changes: Vec<(Slot, Served)> = changes.collect::<Result<_, Error>>()?;
        let mut slots = self.lock();
        for (slot, served) in changes {
            slots[slot.0] = Some(served);
        }
        self.table.store(Arc::new(Table::new(&slots, self.strict_sni)));
        Ok(())
    }

    /// Staples this response to the certificate of a slot from now on.
    pub fn set_staple(&self, slot: Slot, staple: Staple) {
        let mut slots = self.lock();
        if let Some(served) = &mut slots[slot.0]
            && let Some(file) = &mut served.ocsp
        {
            file.staple = Some(staple);
            served.staple(SystemTime::now());
            self.table.store(Arc::new(Table::new(&slots, self.strict_sni)));
        }
    }

    /// Leaves out responses that hold no longer: clients refuse the certificate with one, and take it
    /// without. Those that hold by now come in. Returns the certificates for which this is new.
    pub fn look_at_staples(&self, now: SystemTime) -> Vec<Served> {
        let mut slots = self.lock();
        let changed =
            slots.iter_mut().flatten().filter_map(|served| served.staple(now).then(|| served.clone()));
        let changed: Vec<Served> = changed.collect();
        if !changed.is_empty() {
            self.table.store(Arc::new(Table::new(&slots, self.strict_sni)));
        }
        changed
    }

    /// What is shown now in a slot.
    pub fn served_in(&self, slot: Slot) -> Option<Served> {
        self.lock()[slot.0].clone()
    }

    /// What is shown now, slot by slot; those that are empty are left out.
    pub fn served(&self) -> Vec<Served> {
        self.lock().iter().flatten().cloned().collect()
    }

    /// Shows this certificate to whoever asks for the name to validate it (ALPN `acme-tls/1`,
    /// RFC 8737), and to nobody else, until it is removed.
    ///
    /// # Errors
    /// A key of a kind that the TLS library does not support.
    pub fn set_challenge(&self, name: &str, certificate: &Certificate) -> Result<(), Error> {
        let certified = Served::new(certificate)?.certified;
        self.change_challenges(|challenges| challenges.insert(canonical(name), certified));
        Ok(())
    }

    pub fn remove_challenge(&self, name: &str) {
        self.change_challenges(|challenges| challenges.remove(&canonical(name)));
    }

    fn change_challenges<T>(&self, change: impl FnOnce(&mut HashMap<String, Arc<CertifiedKey>>) -> T) {
        // One change at a time.
        let _guard = self.lock();
        let mut challenges = HashMap::clone(&self.challenges.load());
        change(&mut challenges);
        self.has_challenges.store(!challenges.is_empty(), Ordering::Release);
        self.challenges.store(Arc::new(challenges));
    }

    /// Whether a hello may be one of a validation.
    pub fn has_challenges(&self) -> bool {
        self.has_challenges.load(Ordering::Acquire)
    }

    /// The certificate for a name as the client sent it, and the signatures that it takes; two
    /// look-ups at most, however many certificates there are.
    pub fn find(&self, name: &str, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.table.load().find(name, schemes).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Option<Served>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        ASKED_NAME.set(hello.server_name().map(str::to_owned));
        let table = self.table.load();
        let schemes = hello.signature_schemes();
        let found = hello.server_name().and_then(|name| table.find(name, schemes));
        found.or_else(|| first_taken(&table.default, schemes)).cloned()
    }
}

/// Shows the certificates of challenges, and no others.
#[derive(Debug)]
pub(super) struct Challenges(pub(super) Arc<CertificateStore>);

impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        ASKED_NAME.set(hello.server_name().map(str::to_owned));
        self.0.challenges.load().get(&canonical(hello.server_name()?)).cloned()
    }
}

impl Served {
    fn new(certificate: &Certificate) -> Result<Self, Error> {
        let key = aws_lc_rs::sign::any_supported_type(&certificate.key)?;
        let mut served = Served {
            certified: Arc::new(CertifiedKey::new(certificate.chain.clone(), key)),
            names: certificate.names.clone(),
            serial: certificate.serial.clone(),
            not_after: certificate.not_after,
            ocsp: certificate.ocsp.clone(),
        };
        served.staple(SystemTime::now());
        Ok(served)
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Whether a response goes with it.
    pub fn is_stapled(&self) -> bool {
        self.certified.ocsp.is_some()
    }

    /// Has the response with it if that holds now; whether this is new.
    fn staple(&mut self, now: SystemTime) -> bool {
        let staple = self.ocsp.as_ref().and_then(|file| file.staple.as_ref());
        let response = staple.filter(|staple| staple.holds(now)).map(|staple| &staple.response);
        if response == self.certified.ocsp.as_ref() {
            return false;
        }
        let certified = CertifiedKey::clone(&self.certified);
        self.certified = Arc::new(CertifiedKey { ocsp: response.cloned(), ..certified });
        true
    }
}

impl Table {
    fn new(slots: &[Option<Served>], strict_sni: bool) -> Self {
        let mut table = Table::default();
        // A stable order: what is of one kind stays in the order of the slots.
        let mut by_kind: Vec<&Served> = slots.iter().flatten().collect();
        by_kind.sort_by_key(|served| kind(&served.certified));
        for served in &by_kind {
            for name in &served.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(suffix) => (&mut table.wildcard, suffix),
                    None => (&mut table.exact, name.as_str()),
                };
                names.entry(name.to_owned()).or_default().push(served.certified.clone());
            }
        }
        if let (Some(first), false) = (slots.iter().flatten().next(), strict_sni) {
            let name = first.names.first();
            let same = by_kind.iter().filter(|served| name.is_some_and(|name| served.names.contains(name)));
            table.default = same.map(|served| served.certified.clone()).collect();
            table.default.push(first.certified.clone());
        }
        table
    }

    /// Where the client takes the signatures of none, one is returned all the same: the handshake
    /// then fails with the right alert.
    fn find(&self, name: &str, schemes: &[SignatureScheme]) -> Option<&Arc<CertifiedKey>> {
        let name = canonical(name);
        let exact = self.exact.get(&name).map_or(&[][..], Vec::as_slice);
        if let Some(taken) = exact.iter().find(|each| is_taken(each, schemes)) {
            return Some(taken);
        }
        let wildcard = name.split_once('.').and_then(|(_, suffix)| self.wildcard.get(suffix));
        let wildcard = wildcard.map_or(&[][..], Vec::as_slice);
        wildcard.iter().find(|each| is_taken(each, schemes)).or(exact.first()).or(wildcard.first())
    }
}

fn first_taken<'t>(
    all: &'t [Arc<CertifiedKey>],
    schemes: &[SignatureScheme],
) -> Option<&'t Arc<CertifiedKey>> {
    all.iter().find(|each| is_taken(each, schemes)).or(all.first())
}

fn is_taken(certified: &CertifiedKey, schemes: &[SignatureScheme]) -> bool {
    certified.key.choose_scheme(schemes).is_some()
}

/// Which of a name's certificates comes first: signing with ECDSA costs a tenth of RSA; Ed25519
/// few clients take.
fn kind(certified: &CertifiedKey) -> u8 {
    match certified.key.algorithm() {
        SignatureAlgorithm::ECDSA => 0,
        SignatureAlgorithm::ED25519 => 1,
        _ => 2,
    }
}

/// As names are compared: in lower case, without the final dot.
pub(super) fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256};
    use rustls::pki_types::PrivateKeyDer;

    use super::*;
    use crate::config::Stamps;

    const ECDSA: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
    const ED25519: SignatureScheme = SignatureScheme::ED25519;
    const RSA: SignatureScheme = SignatureScheme::RSA_PSS_SHA256;

    fn certificate(names: &[&str], algorithm: &'static rcgen::SignatureAlgorithm) -> Certificate {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let signed = CertificateParams::new(names.clone()).unwrap().self_signed(&key).unwrap();
        Certificate {
            chain_file: PathBuf::new(),
            key_file: PathBuf::new(),
            chain: vec![signed.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            names,
            serial: String::new(),
            not_before: 0,
            not_after: 0,
            ocsp: None,
            stamps: Stamps::default(),
        }
    }

    fn ecdsa(names: &[&str]) -> Certificate {
        certificate(names, &PKCS_ECDSA_P256_SHA256)
    }

    fn store(certificates: Vec<Certificate>, strict_sni: bool) -> CertificateStore {
        let tls = ListenerTls { certificates, strict_sni, ..ListenerTls::default() };
        CertificateStore::new(&tls).unwrap()
    }

    /// Index of what is found among these certificates.
    fn found(
        store: &CertificateStore,
        certificates: &[&[u8]],
        name: &str,
        schemes: &[SignatureScheme],
    ) -> Option<usize> {
        let shown = store.find(name, schemes)?;
        certificates.iter().position(|der| *der == shown.cert[0].as_ref())
    }

    #[test]
    fn one_name_has_ecdsa_before_ed25519_before_rsa_and_then_the_order_of_the_file() {
        let all = vec![
            certificate(&["a.example"], &PKCS_RSA_SHA256),
            certificate(&["a.example"], &PKCS_ED25519),
            ecdsa(&["a.example"]),
            ecdsa(&["a.example"]),
        ];
        let ders: Vec<Vec<u8>> = all.iter().map(|each| each.chain[0].to_vec()).collect();
        let ders: Vec<&[u8]> = ders.iter().map(Vec::as_slice).collect();
        let store = store(all, false);
        for (offered, expected) in [
            (&[RSA, ED25519, ECDSA][..], 2),
            (&[ECDSA], 2),
            (&[RSA, ED25519], 1),
            (&[RSA], 0),
            // The handshake fails, and says why.
            (&[SignatureScheme::ECDSA_NISTP384_SHA384], 2),
            (&[], 2),
        ] {
            assert_eq!(found(&store, &ders, "a.example", offered), Some(expected), "{offered:?}");
        }
        let default = first_taken(&store.table.load().default, &[RSA]).unwrap().cert[0].to_vec();
        assert_eq!(default, ders[0]);
        let default = first_taken(&store.table.load().default, &[RSA, ECDSA]).unwrap().cert[0].to_vec();
        assert_eq!(default, ders[2], "of the default name too");
    }

    #[test]
    fn an_exact_name_comes_before_a_wildcard_unless_the_client_can_only_take_that() {
        let all = vec![certificate(&["*.example", "b.example"], &PKCS_RSA_SHA256), ecdsa(&["a.example"])];
        let ders: Vec<Vec<u8>> = all.iter().map(|each| each.chain[0].to_vec()).collect();
        let ders: Vec<&[u8]> = ders.iter().map(Vec::as_slice).collect();
        let store = store(all, true);
        for (name, offered, expected) in [
            ("a.example", &[RSA, ECDSA][..], Some(1)),
            ("A.Example.", &[RSA, ECDSA], Some(1)),
            ("a.example", &[RSA], Some(0)),
            ("b.example", &[RSA], Some(0)),
            ("c.example", &[RSA], Some(0)),
            ("a.c.example", &[RSA], None),
            ("example", &[RSA], None),
            ("", &[RSA], None),
        ] {
            assert_eq!(found(&store, &ders, name, offered), expected, "{name} {offered:?}");
        }
        assert!(store.table.load().default.is_empty());
    }

    #[test]
    fn a_slot_is_replaced_and_the_names_of_before_go() {
        let store = store(vec![ecdsa(&["a.example"]), ecdsa(&["b.example"])], true);
        let slots = store.slots();
        store.replace(slots[0], &ecdsa(&["c.example"])).unwrap();
        assert!(store.find("a.example", &[ECDSA]).is_none());
        assert!(store.find("b.example", &[ECDSA]).is_some());
        assert!(store.find("c.example", &[ECDSA]).is_some());
        let later = store.add_slot();
        assert_eq!((store.slots().len(), store.served().len()), (3, 2), "an empty slot shows nothing");
        store.replace(later, &ecdsa(&["d.example"])).unwrap();
        let names: Vec<String> = store.served().into_iter().flat_map(|served| served.names).collect();
        assert_eq!(names, ["c.example", "b.example", "d.example"]);
    }

    #[test]
    fn a_key_that_can_not_be_used_changes_nothing() {
        let store = store(vec![ecdsa(&["a.example"])], true);
        let broken = Certificate { key: PrivateKeyDer::Pkcs8(vec![1, 2, 3].into()), ..ecdsa(&["b.example"]) };
        let (good, slot) = (ecdsa(&["c.example"]), store.slots()[0]);
        assert!(store.replace_all([(slot, &good), (slot, &broken)]).is_err());
        assert!(store.find("a.example", &[ECDSA]).is_some());
        assert!(store.find("c.example", &[ECDSA]).is_none());
    }

    #[test]
    fn a_response_is_stapled_from_its_first_second_until_before_its_last() {
        let staple = Staple { response: vec![1, 2, 3], this_update: 100, next_update: 200 };
        let file = OcspFile { path: PathBuf::new(), staple: None, stamps: Stamps::default() };
        let certificate = Certificate { ocsp: Some(file), ..ecdsa(&["a.example"]) };
        let store = store(vec![certificate, ecdsa(&["b.example"])], true);
        let slots = store.slots();
        for slot in &slots {
            store.set_staple(*slot, staple.clone());
        }
        let stapled = |name| store.find(name, &[ECDSA]).unwrap().ocsp.clone();
        assert_eq!(stapled("a.example"), None, "it has expired long ago");
        for (seconds, changes, expected) in [
            (99, 0, None),
            (100, 1, Some(vec![1, 2, 3])),
            (199, 0, Some(vec![1, 2, 3])),
            (200, 1, None),
            (300, 0, None),
        ] {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(store.look_at_staples(now).len(), changes, "{seconds}");
            assert_eq!(stapled("a.example"), expected, "{seconds}");
            assert_eq!(stapled("b.example"), None, "it has none");
        }
    }

    #[test]
    fn a_challenge_is_there_until_it_is_removed() {
        let store = store(vec![ecdsa(&["a.example"])], true);
        assert!(!store.has_challenges());
        store.set_challenge("B.Example", &ecdsa(&["b.example"])).unwrap();
        store.set_challenge("c.example", &ecdsa(&["c.example"])).unwrap();
        assert!(store.has_challenges());
        assert!(store.find("b.example", &[ECDSA]).is_none(), "it is shown to nobody else");
        store.remove_challenge("b.example");
        assert!(store.has_challenges());
        store.remove_challenge("c.example");
        assert!(!store.has_challenges());
    }
}
