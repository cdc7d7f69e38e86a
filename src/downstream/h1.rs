//! Requests off an HTTP/1 connection, one after the other.

use std::{future::poll_fn, rc::Rc, task::Poll, time::Duration};

use tokio::time::Instant;

use crate::{
    error::Reason,
    http::{
        deadline::Deadline,
        exchange::Exchange,
        h1::{Connection, NoRequest},
        message::RequestHead,
        transport::Transport,
    },
    proxy::{
        self,
        flight::Flight,
        patience::{Patience, Wait},
        worker::{Client, Worker},
    },
};

/// How long, and for how many bytes, a client may go on sending what nobody will read: closing at
/// once would make the kernel reset the connection and could destroy the answer on its way.
const LINGER: Duration = Duration::from_secs(1);

/// Serves the connection until either side closes it.
pub async fn serve(worker: &Rc<Worker>, client: &Client, transport: Transport) {
    let mut connection = Connection::new(transport);
    let mut deadline = Deadline::default();
    let mut head = RequestHead::default();
    loop {
        let mut patience = Patience::new(&mut deadline);
        match next_request(worker, client, &mut connection, &mut head, &mut patience).await {
            Ok(()) => one_request(worker, client, &mut connection, &mut head, &mut patience).await,
            Err(NoRequest::Closed) => break,
            Err(NoRequest::Refused(reason)) => {
                refuse(worker, client, &mut connection, &mut head, reason).await;
                break;
            }
        }
        if !connection.may_continue() {
            break;
        }
        connection.rest();
    }
    close(&mut connection).await;
}

/// Waits for a request: for its first byte as long as a connection may idle, from then on as long
/// as a head may take.
async fn next_request(
    worker: &Worker,
    client: &Client,
    connection: &mut Connection,
    head: &mut RequestHead,
    patience: &mut Patience<'_>,
) -> Result<(), NoRequest> {
    let view = worker.view();
    let request_limits = &view.listeners[client.listener].limits;
    let limits = &view.config.listeners[client.listener].limits;
    poll_fn(|cx| {
        if let Poll::Ready(result) = connection.poll_request(cx, request_limits, head) {
            return Poll::Ready(result);
        }
        if connection.has_unread() {
            let wait = Wait::new(Reason::RequestTimeout, limits.head_timeout);
            return patience.poll(cx, wait, false).map(|reason| Err(NoRequest::Refused(reason)));
        }
        if worker.is_draining() {
            return Poll::Ready(Err(NoRequest::Closed));
        }
        let wait = Wait::new(Reason::ClientClosed, limits.idle_timeout);
        patience.poll(cx, wait, false).map(|_| Err(NoRequest::Closed))
    })
    .await
}

async fn one_request(
    worker: &Worker,
    client: &Client,
    connection: &mut Connection,
    head: &mut RequestHead,
    patience: &mut Patience<'_>,
) {
    let mut flight = Flight::new(worker, client, head, Instant::now());
    proxy::serve(&mut flight, connection, patience).await;
}

/// Answers what is no request, and says why.
async fn refuse(
    worker: &Worker,
    client: &Client,
    connection: &mut Connection,
    head: &mut RequestHead,
    reason: Reason,
) {
    let mut deadline = Deadline::default();
    let mut flight = Flight::new(worker, client, head, Instant::now());
    flight.unparsed = true;
    connection.refuse_rest();
    proxy::refuse(&mut flight, connection, &mut Patience::new(&mut deadline), reason).await;
}

async fn close(connection: &mut Connection) {
    let ended = async {
        poll_fn(|cx| connection.poll_flush(cx)).await?;
        poll_fn(|cx| connection.poll_shutdown(cx)).await?;
        poll_fn(|cx| connection.poll_discard(cx)).await
    };
    // WHY: whatever fails here, the connection is over and its last exchange is on record.
    let _ = tokio::time::timeout(LINGER, ended).await;
}
