//! The configuration: TOML as written, and what the rest of the program sees of it.
//!
//! `file.rs` is what was written, `resolve.rs` turns it into the types below, which can't be
//! wrong; every problem found on the way is a `diagnostics::Problem` with its place in the file.

mod acme;
mod addresses;
mod admin;
mod client_auth;
mod cluster_tls;
mod coverage;
mod diagnostics;
mod doubts;
mod file;
mod firewall;
mod health;
mod hsts;
mod identity;
mod limits;
mod listeners;
mod loops;
mod networks;
mod ocsp;
mod pem;
mod reader;
mod resolve;
mod routes;
mod stamps;
mod suggest;
mod summary;
mod syntax;
mod tickets;
mod tls;
mod values;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use self::{
    acme::{Acme, AcmeAccount, AcmeChallenge, AcmeEab},
    admin::Token,
    cluster_tls::{
        ClientAuthority, ClientCertificate, ClusterTls, PinnedName, RevocationLists, TrustedCa, private_ca,
    },
    diagnostics::{Diagnostics, Problem, Severity, Span},
    identity::{IdentityFields, is_identity},
    networks::{ListError, Networks, Verdict},
    ocsp::{OcspFile, Staple},
    pem::date_text,
    stamps::Stamps,
    tickets::{TicketFile, TicketSecret},
    tls::{Certificate, ClientAuth, ClientAuthMode, ClientIdentity, HostTls, ListenerTls, TlsVersion},
};

/// Reads a configuration file and the files it names.
///
/// Returns the configuration with its warnings, or every problem if one of them is an error.
pub fn load(path: &Path) -> Result<(Config, Diagnostics), Diagnostics> {
    let name = path.display().to_string();
    let whole_file = |message: String| Diagnostics::new(&name, "", vec![Problem::whole_file(message)]);
    let bytes = std::fs::read(path)
        .map_err(|error| whole_file(format!("the file can't be read: {}", pem::system_text(&error))))?;
    let text = String::from_utf8(bytes).map_err(|error| syntax::not_utf8(&name, error.as_bytes()))?;
    parse(&name, &text, path.parent().unwrap_or(Path::new("")))
}

/// Reads a configuration from `text`; `name` stands in messages, relative paths start at `base`.
pub fn parse(name: &str, text: &str, base: &Path) -> Result<(Config, Diagnostics), Diagnostics> {
    let (tree, syntax) = syntax::read(text);
    let reader = reader::Reader::new(syntax.is_broken());
    let file = file::read(reader.top(tree.get_ref()));
    let mut found = reader.into_problems();
    let config = resolve::resolve(file, base, syntax.is_broken(), &mut found);
    let diagnostics = Diagnostics::new(name, text, syntax.join(found)).check()?;
    match config {
        Some(config) => Ok((config, diagnostics)),
        None => Err(diagnostics),
    }
}

/// Reads a network such as `10.0.0.0/8`, or one address.
///
/// # Errors
/// What was expected, in words.
pub fn network_of(text: &str) -> Result<ipnet::IpNet, String> {
    networks::parse_network(text).map_err(|meant| networks::complaint(text, meant))
}

/// A whole configuration, resolved: names looked up, files read, defaults filled in.
#[derive(Debug)]
pub struct Config {
    /// Worker threads; at least 1.
    pub workers: usize,
    /// Run as this user and group after bind; `None` keeps the current ones.
    pub user: Option<String>,
    pub group: Option<String>,
    /// Peers whose forwarding headers and request ids are believed.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    pub forwarded: ForwardedPolicy,
    pub admin: Option<Admin>,
    pub log: Log,
    /// Never empty; names and addresses are unique.
    pub listeners: Vec<Listener>,
    /// As written, in order of writing; matches are unique for a listener.
    pub routes: Vec<Route>,
    /// In alphabetical order of their names.
    pub clusters: Vec<Cluster>,
    pub drain_timeout: Duration,
    pub overload: Overload,
    pub firewall: FirewallTables,
    pub sandbox: Sandbox,
    /// Where relative paths start: that of the file; may be empty.
    pub folder: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Admin {
    pub address: AdminAddress,
    /// Everything but `/healthz` asks for it.
    pub token: Option<Token>,
}

/// Written as `127.0.0.1:9090` or `unix:/run/portcullis/admin.sock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Whether the process gives up what serving doesn't need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// As far as the kernel goes along.
    Auto,
    Off,
}

