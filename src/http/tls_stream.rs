//! TLS with a client, on buffers that are borrowed from the worker.
//!
//! The TLS library's own buffers stay with a connection for its life; here ciphertext lies in
//! pooled blocks, and only while there is some. Reads are as large as the block, records are sealed
//! next to each other and written in one call.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{
    Error, InvalidMessage, ProtocolVersion, ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    buffer::{ReadBuffer, SEALED_BLOCK, SMALL_BLOCK, may_seal_at_large},
    record_size::{FULL_BYTES, RecordSizes},
};

/// Room that is enough for a small message of the handshake, or for an alert.
const MESSAGE_ROOM: usize = 512;
/// What sealing adds to a small payload at most: header, type, tag and, in TLS 1.2, a nonce; and an
/// answer to a key update that goes out in front of it.
const OVERHEAD: usize = 128;
/// What is sealed at once: as many full records as a block takes.
const SEALED_BYTES: usize = SEALED_BLOCK / (FULL_BYTES + OVERHEAD) * FULL_BYTES;
/// The same for a small block, however the records are cut.
const SMALL_BYTES: usize = SMALL_BLOCK - 16 * OVERHEAD;
/// The most ciphertext that may wait for its rest: a handshake message of 64 KiB in its records.
const UNFINISHED_BYTES: usize = 96 * 1024;

/// The TLS stream of a downstream connection.
///
/// A peer that closes without saying so in TLS is an error to the reader (`UnexpectedEof`): a body
/// that ends with its connection can't be cut short.
pub struct TlsStream {
    socket: TcpStream,
    session: UnbufferedServerConnection,
    /// Ciphertext that is not opened yet.
    incoming: ReadBuffer,
    /// Plaintext that found no room where it was asked for.
    opened: ReadBuffer,
    /// Ciphertext on its way out.
    outgoing: ReadBuffer,
    peer_closed: bool,
    close_sent: bool,
    held: Held,
    sizes: RecordSizes,
    /// A failed session does not come back.
    failed: bool,
}

/// What of `outgoing` was kept back so far, to go out with what follows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    /// Tickets: until the first write, or until the reader waits for a first request.
    UntilIdle,
    /// Until the next write, flush or shutdown: there will be one.
    UntilWrite,
}

/// What is done when the session may send.
enum Intent<'a> {
    Nothing,
    Seal(&'a [u8]),
    Close,
}

/// How far the session got.
#[derive(PartialEq, Eq)]
enum Step {
    /// A record was opened.
    Opened,
    /// All there was is opened, and the intent is carried out.
    Done,
    /// The handshake needs more from the peer.
    Blocked,
}

impl TlsStream {
    /// Begins with what was received already.
    pub fn new(config: Arc<ServerConfig>, socket: TcpStream, received: ReadBuffer) -> io::Result<Self> {
        Ok(TlsStream {
            socket,
            session: UnbufferedServerConnection::new(config).map_err(invalid)?,
            incoming: received,
            opened: ReadBuffer::default(),
            outgoing: ReadBuffer::default(),
            peer_closed: false,
            close_sent: false,
            held: Held::Nothing,
            sizes: RecordSizes::default(),
            failed: false,
        })
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.socket
    }

    /// What was agreed on.
    pub fn session(&self) -> &UnbufferedServerConnection {
        &self.session
    }

