//! Requests off an HTTP/1 connection, one after the other.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    error::Reason,
    http::{
        exchange::Exchange,
        h1::{Connection, NoRequest},
        transport::Transport,
    },
    proxy::{
        self,
        flight::Flight,
        patience::{Patience, Wait},
        turns::Ticket,
        worker::{Client, Worker},
    },
};

/// How long a client may go on sending what nobody will read: closing at
/// once would make the kernel reset the connection and could destroy the answer on its way.
const LINGER: Duration = Duration::from_secs(1);

/// Serves the connection until either side closes it.
pub async fn serve(worker: &Rc<Worker>, client: &Client, transport: Transport) {
    let mut connection = Connection::new(transport);
    let mut deadline = worker.take_deadline();
    let mut now = Instant::now();
    loop {
        let mut patience = Patience::new(&mut deadline);
        patience.tell(now);
        match next_request(worker, client, &mut connection, &mut patience).await {
            Ok(length) => {
                // Boxed, like the next: a connection that idles should not keep room for a request.
                // WHY not `Box::pin`: it copies the whole future, which is large and still empty, to
                // memory that is mostly not in the cache. Where the box comes first, the compiler
                // builds the future in it.
                let request = Box::write(
                    Box::new_uninit(),
                    one_request(worker, client, &mut connection, length, &mut patience),
                );
                now = Box::into_pin(request).await;
            }
            Err(NoRequest::Closed) => break,
            Err(NoRequest::Refused(reason)) => {
                Box::pin(refuse(worker, client, &mut connection, reason, &mut patience)).await;
            }
        }
        if !connection.may_continue() {
            break;
        }
        connection.rest();
    }
    worker.give_deadline(deadline);
    close(&mut connection).await;
}

/// Waits for a request head and returns its length: for its first byte as long as a connection may
/// idle, from then on as long as a head may take.
async fn next_request(
    worker: &Worker,
    client: &Client,
    connection: &mut Connection,
    patience: &mut Patience<'_>,
) -> Result<usize, NoRequest> {
    let view = worker.view();
    let request_limits = &view.listeners[client.listener].limits;
    let limits = &view.config.listeners[client.listener].limits;
    // A request that has arrived but was not reported yet still counts when a drain begins.
    let mut driver_turn = pin!(tokio::task::yield_now());
    let mut ticket = Ticket::default();
    poll_fn(|cx| {
        if connection.poll_come(cx).is_ready() {
            ready!(worker.turns.poll(cx, &mut ticket));
            if let Poll::Ready(result) = connection.poll_request(cx, request_limits) {
                return Poll::Ready(result);
            }
        }
        if connection.has_unread() {
            let wait = Wait::new(Reason::RequestTimeout, limits.head_timeout);
            return patience.poll(cx, wait, false).map(|reason| Err(NoRequest::Refused(reason)));
        }
        if worker.is_draining() {
            return driver_turn.as_mut().poll(cx).map(|()| Err(NoRequest::Closed));
        }
        let wait = Wait::new(Reason::ClientClosed, limits.idle_timeout);
        patience.poll(cx, wait, false).map(|_| Err(NoRequest::Closed))
    })
    .await
}

/// Serves one request and returns when it ended.
async fn one_request(
    worker: &Worker,
    client: &Client,
    connection: &mut Connection,
    length: usize,
    patience: &mut Patience<'_>,
) -> Instant {
    let mut head = worker.take_head();
    let limits = worker.view().listeners[client.listener].limits;
    let verdict = connection.parse_request(length, &limits, &mut head);
    let mut flight = Flight::new(worker, client, &mut head, Instant::now());
    match verdict {
        Ok(()) => proxy::serve(&mut flight, connection, patience).await,
        Err(reason) => answer_unparsed(&mut flight, connection, reason, patience).await,
    }
    let ended = flight.ended.unwrap_or_else(Instant::now);
    drop(flight);
    worker.give_head(head);
    ended
}

/// Answers what never became a whole head.
async fn refuse(
    worker: &Worker,
    client: &Client,
    connection: &mut Connection,
    reason: Reason,
    patience: &mut Patience<'_>,
) {
    let mut head = worker.take_head();
    let mut flight = Flight::new(worker, client, &mut head, Instant::now());
    answer_unparsed(&mut flight, connection, reason, patience).await;
    drop(flight);
    worker.give_head(head);
}

/// Says why, and closes: where the next request would begin is unknown.
async fn answer_unparsed(
    flight: &mut Flight<'_>,
    connection: &mut Connection,
    reason: Reason,
    patience: &mut Patience<'_>,
) {
    flight.unparsed = true;
    connection.refuse_rest();
    proxy::refuse(flight, connection, patience, reason).await;
}

async fn close(connection: &mut Connection) {
    if connection.is_given_up() {
        return;
    }
    // RFC 9112 §9.6: after `close` no request follows that could miss its answer by a reset.
    if poll_fn(|cx| Poll::Ready(connection.is_over(cx))).await {
        return;
    }
    let ended = async {
        poll_fn(|cx| connection.poll_flush(cx)).await?;
        poll_fn(|cx| connection.poll_shutdown(cx)).await?;
        poll_fn(|cx| connection.poll_discard(cx)).await
    };
    // WHY: whatever fails here, the connection is over and its last exchange is on record.
    let _ = tokio::time::timeout(LINGER, ended).await;
}
