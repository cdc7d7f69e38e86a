//! What a client's frames say of a stream (RFC 9113 §5.1, §6.1 to 6.4, §6.9, §8.1).

use tokio::time::Instant;

use super::{
    floods::Flood,
    flow::ReceiveWindow,
    frame::{self, Code, Head, MAX_31, flag},
    hpack::DecodeError,
    multiplexer::{Broken, Multiplexer, NewHead, Request},
    request::{Flaw, RequestReader, TrailerReader},
    streams::{Gone, Stream},
};
use crate::http::message::BodyLength;

/// Memory of the heads that are not answered yet: a hundred of 10 KiB. A field that the client has sent
/// once costs it a byte each time that it names it again (RFC 7541 §2.3).
const HEADS_BYTES: usize = 1024 * 1024;

/// DATA frames with less than this are counted where nobody waits for them: they cost more than their bytes.
const WORTHWHILE: usize = 1024;

impl Multiplexer {
    /// Takes a whole head: a request, or what follows a body.
    pub(super) fn take_head(
        &mut self,
        id: u32,
        ends: bool,
        block: &[u8],
        now: Instant,
        new_head: NewHead<'_>,
    ) -> Result<(), Broken> {
        if !self.streams.is_idle(id) {
            return self.take_trailers(id, ends, block, now);
        }
        self.streams.use_id(id);
        let most = self.settings.streams as usize;
        // Streams that are reset are served until their tasks notice.
        if self.is_final() || self.streams.count() >= most || self.streams.served() >= 2 * most {
            self.skip_head(block)?;
            return self.reset_for_client(id, Code::RefusedStream);
        }
        if self.head_bytes >= HEADS_BYTES {
            self.skip_head(block)?;
            self.floods.count(Flood::Heads, now)?;
            self.reset(id, Code::RefusedStream);
            return Ok(());
        }
        let mut head = new_head();
        let mut reader = RequestReader::new(&self.settings.head, &mut self.scratch, &mut head);
        let decoded = self.decoder.decode(block, |name, value| reader.field(name, value));
        decoded.map_err(undecodable)?;
        let verdict = reader.finish(ends);
        if verdict == Err(Flaw::Malformed) {
            return self.reset_for_client(id, Code::ProtocolError);
        }
        let window = ReceiveWindow::new(self.first_receive_window);
        let mut stream = Stream::new(id, window, self.send_window_of_client());
        stream.received_all = ends;
        stream.head_bytes = head.bytes();
        if let BodyLength::Exact(length) = head.body {
            stream.left = Some(length);
        }
        self.head_bytes += stream.head_bytes;
        let place = self.streams.insert(stream);
        self.requests.push_back(Request { place, head, verdict });
        Ok(())
    }

    /// The table has to follow every head, whatever becomes of it.
    fn skip_head(&mut self, block: &[u8]) -> Result<(), Broken> {
        self.decoder.decode(block, |_, _| {}).map_err(undecodable)
    }

    fn take_trailers(&mut self, id: u32, ends: bool, block: &[u8], now: Instant) -> Result<(), Broken> {
        let mut reader = TrailerReader::new(&self.settings.head, self.settings.trailer_bytes);
        let decoded = self.decoder.decode(block, |name, value| reader.field(name, value));
        decoded.map_err(undecodable)?;
        let Some(place) = self.streams.find(id) else {
            self.floods.count(Flood::Heads, now)?;
            return self.take_late_frame(id);
        };
        let stream = self.streams.at(place);
        if stream.received_all {
            return self.reset_for_client(id, Code::StreamClosed);
        }
        if !ends || stream.left.is_some_and(|left| left > 0) {
            return self.reset_for_client(id, Code::ProtocolError);
        }
        match reader.finish() {
            Ok(None) => {}
            Ok(Some(_)) if self.head_bytes >= HEADS_BYTES => {
                return self.reset_for_client(id, Code::EnhanceYourCalm);
            }
            Ok(Some(fields)) => {
                stream.trailer_bytes = fields.capacity();
                self.head_bytes += fields.capacity();
                stream.trailers = Some(Box::new(fields));
            }
            Err(Flaw::Malformed) => return self.reset_for_client(id, Code::ProtocolError),
            // The answer may still say so, and what was begun for it was begun for nothing, as with a reset.
            Err(Flaw::Refused(_)) => {
                stream.gone = Some(Gone::TrailersTooLarge);
                self.floods.count_local_reset()?;
            }
        }
        self.end_received(place);
        Ok(())
    }

