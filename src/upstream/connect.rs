//! Makes a connection to a backend: name, TCP, TLS, all under one deadline.
//!
//! Whatever fails in here failed before a byte of a request was sent, so another backend may be
//! tried for any request.

use std::{fmt, io, net::SocketAddr, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    cluster::{Backend, Cluster},
    tls::TlsStream,
};
use crate::error::Reason;

/// A connection that nothing was sent on yet.
#[derive(Debug)]
pub enum Connected {
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
}

/// Why there is no connection.
#[derive(Debug)]
pub struct ConnectError {
    /// A connect or TLS reason of the upstream side.
    pub reason: Reason,
    /// For the log and the status page; holds addresses, so it is not for clients.
    pub detail: String,
}

/// Connects to a backend within the cluster's `connect_timeout`.
///
/// Cancel safe: dropping the future closes whatever was open.
pub async fn connect(cluster: &Cluster, backend: &Backend) -> Result<Connected, ConnectError> {
    connect_port(backend, backend.port, cluster.config.connect_timeout).await
}

/// Connects to a backend on any port of its host, within `limit`.
pub(super) async fn connect_port(
    backend: &Backend,
    port: u16,
    limit: Duration,
) -> Result<Connected, ConnectError> {
    // A limit too far off for the clock is no limit; a year stands for it.
    let now = Instant::now();
    let deadline = now.checked_add(limit).unwrap_or(now + Duration::from_secs(365 * 86_400));
    let result = open(backend, port, deadline).await.map_err(|failure| failure.explain(backend, port, limit));
    if result.is_err() {
        backend.distrust_addresses();
    }
    result
}

async fn open(backend: &Backend, port: u16, deadline: Instant) -> Result<Connected, Failure> {
    let addresses = timeout_at(deadline, backend.socket_addresses(port)).await;
    let addresses = addresses.map_err(|_| Failure::Timeout("looking up"))?.map_err(Failure::Lookup)?;
    let stream = open_first(&addresses, deadline).await?;
    let Some(tls) = &backend.tls else { return Ok(Connected::Tcp(stream)) };
    match timeout_at(deadline, tls.handshake(stream)).await {
        Ok(Ok(stream)) => Ok(Connected::Tls(Box::new(stream))),
        Ok(Err(error)) => Err(Failure::Tls(error.reason, error.detail)),
        Err(_) => Err(Failure::Timeout("TLS handshake with")),
    }
}

/// Tries the addresses in order; each one may use an even part of the time that is left, so that
/// one that never answers leaves time for the next.
async fn open_first(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, Failure> {
    let mut failure = Failure::Timeout("connect to");
    for (index, &address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let until = now + deadline.saturating_duration_since(now) / left;
        match timeout_at(until, open_address(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = Failure::Connect(error),
            Err(_) => failure = Failure::Timeout("connect to"),
        }
    }
    Err(failure)
}

async fn open_address(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // With nobody listening on a local port of the ephemeral range, the kernel may one day choose
    // that very port for our end and connect the socket to itself.
    if address.ip().is_loopback() && stream.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What went wrong, before it is put into words.
#[derive(Debug)]
enum Failure {
    /// The deadline passed in this step.
    Timeout(&'static str),
    Lookup(io::Error),
    Connect(io::Error),
    Tls(Reason, String),
}

impl Failure {
    fn explain(self, backend: &Backend, port: u16, limit: Duration) -> ConnectError {
        let mut place = backend.address.clone();
        if port != backend.port {
            place = format!("{} on port {port}", backend.host);
        }
        let (reason, detail) = match self {
            Failure::Timeout(step) => {
                (Reason::ConnectTimeout, format!("{step} {place} timed out after {limit:?}"))
            }
            Failure::Lookup(error) => {
                (Reason::ConnectFailed, format!("looking up \"{}\" failed: {error}", backend.host))
            }
            Failure::Connect(error) => {
                (connect_reason(error.kind()), format!("connect to {place} failed: {error}"))
            }
            Failure::Tls(reason, detail) => (reason, format!("TLS handshake with {place} failed: {detail}")),
        };
        ConnectError { reason, detail }
    }
}

fn connect_reason(kind: io::ErrorKind) -> Reason {
    match kind {
        io::ErrorKind::ConnectionRefused => Reason::ConnectRefused,
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ => Reason::ConnectFailed,
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for ConnectError {}
