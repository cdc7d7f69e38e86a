//! What operators and Prometheus ask: metrics, liveness, readiness, status.

mod status;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use http::{Method, StatusCode};
use subtle::ConstantTimeEq;

use crate::{
    config::Config,
    firewall::Firewall,
    http::plain::{Asked, Reply},
    observe::Metrics,
    upstream::cluster::Cluster,
};

/// Prometheus' text exposition format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the answers are made of.
#[derive(Debug)]
pub struct Admin {
    pub config: Arc<Config>,
    pub firewall: Arc<Firewall>,
    pub clusters: Vec<Arc<Cluster>>,
    pub metrics: Arc<Metrics>,
    /// Set from the moment a drain starts.
    pub draining: AtomicBool,
}

impl Admin {
    /// Answers one request; takes milliseconds for a scrape of a thousand backends.
    pub fn answer(&self, asked: &Asked<'_>) -> Reply {
        // WHY: what restarts a process that hangs holds no secrets.
        if asked.path != "/healthz" && !self.is_allowed(asked.authorization) {
            return Reply::text(StatusCode::UNAUTHORIZED, "authorization: Bearer TOKEN is needed here\n");
        }
        if let Some(address) = asked.path.strip_prefix("/bans/") {
            return self.ban(asked.method, address);
        }
        if !matches!(*asked.method, Method::GET | Method::HEAD) {
            return Reply::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
        }
        match asked.path {
            "/metrics" => {
                Reply { status: StatusCode::OK, content_type: METRICS_TYPE, body: self.metrics.scrape() }
            }
            "/healthz" => Reply::text(StatusCode::OK, "ok\n"),
            "/readyz" if self.draining.load(Ordering::Relaxed) => {
                Reply::text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
            }
            "/readyz" => Reply::text(StatusCode::OK, "ready\n"),
            "/status" => {
                Reply { status: StatusCode::OK, content_type: "application/json", body: status::json(self) }
            }
            "/bans" => Reply {
                status: StatusCode::OK,
                content_type: "application/json",
                body: status::bans(&self.firewall.bans(Instant::now())),
            },
            _ => Reply::text(
                StatusCode::NOT_FOUND,
                "nothing here; try /metrics, /healthz, /readyz, /status or /bans\n",
            ),
        }
    }

    /// Whether a request shows the token, where there is one.
    fn is_allowed(&self, authorization: Option<&[u8]>) -> bool {
        match self.config.admin.as_ref().and_then(|admin| admin.token.as_ref()) {
            None => true,
            Some(token) => authorization.and_then(bearer).is_some_and(|shown| {
                // WHY: a comparison that ends at the first difference tells how much was right.
                shown.ct_eq(token.as_bytes()).into()
            }),
        }
    }

    /// One address of the list of bans; the only thing to do with it is to lift its ban.
    fn ban(&self, method: &Method, address: &str) -> Reply {
        let Ok(address) = address.parse() else {
            return Reply::text(StatusCode::BAD_REQUEST, "expected an IP address behind /bans/\n");
        };
        if *method != Method::DELETE {
            return Reply::text(
                StatusCode::METHOD_NOT_ALLOWED,
                "DELETE lifts this ban; GET /bans lists all\n",
            );
        }
        if !self.firewall.lift(address, Instant::now()) {
            return Reply::text(StatusCode::NOT_FOUND, format!("{address} is not banned\n"));
        }
        tracing::info!("the ban of {address} was lifted over the admin address");
        Reply::text(StatusCode::OK, format!("the ban of {address} is lifted\n"))
    }
}

/// The token of an `authorization` field; the scheme may be written in any case (RFC 9110 §11.1).
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_is_taken_out_of_its_field() {
        for field in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(bearer(field.as_bytes()), Some(b"abc".as_slice()), "{field}");
        }
        assert_eq!(bearer(b"Bearer "), Some(b"".as_slice()));
        for field in ["", "Bearer", "Basic abc", "Bearerabc", "abc"] {
            assert_eq!(bearer(field.as_bytes()), None, "{field}");
        }
    }
}
