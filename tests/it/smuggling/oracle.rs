//! A second opinion on what was sent: the strictest reading of RFC 9112 there is, written without the
//! proxy's code. Anything that could be read otherwise is an error.

/// A request as the backend saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Head and body as they came.
    pub raw: Vec<u8>,
    /// The connection ended before the request did.
    pub broken_off: bool,
    /// What a client sent for a body is none.
    pub malformed: bool,
}

/// What the beginning of a connection's bytes is.
#[derive(Debug)]
pub enum Reading {
    /// A whole request.
    Whole(Seen),
    /// A head, and a body that is not all there; broken off unless more comes.
    Head(Seen),
    Partial,
}

impl Seen {
    /// The value of a field that must be there once.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut all = self.fields.iter().filter(|(other, _)| other == name);
        let first = all.next().map(|(_, value)| value.as_str());
        assert!(all.next().is_none(), "{name} twice: {}", self.raw.escape_ascii());
        first
    }

    fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// Who wrote what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Any client: a little more of the RFC's freedom.
    Client,
    /// The proxy, which always writes the one plain form.
    Proxy,
}

/// All requests at the front that are whole, and the one behind them if that is only cut.
pub fn read_all(mut bytes: &[u8], from: From) -> Vec<Seen> {
    let mut all = Vec::new();
    loop {
        match read(bytes, from) {
            Ok(Reading::Whole(seen)) => {
                bytes = &bytes[seen.raw.len()..];
                all.push(seen);
            }
            Ok(Reading::Head(seen)) => {
                all.push(seen);
                return all;
            }
            Ok(Reading::Partial) | Err(_) => return all,
        }
    }
}

/// Reads the request at the front.
///
/// # Errors
/// What is wrong with it.
pub fn read(bytes: &[u8], from: From) -> Result<Reading, String> {
    let skipped = if from == From::Client && bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let Some(end) = bytes[skipped..].windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(Reading::Partial);
    };
    let end = skipped + end;
    let mut seen = head(&bytes[skipped..end + 2], from)?;
    let rest = &bytes[end + 4..];
    let lengths = seen.all("content-length");
    let length = lengths.first().copied();
    if from == From::Proxy && lengths.len() > 1 || lengths.iter().any(|each| Some(*each) != length) {
        return Err(format!("lengths: {lengths:?}"));
    }
    let taken = match (length, &seen.all("transfer-encoding")[..]) {
        (None, []) => Some(0),
        (Some(length), []) => {
            let length = number(length.as_bytes(), 10)?;
            seen.body = rest[..length.min(rest.len())].to_vec();
            (rest.len() >= length).then_some(length)
        }
        (None, [coding]) if coding.eq_ignore_ascii_case("chunked") => {
            let taken = chunks(rest, &mut seen.body, from);
            // The head is good, and may be answered before its body is looked at.
            seen.malformed = from == From::Client && taken.is_err();
            if seen.malformed { None } else { taken? }
        }
        framing => return Err(format!("framing: {framing:?}")),
    };
    seen.broken_off = taken.is_none();
    seen.raw = bytes[..end + 4 + taken.unwrap_or(rest.len())].to_vec();
    Ok(if taken.is_some() { Reading::Whole(seen) } else { Reading::Head(seen) })
}

fn head(head: &[u8], from: From) -> Result<Seen, String> {
    // Values may hold bytes beyond ASCII: each is a character here.
    let text: String = head.iter().map(|byte| char::from(*byte)).collect();
    let mut lines = text.strip_suffix("\r\n").ok_or("no line end")?.split("\r\n");
    let first: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, version] = first[..] else { return Err(format!("request line: {first:?}")) };
    if version != "HTTP/1.1" && (from == From::Proxy || version != "HTTP/1.0") {
        return Err(format!("version: {version:?}"));
    }
    if method.is_empty() || !method.bytes().all(|byte| is_token(byte) && !byte.is_ascii_lowercase()) {
        return Err(format!("method: {method:?}"));
    }
    let visible = target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !visible || from == From::Proxy && !(target.starts_with('/') || target == "*") {
        return Err(format!("target: {target:?}"));
    }
    let fields = lines.map(|line| field(line, from)).collect::<Result<Vec<_>, _>>()?;
    let hosts = fields.iter().filter(|(name, _)| name == "host").count();
    if hosts > 1 || hosts == 0 && version == "HTTP/1.1" {
        return Err("not one host".to_owned());
    }
    Ok(Seen {
        method: method.to_owned(),
        target: target.to_owned(),
        fields,
        body: Vec::new(),
        raw: Vec::new(),
        broken_off: false,
        malformed: false,
    })
}

