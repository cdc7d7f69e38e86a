//! The configuration from outside: the corpus of files, the examples, hostile input.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use portcullis::config::{self, Config, Diagnostics, Severity};
use proptest::prelude::*;
use rcgen::{CertificateParams, Issuer, KeyPair};

type Loaded = Result<(Config, Diagnostics), Diagnostics>;

/// A folder with the certificates that the files of the corpus and the examples name.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().join("certs");
    fs::create_dir(&certs).unwrap();
    let write = |name: &str, content: &str| write_private(&certs.join(name), content);

    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);
    let issue = |names: &[&str], years: std::ops::Range<i32>| {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut site = CertificateParams::new(names).unwrap();
        site.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        site.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        site.serial_number = Some(0x2a_u64.into());
        (site.signed_by(&key, &issuer).unwrap(), key.serialize_pem())
    };

    let site = issue(&["Example.com", "*.example.com", "127.0.0.1"], 2020..2090);
    let other = issue(&["other.example"], 2020..2090);
    let expired = issue(&["old.example"], 2010..2020);
    let early = issue(&["early.example"], 2080..2090);
    let nameless = issue(&[], 2020..2090);
    for (name, (chain, key)) in [
        ("site", &site),
        ("other", &other),
        ("expired", &expired),
        ("early", &early),
        ("nameless", &nameless),
    ] {
        write(&format!("{name}.crt"), &chain.pem());
        write(&format!("{name}.key"), key);
    }
    write("ca.crt", &ca_pem);
    write("reversed.crt", &format!("{ca_pem}{}", site.0.pem()));
    write("encrypted.key", &site.1.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"));
    write("broken.crt", &site.0.pem().replace("MII", "!!!"));
    write("empty.crt", "");
    write("open.token", "0123456789abcdef\n");
    fs::set_permissions(certs.join("open.token"), fs::Permissions::from_mode(0o640)).unwrap();
    write("world.key", &site.1);
    fs::set_permissions(certs.join("world.key"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(certs.join("site.der"), site.0.der()).unwrap();
    let responses = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/ocsp");
    fs::copy(responses.join("good.der"), certs.join("good.der")).unwrap();
    // Of `openssl ca -gencrl` without `crl_extensions`.
    fs::copy(responses.join("../version1.crl"), certs.join("version1.crl")).unwrap();
    folder
}

fn write_private(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The TOML files of a folder of the package, sorted; never none.
fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {}", folder.display());
    files
}

#[test]
fn examples_have_no_problems() {
    let folder = folder();
    for file in files("config") {
        let text = fs::read_to_string(&file).unwrap();
        match config::parse(&file.display().to_string(), &text, folder.path()) {
            // The smallest file that is of use says nothing of TLS to the backends.
            Ok((_, diagnostics)) if file.ends_with("minimal.toml") => {
                let messages: Vec<&str> =
                    diagnostics.problems().iter().map(|problem| problem.message.as_str()).collect();
                assert_eq!(messages, ["cluster \"web\" is sent everything in clear text"]);
            }
            Ok((_, diagnostics)) => assert!(diagnostics.is_empty(), "{diagnostics}"),
            Err(diagnostics) => panic!("{diagnostics}"),
        }
    }
}

/// A file with every kind of listener, route and cluster, and the summary of it.
const SERVED: &str = r#"
        workers = 4
        [admin]
        address = "127.0.0.1:9090"
        [[listeners]]
        name = "plain"
        address = "0.0.0.0:80"
        redirect_to_https = true
        [[listeners]]
        address = "0.0.0.0:443"
        tls.certificates = [
            { chain = "certs/site.crt", key = "certs/site.key" },
            { chain = "certs/other.crt", key = "certs/other.key" },
        ]
        proxy_protocol.from = ["10.0.0.0/8", "fd00::1"]
        [[routes]]
        cluster = "web"
        [[routes]]
        host = "*.example.com"
        cluster = "web"
        [[routes]]
        host = "example.com"
        cluster = "web"
        [[routes]]
        host = "example.com"
        path = "/api/"
        listener = "0.0.0.0:443"
        cluster = "api"
        [clusters.web]
        backends = ["10.0.0.11:8080", { address = "10.0.0.12:8080", weight = 3 }]
        health = { path = "/healthz", port = 81, expect_status = "200,300-399" }
        proxy_protocol = "v2"
        [clusters.api]
        backends = ["api.internal:8443"]
        protocol = "h2"
        tls = { ca = "certs/ca.crt", server_name = "api.example.com" }
        health = false
    "#;
const SUMMARY: &str = "\
listeners
  plain  0.0.0.0:80  http, redirects to https
  0.0.0.0:443  https, TLS 1.2 and 1.3, PROXY protocol from 10.0.0.0/8, fd00::1/128
    example.com, *.example.com, 127.0.0.1  until 2090-01-01  (DIR/certs/site.crt)
    other.example  until 2090-01-01  (DIR/certs/other.crt)
routes, the first that matches wins
  example.com/api                          → api  on 0.0.0.0:443
  example.com/                             → web
  *.example.com/                           → web
  */                                       → web
clusters
  api  round_robin, h2, TLS verified as api.example.com by DIR/certs/ca.crt
    api.internal:8443  weight 1
    health: off
  web  round_robin, http1, CLEAR TEXT, PROXY protocol v2
    10.0.0.11:8080  weight 1
    10.0.0.12:8080  weight 3
    health: GET /healthz expects 200,300-399 on port 81 every 2s within 1s, up after 2, down after 3
admin on http://127.0.0.1:9090
4 workers
";

#[test]
fn summary_shows_listeners_routes_in_order_and_clusters() {
    let folder = folder();
    let (config, _) = config::parse("portcullis.toml", SERVED, folder.path()).unwrap();
    assert_eq!(config.summary().replace(&folder.path().display().to_string(), "DIR"), SUMMARY);
}

/// What the reference must set because there is no default, and nothing else.
const REQUIRED: &str = r#"
    [admin]
    address = "127.0.0.1:9090"
    [[listeners]]
    address = "0.0.0.0:443"
    tls.certificates = [{ chain = "certs/site.crt", key = "certs/site.key" }]
    [[routes]]
    cluster = "web"
    [clusters.web]
    backends = ["10.0.0.11:8080", "10.0.0.12:8080"]
    tls = true
    health.protocol = "http"
"#;

/// The keys that the reference shows without a default, in its order.
const WITHOUT_DEFAULT: &[&str] = &[
    "workers",
    "user",
    "group",
    "token_file",
    "connections",
    "requests",
    "connection_rate",
    "rate_limits",
    "bans",
    "name",
    "trusted_proxies",
    "forwarded",
    "identity_fields",
    "proxy_protocol",
    "limits.body_bytes",
    "firewall.default",
    "ticket_keys",
    "acme.domains",
    "acme.directory",
    "acme.terms_of_service_agreed",
    "acme.contact",
    "acme.challenge",
    "acme.storage",
    "acme.profile",
    "acme.eab",
    "acme.ca",
    "hsts",
    "client_auth",
    "hosts",
    "ocsp",
    "name",
    "host",
    "listener",
    "firewall.default",
    "firewall.admit",
    "firewall.deny",
    "firewall.admit_files",
    "firewall.deny_files",
    "firewall.rate_limits",
    "idle_connections",
    "proxy_protocol",
    "server_name",
    "certificate",
    "crl",
    "host",
    "expect_body",
    "port",
];

#[test]
fn reference_shows_the_defaults_that_are_used() {
    let folder = folder();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/reference.toml");
    let reference = fs::read_to_string(reference).unwrap();
    let config = |text: &str| {
        let (config, diagnostics) = config::parse("reference.toml", text, folder.path()).unwrap();
        assert!(diagnostics.is_empty(), "{diagnostics}");
        format!("{config:#?}")
    };
    let differing = difference("the defaults", &config(REQUIRED), &config(&reference));
    assert!(differing.is_empty(), "{differing}");

    let without_default: Vec<&str> = reference
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split_once(" = "))
        .map(|(key, _)| key)
        .filter(|key| !key.starts_with(' '))
        .collect();
    assert_eq!(without_default, WITHOUT_DEFAULT);
}

/// The lines between the first and the last that differ; empty if none does.
fn difference(what: &str, expected: &str, found: &str) -> String {
    if expected == found {
        return String::new();
    }
    let (mut expected, mut found): (Vec<&str>, Vec<&str>) =
        (expected.lines().collect(), found.lines().collect());
    for _ in 0..2 {
        let same = expected.iter().zip(&found).take_while(|(one, other)| one == other).count();
        expected.drain(..same);
        found.drain(..same);
        expected.reverse();
        found.reverse();
    }
    let lines = |lines: &[&str], sign| {
        lines.iter().fold(String::new(), |text, line| {
            format!(
                "{text}{sign} {line}
"
            )
        })
    };
    format!(
        "{what}: expected (-) and found (+)
{}{}
",
        lines(&expected, '-'),
        lines(&found, '+')
    )
}

/// Compares what each file of a folder of the corpus prints with the text beside it; a file
/// without one prints nothing. `UPDATE_EXPECTED=1` writes the texts anew, to be read before commit.
fn compare_corpus(kind: &str, is_right: impl Fn(&Loaded) -> bool) {
    let folder = folder();
    let mut failures = String::new();
    for file in files(&format!("tests/config/{kind}")) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let loaded = config::parse(&name, &fs::read_to_string(&file).unwrap(), folder.path());
        assert!(is_right(&loaded), "{name} is not {kind}");
        let (Ok((_, diagnostics)) | Err(diagnostics)) = loaded;
        let found = diagnostics.to_string().replace(&folder.path().display().to_string(), "DIR");
        let text_file = file.with_extension("txt");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            if found.is_empty() {
                let _ = fs::remove_file(&text_file);
            } else {
                fs::write(&text_file, &found).unwrap();
            }
        }
        let expected = fs::read_to_string(&text_file).unwrap_or_default();
        failures.push_str(&difference(&name, &expected, &found));
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn invalid_files_print_what_is_written_beside_them() {
    compare_corpus("invalid", |loaded| {
        loaded.as_ref().is_err_and(|diagnostics| diagnostics.count(Severity::Error) > 0)
    });
    assert!(files("tests/config/invalid").len() >= 45);
}

#[test]
fn valid_files_print_at_most_warnings() {
    compare_corpus("valid", |loaded| {
        loaded.as_ref().is_ok_and(|(_, diagnostics)| diagnostics.count(Severity::Error) == 0)
    });
    assert!(files("tests/config/valid").len() >= 20);
}

#[test]
fn all_mistakes_of_a_file_are_reported_at_once() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/invalid/many_mistakes.toml");
    let folder = folder();
    let diagnostics = config::parse("a", &fs::read_to_string(file).unwrap(), folder.path()).unwrap_err();
    assert_eq!(diagnostics.count(Severity::Error), 14);
}

