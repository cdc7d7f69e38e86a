//! One request from its head to its record: what is known of it, written down when it ends.

use std::{borrow::Cow, net::IpAddr, rc::Rc, time::Duration};

use tokio::time::Instant;

use super::{
    client, forwarded,
    policies::ClientCertificate,
    view::{ListenerView, View},
    worker::{Client, Worker, report_rejection},
};
use crate::{
    config::ForwardedPolicy,
    error::Reason,
    http::{
        fields::FieldId,
        message::{RequestHead, ResponseHead, Version},
    },
    observe::{Protocol, Record, TlsInfo},
};

/// A request on its way. Dropping it, whatever the cause, counts and logs it exactly once: a
/// request whose task dies is on record as one that the client closed, or as a panic of ours.
#[derive(Debug)]
pub struct Flight<'c> {
    pub worker: &'c Worker,
    pub view: Rc<View>,
    pub client: &'c Client,
    pub head: &'c mut RequestHead,
    /// The head was refused: what is in it is not to be believed.
    pub unparsed: bool,
    /// The peer, or whom a trusted peer names.
    pub client_ip: IpAddr,
    client_ip_text: Cow<'c, str>,
    /// The client that the connection names is one of `trusted_proxies`.
    pub trusted: bool,
    pub request_id: [u8; 32],
    pub route: Option<usize>,
    pub cluster: Option<usize>,
    pub backend: Option<usize>,
    pub status: Option<u16>,
    pub reason: Option<Reason>,
    /// When a refused client may come again.
    pub retry_after: Option<Duration>,
    /// It was refused for what others may have done.
    pub blameless: bool,
    /// Its body was waited for before there was an attempt.
    pub waited: bool,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub attempts: u32,
    pub upstream_response: Option<Duration>,
    pub started: Instant,
    /// When the request was served to its end, whatever that was.
    pub ended: Option<Instant>,
}

impl<'c> Flight<'c> {
    pub fn new(worker: &'c Worker, client: &'c Client, head: &'c mut RequestHead, started: Instant) -> Self {
        let view = worker.view();
        let listener = &view.config.listeners[client.listener];
        let networks = &listener.trusted_proxies;
        let trusted = client.is_trusted(listener);
        let client_ip = if !trusted {
            client.ip
        } else if listener.forwarded == ForwardedPolicy::Rfc7239 {
            let values: Vec<&[u8]> = head.fields.all(FieldId::Forwarded).collect();
            forwarded::client(values.into_iter(), networks, client.ip)
        } else {
            let values: Vec<&[u8]> = head.fields.all(FieldId::XForwardedFor).collect();
            client::forwarded_for(values.into_iter(), networks, client.ip)
        };
        let client_ip_text = if client_ip == client.ip {
            Cow::Borrowed(&*client.ip_text)
        } else {
            Cow::Owned(client_ip.to_string())
        };
        if !trusted {
            head.fields.retain(|_, name| !listener.identity_fields.holds(name));
        }
        view.listeners[client.listener].cells.request_started();
        Flight {
            worker,
            view,
            client,
            head,
            unparsed: false,
            client_ip,
            client_ip_text,
            trusted,
            request_id: worker.request_id(),
            route: None,
            cluster: None,
            backend: None,
            status: None,
            reason: None,
            retry_after: None,
            blameless: false,
            waited: false,
            bytes_in: 0,
            bytes_out: 0,
            attempts: 0,
            upstream_response: None,
            started,
            ended: None,
        }
    }

    pub fn listener(&self) -> &ListenerView {
        &self.view.listeners[self.client.listener]
    }

    /// In which fields the backend learns who the client is.
    pub fn forwarded_policy(&self) -> ForwardedPolicy {
        self.view.config.listeners[self.client.listener].forwarded
    }

    /// `body_bytes` of the listener.
    pub fn body_limit(&self) -> Option<u64> {
        self.view.config.listeners[self.client.listener].limits.body_bytes
    }

    /// Adds what browsers are to be told of the listener, unless the backend has said it.
    pub fn add_hsts(&self, head: &mut ResponseHead) {
        let tls = self.view.config.listeners[self.client.listener].tls.as_ref();
        if let Some(value) = tls.and_then(|tls| tls.hsts.as_ref())
            && head.fields.find(b"strict-transport-security").is_none()
        {
            head.fields.push(b"strict-transport-security", value.as_bytes());
        }
    }

