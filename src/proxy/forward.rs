//! Which fields a backend sees: the client's, cleaned, and ours.
//!
//! Hop-by-hop fields are gone already (the codecs drop them, RFC 9110 §7.6.1) and framing is
//! written anew by the codec that sends.

use std::net::SocketAddr;

use super::{flight::Flight, forwarded};
use crate::http::{
    fields::FieldId,
    h1::encode,
    message::{RequestHead, Version},
    proxy_protocol::{self, Ends},
};

/// Writes every field but framing for an HTTP/1 backend; `fallback` is the host of a request that
/// names none.
pub fn write_http1(flight: &Flight<'_>, fallback: &str, out: &mut Vec<u8>) {
    let head = &*flight.head;
    if head.host.is_empty() {
        encode::write_field(out, "host", fallback.as_bytes());
    } else {
        encode::write_field(out, "host", head.authority().as_bytes());
    }
    encode::write_fields(out, &head.fields, |id| passes(flight, id));
    ours(flight, &mut |name, value| encode::write_field(out, name, value));
    if let Some(protocol) = &head.upgrade {
        encode::write_field(out, "connection", b"upgrade");
        encode::write_field(out, "upgrade", protocol.as_bytes());
    } else if accepts_trailers(head) {
        encode::write_field(out, "connection", b"te");
        encode::write_field(out, "te", b"trailers");
    }
}

/// Emits every field but host, framing and `te`, name by name.
pub fn each_field(flight: &Flight<'_>, each: &mut dyn FnMut(&[u8], &[u8])) {
    for (id, name, value) in flight.head.fields.iter() {
        if passes(flight, id) {
            each(name, value);
        }
    }
    ours(flight, &mut |name, value| each(name.as_bytes(), value));
}

/// Whether a field of the client goes on as it is.
fn passes(flight: &Flight<'_>, id: FieldId) -> bool {
    match id {
        FieldId::Host
        | FieldId::ContentLength
        | FieldId::TransferEncoding
        | FieldId::Te
        | FieldId::Forwarded
        | FieldId::XForwardedFor
        | FieldId::XRequestId => false,
        // A trusted peer may have asked for the certificate itself.
        FieldId::ClientIdentity => flight.trusted && flight.identity().is_none(),
        FieldId::XForwardedHost | FieldId::XForwardedProto => {
            flight.trusted && flight.forwarded_policy().sets_x_forwarded()
        }
        _ => true,
    }
}

/// The fields that we set: identity, and that we were here (RFC 9110 §7.6.3).
fn ours(flight: &Flight<'_>, each: &mut dyn FnMut(&'static str, &[u8])) {
    each("x-request-id", flight.id());
    let policy = flight.forwarded_policy();
    if policy.sets_x_forwarded() {
        x_forwarded(flight, each);
    }
    if policy.sets_rfc7239() {
        forwarded(flight, each);
    }
    if flight.client.tls.is_some()
        && let Some(identity) = flight.identity()
    {
        for (name, value) in &identity.fields {
            each(name, value);
        }
    }
    each(
        "via",
        match flight.head.version {
            Version::Http10 => b"1.0 portcullis",
            Version::Http11 => b"1.1 portcullis",
            Version::H2 => b"2 portcullis",
        },
    );
    if flight.head.expects_continue {
        each("expect", b"100-continue");
    }
}

fn x_forwarded(flight: &Flight<'_>, each: &mut dyn FnMut(&'static str, &[u8])) {
    let vouched = |id| flight.trusted && flight.head.fields.get(id).is_some();
    forwarded_for(flight, each);
    if !vouched(FieldId::XForwardedProto) {
        each("x-forwarded-proto", proto(flight).as_bytes());
    }
    if !vouched(FieldId::XForwardedHost) && !flight.head.host.is_empty() {
        each("x-forwarded-host", flight.head.authority().as_bytes());
    }
}

fn proto(flight: &Flight<'_>) -> &'static str {
    if flight.client.tls.is_some() { "https" } else { "http" }
}

/// Our element of RFC 7239, behind those that a trusted peer vouches for.
fn forwarded(flight: &Flight<'_>, each: &mut dyn FnMut(&'static str, &[u8])) {
    let mut chain = forwarded::element(flight.client.ip, flight.head.authority(), proto(flight));
    if flight.trusted {
        let values: Vec<&[u8]> = flight.head.fields.all(FieldId::Forwarded).collect();
        chain = forwarded::chain(values.into_iter(), &chain);
    }
    each("forwarded", &chain);
}

/// The header in front of a connection that is for this request alone: who asks, and whom they
/// reached. The port is known only of a client that no trusted peer stands before.
pub fn proxy_header(flight: &Flight<'_>) -> Vec<u8> {
    let listener = &flight.view.config.listeners[flight.client.listener];
    // Connections that are older than the cluster don't know their ends.
    let ends = flight.client.ends.as_deref().copied();
    let ends = ends.unwrap_or_else(|| Ends::new(flight.client.peer, listener.address));
    let is_client = flight.client_ip == ends.source.ip();
    let source = if is_client { ends.source } else { SocketAddr::new(flight.client_ip, 0) };
    proxy_protocol::write(&Ends::new(source, ends.destination))
}

/// The peer's address, behind those that a trusted peer vouches for.
fn forwarded_for(flight: &Flight<'_>, each: &mut dyn FnMut(&'static str, &[u8])) {
    let peer = flight.client.ip_text.as_bytes();
    if !flight.trusted {
        return each("x-forwarded-for", peer);
    }
    let mut chain = Vec::with_capacity(48);
    for value in flight.head.fields.all(FieldId::XForwardedFor) {
        chain.extend_from_slice(String::from_utf8_lossy(value).as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(peer);
    each("x-forwarded-for", &chain);
}

/// `te: trailers`, the only value of it that an intermediary passes on.
pub fn accepts_trailers(head: &RequestHead) -> bool {
    head.fields.get(FieldId::Te).is_some_and(|value| value.eq_ignore_ascii_case(b"trailers"))
}