#[derive(Debug, Clone)]
pub struct Log {
    pub access: AccessSink,
    pub format: LogFormat,
    pub level: tracing::Level,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessSink {
    Stdout,
    Stderr,
    Off,
    File(PathBuf),
}

/// `log.format`: one JSON object a line, or one line of text for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Debug)]
pub struct Listener {
    /// Default: the address.
    pub name: String,
    pub address: SocketAddr,
    pub tls: Option<ListenerTls>,
    /// Answer every request with a redirect to https; only without `tls`.
    pub redirect_to_https: bool,
    pub limits: Limits,
    /// Replaces the top-level list where written.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Replaces the top-level policy where written.
    pub forwarded: ForwardedPolicy,
    /// Dropped unless a trusted peer sends them; replaces the top-level list where written.
    pub identity_fields: IdentityFields,
    /// `None`: connections begin with no header.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// `[firewall]` with what the listener writes itself.
    pub firewall: Firewall,
}

/// Which connections of a listener begin with a PROXY protocol header.
#[derive(Debug, Clone)]
pub struct ProxyProtocol {
    /// Those from these networks, and no others; never empty.
    pub from: Vec<ipnet::IpNet>,
    /// From the connection to the end of its header.
    pub timeout: Duration,
}

/// In which fields the backends learn who the client is; fields of the other kind are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedPolicy {
    /// `x-forwarded-for`, `x-forwarded-proto`, `x-forwarded-host`.
    XForwarded,
    /// `forwarded` (RFC 7239).
    Rfc7239,
    Both,
    Off,
}

impl ForwardedPolicy {
    pub fn sets_x_forwarded(self) -> bool {
        matches!(self, ForwardedPolicy::XForwarded | ForwardedPolicy::Both)
    }

    pub fn sets_rfc7239(self) -> bool {
        matches!(self, ForwardedPolicy::Rfc7239 | ForwardedPolicy::Both)
    }
}

/// Who may use a listener, and how fast.
#[derive(Debug)]
pub struct Firewall {
    pub lists: Arc<NetworkLists>,
    /// Count what would be refused, and let it through.
    pub dry_run: bool,
    /// New connections of one client address.
    pub connection_rate: Option<Rate>,
    /// All of them hold for every request.
    pub rate_limits: Vec<RateLimit>,
}

/// What a route asks for beyond its listener.
#[derive(Debug)]
pub struct RouteFirewall {
    pub lists: Arc<NetworkLists>,
    pub rate_limits: Vec<RateLimit>,
}

/// What the whole process shares.
#[derive(Debug, Clone)]
pub struct FirewallTables {
    /// Bits of an IPv6 address that make one client; 32 to 128.
    pub ipv6_prefix: u8,
    /// Keys that rate limits remember, and the most bans.
    pub entries: usize,
    /// `None`: nobody is banned.
    pub bans: Option<BanRule>,
}

/// Lists of networks with what was read from their files at start.
#[derive(Debug)]
pub struct NetworkLists {
    /// For addresses in no list.
    pub default: Verdict,
    pub inline: Vec<(ipnet::IpNet, Verdict)>,
    pub files: Vec<(PathBuf, Verdict)>,
    pub loaded: Arc<Networks>,
}

/// So many in a time, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub count: u32,
    pub per: Duration,
    /// None at all with 0.
    pub burst: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    pub key: RateKey,
    pub rate: Rate,
}

/// Which requests share a rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RateKey {
    /// Those of one client address.
    ClientIp,
    /// All of the route, or of the listener where it is the listener's limit.
    Route,
    /// Those with one value of this field, in lower case; requests without it count by client
    /// address.
    Header(String),
}

/// `after` rejections within `window` ban a client address for `duration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BanRule {
    /// At least 1.
    pub after: u32,
    pub window: Duration,
    pub duration: Duration,
}

