//! Requests off an HTTP/2 connection, many at a time, all in the connection's own task.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream as _, stream::FuturesUnordered};
use tokio::time::Instant;

use crate::{
    config::Limits,
    error::Reason,
    http::{
        deadline::Deadline,
        h1::RequestLimits,
        h2::{
            downstream::{Accepted, Connection, Settings},
            floods::FrameLimits,
        },
        transport::Transport,
    },
    proxy::{
        self,
        flight::Flight,
        patience::{Indulgence, Patience, Wait},
        worker::{Client, Worker, reject, report_rejection},
    },
};

/// How long a client that is sent away for abuse may take to read why.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves the connection until it ends; streams that are still open then are on record as given up
/// by the client.
pub async fn serve(worker: &Rc<Worker>, client: &Client, transport: Transport) {
    let view = worker.view();
    let limits = &view.config.listeners[client.listener].limits;
    let settings = settings(limits, view.listeners[client.listener].limits);
    let mut deadline = Deadline::default();
    let mut patience = Patience::new(&mut deadline);
    let preface = Wait::new(Reason::RequestTimeout, limits.handshake_timeout);
    let connection = patience.limit(preface, Connection::handshake(transport, &settings)).await;
    let Ok(Ok(mut connection)) = connection else { return };
    let idle = Wait::new(Reason::ClientClosed, limits.idle_timeout);
    let last_words = Wait::new(Reason::WriteTimeout, limits.write_timeout);
    let mut indulgence = Indulgence::new(limits.write_timeout, limits.write_min_rate);
    let mut streams = FuturesUnordered::new();
    let mut draining = false;
    poll_fn(|cx| {
        if worker.is_draining() && !draining {
            draining = true;
            connection.drain();
        }
        // WHY not `Box::pin`: see `h1::serve`; and the set would copy the future once more.
        let begin =
            |accepted| Box::into_pin(Box::write(Box::new_uninit(), one_request(worker, client, accepted)));
        if advance(&mut connection, &mut streams, begin, (worker, cx)).is_ready() {
            return Poll::Ready(());
        }
        if connection.is_blocked() {
            // Whatever its streams wait for, and those that are over, whose answers still wait.
            let until = Some(indulgence.end(Instant::now(), connection.written()));
            let wait = Wait { until, ..last_words };
            return patience.poll(cx, wait, true).map(|reason| client.cut_for.set(Some(reason)));
        }
        if indulgence.is_running() {
            indulgence.pause(Instant::now(), connection.written());
        }
        if !streams.is_empty() {
            patience.rest();
            return Poll::Pending;
        }
        if !draining && patience.poll(cx, idle, false).is_ready() {
            draining = true;
            connection.drain();
            // The GOAWAY goes out when the connection is polled again.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // A client that does not even take the GOAWAY is cut off.
        if draining { patience.poll(cx, last_words, false).map(|_| ()) } else { Poll::Pending }
    })
    .await;
    if connection.is_abused() {
        reject_abuse(worker, client);
        streams.clear();
        let farewell = Wait::new(Reason::H2Abuse, FAREWELL.min(limits.write_timeout));
        let until = connection.is_blocked().then(|| indulgence.end(Instant::now(), connection.written()));
        let farewell = Wait { until, ..farewell };
        // WHY: nobody is left to tell that the client did not take it.
        let _ = patience.limit(farewell, poll_fn(|cx| connection.poll_close(cx))).await;
    }
    if connection.is_blocked() {
        connection.give_up();
    }
}

/// Puts it on record, once for the connection. A trusted proxy is not banned for what one of its clients does.
fn reject_abuse(worker: &Worker, client: &Client) {
    client.cut_for.set(Some(Reason::H2Abuse));
    reject(worker, client.listener, Reason::H2Abuse);
    let view = worker.view();
    if !client.is_trusted(&view.config.listeners[client.listener]) {
        report_rejection(&view, client.listener, (client.ip, Reason::H2Abuse), Instant::now().into_std());
    }
}

fn settings(limits: &Limits, request: RequestLimits) -> Settings {
    Settings {
        streams: limits.h2_streams,
        stream_window: limits.h2_stream_window,
        connection_window: limits.h2_connection_window,
        send_buffer: limits.h2_send_buffer,
        head: request.head,
        trailer_bytes: request.body.trailer_bytes,
        frames: FrameLimits {
            resets: limits.h2_client_resets,
            control_frames: limits.h2_control_frames,
            local_resets: limits.h2_local_resets,
            continuation_frames: limits.h2_continuation_frames,
            head_timeout: limits.head_timeout,
        },
        linger: limits.write_timeout,
    }
}

/// Accepts streams, polls those that can go on, and sends what there is to send in as few writes as
/// possible. Ready when the connection is over.
fn advance<F: Future<Output = ()> + Unpin>(
    connection: &mut Connection,
    streams: &mut FuturesUnordered<F>,
    mut begin: impl FnMut(Accepted) -> F,
    (worker, cx): (&Worker, &mut Context<'_>),
) -> Poll<()> {
    while let Poll::Ready(accepted) = connection.poll_accept(cx, || worker.take_head()) {
        let Some(accepted) = accepted else {
            if !connection.is_abused() {
                // They learn that their client is gone, and their records say how far they came.
                while let Poll::Ready(Some(())) = Pin::new(&mut *streams).poll_next(cx) {}
            }
            return Poll::Ready(());
        };
        streams.push(begin(accepted));
    }
    while let Poll::Ready(Some(())) = Pin::new(&mut *streams).poll_next(cx) {}
    match connection.poll_flush(cx) {
        Poll::Ready(Err(_)) => Poll::Ready(()),
        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
    }
}

async fn one_request(worker: &Worker, client: &Client, accepted: Accepted) {
    let Accepted { mut head, mut stream, verdict } = accepted;
    let mut deadline = worker.take_deadline();
    let mut patience = Patience::new(&mut deadline);
    let mut flight = Flight::new(worker, client, &mut head, Instant::now());
    worker.turns.wait().await;
    match verdict {
        // Nothing is begun for it; the record says so.
        _ if stream.is_gone() => {}
        Ok(()) => proxy::serve(&mut flight, &mut stream, &mut patience).await,
        Err(reason) => {
            flight.unparsed = true;
            proxy::refuse(&mut flight, &mut stream, &mut patience, reason).await;
        }
    }
    drop(flight);
    worker.give_head(head);
    worker.give_deadline(deadline);
}
