//! `tls.acme` of a listener: certificates that are asked for at a directory and renewed by themselves.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose};
use toml::de::DeValue;

use super::{
    Listener, TrustedCa,
    addresses::host,
    cluster_tls,
    diagnostics::{Problem, Span, quote},
    file::WrittenListener,
    pem::{check_mode, system_text},
    reader::{At, Table},
    values::{Outcome, Refusal, boolean, choice, file, string, text},
};

/// Where everything is kept unless said.
const STORAGE: &str = "/var/lib/portcullis/acme";
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";
/// What the file of the account is called, so no certificate can be.
const ACCOUNT: &str = "account";
/// Larger files hold no key.
const LARGEST_KEY: u64 = 4096;
/// Shorter keys can be guessed.
const KEY_BYTES: usize = 16;
/// What Let's Encrypt takes in one certificate.
const DOMAINS: usize = 100;

/// A certificate that is asked for and renewed.
#[derive(Debug, Clone)]
pub struct Acme {
    pub account: AcmeAccount,
    /// In lower case, as written; never empty, no name twice.
    pub domains: Vec<String>,
    pub challenge: AcmeChallenge,
    /// One of those that the directory offers.
    pub profile: Option<String>,
    pub storage: PathBuf,
}

/// Whom to ask, and as whom.
#[derive(Debug, Clone)]
pub struct AcmeAccount {
    /// An `https` URL.
    pub directory: String,
    /// URLs: `mailto:ops@example.com`.
    pub contact: Vec<String>,
    pub terms_of_service_agreed: bool,
    pub eab: Option<AcmeEab>,
    /// Who vouches for the directory itself.
    pub ca: TrustedCa,
}

/// An account at the authority that the ACME account is bound to (RFC 8555 §7.3.4).
#[derive(Clone, PartialEq, Eq)]
pub struct AcmeEab {
    pub key_id: String,
    /// Never printed.
    pub hmac_key: Vec<u8>,
}

/// How it is proved that a name leads here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// A handshake on port 443 (RFC 8737).
    TlsAlpn01,
    /// A request on port 80 (RFC 8555 §8.3).
    Http01,
}

#[derive(Debug)]
pub(super) struct WrittenAcme {
    span: Span,
    /// `None`: its problem has been reported.
    directory: Option<String>,
    contact: Vec<String>,
    terms_of_service_agreed: bool,
    domains: Vec<At<String>>,
    challenge: At<AcmeChallenge>,
    profile: Option<String>,
    storage: At<PathBuf>,
    eab: Option<WrittenEab>,
    ca: Option<At<PathBuf>>,
}

#[derive(Debug)]
struct WrittenEab {
    key_id: Option<At<String>>,
    hmac_key_file: Option<At<PathBuf>>,
}

impl AcmeAccount {
    /// Whether both mean the same account.
    fn is_same(&self, other: &AcmeAccount) -> bool {
        let ca = |account: &AcmeAccount| match &account.ca {
            TrustedCa::System => None,
            TrustedCa::File(path, _) => Some(path.clone()),
        };
        let AcmeAccount { directory, contact, terms_of_service_agreed, eab, ca: _ } = self;
        (directory, contact, eab) == (&other.directory, &other.contact, &other.eab)
            && *terms_of_service_agreed == other.terms_of_service_agreed
            && ca(self) == ca(other)
    }
}

impl Acme {
    /// Whether both mean the same certificate.
    pub fn is_same(&self, other: &Acme) -> bool {
        let Acme { account, domains, challenge, profile, storage } = self;
        account.is_same(&other.account)
            && (domains, challenge, profile, storage)
                == (&other.domains, &other.challenge, &other.profile, &other.storage)
    }

    /// What its files are called.
    pub fn name(&self) -> &str {
        &self.domains[0]
    }
}

impl fmt::Debug for AcmeEab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcmeEab").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// Reads the table; `None` if it isn't written.
pub(super) fn read(mut table: Table<'_>) -> Option<WrittenAcme> {
    let challenges = [("tls-alpn-01", AcmeChallenge::TlsAlpn01), ("http-01", AcmeChallenge::Http01)];
    if !table.is_written() {
        return None;
    }
    let span = table.span.clone();
    let domains = table.required_elements("domains", "[\"example.com\"]");
    let domains =
        domains.into_iter().filter_map(|element| table.convert("domains", element, domain)).collect();
    let contact = table.list("contact", contact).unwrap_or_default();
    let acme = WrittenAcme {
        directory: match table.place_of("directory") {
            Some(_) => table.optional("directory", directory).map(|at| at.value),
            None => Some(LETS_ENCRYPT.to_owned()),
        },
        contact: contact.into_iter().map(|at| at.value).collect(),
        terms_of_service_agreed: At::or(table.optional("terms_of_service_agreed", boolean), false),
        domains,
        challenge: or_here(table.optional("challenge", choice(&challenges)), AcmeChallenge::TlsAlpn01, &span),
        profile: table.optional("profile", text).map(|at| at.value),
        storage: or_here(table.optional("storage", file), PathBuf::from(STORAGE), &span),
        eab: eab(table.table("eab")),
        ca: table.optional("ca", file).filter(|ca| ca.value.as_os_str() != "system"),
        span,
    };
    table.finish();
    Some(acme)
}

