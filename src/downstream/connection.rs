//! One downstream connection from accept to close.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use tokio::{net::TcpStream, time::Instant};

use super::{accept, admission::Admitted, announcement, h1, h2, tls};
use crate::{
    error::Reason,
    http::{proxy_protocol::Ends, tls_stream::TlsStream, transport::Transport},
    observe::ListenerCells,
    proxy::{
        patience::{Patience, Wait},
        worker::{Client, Seat, TlsFacts, Worker, reject},
    },
};

/// A connection as it was accepted.
#[derive(Debug)]
pub struct Arrival {
    pub listener: usize,
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub admitted: Admitted,
    pub seat: Seat,
    /// It begins with a PROXY protocol header, and is not counted under an address before that.
    pub announces: bool,
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

/// Serves a connection until it ends; never fails, what goes wrong is counted.
pub async fn serve(worker: Rc<Worker>, arrival: Arrival, acceptor: Option<tls::Acceptor>) {
    let _counted = Counted::new(&worker, arrival.listener);
    let Arrival { listener, mut stream, peer, mut admitted, seat, announces } = arrival;
    poll_fn(|cx| {
        seat.remember(cx.waker());
        Poll::Ready(())
    })
    .await;
    let mut client = Client::new(listener, peer);
    if announces {
        // Boxed, like the requests: few connections begin so, and those don't for long.
        let announced = Box::pin(announcement::receive(&worker, &client, &mut stream)).await;
        let Ok(ends) = announced else { return };
        if let Some(ends) = ends {
            client.name(ends);
        }
        if !accept::passes_firewall(&worker, listener, client.ip) {
            return;
        }
        if !admitted.name(client.ip) {
            return reject(&worker, listener, Reason::ConnectionLimit);
        }
    }
    if client.ends.is_none()
        && worker.view().names_clients
        && let Ok(reached) = stream.local_addr()
    {
        client.name(Ends::new(peer, reached));
    }
    let Some(acceptor) = acceptor else {
        return h1::serve(&worker, &client, Transport::Tcp(stream)).await;
    };
    let accepted = handshake(&worker, listener, &acceptor, stream).await;
    let Some((stream, facts)) = accepted else { return };
    if tls::is_challenge(&stream) {
        return;
    }
    client.tls = Some(facts);
    let chose_h2 = tls::is_h2(&stream);
    let transport = Transport::DownstreamTls(stream);
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
    mut stream: TcpStream,
) -> Option<(Box<TlsStream>, TlsFacts)> {
    let view = worker.view();
    let limits = &view.config.listeners[listener].limits;
    let cells = &view.listeners[listener].cells;
    let start = Instant::now();
    let mut waits = false;
    // Beyond the cap a connection waits its turn, within the same deadline.
    let handshake = Box::pin(async {
        let received = acceptor.hear(&mut stream).await?;
        waits = true;
        let place = view.listeners[listener].handshakes.begin().await;
        waits = false;
        let mut accepted = pin!(acceptor.accept(stream, received));
        poll_fn(|cx| match accepted.as_mut().poll(cx) {
            Poll::Pending if place.has_ended() => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            polled => polled,
        })
        .await
    });
    let mut deadline = worker.take_deadline();
    let mut patience = Patience::new(&mut deadline);
    patience.tell(start);
    let wait = Wait::new(Reason::RequestTimeout, limits.handshake_timeout);
    let result = patience.limit(wait, handshake).await;
    worker.give_deadline(deadline);
    let (outcome, accepted) = match result {
        Ok(Ok(accepted)) => ("ok", Some(accepted)),
        Ok(Err(error)) => (tls::failure(&error), None),
        Err(_) if waits => ("overloaded", None),
        Err(_) => ("timeout", None),
    };
    cells.handshake(outcome, start.elapsed());
    accepted
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config,
        firewall::Firewall,
        observe::{AccessLog, Metrics},
        proxy::{load::Load, view::View},
    };

    const CONFIG: &str = "[log]\naccess = \"off\"\n[[listeners]]\nname = \"plain\"\naddress = \"127.0.0.1:0\"\n\
                          redirect_to_https = true\n";

    #[tokio::test]
    async fn a_panic_ends_its_connection_alone_and_is_counted() {
        let (config, _) = config::parse("test", CONFIG, Path::new("")).unwrap();
        let metrics = Metrics::new(1);
        let log = AccessLog::start(&config.log, &metrics).unwrap();
        let firewall = Arc::new(Firewall::new(&config));
        let view = View::new(&Arc::new(config), &firewall, &[], &metrics.shard(0), 0);
        let worker = Rc::new(Worker::new(view, metrics.shard(0), log.writer(), Load::new(None, None)));
        let _another = Counted::new(&worker, 0);
        let tasks = tokio::task::LocalSet::new();
        let panicking = worker.clone();
        let task = tasks.spawn_local(async move {
            let _counted = Counted::new(&panicking, 0);
            panic!("the expected panic of a test");
        });
        tasks.await;
        assert!(task.await.unwrap_err().is_panic());
        let text = metrics.scrape();
        assert!(text.contains("portcullis_panics_total 1\n"), "{text}");
        assert!(text.contains("portcullis_downstream_connections{listener=\"plain\"} 1\n"), "{text}");
    }
}
