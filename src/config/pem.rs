//! Certificates and keys: reads PEM files and checks that what is in them can be used.

use std::{
    fs::File,
    io::{self, Read},
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::{
    Error, InconsistentKeys, RootCertStore,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use rustls_pemfile::Item;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer,
    revocation_list::CertificateRevocationList, x509::X509Version,
};

use super::{
    Certificate, Stamps,
    diagnostics::{Problem, Span, quote},
    doubts,
    file::CertificateFiles,
    reader::At,
};

/// Larger files hold no certificates; a bundle of every public CA has a quarter of a mebibyte.
const LARGEST_FILE: u64 = 4 << 20;

type Checked<T> = Result<T, Box<Problem>>;

/// A file of the configuration with the place where it is named.
struct PemFile<'a> {
    path: &'a Path,
    span: Span,
    bytes: Vec<u8>,
}

/// Reads a certificate with its key and checks that they fit together.
pub(super) fn certificate(
    files: &CertificateFiles,
    base: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Certificate> {
    let certificate = pair(files, base, problems)?;
    problems.extend(doubts::of(&certificate, &files.chain.span, "clients"));
    problems.extend(doubts::nameless(&certificate, &files.chain.span));
    Some(certificate)
}

/// Reads a certificate with its key that we show to backends.
pub(super) fn client_certificate(
    files: &CertificateFiles,
    base: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Certificate> {
    let certificate = pair(files, base, problems)?;
    problems.extend(doubts::of(&certificate, &files.chain.span, "backends"));
    Some(certificate)
}

/// Reads the authority of the private CA that balancers have; a group of them may share its key.
pub(super) fn client_authority(files: &CertificateFiles, problems: &mut Vec<Problem>) -> Option<Certificate> {
    problems.extend(check_access(&files.key.value, &files.key.span, "the private key", 0o026));
    let certificate = unguarded_pair(files, Path::new(""), problems)?;
    problems.extend(doubts::of(&certificate, &files.chain.span, "backends"));
    Some(certificate)
}

fn pair(files: &CertificateFiles, base: &Path, problems: &mut Vec<Problem>) -> Option<Certificate> {
    problems.extend(check_mode(&base.join(&files.key.value), &files.key.span, "the private key"));
    unguarded_pair(files, base, problems)
}

/// Certificate and key, whoever else may read the key.
fn unguarded_pair(files: &CertificateFiles, base: &Path, problems: &mut Vec<Problem>) -> Option<Certificate> {
    let (chain_file, key_file) = (base.join(&files.chain.value), base.join(&files.key.value));
    let stamps = Stamps::of(vec![chain_file.clone(), key_file.clone()]);
    let chain = reported(read_chain(&chain_file, &files.chain), problems);
    let key = reported(read_key(&key_file, &files.key), problems);
    let chain = chain?;
    let facts = reported(Facts::read(&chain, &chain_file, &files.chain.span), problems)?;
    let key = key?;
    reported(check_match(&chain, &key, &chain_file, files), problems)?;
    Some(Certificate { stamps, ..facts.certificate((chain_file, key_file), chain, key) })
}

impl Certificate {
    /// Reads the files of a certificate anew while it is served. What clients would refuse is an error
    /// here: the one in force is better.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub fn load(chain_file: &Path, key_file: &Path) -> Result<Self, String> {
        let at = |path: &Path| At { value: path.to_owned(), span: 0..0 };
        let files = CertificateFiles { chain: at(chain_file), key: at(key_file) };
        let mut problems = Vec::new();
        match unguarded_pair(&files, Path::new(""), &mut problems) {
            Some(certificate) => certificate.check_dates().map(|()| certificate),
            None => Err(problems.first().map_or_else(String::new, Problem::in_one_line)),
        }
    }

    /// A certificate that comes from no file: leaf first, with its key.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, String> {
        let nowhere = || At { value: PathBuf::new(), span: 0..0 };
        let files = CertificateFiles { chain: nowhere(), key: nowhere() };
        let checked = Facts::read(&chain, Path::new(""), &files.chain.span)
            .and_then(|facts| check_match(&chain, &key, Path::new(""), &files).map(|()| facts));
        let facts = checked.map_err(|problem| problem.in_one_line())?;
        Ok(facts.certificate((PathBuf::new(), PathBuf::new()), chain, key))
    }

    /// Reads a text that holds a key and its chain, leaf first.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let items: Result<Vec<Item>, _> = rustls_pemfile::read_all(&mut &*pem).collect();
        let items = items.map_err(|error| error.to_string())?;
        let key = items.iter().find_map(private_key).ok_or("it has no private key")?;
        let chain = items
            .into_iter()
            .filter_map(|item| if let Item::X509Certificate(one) = item { Some(one) } else { None });
        Self::from_der(chain.collect(), key)
    }

    /// Refuses what clients refuse.
    fn check_dates(&self) -> Result<(), String> {
        let now = now();
        match () {
            () if self.not_after < now => Err(format!("it expired on {}", date_text(self.not_after))),
            () if self.not_before > now => {
                Err(format!("it is not valid before {}", date_text(self.not_before)))
            }
            () if self.names.is_empty() => Err("it has no subject alternative names".to_owned()),
            () => Ok(()),
        }
    }
}

