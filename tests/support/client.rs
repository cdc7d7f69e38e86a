//! An HTTP/1 client that sends literal bytes and shows literal answers.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName},
};

use super::{GUARD, certificates::TRUSTED};

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<ClientConnection, TcpStream>>),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order; for TLS with its closing alert.
    Closed,
    /// Reset, or TLS without its closing alert.
    Broken,
}

#[derive(Debug)]
pub struct Client {
    stream: Stream,
    /// Read and not yet taken.
    buffer: Vec<u8>,
    end: Option<End>,
}

/// A response as it came.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Status line and fields.
    pub head: String,
    pub body: Vec<u8>,
    /// Of a chunked body, raw.
    pub trailers: String,
    /// The framing says that nothing is missing.
    pub complete: bool,
}

/// Sends bytes on a connection of their own and reads until it closes.
#[track_caller]
pub fn exchange(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut client = Client::plain(address);
    client.send(bytes);
    client.rest()
}

/// A GET for a path on a connection of its own.
#[track_caller]
pub fn get(address: SocketAddr, path: &str) -> Response {
    let mut client = Client::plain(address);
    client.send(format!("GET {path} HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n"));
    client.response("GET")
}

pub fn tls_config(alpn: &[&str], versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(TRUSTED.roots())
            .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, GUARD).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream.set_write_timeout(Some(GUARD)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

impl Client {
    #[track_caller]
    pub fn plain(address: SocketAddr) -> Self {
        Client { stream: Stream::Plain(connect(address)), buffer: Vec::new(), end: None }
    }

    /// From another address of the loopback network.
    #[track_caller]
    pub fn plain_from(source: [u8; 4], address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(GUARD)).unwrap();
        Client { stream: Stream::Plain(stream), buffer: Vec::new(), end: None }
    }

    /// HTTP/1.1 over TLS, as `localhost`.
    #[track_caller]
    pub fn tls(address: SocketAddr) -> Self {
        let config = tls_config(&["http/1.1"], rustls::ALL_VERSIONS);
        Client::handshake(address, "localhost", Arc::new(config)).unwrap()
    }

    /// # Errors
    /// What the handshake failed with.
    pub fn handshake(address: SocketAddr, name: &str, config: Arc<ClientConfig>) -> io::Result<Self> {
        Client::handshake_behind(b"", address, name, config)
    }

    /// TLS behind bytes in clear text, which leave with the client hello.
    ///
    /// # Errors
    /// What the handshake failed with.
    pub fn handshake_behind(
        header: &[u8],
        address: SocketAddr,
        name: &str,
        config: Arc<ClientConfig>,
    ) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut socket = connect(address);
        let mut first = header.to_vec();
        session.write_tls(&mut first)?;
        socket.write_all(&first)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        let stream = Stream::Tls(Box::new(rustls::StreamOwned::new(session, socket)));
        Ok(Client { stream, buffer: Vec::new(), end: None })
    }

    fn session(&self) -> &ClientConnection {
        match &self.stream {
            Stream::Tls(stream) => &stream.conn,
            Stream::Plain(_) => panic!("not a TLS connection"),
        }
    }

    pub fn certificate(&self) -> CertificateDer<'static> {
        self.session().peer_certificates().unwrap()[0].clone().into_owned()
    }

    pub fn alpn(&self) -> Option<String> {
        self.session().alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap())
    }

    pub fn tls_version(&self) -> ProtocolVersion {
        self.session().protocol_version().unwrap()
    }

    /// What the keys were exchanged in.
    pub fn group(&self) -> rustls::NamedGroup {
        self.session().negotiated_key_exchange_group().unwrap().name()
    }

    pub fn sent_early_data(&self) -> bool {
        self.session().is_early_data_accepted()
    }

    pub fn is_resumed(&self) -> bool {
        self.session().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.socket().local_addr().unwrap()
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        assert!(self.try_send(bytes), "the other end has closed");
    }

    /// Whether all of it could be handed to the kernel.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let bytes = bytes.as_ref();
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes),
            Stream::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
        .is_ok()
    }

    /// Sends a GET that keeps the connection.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: a.example\r\n\r\n"));
        self.response("GET")
    }

    /// Reads more into the buffer; false at the end.
    #[track_caller]
    fn fill(&mut self) -> bool {
        if self.end.is_some() {
            return false;
        }
        let mut block = [0; 16 * 1024];
        let result = match &mut self.stream {
            Stream::Plain(stream) => stream.read(&mut block),
            Stream::Tls(stream) => stream.read(&mut block),
        };
        match result {
            Ok(0) => self.end = Some(End::Closed),
            Ok(count) => self.buffer.extend_from_slice(&block[..count]),
            // Of a process that was stopped and goes on.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing came in {GUARD:?}; had {:?}", String::from_utf8_lossy(&self.buffer))
            }
            Err(_) => self.end = Some(End::Broken),
        }
        self.end.is_none()
    }

    /// What comes until the other end closes.
    #[track_caller]
    pub fn rest(&mut self) -> String {
        while self.fill() {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }

    /// How the connection ends; fails if another byte comes.
    #[track_caller]
    pub fn end(&mut self) -> End {
        while self.fill() {}
        assert_eq!(String::from_utf8_lossy(&self.buffer), "", "bytes before the end");
        self.end.unwrap()
    }

    /// Whether nothing comes for a moment, not even an end.
    pub fn is_silent(&mut self, moment: Duration) -> bool {
        self.socket().set_read_timeout(Some(moment)).unwrap();
        let mut byte = [0];
        let waits = self.buffer.is_empty()
            && self.end.is_none()
            && self.socket().peek(&mut byte).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        self.socket().set_read_timeout(Some(GUARD)).unwrap();
        waits
    }

    /// A head with its blank line; empty when the connection ends first.
    #[track_caller]
    pub fn head(&mut self) -> String {
        self.line(b"\r\n\r\n")
    }

    #[track_caller]
    fn line(&mut self, mark: &[u8]) -> String {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, mark) {
                let line: Vec<u8> = self.buffer.drain(..at + mark.len()).collect();
                return String::from_utf8_lossy(&line).into_owned();
            }
            if !self.fill() {
                return String::new();
            }
        }
    }

    /// Up to `count` bytes; fewer when the connection ends first.
    #[track_caller]
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count && self.fill() {}
        let count = count.min(self.buffer.len());
        self.buffer.drain(..count).collect()
    }

    /// The next response, interim ones skipped, by its framing (RFC 9112 §6.3).
    #[track_caller]
    pub fn response(&mut self, method: &str) -> Response {
        let mut head = self.head();
        while head.starts_with("HTTP/1.1 1") && !head.starts_with("HTTP/1.1 101") {
            head = self.head();
        }
        assert!(!head.is_empty(), "no response; the connection ended with {:?}, {:?}", self.end, self.buffer);
        let status = head[9..12].parse().unwrap();
        let mut response =
            Response { status, head, body: Vec::new(), trailers: String::new(), complete: true };
        if method == "HEAD" || matches!(status, 101 | 204 | 304) {
            return response;
        }
        if response.field("transfer-encoding").is_some() {
            self.chunked(&mut response);
        } else if let Some(length) = response.field("content-length") {
            let length = length.parse().unwrap();
            response.body = self.take(length);
            response.complete = response.body.len() == length;
        } else {
            while self.fill() {}
            response.body = std::mem::take(&mut self.buffer);
            response.complete = self.end == Some(End::Closed);
        }
        response
    }

    #[track_caller]
    fn chunked(&mut self, response: &mut Response) {
        response.complete = false;
        loop {
            let line = self.line(b"\r\n");
            if line.is_empty() {
                return;
            }
            let size = usize::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("{line:?}"));
            if size == 0 {
                break;
            }
            let data = self.take(size);
            response.body.extend_from_slice(&data);
            if data.len() < size || self.take(2) != b"\r\n" {
                return;
            }
        }
        loop {
            let line = self.line(b"\r\n");
            if line == "\r\n" {
                response.complete = true;
                return;
            }
            if line.is_empty() {
                return;
            }
            response.trailers.push_str(&line);
        }
    }
}

impl Response {
    /// The value of a field, which must not be there twice.
    #[track_caller]
    pub fn field(&self, name: &str) -> Option<&str> {
        let all = fields(&self.head, name);
        assert!(all.len() <= 1, "{name} more than once: {}", self.head);
        all.first().copied()
    }

    pub fn reason(&self) -> Option<&str> {
        self.field("x-portcullis-reason")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// All values of a field in a raw head; `name` is lower case.
pub fn fields<'h>(head: &'h str, name: &str) -> Vec<&'h str> {
    head.split("\r\n")
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}
