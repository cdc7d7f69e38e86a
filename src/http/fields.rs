//! Header and trailer fields: one block of bytes and an index into it.
//!
//! HTTP/1 and HTTP/2 messages meet in this type. It is cleared and filled again for each message,
//! so a keep-alive connection parses its heads without an allocation. The block holds the fields as
//! HTTP/1 writes them, so passing them on is a copy of a few long runs.
//!
//! Fields hold no memory before there is a first one, and leave it to those to come: however many
//! requests wait for a response, it comes to memory that the last one has just used.

use std::{cell::RefCell, mem, ops::Range};

use crate::config::is_identity;

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
    Proxy,
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
    /// One of those in which backends learn who the client's certificate is for.
    ClientIdentity,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: FieldId,
    /// Where the line `name: value\r\n` starts in the block.
    start: u32,
    name_len: u32,
    value_len: u32,
}

/// Memory kept of fields that are gone, and how large it may have grown: half a mebibyte in all.
const KEPT: usize = 64;
const KEPT_BYTES: usize = 8 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<(Vec<u8>, Vec<Entry>)>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of a line beside name and value: `: ` and CRLF.
const LINE_OVERHEAD: usize = 4;

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
        self.find_memory();
        let start = self.block.len();
        self.block.reserve(name.len() + value.len() + LINE_OVERHEAD);
        self.block.extend_from_slice(name);
        self.block.extend_from_slice(b": ");
        self.block.extend_from_slice(value);
        self.block.extend_from_slice(b"\r\n");
        self.push_line(start, name.len(), value.len())
    }

    /// Copies whole field lines, in which [`push_line`](Self::push_line) then finds fields; returns
    /// where they start. Many small copies fewer for a head in which most lines are canonical.
    pub(super) fn load(&mut self, lines: &[u8]) -> usize {
        self.find_memory();
        let start = self.block.len();
        self.block.extend_from_slice(lines);
        start
    }

    /// Appends the field whose line `name: value\r\n`, spelt just so, is loaded at `start`.
    pub(super) fn push_line(&mut self, start: usize, name_len: usize, value_len: usize) -> FieldId {
        let name = &mut self.block[start..start + name_len];
        make_lower_case(name);
        let id = FieldId::of(name);
        self.entries.push(Entry {
            id,
            start: offset(start),
            name_len: offset(name_len),
            value_len: offset(value_len),
        });
        id
    }

    fn find_memory(&mut self) {
        if self.block.capacity() == 0
            && let Some(spare) = SPARE.with_borrow_mut(Vec::pop)
        {
            (self.block, self.entries) = spare;
        }
    }

    /// Bytes of memory that `clear` keeps.
    pub fn capacity(&self) -> usize {
        self.block.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// Takes the last field off again; its bytes stay until the next `clear`.
    pub fn pop(&mut self) {
        self.entries.pop();
    }

    /// Removes every field of this lower-case name.
    pub fn remove(&mut self, name: &[u8]) {
        self.retain(|_, each| each != name);
    }

    /// Removes the fields for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(FieldId, &[u8]) -> bool) {
        let block = &self.block;
        self.entries.retain(|entry| keep(entry.id, entry.name(block)));
    }

    /// Copies the fields for which `keep` is true into memory of their own size.
    pub fn keep_only(&mut self, keep: impl Fn(FieldId) -> bool) {
        let mut kept = Fields::default();
        for (_, name, value) in self.iter().filter(|(id, ..)| keep(*id)) {
            kept.push(name, value);
        }
        *self = kept;
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all names and values.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.name_len as usize + entry.value_len as usize).sum()
    }

    /// All fields in order, as (id, name, value).
    pub fn iter(&self) -> impl Iterator<Item = (FieldId, &[u8], &[u8])> {
        self.entries.iter().map(|entry| (entry.id, entry.name(&self.block), entry.value(&self.block)))
    }

    /// The first value of a known field.
    pub fn get(&self, id: FieldId) -> Option<&[u8]> {
        self.all(id).next()
    }

    /// Every value of a known field, in order.
    pub fn all(&self, id: FieldId) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().filter(move |entry| entry.id == id).map(|entry| entry.value(&self.block))
    }

    /// The first value of any field, by its lower-case name.
    pub fn find(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(_, each, _)| *each == name).map(|(_, _, value)| value)
    }

    /// Appends the fields that `keep` says to `out`, each as `name: value\r\n`.
    ///
    /// Cost: one copy for each run of kept fields that lie side by side.
    pub fn write_lines(&self, out: &mut Vec<u8>, mut keep: impl FnMut(FieldId) -> bool) {
        let mut run = 0..0;
        for entry in self.entries.iter().filter(|entry| keep(entry.id)) {
            let line = entry.line();
            if line.start == run.end {
                run.end = line.end;
            } else {
                out.extend_from_slice(&self.block[run]);
                run = line;
            }
        }
        out.extend_from_slice(&self.block[run]);
    }
}

