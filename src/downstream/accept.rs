//! The accept loop of one listener on one worker: it ends with a drain and with nothing else.

use std::{
    future::ready,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::yield_now,
};

use super::{admission::Admission, announcement, connection, tls::Acceptor};
use crate::{
    error::Reason,
    observe::Throttle,
    proxy::worker::{Seat, Worker, enforced, reject},
};

/// After an error that has no cause in the connection itself, such as no free file descriptor.
const PAUSE: Duration = Duration::from_millis(50);

/// Shared by all workers and listeners: what fails one accept fails them all.
static COMPLAINTS: Mutex<Throttle> = Mutex::new(Throttle::new(Duration::from_secs(1)));

/// What a listener's connections need beside the worker.
#[derive(Debug)]
pub struct Door {
    /// Index into the configuration's listeners.
    pub listener: usize,
    pub socket: TcpListener,
    pub tls: Option<Acceptor>,
    pub admission: Arc<Admission>,
}

/// Accepts until the worker drains; what the kernel has queued by then is still served.
pub async fn run(worker: Rc<Worker>, door: Rc<Door>) {
    // A drain waits for it as for a connection.
    let _seat = Seat::take(&worker);
    loop {
        tokio::select! {
            biased;
            accepted = door.socket.accept() => welcome(&worker, &door, accepted).await,
            () = worker.drained() => break,
        }
    }
    // The runtime has yet to hear of those that came last.
    yield_now().await;
    loop {
        tokio::select! {
            biased;
            accepted = door.socket.accept() => welcome(&worker, &door, accepted).await,
            () = ready(()) => return,
        }
    }
}

async fn welcome(worker: &Rc<Worker>, door: &Door, accepted: io::Result<(TcpStream, SocketAddr)>) {
    match accepted {
        Ok((stream, peer)) => open(worker, door, stream, peer),
        Err(error) if is_the_connections_own(&error) => {}
        Err(error) => {
            complain(worker, door, &error);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn complain(worker: &Worker, door: &Door, error: &io::Error) {
    let mut complaints = COMPLAINTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(suppressed) = complaints.admit(Instant::now()) {
        let view = worker.view();
        let name = &view.listeners[door.listener].name;
        tracing::warn!("accepting on listener {name} failed: {error} ({suppressed} more of these not shown)");
    }
}

/// Errors that the peer caused before its connection was accepted (accept(2)).
fn is_the_connections_own(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

fn open(worker: &Rc<Worker>, door: &Door, stream: TcpStream, peer: SocketAddr) {
    let announces = announcement::is_due(worker, door.listener, peer.ip());
    let admission = &door.admission;
    let admitted = if announces {
        admission.admit_unnamed()
    } else if passes_firewall(worker, door.listener, peer.ip()) {
        admission.admit(peer.ip())
    } else {
        return;
    };
    let Some(admitted) = admitted else {
        return reject(worker, door.listener, Reason::ConnectionLimit);
    };
    // A handshake costs as much as ten requests. A connection in clear text gets an answer.
    if door.tls.is_some() && worker.is_shedding() {
        worker.view().listeners[door.listener].cells.handshake("overloaded", Duration::ZERO);
        return worker.shard.error(Reason::Overloaded);
    }
    // Taken here: a drain waits for those who sit, and the task has yet to begin.
    let seat = Seat::take(worker);
    let arrival = connection::Arrival { listener: door.listener, stream, peer, admitted, seat, announces };
    tokio::task::spawn_local(connection::serve(worker.clone(), arrival, door.tls.clone()));
}

/// Asks the firewall for a connection of this address, which is the client's; a refusal is on record.
pub fn passes_firewall(worker: &Worker, listener: usize, address: IpAddr) -> bool {
    let view = worker.view();
    let refusal = view.firewall.connection(listener, address, Instant::now()).err();
    let enforced = refusal.and_then(|refusal| enforced(refusal, &view.listeners[listener].cells));
    if let Some(refusal) = &enforced {
        reject(worker, listener, refusal.reason);
    }
    enforced.is_none()
}
