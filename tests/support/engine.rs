//! The real engine in this process, on ports that the kernel chooses.

use std::{
    cell::Cell,
    fmt::Display,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::LazyLock,
    thread::{self, JoinHandle},
};

use portcullis::{
    app::{App, StartError, Stopper},
    config,
};
use serde_json::Value;

use super::{
    certificates::{Leaf, TRUSTED},
    client::Client,
    until,
};

/// The certificate of the TLS listener.
static SITE: LazyLock<Leaf> = LazyLock::new(|| TRUSTED.issue(&["localhost", "site.example"]));

/// A configuration in the making: two listeners, `plain` and `tls`, one route, one cluster.
///
/// Each method adds lines to a table. One worker, no health checks, a short drain, nothing shed.
#[derive(Debug)]
pub struct Setup {
    workers: usize,
    top: String,
    token: Option<String>,
    limits: String,
    plain: String,
    tls: String,
    certificates: String,
    routes: String,
    cluster: String,
    health: String,
    backends: Vec<String>,
    log: String,
    more: String,
    files: Vec<(String, Vec<u8>)>,
}

impl Setup {
    pub fn new(backends: &[SocketAddr]) -> Self {
        Setup {
            workers: 1,
            top: String::new(),
            token: None,
            limits: "drain_timeout = \"1s\"\n".to_owned(),
            plain: String::new(),
            tls: String::new(),
            certificates: "{ chain = \"site.crt\", key = \"site.key\" }".to_owned(),
            routes: "[[routes]]\nname = \"all\"\ncluster = \"web\"\n".to_owned(),
            cluster: String::new(),
            health: "health = false\n".to_owned(),
            backends: backends.iter().map(|address| format!("\"{address}\"")).collect(),
            log: "access.log".to_owned(),
            more: String::new(),
            files: Vec::new(),
        }
    }

    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    pub fn top(self, line: impl Display) -> Self {
        Setup { top: format!("{}{line}\n", self.top), ..self }
    }

    /// The admin address asks for a token.
    pub fn token(self, token: &str) -> Self {
        Setup { token: Some(token.to_owned()), ..self }.file("token", token)
    }

    pub fn limits(self, line: impl Display) -> Self {
        Setup { limits: format!("{}{line}\n", self.limits), ..self }
    }

    pub fn drain_timeout(self, duration: &str) -> Self {
        let limits =
            self.limits.replace("drain_timeout = \"1s\"", &format!("drain_timeout = \"{duration}\""));
        Setup { limits, ..self }
    }

    /// Keys of the clear-text listener.
    pub fn plain(self, line: impl Display) -> Self {
        Setup { plain: format!("{}{line}\n", self.plain), ..self }
    }

    /// Keys of the TLS listener.
    pub fn tls(self, line: impl Display) -> Self {
        Setup { tls: format!("{}{line}\n", self.tls), ..self }
    }

    /// Replaces the certificates of the TLS listener.
    pub fn certificates(mut self, leaves: &[&Leaf]) -> Self {
        let mut tables = Vec::new();
        for (index, leaf) in leaves.iter().enumerate() {
            self = self.file(&format!("{index}.crt"), &leaf.chain).file(&format!("{index}.key"), &leaf.key);
            tables.push(format!("{{ chain = \"{index}.crt\", key = \"{index}.key\" }}"));
        }
        self.certificates = tables.join(", ");
        self
    }

    /// Replaces the certificates of the TLS listener by one that has an OCSP response beside it.
    pub fn stapled(self, leaf: &Leaf, response: &[u8]) -> Self {
        let setup = self.certificates(&[leaf]).file("0.ocsp", response);
        Setup { certificates: setup.certificates.replace(" }", ", ocsp = \"0.ocsp\" }"), ..setup }
    }

    /// Replaces the route.
    pub fn routes(self, text: &str) -> Self {
        Setup { routes: format!("{text}\n"), ..self }
    }

    pub fn cluster(self, line: impl Display) -> Self {
        Setup { cluster: format!("{}{line}\n", self.cluster), ..self }
    }

    /// Replaces `health = false`.
    pub fn health(self, lines: &str) -> Self {
        Setup { health: format!("{lines}\n"), ..self }
    }

    /// Adds a backend with a weight.
    pub fn weighted(mut self, address: SocketAddr, weight: u32) -> Self {
        self.backends.push(format!("{{ address = \"{address}\", weight = {weight} }}"));
        self
    }

    /// Another sink for the access log.
    pub fn log(self, path: &str) -> Self {
        Setup { log: path.to_owned(), ..self }
    }

    /// Whole tables behind the others.
    pub fn more(self, text: &str) -> Self {
        Setup { more: format!("{}{text}\n", self.more), ..self }
    }

    /// A file beside the configuration.
    pub fn file(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.files.push((name.to_owned(), content.as_ref().to_owned()));
        self
    }

    fn text(&self) -> String {
        let Setup {
            workers,
            top,
            token,
            limits,
            plain,
            tls,
            certificates,
            routes,
            cluster,
            health,
            log,
            more,
            ..
        } = self;
        let token = token.as_ref().map_or("", |_| "token_file = \"token\"");
        // Tests run side by side, on machines that do other things as well: they may be late.
        let patient = if limits.contains("overload_delay") { "" } else { "overload_delay = \"off\"\n" };
        // The test itself runs in the thread that would stay in the sandbox.
        format!(
            "workers = {workers}\nsandbox = \"off\"\n{top}\
             [admin]\naddress = \"127.0.0.1:0\"\n{token}\n\
             [log]\naccess = \"{log}\"\n\
             [limits]\n{patient}{limits}\
             [[listeners]]\nname = \"plain\"\naddress = \"127.0.0.1:0\"\n{plain}\
             [[listeners]]\nname = \"tls\"\naddress = \"127.0.0.1:0\"\n{tls}\
             tls.certificates = [{certificates}]\n\
             {routes}\
             [clusters.web]\nbackends = [{}]\n{health}{cluster}\n{more}",
            self.backends.join(", ")
        )
    }

