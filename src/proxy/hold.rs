//! A small body is waited for before a backend is chosen, so that who sends slowly holds none.
//!
//! Only what is announced to be small is waited for: it is all going to come, whatever is answered,
//! and fits into the buffer that its connection has anyway. A stream may wait for an answer before it
//! goes on, and so does who asked for leave to send (RFC 9110 §10.1.1).

use std::{future::poll_fn, task::Poll, time::Duration};

use super::{
    flight::Flight,
    patience::{Patience, Wait},
};
use crate::{
    config::Limits,
    error::Reason,
    http::{
        exchange::{BodyError, Downstream},
        message::BodyLength,
    },
};

/// Waits until the body is here as a whole, if it is one to wait for.
///
/// # Errors
/// The reason why it will never be here.
pub async fn hold<D: Downstream>(
    flight: &mut Flight<'_>,
    down: &mut D,
    patience: &mut Patience<'_>,
) -> Result<(), Reason> {
    let view = flight.view.clone();
    let limits = &view.config.listeners[flight.client.listener].limits;
    let Some(count) = small_body(flight, limits) else { return Ok(()) };
    // Mostly it came with its head.
    let first = poll_fn(|cx| Poll::Ready(down.poll_hold(cx, count))).await;
    if let Poll::Ready(result) = first {
        return result.map_err(|error| reason_of(&error));
    }
    flight.waited = true;
    let mut held = down.held();
    let result = poll_fn(|cx| {
        if let Poll::Ready(result) = down.poll_hold(cx, count) {
            return Poll::Ready(result.map_err(|error| reason_of(&error)));
        }
        let moved = held != down.held();
        held = down.held();
        patience.poll(cx, wait(flight, limits, held), moved).map(Err)
    })
    .await;
    if result.is_err() {
        flight.bytes_in = held as u64;
    }
    result
}

/// The length of a body that is to be waited for.
fn small_body(flight: &Flight<'_>, limits: &Limits) -> Option<usize> {
    match flight.head.body {
        BodyLength::Exact(length)
            if (1..=limits.request_buffer).contains(&length) && !flight.head.expects_continue =>
        {
            usize::try_from(length).ok()
        }
        _ => None,
    }
}

/// The deadlines of a body that goes straight to a backend hold for this one as well.
fn wait(flight: &Flight<'_>, limits: &Limits, held: usize) -> Wait {
    let earned = (held as u64).checked_div(limits.body_min_rate);
    let floor = earned.map(|earned| flight.started + limits.body_rate_grace + Duration::from_secs(earned));
    Wait { until: floor, ..Wait::new(Reason::BodyTimeout, limits.body_idle_timeout) }
}

fn reason_of(error: &BodyError) -> Reason {
    match error {
        BodyError::Malformed => Reason::BadRequest,
        BodyError::TooLarge => Reason::HeadTooLarge,
        BodyError::Closed => Reason::ClientClosed,
    }
}
