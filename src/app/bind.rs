//! Listening sockets: one for each worker and listener, so that the kernel spreads connections and
//! no worker wakes another.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use crate::config::{Admin, Config, Listener};

/// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// For each worker, the sockets of all listeners; puts the kernel's choice in place of a port 0.
pub(super) fn listeners(config: &mut Config) -> Result<Vec<Vec<TcpListener>>, StartError> {
    let first: Vec<TcpListener> = config.listeners.iter_mut().map(first).collect::<Result<_, _>>()?;
    let others = (1..config.workers).map(|_| {
        let each = config.listeners.iter();
        each.map(|listener| open(listener.address, true).map_err(|error| failed(listener, error))).collect()
    });
    std::iter::once(Ok(first)).chain(others).collect()
}

/// The first worker's socket; the others follow to its port.
fn first(listener: &mut Listener) -> Result<TcpListener, StartError> {
    if listener.address.port() != 0 {
        // WHY: sockets that share a port would be let in beside another instance of ours; this one
        // finds out whether the port is free, and is closed again.
        drop(open(listener.address, false).map_err(|error| failed(listener, error))?);
    }
    let opened = open(listener.address, true).and_then(|socket| Ok((socket.local_addr()?, socket)));
    let (address, socket) = opened.map_err(|error| failed(listener, error))?;
    listener.address = address;
    Ok(socket)
}

/// The admin address, likewise.
pub(super) fn admin(admin: &mut Admin) -> Result<TcpListener, StartError> {
    let address = admin.address;
    let failed = |error| StartError::Bind { what: "the admin address".to_owned(), address, error };
    let socket = open(address, false).map_err(failed)?;
    admin.address = socket.local_addr().map_err(failed)?;
    Ok(socket)
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
