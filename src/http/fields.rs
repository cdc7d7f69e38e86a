//! Header and trailer fields: one block of bytes and an index into it.
//!
//! HTTP/1 and HTTP/2 messages meet in this type. It is cleared and filled again for each message,
//! so a keep-alive connection parses its heads without an allocation.

/// Fields that the proxy itself looks at; everything else is `Other` and just passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldId {
    Other,
    Connection,
    ContentLength,
    ContentType,
    Date,
    Expect,
    Forwarded,
    Host,
    Http2Settings,
    KeepAlive,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    Referer,
    RetryAfter,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    Via,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    XPortcullisReason,
    XRequestId,
    Accept,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: FieldId,
    /// Where the name starts in the block; the value follows it at once.
    start: u32,
    name_len: u16,
    value_len: u32,
}

/// An ordered list of fields; names are lower case, values without surrounding blanks.
///
/// Invariant: names are tokens and values hold no CR, LF or NUL; the codecs check it on the way in.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    block: Vec<u8>,
    entries: Vec<Entry>,
}

impl Fields {
    /// Forgets the fields and keeps the memory.
    pub fn clear(&mut self) {
        self.block.clear();
        self.entries.clear();
    }

    /// Appends a field; the name is lower-cased. Cost: a copy of both.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> FieldId {
        let start = self.block.len();
        self.block.extend_from_slice(name);
        self.block[start..].make_ascii_lowercase();
        let id = FieldId::of(&self.block[start..]);
        self.block.extend_from_slice(value);
        self.entries.push(Entry {
            id,
            start: u32::try_from(start).unwrap_or(u32::MAX),
            name_len: u16::try_from(name.len()).unwrap_or(u16::MAX),
            value_len: u32::try_from(value.len()).unwrap_or(u32::MAX),
        });
        id
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all names and values.
    pub fn bytes(&self) -> usize {
        self.block.len()
    }

    /// All fields in order, as (id, name, value).
    pub fn iter(&self) -> impl Iterator<Item = (FieldId, &[u8], &[u8])> {
        self.entries.iter().map(|entry| {
            let (name, value) = self.split(entry);
            (entry.id, name, value)
        })
    }

    /// The first value of a known field.
    pub fn get(&self, id: FieldId) -> Option<&[u8]> {
        self.entries.iter().find(|entry| entry.id == id).map(|entry| self.split(entry).1)
    }

    /// Every value of a known field, in order.
    pub fn all(&self, id: FieldId) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().filter(move |entry| entry.id == id).map(|entry| self.split(entry).1)
    }

    /// The first value of any field, by its lower-case name.
    pub fn find(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(_, each, _)| *each == name).map(|(_, _, value)| value)
    }

    fn split(&self, entry: &Entry) -> (&[u8], &[u8]) {
        let start = entry.start as usize;
        let middle = start + usize::from(entry.name_len);
        (&self.block[start..middle], &self.block[middle..middle + entry.value_len as usize])
    }
}

impl FieldId {
    /// The id of a lower-case name. Cost: one match on the length, at most a few comparisons.
    pub fn of(name: &[u8]) -> FieldId {
        match name {
            b"te" => FieldId::Te,
            b"via" => FieldId::Via,
            b"host" => FieldId::Host,
            b"date" => FieldId::Date,
            b"expect" => FieldId::Expect,
            b"accept" => FieldId::Accept,
            b"trailer" => FieldId::Trailer,
            b"upgrade" => FieldId::Upgrade,
            b"referer" => FieldId::Referer,
            b"forwarded" => FieldId::Forwarded,
            b"connection" => FieldId::Connection,
            b"keep-alive" => FieldId::KeepAlive,
            b"user-agent" => FieldId::UserAgent,
            b"retry-after" => FieldId::RetryAfter,
            b"content-type" => FieldId::ContentType,
            b"x-request-id" => FieldId::XRequestId,
            b"content-length" => FieldId::ContentLength,
            b"http2-settings" => FieldId::Http2Settings,
            b"x-forwarded-for" => FieldId::XForwardedFor,
            b"x-forwarded-host" => FieldId::XForwardedHost,
            b"proxy-connection" => FieldId::ProxyConnection,
            b"x-forwarded-proto" => FieldId::XForwardedProto,
            b"transfer-encoding" => FieldId::TransferEncoding,
            b"proxy-authenticate" => FieldId::ProxyAuthenticate,
            b"proxy-authorization" => FieldId::ProxyAuthorization,
            b"x-portcullis-reason" => FieldId::XPortcullisReason,
            _ => FieldId::Other,
        }
    }
}
