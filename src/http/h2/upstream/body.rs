//! The body halves of a stream to a backend.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason as Code, RecvStream, SendStream};

use super::convert;
use crate::http::{
    exchange::{BodyError, Filled},
    fields::Fields,
};

/// The incoming half: data is borrowed from the frame it came in, and flow control is given back
/// only for what was consumed.
#[derive(Debug)]
pub(super) struct Incoming {
    stream: RecvStream,
    current: Bytes,
    trailers: Option<Fields>,
    data_ended: bool,
    ended: bool,
}

impl Incoming {
    /// `ended`: no body follows.
    pub(super) fn new(stream: RecvStream, ended: bool) -> Self {
        Incoming { stream, current: Bytes::new(), trailers: None, data_ended: ended, ended }
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
                    self.trailers = map.and_then(|map| convert::read_trailers(&map));
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
        // WHY: fails only when the stream is gone, and then there is no window to give back.
        let _ = self.stream.flow_control().release_capacity(count);
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
}

impl Outgoing {
    pub(super) fn new(stream: SendStream<Bytes>, ended: bool) -> Self {
        Outgoing { stream, ended }
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
        let count = room.min(data.len());
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
