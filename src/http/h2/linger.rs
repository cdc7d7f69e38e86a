//! How does a connection end without taking the last bytes of its responses along?
//!
//! A socket that is closed with something unread in it, or that gets more, is reset by the kernel,
//! and what it had still to send is lost. HTTP/2 clients talk to the end (WINDOW_UPDATE, PING), so
//! what they say after our last word is read and thrown away.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{io::AsyncWrite, time::Instant};

use crate::http::{buffer::ReadBuffer, deadline::Deadline, transport::Transport};

/// How long a client may be silent before it is taken for one that has nothing more to say.
const SILENCE: Duration = Duration::from_secs(1);

/// What a client may say after our last word besides the bodies that it is sending: 80,000
/// WINDOW_UPDATE. One that says more doesn't listen.
const LAST_WORDS: usize = 1024 * 1024;

/// A shutdown that waits until the client has closed too.
#[derive(Debug)]
pub(super) struct Linger {
    /// For the whole wait.
    limit: Duration,
    /// What may still be read of the client.
    left: usize,
    /// When it ends at the latest, once our half is closed.
    end: Option<Instant>,
    silence: Deadline,
}

impl Linger {
    /// `window` is what the client may be sending when the connection ends.
    pub(super) fn new(limit: Duration, window: u32) -> Self {
        Linger { limit, left: LAST_WORDS + window as usize, end: None, silence: Deadline::default() }
    }

    /// Closes our half, then reads until the client closes, is silent or has said enough.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        transport: &mut Transport,
        input: &mut ReadBuffer,
    ) -> Poll<io::Result<()>> {
        let end = if let Some(end) = self.end {
            end
        } else {
            ready!(Pin::new(&mut *transport).poll_shutdown(cx))?;
            let now = Instant::now();
            let end = now + self.limit;
            self.silence.set((now + SILENCE).min(end));
            *self.end.insert(end)
        };
        loop {
            input.consume(input.data().len());
            match transport.poll_receive(cx, input) {
                Poll::Ready(Ok(count)) if (1..self.left).contains(&count) && Instant::now() < end => {
                    self.left -= count;
                    self.silence.set((Instant::now() + SILENCE).min(end));
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return self.silence.poll(cx).map(Ok),
            }
        }
    }
}