#[test]
fn load_reads_relative_to_the_file() {
    let folder = folder();
    let file = folder.path().join("portcullis.toml");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/minimal.toml"), &file).unwrap();
    let (config, _) = config::load(&file).unwrap();
    let tls = config.listeners[0].tls.as_ref().unwrap();
    assert_eq!(tls.certificates[0].chain_file, folder.path().join("certs/site.crt"));
    assert_eq!(tls.certificates[0].names, ["example.com", "*.example.com", "127.0.0.1"]);
    assert_eq!(tls.certificates[0].serial, "2a");
    assert_eq!(config.clusters[0].backends.len(), 3);
}

#[test]
fn load_says_why_a_file_cannot_be_read() {
    let folder = folder();
    let shown = |path: &Path| config::load(path).unwrap_err().to_string();
    let missing = shown(&folder.path().join("none.toml"));
    assert!(missing.contains("can't be read: no such file or directory"), "{missing}");
    let binary = folder.path().join("binary.toml");
    fs::write(&binary, b"# text\nx = \"\xff\"\n").unwrap();
    let binary = shown(&binary);
    assert!(binary.contains("error: this is not UTF-8\n") && binary.contains(":2:6\n"), "{binary}");
}

/// Checks what holds for every result: an error where there is no configuration, places inside
/// the text, nothing in the output that moves a terminal's cursor.
fn check_invariants(text: &str, loaded: Loaded) -> Result<(), TestCaseError> {
    let is_error = loaded.is_err();
    let (Ok((_, diagnostics)) | Err(diagnostics)) = loaded;
    prop_assert_eq!(is_error, diagnostics.count(Severity::Error) > 0);
    for problem in diagnostics.problems() {
        let Some(span) = &problem.span else { continue };
        prop_assert!(span.start <= span.end && span.end <= text.len(), "{:?}", problem);
    }
    let shown = diagnostics.to_string();
    prop_assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{:?}", shown);
    Ok(())
}

