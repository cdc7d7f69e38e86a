//! One downstream connection from accept to close.

use std::{future::poll_fn, net::SocketAddr, rc::Rc, sync::Arc};

use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::server::TlsStream;

use super::{admission::Admitted, h1, h2, tls};
use crate::{
    http::transport::Transport,
    observe::ListenerCells,
    proxy::worker::{Client, Seat, Worker},
};

/// A connection as it was accepted.
#[derive(Debug)]
pub struct Arrival {
    pub listener: usize,
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub admitted: Admitted,
}

/// Counts the connection as open, and a panic of its task as one.
struct Counted {
    worker: Rc<Worker>,
    cells: Arc<ListenerCells>,
}

impl Counted {
    fn new(worker: &Rc<Worker>, listener: usize) -> Self {
        let cells = worker.view().listeners[listener].cells.clone();
        cells.connection_opened();
        Counted { worker: worker.clone(), cells }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.cells.connection_closed();
        if std::thread::panicking() {
            self.worker.shard.panic();
        }
    }
}

/// One of the handshakes that a worker runs at once.
struct Handshaking<'w>(&'w Worker);

impl<'w> Handshaking<'w> {
    fn begin(worker: &'w Worker, limit: usize) -> Option<Self> {
        let running = worker.handshakes.get();
        (running < limit).then(|| {
            worker.handshakes.set(running + 1);
            Handshaking(worker)
        })
    }
}

impl Drop for Handshaking<'_> {
    fn drop(&mut self) {
        self.0.handshakes.set(self.0.handshakes.get() - 1);
    }
}

/// Serves a connection until it ends; never fails, what goes wrong is counted.
pub async fn serve(worker: Rc<Worker>, arrival: Arrival, acceptor: Option<tls::Acceptor>) {
    let _counted = Counted::new(&worker, arrival.listener);
    let _admitted = arrival.admitted;
    let seat = Seat::take(&worker);
    poll_fn(|cx| {
        seat.remember(cx.waker());
        std::task::Poll::Ready(())
    })
    .await;
    // WHY: fails only on a socket that is already dead, and the next read says so.
    let _ = arrival.stream.set_nodelay(true);
    let mut client = Client { listener: arrival.listener, peer: arrival.peer, tls: None };
    let Some(acceptor) = acceptor else {
        return h1::serve(&worker, &client, Transport::Tcp(arrival.stream)).await;
    };
    let Some(stream) = handshake(&worker, arrival.listener, &acceptor, arrival.stream).await else { return };
    client.tls = Some(tls::facts(&stream));
    let chose_h2 = tls::is_h2(&stream);
    let transport = Transport::Tls(Box::new((*stream).into()));
    if chose_h2 {
        Box::pin(h2::serve(&worker, &client, transport)).await;
    } else {
        h1::serve(&worker, &client, transport).await;
    }
}

/// The TLS handshake, within its deadline and the cap on how many run at once.
async fn handshake(
    worker: &Worker,
    listener: usize,
    acceptor: &tls::Acceptor,
    stream: TcpStream,
) -> Option<Box<TlsStream<TcpStream>>> {
    let view = worker.view();
    let limits = &view.config.listeners[listener].limits;
    let cells = &view.listeners[listener].cells;
    let start = Instant::now();
    let Some(_running) = Handshaking::begin(worker, limits.concurrent_handshakes) else {
        cells.handshake("overloaded", start.elapsed());
        return None;
    };
    let handshake = Box::pin(acceptor.accept(stream));
    let result = tokio::time::timeout(limits.handshake_timeout, handshake).await;
    let (outcome, stream) = match result {
        Ok(Ok(stream)) => ("ok", Some(Box::new(stream))),
        Ok(Err(error)) => (tls::failure(&error), None),
        Err(_) => ("timeout", None),
    };
    cells.handshake(outcome, start.elapsed());
    stream
}
