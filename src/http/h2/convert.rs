//! Heads between the h2 crate's types and ours.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri,
    header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, DATE, HOST},
};

use crate::{
    error::Reason,
    http::{
        fields::{FieldId, Fields, Underscores, is_forbidden_trailer, may_pass},
        h1::HeadLimits,
        message::{BodyLength, RequestHead, ResponseHead, Version},
        target,
    },
};

/// Fills `head` from an HTTP/2 request (RFC 9113 §8.3.1); `ended`: the request has no body.
///
/// # Errors
/// The reason to refuse it with: the same rules as for HTTP/1 apply to host and path.
pub fn read_request<B>(
    request: &Request<B>,
    ended: bool,
    limits: &HeadLimits,
    head: &mut RequestHead,
) -> Result<(), Reason> {
    head.clear();
    head.version = Version::H2;
    head.method = target::parse_method(request.method().as_str().as_bytes())?;
    read_target(request.uri(), request.headers(), limits, head)?;
    read_fields(request.headers(), limits, head)?;
    head.body = match (ended, content_length(&head.fields)?) {
        (true, None | Some(0)) => BodyLength::Empty,
        (true, Some(_)) => return Err(Reason::BadRequest),
        (false, Some(length)) => BodyLength::Exact(length),
        (false, None) => BodyLength::Streamed,
    };
    Ok(())
}

fn read_target(
    uri: &Uri,
    headers: &HeaderMap,
    limits: &HeadLimits,
    head: &mut RequestHead,
) -> Result<(), Reason> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err(Reason::BadRequest);
    }
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    if let (Some(host), Some(authority)) = (host, authority)
        && !host.eq_ignore_ascii_case(authority)
    {
        return Err(Reason::BadRequest);
    }
    let authority = authority.or(host).ok_or(Reason::BadRequest)?;
    target::parse_authority(authority, head)?;
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    if path.len() > limits.uri_bytes {
        return Err(Reason::UriTooLong);
    }
    target::parse_path(path, head)
}

/// Copies the fields; those that HTTP/2 forbids were refused by the h2 crate already.
fn read_fields(headers: &HeaderMap, limits: &HeadLimits, head: &mut RequestHead) -> Result<(), Reason> {
    let mut bytes = head.target.len() + head.host.len();
    if headers.len() > limits.fields {
        return Err(Reason::HeadTooLarge);
    }
    let any_repeated = headers.len() > headers.keys_len();
    let crumbled = any_repeated && headers.get_all(COOKIE).iter().nth(1).is_some();
    for (name, value) in headers {
        let size = name.as_str().len() + value.len();
        bytes += size;
        if size > limits.field_bytes || bytes > limits.head_bytes {
            return Err(Reason::HeadTooLarge);
        }
        if crumbled && name == COOKIE {
            continue;
        }
        if passes(name.as_str().as_bytes(), value.as_bytes(), limits, head)? {
            head.fields.push(name.as_str().as_bytes(), value.as_bytes());
        }
    }
    if crumbled {
        // Browsers send each cookie as a field of its own; HTTP/1 knows one (RFC 9113 §8.2.3).
        let crumbs = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
        let cookie = crumbs.collect::<Vec<_>>().join(&b"; "[..]);
        if cookie.len() > limits.field_bytes {
            return Err(Reason::HeadTooLarge);
        }
        head.fields.push(b"cookie", &cookie);
    }
    Ok(())
}

/// Whether a field goes on; notes what a known one says. The same rules as for HTTP/1.
fn passes(name: &[u8], value: &[u8], limits: &HeadLimits, head: &mut RequestHead) -> Result<bool, Reason> {
    match FieldId::of(name) {
        FieldId::Expect if value.eq_ignore_ascii_case(b"100-continue") => head.expects_continue = true,
        FieldId::Expect => return Err(Reason::BadRequest),
        FieldId::Host
        | FieldId::KeepAlive
        | FieldId::Proxy
        | FieldId::ProxyConnection
        | FieldId::Http2Settings
        | FieldId::Upgrade => {}
        FieldId::Te => return Ok(value.eq_ignore_ascii_case(b"trailers")),
        FieldId::Other => return Ok(may_pass(name, limits.underscores)),
        _ => return Ok(true),
    }
    Ok(false)
}

/// The one length that the fields announce.
fn content_length(fields: &Fields) -> Result<Option<u64>, Reason> {
    let mut all = fields.all(FieldId::ContentLength);
    let Some(first) = all.next() else { return Ok(None) };
    if all.next().is_some() || first.is_empty() || !first.iter().all(u8::is_ascii_digit) {
        return Err(Reason::BadRequest);
    }
    let digits = std::str::from_utf8(first).map_err(|_| Reason::BadRequest)?;
    let length = digits.parse().ok().filter(|length| *length < 1 << 63);
    length.map(Some).ok_or(Reason::BadRequest)
}

/// A response head from a backend; `None` where a length it announces makes no sense.
pub fn read_response<B>(response: &Response<B>, ended: bool, head: &mut ResponseHead) -> Option<()> {
    head.clear();
    head.status = response.status();
    head.version = Version::H2;
    for (name, value) in response.headers() {
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

/// A response for the h2 crate; fields that HTTP/2 forbids can't be in `head`, its reader removed
/// them.
pub fn write_response(head: &ResponseHead) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = match head.body {
        BodyLength::Exact(length) => map_of(&head.fields, Some(length)),
        _ => map_of(&head.fields, None),
    };
    response
}

/// Trailers for the h2 crate.
pub fn write_trailers(fields: &Fields) -> HeaderMap {
    map_of(fields, None)
}

/// Fields as a map, with this `length` in place of any that they announce; all values share one
/// allocation.
fn map_of(fields: &Fields, length: Option<u64>) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len() + 1);
    let mut digits = itoa::Buffer::new();
    let digits = length.map_or("", |length| digits.format(length));
    let block = Bytes::from([fields.block(), digits.as_bytes()].concat());
    for (id, name, value) in fields.ranges() {
        if length.is_some() && id == FieldId::ContentLength {
            continue;
        }
        let name = known_name(id).map_or_else(|| HeaderName::from_bytes(&block[name]), Ok);
        // Both were checked by the codec that read them; should the crates disagree about a byte,
        // the field is dropped rather than the response.
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(block.slice(value))) {
            map.append(name, value);
        }
    }
    if length.is_some()
        && let Ok(value) = HeaderValue::from_maybe_shared(block.slice(fields.block().len()..))
    {
        map.append(CONTENT_LENGTH, value);
    }
    map
}

/// The name of a field that most responses have, without a look at its letters.
fn known_name(id: FieldId) -> Option<HeaderName> {
    match id {
        FieldId::ContentLength => Some(CONTENT_LENGTH),
        FieldId::ContentType => Some(CONTENT_TYPE),
        FieldId::Date => Some(DATE),
        _ => None,
    }
}

/// The trailers that may pass on; the same rules as for HTTP/1.
pub fn read_trailers(map: &HeaderMap, underscores: Underscores) -> Option<Fields> {
    let mut fields = Fields::default();
    for (name, value) in map {
        fields.push(name.as_str().as_bytes(), value.as_bytes());
    }
    fields.retain(|id, name| may_pass(name, underscores) && !is_forbidden_trailer(id, name));
    (!fields.is_empty()).then_some(fields)
}