/// From where on new work is turned away, of the whole process.
#[derive(Debug, Clone, Copy)]
pub struct Overload {
    /// Requests at the same time that have, or wait for, a backend.
    pub requests: Cap,
    /// How late a worker may be before it sheds requests; `None`: it never does.
    pub delay: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cap {
    /// From the limit on open files.
    Derived,
    Off,
    At(usize),
}

#[derive(Debug, Clone)]
pub struct Limits {
    pub request_head_bytes: usize,
    pub uri_bytes: usize,
    pub field_bytes: usize,
    pub fields: usize,
    pub trailer_bytes: usize,
    pub chunk_extension_bytes: usize,
    /// `None`: unlimited.
    pub body_bytes: Option<u64>,
    /// A body up to this size is waited for before a backend is chosen; 0 turns it off.
    pub request_buffer: u64,
    pub handshake_timeout: Duration,
    /// A worker.
    pub concurrent_handshakes: usize,
    pub head_timeout: Duration,
    pub idle_timeout: Duration,
    pub body_idle_timeout: Duration,
    /// Bytes a second after `body_rate_grace`; 0 turns it off.
    pub body_min_rate: u64,
    pub body_rate_grace: Duration,
    pub write_timeout: Duration,
    /// Bytes a second that a client must take of what waits for it; 0 turns it off.
    pub write_min_rate: u64,
    pub tunnel_idle_timeout: Duration,
    /// `None`: derived from the file limit at start.
    pub connections: Option<usize>,
    pub connections_per_ip: Option<usize>,
    pub h2_streams: u32,
    pub h2_stream_window: u32,
    pub h2_connection_window: u32,
    pub h2_send_buffer: usize,
    /// Resets by the client in 10 s.
    pub h2_client_resets: usize,
    /// Resets we are made to send, over the connection's life.
    pub h2_local_resets: usize,
    /// Control frames of each kind in 10 s.
    pub h2_control_frames: usize,
    pub h2_continuation_frames: usize,
}

#[derive(Debug)]
pub struct Route {
    /// Default: the match as written, e.g. `example.com/api`.
    pub name: String,
    pub host: HostMatch,
    /// Begins with `/`; a prefix on segment borders, so `/api` matches `/api` and `/api/x`, not
    /// `/apix`. No final `/` unless it is the whole path.
    pub path: String,
    /// Index into `Config::listeners`; `None`: on all of them.
    pub listener: Option<usize>,
    /// Index into `Config::clusters`.
    pub cluster: usize,
    pub firewall: Option<RouteFirewall>,
}

/// Lower case, without port and final dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostMatch {
    Any,
    Exact(String),
    /// `*.example.com` holds `example.com`; matches one label or more in front of it.
    Wildcard(String),
}

#[derive(Debug, Clone)]
pub struct Cluster {
    pub name: String,
    /// Never empty; addresses are unique.
    pub backends: Vec<Backend>,
    pub policy: Policy,
    pub protocol: Protocol,
    pub tls: Option<ClusterTls>,
    /// `None`: `health = false`.
    pub health: Option<Health>,
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
    pub response_idle_timeout: Duration,
    pub idle_timeout: Duration,
    /// For each backend and worker, whatever was in use; `None`: as many as were used of late. 0 with
    /// `proxy_protocol`.
    pub idle_connections: Option<usize>,
    /// Attempts after the first.
    pub retries: u32,
    /// Connections begin with a header (PROXY protocol version 2) that names their client; only with
    /// `Protocol::Http1`.
    pub proxy_protocol: bool,
}

#[derive(Debug, Clone)]
pub struct Backend {
    /// As written, `host:port`: the `backend` label.
    pub address: String,
    pub host: String,
    pub port: u16,
    /// 1 to 1000.
    pub weight: u32,
}

impl Backend {
    /// Whether what is sent to it stays on this machine.
    pub fn is_local(&self) -> bool {
        // Names: RFC 6761 §6.3
        let is_local = self.host == "localhost" || self.host.ends_with(".localhost");
        self.ip().map_or(is_local, |ip| ip.is_loopback())
    }

    /// Its address, where its host is one and no name; an IPv4 address that is mapped to IPv6 as what it is.
    fn ip(&self) -> Option<std::net::IpAddr> {
        let host = self.host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&self.host);
        host.parse().ok().map(|ip: std::net::IpAddr| ip.to_canonical())
    }
}

impl Cluster {
    /// Whether a part of what it is sent leaves this machine in clear text.
    pub fn is_plaintext(&self) -> bool {
        self.tls.is_none() && self.backends.iter().any(|backend| !backend.is_local())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    RoundRobin,
}

/// What a cluster's backends speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    H2,
}

#[derive(Debug, Clone)]
pub struct Health {
    pub check: Check,
    pub interval: Duration,
    pub timeout: Duration,
    /// Successes in a row that make a backend up; at least 1.
    pub rise: u32,
    /// Failures in a row that make it down; at least 1.
    pub fall: u32,
    /// Instead of the backend's own.
    pub port: Option<u16>,
    /// Below this share of backends up, in percent, all count as up; 0 turns it off.
    pub fail_open_below: u32,
}

#[derive(Debug, Clone)]
pub enum Check {
    Tcp,
    Http(HttpCheck),
}

#[derive(Debug, Clone)]
pub struct HttpCheck {
    pub path: String,
    /// `Host` of the probe; default: the backend's address.
    pub host: Option<String>,
    /// Inclusive ranges.
    pub expect_status: Vec<std::ops::RangeInclusive<u16>>,
    /// Text that the first 64 KiB of the body must contain.
    pub expect_body: Option<String>,
}
