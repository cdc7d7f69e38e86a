//! Certificates that are asked for at a directory and renewed by themselves (ACME, RFC 8555).
//!
//! One task for each certificate, beside the workers. `schedule.rs` decides when something is to be done, `order.rs` does
//! it, `storage.rs` keeps what came. Whatever goes wrong here, the listeners go on with the certificate that they
//! show: that of before, or a throw-away one.

mod account;
mod certificate;
mod client;
mod failure;
mod order;
mod schedule;
mod storage;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use instant_acme::CertificateIdentifier;
use tokio::time::{sleep, timeout};

use self::{
    client::Client,
    failure::{Failure, Kind},
    order::Stage,
    schedule::{Life, Memory, Step},
    storage::{Storage, StorageError},
};
use crate::{
    config::{Acme, Certificate},
    downstream::tls::CertificateStore,
    observe::Metrics,
    proxy::challenges::HttpChallenges,
    upstream::tls::SetupError,
};

/// How long an order may take, all in all.
const ORDER_DEADLINE: Duration = Duration::from_mins(15);
/// When to look again where another process is ordering.
const TURN: i64 = 60;

/// Shows a certificate in handshakes from now on, or says why not.
pub type Show = Box<dyn Fn(&Certificate) -> Result<(), String> + Send + Sync>;

/// A listener that shows the certificate.
pub struct Outlet {
    pub listener: String,
    /// The domains that certificates of its own are for: no throw-away one takes their place.
    pub covered: Vec<String>,
    pub show: Show,
}

/// One certificate that is looked after.
pub struct Job {
    acme: Acme,
    outlets: Vec<Outlet>,
    storage: Storage,
    client: Client,
    memory: Memory,
    /// `None`: a throw-away certificate, or one that is not for all domains.
    shown: Option<Shown>,
    /// Where in its span a renewal falls.
    share: f64,
}

/// What is known of the certificate that is shown.
struct Shown {
    serial: String,
    life: Life,
    identifier: Option<CertificateIdentifier<'static>>,
}

/// Where proofs are shown, and where it is told what happens.
#[derive(Clone)]
pub struct Surroundings {
    /// Those of all listeners with TLS.
    pub tls: Vec<Arc<CertificateStore>>,
    pub http: Arc<HttpChallenges>,
    pub metrics: Arc<Metrics>,
    /// Held while an account is looked for or made, so that two certificates don't make two.
    pub registering: Arc<tokio::sync::Mutex<()>>,
}

/// Why a certificate can't be looked after.
#[derive(Debug)]
pub enum OpenError {
    Storage(StorageError),
    Tls(SetupError),
}

impl Job {
    /// Opens the storage and shows what is there; does I/O on files, none on the network.
    ///
    /// # Errors
    /// A storage that can't be written to, or no authority to trust the directory by.
    pub fn open(acme: Acme, outlets: Vec<Outlet>) -> Result<Self, OpenError> {
        let storage = Storage::open(&acme.storage, &acme.account.directory, acme.name());
        let storage = storage.map_err(OpenError::Storage)?;
        let client = Client::new(&acme.account.ca).map_err(OpenError::Tls)?;
        let memory = storage.memory::<Memory>().sane(now());
        let mut job = Job { acme, outlets, storage, client, memory, shown: None, share: fastrand::f64() };
        match job.stored() {
            Ok(Some(certificate)) => job.show(&certificate),
            Ok(None) => job.show_throw_away(),
            Err(failure) => {
                tracing::error!("acme: {}: {}", job.name(), failure.detail);
                job.show_throw_away();
            }
        }
        Ok(job)
    }

    /// Looks after it for ever.
    pub async fn run(mut self, surroundings: Surroundings) {
        loop {
            self.tell(&surroundings.metrics);
            match self.memory.due(now(), self.life(), self.share) {
                Err(wait) => {
                    sleep(wait).await;
                    continue;
                }
                Ok(Step::Ask(_)) => self.ask(&surroundings).await,
                Ok(Step::Order(_)) => self.renew(&surroundings).await,
            }
            if let Err(error) = self.remember(self.memory).await {
                tracing::error!("acme: a restart will not know of the last failures: {error}");
            }
        }
    }

    fn name(&self) -> &str {
        self.acme.name()
    }

    fn life(&self) -> Option<Life> {
        self.shown.as_ref().map(|shown| shown.life)
    }

