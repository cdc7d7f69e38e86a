//! Listening sockets: one for each worker and listener, so that the kernel spreads connections and
//! no worker wakes another. And the admin address, a port or a unix socket.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::StartError;
use crate::config::{Admin, AdminAddress, Config, Listener};

/// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Who may write to the admin socket may ask: its owner and group.
const SOCKET_MODE: u32 = 0o660;

/// Where operators come in.
#[derive(Debug)]
pub(super) enum AdminDoor {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a unix socket; goes with its owner.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    made: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.made) {
            // WHY: what is left behind is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

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

/// The admin address, likewise; `None` if it is a unix socket.
pub(super) fn admin_tcp(admin: &mut Admin) -> Result<Option<AdminDoor>, StartError> {
    let Some(address) = admin.address.tcp() else { return Ok(None) };
    let failed = |error| StartError::Bind { what: "the admin address".to_owned(), address, error };
    let socket = open(address, false).map_err(failed)?;
    admin.address = AdminAddress::Tcp(socket.local_addr().map_err(failed)?);
    Ok(Some(AdminDoor::Tcp(socket)))
}

/// The admin address if it is a unix socket; call it as the user that will remove its file.
pub(super) fn admin_unix(admin: &Admin) -> Result<Option<AdminDoor>, StartError> {
    let AdminAddress::Unix(path) = &admin.address else { return Ok(None) };
    match open_unix(path) {
        Ok((listener, file)) => Ok(Some(AdminDoor::Unix(listener, file))),
        Err(error) => Err(StartError::AdminSocket { path: path.clone(), error }),
    }
}

fn open_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile { path: path.to_owned(), made: identity(path)? };
    // Before it listens nobody can connect, whatever the mode is until here.
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    socket.listen(BACKLOG)?;
    Ok((socket.into(), file))
}

/// Removes the socket of a process that is gone without having done so.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another program answers there")),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

fn failed(listener: &Listener, error: io::Error) -> StartError {
    let what = format!("listener \"{}\"", listener.name);
    StartError::Bind { what, address: listener.address, error }
}

/// Bytes that the kernel may hold of an answer without sending them, before it takes no more: a client
/// that reads nothing costs tens of kilobytes instead of megabytes, and does not pass for one that
/// reads when our kernel enlarges its buffer (decision 0022).
const UNSENT: u32 = 32 * 1024;

fn open(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `[::]` takes IPv4 as well, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    // What is accepted inherits both.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_socket_is_for_owner_and_group_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (listener, file) = open_unix(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, SOCKET_MODE);
        assert!(UnixStream::connect(&path).is_ok());
        let taken = open_unix(&path).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse, "it answers");
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(open_unix(&path).unwrap());
        fs::write(&path, "precious").unwrap();
        assert_eq!(open_unix(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn the_socket_of_a_successor_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (_, file) = open_unix(&path).unwrap();
        fs::rename(&path, folder.path().join("old")).unwrap();
        let successor = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
        drop(successor);
    }
}
