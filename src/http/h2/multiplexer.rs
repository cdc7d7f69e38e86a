//! All that HTTP/2 knows of one connection to a client: bytes in, requests and bytes out, no I/O.
//!
//! Frames are judged here one after the other (RFC 9113). What they say of a stream is in `incoming`,
//! what is sent on one in `outgoing`.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{
    floods::{Flood, Floods, FrameLimits},
    flow::{ReceiveWindow, SendWindow},
    frame::{self, Code, HEAD_BYTES, Head, Kind, MAX_31, MAX_PAYLOAD, flag, setting},
    hpack::{Decoder, Encoder},
    request::{Flaw, Scratch, list_bytes},
    streams::{Gone, Streams},
};
use crate::http::{buffer::WriteBuffer, h1::HeadLimits, message::RequestHead};

/// What every connection begins with (§6.9.2).
const FIRST_WINDOW: u32 = 65_535;

/// What tells our own PING from a client's that is only echoed.
const DRAIN_PING: [u8; 8] = *b"portclls";

/// Heads of answers, and answers to control frames, that wait beside the data: a hundred of 10 KiB.
const UNREAD_BYTES: usize = 1024 * 1024;

/// A head that stands for so many times what we say is the most is no mistake: nobody reads it to its end.
const HEAD_TIMES: usize = 4;

/// Bounds of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub streams: u32,
    pub stream_window: u32,
    pub connection_window: u32,
    /// Response bytes of a stream that may wait to be written; of all together, four times as many.
    pub send_buffer: usize,
    pub head: HeadLimits,
    pub trailer_bytes: usize,
    pub frames: FrameLimits,
    /// How long the client may take to read the last bytes.
    pub linger: std::time::Duration,
}

/// A source of request heads that are empty.
pub type NewHead<'a> = &'a mut dyn FnMut() -> Box<RequestHead>;

/// Why the connection can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The client broke a rule of HTTP/2.
    Rule(Code),
    Flood(Flood),
}

/// A request that nobody serves yet.
#[derive(Debug)]
pub(super) struct Request {
    pub place: usize,
    pub head: Box<RequestHead>,
    pub verdict: Result<(), Flaw>,
}

#[derive(Debug)]
pub struct Multiplexer {
    pub(super) settings: Settings,
    pub(super) floods: Floods,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) scratch: Scratch,
    pub(super) streams: Streams,
    pub(super) requests: VecDeque<Request>,
    /// Memory of request heads that are not answered.
    pub(super) head_bytes: usize,
    /// The windows of the connection.
    pub(super) receive: ReceiveWindow,
    pub(super) send: SendWindow,
    /// Of the client's new streams, by its settings.
    first_send_window: u32,
    /// The same the other way, from when the client has acknowledged ours.
    pub(super) first_receive_window: u32,
    /// The client's first SETTINGS have come.
    greeted: bool,
    open_head: Option<OpenHead>,
    /// Since when a head is under way.
    head_since: Option<Instant>,
    pub(super) output: WriteBuffer,
    /// How often everything was written.
    pub(super) flushes: u64,
    ending: Ending,
    pub(super) broken: Option<Broken>,
}

/// A head of which more frames are to come.
#[derive(Debug)]
struct OpenHead {
    stream: u32,
    ends: bool,
    block: Vec<u8>,
    continuations: usize,
}

/// How far the end of the connection is announced (§6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// And the client is asked whether it has heard it.
    Announced,
    /// Streams that it opens from now on are not served.
    Final,
}

impl Multiplexer {
    /// Begins behind the client's preface; our settings are in the output.
    pub fn new(settings: Settings) -> Self {
        let mut this = Multiplexer {
            floods: Floods::new(settings.frames),
            decoder: Decoder::bounded(HEAD_TIMES * list_bytes(&settings.head) as usize),
            encoder: Encoder::new(),
            scratch: Scratch::default(),
            streams: Streams::new(settings.streams),
            requests: VecDeque::new(),
            head_bytes: 0,
            receive: ReceiveWindow::new(FIRST_WINDOW),
            send: SendWindow::new(FIRST_WINDOW),
            first_send_window: FIRST_WINDOW,
            // Until the client knows ours, the default holds for it.
            first_receive_window: settings.stream_window.max(FIRST_WINDOW),
            greeted: false,
            open_head: None,
            head_since: None,
            output: WriteBuffer::default(),
            flushes: 0,
            ending: Ending::No,
            broken: None,
            settings,
        };
        let out = this.output.bytes_mut();
        frame::write_settings(
            out,
            &[
                (setting::MAX_CONCURRENT_STREAMS, settings.streams),
                (setting::INITIAL_WINDOW_SIZE, settings.stream_window),
                (setting::MAX_HEADER_LIST_SIZE, list_bytes(&settings.head)),
            ],
        );
        if let Some(increment) = this.receive.aim_at(settings.connection_window) {
            frame::write_window_update(out, 0, increment);
        }
        this
    }