/// Reads the certificates that a cluster's backends are verified against.
pub(super) fn roots(
    path: &Path,
    written: &At<PathBuf>,
    problems: &mut Vec<Problem>,
) -> Option<RootCertStore> {
    let certificates = reported(read_chain(path, written), problems)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        if let Err(error) = roots.add(certificate) {
            let message = format!("{} can't be used as a certificate authority", quote_path(path));
            problems.push(Problem::error(written.span.clone(), message).note(error.to_string()));
            return None;
        }
    }
    Some(roots)
}

/// Reads lists of revoked certificates.
pub(super) fn revocation_lists(
    path: &Path,
    written: &At<PathBuf>,
    problems: &mut Vec<Problem>,
) -> Option<Vec<CertificateRevocationListDer<'static>>> {
    reported(read_revocation_lists(path, written), problems)
}

fn read_revocation_lists(
    path: &Path,
    written: &At<PathBuf>,
) -> Checked<Vec<CertificateRevocationListDer<'static>>> {
    let file = PemFile::read(path, written)?;
    let lists: Vec<_> = file
        .items()?
        .into_iter()
        .filter_map(|item| if let Item::Crl(list) = item { Some(list) } else { None })
        .collect();
    if lists.is_empty() {
        let help = "a PEM file with lines such as -----BEGIN X509 CRL----- is expected";
        return Err(Box::new(file.problem("holds no list of revoked certificates").help(help)));
    }
    for list in &lists {
        let (_, parsed) = CertificateRevocationList::from_der(list).map_err(|error| {
            Box::new(
                file.problem("holds a list of revoked certificates that can't be read")
                    .note(error.to_string()),
            )
        })?;
        // RFC 5280 §5.1.2; the TLS library takes no other.
        let has_all = parsed.version() == Some(X509Version::V2)
            && parsed.next_update().is_some()
            && !parsed.extensions().is_empty();
        if !has_all {
            let problem = file.problem("holds a list of revoked certificates of an old kind");
            let note = "version 2 is expected, with extensions and the time of the next update";
            let help = "with OpenSSL, set `crl_extensions` in the section of the CA";
            return Err(Box::new(problem.note(note).help(help)));
        }
    }
    Ok(lists)
}

fn reported<T>(result: Checked<T>, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|problem| problems.push(*problem)).ok()
}

fn read_chain(path: &Path, written: &At<PathBuf>) -> Checked<Vec<CertificateDer<'static>>> {
    let file = PemFile::read(path, written)?;
    let items = file.items()?;
    let has_key = items.iter().any(|item| private_key(item).is_some());
    let chain: Vec<_> = items
        .into_iter()
        .filter_map(
            |item| if let Item::X509Certificate(certificate) = item { Some(certificate) } else { None },
        )
        .collect();
    if !chain.is_empty() {
        return Ok(chain);
    }
    let problem = file.problem("holds no certificate");
    let help = if has_key {
        "it holds a private key: name the file of the certificate here"
    } else if file.bytes.starts_with(b"\x30\x82") {
        "it looks like DER: convert it with `openssl x509 -inform der -in … -out …`"
    } else {
        "a PEM file with lines such as -----BEGIN CERTIFICATE----- is expected"
    };
    Err(Box::new(problem.help(help)))
}

fn read_key(path: &Path, written: &At<PathBuf>) -> Checked<PrivateKeyDer<'static>> {
    let file = PemFile::read(path, written)?;
    let items = file.items()?;
    if let Some(key) = items.iter().find_map(private_key) {
        return Ok(key);
    }
    let problem = file.problem("holds no private key");
    let has = |text: &[u8]| file.bytes.windows(text.len()).any(|window| window == text);
    let help = if has(b"BEGIN ENCRYPTED PRIVATE KEY") {
        "it is encrypted: decrypt it with `openssl pkey -in … -out …`"
    } else if items.is_empty() {
        "a PEM file with lines such as -----BEGIN PRIVATE KEY----- is expected"
    } else {
        "it holds a certificate: name the file of the private key here"
    };
    Err(Box::new(problem.help(help)))
}

fn private_key(item: &Item) -> Option<PrivateKeyDer<'static>> {
    match item {
        Item::Pkcs1Key(key) => Some(key.clone_key().into()),
        Item::Pkcs8Key(key) => Some(key.clone_key().into()),
        Item::Sec1Key(key) => Some(key.clone_key().into()),
        _ => None,
    }
}