    pub(super) fn take_data(&mut self, head: &Head, payload: &[u8], now: Instant) -> Result<(), Broken> {
        if self.streams.is_idle(head.stream) {
            return Err(Code::ProtocolError.into());
        }
        let data = frame::without_padding(head, payload).ok_or(Code::ProtocolError)?;
        self.receive.receive(head.length).map_err(|_| Code::FlowControlError)?;
        let ends = head.has(flag::END_STREAM);
        let place = self.streams.find(head.stream);
        if data.is_empty() && !ends || place.is_none() && data.len() < WORTHWHILE {
            self.floods.count(Flood::EmptyData, now)?;
        }
        // What is kept goes back when it is consumed, the rest at once.
        let kept = match place {
            Some(place) => self.streams.at(place).take_data(data, head.length, ends),
            None => Err(None),
        };
        match kept {
            Ok(increment) => {
                self.release(head.length - data.len());
                if let Some(increment) = increment {
                    frame::write_window_update(self.output.bytes_mut(), head.stream, increment);
                }
                if ends && let Some(place) = place {
                    self.end_received(place);
                }
                Ok(())
            }
            Err(code) => {
                self.release(head.length);
                match code {
                    Some(code) => self.reset_for_client(head.stream, code),
                    None => self.take_late_frame(head.stream),
                }
            }
        }
    }

    /// One that is on its way while we reset its stream is no fault.
    fn take_late_frame(&mut self, id: u32) -> Result<(), Broken> {
        if self.streams.was_reset(id) { Ok(()) } else { self.reset_for_client(id, Code::StreamClosed) }
    }

    fn end_received(&mut self, place: usize) {
        let stream = self.streams.at(place);
        stream.received_all = true;
        stream.wake();
        if stream.sent_all {
            let id = stream.id;
            self.streams.close(id);
        }
    }

    pub(super) fn take_reset(&mut self, head: &Head, payload: &[u8], now: Instant) -> Result<(), Broken> {
        if frame::number(payload).is_none() {
            return Err(Code::FrameSizeError.into());
        }
        if self.streams.is_idle(head.stream) {
            return Err(Code::ProtocolError.into());
        }
        self.floods.count(Flood::Resets, now)?;
        self.lose(head.stream, Gone::Closed);
        Ok(())
    }

    pub(super) fn widen_stream(&mut self, id: u32, increment: u32) -> Result<(), Broken> {
        debug_assert!(increment <= MAX_31);
        if self.streams.is_idle(id) {
            return Err(Code::ProtocolError.into());
        }
        // The last ones for a stream come when it is over.
        let Some(place) = self.streams.find(id) else { return Ok(()) };
        if increment == 0 {
            return self.reset_for_client(id, Code::ProtocolError);
        }
        let stream = self.streams.at(place);
        if stream.send.grow(i64::from(increment)).is_err() {
            return self.reset_for_client(id, Code::FlowControlError);
        }
        stream.wake();
        Ok(())
    }

    /// Resets a stream because of what the client did on it.
    fn reset_for_client(&mut self, id: u32, code: Code) -> Result<(), Broken> {
        self.floods.count_local_reset()?;
        self.lose(id, Gone::Malformed);
        self.reset(id, code);
        Ok(())
    }

    pub(super) fn reset(&mut self, id: u32, code: Code) {
        self.streams.close(id);
        self.streams.remember_reset(id);
        self.floods.explain_reset();
        frame::write_reset(self.output.bytes_mut(), id, code);
    }

    /// Nothing more comes on a stream, and nobody wants what is sent on it.
    fn lose(&mut self, id: u32, gone: Gone) {
        let Some(place) = self.streams.find(id) else { return };
        self.streams.close(id);
        let stream = self.streams.at(place);
        stream.gone = Some(gone);
        stream.drop_body();
        let unreleased = std::mem::take(&mut stream.unreleased);
        stream.wake();
        self.release(unreleased);
    }
}

fn undecodable(error: DecodeError) -> Broken {
    match error {
        DecodeError::Bomb => Flood::UnfinishedHead.into(),
        _ => Code::CompressionError.into(),
    }
}

impl Stream {
    /// Takes data; returns what is to be given back at once, for padding.
    ///
    /// # Errors
    /// With which code the stream is to be reset.
    fn take_data(&mut self, data: &[u8], length: usize, ends: bool) -> Result<Option<u32>, Option<Code>> {
        if self.received_all {
            return Err(Some(Code::StreamClosed));
        }
        self.receive.receive(length).map_err(|_| Some(Code::FlowControlError))?;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(data.len() as u64).ok_or(Some(Code::ProtocolError))?;
            if ends && *left > 0 {
                return Err(Some(Code::ProtocolError));
            }
        }
        self.push_body(data);
        self.wake();
        let padding = length - data.len();
        Ok(if ends || padding == 0 { None } else { self.receive.release(padding) })
    }
}
