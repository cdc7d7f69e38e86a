//! The demo: the real thing with everything it needs in the process.
//!
//! A throw-away CA and certificate in a directory of their own, three little backends that can be
//! stopped and started, and a configuration like any other.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
};

use http::{Method, StatusCode};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio::sync::{oneshot, watch};

use crate::{
    config::{self, Config},
    http::plain::{self, Asked, Entrance, Reply},
};

const BACKENDS: [&str; 3] = ["alder", "birch", "cedar"];

/// A demo that only needs to be served.
#[derive(Debug)]
pub struct Demo {
    pub config: Config,
    /// What is served and what to try.
    pub guide: String,
    pub stage: Stage,
}

/// The backends and the files; dropping it ends the ones and removes the others.
///
/// That is done by the thread of the backends: it was there before the process gave up writing.
#[derive(Debug)]
pub struct Stage {
    /// Dropped to end it.
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            // WHY: a panic has been printed, and there is nothing left to save.
            let _ = thread.join();
        }
    }
}

/// A directory that goes with its owner.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // WHY: what is left behind is a throw-away key in a directory that only this user can read.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug)]
pub enum DemoError {
    Io(&'static str, io::Error),
    Certificate(rcgen::Error),
    Config(String),
}

/// Writes the certificates, starts the backends and makes the configuration.
pub fn prepare(https: SocketAddr, admin: SocketAddr) -> Result<Demo, DemoError> {
    let directory = make_directory()?;
    write_certificates(&directory.0, https)?;
    let folder = directory.0.clone();
    let (stage, backends, control) = start_backends(directory)?;
    let text = config_text(https, admin, &backends);
    let (config, _) = config::parse("the demo's configuration", &text, &folder)
        .map_err(|problems| DemoError::Config(problems.to_string()))?;
    let guide = guide(https, admin, &folder, control);
    Ok(Demo { config, guide, stage })
}

/// A fresh directory that only this user can read.
fn make_directory() -> Result<Directory, DemoError> {
    let name = format!("portcullis-demo-{:08x}", fastrand::u32(..));
    let path = std::env::temp_dir().join(name);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .map_err(|error| DemoError::Io("a temporary directory can't be made", error))?;
    Ok(Directory(path))
}

fn write_certificates(directory: &Path, https: SocketAddr) -> Result<(), DemoError> {
    let mut ca = CertificateParams::new([])?;
    ca.distinguished_name.push(DnType::CommonName, "Portcullis demo CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate()?;
    let ca_certificate = ca.self_signed(&ca_key)?;
    let mut site = CertificateParams::new(site_names(https))?;
    site.distinguished_name.push(DnType::CommonName, "localhost");
    site.use_authority_key_identifier_extension = true;
    let site_key = KeyPair::generate()?;
    let site = site.signed_by(&site_key, &Issuer::new(ca, ca_key))?;
    write(&directory.join("ca.crt"), &ca_certificate.pem())?;
    write(&directory.join("site.crt"), &site.pem())?;
    write(&directory.join("site.key"), &site_key.serialize_pem())
}

fn site_names(https: SocketAddr) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), https.ip().to_string()];
    names.dedup();
    names
}

fn write(path: &Path, text: &str) -> Result<(), DemoError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| DemoError::Io("a certificate can't be written", error))
}

fn config_text(https: SocketAddr, admin: SocketAddr, backends: &[SocketAddr]) -> String {
    let list: Vec<String> = backends.iter().map(|address| format!("\"{address}\"")).collect();
    // Whoever types another address wants others to look at the demo.
    let unprotected = !admin.ip().is_loopback();
    format!(
        "[admin]\naddress = \"{admin}\"\nunprotected = {unprotected}\n\
         [log]\naccess = \"off\"\nformat = \"text\"\n\
         [[listeners]]\nname = \"demo\"\naddress = \"{https}\"\n\
         tls.certificates = [{{ chain = \"site.crt\", key = \"site.key\" }}]\n\
         [[routes]]\ncluster = \"web\"\n\
         [clusters.web]\nbackends = [{}]\n\
         health.path = \"/healthz\"\nhealth.interval = \"500ms\"\nhealth.timeout = \"250ms\"\n",
        list.join(", ")
    )
}

