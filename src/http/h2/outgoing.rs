//! What is sent on a stream, and what its task asks of the connection.

use std::{
    io,
    task::{Context, Poll},
};

use super::{
    frame::{self, Code, HEAD_BYTES, MAX_DATA},
    hpack::Encoder,
    multiplexer::Multiplexer,
    streams::{Gone, Stream},
};
use crate::http::{
    exchange::BodyError,
    fields::{FieldId, Fields},
    message::{BodyLength, ResponseHead},
};

/// What all answers of a connection may have waiting together: so many streams' buffers.
pub(super) const FULL_BUFFERS: usize = 4;

/// Enough for most heads.
const HEAD_ROOM: usize = 1024;

impl Multiplexer {
    /// Sends a head; it is the last one unless it is interim.
    pub(super) fn send_head(&mut self, place: usize, head: &ResponseHead) -> io::Result<()> {
        let interim = head.status.is_informational();
        let stream = self.streams.at(place);
        stream.check_sending()?;
        if stream.answered {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let ends = !interim && matches!(head.body, BodyLength::Empty | BodyLength::Exact(0));
        let id = stream.id;
        if !interim {
            stream.answered = true;
            self.head_bytes -= std::mem::take(&mut stream.head_bytes);
        }
        let before = self.output.len();
        self.output.reserve(HEAD_ROOM);
        let out = self.output.bytes_mut();
        frame::write_headers(out, id, ends, |out| encode_response(&mut self.encoder, head, out));
        self.count_queued(place, before);
        self.end_sent(place, ends);
        self.check_output();
        Ok(())
    }

    /// Sends as much as there is room for, at least one byte.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        place: usize,
        data: &[u8],
        last: bool,
    ) -> Poll<io::Result<usize>> {
        let stream = self.streams.get(place);
        stream.check_sending()?;
        let frames = data.len().min(self.room(stream));
        self.output.reserve(frames + frames.div_ceil(MAX_DATA) * HEAD_BYTES);
        let mut rest = data;
        while !rest.is_empty() {
            let stream = self.streams.get(place);
            let window = stream.send.available().min(self.send.available());
            let count = rest.len().min(MAX_DATA).min(window).min(self.room(stream));
            if count == 0 {
                break;
            }
            let (piece, more) = rest.split_at(count);
            self.send_data(place, piece, last && more.is_empty());
            rest = more;
        }
        let sent = data.len() - rest.len();
        if sent == 0 && !data.is_empty() {
            let stream = self.streams.at(place);
            stream.wait(cx.waker());
            // A stream whose own window is empty has no turn to wait for.
            if stream.send.available() > 0 {
                self.streams.wait_in_turn(place);
            }
            return Poll::Pending;
        }
        self.streams.stop_waiting(place);
        Poll::Ready(Ok(sent))
    }

    /// How much data may wait to be written besides what does already.
    fn room(&self, stream: &Stream) -> usize {
        let queued = if stream.queued_since == self.flushes { stream.queued } else { 0 };
        let own = self.settings.send_buffer.saturating_sub(queued);
        let shared = (FULL_BUFFERS * self.settings.send_buffer).saturating_sub(self.output.len());
        own.min(shared).saturating_sub(HEAD_BYTES)
    }

    fn send_data(&mut self, place: usize, data: &[u8], ends: bool) {
        let before = self.output.len();
        self.send.spend(data.len());
        self.floods.explain_data(data.len());
        let stream = self.streams.at(place);
        stream.send.spend(data.len());
        frame::write_data(self.output.bytes_mut(), stream.id, data, ends);
        self.count_queued(place, before);
        self.end_sent(place, ends);
    }

    /// Counts what was written behind `before` as this stream's.
    fn count_queued(&mut self, place: usize, before: usize) {
        let (now, flushes) = (self.output.len(), self.flushes);
        let stream = self.streams.at(place);
        if stream.queued_since != flushes {
            stream.queued_since = flushes;
            stream.queued = 0;
        }
        stream.queued += now - before;
    }

    fn end_sent(&mut self, place: usize, ends: bool) {
        if !ends {
            return;
        }
        let stream = self.streams.at(place);
        stream.sent_all = true;
        if stream.received_all {
            let id = stream.id;
            self.streams.close(id);
        }
    }

    /// Ends the answer, unless its last frame has done so.
    pub(super) fn finish(&mut self, place: usize, trailers: Option<&Fields>) -> io::Result<()> {
        let stream = self.streams.at(place);
        if stream.sent_all {
            return Ok(());
        }
        stream.check_sending()?;
        let id = stream.id;
        let out = self.output.bytes_mut();
        match trailers {
            Some(fields) => frame::write_headers(out, id, true, |out| {
                self.encoder.begin(out);
                fields.iter().for_each(|(_, name, value)| self.encoder.field(name, value, out));
            }),
            None => frame::write_data(out, id, &[], true),
        }
        self.end_sent(place, true);
        self.check_output();
        Ok(())
    }

