//! Backends that play a script on a raw connection and keep every byte that they get.

use std::{
    fmt,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection};

use super::{GUARD, listen};

type Script = dyn Fn(&mut Conversation) + Send + Sync;

/// A backend; dropping it ends its conversations and passes on a panic in one of them.
pub struct Backend {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    received: Vec<Vec<u8>>,
    /// Connections that the other end has closed.
    closed: usize,
    /// Connections that this end has closed.
    finished: usize,
    streams: Vec<TcpStream>,
    scripts: Vec<JoinHandle<()>>,
}

/// One accepted connection.
#[derive(Debug)]
pub struct Conversation {
    /// How many came before it.
    pub index: usize,
    stream: TcpStream,
    tls: Option<Box<ServerConnection>>,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
}

/// A request as it came.
#[derive(Debug)]
pub struct Request {
    pub head: String,
    /// Raw: chunks with their framing.
    pub body: Vec<u8>,
}

/// A whole response with a body.
pub fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

impl Backend {
    /// Plays the script on each connection, which closes when the script returns.
    pub fn new(script: impl Fn(&mut Conversation) + Send + Sync + 'static) -> Self {
        Backend::open(None, script)
    }

    /// The same over TLS.
    pub fn tls(
        config: Arc<ServerConfig>,
        script: impl Fn(&mut Conversation) + Send + Sync + 'static,
    ) -> Self {
        Backend::open(Some(config), script)
    }

