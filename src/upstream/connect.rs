//! Makes a connection to a backend: name, TCP, TLS, all under one deadline.
//!
//! Whatever fails in here failed before a byte of a request was sent, so another backend may be
//! tried for any request.

use std::{fmt, io, net::SocketAddr, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::cluster::{Backend, Cluster};
use crate::{error::Reason, http::transport::Transport};

/// Why there is no connection.
#[derive(Debug)]
pub struct ConnectError {
    /// This machine had no descriptor, port or memory left: it says nothing of the backend.
    pub local: bool,
    /// A connect or TLS reason of the upstream side.
    pub reason: Reason,
    /// For the log and the status page; holds addresses, so it is not for clients.
    pub detail: String,
}

/// Connects to a backend within the cluster's `connect_timeout`; the first bytes of the connection,
/// before TLS, are those of `header`, and nothing else was sent on it yet.
///
/// Cancel safe: dropping the future closes whatever was open.
pub async fn connect(cluster: &Cluster, backend: &Backend, header: &[u8]) -> Result<Transport, ConnectError> {
    connect_port(backend, backend.port, cluster.config.connect_timeout, header).await
}

/// Connects to a backend on any port of its host, within `limit`.
pub(super) async fn connect_port(
    backend: &Backend,
    port: u16,
    limit: Duration,
    header: &[u8],
) -> Result<Transport, ConnectError> {
    // A limit too far off for the clock is no limit; a year stands for it.
    let now = Instant::now();
    let deadline = now.checked_add(limit).unwrap_or(now + Duration::from_hours(365 * 24));
    let opened = open(backend, port, deadline, header).await;
    let result = opened.map_err(|failure| failure.explain(backend, port, limit));
    if result.is_err() {
        backend.distrust_addresses();
    }
    result
}

async fn open(backend: &Backend, port: u16, deadline: Instant, header: &[u8]) -> Result<Transport, Failure> {
    let addresses = timeout_at(deadline, backend.socket_addresses(port)).await;
    let addresses = addresses.map_err(|_| Failure::Timeout("looking up"))?.map_err(Failure::Lookup)?;
    let mut stream = open_first(&addresses, deadline).await?;
    if !header.is_empty() {
        // Never waits: a new connection has room for it.
        stream.write_all(header).await.map_err(Failure::Connect)?;
    }
    let Some(tls) = &backend.tls else { return Ok(Transport::Tcp(stream)) };
    match timeout_at(deadline, tls.handshake(stream)).await {
        Ok(Ok(stream)) => Ok(Transport::UpstreamTls(Box::new(stream))),
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
            // What this machine lacks for one address is not what is wrong with the others.
            Ok(Err(error)) if index > 0 && is_local(&error) => {}
            Ok(Err(error)) => failure = Failure::Connect(unless_for_good(error, address)),
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

/// A machine without IPv6 has no address of its own to connect from. That looks like a want of ports, and does not pass.
fn unless_for_good(error: io::Error, address: SocketAddr) -> io::Error {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable if address.is_ipv6() => io::ErrorKind::NetworkUnreachable.into(),
        _ => error,
    }
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
        let local = matches!(&self, Failure::Connect(error) if is_local(error));
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
        ConnectError { local, reason, detail }
    }
}

/// Whether the connection was never tried, for lack of something here (socket(2), connect(2)).
fn is_local(error: &io::Error) -> bool {
    // On Linux; the standard library has no kinds for the first three.
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    const ENOBUFS: i32 = 105;
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS))
        || matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::AddrNotAvailable)
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

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;
    use crate::{
        config,
        upstream::testing::{Authority, closed_port, cluster_config, tls_backend},
    };

    fn cluster(address: &str) -> Cluster {
        Cluster::new(cluster_config(&[address]), None).expect("no TLS")
    }

    async fn try_connect(cluster: &Cluster) -> Result<Transport, ConnectError> {
        connect(cluster, &cluster.backends[0], b"").await
    }

    #[tokio::test]
    async fn connects_over_tcp_without_delay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let cluster = cluster(&listener.local_addr().expect("bound").to_string());
        let Ok(Transport::Tcp(stream)) = try_connect(&cluster).await else { panic!("not clear text") };
        assert!(stream.nodelay().expect("open"));
    }

    #[tokio::test]
    async fn connects_over_tls() {
        let authority = Authority::new();
        let address = tls_backend(authority.acceptor("127.0.0.1", 2100, &[])).await;
        let config =
            config::Cluster { tls: Some(authority.tls()), ..cluster_config(&[&address.to_string()]) };
        let cluster = Cluster::new(config, None).expect("a CA");
        let Ok(Transport::UpstreamTls(mut stream)) = try_connect(&cluster).await else { panic!("not TLS") };
        let mut line = String::new();
        stream.read_to_string(&mut line).await.expect("a clean end");
        assert_eq!(line, "hello");
    }

    #[tokio::test]
    async fn a_closed_port_is_connect_refused() {
        let (_socket, address) = closed_port();
        let error = try_connect(&cluster(&address.to_string())).await.expect_err("nobody listens");
        assert_eq!(error.reason, Reason::ConnectRefused);
        assert!(error.detail.starts_with(&format!("connect to {address} failed: ")), "{error}");
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_connect_failed() {
        let error = try_connect(&cluster("no such name:80")).await.expect_err("no address");
        assert_eq!(error.reason, Reason::ConnectFailed);
        assert!(error.detail.starts_with("looking up \"no such name\" failed: "), "{error}");
    }

    #[tokio::test]
    async fn a_name_with_several_addresses_is_tried_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let open = listener.local_addr().expect("bound");
        let (_socket, closed) = closed_port();
        let deadline = Instant::now() + Duration::from_secs(5);
        let stream = open_first(&[closed, open], deadline).await.expect("the second one is open");
        assert_eq!(stream.peer_addr().expect("connected"), open);
        let failure = open_first(&[closed, closed], deadline).await.expect_err("both are closed");
        assert!(
            matches!(failure, Failure::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused)
        );
    }

    #[tokio::test]
    async fn a_backlog_that_is_full_is_connect_timeout() {
        let listener =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        listener.listen(0).expect("listening");
        let address = listener.local_addr().expect("bound").as_socket().expect("an IP address");
        let mut config = cluster_config(&[&address.to_string()]);
        config.connect_timeout = Duration::from_millis(100);
        let cluster = Cluster::new(config, None).expect("no TLS");
        // Nobody accepts, so these fill the backlog until one gets no answer.
        let mut filling = Vec::new();
        let error = loop {
            match try_connect(&cluster).await {
                Ok(stream) => filling.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.reason, Reason::ConnectTimeout);
        assert_eq!(error.detail, format!("connect to {address} timed out after 100ms"));
    }

    #[tokio::test]
    async fn a_handshake_that_stalls_is_connect_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let tls = Some(Authority::new().tls());
        let connect_timeout = Duration::from_millis(50);
        let config = config::Cluster { tls, connect_timeout, ..cluster_config(&[&address.to_string()]) };
        let cluster = Cluster::new(config, None).expect("a CA");
        let error = try_connect(&cluster).await.expect_err("nobody accepts");
        assert_eq!(error.reason, Reason::ConnectTimeout);
        assert_eq!(error.detail, format!("TLS handshake with {address} timed out after 50ms"));
    }

    #[tokio::test]
    async fn another_port_shows_in_the_words() {
        let ((_first, address), (_second, other)) = (closed_port(), closed_port());
        let cluster = cluster(&address.to_string());
        let error =
            connect_port(&cluster.backends[0], other.port(), Duration::MAX, b"").await.expect_err("closed");
        assert!(
            error.detail.starts_with(&format!("connect to 127.0.0.1 on port {} ", other.port())),
            "{error}"
        );
    }

    #[test]
    fn what_is_lacking_here_is_no_fault_of_the_backend() {
        let local = |code| is_local(&io::Error::from_raw_os_error(code));
        // EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL.
        assert_eq!([24, 23, 105, 12, 99].map(local), [true; 5]);
        // ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT.
        assert_eq!([111, 113, 101, 110].map(local), [false; 4]);
    }

    #[test]
    fn every_kind_of_connect_failure_has_its_reason() {
        assert_eq!(connect_reason(io::ErrorKind::ConnectionRefused), Reason::ConnectRefused);
        assert_eq!(connect_reason(io::ErrorKind::TimedOut), Reason::ConnectTimeout);
        for kind in [io::ErrorKind::HostUnreachable, io::ErrorKind::AddrNotAvailable, io::ErrorKind::Other] {
            assert_eq!(connect_reason(kind), Reason::ConnectFailed);
        }
    }
}
