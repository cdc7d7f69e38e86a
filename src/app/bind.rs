//! Listening sockets: one for each worker and listener, so that the kernel spreads connections and
//! no worker wakes another.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use crate::config::{Config, Listener};

/// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// For each worker, the sockets of all listeners.
pub(super) fn listeners(config: &Config) -> Result<Vec<Vec<TcpListener>>, StartError> {
    let first: Vec<TcpListener> = config.listeners.iter().map(first).collect::<Result<_, _>>()?;
    let addresses: Vec<SocketAddr> = first
        .iter()
        .zip(&config.listeners)
        .map(|(socket, listener)| socket.local_addr().map_err(|error| failed(listener, error)))
        .collect::<Result<_, _>>()?;
    let others = (1..config.workers).map(|_| {
        let each = config.listeners.iter().zip(&addresses);
        each.map(|(listener, address)| open(*address, true).map_err(|error| failed(listener, error)))
            .collect()
    });
    std::iter::once(Ok(first)).chain(others).collect()
}

/// The first worker's socket; the others follow to its port, which the kernel may have chosen.
fn first(listener: &Listener) -> Result<TcpListener, StartError> {
    if listener.address.port() != 0 {
        // WHY: sockets that share a port would be let in beside another instance of ours; this one
        // finds out whether the port is free, and is closed again.
        drop(open(listener.address, false).map_err(|error| failed(listener, error))?);
    }
    open(listener.address, true).map_err(|error| failed(listener, error))
}

/// The admin address.
pub(super) fn admin(address: SocketAddr) -> Result<TcpListener, StartError> {
    let failed = |error| StartError::Bind { what: "the admin address".to_owned(), address, error };
    open(address, false).map_err(failed)
}

fn failed(listener: &Listener, error: io::Error) -> StartError {
    let what = format!("listener \"{}\"", listener.name);
    StartError::Bind { what, address: listener.address, error }
}

fn open(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `[::]` takes IPv4 as well, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