    /// Ready when the client does not want the answer any more.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>, place: usize) -> Poll<()> {
        let stream = self.streams.at(place);
        if stream.is_gone() {
            return Poll::Ready(());
        }
        stream.wait(cx.waker());
        Poll::Pending
    }

    /// Resets the stream, unless it has ended.
    pub(super) fn abort(&mut self, place: usize, code: Code) {
        let stream = self.streams.at(place);
        if stream.sent_all || stream.gone.is_some() || self.broken.is_some() {
            return;
        }
        stream.gone = Some(Gone::Aborted);
        let id = stream.id;
        self.reset(id, code);
    }

    /// Nobody serves the stream any more.
    pub(super) fn leave(&mut self, place: usize) {
        let Some(stream) = self.streams.remove(place) else { return };
        self.head_bytes -= stream.head_bytes + stream.trailer_bytes;
        self.release(stream.unreleased);
        if stream.is_gone() || self.broken.is_some() {
            return;
        }
        match (stream.sent_all, stream.received_all) {
            (true, true) => {}
            // The answer is whole, whatever the client still wants to send (§8.1).
            (true, false) => self.reset(stream.id, Code::NoError),
            (false, _) => self.reset(stream.id, Code::Cancel),
        }
    }

    /// Takes what has come of the body; `None` at its end.
    pub(super) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        place: usize,
    ) -> Poll<Result<Option<Vec<u8>>, BodyError>> {
        let stream = self.streams.at(place);
        if let Some(gone) = stream.gone {
            return Poll::Ready(Err(gone.into()));
        }
        if let Some(chunk) = stream.pop_body() {
            return Poll::Ready(Ok(Some(chunk)));
        }
        if stream.received_all {
            return Poll::Ready(Ok(None));
        }
        stream.wait(cx.waker());
        Poll::Pending
    }

    /// Waits until `count` bytes of the body are here, and takes none of them.
    pub(super) fn poll_hold(
        &mut self,
        cx: &mut Context<'_>,
        place: usize,
        count: usize,
    ) -> Poll<Result<(), BodyError>> {
        // What is held is on no window: streams that wait for their rest would otherwise use up that of
        // the connection, and then all of them would wait for each other.
        self.consume(place, usize::MAX);
        let stream = self.streams.at(place);
        if let Some(gone) = stream.gone {
            return Poll::Ready(Err(gone.into()));
        }
        if stream.held >= count || stream.received_all {
            return Poll::Ready(Ok(()));
        }
        stream.wait(cx.waker());
        Poll::Pending
    }

    /// Gives the window of what was consumed back, as far as it was not before.
    pub(super) fn consume(&mut self, place: usize, count: usize) {
        let stream = self.streams.at(place);
        let count = count.min(stream.unreleased);
        if count == 0 {
            return;
        }
        stream.unreleased -= count;
        if !stream.received_all
            && stream.gone.is_none()
            && let Some(increment) = stream.receive.release(count)
        {
            let id = stream.id;
            frame::write_window_update(self.output.bytes_mut(), id, increment);
        }
        self.release(count);
    }
}

impl Stream {
    /// Whether nobody wants the answer any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.is_some_and(|gone| gone != Gone::TrailersTooLarge)
    }

    fn check_sending(&self) -> io::Result<()> {
        if self.is_gone() || self.sent_all { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }
}

impl From<Gone> for BodyError {
    fn from(gone: Gone) -> Self {
        match gone {
            Gone::Closed | Gone::Aborted => BodyError::Closed,
            Gone::Malformed => BodyError::Malformed,
            Gone::TrailersTooLarge => BodyError::TooLarge,
        }
    }
}

/// The block of a head; fields that HTTP/2 forbids can't be in it, its reader removed them.
fn encode_response(encoder: &mut Encoder, head: &ResponseHead, out: &mut Vec<u8>) {
    let length = match head.body {
        BodyLength::Exact(length) => Some(length),
        _ => None,
    };
    encoder.begin(out);
    encoder.status(head.status, out);
    for (id, name, value) in head.fields.iter() {
        // Framing is written anew.
        if length.is_none() || id != FieldId::ContentLength {
            encoder.field(name, value, out);
        }
    }
    if let Some(length) = length {
        encoder.field(b"content-length", itoa::Buffer::new().format(length).as_bytes(), out);
    }
}
