//! The admin address: where it is, and who may ask there.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use toml::de::DeValue;

use super::{
    Admin, AdminAddress,
    addresses::socket_address,
    diagnostics::{Problem, quote},
    pem::{check_mode, system_text},
    reader::{At, Table},
    values::{Outcome, Refusal, boolean, file},
};

/// What stands in front of the path of a unix socket.
const UNIX: &str = "unix:";
/// The longest path that the kernel takes for a unix socket, without its final zero.
const SOCKET_PATH_BYTES: usize = 107;
/// Shorter ones can be guessed.
const TOKEN_CHARACTERS: usize = 16;
const LARGEST_TOKEN: usize = 1024;

#[derive(Debug)]
pub(super) struct WrittenAdmin {
    /// `None`: its problem has been reported.
    pub(super) address: Option<At<AdminAddress>>,
    token_file: Option<At<PathBuf>>,
    unprotected: bool,
}

/// What a request to the admin address has to show; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token([hidden])")
    }
}

impl AdminAddress {
    /// `None` for a unix socket.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            AdminAddress::Tcp(address) => Some(*address),
            AdminAddress::Unix(_) => None,
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdminAddress::Tcp(address) => address.fmt(f),
            AdminAddress::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl FromStr for AdminAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix(UNIX) {
            Some("") => Err("expected a path behind \"unix:\""),
            Some(path) => Ok(AdminAddress::Unix(path.into())),
            None => text
                .parse()
                .map(AdminAddress::Tcp)
                .map_err(|_| "expected an IP address and a port, or \"unix:\" and a path"),
        }
    }
}

/// Reads the table; `None` if it isn't written.
pub(super) fn read(mut table: Table<'_>) -> Option<WrittenAdmin> {
    if !table.is_written() {
        return None;
    }
    let admin = WrittenAdmin {
        address: table.required("address", "\"127.0.0.1:9090\"", address),
        token_file: table.optional("token_file", file),
        unprotected: At::or(table.optional("unprotected", boolean), false),
    };
    table.finish();
    Some(admin)
}

fn address(value: &DeValue<'_>) -> Outcome<AdminAddress> {
    let expected =
        "an IP address and a port such as \"127.0.0.1:9090\", or \"unix:\" and a path of at most 107 bytes";
    if let DeValue::String(text) = value
        && let Some(path) = text.strip_prefix(UNIX)
    {
        let is_path = !path.is_empty() && path.len() <= SOCKET_PATH_BYTES && !path.contains('\0');
        return if is_path { Ok(AdminAddress::Unix(path.into())) } else { Err(Refusal::new(expected)) };
    }
    match socket_address(value) {
        Ok(address) => Ok(AdminAddress::Tcp(address)),
        Err(refusal) => Err(Refusal { expected: expected.to_owned(), ..refusal }),
    }
}

/// Reads the token and holds the address against it; `None` only after an error was reported.
pub(super) fn resolve(written: WrittenAdmin, base: &Path, problems: &mut Vec<Problem>) -> Option<Admin> {
    let address = written.address?;
    let token = match &written.token_file {
        Some(file) => Some(read_token(file, base, problems)?),
        None => None,
    };
    let is_open = token.is_none()
        && address.value.tcp().is_some_and(|address| !address.ip().to_canonical().is_loopback());
    if is_open {
        let problem = if written.unprotected { Problem::warning } else { Problem::error };
        let message = format!(
            "everybody who reaches \"{}\" may read the metrics and the status, and lift bans",
            address.value
        );
        let problem = problem(address.span, message);
        problems.push(if written.unprotected {
            problem.help("set `token_file`, or see to it that only Prometheus and operators reach it")
        } else {
            problem.help(
                "write a loopback address or \"unix:/run/portcullis/admin.sock\", or set `token_file`; on a \
                 network of your own that keeps others out, `unprotected = true`",
            )
        });
    }
    let address = match address.value {
        AdminAddress::Unix(path) => AdminAddress::Unix(base.join(path)),
        tcp @ AdminAddress::Tcp(_) => tcp,
    };
    Some(Admin { address, token })
}

fn read_token(written: &At<PathBuf>, base: &Path, problems: &mut Vec<Problem>) -> Option<Token> {
    let path = base.join(&written.value);
    let quoted = quote(&path.display().to_string());
    problems.extend(check_mode(&path, &written.span, "the token"));
    match read_line(&path) {
        Ok(Some(token)) => Some(Token(token)),
        Ok(None) => {
            let problem = Problem::error(written.span.clone(), format!("{quoted} holds no token"));
            let expected = format!(
                "expected one line of {TOKEN_CHARACTERS} to {LARGEST_TOKEN} visible ASCII characters, no spaces"
            );
            problems.push(
                problem.note(expected).help("make one with `openssl rand -hex 32`, readable by its owner"),
            );
            None
        }
        Err(error) => {
            let problem = Problem::error(written.span.clone(), format!("{quoted} can't be read"));
            problems.push(problem.note(system_text(&error)));
            None
        }
    }
}

/// The token of a file; `None` if it holds something else.
fn read_line(path: &Path) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST_TOKEN as u64 + 2).read_to_end(&mut bytes)?;
    Ok(token(&bytes))
}

fn token(bytes: &[u8]) -> Option<String> {
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let is_token =
        (TOKEN_CHARACTERS..=LARGEST_TOKEN).contains(&line.len()) && line.iter().all(u8::is_ascii_graphic);
    is_token.then(|| String::from_utf8_lossy(line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_of_sixteen_visible_characters_or_more() {
        let long = "x".repeat(LARGEST_TOKEN);
        for good in ["0123456789abcdef", "0123456789abcdef\n", "~!@#$%^&*()_+|}{", long.as_str()] {
            assert_eq!(token(good.as_bytes()).as_deref(), Some(good.trim_end()));
        }
        let longer = format!("{long}x");
        let bad =
            ["", "\n", "0123456789abcde", "0123456789abcde\n", "0123456789 abcdef", "0123456789abcdef\n\n"];
        for bad in bad.into_iter().chain(["0123456789abcdef\r\n", "0123456789abcdé0", longer.as_str()]) {
            assert_eq!(token(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn an_address_reads_as_it_is_written() {
        for text in ["127.0.0.1:9090", "[::1]:9090", "unix:/run/portcullis/admin.sock", "unix:a"] {
            assert_eq!(text.parse::<AdminAddress>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "localhost:9090", "127.0.0.1", "/run/admin.sock"] {
            assert!(text.parse::<AdminAddress>().is_err(), "{text}");
        }
    }
}