    /// Takes the frames that have come as a whole; returns how many bytes they are.
    pub fn receive(&mut self, bytes: &[u8], now: Instant, new_head: NewHead<'_>) -> usize {
        let mut rest = bytes;
        while self.broken.is_none() {
            match self.next_frame(rest, now, new_head) {
                Ok(0) => return bytes.len() - rest.len(),
                Ok(taken) => rest = &rest[taken..],
                Err(broken) => self.break_off(broken),
            }
        }
        bytes.len()
    }

    /// Takes one frame; 0 where more of it is to come.
    fn next_frame(&mut self, bytes: &[u8], now: Instant, new_head: NewHead<'_>) -> Result<usize, Broken> {
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(0) };
        let head = Head::parse(head);
        self.check_order(&head)?;
        let Some(payload) = rest.get(..head.length) else {
            if matches!(head.kind, Kind::Headers | Kind::Continuation) {
                self.head_since.get_or_insert(now);
            }
            return Ok(0);
        };
        match head.kind {
            Kind::Data => self.take_data(&head, payload, now)?,
            Kind::Headers => self.begin_head(&head, payload, now, new_head)?,
            Kind::Continuation => self.continue_head(&head, payload, now, new_head)?,
            Kind::Priority => self.take_priority(&head, now)?,
            Kind::Reset => self.take_reset(&head, payload, now)?,
            Kind::Settings => self.take_settings(&head, payload, now)?,
            Kind::Ping => self.take_ping(&head, payload, now)?,
            Kind::WindowUpdate => self.take_window_update(&head, payload, now)?,
            Kind::GoAway | Kind::Unknown => self.take_other(&head, now)?,
            // Only servers may push (§8.4).
            Kind::PushPromise => return Err(Code::ProtocolError.into()),
        }
        Ok(HEAD_BYTES + head.length)
    }

    /// Whether a frame may stand here at all (§3.4, §4.2, §4.3).
    fn check_order(&self, head: &Head) -> Result<(), Broken> {
        if head.length > MAX_PAYLOAD {
            return Err(Code::FrameSizeError.into());
        }
        let is_first = head.kind == Kind::Settings && !head.has(flag::ACK);
        let follows = match &self.open_head {
            None => head.kind != Kind::Continuation,
            Some(open) => head.kind == Kind::Continuation && head.stream == open.stream,
        };
        if (self.greeted || is_first) && follows { Ok(()) } else { Err(Code::ProtocolError.into()) }
    }

    fn begin_head(
        &mut self,
        head: &Head,
        payload: &[u8],
        now: Instant,
        new_head: NewHead<'_>,
    ) -> Result<(), Broken> {
        if head.stream.is_multiple_of(2) {
            return Err(Code::ProtocolError.into());
        }
        let mut block = frame::without_padding(head, payload).ok_or(Code::ProtocolError)?;
        if head.has(flag::PRIORITY) {
            block = block.get(5..).ok_or(Code::FrameSizeError)?;
        }
        self.floods.explain_head();
        let ends = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            self.head_since = None;
            return self.take_head(head.stream, ends, block, now, new_head);
        }
        self.head_since.get_or_insert(now);
        let block = block.to_vec();
        self.open_head = Some(OpenHead { stream: head.stream, ends, block, continuations: 0 });
        Ok(())
    }

    fn continue_head(
        &mut self,
        head: &Head,
        payload: &[u8],
        now: Instant,
        new_head: NewHead<'_>,
    ) -> Result<(), Broken> {
        let mut open = self.open_head.take().ok_or(Code::ProtocolError)?;
        open.continuations += 1;
        open.block.extend_from_slice(payload);
        if open.continuations > self.floods.limits().continuation_frames {
            return Err(Flood::Continuations.into());
        }
        if open.block.len() > MAX_PAYLOAD.max(list_bytes(&self.settings.head) as usize) {
            return Err(Flood::UnfinishedHead.into());
        }
        if head.has(flag::END_HEADERS) {
            self.head_since = None;
            return self.take_head(open.stream, open.ends, &open.block, now, new_head);
        }
        self.open_head = Some(open);
        Ok(())
    }

    /// What it says is for those who care for it, and no server has to (§5.3.2).
    fn take_priority(&mut self, head: &Head, now: Instant) -> Result<(), Broken> {
        self.floods.count(Flood::Priorities, now)?;
        match (head.stream, head.length) {
            (0, _) => Err(Code::ProtocolError.into()),
            (_, 5) => Ok(()),
            _ => Err(Code::FrameSizeError.into()),
        }
    }

    fn take_settings(&mut self, head: &Head, payload: &[u8], now: Instant) -> Result<(), Broken> {
        if head.stream != 0 {
            return Err(Code::ProtocolError.into());
        }
        let (settings, []) = payload.as_chunks::<6>() else { return Err(Code::FrameSizeError.into()) };
        self.floods.count(Flood::Settings, now)?;
        if head.has(flag::ACK) {
            if !settings.is_empty() {
                return Err(Code::FrameSizeError.into());
            }
            self.use_own_window();
            return Ok(());
        }
        self.greeted = true;
        let mut window = self.first_send_window;
        for [i, d, a, b, c, e] in settings {
            let value = u32::from_be_bytes([*a, *b, *c, *e]);
            match u16::from_be_bytes([*i, *d]) {
                setting::HEADER_TABLE_SIZE => self.encoder.set_max_table(value as usize),
                setting::ENABLE_PUSH if value > 1 => return Err(Code::ProtocolError.into()),
                setting::INITIAL_WINDOW_SIZE if value > MAX_31 => return Err(Code::FlowControlError.into()),
                setting::INITIAL_WINDOW_SIZE => window = value,
                // Ours are never larger than the least that it may be.
                setting::MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => {
                    return Err(Code::ProtocolError.into());
                }
                _ => {}
            }
        }
        // Once for all that the frame says, or one frame could make work for a thousand.
        self.use_window_of_client(window)?;
        frame::write_settings_ack(self.output.bytes_mut());
        Ok(())
    }

    fn use_window_of_client(&mut self, window: u32) -> Result<(), Broken> {
        let by = i64::from(window) - i64::from(self.first_send_window);
        self.first_send_window = window;
        if by == 0 {
            return Ok(());
        }
        for stream in self.streams.each() {
            stream.send.grow(by).map_err(|_| Code::FlowControlError)?;
            stream.wake();
        }
        Ok(())
    }

    /// The client knows how much it may send.
    fn use_own_window(&mut self) {
        let window = self.settings.stream_window;
        if self.first_receive_window != window {
            self.first_receive_window = window;
            self.streams.each().for_each(|stream| stream.receive.resize(window));
        }
    }

    fn take_ping(&mut self, head: &Head, payload: &[u8], now: Instant) -> Result<(), Broken> {
        if head.stream != 0 {
            return Err(Code::ProtocolError.into());
        }
        let payload: [u8; 8] = payload.try_into().map_err(|_| Code::FrameSizeError)?;
        self.floods.count(Flood::Pings, now)?;
        if !head.has(flag::ACK) {
            frame::write_ping(self.output.bytes_mut(), flag::ACK, payload);
        } else if payload == DRAIN_PING && self.ending == Ending::Announced {
            // All that it sent before it knew has come.
            self.ending = Ending::Final;
            frame::write_goaway(self.output.bytes_mut(), self.streams.highest(), Code::NoError);
        }
        Ok(())
    }

    fn take_window_update(&mut self, head: &Head, payload: &[u8], now: Instant) -> Result<(), Broken> {
        let increment = frame::number(payload).ok_or(Code::FrameSizeError)? & MAX_31;
        self.floods.count(Flood::WindowUpdates, now)?;
        if head.stream != 0 {
            return self.widen_stream(head.stream, increment);
        }
        if increment == 0 {
            return Err(Code::ProtocolError.into());
        }
        self.send.grow(i64::from(increment)).map_err(|_| Code::FlowControlError)?;
        self.streams.wake_waiting();
        Ok(())
    }

    fn take_other(&mut self, head: &Head, now: Instant) -> Result<(), Broken> {
        self.floods.count(Flood::Others, now)?;
        match (head.kind, head.stream, head.length) {
            (Kind::GoAway, 1.., _) => Err(Code::ProtocolError.into()),
            (Kind::GoAway, 0, ..8) => Err(Code::FrameSizeError.into()),
            // The client closes when it has its answers.
            _ => Ok(()),
        }
    }

    /// When a head must have ended that has begun and not ended yet.
    pub fn head_deadline(&self) -> Option<Instant> {
        self.head_since.map(|since| since + self.floods.limits().head_timeout)
    }

    /// Whether streams that are opened now are not to be served.
    pub(super) fn is_final(&self) -> bool {
        self.ending == Ending::Final
    }

    /// Announces the end (§6.8): the client is told when all it sent before has come.
    pub fn drain(&mut self) {
        if self.ending == Ending::No && self.broken.is_none() {
            self.ending = Ending::Announced;
            let out = self.output.bytes_mut();
            frame::write_goaway(out, MAX_31, Code::NoError);
            frame::write_ping(out, 0, DRAIN_PING);
        }
    }

    /// Whether there is nothing more to say once the output is written.
    pub fn is_over(&self) -> bool {
        self.broken.is_some()
            || (self.ending == Ending::Final && self.streams.count() == 0 && self.streams.served() == 0)
    }

    /// Ends the connection with an error; what runs on it is lost.
    pub fn break_off(&mut self, broken: Broken) {
        tracing::debug!("an HTTP/2 connection is ended: {broken:?}");
        let code = match broken {
            Broken::Rule(code) => code,
            Broken::Flood(_) => Code::EnhanceYourCalm,
        };
        frame::write_goaway(self.output.bytes_mut(), self.streams.highest(), code);
        self.broken = Some(broken);
        self.head_since = None;
        for request in std::mem::take(&mut self.requests) {
            self.streams.remove(request.place);
        }
        self.lose_all();
    }

    /// Nothing comes any more; those who serve a stream learn it.
    pub(super) fn lose_all(&mut self) {
        for stream in self.streams.each() {
            stream.gone.get_or_insert(Gone::Closed);
            stream.drop_body();
            stream.wake();
        }
    }

    /// What the client has sent too much of.
    pub fn flood(&self) -> Option<Flood> {
        match self.broken {
            Some(Broken::Flood(flood)) => Some(flood),
            Some(Broken::Rule(_)) | None => None,
        }
    }

    /// Bytes that are to be written.
    pub fn output(&self) -> &[u8] {
        self.output.data()
    }

    /// Takes note that `count` bytes of them were written.
    pub fn wrote(&mut self, count: usize) {
        self.output.advance(count);
        if self.output.is_empty() {
            self.flushes += 1;
            if self.send.available() > 0 {
                self.streams.wake_waiting();
            }
        }
    }

    /// Whether a client that reads nothing makes more of it than it may.
    pub(super) fn check_output(&mut self) {
        let most = super::outgoing::FULL_BUFFERS * self.settings.send_buffer + UNREAD_BYTES;
        if self.output.len() > most && self.broken.is_none() {
            self.break_off(Flood::Unread.into());
        }
    }

    /// Gives a window of the connection back.
    pub(super) fn release(&mut self, bytes: usize) {
        if let Some(increment) = self.receive.release(bytes)
            && self.broken.is_none()
        {
            frame::write_window_update(self.output.bytes_mut(), 0, increment);
        }
    }

    pub(super) fn send_window_of_client(&self) -> SendWindow {
        SendWindow::new(self.first_send_window)
    }
}

impl From<Code> for Broken {
    fn from(code: Code) -> Self {
        Broken::Rule(code)
    }
}

impl From<Flood> for Broken {
    fn from(flood: Flood) -> Self {
        Broken::Flood(flood)
    }
}
