//! Listening sockets: one for each worker and listener, so that the kernel spreads connections and
//! no worker wakes another.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use crate::config::Config;

/// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// For each worker, the sockets of all listeners.
pub(super) fn listeners(config: &Config) -> Result<Vec<Vec<TcpListener>>, StartError> {
    for listener in &config.listeners {
        let what = || format!("listener \"{}\"", listener.name);
        // WHY: sockets that share a port would be let in beside another instance of ours; this one
        // finds out whether the port is free, and is closed again.
        drop(open(listener.address, false).map_err(|error| failed(what(), listener.address, error))?);
    }
    (0..config.workers)
        .map(|_| {
            config
                .listeners
                .iter()
                .map(|listener| {
                    open(listener.address, true).map_err(|error| {
                        failed(format!("listener \"{}\"", listener.name), listener.address, error)
                    })
                })
                .collect()
        })
        .collect()
}

/// The admin address.
pub(super) fn admin(address: SocketAddr) -> Result<TcpListener, StartError> {
    open(address, false).map_err(|error| failed("the admin address".to_owned(), address, error))
}

fn failed(what: String, address: SocketAddr, error: io::Error) -> StartError {
    StartError::Bind { what, address, error }
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