    fn open(
        tls: Option<Arc<ServerConfig>>,
        script: impl Fn(&mut Conversation) + Send + Sync + 'static,
    ) -> Self {
        let (listener, address) = listen();
        let shared = Arc::new(Shared::default());
        let script: Arc<Script> = Arc::new(script);
        let acceptor = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    if shared.stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    shared.begin(stream, tls.clone(), &script);
                }
            })
        };
        Backend { address, shared, acceptor: Some(acceptor) }
    }

    /// Answers every request with these bytes, once it is there as a whole.
    pub fn answering(response: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Backend::new(move |conversation| conversation.answer_all(response.as_ref()))
    }

    /// Answers every request with 200 and this text.
    pub fn saying(text: &str) -> Self {
        Backend::answering(ok(text))
    }

    /// Answers every request with its own head.
    pub fn echo() -> Self {
        Backend::new(|conversation| {
            while let Some(request) = conversation.request() {
                conversation.send(ok(&request.head));
            }
        })
    }

    /// Reads and never answers.
    pub fn silent() -> Self {
        Backend::new(|conversation| {
            conversation.read_to_end();
        })
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> usize {
        self.shared.lock().received.len()
    }

    /// Everything that came on one connection.
    pub fn received(&self, connection: usize) -> String {
        String::from_utf8_lossy(&self.shared.lock().received[connection]).into_owned()
    }

    /// Everything that came, connection after connection.
    pub fn all_received(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().received.concat()).into_owned()
    }

    /// Waits until one connection has brought a text, and returns all of that connection.
    #[track_caller]
    pub fn until_received(&self, connection: usize, text: &str) -> String {
        self.until(&format!("{text:?} at the backend"), |state| {
            state
                .received
                .get(connection)
                .is_some_and(|bytes| memchr::memmem::find(bytes, text.as_bytes()).is_some())
        });
        self.received(connection)
    }

    /// Waits until so many connections were closed by the other end.
    #[track_caller]
    pub fn until_closed(&self, count: usize) {
        self.until("closed connections", |state| state.closed >= count);
    }

    /// Waits until so many scripts have ended and their connections with them.
    #[track_caller]
    pub fn until_finished(&self, count: usize) {
        self.until("ended scripts", |state| state.finished >= count);
    }

    /// Waits until any connection has brought a text.
    #[track_caller]
    pub fn until_any_received(&self, text: &str) {
        self.until(&format!("{text:?} at the backend"), |state| {
            state.received.iter().any(|bytes| memchr::memmem::find(bytes, text.as_bytes()).is_some())
        });
    }

    #[track_caller]
    fn until(&self, what: &str, check: impl Fn(&State) -> bool) {
        let state = self.shared.lock();
        let (state, _) = self.shared.changed.wait_timeout_while(state, GUARD, |state| !check(state)).unwrap();
        let came = check(&state);
        drop(state);
        assert!(came, "{what} did not come in {GUARD:?}; what came:\n{}", self.all_received());
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        let mut panicked = self.acceptor.take().is_some_and(|acceptor| acceptor.join().is_err());
        let (streams, scripts) = {
            let mut state = self.shared.lock();
            (std::mem::take(&mut state.streams), std::mem::take(&mut state.scripts))
        };
        for stream in streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for script in scripts {
            panicked |= script.join().is_err();
        }
        assert!(!panicked || thread::panicking(), "a script of a backend panicked");
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Shared {
    /// Also after a panic elsewhere, which has its own report.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>, stream: TcpStream, tls: Option<Arc<ServerConfig>>, script: &Arc<Script>) {
        stream.set_read_timeout(Some(GUARD)).unwrap();
        stream.set_write_timeout(Some(GUARD)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut state = self.lock();
        let mut conversation = Conversation {
            index: state.received.len(),
            stream: stream.try_clone().unwrap(),
            tls: tls.map(|config| Box::new(ServerConnection::new(config).unwrap())),
            shared: Arc::clone(self),
            buffer: Vec::new(),
        };
        let script = Arc::clone(script);
        state.received.push(Vec::new());
        state.streams.push(stream);
        state.scripts.push(thread::spawn(move || {
            script(&mut conversation);
            conversation.close();
            conversation.shared.lock().finished += 1;
            conversation.shared.changed.notify_all();
        }));
        self.changed.notify_all();
    }
}

impl Conversation {
    /// The next request with its body; `None` when the other end closes first.
    pub fn request(&mut self) -> Option<Request> {
        let head = self.head()?;
        let length = super::client::fields(&head, "content-length");
        let body = if let Some(length) = length.first() {
            let length: usize = length.parse().unwrap();
            self.take(length)?
        } else if super::client::fields(&head, "transfer-encoding").is_empty() {
            Vec::new()
        } else {
            self.chunked()?
        };
        Some(Request { head, body })
    }

    /// The next head with its blank line.
    pub fn head(&mut self) -> Option<String> {
        let head = self.until(b"\r\n\r\n")?;
        Some(String::from_utf8_lossy(&head).into_owned())
    }

    /// A chunked body, raw, to the end of its trailers.
    fn chunked(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n")?;
            body.extend_from_slice(&line);
            let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim_end(), 16).unwrap();
            if size == 0 {
                break;
            }
            body.extend(self.take(size + 2)?);
        }
        loop {
            let line = self.until(b"\r\n")?;
            body.extend_from_slice(&line);
            if line == b"\r\n" {
                return Some(body);
            }
        }
    }

    fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, mark) {
                return Some(self.buffer.drain(..at + mark.len()).collect());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// So many bytes.
    pub fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.fill() {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    /// Keeps what comes until the other end closes.
    pub fn read_to_end(&mut self) {
        while self.fill() {
            self.buffer.clear();
        }
    }

    pub fn answer_all(&mut self, response: &[u8]) {
        while self.request().is_some() {
            self.send(response);
        }
    }

    /// Whether all of it was taken by the kernel; the other end may have closed.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let bytes = bytes.as_ref();
        match &mut self.tls {
            None => self.stream.write_all(bytes).is_ok(),
            Some(tls) => {
                let mut stream = rustls::Stream::new(tls.as_mut(), &mut self.stream);
                stream.write_all(bytes).and_then(|()| stream.flush()).is_ok()
            }
        }
    }

    /// Ends the connection in order.
    pub fn close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = tls.write_tls(&mut self.stream);
        }
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads and keeps; false at the end.
    fn fill(&mut self) -> bool {
        let mut block = [0; 16 * 1024];
        let result = match &mut self.tls {
            None => self.stream.read(&mut block),
            Some(tls) => rustls::Stream::new(tls.as_mut(), &mut self.stream).read(&mut block),
        };
        let count = match result {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                assert!(self.shared.stopping.load(Ordering::SeqCst), "nothing came in {GUARD:?}");
                0
            }
            Err(_) => 0,
        };
        let mut state = self.shared.lock();
        state.received[self.index].extend_from_slice(&block[..count]);
        state.closed += usize::from(count == 0);
        self.shared.changed.notify_all();
        self.buffer.extend_from_slice(&block[..count]);
        count > 0
    }
}

/// An address whose queue of connections is full: the kernel drops what comes then.
#[derive(Debug)]
pub struct Unreachable {
    pub address: SocketAddr,
    _socket: socket2::Socket,
    _waiting: Vec<TcpStream>,
}

impl Unreachable {
    #[track_caller]
    pub fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
        let waiting: Vec<_> = std::iter::from_fn(connect).take(16).collect();
        assert!(waiting.len() < 16, "the queue never filled");
        Unreachable { address, _socket: socket, _waiting: waiting }
    }
}
