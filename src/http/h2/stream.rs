//! The body halves of an HTTP/2 stream, alike on both sides.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason as Code, RecvStream, SendStream};

use super::{budget::Budget, convert};
use crate::http::{
    exchange::{BodyError, Filled},
    fields::Fields,
    h1::head::Underscores,
};

/// The incoming half: data is borrowed from the frame it came in, and flow control is given back
/// only for what was consumed.
#[derive(Debug)]
pub(super) struct Incoming {
    stream: RecvStream,
    current: Bytes,
    /// What is held back until the whole of it is here.
    gathered: Vec<u8>,
    /// Bytes at the front whose window was given back already.
    credited: usize,
    trailers: Option<Fields>,
    /// Of trailer names.
    underscores: Underscores,
    data_ended: bool,
    ended: bool,
}

impl Incoming {
    /// `ended`: no body follows.
    pub(super) fn new(stream: RecvStream, ended: bool, underscores: Underscores) -> Self {
        Incoming {
            stream,
            current: Bytes::new(),
            gathered: Vec::new(),
            credited: 0,
            trailers: None,
            underscores,
            data_ended: ended,
            ended,
        }
    }

    /// Waits until `count` bytes are here; before anything was consumed.
    pub(super) fn poll_hold(&mut self, cx: &mut Context<'_>, count: usize) -> Poll<Result<(), BodyError>> {
        while self.held() < count && !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => self.gather(data),
                Some(Err(error)) => return Poll::Ready(Err(body_error(&error))),
                None => self.data_ended = true,
            }
        }
        if !self.gathered.is_empty() {
            self.current = Bytes::from(std::mem::take(&mut self.gathered));
        }
        Poll::Ready(Ok(()))
    }

    /// Bytes that are here and were not consumed.
    pub(super) fn held(&self) -> usize {
        self.current.len() + self.gathered.len()
    }

    /// What is held is on no window: streams that wait for their rest would otherwise use up that of
    /// the connection, and then all of them would wait for each other.
    fn gather(&mut self, data: Bytes) {
        self.credited += data.len();
        // WHY: fails only when the stream is gone, and then there is no window to give back.
        let _ = self.stream.flow_control().release_capacity(data.len());
        if self.held() == 0 {
            self.current = data;
        } else {
            self.gathered.extend_from_slice(&std::mem::take(&mut self.current));
            self.gathered.extend_from_slice(&data);
        }
    }

    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<Filled, BodyError>> {
        while self.current.is_empty() && !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => self.current = data,
                Some(Err(error)) => return Poll::Ready(Err(body_error(&error))),
                None => self.data_ended = true,
            }
        }
        if !self.current.is_empty() {
            return Poll::Ready(Ok(Filled::Data));
        }
        if !self.ended {
            match ready!(self.stream.poll_trailers(cx)) {
                Ok(map) => {
                    self.trailers = map.and_then(|map| convert::read_trailers(&map, self.underscores));
                }
                Err(error) => return Poll::Ready(Err(body_error(&error))),
            }
            self.ended = true;
        }
        Poll::Ready(Ok(Filled::End))
    }

    pub(super) fn data(&self) -> &[u8] {
        &self.current
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.current.advance(count);
        let credited = self.credited.min(count);
        self.credited -= credited;
        // WHY: fails only when the stream is gone, and then there is no window to give back.
        let _ = self.stream.flow_control().release_capacity(count - credited);
    }

    pub(super) fn ends_with_data(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(super) fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_ref()
    }
}

/// The outgoing half.
#[derive(Debug)]
pub(super) struct Outgoing {
    stream: SendStream<Bytes>,
    /// END_STREAM was sent.
    ended: bool,
    /// Of the connection, towards clients.
    budget: Option<Budget>,
}

impl Outgoing {
    pub(super) fn new(stream: SendStream<Bytes>, ended: bool, budget: Option<Budget>) -> Self {
        Outgoing { stream, ended, budget }
    }

    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        last: bool,
    ) -> Poll<io::Result<usize>> {
        self.stream.reserve_capacity(data.len());
        let mut room = self.stream.capacity();
        while room == 0 {
            room = match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let count = match &self.budget {
            Some(budget) => ready!(budget.poll_take(cx, room.min(data.len()))),
            None => room.min(data.len()),
        };
        let end = last && count == data.len();
        self.stream.send_data(Bytes::copy_from_slice(&data[..count]), end).map_err(io_error)?;
        self.ended |= end;
        Poll::Ready(Ok(count))
    }

    pub(super) fn finish(&mut self, trailers: Option<&Fields>) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        match trailers {
            Some(fields) => self.stream.send_trailers(convert::write_trailers(fields)),
            None => self.stream.send_data(Bytes::new(), true),
        }
        .map_err(io_error)
    }

    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_reset(cx).map(|_| ())
    }

    pub(super) fn abort(&mut self, code: Code) {
        if !self.ended {
            self.ended = true;
            self.stream.send_reset(code);
        }
    }
}

fn body_error(error: &h2::Error) -> BodyError {
    // A library reset is h2's own finding: the peer's DATA didn't match its content-length.
    if error.is_library() && !error.is_go_away() { BodyError::Malformed } else { BodyError::Closed }
}

pub(super) fn io_error(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    } else {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}