impl<'a> PemFile<'a> {
    fn read(path: &'a Path, written: &At<PathBuf>) -> Checked<Self> {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes));
        let file = Self { path, span: written.span.clone(), bytes };
        match read {
            Ok(length) if length as u64 > LARGEST_FILE => Err(Box::new(file.problem("is larger than 4 MiB"))),
            Ok(_) => Ok(file),
            Err(error) => {
                let problem = file.problem("can't be read").note(system_text(&error));
                let is_relative = error.kind() == io::ErrorKind::NotFound && written.value.is_relative();
                Err(Box::new(if is_relative {
                    problem.help("a relative path starts at the folder of the configuration file")
                } else {
                    problem
                }))
            }
        }
    }

    fn items(&self) -> Checked<Vec<Item>> {
        rustls_pemfile::read_all(&mut self.bytes.as_slice()).collect::<Result<_, _>>().map_err(|_| {
            Box::new(
                self.problem("is damaged").help(
                    "between -----BEGIN … and -----END … only lines of base64 are expected: copy it again",
                ),
            )
        })
    }

    fn problem(&self, what: &str) -> Problem {
        Problem::error(self.span.clone(), format!("{} {what}", quote_path(self.path)))
    }
}

/// What the operating system says, without the number that Rust puts behind it.
pub(super) fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn quote_path(path: &Path) -> String {
    quote(&path.display().to_string())
}

/// Warns of a secret that more than its owner may read or change.
pub(super) fn check_mode(path: &Path, span: &Span, what: &str) -> Option<Problem> {
    check_access(path, span, what, 0o066)
}

fn check_access(path: &Path, span: &Span, what: &str, forbidden: u32) -> Option<Problem> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    if mode & forbidden == 0 {
        return None;
    }
    let message = format!("{what} {} is open to other users", quote_path(path));
    let problem = Problem::warning(span.clone(), message);
    let problem = problem.note(format!("expected mode 0600, found {:04o}", mode & 0o7777));
    Some(problem.help(format!("close it with `chmod 600 {}`", path.display())))
}

fn check_match(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    chain_file: &Path,
    files: &CertificateFiles,
) -> Checked<()> {
    let signer = any_supported_type(key).map_err(|error| {
        let message = format!("{} holds a private key that can't be used", quote_path(&files.key.value));
        Box::new(Problem::error(files.key.span.clone(), message).note(error.to_string()))
    })?;
    let verdict = |leaf: &CertificateDer<'static>| {
        CertifiedKey::new(vec![leaf.clone()], Arc::clone(&signer)).keys_match()
    };
    let (leaf, rest) = chain.split_first().expect("a chain that was read is not empty");
    match verdict(leaf) {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
        Err(Error::InconsistentKeys(_)) => {
            let message = format!("the key doesn't match the certificate in {}", quote_path(chain_file));
            let problem = Problem::error(files.key.span.clone(), message);
            let help = if rest.iter().any(|other| verdict(other).is_ok()) {
                "it matches a later certificate of the file: put that one first"
            } else {
                "use the key that the certificate was issued for"
            };
            Err(Box::new(problem.help(help)))
        }
        Err(error) => {
            let message = format!("the certificate in {} can't be used", quote_path(chain_file));
            Err(Box::new(Problem::error(files.chain.span.clone(), message).note(error.to_string())))
        }
    }
}

/// What the leaf says about itself; times are seconds since the epoch.
struct Facts {
    names: Vec<String>,
    serial: String,
    not_before: i64,
    not_after: i64,
}

impl Facts {
    fn read(chain: &[CertificateDer<'static>], path: &Path, span: &Span) -> Checked<Self> {
        let leaf = chain.first().map(AsRef::as_ref).unwrap_or_default();
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| {
            let message = format!("{} holds a certificate that can't be read", quote_path(path));
            Box::new(Problem::error(span.clone(), message).note(error.to_string()))
        })?;
        let alternatives = leaf.subject_alternative_name().ok().flatten();
        let names = alternatives.iter().flat_map(|extension| &extension.value.general_names);
        Ok(Self {
            names: names.filter_map(alternative_name).collect(),
            serial: leaf.raw_serial().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")),
            not_before: leaf.validity().not_before.timestamp(),
            not_after: leaf.validity().not_after.timestamp(),
        })
    }

    fn certificate(
        self,
        (chain_file, key_file): (PathBuf, PathBuf),
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Certificate {
        let Facts { names, serial, not_before, not_after } = self;
        let (ocsp, stamps) = (None, Stamps::default());
        Certificate { chain_file, key_file, chain, key, names, serial, not_before, not_after, ocsp, stamps }
    }
}

/// Seconds since the epoch.
pub(super) fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}

fn alternative_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| Ipv4Addr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| Ipv6Addr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// The day (UTC) of a time in seconds since the epoch, as `2026-08-01`: Howard Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
pub fn date_text(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_days_of_the_gregorian_calendar() {
        let cases = [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (951_782_400, "2000-02-29"),
            (4_107_542_399, "2100-02-28"),
            (4_107_542_400, "2100-03-01"),
        ];
        for (seconds, text) in cases {
            assert_eq!(date_text(seconds), text);
        }
    }
}
