//! `/status`: listeners, certificates, clusters and backends as JSON.

use std::{net::IpAddr, sync::atomic::Ordering, time::SystemTime};

use serde::Serialize;

use super::Admin;
use crate::{
    config::{Listener, Policy, Protocol},
    firewall::Ban,
    upstream::cluster::Cluster,
};

#[derive(Serialize)]
struct Status<'s> {
    version: &'static str,
    state: &'static str,
    listeners: Vec<ListenerStatus<'s>>,
    clusters: Vec<ClusterStatus<'s>>,
}

#[derive(Serialize)]
struct ListenerStatus<'s> {
    name: &'s str,
    address: String,
    tls: bool,
    certificates: Vec<CertificateStatus>,
}

#[derive(Serialize)]
struct CertificateStatus {
    names: Vec<String>,
    serial: String,
    /// Seconds since the epoch.
    not_after: i64,
    /// The same for its OCSP response, where one is configured; 0 while there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    ocsp_until: Option<i64>,
}

#[derive(Serialize)]
struct ClusterStatus<'s> {
    name: &'s str,
    policy: &'static str,
    protocol: &'static str,
    /// So few backends are up that all are used.
    fails_open: bool,
    backends: Vec<BackendStatus<'s>>,
}

#[derive(Serialize)]
struct BackendStatus<'s> {
    address: &'s str,
    weight: u32,
    health: &'static str,
    /// Seconds since the epoch of the last change of health.
    since: f64,
    last_error: Option<String>,
    requests_total: u64,
    requests_in_flight: u64,
    connections: u64,
}

/// The whole state as one JSON document.
pub(super) fn json(admin: &Admin) -> String {
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        state: if admin.draining.load(Ordering::Relaxed) { "draining" } else { "serving" },
        listeners: admin.config.listeners.iter().map(|each| listener(admin, each)).collect(),
        clusters: admin.clusters.iter().map(|each| cluster(admin, each)).collect(),
    };
    // WHY: plain structs with string keys always serialise.
    serde_json::to_string_pretty(&status).unwrap_or_default() + "\n"
}

#[derive(Serialize)]
struct BanStatus {
    address: IpAddr,
    /// Until it ends by itself.
    seconds_left: f64,
}

/// The bans as a JSON list.
pub(super) fn bans(bans: &[Ban]) -> String {
    let bans: Vec<_> = bans
        .iter()
        .map(|ban| BanStatus { address: ban.address, seconds_left: ban.left.as_secs_f64() })
        .collect();
    // WHY: as above.
    serde_json::to_string_pretty(&bans).unwrap_or_default() + "\n"
}

fn listener<'s>(admin: &Admin, listener: &'s Listener) -> ListenerStatus<'s> {
    let certificates = admin.metrics.certificates_of(&listener.name).into_iter();
    ListenerStatus {
        name: &listener.name,
        address: listener.address.to_string(),
        tls: listener.tls.is_some(),
        certificates: certificates
            .map(|each| CertificateStatus {
                names: each.names,
                serial: each.serial,
                not_after: each.not_after,
                ocsp_until: each.staple_until,
            })
            .collect(),
    }
}

fn cluster<'s>(admin: &Admin, cluster: &'s Cluster) -> ClusterStatus<'s> {
    ClusterStatus {
        name: cluster.name(),
        policy: match cluster.config.policy {
            Policy::RoundRobin => "round_robin",
        },
        protocol: match cluster.config.protocol {
            Protocol::Http1 => "http1",
            Protocol::H2 => "h2",
        },
        fails_open: cluster.fails_open(),
        backends: cluster
            .backends
            .iter()
            .map(|backend| {
                let health = backend.status();
                let totals = admin.metrics.backend_totals(cluster.name(), &backend.address);
                BackendStatus {
                    address: &backend.address,
                    weight: backend.weight,
                    health: if health.up { "up" } else { "down" },
                    since: seconds(health.since),
                    last_error: health.last_error,
                    requests_total: totals.requests_total,
                    requests_in_flight: totals.requests_in_flight,
                    connections: totals.connections,
                }
            })
            .collect(),
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
