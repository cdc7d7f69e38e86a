//! The life of a request: route, pick, attempt, maybe again, record.

mod answer;
mod attempt;
pub mod challenges;
pub mod client;
pub mod flight;
mod forward;
pub mod forwarded;
pub mod handshakes;
mod hold;
pub mod load;
pub mod patience;
pub mod policies;
mod relay;
pub mod route;
pub mod turns;
pub mod view;
pub mod worker;

use std::sync::Arc;

use attempt::{Aim, Failed};
use flight::Flight;
use http::Method;
use patience::Patience;
use tokio::time::Instant;

use worker::enforced;

use crate::{
    error::Reason,
    firewall,
    http::{exchange::Downstream, message::BodyLength},
    upstream::balance::Tried,
};

/// Serves one request: when this returns, the client has its answer or is gone. Dropping `flight`
/// writes the record.
pub async fn serve<D: Downstream>(flight: &mut Flight<'_>, down: &mut D, patience: &mut Patience<'_>) {
    respond(flight, down, patience).await;
    flight.ended = Some(Instant::now());
}

async fn respond<D: Downstream>(flight: &mut Flight<'_>, down: &mut D, patience: &mut Patience<'_>) {
    if let Some(proof) = challenge(flight) {
        return answer::prove(flight, down, &proof, patience).await;
    }
    let redirects = flight.view.config.listeners[flight.client.listener].redirect_to_https;
    let cluster = if redirects { None } else { route(flight) };
    if let Err(reason) = admit(flight) {
        return answer::answer(flight, down, reason, patience).await;
    }
    if !flight.may_carry() {
        return answer::answer(flight, down, Reason::Misdirected, patience).await;
    }
    if redirects {
        return answer::redirect(flight, down, patience).await;
    }
    if let (BodyLength::Exact(length), Some(limit)) = (flight.head.body, flight.body_limit())
        && length > limit
    {
        return answer::answer(flight, down, Reason::BodyTooLarge, patience).await;
    }
    let Some(cluster) = cluster else {
        return answer::answer(flight, down, Reason::NoRoute, patience).await;
    };
    if let Err(reason) = hold::hold(flight, down, patience).await {
        return fail(flight, down, patience, Failed::refused(reason)).await;
    }
    // Held until the request is over.
    let Some(_place) = flight.worker.enter() else {
        return answer::answer(flight, down, Reason::Overloaded, patience).await;
    };
    if let Err(failed) = try_backends(flight, down, patience, cluster).await {
        fail(flight, down, patience, failed).await;
    }
}

/// Ends a request that got no complete response.
async fn fail<D: Downstream>(
    flight: &mut Flight<'_>,
    down: &mut D,
    patience: &mut Patience<'_>,
    failed: Failed,
) {
    flight.reason = Some(failed.reason);
    if failed.reason == Reason::ClientClosed {
        // Nobody is there to answer, and 499 is a status for the log alone.
        down.abort();
    } else if !failed.answered {
        answer::answer(flight, down, failed.reason, patience).await;
    }
}

/// Answers a request that was refused before it could be routed.
pub async fn refuse<D: Downstream>(
    flight: &mut Flight<'_>,
    down: &mut D,
    patience: &mut Patience<'_>,
    reason: Reason,
) {
    answer::answer(flight, down, reason, patience).await;
    flight.ended = Some(Instant::now());
}

/// What a certificate directory asks for on a clear-text listener: before routes and their rules, since it comes from
/// addresses that nobody knows beforehand, and learns nothing but what it is waiting for.
fn challenge(flight: &Flight<'_>) -> Option<Arc<str>> {
    let asks = flight.client.tls.is_none() && flight.head.method == Method::GET;
    if asks { flight.worker.challenges.answer(flight.head.path()) } else { None }
}

/// Asks the firewall; a dry run only counts.
fn admit(flight: &mut Flight<'_>) -> Result<(), Reason> {
    let request = firewall::Request {
        listener: flight.client.listener,
        route: flight.route,
        client_ip: flight.client_ip,
        forwarded: flight.client_ip != flight.client.ip,
    };
    let head = &*flight.head;
    let asked = flight.view.firewall.request(
        request,
        |name| head.fields.find(name.as_bytes()),
        flight.started.into_std(),
    );
    match asked.err().and_then(|refusal| enforced(refusal, &flight.listener().cells)) {
        None => Ok(()),
        Some(refusal) => {
            (flight.retry_after, flight.blameless) = (refusal.retry_after, refusal.shared);
            Err(refusal.reason)
        }
    }
}

/// Finds the request's route and notes it; returns its cluster.
fn route(flight: &mut Flight<'_>) -> Option<usize> {
    let route = flight.listener().routes.find(&flight.head.host, flight.head.path())?;
    let cluster = flight.view.config.routes[route].cluster;
    flight.route = Some(route);
    flight.cluster = Some(cluster);
    Some(cluster)
}

/// Tries backends until one answers or none may be tried; one twice only where nobody else is left and it was a kept-alive
/// connection that had its end.
async fn try_backends<D: Downstream>(
    flight: &mut Flight<'_>,
    down: &mut D,
    patience: &mut Patience<'_>,
    cluster: usize,
) -> Result<(), Failed> {
    let view = flight.view.clone();
    let retries = view.config.clusters[cluster].retries;
    let mut tried = Tried::default();
    let mut last = Failed::refused(Reason::NoHealthyBackend);
    let mut next = view.clusters[cluster].pick(&tried);
    // One that may be well: its connection had its end.
    let mut again = None;
    while let Some(backend) = next {
        let fresh = last.stale || tried.contains(backend);
        tried.insert(backend);
        flight.backend = Some(backend);
        flight.attempts += 1;
        if flight.attempts > 1 {
            view.clusters[cluster].cells.retry();
        }
        let aim = Aim { cluster, backend, fresh };
        match attempt::attempt(flight, down, patience, aim).await {
            Ok(()) => return Ok(()),
            Err(failed) => last = failed,
        }
        if !last.retriable || flight.attempts > retries {
            break;
        }
        again = last.stale.then_some(backend).or(again);
        next = view.clusters[cluster].pick(&tried).or_else(|| again.take());
    }
    Err(last)
}
