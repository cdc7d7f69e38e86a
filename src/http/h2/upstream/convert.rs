//! Heads and trailers between the h2 crate's types and ours.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use memchr::memchr;

use crate::http::{
    fields::{FieldId, Fields, Underscores, is_forbidden_trailer, may_pass},
    h1::parse_content_length,
    message::{BodyLength, ResponseHead, Version},
};

/// Whether a name that came over HTTP/2 is one in HTTP/1: the http crate lets this byte pass there,
/// and no other that RFC 9110 §5.6.2 doesn't.
fn is_name(name: &[u8]) -> bool {
    memchr(b'"', name).is_none()
}

/// The one length that the fields announce; an error where they are not sure.
fn content_length(fields: &Fields) -> Result<Option<u64>, ()> {
    let mut all = fields.all(FieldId::ContentLength);
    let Some(first) = all.next() else { return Ok(None) };
    let length = parse_content_length(first).filter(|_| all.next().is_none());
    length.map(Some).ok_or(())
}

/// A response head from a backend; `None` where a length it announces makes no sense, or a name is none.
pub fn read_response<B>(response: &Response<B>, ended: bool, head: &mut ResponseHead) -> Option<()> {
    head.clear();
    head.status = response.status();
    head.version = Version::H2;
    for (name, value) in response.headers() {
        if !is_name(name.as_str().as_bytes()) {
            return None;
        }
        head.fields.push(name.as_str().as_bytes(), value.as_bytes());
    }
    let length = content_length(&head.fields).ok()?;
    let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    head.body = match (ended || bodiless, length) {
        (true, _) => BodyLength::Empty,
        (false, Some(length)) => BodyLength::Exact(length),
        (false, None) => BodyLength::Streamed,
    };
    Some(())
}

/// Trailers for the h2 crate.
pub(super) fn write_trailers(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len());
    for (_, name, value) in fields.iter() {
        // Both were checked by the codec that read them; should the crates disagree about a byte,
        // the field is dropped rather than all of them.
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    map
}

/// The trailers that may pass on; the same rules as for HTTP/1.
pub(super) fn read_trailers(map: &HeaderMap) -> Option<Fields> {
    let mut fields = Fields::default();
    for (name, value) in map {
        fields.push(name.as_str().as_bytes(), value.as_bytes());
    }
    fields.retain(|id, name| may_pass(name, Underscores::Keep) && !is_forbidden_trailer(id, name));
    (!fields.is_empty()).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::is_token;

    #[test]
    fn every_name_that_the_http_crate_takes_is_a_token_or_refused() {
        for byte in 0..=u8::MAX {
            let name = [b'a', byte, b'b'];
            if HeaderName::from_lowercase(&name).is_ok() {
                assert_eq!(is_token(&name), is_name(&name), "{byte}");
            }
        }
    }
}
