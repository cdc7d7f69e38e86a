//! HTTP/2 on the h2 crate: a client over TLS, and backends.
//!
//! All of it runs on one thread that drives sockets for the whole binary, so a test may block.

use std::{
    fmt,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
    server::SendResponse,
};
use http::{HeaderMap, Request, Response};
use rustls::{ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    task::{JoinHandle, JoinSet},
};

use super::{GUARD, client::tls_config, listen};

static RUNTIME: LazyLock<Handle> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
});

/// Runs the asynchronous part of a test.
#[track_caller]
pub fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(async { tokio::time::timeout(2 * GUARD, future).await.expect("done in time") })
}

/// A client's connection.
#[derive(Debug)]
pub struct H2 {
    pub sender: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

/// A response, whole or not.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
    /// Why it is not whole.
    pub error: Option<h2::Error>,
}

/// A request for a path of `site.example`.
pub fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("https://site.example{path}")).body(()).unwrap()
}

impl H2 {
    pub async fn connect(address: SocketAddr) -> H2 {
        H2::connect_with(address, &h2::client::Builder::new()).await
    }

    pub async fn connect_with(address: SocketAddr, settings: &h2::client::Builder) -> H2 {
        H2::connect_behind(b"", address, settings).await
    }

    /// Behind bytes in clear text.
    pub async fn connect_behind(header: &[u8], address: SocketAddr, settings: &h2::client::Builder) -> H2 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(header).await.unwrap();
        let config = Arc::new(tls_config(&["h2"], rustls::ALL_VERSIONS));
        let name = ServerName::try_from("site.example").unwrap();
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
        let (sender, connection) = settings.handshake(stream).await.unwrap();
        H2 { sender, driver: RUNTIME.spawn(connection) }
    }

    /// Sends a head.
    pub async fn open(&mut self, request: Request<()>, ended: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let mut ready = self.sender.clone().ready().await.unwrap();
        ready.send_request(request, ended).unwrap()
    }

    pub async fn get(&mut self, path: &str) -> Reply {
        self.ask(request("GET", path)).await
    }

    /// Sends a request without a body.
    pub async fn ask(&mut self, request: Request<()>) -> Reply {
        let (response, _) = self.open(request, true).await;
        read(response).await
    }

    /// Sends a request with a body and perhaps trailers.
    pub async fn send(&mut self, request: Request<()>, body: &[u8], trailers: Option<HeaderMap>) -> Reply {
        let (response, mut stream) = self.open(request, false).await;
        let sent = async {
            send_all(&mut stream, body, trailers.is_none()).await?;
            trailers.map_or(Ok(()), |trailers| stream.send_trailers(trailers))
        };
        // A peer that answers early may stop reading.
        let (reply, _) = tokio::join!(read(response), sent);
        reply
    }

    /// Waits until the connection is over.
    pub async fn ended(&mut self) -> Result<(), h2::Error> {
        (&mut self.driver).await.unwrap()
    }

    /// Waits until the other end takes no more streams.
    pub async fn until_refused(&mut self) {
        while poll_fn(|cx| self.sender.poll_ready(cx)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for H2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Reads a response to its end.
pub async fn read(response: ResponseFuture) -> Reply {
    let response = match response.await {
        Ok(response) => response,
        Err(error) => {
            return Reply {
                status: 0,
                headers: HeaderMap::new(),
                body: Vec::new(),
                trailers: None,
                error: Some(error),
            };
        }
    };
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let (body, trailers, error) = read_body(response.into_body()).await;
    Reply { status, headers, body, trailers, error }
}

/// Reads a body to its end, giving the window back.
pub async fn read_body(mut stream: RecvStream) -> (Vec<u8>, Option<HeaderMap>, Option<h2::Error>) {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        match data {
            Ok(data) => {
                body.extend_from_slice(&data);
                let _ = stream.flow_control().release_capacity(data.len());
            }
            Err(error) => return (body, None, Some(error)),
        }
    }
    match stream.trailers().await {
        Ok(trailers) => (body, trailers, None),
        Err(error) => (body, None, Some(error)),
    }
}

/// Sends bytes as the window allows.
pub async fn send_all(stream: &mut SendStream<Bytes>, body: &[u8], ended: bool) -> Result<(), h2::Error> {
    let mut rest = Bytes::copy_from_slice(body);
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        let room = match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Ok(()),
        };
        let part = rest.split_to(room.min(rest.len()));
        stream.send_data(part, ended && rest.is_empty())?;
    }
    if ended && body.is_empty() { stream.send_data(Bytes::new(), true) } else { Ok(()) }
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn field(&self, name: &str) -> Option<&str> {
        one(&self.headers, name)
    }

    pub fn reason(&self) -> Option<&str> {
        self.field("x-portcullis-reason")
    }
}