    /// Ready when the handshake is complete; a failure says why, as far as TLS knows
    /// (`rustls::Error` inside), after the alert was tried.
    ///
    /// The tickets of TLS 1.3 are not sent yet: the request is often here already, and its answer
    /// then takes them along.
    pub fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.step(cx, None, &Intent::Nothing)?;
            let complete = !self.session.is_handshaking();
            if complete && self.session.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
                self.held = Held::UntilIdle;
            } else {
                ready!(self.poll_send(cx))?;
            }
            if complete {
                self.incoming.release_if_empty();
                return Poll::Ready(Ok(()));
            }
            if self.peer_closed || ready!(self.poll_receive(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Ready when a read may find something.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.opened.is_empty() && self.incoming.is_empty() && !self.peer_closed && !self.failed {
            return self.socket.poll_read_ready(cx).map(|_| ());
        }
        Poll::Ready(())
    }

    /// Has the session go through what has arrived, to the next record with data or to its end;
    /// what it has to say itself goes to `outgoing`.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        target: Option<&mut ReadBuf<'_>>,
        intent: &Intent<'_>,
    ) -> io::Result<Step> {
        if self.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut target = target;
        loop {
            match self.turn(&mut target, intent) {
                Ok(Some(step)) => return Ok(step),
                Ok(None) => {}
                Err(error) => return Err(self.fail(cx, error)),
            }
        }
    }

    /// One state of the session; `None` when it has more to say.
    fn turn(
        &mut self,
        target: &mut Option<&mut ReadBuf<'_>>,
        intent: &Intent<'_>,
    ) -> Result<Option<Step>, Error> {
        let UnbufferedStatus { discard, state, .. } =
            self.session.process_tls_records(self.incoming.data_mut());
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                self.incoming.consume(discard);
                return Err(error);
            }
        };
        let step = match state {
            ConnectionState::ReadTraffic(mut records) => {
                while let Some(record) = records.next_record() {
                    hand_over(record?.payload, target, &mut self.opened);
                }
                Some(Step::Opened)
            }
            ConnectionState::EncodeTlsData(mut message) => {
                append(&mut self.outgoing, MESSAGE_ROOM, |room| {
                    message.encode(room).map_err(|error| encoding_room(&error))
                })?;
                None
            }
            ConnectionState::TransmitTlsData(message) => {
                // It lies in `outgoing`, which goes out in order.
                message.done();
                None
            }
            ConnectionState::PeerClosed => {
                self.peer_closed = true;
                None
            }
            ConnectionState::WriteTraffic(mut traffic) => {
                match intent {
                    Intent::Nothing => {}
                    Intent::Seal(payload) => {
                        seal(&mut traffic, payload, &mut self.sizes, &mut self.outgoing)?;
                    }
                    Intent::Close => append(&mut self.outgoing, MESSAGE_ROOM, |room| {
                        traffic.queue_close_notify(room).map_err(|error| sealing_room(&error))
                    })?,
                }
                Some(Step::Done)
            }
            ConnectionState::Closed if !matches!(intent, Intent::Seal(_)) => Some(Step::Done),
            ConnectionState::BlockedHandshake if !matches!(intent, Intent::Seal(_)) => Some(Step::Blocked),
            // Sealing before the handshake or after the end, and early data, which is never offered.
            _ => return Err(Error::HandshakeNotComplete),
        };
        self.incoming.consume(discard);
        Ok(step)
    }

    /// Lets go of the session, with one attempt to have its alert sent.
    fn fail(&mut self, cx: &mut Context<'_>, error: Error) -> io::Error {
        self.failed = true;
        // Only while there is something to send: what failed must not be looked at again.
        while self.session.wants_write() {
            let status = self.session.process_tls_records(self.incoming.data_mut());
            let Ok(ConnectionState::EncodeTlsData(mut alert)) = status.state else { break };
            let room = |room: &mut [u8]| alert.encode(room).map_err(|error| encoding_room(&error));
            if append(&mut self.outgoing, MESSAGE_ROOM, room).is_err() {
                break;
            }
        }
        // WHY: the error that led here is what counts.
        let _ = self.poll_send(cx);
        invalid(error)
    }

    /// Takes bytes like `poll_write` but leaves the sending to the shutdown that must follow, so that
    /// the last data and the word that it was the last go out together.
    pub fn poll_write_last(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(self.poll_seal(cx, bytes))?;
        self.held = Held::UntilWrite;
        Poll::Ready(Ok(count))
    }

    /// Sends everything, and that it was the last. Our half of the TCP connection stays open.
    pub fn poll_close_notify(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.close_sent && !self.failed {
            self.carry_out(cx, &Intent::Close)?;
            self.close_sent = true;
        }
        self.poll_send(cx)
    }

    /// Seals as many of the bytes as fit, once there is room for them.
    fn poll_seal(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.close_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.held == Held::Nothing || self.outgoing.data().len() + bytes.len() > FULL_BYTES {
            ready!(self.poll_send(cx))?;
        }
        let crowded = bytes.len() > SMALL_BYTES && self.outgoing.is_empty() && !may_seal_at_large();
        let bytes = &bytes[..bytes.len().min(if crowded { SMALL_BYTES } else { SEALED_BYTES })];
        self.carry_out(cx, &Intent::Seal(bytes))?;
        Poll::Ready(Ok(bytes.len()))
    }

    /// Reads ciphertext; `Ready(0)` is the end of the stream.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.incoming.data().len() > UNFINISHED_BYTES {
            let error = Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge);
            return Poll::Ready(Err(self.fail(cx, error)));
        }
        self.incoming.poll_read(&mut self.socket, cx)
    }

    /// Writes all ciphertext.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.held = Held::Nothing;
        while !self.outgoing.is_empty() {
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, self.outgoing.data()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.consume(count);
        }
        self.outgoing.release_if_empty();
        Poll::Ready(Ok(()))
    }

    /// Carries the intent out; what has arrived by then is opened first.
    fn carry_out(&mut self, cx: &mut Context<'_>, intent: &Intent<'_>) -> io::Result<()> {
        // Ends: nothing is read here, and each record that has arrived is opened once.
        while self.step(cx, None, intent)? == Step::Opened {}
        Ok(())
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = target.filled().len();
        loop {
            take_opened(&mut this.opened, target);
            while target.remaining() > 0 && !this.incoming.is_empty() {
                // What was opened before a failure still counts; the failure comes up again.
                match this.step(cx, Some(target), &Intent::Nothing) {
                    Ok(Step::Opened) => {}
                    Ok(Step::Done | Step::Blocked) => break,
                    Err(_) if target.filled().len() > before => break,
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            this.incoming.release_if_empty();
            if target.filled().len() > before || target.remaining() == 0 || this.peer_closed {
                if this.held == Held::UntilIdle {
                    this.held = Held::UntilWrite;
                }
                return Poll::Ready(Ok(()));
            }
            match this.poll_receive(cx)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(_) => {}
                Poll::Pending if this.held == Held::UntilIdle => {
                    // What does not go out now wakes the same task.
                    let _ = this.poll_send(cx)?;
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let count = ready!(this.poll_seal(cx, bytes))?;
        match this.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // The bytes are ours now; a flush or the next write sees to the rest.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = parts.iter().filter(|part| !part.is_empty());
        let Some(first) = filled.next() else { return Poll::Ready(Ok(0)) };
        if first.len() >= FULL_BYTES || filled.next().is_none() {
            return self.poll_write(cx, first);
        }
        // Small parts go out in one record.
        let mut record = ReadBuffer::default();
        for part in parts {
            let left = FULL_BYTES - record.data().len();
            record.append(&part[..part.len().min(left)]);
        }
        self.poll_write(cx, record.data())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_close_notify(cx))?;
        match ready!(Pin::new(&mut this.socket).poll_shutdown(cx)) {
            // A peer that was faster has reset the connection: over is over.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

fn seal(
    traffic: &mut WriteTraffic<'_, ServerConnectionData>,
    mut payload: &[u8],
    sizes: &mut RecordSizes,
    outgoing: &mut ReadBuffer,
) -> Result<(), Error> {
    sizes.begin(payload.len());
    while !payload.is_empty() {
        let (record, rest) = payload.split_at(sizes.next(payload.len()));
        append(outgoing, record.len() + OVERHEAD, |room| {
            traffic.encrypt(record, room).map_err(|error| sealing_room(&error))
        })?;
        payload = rest;
    }
    Ok(())
}

/// Has `seal` write into the room behind `outgoing`; it says how many bytes it wrote or how many it
/// needs.
fn append(
    outgoing: &mut ReadBuffer,
    mut room: usize,
    mut seal: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), Error> {
    loop {
        match seal(outgoing.room(room)) {
            Ok(count) => {
                outgoing.extend(count);
                return Ok(());
            }
            Err(Some(needed)) if needed > room => room = needed,
            Err(_) => return Err(Error::EncryptError),
        }
    }
}

fn sealing_room(error: &EncryptError) -> Option<usize> {
    match error {
        EncryptError::InsufficientSize(needed) => Some(needed.required_size),
        EncryptError::EncryptExhausted => None,
    }
}

fn encoding_room(error: &EncodeError) -> Option<usize> {
    match error {
        EncodeError::InsufficientSize(needed) => Some(needed.required_size),
        EncodeError::AlreadyEncoded => None,
    }
}

/// Puts plaintext where it was asked for, and what has no room there aside.
fn hand_over(payload: &[u8], target: &mut Option<&mut ReadBuf<'_>>, opened: &mut ReadBuffer) {
    let fits = match target {
        Some(target) => {
            let fits = payload.len().min(target.remaining());
            target.put_slice(&payload[..fits]);
            fits
        }
        None => 0,
    };
    if fits < payload.len() {
        opened.append(&payload[fits..]);
    }
}

fn take_opened(opened: &mut ReadBuffer, target: &mut ReadBuf<'_>) {
    let count = opened.data().len().min(target.remaining());
    target.put_slice(&opened.data()[..count]);
    opened.consume(count);
    opened.release_if_empty();
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::{TlsConnector, client};

    use super::*;

    struct Keys {
        server: Arc<ServerConfig>,
        client: Arc<rustls::ClientConfig>,
    }

    fn keys(version: &'static rustls::SupportedProtocolVersion) -> Keys {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = CertificateDer::from(pair.cert.der().to_vec());
        let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        Keys {
            server: ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate], key)
                .unwrap()
                .into(),
            client: rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth()
                .into(),
        }
    }

    async fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, theirs)
    }

    async fn accept(config: Arc<ServerConfig>, socket: TcpStream) -> io::Result<TlsStream> {
        let mut stream = TlsStream::new(config, socket, ReadBuffer::default())?;
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    async fn pair(
        version: &'static rustls::SupportedProtocolVersion,
    ) -> (TlsStream, client::TlsStream<TcpStream>) {
        let (keys, (ours, theirs)) = (keys(version), sockets().await);
        let name = ServerName::try_from("localhost").unwrap();
        let (ours, theirs) =
            tokio::join!(accept(keys.server, ours), TlsConnector::from(keys.client).connect(name, theirs));
        (ours.unwrap(), theirs.unwrap())
    }

    /// A client hello as it goes over the wire.
    fn hello(keys: &Keys) -> Vec<u8> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = rustls::ClientConnection::new(keys.client.clone(), name).unwrap();
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        wire
    }

    fn reason(error: &io::Error) -> Option<&Error> {
        error.get_ref()?.downcast_ref()
    }

    #[tokio::test]
    async fn completes_a_handshake_whose_hello_is_split_at_any_byte() {
        let keys = keys(&rustls::version::TLS13);
        let length = hello(&keys).len();
        for at in 1..length {
            let (ours, theirs) = sockets().await;
            theirs.set_nodelay(true).unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let mut client = rustls::ClientConnection::new(keys.client.clone(), name).unwrap();
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            let mut stream = TlsStream::new(keys.server.clone(), ours, ReadBuffer::default()).unwrap();
            let mut theirs = theirs.into_std().unwrap();
            io::Write::write_all(&mut theirs, &wire[..at]).unwrap();
            stream.socket.readable().await.unwrap();
            let waits = poll_fn(|cx| Poll::Ready(stream.poll_handshake(cx).is_pending())).await;
            assert!(waits, "complete after {at} bytes of {length}");
            io::Write::write_all(&mut theirs, &wire[at..]).unwrap();
            theirs.set_nonblocking(false).unwrap();
            let rest = tokio::task::spawn_blocking(move || client.complete_io(&mut theirs).map(|_| theirs));
            poll_fn(|cx| stream.poll_handshake(cx)).await.unwrap();
            rest.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn joins_a_hello_that_comes_in_many_records() {
        let (keys, (ours, theirs)) = (keys(&rustls::version::TLS13), sockets().await);
        let mut config = (*keys.client).clone();
        config.max_fragment_size = Some(64);
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let (ours, theirs) = tokio::join!(accept(keys.server, ours), connector.connect(name, theirs));
        ours.unwrap().write_all(b"hello").await.unwrap();
        theirs.unwrap().read_exact(&mut [0; 5]).await.unwrap();
    }

    #[tokio::test]
    async fn refuses_what_is_not_tls_with_an_alert() {
        let clear_text = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
        for garbage in [clear_text, vec![0; 64 * 1024], vec![0x16; 64 * 1024]] {
            let (ours, mut theirs) = sockets().await;
            let sends = async {
                let _ = theirs.write_all(&garbage).await;
                let mut alert = [0; 2];
                theirs.read_exact(&mut alert).await.map(|_| alert)
            };
            let (result, alert) = tokio::join!(accept(keys(&rustls::version::TLS13).server, ours), sends);
            assert!(matches!(reason(&result.unwrap_err()), Some(Error::InvalidMessage(_))));
            // A reset may overtake the alert: it was not read to its end.
            assert!(alert.is_err() || alert.is_ok_and(|alert| alert == [0x15, 3]));
        }
    }

    #[tokio::test]
    async fn bounds_what_waits_for_the_rest_of_a_handshake_message() {
        let (ours, mut theirs) = sockets().await;
        // A client hello of 16 MiB in records of 16 KiB.
        let mut record = vec![0x16, 3, 1, 0x40, 0];
        record.resize(5 + FULL_BYTES, 0);
        record[5..9].copy_from_slice(&[1, 0xff, 0xff, 0xff]);
        let sends = async { while theirs.write_all(&record).await.is_ok() {} };
        let result = accept(keys(&rustls::version::TLS13).server, ours);
        let error = tokio::select! { result = result => result.unwrap_err(), () = sends => panic!("no end") };
        assert!(matches!(reason(&error), Some(Error::InvalidMessage(_))));
    }

    #[tokio::test]
    async fn fails_when_the_peer_closes_in_the_handshake() {
        let keys = keys(&rustls::version::TLS13);
        let hello = hello(&keys);
        for length in [0, 1, 5, hello.len() / 2, hello.len()] {
            let (ours, mut theirs) = sockets().await;
            theirs.write_all(&hello[..length]).await.unwrap();
            theirs.shutdown().await.unwrap();
            let error = accept(keys.server.clone(), ours).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[tokio::test]
    async fn tells_an_end_from_a_cut() {
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            for clean in [true, false] {
                let (mut ours, mut theirs) = pair(version).await;
                theirs.write_all(b"words").await.unwrap();
                if clean {
                    theirs.shutdown().await.unwrap();
                } else {
                    theirs.get_mut().0.shutdown().await.unwrap();
                }
                let mut words = Vec::new();
                let result = ours.read_to_end(&mut words).await;
                assert_eq!(words, b"words");
                let expected = if clean { Ok(5) } else { Err(io::ErrorKind::UnexpectedEof) };
                assert_eq!(result.map_err(|error| error.kind()), expected);
            }
        }
    }

    #[tokio::test]
    async fn still_writes_after_the_peer_said_its_last_word() {
        let (mut ours, mut theirs) = pair(&rustls::version::TLS13).await;
        theirs.shutdown().await.unwrap();
        assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0);
        ours.write_all(b"answer").await.unwrap();
        ours.shutdown().await.unwrap();
        let mut answer = Vec::new();
        theirs.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        assert_eq!(ours.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn fails_for_good_on_a_record_that_was_tampered_with() {
        let (mut ours, mut theirs) = pair(&rustls::version::TLS13).await;
        theirs.get_mut().0.write_all(&[0x17, 3, 3, 0, 32]).await.unwrap();
        theirs.get_mut().0.write_all(&[7; 32]).await.unwrap();
        let error = ours.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(reason(&error), Some(&Error::DecryptError));
        assert!(ours.read(&mut [0; 8]).await.is_err());
        assert!(ours.write(b"x").await.is_err());
        assert!(theirs.read(&mut [0; 8]).await.unwrap_err().to_string().contains("BadRecordMac"));
    }

    #[tokio::test]
    async fn carries_bytes_both_ways_at_once_in_pieces_of_any_size() {
        const TOTAL: usize = 3 << 20;
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let (mut ours, theirs) = pair(version).await;
            let text: Vec<u8> = (0..=252).cycle().take(TOTAL).collect();
            let (mut back, mut forth) = tokio::io::split(theirs);
            let sent = text.clone();
            let sends = tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(7);
                let mut left = &sent[..];
                while !left.is_empty() {
                    let (piece, rest) = left.split_at(random.usize(1..=90_000).min(left.len()));
                    forth.write_all(piece).await.unwrap();
                    if random.bool() {
                        forth.flush().await.unwrap();
                    }
                    left = rest;
                }
                forth.shutdown().await.unwrap();
            });
            let echo = async {
                let mut random = fastrand::Rng::with_seed(8);
                let mut piece = vec![0; 150_000];
                loop {
                    let count = ours.read(&mut piece[..random.usize(1..150_000)]).await.unwrap();
                    if count == 0 {
                        break;
                    }
                    let (head, tail) = piece[..count].split_at(random.usize(0..=count));
                    let parts = [IoSlice::new(head), IoSlice::new(&[]), IoSlice::new(tail)];
                    let written = ours.write_vectored(&parts).await.unwrap();
                    ours.write_all(&piece[written..count]).await.unwrap();
                }
                ours.shutdown().await.unwrap();
                ours
            };
            let mut echoed = Vec::new();
            let (ours, result) = tokio::join!(echo, back.read_to_end(&mut echoed));
            result.unwrap();
            sends.await.unwrap();
            assert!(echoed == text);
            for buffer in [&ours.incoming, &ours.opened, &ours.outgoing] {
                assert!(buffer.is_empty());
            }
        }
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_holds_writes_back() {
        let (mut ours, mut theirs) = pair(&rustls::version::TLS13).await;
        let text = vec![b'x'; 200_000];
        let mut taken = 0;
        loop {
            let write = poll_fn(|cx| Poll::Ready(Pin::new(&mut ours).poll_write(cx, &text))).await;
            match write {
                Poll::Ready(count) => taken += count.unwrap(),
                Poll::Pending => break,
            }
        }
        assert!(ours.outgoing.data().len() <= SEALED_BLOCK);
        let mut received = vec![0; taken];
        let (flushed, read) = tokio::join!(ours.flush(), theirs.read_exact(&mut received));
        flushed.unwrap();
        read.unwrap();
        assert!(received.iter().all(|byte| *byte == b'x'));
    }

    #[tokio::test]
    async fn writes_while_data_that_nobody_asked_for_waits() {
        let (mut ours, mut theirs) = pair(&rustls::version::TLS13).await;
        let text = vec![b'q'; 50_000];
        theirs.write_all(&text).await.unwrap();
        let mut first = [0; 1];
        ours.read_exact(&mut first).await.unwrap();
        ours.write_all(b"early").await.unwrap();
        let mut answer = [0; 5];
        theirs.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"early");
        let mut rest = vec![0; text.len() - 1];
        ours.read_exact(&mut rest).await.unwrap();
        assert!(rest.iter().all(|byte| *byte == b'q'));
    }

    #[tokio::test]
    async fn follows_new_keys_in_both_directions() {
        let (mut ours, mut theirs) = pair(&rustls::version::TLS13).await;
        for _ in 0..3 {
            theirs.get_mut().1.refresh_traffic_keys().unwrap();
            theirs.write_all(b"ping").await.unwrap();
            let mut ping = [0; 4];
            ours.read_exact(&mut ping).await.unwrap();
            ours.write_all(b"pong").await.unwrap();
            theirs.read_exact(&mut ping).await.unwrap();
            assert_eq!(&ping, b"pong");
        }
    }

    /// Whether a read waits for the client.
    async fn waits(ours: &mut TlsStream) -> bool {
        let mut target = [0; 8];
        let mut target = ReadBuf::new(&mut target);
        poll_fn(|cx| Poll::Ready(Pin::new(&mut *ours).poll_read(cx, &mut target).is_pending())).await
    }

    #[tokio::test]
    async fn sends_tickets_with_the_first_answer() {
        let (mut ours, mut theirs) = pair(&rustls::version::TLS13).await;
        theirs.write_all(b"ping").await.unwrap();
        ours.socket.readable().await.unwrap();
        ours.read_exact(&mut [0; 4]).await.unwrap();
        assert!(waits(&mut ours).await && !ours.outgoing.is_empty(), "sent too early");
        ours.write_all(b"pong").await.unwrap();
        assert!(ours.outgoing.is_empty());
        theirs.read_exact(&mut [0; 4]).await.unwrap();
        assert_eq!(theirs.get_ref().1.tls13_tickets_received(), 2);
    }

    #[tokio::test]
    async fn sends_tickets_when_no_request_comes() {
        let (mut ours, mut theirs) = pair(&rustls::version::TLS13).await;
        assert!(!ours.outgoing.is_empty());
        assert!(waits(&mut ours).await);
        assert!(ours.outgoing.is_empty());
        ours.shutdown().await.unwrap();
        assert_eq!(theirs.read(&mut [0; 4]).await.unwrap(), 0);
        assert_eq!(theirs.get_ref().1.tls13_tickets_received(), 2);
    }

    #[tokio::test]
    async fn sends_the_last_bytes_together_with_the_end() {
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            for length in [1, FULL_BYTES, 100_000] {
                let (mut ours, mut theirs) = pair(version).await;
                let text = vec![b'x'; length];
                let mut left = &text[..];
                let sends = async {
                    while !left.is_empty() {
                        let count = poll_fn(|cx| ours.poll_write_last(cx, left)).await.unwrap();
                        assert!(!ours.outgoing.is_empty());
                        left = &left[count..];
                    }
                    ours.shutdown().await.unwrap();
                };
                let mut received = Vec::new();
                let ((), result) = tokio::join!(sends, theirs.read_to_end(&mut received));
                result.unwrap();
                assert!(received == text);
            }
        }
    }

    #[tokio::test]
    async fn holds_no_block_while_idle() {
        let (mut ours, mut theirs) = pair(&rustls::version::TLS13).await;
        theirs.write_all(b"ping").await.unwrap();
        ours.read_exact(&mut [0; 4]).await.unwrap();
        ours.write_all(b"pong").await.unwrap();
        assert!(waits(&mut ours).await);
        for buffer in [&mut ours.incoming, &mut ours.opened, &mut ours.outgoing] {
            assert_eq!(buffer.room(0).len(), 0);
        }
    }
}