impl Drop for Fields {
    fn drop(&mut self) {
        if self.block.capacity() == 0 || self.capacity() > KEPT_BYTES {
            return;
        }
        self.clear();
        let spare = (mem::take(&mut self.block), mem::take(&mut self.entries));
        // WHY: a drop during thread exit may find the list gone; then the memory is simply freed.
        let _ = SPARE.try_with(|list| {
            let list = &mut *list.borrow_mut();
            if list.len() < KEPT {
                list.push(spare);
            }
        });
    }
}

impl Entry {
    fn name<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        let start = self.start as usize;
        &block[start..start + self.name_len as usize]
    }

    fn value<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        let start = self.start as usize + self.name_len as usize + 2;
        &block[start..start + self.value_len as usize]
    }

    fn line(&self) -> Range<usize> {
        let start = self.start as usize;
        start..start + self.name_len as usize + self.value_len as usize + LINE_OVERHEAD
    }
}

/// What `make_ascii_lowercase` does, eight bytes at a time: most names are too short for the loops
/// that the compiler makes of that.
fn make_lower_case(name: &mut [u8]) {
    if name.len() < 8 {
        return name.make_ascii_lowercase();
    }
    let (words, _) = name.as_chunks_mut();
    for word in words {
        *word = lower_case(*word);
    }
    // Some of them twice, which changes nothing.
    if let Some(last) = name.last_chunk_mut() {
        *last = lower_case(*last);
    }
}

fn lower_case(word: [u8; 8]) -> [u8; 8] {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let word = u64::from_ne_bytes(word);
    // In the upper bit of each byte, whether the seven below it are as great as that.
    let at_least = |byte: u8| (word & (ONES * 0x7f)) + ONES * u64::from(0x80 - byte);
    let upper = at_least(b'A') & !at_least(b'Z' + 1) & !word & (ONES * 0x80);
    // 0x80 is four times the bit that tells small letters from capitals.
    (word | (upper >> 2)).to_ne_bytes()
}

fn offset(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("the limits of a head are far below 4 GiB")
}

/// What becomes of request fields whose name holds a `_`: CGI and its heirs can't tell it from `-`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underscores {
    #[default]
    Drop,
    Keep,
}

/// Whether a client's field of this unknown name, of any case, may pass on.
///
/// Programs that turn names into variables read `x_forwarded_for` and `x.forwarded.for` as
/// `x-forwarded-for`: a name that becomes one of those that we act on never passes.
pub fn may_pass(name: &[u8], underscores: Underscores) -> bool {
    name.iter().all(|byte| IS_PLAIN[usize::from(*byte)]) || may_pass_with_symbols(name, underscores)
}

/// Letters, digits and `-`; a table, since every field of every request is looked at.
static IS_PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 0x80 {
        table[byte as usize] = byte.is_ascii_alphanumeric() || byte == b'-';
        byte += 1;
    }
    table
};

#[cold]
fn may_pass_with_symbols(name: &[u8], underscores: Underscores) -> bool {
    if name.contains(&b'"') || (underscores == Underscores::Drop && name.contains(&b'_')) {
        return false;
    }
    let as_read = |byte: &u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
    let name: Vec<u8> = name.iter().map(as_read).collect();
    FieldId::of(&name) == FieldId::Other && !is_identity(&name)
}

/// Whether a trailer is dropped: one that would frame, route, authenticate or describe a message
/// that has already been acted on, or that speaks in our name (RFC 9110 §6.5.1).
pub fn is_forbidden_trailer(id: FieldId, name: &[u8]) -> bool {
    match id {
        FieldId::Other | FieldId::Accept | FieldId::UserAgent | FieldId::Referer => {
            FORBIDDEN_TRAILERS.contains(&name)
                || name.starts_with(b"content-")
                || name.starts_with(b"if-")
                || is_identity(name)
        }
        _ => true,
    }
}