/// The value of a field, which must not be there twice.
#[track_caller]
pub fn one<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let all: Vec<_> = headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
    assert!(all.len() <= 1, "{name} more than once: {headers:?}");
    all.first().copied()
}

/// An HTTP/2 backend; each request gets a task that answers it.
pub struct H2Backend {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    connections: AtomicUsize,
    requests: Mutex<Vec<http::request::Parts>>,
    panics: AtomicUsize,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

type Answer = Pin<Box<dyn Future<Output = ()> + Send>>;
type Handler = dyn Fn(Request<RecvStream>, SendResponse<Bytes>) -> Answer + Send + Sync;

impl H2Backend {
    /// Clear text, with prior knowledge.
    pub fn new<F, A>(answer: F) -> Self
    where
        F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        H2Backend::open(None, Arc::new(move |request, respond| Box::pin(answer(request, respond))))
    }

    pub fn tls<F, A>(config: Arc<ServerConfig>, answer: F) -> Self
    where
        F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        H2Backend::open(Some(config), Arc::new(move |request, respond| Box::pin(answer(request, respond))))
    }

    /// Answers every request with 200 and its own body, trailers included.
    pub fn mirror() -> Self {
        H2Backend::new(|request, respond| async move {
            let (body, trailers, _) = read_body(request.into_body()).await;
            reply(respond, Response::new(()), &body, trailers).await;
        })
    }

    fn open(tls: Option<Arc<ServerConfig>>, handler: Arc<Handler>) -> Self {
        let (listener, address) = listen();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared::default());
        let state = Arc::clone(&shared);
        let acceptor = RUNTIME.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stream, _) = accepted.unwrap();
                        state.connections.fetch_add(1, Ordering::SeqCst);
                        connections.spawn(serve(stream, tls.clone(), handler.clone(), state.clone()));
                    }
                    Some(ended) = connections.join_next() => {
                        state.panics.fetch_add(usize::from(ended.is_err()), Ordering::SeqCst);
                    }
                }
            }
        });
        H2Backend { address, shared, acceptor }
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// The heads that came.
    pub fn requests(&self) -> Vec<http::request::Parts> {
        self.shared.requests.lock().unwrap().clone()
    }
}

impl Drop for H2Backend {
    fn drop(&mut self) {
        self.acceptor.abort();
        let panics = self.shared.panics.load(Ordering::SeqCst);
        assert!(panics == 0 || thread::panicking(), "tasks of a backend panicked");
    }
}

impl fmt::Debug for H2Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H2Backend").field("address", &self.address).finish_non_exhaustive()
    }
}

async fn serve(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    handler: Arc<Handler>,
    shared: Arc<Shared>,
) {
    let stream: Box<dyn Io> = match tls {
        None => Box::new(stream),
        Some(config) => match tokio_rustls::TlsAcceptor::from(config).accept(stream).await {
            Ok(stream) => Box::new(stream),
            Err(_) => return,
        },
    };
    // A proxy's clients leave many at a time; what is looked at here is not how this backend takes that.
    let mut builder = h2::server::Builder::new();
    builder.max_pending_accept_reset_streams(1000);
    let Ok(mut connection) = builder.handshake(stream).await else { return };
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                let (parts, body) = request.into_parts();
                shared.requests.lock().unwrap().push(parts.clone());
                answers.spawn(handler(Request::from_parts(parts, body), respond));
            }
            Some(ended) = answers.join_next() => {
                shared.panics.fetch_add(usize::from(ended.is_err()), Ordering::SeqCst);
            }
        }
    }
}

/// Sends a response, its body and perhaps trailers.
pub async fn reply(
    mut respond: SendResponse<Bytes>,
    response: Response<()>,
    body: &[u8],
    trailers: Option<HeaderMap>,
) {
    let Ok(mut stream) = respond.send_response(response, body.is_empty() && trailers.is_none()) else {
        return;
    };
    if body.is_empty() && trailers.is_none() {
        return;
    }
    if send_all(&mut stream, body, trailers.is_none()).await.is_ok()
        && let Some(trailers) = trailers
    {
        let _ = stream.send_trailers(trailers);
    }
}