/// The value with its place, or the default with that of the table.
fn or_here<T>(written: Option<At<T>>, default: T, span: &Span) -> At<T> {
    written.unwrap_or_else(|| At { value: default, span: span.clone() })
}

fn eab(mut table: Table<'_>) -> Option<WrittenEab> {
    if !table.is_written() {
        return None;
    }
    let eab = WrittenEab {
        key_id: table.required("key_id", "\"…\"", text),
        hmac_key_file: table.required("hmac_key_file", "\"acme.hmac\"", file),
    };
    table.finish();
    Some(eab)
}

fn directory(value: &DeValue<'_>) -> Outcome<String> {
    let refusal =
        || Refusal::new("\"letsencrypt\", \"letsencrypt-staging\" or a URL that begins with \"https://\"");
    let written = string(value, &refusal().expected)?;
    match written {
        "letsencrypt" => return Ok(LETS_ENCRYPT.to_owned()),
        "letsencrypt-staging" => return Ok(LETS_ENCRYPT_STAGING.to_owned()),
        _ => {}
    }
    let rest = written.strip_prefix("https://").filter(|rest| !rest.is_empty() && !rest.starts_with('/'));
    match rest {
        Some(_) if written.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(written.to_owned()),
        None if written.starts_with("http://") => {
            Err(refusal().help("directories are asked over TLS only (RFC 8555 §6.1)"))
        }
        Some(_) | None => Err(refusal()),
    }
}

fn contact(value: &DeValue<'_>) -> Outcome<String> {
    let refusal = || Refusal::new("an address such as \"ops@example.com\"");
    let written = string(value, &refusal().expected)?;
    let address = written.strip_prefix("mailto:").unwrap_or(written);
    let is_address = address.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty())
        && address.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
    if is_address { Ok(format!("mailto:{address}")) } else { Err(refusal()) }
}

/// A name that can be validated by the challenges that there are.
fn domain(value: &DeValue<'_>) -> Outcome<String> {
    let refusal = || Refusal::new("a host name such as \"example.com\"");
    let written = string(value, &refusal().expected)?;
    if written.starts_with("*.") {
        return Err(refusal().help(
            "a wildcard can be proved in the DNS only: list the names, or get that certificate elsewhere and name \
             its files in `certificates`",
        ));
    }
    let name = host(value).map_err(|inner| Refusal { help: inner.help, ..refusal() })?;
    if name == ACCOUNT {
        return Err(refusal().help("the storage keeps the account's key under that name"));
    }
    let is_address = name.starts_with('[') || name.parse::<std::net::IpAddr>().is_ok();
    if is_address { Err(refusal().help("an address can't be a domain")) } else { Ok(name) }
}

/// Reads the files and holds the values against each other; `None` only after an error was reported.
pub(super) fn resolve(written: WrittenAcme, base: &Path, problems: &mut Vec<Problem>) -> Option<Acme> {
    let before = problems.len();
    let directory = written.directory;
    let is_lets_encrypt = matches!(directory.as_deref(), Some(LETS_ENCRYPT | LETS_ENCRYPT_STAGING));
    if is_lets_encrypt && !written.terms_of_service_agreed {
        let problem =
            Problem::error(written.span.clone(), "Let's Encrypt asks to agree to its terms of service");
        let help = "read https://letsencrypt.org/repository/ and add `terms_of_service_agreed = true`";
        problems.push(problem.help(help));
    }
    let domains = domains(written.domains, problems);
    let storage = base.join(written.storage.value);
    if storage.exists() && !storage.is_dir() {
        let message = format!("{} is not a folder", quote(&storage.display().to_string()));
        problems.push(Problem::error(written.storage.span, message).help("name a folder of its own"));
    }
    let eab = written.eab.map(|eab| resolve_eab(eab, base, problems));
    let ca = written
        .ca
        .map_or(Some(TrustedCa::System), |ca| cluster_tls::trusted(&base.join(&ca.value), &ca, problems));
    let account = AcmeAccount {
        directory: directory?,
        contact: written.contact,
        terms_of_service_agreed: written.terms_of_service_agreed,
        eab: match eab {
            Some(eab) => Some(eab?),
            None => None,
        },
        ca: ca?,
    };
    let acme =
        Acme { account, domains, challenge: written.challenge.value, profile: written.profile, storage };
    (problems.len() == before && !acme.domains.is_empty()).then_some(acme)
}

fn domains(written: Vec<At<String>>, problems: &mut Vec<Problem>) -> Vec<String> {
    let mut seen: HashMap<String, Span> = HashMap::new();
    let mut domains = Vec::new();
    if let Some(first_too_many) = written.get(DOMAINS) {
        let problem = Problem::error(first_too_many.span.clone(), "too many domains for one certificate");
        let problem = problem.note(format!("expected at most {DOMAINS}, found {}", written.len()));
        problems.push(problem.help("spread them over several listeners"));
    }
    for At { value, span } in written {
        if let Some(first) = seen.get(&value) {
            let problem = Problem::error(span, format!("domain {} is listed twice", quote(&value)));
            problems.push(problem.related(first.clone(), "first listed").help("leave one out"));
            continue;
        }
        seen.insert(value.clone(), span);
        domains.push(value);
    }
    domains
}

