//! What operators and Prometheus ask: metrics, liveness, readiness, status.

mod status;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::{Method, StatusCode};

use crate::{
    config::Config,
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
    pub clusters: Vec<Arc<Cluster>>,
    pub metrics: Arc<Metrics>,
    /// Set from the moment a drain starts.
    pub draining: AtomicBool,
}

impl Admin {
    /// Answers one request; takes milliseconds for a scrape of a thousand backends.
    pub fn answer(&self, asked: &Asked<'_>) -> Reply {
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
            _ => Reply::text(
                StatusCode::NOT_FOUND,
                "nothing here; try /metrics, /healthz, /readyz or /status\n",
            ),
        }
    }
}
