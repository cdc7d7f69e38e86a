//! Answers that are ours: a status, a reason, a short body; never an internal address.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use http::StatusCode;

use super::{
    flight::Flight,
    patience::{Patience, Wait},
};
use crate::{
    error::Reason,
    http::{
        exchange::{Downstream, Filled},
        fields::{FieldId, Fields},
        message::{BodyLength, ResponseHead},
    },
};

/// Bytes of a request's body that are read for nothing, so that its connection may go on.
const SKIPPED_BODY: usize = 64 * 1024;

/// Sends the answer for `reason` and notes both on the flight.
pub async fn answer<D: Downstream>(
    flight: &mut Flight<'_>,
    down: &mut D,
    reason: Reason,
    patience: &mut Patience<'_>,
) {
    flight.reason = Some(reason);
    flight.status = Some(reason.status());
    let (mut head, body) = compose(reason, &flight.head.fields);
    if matches!(reason, Reason::RateLimited | Reason::Overloaded | Reason::Draining) {
        let seconds = flight.retry_after.map_or(1, |wait| wait.as_millis().div_ceil(1000).max(1));
        head.fields.push(b"retry-after", seconds.to_string().as_bytes());
    }
    send(flight, down, (head, body), patience).await;
}

/// Sends every request of a `redirect_to_https` listener to its https address.
pub async fn redirect<D: Downstream>(flight: &mut Flight<'_>, down: &mut D, patience: &mut Patience<'_>) {
    let Some(location) = location(flight) else {
        return answer(flight, down, Reason::BadRequest, patience).await;
    };
    flight.reason = Some(Reason::RedirectToHttps);
    flight.status = Some(Reason::RedirectToHttps.status());
    let (mut head, body) = compose(Reason::RedirectToHttps, &flight.head.fields);
    head.fields.push(b"location", location.as_bytes());
    send(flight, down, (head, body), patience).await;
}

/// Sends the proof that a challenge asks for.
pub async fn prove<D: Downstream>(
    flight: &mut Flight<'_>,
    down: &mut D,
    proof: &str,
    patience: &mut Patience<'_>,
) {
    flight.status = Some(StatusCode::OK.as_u16());
    let mut head = ResponseHead { body: BodyLength::Exact(proof.len() as u64), ..ResponseHead::default() };
    head.fields.push(b"content-type", b"application/octet-stream");
    head.fields.push(b"content-length", proof.len().to_string().as_bytes());
    head.fields.push(b"date", httpdate::fmt_http_date(std::time::SystemTime::now()).as_bytes());
    send(flight, down, (head, proof.to_owned()), patience).await;
}

fn location(flight: &Flight<'_>) -> Option<String> {
    let head = &flight.head;
    if head.host.is_empty() {
        return None;
    }
    let target = if head.target == "*" { "/" } else { &head.target };
    Some(match flight.listener().https_port {
        None | Some(443) => format!("https://{}{target}", head.host),
        Some(port) => format!("https://{}:{port}{target}", head.host),
    })
}

async fn send<D: Downstream>(
    flight: &mut Flight<'_>,
    down: &mut D,
    (mut head, body): (ResponseHead, String),
    patience: &mut Patience<'_>,
) {
    flight.add_hsts(&mut head);
    let is_head = flight.head.method == http::Method::HEAD;
    flight.head.forget_fields();
    let skipped = poll_fn(|cx| Poll::Ready(skip_body(cx, down))).await;
    if !skipped || flight.worker.is_draining() {
        down.close_after_reply();
    }
    let sent = async {
        down.send_head(&head)?;
        if is_head {
            return poll_fn(|cx| down.poll_finish(cx, None)).await;
        }
        let mut left = body.as_bytes();
        poll_fn(|cx| {
            while !left.is_empty() {
                let count = ready!(down.poll_send(cx, left, true))?;
                left = &left[count..];
            }
            down.poll_finish(cx, None)
        })
        .await
    };
    let limits = &flight.view.config.listeners[flight.client.listener].limits;
    let result = patience.limit(Wait::new(Reason::WriteTimeout, limits.write_timeout), sent).await;
    let whole = matches!(result, Ok(Ok(())));
    if !whole {
        down.abort();
    } else if !is_head {
        flight.bytes_out = body.len() as u64;
    }
}

/// Reads what has arrived of the request's body, without waiting; whether that was all of it.
fn skip_body<D: Downstream>(cx: &mut Context<'_>, down: &mut D) -> bool {
    let mut skipped = 0;
    while skipped <= SKIPPED_BODY {
        match down.poll_fill(cx) {
            Poll::Ready(Ok(Filled::Data)) => {
                let count = down.data().len();
                skipped += count;
                down.consume(count);
            }
            Poll::Ready(Ok(Filled::End)) => return true,
            Poll::Ready(Err(_)) | Poll::Pending => return false,
        }
    }
    false
}

fn compose(reason: Reason, request: &Fields) -> (ResponseHead, String) {
    let json = request.get(FieldId::Accept).is_some_and(wants_json);
    let body = if json {
        format!("{{\"reason\":\"{}\",\"message\":\"{}\"}}\n", reason.code(), reason.text())
    } else {
        format!("{}: {}\n", reason.code(), reason.text())
    };
    let mut head = ResponseHead {
        status: StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        body: BodyLength::Exact(body.len() as u64),
        ..ResponseHead::default()
    };
    let kind: &[u8] = if json { b"application/json" } else { b"text/plain; charset=utf-8" };
    head.fields.push(b"content-type", kind);
    head.fields.push(b"content-length", body.len().to_string().as_bytes());
    head.fields.push(b"date", httpdate::fmt_http_date(std::time::SystemTime::now()).as_bytes());
    head.fields.push(b"x-portcullis-reason", reason.code().as_bytes());
    if reason == Reason::MethodNotAllowed {
        head.fields.push(b"allow", b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH");
    }
    (head, body)
}

/// Whether JSON is asked for by name; `*/*` gets text.
fn wants_json(accept: &[u8]) -> bool {
    memchr::memmem::find(&accept.to_ascii_lowercase(), b"application/json").is_some()
}