    /// The certificate of before.
    fn stored(&self) -> Result<Option<Certificate>, Failure> {
        let Some(pem) = self.storage.certificate()? else { return Ok(None) };
        let path = self.storage.file("pem");
        let unusable =
            |error| Failure::new(Kind::Storage, format!("{} can't be used: {error}", path.display()));
        certificate::read(&pem).map(Some).map_err(unusable)
    }

    fn show(&mut self, certificate: &Certificate) {
        for outlet in &self.outlets {
            if let Err(error) = (outlet.show)(certificate) {
                tracing::error!("acme: listener {} can't show {}: {error}", outlet.listener, self.name());
            }
        }
        let shown = Shown {
            serial: certificate.serial.clone(),
            life: certificate::life(certificate),
            identifier: certificate::identifier(certificate),
        };
        // One for other domains than are configured is better than none, until the right one comes.
        self.shown = certificate::check(certificate, &self.acme.domains).is_ok().then_some(shown);
        self.share = fastrand::f64();
    }

    fn show_throw_away(&self) {
        for outlet in &self.outlets {
            let is_bare = |domain: &&String| !outlet.covered.contains(domain);
            let bare: Vec<String> = self.acme.domains.iter().filter(is_bare).cloned().collect();
            if bare.is_empty() {
                continue;
            }
            let shown = certificate::throw_away(&bare).map_err(|error| error.to_string());
            match shown.and_then(|certificate| (outlet.show)(&certificate)) {
                Ok(()) => tracing::warn!(
                    "acme: listener {} shows a throw-away certificate for {} until there is a real one",
                    outlet.listener,
                    bare.join(", ")
                ),
                Err(error) => tracing::error!("acme: no throw-away certificate could be made: {error}"),
            }
        }
    }

    /// Asks the directory when it wants the certificate renewed (ARI, RFC 9773).
    async fn ask(&mut self, surroundings: &Surroundings) {
        let Some(identifier) = self.shown.as_ref().and_then(|shown| shown.identifier.clone()) else {
            return self.memory.no_advice(now());
        };
        let asked = async {
            let account = self.account(surroundings).await?;
            Ok::<_, Failure>(account.renewal_info(&identifier).await)
        };
        let result = timeout(ORDER_DEADLINE, asked).await;
        let now = now();
        match result {
            Ok(Ok(Ok((info, again)))) => {
                let window = info.suggested_window;
                let window = Life { begin: window.start.unix_timestamp(), end: window.end.unix_timestamp() };
                let again = i64::try_from(again.as_secs()).unwrap_or(i64::MAX);
                self.memory.suggest(now, window, again, fastrand::f64());
                let reason = info.explanation_url.unwrap_or_default();
                tracing::debug!("acme: {} is to be renewed between {window:?} {reason:?}", self.name());
            }
            Ok(Ok(Err(instant_acme::Error::Unsupported(_)))) => self.memory.no_advice(now),
            Ok(Ok(Err(error))) => self.no_answer(&Failure::from(error).detail),
            Ok(Err(failure)) => self.no_answer(&failure.detail),
            Err(_) => self.no_answer(&"no answer in time"),
        }
    }

    fn no_answer(&mut self, why: &dyn fmt::Display) {
        self.memory.ask_later(now(), fastrand::f64());
        tracing::info!("acme: could not ask when to renew {}: {why}", self.name());
    }

    async fn account(&self, surroundings: &Surroundings) -> Result<instant_acme::Account, Failure> {
        let _turn = surroundings.registering.lock().await;
        account::open(&self.acme.account, &self.storage, &self.client).await
    }

