//! What of a head belongs to this connection only? (RFC 9110 §7.6.1)
//!
//! `connection` with its options, `upgrade`, `te` and their kind end here; what goes on is written
//! anew. A field that `connection` names goes too, unless its loss would change who is believed or
//! how the message is framed.

use httparse::Header;

use crate::http::fields::Fields;

/// More options in `connection` than any honest peer sends; it bounds the work they make.
const MAX_OPTIONS: usize = 32;

/// What `connection` and its companions say.
#[derive(Debug, Default)]
pub(super) struct Hop<'b> {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    upgrade_listed: bool,
    names_fields: bool,
    options: usize,
    upgrade: Option<&'b [u8]>,
    /// More than one `upgrade` field: nothing is upgraded.
    upgrades: usize,
}

/// More than [`MAX_OPTIONS`] in `connection`.
#[derive(Debug)]
pub(super) struct TooManyOptions;

impl<'b> Hop<'b> {
    /// Takes one `connection` field.
    pub(super) fn connection(&mut self, value: &[u8]) -> Result<(), TooManyOptions> {
        for option in options(value) {
            self.options += 1;
            if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade_listed = true;
            } else {
                self.names_fields = true;
            }
        }
        if self.options > MAX_OPTIONS { Err(TooManyOptions) } else { Ok(()) }
    }

    /// Takes one `upgrade` field.
    pub(super) fn upgrade(&mut self, value: &'b [u8]) {
        self.upgrade = Some(value);
        self.upgrades += 1;
    }

    /// The one protocol to upgrade to, lower case; HTTP/2 is not reached this way (RFC 9113 §3.1).
    pub(super) fn upgrade_protocol(&self) -> Option<String> {
        let protocol = self.upgrade.filter(|_| self.upgrade_listed && self.upgrades == 1)?;
        let mut halves = protocol.splitn(2, |byte| *byte == b'/');
        if !halves.all(is_token) {
            return None;
        }
        let protocol = String::from_utf8(protocol.to_ascii_lowercase()).ok()?;
        (protocol != "h2c" && protocol != "h2").then_some(protocol)
    }

    /// Removes the fields that `connection` names. Cost: nothing for the usual options.
    pub(super) fn remove_named(&self, headers: &[Header<'_>], fields: &mut Fields) {
        if !self.names_fields {
            return;
        }
        let connections = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("connection"));
        for option in connections.flat_map(|header| options(header.value)) {
            let name = option.to_ascii_lowercase();
            if !is_protected(&name) {
                fields.remove(&name);
            }
        }
    }
}

/// The members of a comma-separated list; empty ones don't count.
fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty())
}

/// Whether a lower-case name stays whatever `connection` says: framing, routing, who the client is,
/// what the body is, and what we set ourselves.
fn is_protected(name: &[u8]) -> bool {
    name.starts_with(b"x-forwarded-")
        || name.starts_with(b"content-")
        || matches!(
            name,
            b"authorization"
                | b"cache-control"
                | b"cookie"
                | b"expect"
                | b"forwarded"
                | b"host"
                | b"set-cookie"
                | b"te"
                | b"trailer"
                | b"transfer-encoding"
                | b"via"
                | b"x-portcullis-reason"
                | b"x-real-ip"
                | b"x-request-id"
        )
}

/// Whether these bytes are a token (RFC 9110 §5.6.2).
pub(in crate::http) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().copied().all(is_token_byte)
}

pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