fn resolve_eab(written: WrittenEab, base: &Path, problems: &mut Vec<Problem>) -> Option<AcmeEab> {
    let file = written.hmac_key_file?;
    let path = base.join(&file.value);
    let quoted = quote(&path.display().to_string());
    problems.extend(check_mode(&path, &file.span, "the key of the account binding"));
    let hmac_key = match read_key(&path) {
        Ok(Some(key)) => key,
        Ok(None) => {
            let problem = Problem::error(file.span, format!("{quoted} holds no key"));
            let expected = format!(
                "expected one line of base64url, at least {KEY_BYTES} bytes, as the authority gave it"
            );
            problems.push(problem.note(expected));
            return None;
        }
        Err(error) => {
            let problem = Problem::error(file.span, format!("{quoted} can't be read"));
            problems.push(problem.note(system_text(&error)));
            return None;
        }
    };
    Some(AcmeEab { key_id: written.key_id?.value, hmac_key })
}

fn read_key(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST_KEY).read_to_end(&mut bytes)?;
    Ok(key(&bytes))
}

/// Authorities write base64 in both alphabets, padded or not.
fn key(bytes: &[u8]) -> Option<Vec<u8>> {
    let line = std::str::from_utf8(bytes).ok()?.trim().trim_end_matches('=');
    let key = general_purpose::URL_SAFE_NO_PAD.decode(line);
    let key = key.or_else(|_| general_purpose::STANDARD_NO_PAD.decode(line)).ok()?;
    (key.len() >= KEY_BYTES).then_some(key)
}

/// Holds the certificates of all listeners against each other and against the listeners there are.
pub(super) fn check(listeners: &[WrittenListener], problems: &mut Vec<Problem>) {
    let all = || listeners.iter().filter_map(|listener| listener.tls.as_ref()?.acme.as_ref());
    let has_clear_text = listeners.iter().any(|listener| listener.tls.is_none());
    for acme in all().filter(|acme| acme.challenge.value == AcmeChallenge::Http01 && !has_clear_text) {
        let problem =
            Problem::error(acme.challenge.span.clone(), "no listener can answer an http-01 challenge");
        problems.push(problem.help(
            "add a listener without `tls` on port 80, with `redirect_to_https = true`, or use \"tls-alpn-01\"",
        ));
    }
}

/// Where the listeners' tables are written, in the order of the listeners.
pub(super) fn spans(listeners: &[WrittenListener]) -> Vec<Option<Span>> {
    let span = |listener: &WrittenListener| Some(listener.tls.as_ref()?.acme.as_ref()?.span.clone());
    listeners.iter().map(span).collect()
}

/// Finds certificates that would overwrite each other's files, and accounts that are one and differ.
pub(super) fn check_shared(
    listeners: &[Option<Listener>],
    spans: &[Option<Span>],
    problems: &mut Vec<Problem>,
) {
    let acme = |index: usize| listeners[index].as_ref()?.tls.as_ref()?.acme.as_ref();
    for (index, span) in spans.iter().enumerate() {
        let differs = |earlier: usize| Some((spans[earlier].clone()?, differ(acme(earlier)?, acme(index)?)?));
        if let (Some((first, message)), Some(span)) = ((0..index).find_map(differs), span) {
            let problem = Problem::error(span.clone(), message).related(first, "the other one");
            problems.push(problem.help("write the same in both, or give one a `storage` of its own"));
        }
    }
}

/// What can't be two things at once.
fn differ(one: &Acme, other: &Acme) -> Option<&'static str> {
    if one.storage != other.storage || one.account.directory != other.account.directory {
        None
    } else if !one.account.is_same(&other.account) {
        Some("two `acme` tables share an account and describe it differently")
    } else if one.name() == other.name() && !one.is_same(other) {
        Some("two `acme` tables with the same first domain differ")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_base64_of_sixteen_bytes_or_more() {
        let bytes: Vec<u8> = (240..=255).collect();
        for good in [
            "8PHy8_T19vf4-fr7_P3-_w",
            "8PHy8_T19vf4-fr7_P3-_w==\n",
            "8PHy8/T19vf4+fr7/P3+/w==",
            " 8PHy8/T19vf4+fr7/P3+/w \n",
        ] {
            assert_eq!(key(good.as_bytes()).as_ref(), Some(&bytes), "{good}");
        }
        for bad in ["", "8PHy8_T19vf4-fr7_P3-", "8PHy8_T19vf4 -fr7_P3-_w", "0123\n4567890123456789012345"] {
            assert_eq!(key(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(key(b"\xff\xff"), None);
    }

    #[test]
    fn the_key_is_not_printed() {
        let eab = AcmeEab { key_id: "kid-1".to_owned(), hmac_key: vec![171; 32] };
        let text = format!("{eab:?}");
        assert!(text.contains("kid-1") && !text.contains("171"), "{text}");
    }
}