fn field(line: &str, from: From) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or_else(|| format!("field: {line:?}"))?;
    // An underscore is one too, and gateways take it for a hyphen: none is passed on.
    if name.is_empty() || !name.bytes().all(|byte| is_token(byte) && (byte != b'_' || from == From::Client)) {
        return Err(format!("name: {line:?}"));
    }
    if value.chars().any(|each| each != '\t' && each.is_ascii_control()) {
        return Err(format!("value: {line:?}"));
    }
    Ok((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn number(digits: &[u8], radix: u32) -> Result<usize, String> {
    let plain = !digits.is_empty() && digits.iter().all(|byte| char::from(*byte).is_digit(radix));
    let text = std::str::from_utf8(digits).unwrap_or_default();
    let value = if plain { u64::from_str_radix(text, radix).ok() } else { None };
    let value = value.and_then(|value| usize::try_from(value).ok());
    value.ok_or_else(|| format!("number: {}", digits.escape_ascii()))
}

/// Reads chunks into `body`; the bytes that they took, or `None` when there are more to come.
fn chunks(bytes: &[u8], body: &mut Vec<u8>, from: From) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let Some(end) = line_end(&bytes[at..])? else { return Ok(None) };
        let size = size(&bytes[at..at + end], from)?;
        at += end + 2;
        if size == 0 {
            break;
        }
        let left = bytes.len() - at;
        body.extend_from_slice(&bytes[at..at + size.min(left)]);
        if left < size + 2 {
            return Ok(None);
        }
        if bytes[at + size..at + size + 2] != *b"\r\n" {
            return Err("no line end behind a chunk".to_owned());
        }
        at += size + 2;
    }
    loop {
        let Some(end) = line_end(&bytes[at..])? else { return Ok(None) };
        let line = &bytes[at..at + end];
        at += end + 2;
        if line.is_empty() {
            return Ok(Some(at));
        }
        let (name, _) = field(&line.iter().map(|byte| char::from(*byte)).collect::<String>(), from)?;
        let forbidden = ["content-length", "transfer-encoding", "host", "x-request-id"];
        if from == From::Proxy && forbidden.contains(&name.as_str()) {
            return Err(format!("trailer: {name}"));
        }
    }
}

/// The size at the front of a line; the proxy writes no extensions.
fn size(line: &[u8], from: From) -> Result<usize, String> {
    let semicolon = line.iter().position(|byte| *byte == b';').filter(|_| from == From::Client);
    let (digits, extensions) = line.split_at(semicolon.unwrap_or(line.len()));
    if digits.len() > 16 || !are_extensions(extensions) {
        return Err(format!("size: {}", line.escape_ascii()));
    }
    number(digits, 16)
}

/// RFC 9112 §7.1.1 without its blanks.
fn are_extensions(mut rest: &[u8]) -> bool {
    let word = |bytes: &[u8]| bytes.iter().take_while(|byte| is_token(**byte)).count();
    while let Some(extension) = rest.strip_prefix(b";") {
        let name = word(extension);
        rest = &extension[name..];
        if let Some(value) = rest.strip_prefix(b"=") {
            let length = if value.starts_with(b"\"") { quoted(value) } else { word(value) };
            if length == 0 {
                return false;
            }
            rest = &value[length..];
        }
        if name == 0 {
            return false;
        }
    }
    rest.is_empty()
}

/// The length of the quoted string at the front; 0 where there is none.
fn quoted(value: &[u8]) -> usize {
    let mut at = 1;
    while at < value.len() {
        match value[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            b'\t' | b' '..=b'~' | 0x80.. => at += 1,
            _ => return 0,
        }
    }
    0
}

/// The length of the line at the front, which ends in CRLF and holds neither of them.
fn line_end(bytes: &[u8]) -> Result<Option<usize>, String> {
    match bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        Some(at) if bytes[at..].starts_with(b"\r\n") => Ok(Some(at)),
        Some(at) if at + 1 == bytes.len() && bytes[at] == b'\r' => Ok(None),
        Some(_) => Err(format!("line: {}", bytes.escape_ascii())),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_strict_and_nothing_else() {
        let good =
            b"POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nGET";
        let Ok(Reading::Whole(seen)) = read(good, From::Proxy) else { panic!("refused") };
        assert_eq!((seen.body.as_slice(), seen.raw.len()), (&b"hi"[..], good.len() - 3));
        assert!(matches!(read(&good[..good.len() - 5], From::Proxy), Ok(Reading::Head(_))));
        for bad in [
            "GET /a HTTP/1.1\r\n\r\n",
            "GET /a HTTP/1.0\r\nhost: a\r\n\r\n",
            "GET /a HTTP/1.1\r\nhost: a\nx: b\r\n\r\n",
            "GET /a HTTP/1.1\r\nhost: a\r\nx : b\r\n\r\n",
            "GET /a HTTP/1.1\r\nhost: a\r\n x: b\r\n\r\n",
            "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\n",
            "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1;a\r\n",
            "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\nx\r\n",
        ] {
            assert!(read(bad.as_bytes(), From::Proxy).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn grants_a_client_what_the_proxy_never_writes() {
        let chunked = "POST http://a/ HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: Chunked\r\n\r\n";
        for body in ["1;a\r\nx\r\n0\r\n\r\n", "1;a=\"b;\\\"\";c=d\r\nx\r\n0\r\n\r\n"] {
            let whole = format!("{chunked}{body}");
            assert!(matches!(read(whole.as_bytes(), From::Client), Ok(Reading::Whole(_))), "{body:?}");
        }
        for body in ["1;\r\n", "1;a\nb\r\n", "1;a=\"\r\n\"", "1 ;a\r\n", "1;a b\r\n", "1;=\r\n"] {
            let Ok(Reading::Head(seen)) = read(format!("{chunked}{body}").as_bytes(), From::Client) else {
                panic!("{body:?}")
            };
            assert!(seen.malformed, "{body:?}");
        }
        let two = "\r\nGET / HTTP/1.0\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\nx_y: z\r\n\r\nGET";
        assert_eq!(read_all(two.as_bytes(), From::Client).len(), 2);
    }
}