    /// Whether the connection was made under the policy of the request's host.
    pub fn may_carry(&self) -> bool {
        match (&self.listener().policies, &self.client.tls) {
            (Some(policies), Some(tls)) => policies.allows(tls.policy, &self.head.host),
            (None, _) | (_, None) => true,
        }
    }

    /// Who the client is by its certificate, where the request's host asks for one.
    pub fn identity(&self) -> Option<&ClientCertificate> {
        let tls = self.client.tls.as_ref()?;
        let identity = tls.identity.as_deref()?;
        let policies = self.listener().policies.as_ref();
        policies.is_none_or(|all| all.of(&self.head.host) == tls.policy).then_some(identity)
    }

    /// The id to forward and to log: ours, or the one that a trusted peer sent.
    pub fn id(&self) -> &[u8] {
        let sent = if self.trusted { self.head.fields.get(FieldId::XRequestId) } else { None };
        sent.filter(|id| !id.is_empty()).unwrap_or(&self.request_id)
    }

    /// Why a request was dropped on its way.
    fn cause_of_drop(&self) -> Reason {
        match self.client.cut_for.get() {
            _ if std::thread::panicking() => Reason::Internal,
            Some(reason) => reason,
            None if self.worker.is_cutting() => Reason::Draining,
            None => Reason::ClientClosed,
        }
    }

    fn protocol(&self) -> Protocol {
        if self.head.version == Version::H2 { Protocol::H2 } else { Protocol::Http1 }
    }

    fn count(&self, status: u16, took: Duration) {
        let listener = self.listener();
        listener.cells.request_finished();
        listener.route_cells(&self.view.config, &self.worker.shard, self.route).request(
            self.protocol(),
            status,
            took,
        );
        match self.reason {
            // Once for the connection, however many streams it had.
            Some(Reason::H2Abuse) => {}
            Some(reason) if reason.is_rejection() => {
                listener.cells.rejection(reason);
                self.remember(reason);
            }
            Some(reason) if reason.is_error() => self.worker.shard.error(reason),
            Some(_) | None => {}
        }
    }

    /// Lets the firewall know of a rejection. What a trusted proxy itself does wrong is no reason to
    /// turn away all who come through it.
    fn remember(&self, reason: Reason) {
        let is_client = !self.trusted || self.client_ip != self.client.ip;
        if is_client && !self.blameless {
            let ended = self.ended.unwrap_or(self.started).into_std();
            report_rejection(&self.view, self.client.listener, (self.client_ip, reason), ended);
        }
    }

    fn log(&self, status: u16, took: Duration) {
        let cluster = self.cluster.map(|cluster| &self.view.clusters[cluster]);
        let backend = cluster.zip(self.backend).map(|(cluster, index)| &cluster.backends[index]);
        let record = Record {
            time: self.worker.wall_clock(self.started),
            listener: &self.listener().quoted_name,
            client_ip: &self.client_ip_text,
            peer: &self.client.peer_text,
            protocol: self.protocol(),
            tls: self.client.tls.as_ref().map(|tls| TlsInfo {
                version: tls.version,
                cipher: tls.cipher,
                sni: tls.sni.as_deref(),
                resumed: tls.resumed,
                client: tls.identity.as_deref().and_then(ClientCertificate::for_log),
            }),
            method: if self.unparsed { "" } else { self.head.method.as_str() },
            host: if self.unparsed { "" } else { &self.head.host },
            path: if self.unparsed { "" } else { self.head.path() },
            query: if self.unparsed { None } else { self.head.query() },
            route: self.route.map(|route| &self.view.routes[route]),
            cluster: cluster.map(|cluster| &cluster.name),
            backend: backend.map(|backend| &backend.name),
            status,
            reason: self.reason,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            attempts: self.attempts,
            duration: took,
            upstream_response: self.upstream_response,
            request_id: self.id(),
            user_agent: self.head.fields.get(FieldId::UserAgent),
            referer: self.head.fields.get(FieldId::Referer),
        };
        self.worker.log(&record);
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if self.ended.is_none() && self.reason.is_none() {
            self.reason = Some(self.cause_of_drop());
        }
        let status = self.status.or(self.reason.map(Reason::status)).unwrap_or(Reason::Internal.status());
        let took = self.ended.unwrap_or_else(Instant::now) - self.started;
        self.count(status, took);
        self.log(status, took);
    }
}