/// Every file that ships or is in the corpus.
fn seeds() -> Vec<String> {
    ["config", "tests/config/valid", "tests/config/invalid"]
        .iter()
        .flat_map(|folder| files(folder))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect()
}

/// Pieces that are likely to matter to the parser or to us.
const PIECES: [&str; 20] = [
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "\"",
    "'''",
    "=",
    ".",
    "\n",
    "\r",
    "\0",
    "\u{1b}[2J",
    "\u{202e}",
    "é",
    "1e9",
    "\"0s\"",
    "[clusters.web]\n",
    "-1",
];

proptest! {
    #[test]
    fn any_text_gives_a_configuration_or_errors_with_places(text in any::<String>()) {
        check_invariants(&text, config::parse("a.toml", &text, Path::new("/nonexistent")))?;
    }

    #[test]
    fn any_bytes_give_a_configuration_or_errors(bytes in any::<Vec<u8>>()) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        check_invariants(&text, config::load(file.path()))?;
    }

    #[test]
    fn a_damaged_file_gives_a_configuration_or_errors_with_places(
        seed in proptest::sample::select(seeds()),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..8_usize, 0..=PIECES.len()), 1..6),
    ) {
        let mut characters: Vec<char> = seed.chars().collect();
        for (at, removed, piece) in edits {
            let start = at.index(characters.len() + 1);
            let end = (start + removed).min(characters.len());
            characters.splice(start..end, PIECES.get(piece).unwrap_or(&"").chars());
        }
        let text: String = characters.into_iter().collect();
        check_invariants(&text, config::parse("a.toml", &text, Path::new("/nonexistent")))?;
    }
}

#[test]
fn deep_nesting_and_many_errors_end_quickly() {
    for text in ["[".repeat(100_000), "a = [".repeat(50_000), "x\n".repeat(50_000), "{".repeat(100_000)] {
        let diagnostics = config::parse("a.toml", &text, Path::new("")).unwrap_err();
        assert!(diagnostics.count(Severity::Error) > 0);
    }
}
