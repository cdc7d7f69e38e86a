//! Every way a request or a connection fails: its reason, the status we answer, whose fault it is.
//!
//! One closed list. The code of a reason is what operators see in `x-portcullis-reason`, in the
//! access log and in the `reason` label of `errors_total` and `rejections_total`.

/// Whose doing a failure is; decides the log level and the metric that counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The client sent something we refuse, or went away: `rejections_total`.
    Client,
    /// A backend or the way to it failed: `errors_total`.
    Upstream,
    /// Nothing failed: counted nowhere, but still named in the answer and the log.
    Nobody,
    /// A limit or state of ours (no route, no capacity, draining): `errors_total`.
    Portcullis,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:literal, $blame:ident, $text:literal;)+) => {
        /// Why Portcullis itself answered, closed or cut a request short.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)+ }

        impl Reason {
            /// Every reason, in the order of the documentation; the index of `self as usize`.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// The stable snake_case code.
            pub const fn code(self) -> &'static str {
                match self { $(Reason::$name => $code,)+ }
            }

            /// The status of the answer, or the one logged where none could be sent (499: the
            /// client closed first, as nginx logs it).
            pub const fn status(self) -> u16 {
                match self { $(Reason::$name => $status,)+ }
            }

            /// Whose fault it is.
            pub const fn blame(self) -> Blame {
                match self { $(Reason::$name => Blame::$blame,)+ }
            }

            /// One sentence for the person who reads the answer; holds no internal address.
            pub const fn text(self) -> &'static str {
                match self { $(Reason::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    BadRequest = "bad_request", 400, Client, "the request is not valid HTTP";
    RedirectToHttps = "redirect_to_https", 308, Nobody, "this address is served over https";
    Denied = "denied", 403, Client, "this client may not use this address";
    Banned = "banned", 403, Client, "this client was refused too often and is banned for a while";
    NoRoute = "no_route", 404, Portcullis, "nothing is configured for this host and path";
    MethodNotAllowed = "method_not_allowed", 405, Client, "CONNECT and TRACE are not served";
    /// No complete request head within `head_timeout`.
    RequestTimeout = "request_timeout", 408, Client, "the request did not arrive in time";
    /// A body that stalls beyond `body_idle_timeout`.
    BodyTimeout = "body_timeout", 408, Client, "the request body did not arrive in time";
    BodyTooLarge = "body_too_large", 413, Client, "the request body is larger than allowed";
    UriTooLong = "uri_too_long", 414, Client, "the request target is longer than allowed";
    Misdirected = "misdirected", 421, Client, "this connection may not carry requests for this host";
    RateLimited = "rate_limited", 429, Client, "too many requests, slow down";
    HeadTooLarge = "head_too_large", 431, Client, "the request head is larger than allowed";
    /// The client reset, closed or aborted before its answer was complete.
    ClientClosed = "client_closed", 499, Client, "the client closed the connection";
    /// A client that does not read its answer within `write_timeout`.
    WriteTimeout = "write_timeout", 499, Client, "the client did not read its answer";
    Internal = "internal", 500, Portcullis, "an internal error occurred";
    NotImplemented = "not_implemented", 501, Client, "this transfer coding is not supported";
    ConnectRefused = "connect_refused", 502, Upstream, "the backend refused the connection";
    /// Every other connect failure: unreachable, name not resolved, no local port.
    ConnectFailed = "connect_failed", 502, Upstream, "no connection to the backend could be made";
    UpstreamTlsUnknownCa = "upstream_tls_unknown_ca", 502, Upstream, "the backend's certificate is not trusted";
    UpstreamTlsExpired = "upstream_tls_expired", 502, Upstream, "the backend's certificate is outside its dates";
    UpstreamTlsNameMismatch = "upstream_tls_name_mismatch", 502, Upstream, "the backend's certificate is for another name";
    /// Revoked, or of an authority without a list among `tls.crl`.
    UpstreamTlsRevoked = "upstream_tls_revoked", 502, Upstream, "the backend's certificate is revoked";
    /// The backend said so: by an alert, in the handshake or in place of an answer.
    UpstreamTlsClientCertificate = "upstream_tls_client_certificate", 502, Upstream, "the backend does not accept the certificate of this instance";
    UpstreamTlsHandshake = "upstream_tls_handshake", 502, Upstream, "the TLS handshake with the backend failed";
    /// The backend closed before a complete response.
    UpstreamClosed = "upstream_closed", 502, Upstream, "the backend closed the connection early";
    UpstreamBadResponse = "upstream_bad_response", 502, Upstream, "the backend's response is not valid HTTP";
    /// Nothing in the cluster could be tried.
    NoHealthyBackend = "no_healthy_backend", 503, Portcullis, "no backend is available";
    Draining = "draining", 503, Portcullis, "this instance is shutting down";
    Overloaded = "overloaded", 503, Portcullis, "too busy, try again later";
    ConnectTimeout = "connect_timeout", 504, Upstream, "connecting to the backend took too long";
    ResponseTimeout = "response_timeout", 504, Upstream, "the backend took too long to answer";
    /// The response body stalled beyond `response_idle_timeout`.
    ResponseStalled = "response_stalled", 504, Upstream, "the backend stopped sending its response";
    /// A tunnel without traffic for `tunnel_idle_timeout`; a normal end, logged as such.
    TunnelIdle = "tunnel_idle", 101, Nobody, "the tunnel was idle for too long";
    /// A connection refused at accept: `connections`, `connections_per_ip`.
    ConnectionLimit = "connection_limit", 503, Client, "too many connections";
    /// A connection that has to begin with a PROXY protocol header, and did not.
    ProxyProtocol = "proxy_protocol", 400, Client, "the PROXY protocol header is missing or malformed";
    /// HTTP/2 behaviour beyond the abuse limits.
    H2Abuse = "h2_abuse", 400, Client, "too many resets or control frames";
}

impl Reason {
    /// Whether the metric is `errors_total{reason}`.
    pub const fn is_error(self) -> bool {
        matches!(self.blame(), Blame::Upstream | Blame::Portcullis)
    }

    /// Whether the firewall gives it.
    pub const fn is_firewalls(self) -> bool {
        matches!(self, Reason::Denied | Reason::Banned | Reason::RateLimited)
    }

    /// Whether it is one of the rejections that get a client banned: what an honest client rarely
    /// does, and never often.
    pub const fn counts_towards_ban(self) -> bool {
        matches!(
            self,
            Reason::BadRequest
                | Reason::Denied
                | Reason::MethodNotAllowed
                | Reason::RequestTimeout
                | Reason::BodyTimeout
                | Reason::UriTooLong
                | Reason::RateLimited
                | Reason::HeadTooLarge
                | Reason::NotImplemented
                | Reason::H2Abuse
        )
    }

    /// Whether the metric is `rejections_total{listener, reason}` rather than `errors_total`.
    pub const fn is_rejection(self) -> bool {
        matches!(self.blame(), Blame::Client)
    }
}
