//! The pieces of which HTTP/1 messages are written; framing is always ours, never copied.
//!
//! Last step of the codec: the caller appends a line, its fields and what it adds of its own to one
//! reused buffer. Values come from [`Fields`] or from us, so nothing here can break a line.

use http::{Method, StatusCode};

use crate::http::fields::{FieldId, Fields};

pub const CRLF: &[u8] = b"\r\n";

/// The end of a chunked body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

pub fn write_request_line(out: &mut Vec<u8>, method: &Method, target: &str) {
    out.reserve(method.as_str().len() + target.len() + 12);
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Writes the line with the status' registered phrase, or with none.
pub fn write_status_line(out: &mut Vec<u8>, status: StatusCode) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(CRLF);
}

/// Writes one field of our own; the caller vouches that the value holds no CR, LF or NUL.
pub fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(CRLF);
}

/// Writes the fields that `keep` says, in order. Cost: a copy for each run of kept ones.
pub fn write_fields(out: &mut Vec<u8>, fields: &Fields, keep: impl FnMut(FieldId) -> bool) {
    fields.write_lines(out, keep);
}

pub fn write_content_length(out: &mut Vec<u8>, bytes: u64) {
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(itoa::Buffer::new().format(bytes).as_bytes());
    out.extend_from_slice(CRLF);
}

pub fn write_transfer_encoding_chunked(out: &mut Vec<u8>) {
    out.extend_from_slice(b"transfer-encoding: chunked\r\n");
}

/// Writes the blank line.
pub fn end_head(out: &mut Vec<u8>) {
    out.extend_from_slice(CRLF);
}

/// Writes the size line of a chunk of `len` bytes, which must not be 0; the data and a [`CRLF`]
/// follow.
pub fn write_chunk_header(out: &mut Vec<u8>, len: usize) {
    debug_assert_ne!(len, 0, "an empty chunk would end the body");
    let mut line = [0; 18];
    let mut start = 16;
    line[start..].copy_from_slice(CRLF);
    let mut rest = len;
    while rest > 0 {
        start -= 1;
        line[start] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
    }
    out.extend_from_slice(&line[start..]);
}

/// Writes the end of a chunked body with its trailers.
pub fn write_trailers(out: &mut Vec<u8>, trailers: &Fields) {
    out.extend_from_slice(b"0\r\n");
    trailers.write_lines(out, |_| true);
    out.extend_from_slice(CRLF);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn writes_lines_as_they_go_on_the_wire() {
        assert_eq!(written(|out| write_request_line(out, &Method::PATCH, "/a?b")), "PATCH /a?b HTTP/1.1\r\n");
        assert_eq!(
            written(|out| write_status_line(out, StatusCode::NOT_FOUND)),
            "HTTP/1.1 404 Not Found\r\n"
        );
        let unregistered = StatusCode::from_u16(599).unwrap();
        assert_eq!(written(|out| write_status_line(out, unregistered)), "HTTP/1.1 599 \r\n");
        assert_eq!(written(|out| write_field(out, "host", b"[::1]:8443")), "host: [::1]:8443\r\n");
        assert_eq!(
            written(|out| write_content_length(out, u64::MAX)),
            "content-length: 18446744073709551615\r\n"
        );
    }

    #[test]
    fn writes_chunk_sizes_in_hexadecimal() {
        for (len, line) in [
            (1, "1\r\n"),
            (16, "10\r\n"),
            (0xdead_beef, "deadbeef\r\n"),
            (usize::MAX, "ffffffffffffffff\r\n"),
        ] {
            assert_eq!(written(|out| write_chunk_header(out, len)), line);
        }
    }

    #[test]
    fn leaves_out_the_fields_that_are_not_kept() {
        let mut fields = Fields::default();
        for (name, value) in [("A", "1"), ("Via", "2"), ("B", "3"), ("C", ""), ("via", "4")] {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        let kept = written(|out| write_fields(out, &fields, |id| id != FieldId::Via));
        assert_eq!(kept, "a: 1\r\nb: 3\r\nc: \r\n");
        assert_eq!(
            written(|out| write_trailers(out, &fields)),
            "0\r\na: 1\r\nvia: 2\r\nb: 3\r\nc: \r\nvia: 4\r\n\r\n"
        );
    }
}
