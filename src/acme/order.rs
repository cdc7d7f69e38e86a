//! One order from its first request to the certificate (RFC 8555 §7.4).

use std::{sync::Arc, time::Duration};

use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, CertificateIdentifier, ChallengeType, Identifier,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use tokio::time::{Instant, sleep};

use super::{
    certificate,
    failure::{Failure, Kind},
};
use crate::{
    config::{Acme, AcmeChallenge},
    downstream::tls::CertificateStore,
    proxy::challenges::HttpChallenges,
};

/// How long the directory may take to look at our proofs, and then again to issue.
const PATIENCE: Duration = Duration::from_mins(3);
/// How long a refusal waits for what is still to be said of the other names.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// The longest token that is answered for; they have 43 characters.
const TOKEN_BYTES: usize = 200;

/// Where proofs are shown: whichever address a name leads to, any listener may be the one that is asked.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub(super) tls: Vec<Arc<CertificateStore>>,
    pub(super) http: Arc<HttpChallenges>,
}

/// Orders a certificate; returns its key and chain as PEM.
pub(super) async fn obtain(
    acme: &Acme,
    account: &Account,
    replaces: Option<CertificateIdentifier<'static>>,
    stage: &Stage,
) -> Result<String, Failure> {
    let mut order = place(acme, account, replaces).await?;
    tracing::info!("acme: ordered a certificate for {}: {}", acme.domains.join(", "), order.url());
    let mut proofs = Proofs { stage, shown: Vec::new() };
    prove(acme, &mut order, &mut proofs).await?;
    let polling = RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(PATIENCE);
    match order.poll_ready(&polling).await {
        Ok(OrderStatus::Ready | OrderStatus::Valid) => {}
        Ok(_) => return Err(explain(&mut order, "the order became invalid".to_owned()).await),
        Err(instant_acme::Error::Api(problem)) => return Err(explain(&mut order, problem.to_string()).await),
        Err(error) => return Err(error.into()),
    }
    drop(proofs);
    let request = certificate::request(&acme.domains)?;
    order.finalize_csr(&request.csr_der).await.map_err(perhaps_issued)?;
    let chain = order.poll_certificate(&polling).await.map_err(perhaps_issued)?;
    Ok(format!("{}{chain}", request.key_pem))
}

/// A certificate that the directory may have issued counts against us, whether or not we have got it.
fn perhaps_issued(error: instant_acme::Error) -> Failure {
    let failure = Failure::from(error);
    let kind = if failure.kind == Kind::Unreachable { Kind::Timeout } else { failure.kind };
    Failure { kind, ..failure }
}

/// Tells the directory which certificate the new one replaces, where it wants to know.
async fn place(
    acme: &Acme,
    account: &Account,
    replaces: Option<CertificateIdentifier<'static>>,
) -> Result<Order, Failure> {
    let identifiers: Vec<_> = acme.domains.iter().cloned().map(Identifier::Dns).collect();
    let new = || {
        let new = NewOrder::new(&identifiers);
        match &acme.profile {
            Some(profile) => new.profile(profile),
            None => new,
        }
    };
    if let Some(replaces) = replaces {
        match account.new_order(&new().replaces(replaces)).await {
            Ok(order) => return Ok(order),
            Err(error) => {
                let failure = Failure::from(error);
                // One that can't be named as replaced is no reason to have none: the directory may not know it, or
                // know it as that of another account.
                let is_another_matter = matches!(
                    failure.kind,
                    Kind::RateLimited | Kind::UnknownAccount | Kind::Unreachable | Kind::Timeout
                );
                if is_another_matter {
                    return Err(failure);
                }
                tracing::debug!("acme: ordering without naming the old certificate: {}", failure.detail);
            }
        }
    }
    Ok(account.new_order(&new()).await?)
}