    #[track_caller]
    pub fn start(self) -> Engine {
        let folder = tempfile::tempdir().unwrap();
        let site = [("site.crt", &SITE.chain), ("site.key", &SITE.key)];
        let site = site.map(|(name, content)| (name.to_owned(), content.clone().into_bytes()));
        for (name, content) in site.iter().chain(&self.files) {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let parsed = config::parse("test.toml", &self.text(), folder.path());
        let (config, _) = parsed.unwrap_or_else(|problems| panic!("{problems}"));
        let app = App::new(config).unwrap();
        let listeners = &app.config().listeners;
        Engine {
            plain: listeners[0].address,
            tls: listeners[1].address,
            others: listeners[2..].iter().map(|listener| listener.address).collect(),
            admin: app.config().admin.as_ref().and_then(|admin| admin.address.tcp()).unwrap(),
            token: self.token,
            stopper: app.stopper(),
            drained: Cell::new(false),
            thread: Some(thread::Builder::new().name("engine".to_owned()).spawn(|| app.run()).unwrap()),
            folder,
        }
    }
}

/// A running engine; dropping it drains it and fails the test if anything in it panicked.
#[derive(Debug)]
pub struct Engine {
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    /// Listeners that `more` added.
    pub others: Vec<SocketAddr>,
    pub admin: SocketAddr,
    token: Option<String>,
    stopper: Stopper,
    /// A test has started the drain: there may be nobody left to ask.
    drained: Cell<bool>,
    thread: Option<JoinHandle<Result<(), StartError>>>,
    folder: tempfile::TempDir,
}

impl Engine {
    pub fn new(backend: SocketAddr) -> Self {
        Setup::new(&[backend]).start()
    }

    pub fn log_file(&self) -> PathBuf {
        self.folder.path().join("access.log")
    }

    /// Replaces a file beside the configuration, whole.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let (path, fresh) = (self.folder.path().join(name), self.folder.path().join("fresh"));
        fs::write(&fresh, content).unwrap();
        fs::rename(fresh, path).unwrap();
    }

    /// Status and body of an admin page.
    pub fn admin(&self, path: &str) -> (u16, String) {
        let shown = self.token.as_ref().map(|token| format!("authorization: Bearer {token}\r\n"));
        self.admin_as(path, &shown.unwrap_or_default())
    }

    /// The same with other fields.
    pub fn admin_as(&self, path: &str, fields: &str) -> (u16, String) {
        let mut client = Client::plain(self.admin);
        client.send(format!("GET {path} HTTP/1.1\r\nhost: admin\r\n{fields}connection: close\r\n\r\n"));
        let response = client.response("GET");
        (response.status, String::from_utf8(response.body).unwrap())
    }

    pub fn metrics(&self) -> Metrics {
        let (status, text) = self.admin("/metrics");
        assert_eq!(status, 200);
        Metrics(text)
    }

    /// Waits until the metrics say something.
    #[track_caller]
    pub fn until(&self, what: &str, check: impl Fn(&Metrics) -> bool) {
        until(what, || check(&self.metrics()));
    }

    /// Waits until no request runs and no client is connected, and returns the metrics then.
    #[track_caller]
    pub fn settled(&self) -> Metrics {
        let mut last = Metrics(String::new());
        until("quiet", || {
            last = self.metrics();
            last.sum("portcullis_requests_in_flight", &[]) == 0
                && last.sum("portcullis_downstream_connections", &[]) == 0
        });
        last
    }

    /// Starts the drain.
    pub fn drain(&self) {
        self.drained.set(true);
        self.stopper.stop();
    }

    /// Drains, and returns the access log.
    #[track_caller]
    pub fn stop(mut self) -> Vec<Value> {
        self.end();
        self.log()
    }

    /// What the access log holds by now, each line parsed.
    #[track_caller]
    pub fn log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.log_file()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }

    /// Waits for the end of a drain that was started.
    #[track_caller]
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the engine's thread panicked").expect("the engine ended well");
        }
    }

    #[track_caller]
    fn end(&mut self) {
        if self.thread.is_none() {
            return;
        }
        if !thread::panicking() && !self.drained.get() {
            let panics = self.metrics().sum("portcullis_panics_total", &[]);
            assert_eq!(panics, 0, "tasks of the engine that panicked");
        }
        self.stopper.stop();
        self.join();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if !thread::panicking() {
            return self.end();
        }
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A scrape.
#[derive(Debug)]
pub struct Metrics(pub String);

impl Metrics {
    /// The sum of all series of a name that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let series = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labelled, value) = rest.rsplit_once(' ')?;
            let ours = labelled.is_empty() || labelled.starts_with('{');
            (ours && labels.iter().all(|label| labelled.contains(label.as_str()))).then_some(value)
        });
        let sum: f64 = series.map(|value| value.parse::<f64>().unwrap()).sum();
        // WHY: counters in tests are small whole numbers.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let sum = sum as u64;
        sum
    }

    /// Requests by route and status.
    pub fn requests(&self) -> u64 {
        self.sum("portcullis_requests_total", &[])
    }
}