fn guide(https: SocketAddr, admin: SocketAddr, directory: &Path, control: SocketAddr) -> String {
    let ca = directory.join("ca.crt");
    let ca = ca.display();
    let port = https.port();
    let host = if https.ip().is_loopback() && https.is_ipv4() {
        "localhost".to_owned()
    } else {
        https.ip().to_string()
    };
    format!(
        "Portcullis demo: https://{host}:{port} in front of three backends in this process ({}).\n\
         \n\
         Ask it, over HTTP/2 and over HTTP/1.1; each answer names the backend that gave it:\n\
         \x20 curl --cacert {ca} https://{host}:{port}/\n\
         \x20 curl --cacert {ca} --http1.1 https://{host}:{port}/\n\
         Stop a backend, ask again, look at its health, and start it again:\n\
         \x20 curl -X POST http://{control}/{}/stop\n\
         \x20 curl -s http://{admin}/status\n\
         \x20 curl -X POST http://{control}/{}/start\n\
         See what Prometheus sees:\n\
         \x20 curl -s http://{admin}/metrics\n\
         \n\
         Ctrl-C drains and ends it.\n",
        BACKENDS.join(", "),
        BACKENDS[0],
        BACKENDS[0],
    )
}

/// Starts the backends and the address that stops and starts them, in a thread of their own.
fn start_backends(directory: Directory) -> Result<(Stage, Vec<SocketAddr>, SocketAddr), DemoError> {
    let failed = |error| DemoError::Io("a backend can't listen", error);
    let (listeners, switches): (Vec<_>, Vec<_>) = BACKENDS
        .iter()
        .map(|name| {
            let listener = listen("127.0.0.1:0".parse().map_err(io::Error::other)?)?;
            Ok((Backend { name, address: listener.local_addr()? }, watch::Sender::new(true)))
        })
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?
        .into_iter()
        .unzip();
    let control = listen(SocketAddr::from(([127, 0, 0, 1], 0))).map_err(failed)?;
    let control_address = control.local_addr().map_err(failed)?;
    let addresses = listeners.iter().map(|backend| backend.address).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (end, ended) = oneshot::channel::<()>();
    let thread = thread::Builder::new()
        .name("demo-backends".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = run_backends(listeners, switches, control) => {}
                    _ = ended => {}
                }
            });
            drop(directory);
        })
        .map_err(failed)?;
    Ok((Stage { end: Some(end), thread: Some(thread) }, addresses, control_address))
}

#[derive(Clone, Copy, Debug)]
struct Backend {
    name: &'static str,
    address: SocketAddr,
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn run_backends(backends: Vec<Backend>, switches: Vec<watch::Sender<bool>>, control: TcpListener) {
    for (backend, switch) in backends.iter().zip(&switches) {
        tokio::spawn(run_backend(*backend, switch.subscribe()));
    }
    match tokio::net::TcpListener::from_std(control) {
        Ok(control) => plain::serve(Entrance::Tcp(control), move |asked| flip(&switches, asked)).await,
        Err(error) => tracing::error!("the demo's control address failed: {error}"),
    }
}

/// Listens while its switch is on; off closes the port and every connection.
async fn run_backend(backend: Backend, mut on: watch::Receiver<bool>) {
    while on.wait_for(|on| *on).await.is_ok() {
        match listen(backend.address).and_then(tokio::net::TcpListener::from_std) {
            Ok(listener) => tokio::select! {
                () = plain::serve(Entrance::Tcp(listener), move |asked| greet(backend.name, asked)) => {}
                _ = on.wait_for(|on| !*on) => {}
            },
            Err(error) => return tracing::error!("backend {} can't listen: {error}", backend.name),
        }
    }
}

fn greet(name: &str, asked: &Asked<'_>) -> Reply {
    match asked.path {
        "/healthz" => Reply::text(StatusCode::OK, "ok\n"),
        path => Reply::text(StatusCode::OK, format!("hello from {name}: {} {path}\n", asked.method)),
    }
}

/// `POST /NAME/stop` and `POST /NAME/start`.
fn flip(switches: &[watch::Sender<bool>], asked: &Asked<'_>) -> Reply {
    let wanted = asked.path.strip_prefix('/').and_then(|path| path.split_once('/'));
    let Some((name, verb @ ("stop" | "start"))) = wanted else {
        return Reply::text(StatusCode::NOT_FOUND, "POST /NAME/stop or /NAME/start\n");
    };
    let Some(index) = BACKENDS.iter().position(|each| *each == name) else {
        return Reply::text(StatusCode::NOT_FOUND, format!("the backends are {}\n", BACKENDS.join(", ")));
    };
    if asked.method != Method::POST {
        return Reply::text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n");
    }
    switches[index].send_replace(verb == "start");
    Reply::text(StatusCode::OK, format!("{name}: {verb}\n"))
}

impl From<rcgen::Error> for DemoError {
    fn from(error: rcgen::Error) -> Self {
        DemoError::Certificate(error)
    }
}

impl fmt::Display for DemoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DemoError::Io(what, error) => write!(f, "{what}: {error}"),
            DemoError::Certificate(error) => write!(f, "a certificate can't be made: {error}"),
            DemoError::Config(problems) => f.write_str(problems),
        }
    }
}

impl std::error::Error for DemoError {}