/// Those that have no [`FieldId`].
const FORBIDDEN_TRAILERS: [&[u8]; 17] = [
    b"age",
    b"authorization",
    b"cache-control",
    b"cookie",
    b"expires",
    b"location",
    b"max-forwards",
    b"pragma",
    b"proxy-authentication-info",
    b"range",
    b"set-cookie",
    b"set-cookie2",
    b"status",
    b"strict-transport-security",
    b"vary",
    b"warning",
    b"www-authenticate",
];

impl FieldId {
    /// The id of a lower-case name. Cost: one match on the length, at most a few comparisons.
    pub fn of(name: &[u8]) -> FieldId {
        match name {
            b"te" => FieldId::Te,
            b"via" => FieldId::Via,
            b"host" => FieldId::Host,
            b"date" => FieldId::Date,
            b"proxy" => FieldId::Proxy,
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
            b"client-cert"
            | b"client-cert-chain"
            | b"x-client-cert-san"
            | b"x-client-cert-serial"
            | b"x-client-cert-subject"
            | b"x-client-cert-verified"
            | b"x-client-cert-fingerprint" => FieldId::ClientIdentity,
            _ => FieldId::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(fields: &Fields) -> String {
        let mut out = Vec::new();
        fields.write_lines(&mut out, |_| true);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn drops_names_that_some_backend_reads_as_one_of_ours() {
        let spoofs = [
            "X_Forwarded_For",
            "x.forwarded.for",
            "X~Real-IP",
            "content%length",
            "Transfer*Encoding",
            "ho_st",
            "x-forwarded_anything",
            "x_client_cert_subject",
            "Client.Cert",
        ];
        for name in spoofs {
            assert!(!may_pass(name.as_bytes(), Underscores::Drop), "{name}");
        }
        assert!(!may_pass(b"content_length", Underscores::Keep));
        assert!(!may_pass(b"a\"b", Underscores::Keep), "HTTP/2 alone lets such a name come so far");
        assert!(!may_pass(b"x_custom", Underscores::Drop));
        assert!(may_pass(b"x_custom", Underscores::Keep));
        for name in ["X-Custom", "x.custom", "Sec-CH-UA", "a", "!#$%&'*+.^`|~9"] {
            assert!(may_pass(name.as_bytes(), Underscores::Drop), "{name}");
        }
    }

    #[test]
    fn makes_names_of_every_length_lower_case() {
        for length in 0..=25 {
            for byte in 0..=u8::MAX {
                for at in 0..length {
                    let mut name = b"AbcDEfghIJklMNopqRStuvWXYZ-_"[..length].to_vec();
                    name[at] = byte;
                    let expected = name.to_ascii_lowercase();
                    make_lower_case(&mut name);
                    assert_eq!(name, expected);
                }
            }
        }
    }

    #[test]
    fn keeps_order_and_names_in_lower_case() {
        let mut fields = Fields::default();
        assert_eq!(fields.push(b"X-B", b"1"), FieldId::Other);
        assert_eq!(fields.push(b"VIA", b"2"), FieldId::Via);
        fields.push(b"x-b", b"");
        assert_eq!((fields.len(), fields.bytes()), (3, 11));
        assert_eq!(lines(&fields), "x-b: 1\r\nvia: 2\r\nx-b: \r\n");
        assert_eq!((fields.get(FieldId::Via), fields.find(b"x-b")), (Some(&b"2"[..]), Some(&b"1"[..])));
        fields.remove(b"x-b");
        assert_eq!(lines(&fields), "via: 2\r\n");
        fields.pop();
        assert!(fields.is_empty());
        fields.push(b"a", b"b");
        assert_eq!(lines(&fields), "a: b\r\n");
    }

    #[test]
    fn finds_fields_in_lines_that_were_loaded() {
        let mut fields = Fields::default();
        fields.push(b"a", b"1");
        let start = fields.load(b"GET / HTTP/1.1\r\nHost: b\r\nX-C:  d\r\nE: f\r\n\r\n");
        assert_eq!(fields.push_line(start + 16, 4, 1), FieldId::Host);
        fields.push(b"X-C", b"d");
        fields.push_line(start + 34, 1, 1);
        assert_eq!(lines(&fields), "a: 1\r\nhost: b\r\nx-c: d\r\ne: f\r\n");
    }

    #[test]
    fn knows_each_field_by_its_lower_case_name_only() {
        assert_eq!(FieldId::of(b"content-length"), FieldId::ContentLength);
        assert_eq!(FieldId::of(b"Content-Length"), FieldId::Other);
        assert_eq!(FieldId::of(b"content-length "), FieldId::Other);
        assert_eq!(FieldId::of(b""), FieldId::Other);
    }
}
