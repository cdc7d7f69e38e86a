//! What both codecs make of a message head, and how a body is framed.

use http::{Method, StatusCode};

use super::fields::{FieldId, Fields};

/// Fields that are not worth their memory once the request is sent.
const LARGE_FIELDS: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
    H2,
}

/// How long a body is, before any of it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// No body at all: the message ends with its head.
    Empty,
    /// Exactly this many bytes (`content-length`); may be 0.
    Exact(u64),
    /// Delimited by the framing itself: chunked, or an HTTP/2 END_STREAM.
    Streamed,
    /// A response that ends with its connection (HTTP/1 only).
    UntilClose,
}

/// A request head in canonical form: what is here is what is matched, logged and forwarded.
///
/// Reused from request to request; `clear` keeps the memory.
#[derive(Debug)]
pub struct RequestHead {
    pub method: Method,
    pub version: Version,
    /// Lower case, without port and final dot; empty where an HTTP/1.0 request has none.
    pub host: String,
    pub port: Option<u16>,
    /// Both as they are written, where there is a port.
    pub host_and_port: String,
    /// Canonical path, then `?query` where there is one; `*` for OPTIONS *. Always visible ASCII.
    pub target: String,
    /// Bytes of `target` before the `?`.
    pub path_len: usize,
    /// What passes on: without `host`, `expect` and hop-by-hop fields; `te` only as `trailers`. A
    /// `content-length` is still in it and never copied on: framing is written anew from `body`.
    pub fields: Fields,
    pub body: BodyLength,
    /// HTTP/1: may another request follow on this connection?
    pub keep_alive: bool,
    /// The protocol of an `upgrade` that the client may ask for, lower case; never `h2c`.
    pub upgrade: Option<String>,
    /// `expect: 100-continue` of a request with a body.
    pub expects_continue: bool,
}

/// A final or interim response head.
#[derive(Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub version: Version,
    /// What passes on: without hop-by-hop fields. A `content-length` is still in it; only where the
    /// message has no body by its nature (HEAD, 304) is it copied on.
    pub fields: Fields,
    pub body: BodyLength,
    /// HTTP/1: may the connection be used again, once the body is read?
    pub keep_alive: bool,
    /// The protocol that a 101 switches to, lower case.
    pub upgrade: Option<String>,
}

impl Default for RequestHead {
    fn default() -> Self {
        RequestHead {
            method: Method::GET,
            version: Version::Http11,
            host: String::new(),
            port: None,
            host_and_port: String::new(),
            target: String::new(),
            path_len: 0,
            fields: Fields::default(),
            body: BodyLength::Empty,
            keep_alive: true,
            upgrade: None,
            expects_continue: false,
        }
    }
}

impl Default for ResponseHead {
    fn default() -> Self {
        ResponseHead {
            status: StatusCode::OK,
            version: Version::Http11,
            fields: Fields::default(),
            body: BodyLength::Empty,
            keep_alive: true,
            upgrade: None,
        }
    }
}

impl RequestHead {
    /// Back to the default, keeping the memory.
    pub fn clear(&mut self) {
        self.method = Method::GET;
        self.version = Version::Http11;
        self.host.clear();
        self.port = None;
        self.target.clear();
        self.path_len = 0;
        self.fields.clear();
        self.body = BodyLength::Empty;
        self.keep_alive = true;
        self.upgrade = None;
        self.expects_continue = false;
    }

    /// Lets go of a large head's fields but those that the log shows: the request was sent, and its
    /// answer may take long.
    pub fn forget_fields(&mut self) {
        if self.fields.capacity() > LARGE_FIELDS {
            let logged = [FieldId::UserAgent, FieldId::Referer, FieldId::XRequestId];
            self.fields.keep_only(|id| logged.contains(&id));
        }
    }

    /// Bytes of memory in use, which `clear` keeps.
    pub fn bytes(&self) -> usize {
        let texts = [&self.host, &self.host_and_port, &self.target];
        size_of::<Self>() + texts.iter().map(|text| text.capacity()).sum::<usize>() + self.fields.capacity()
    }

    /// The host with the port that the client named; empty where it named none.
    pub fn authority(&self) -> &str {
        if self.port.is_some() { &self.host_and_port } else { &self.host }
    }

    pub fn path(&self) -> &str {
        &self.target[..self.path_len]
    }

    /// Without the `?`.
    pub fn query(&self) -> Option<&str> {
        self.target.get(self.path_len + 1..)
    }
}

impl ResponseHead {
    /// Back to the default, keeping the memory.
    pub fn clear(&mut self) {
        self.status = StatusCode::OK;
        self.version = Version::Http11;
        self.fields.clear();
        self.body = BodyLength::Empty;
        self.keep_alive = true;
        self.upgrade = None;
    }
}