/// Shows a proof for each name that has to be proved, and says that it is there.
async fn prove(acme: &Acme, order: &mut Order, proofs: &mut Proofs<'_>) -> Result<(), Failure> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let authorization = authorization?;
        match authorization.status {
            // Proved not long ago.
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            ref status => {
                let detail = format!("{} is {status:?}", authorization.identifier());
                return Err(Failure::new(Kind::Refused, detail));
            }
        }
        prove_one(acme, authorization, proofs).await?;
    }
    Ok(())
}

async fn prove_one(
    acme: &Acme,
    mut authorization: AuthorizationHandle<'_>,
    proofs: &mut Proofs<'_>,
) -> Result<(), Failure> {
    let (wanted, label) = match acme.challenge {
        AcmeChallenge::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
        AcmeChallenge::Http01 => (ChallengeType::Http01, "http-01"),
    };
    let name = authorization.identifier().to_string();
    // What we did not ask for, we don't prove.
    let Some(domain) = acme.domains.iter().find(|domain| domain.eq_ignore_ascii_case(&name)) else {
        return Err(Failure::new(Kind::BadAnswer, format!("the directory asks for a proof of {name:?}")));
    };
    let Some(mut challenge) = authorization.challenge(wanted) else {
        return Err(Failure::new(Kind::Refused, format!("the directory offers no {label} for {domain}")));
    };
    let proof = challenge.key_authorization();
    match acme.challenge {
        AcmeChallenge::TlsAlpn01 => proofs.show_in_handshake(domain, proof.digest().as_ref())?,
        AcmeChallenge::Http01 => proofs.show_on_request(&challenge.token, proof.as_str())?,
    }
    tracing::info!("acme: {label} for {domain} is ready to be looked at");
    Ok(challenge.set_ready().await?)
}

/// What the directory saw instead of our proofs.
async fn explain(order: &mut Order, problem: String) -> Failure {
    let mut details = Vec::new();
    let deadline = Instant::now() + LAST_WORDS;
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if settled(&mut authorization, deadline).await.is_ok() {
            let name = authorization.identifier();
            let errors = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            details.extend(errors.map(|error| format!("{name}: {error}")));
        }
    }
    match details.as_slice() {
        [] => Failure::new(Kind::Refused, problem),
        details => Failure::new(Kind::Challenge, details.join("; ")),
    }
}

/// The order ends with the first name that fails, when the others may still be looked at.
async fn settled(
    authorization: &mut AuthorizationHandle<'_>,
    deadline: Instant,
) -> Result<(), instant_acme::Error> {
    while authorization.refresh().await?.status == AuthorizationStatus::Pending && Instant::now() < deadline {
        sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

/// Proofs that are shown; they go when it is dropped.
struct Proofs<'s> {
    stage: &'s Stage,
    shown: Vec<Proof>,
}

enum Proof {
    /// Of a domain.
    Handshake(String),
    /// For a token.
    Request(String),
}

impl Proofs<'_> {
    fn show_in_handshake(&mut self, domain: &str, digest: &[u8]) -> Result<(), Failure> {
        let certificate = certificate::of_challenge(domain, digest)?;
        self.shown.push(Proof::Handshake(domain.to_owned()));
        for store in &self.stage.tls {
            let shown = store.set_challenge(domain, &certificate);
            shown.map_err(|error| Failure::new(Kind::BadAnswer, error.to_string()))?;
        }
        Ok(())
    }

    fn show_on_request(&mut self, token: &str, answer: &str) -> Result<(), Failure> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if token.is_empty() || token.len() > TOKEN_BYTES || !token.bytes().all(is_plain) {
            return Err(Failure::new(Kind::BadAnswer, format!("{token:?} is no token")));
        }
        self.shown.push(Proof::Request(token.to_owned()));
        self.stage.http.set(token, answer);
        Ok(())
    }
}

impl Drop for Proofs<'_> {
    fn drop(&mut self) {
        for proof in self.shown.drain(..) {
            match proof {
                Proof::Handshake(domain) => {
                    self.stage.tls.iter().for_each(|store| store.remove_challenge(&domain));
                }
                Proof::Request(token) => self.stage.http.remove(&token),
            }
        }
    }
}
