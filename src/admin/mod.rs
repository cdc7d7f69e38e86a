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