    /// Orders a certificate, unless another process has got one or is about to.
    async fn renew(&mut self, surroundings: &Surroundings) {
        if self.adopt() {
            return;
        }
        let lock = match self.storage.lock() {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                tracing::info!("acme: another process is ordering {}", self.name());
                self.memory.not_before = now() + TURN;
                return;
            }
            Err(error) => return self.fail(&error.into(), None, &surroundings.metrics),
        };
        if let Err(error) = self.remember(self.memory.trying(now(), fastrand::f64())).await {
            // WHY: what could not be remembered would be ordered again after each restart, and lost each time.
            return self.fail(&error.into(), None, &surroundings.metrics);
        }
        let old = self.life();
        self.client.take_retry_after();
        let obtained = timeout(ORDER_DEADLINE, self.obtain(surroundings)).await;
        let late = |_| Failure::new(Kind::Timeout, format!("it took longer than {ORDER_DEADLINE:?}"));
        match obtained.map_err(late).flatten() {
            Ok((pem, certificate)) => {
                self.keep(pem).await;
                self.show(&certificate);
                self.memory.issued(now(), old, certificate::life(&certificate), fastrand::f64());
                self.count("ok", &surroundings.metrics);
                let Life { begin, end } = certificate::life(&certificate);
                tracing::info!(
                    "acme: {} has a new certificate, serial {}, valid for {}",
                    self.acme.domains.join(", "),
                    certificate.serial,
                    length(end - begin)
                );
            }
            Err(failure) => self.fail(&failure, self.client.take_retry_after(), &surroundings.metrics),
        }
        drop(lock);
    }

    /// Takes over what another process that shares the storage has got, and what it knows of failures.
    fn adopt(&mut self) -> bool {
        let stored = self.stored().ok().flatten();
        let serial = self.shown.as_ref().map(|shown| &shown.serial);
        let newer = stored.filter(|stored| Some(&stored.serial) != serial);
        let theirs = self.storage.memory::<Memory>().sane(now());
        if let Some(newer) = newer
            && certificate::check(&newer, &self.acme.domains).is_ok()
            && schedule::renewal(certificate::life(&newer), 1.0) > now()
        {
            self.show(&newer);
            self.memory = theirs;
            tracing::info!("acme: {} has the new certificate that is in the storage", self.name());
            return true;
        }
        let later = theirs.not_before > self.memory.not_before.max(now());
        if later {
            self.memory = theirs;
        }
        later
    }

    async fn obtain(&self, surroundings: &Surroundings) -> Result<(String, Certificate), Failure> {
        let stage = Stage { tls: surroundings.tls.clone(), http: surroundings.http.clone() };
        let replaces = self.shown.as_ref().and_then(|shown| shown.identifier.clone());
        let account = self.account(surroundings).await?;
        let obtained = match order::obtain(&self.acme, &account, replaces, &stage).await {
            Err(Failure { kind: Kind::UnknownAccount, .. }) => {
                tracing::warn!("acme: {} does not know the account any more", self.acme.account.directory);
                let account = account::register(&self.acme.account, &self.storage, &self.client).await?;
                // What another account got, this one can't replace.
                order::obtain(&self.acme, &account, None, &stage).await
            }
            obtained => obtained,
        };
        let pem = obtained?;
        let certificate = certificate::read(pem.as_bytes())?;
        certificate::check(&certificate, &self.acme.domains)?;
        Ok((pem, certificate))
    }

    fn fail(&mut self, failure: &Failure, wish: Option<i64>, metrics: &Metrics) {
        self.memory.failed(now(), failure.kind.setback(), wish, fastrand::f64());
        self.count(failure.kind.label(), metrics);
        tracing::warn!(
            "acme: no certificate for {} ({}): {}; next try in {}",
            self.acme.domains.join(", "),
            failure.kind.label(),
            failure.detail,
            length(self.memory.not_before - now())
        );
    }

    fn count(&self, result: &'static str, metrics: &Metrics) {
        self.outlets.iter().for_each(|outlet| metrics.acme_order(&outlet.listener, result));
    }

    fn tell(&self, metrics: &Metrics) {
        let next = self.memory.order_at(self.life(), self.share);
        for outlet in &self.outlets {
            metrics.acme_plan(&outlet.listener, next.max(now()), self.memory.failures);
        }
    }

    async fn keep(&self, pem: String) {
        let storage = self.storage.clone();
        let kept = tokio::task::spawn_blocking(move || storage.keep_certificate(&pem)).await;
        if let Ok(Err(error)) = kept {
            tracing::error!("acme: the new certificate is shown but could not be kept: {error}");
        }
    }

    async fn remember(&self, memory: Memory) -> Result<(), StorageError> {
        let storage = self.storage.clone();
        let kept = tokio::task::spawn_blocking(move || storage.keep_memory(&memory)).await;
        // One that panics has been told.
        kept.unwrap_or(Ok(()))
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A length of time for people.
fn length(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Storage(error) => {
                write!(
                    f,
                    "the storage can't be used: {error}; name a folder that can be written to in `storage`"
                )
            }
            OpenError::Tls(error) => write!(f, "the directory can't be verified: {error}"),
        }
    }
}

impl std::error::Error for OpenError {}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("acme", &self.acme).finish_non_exhaustive()
    }
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").finish_non_exhaustive()
    }
}
