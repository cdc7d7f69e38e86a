//! The rules about who may use what: the direction of imports, one home for each third-party crate,
//! no unsafe code, files of a readable length.
//!
//! A rule that has to change is changed here, with the reason in the commit.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file without its tests.
const FILE_LINES: usize = 500;

/// The modules and which of the others each may use.
const MAY_USE: [(&str, &[&str]); 14] = [
    ("error", &[]),
    ("config", &["error"]),
    ("observe", &["error", "config"]),
    ("firewall", &["error", "config"]),
    ("http", &["error", "config", "observe"]),
    ("pki", &["config"]),
    ("upstream", &["error", "config", "observe", "http", "pki"]),
    ("proxy", &["error", "config", "observe", "firewall", "http", "upstream"]),
    ("downstream", &["error", "config", "observe", "firewall", "http", "upstream", "proxy"]),
    ("acme", &["config", "observe", "http", "upstream", "proxy", "downstream"]),
    ("admin", &["error", "config", "observe", "firewall", "http", "upstream"]),
    (
        "app",
        &[
            "error",
            "config",
            "observe",
            "firewall",
            "http",
            "upstream",
            "proxy",
            "downstream",
            "acme",
            "admin",
        ],
    ),
    ("demo", &["config", "http"]),
    ("cli", &["config", "observe", "firewall", "pki", "app", "demo"]),
];

/// Where each dependency may be named: files and folders below `src`; empty for everywhere.
const HOMES: [(&str, &[&str]); 39] = [
    ("arc_swap", &["downstream/tls/", "firewall/mod.rs", "upstream/cluster.rs", "upstream/tls/"]),
    // As the provider of rustls, mostly.
    (
        "aws_lc_rs",
        &[
            "config/client_auth.rs",
            "config/ocsp.rs",
            "config/pem.rs",
            "downstream/tls/",
            "pki/",
            "upstream/tls/",
        ],
    ),
    ("base64", &["config/acme.rs"]),
    ("bytes", &["acme/client.rs", "http/"]),
    ("clap", &["cli.rs", "cli/"]),
    ("fastrand", &["acme/", "app/", "demo.rs", "proxy/worker.rs", "upstream/"]),
    ("foldhash", &["proxy/policies.rs", "proxy/route.rs"]),
    ("futures_util", &["downstream/h2.rs"]),
    ("h2", &["http/"]),
    ("http", &[]),
    ("http_body_util", &["http/"]),
    ("httparse", &["http/h1/"]),
    ("httpdate", &["proxy/"]),
    ("hyper", &["http/"]),
    ("hyper_util", &["http/"]),
    ("instant_acme", &["acme/"]),
    (
        "ipnet",
        &["cli.rs", "config/", "firewall/export.rs", "pki/names.rs", "proxy/client.rs", "proxy/forwarded.rs"],
    ),
    ("itoa", &["http/", "observe/"]),
    ("landlock", &["app/sandbox.rs"]),
    ("memchr", &["http/", "observe/", "proxy/", "upstream/"]),
    ("mimalloc", &["main.rs"]),
    ("nix", &["app/", "cli/pki.rs"]),
    ("prometheus", &["observe/metrics/"]),
    ("rcgen", &["acme/", "demo.rs", "pki/"]),
    // The types of certificates and keys are in the resolved configuration.
    (
        "rustls",
        &[
            "config/client_auth.rs",
            "config/cluster_tls.rs",
            "config/doubts.rs",
            "config/mod.rs",
            "config/ocsp.rs",
            "config/pem.rs",
            "config/tls.rs",
            "downstream/tls/",
            "http/tls_stream.rs",
            "pki/",
            "upstream/tls/",
        ],
    ),
    ("rustls_native_certs", &["upstream/tls/mod.rs"]),
    ("rustls_pemfile", &["config/pem.rs"]),
    ("seccompiler", &["app/sandbox/calls.rs"]),
    ("serde", &["acme/", "admin/", "config/"]),
    ("serde_json", &["acme/", "admin/", "observe/"]),
    ("socket2", &["app/bind.rs"]),
    ("subtle", &["admin/mod.rs"]),
    ("tokio", &[]),
    // Towards backends only.
    ("tokio_rustls", &["http/transport.rs", "upstream/tls/mod.rs"]),
    ("toml", &["config/"]),
    ("tracing", &[]),
    ("tracing_subscriber", &["observe/program_log.rs"]),
    (
        "x509_parser",
        &[
            "config/doubts.rs",
            "config/ocsp.rs",
            "config/pem.rs",
            "downstream/tls/identity.rs",
            "pki/",
            "upstream/tls/verify.rs",
        ],
    ),
    ("portcullis", &["main.rs"]),
];

/// Modules of ours that are called like a crate: only a `use` at the top tells them apart.
const AMBIGUOUS: [&str; 2] = ["h2", "http"];

struct Source {
    /// Below `src`.
    path: String,
    /// Without comments and unit tests.
    code: String,
    lines: usize,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn sources() -> Vec<Source> {
    let folder = root().join("src");
    let sources: Vec<Source> = rust_files(&folder)
        .into_iter()
        .filter(|path| !is_for_tests(path))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            Source {
                path: path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned(),
                code: text.lines().map(without_comment).collect::<Vec<_>>().join("\n"),
                lines: text.lines().count(),
            }
        })
        .collect();
    assert!(sources.len() > 60, "only {} files were seen", sources.len());
    sources
}

/// Whether the folder's face declares a file under `#[cfg(test)]`.
fn is_for_tests(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_str().unwrap();
    fs::read_to_string(path.with_file_name("mod.rs")).is_ok_and(|face| {
        let lines: Vec<&str> = face.lines().collect();
        lines.windows(2).any(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with(&format!("mod {name};")))
    })
}

fn without_comment(line: &str) -> &str {
    let end = line.find("//").filter(|at| !line[..*at].contains('"'));
    &line[..end.unwrap_or(line.len())]
}

/// Where an identifier stands by itself.
fn positions(code: &str, word: &str) -> Vec<usize> {
    let part_of_name =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let bytes = code.as_bytes();
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(|at| !part_of_name(at.checked_sub(1).and_then(|before| bytes.get(before))))
        .filter(|at| !part_of_name(bytes.get(at + word.len())))
        .collect()
}

/// The first names behind a path's `::`, one or those in braces.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(name(group[start..at].trim_start()));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(name(group[start..at].trim_start()));
                start = at + 1;
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// The modules of ours that a file names through `crate::`, or through enough `super::`.
fn modules_used(source: &Source) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for at in positions(&source.code, "crate") {
        let before = source.code[..at].trim_end();
        if let Some(rest) = source.code[at..].strip_prefix("crate::")
            && !before.ends_with("pub(in")
        {
            used.extend(first_names(rest));
        }
    }
    let is_face = source.path.ends_with("/mod.rs");
    let depth = source.path.matches('/').count() + usize::from(!is_face);
    let to_root = "super::".repeat(depth);
    for (at, _) in source.code.match_indices(&to_root) {
        if !source.code[..at].ends_with("super::") {
            let rest = &source.code[at + to_root.len()..];
            if depth > 1 || !rest.starts_with("super") {
                used.extend(first_names(rest));
            }
        }
    }
    used
}

fn module(path: &str) -> &str {
    path.split(['/', '.']).next().unwrap()
}

#[test]
fn imports_go_one_way() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for source in sources() {
        let own = module(&source.path).to_owned();
        if matches!(own.as_str(), "main" | "lib") {
            continue;
        }
        let (_, allowed) = MAY_USE
            .iter()
            .find(|(name, _)| *name == own)
            .unwrap_or_else(|| panic!("{}: a module without a place in the order", source.path));
        for used in modules_used(&source) {
            let known = MAY_USE.iter().any(|(name, _)| *name == used);
            if known && used != own && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{} uses {used}", source.path));
            }
            if used != own {
                seen.insert((own.clone(), used));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (user, used) in
        [("app", "downstream"), ("proxy", "upstream"), ("upstream", "http"), ("observe", "error")]
    {
        assert!(
            seen.contains(&(user.to_owned(), used.to_owned())),
            "{user} uses {used}: not seen in {seen:?}"
        );
    }
}

#[test]
fn reads_imports_in_every_form() {
    let source = |path: &str, code: &str| Source { path: path.to_owned(), code: code.to_owned(), lines: 1 };
    let used = |path, code| modules_used(&source(path, code)).into_iter().collect::<Vec<_>>();
    assert_eq!(used("a/b.rs", "use crate::http::h1;"), ["http"]);
    assert_eq!(
        used("a/b.rs", "use crate::{\n    config::{A, B},\n    http::{self, x::{y}},\n    error,\n};"),
        ["config", "error", "http"]
    );
    assert_eq!(used("a/b.rs", "let x = crate::proxy::f();"), ["proxy"]);
    assert_eq!(used("a/b.rs", "use super::super::http::x;"), ["http"]);
    assert_eq!(used("a/mod.rs", "use super::http::x;"), ["http"]);
    assert_eq!(used("a/b.rs", "use super::other; pub(crate) fn x() {}"), [""; 0]);
}

/// Whether a file names a crate.
fn names(source: &Source, krate: &str) -> bool {
    if AMBIGUOUS.contains(&krate) {
        let plain = [format!("use {krate}::"), format!("::{krate}::")];
        return source.code.lines().any(|line| line.starts_with(&plain[0]))
            || source.code.contains(&format!(" {}", plain[1]));
    }
    positions(&source.code, krate).into_iter().any(|at| {
        let (before, after) = (&source.code[..at], &source.code[at + krate.len()..]);
        (after.starts_with("::") || before.ends_with("use "))
            && !before.ends_with("::")
            && !before.ends_with('"')
    })
}

#[test]
fn each_dependency_has_one_home() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let dependencies: Vec<String> =
        manifest["dependencies"].as_table().unwrap().keys().map(|name| name.replace('-', "_")).collect();
    assert!(dependencies.len() > 20);
    let homeless: Vec<_> =
        dependencies.iter().filter(|name| !HOMES.iter().any(|(known, _)| known == name)).collect();
    assert!(homeless.is_empty(), "dependencies without a home: {homeless:?}");

    let sources = sources();
    let mut wrong = Vec::new();
    for (krate, homes) in HOMES {
        let users: Vec<&str> =
            sources.iter().filter(|source| names(source, krate)).map(|source| source.path.as_str()).collect();
        assert!(!users.is_empty(), "{krate} is used nowhere: remove it from Cargo.toml and from the table");
        // WHY: the peers that unit tests talk to are made of the same crates as real ones.
        for user in users.into_iter().filter(|user| !user.ends_with("/testing.rs")) {
            let home =
                homes.iter().any(|home| user == *home || (home.ends_with('/') && user.starts_with(home)));
            if !homes.is_empty() && !home {
                wrong.push(format!("{user} names {krate}, whose home is {homes:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn there_is_no_unsafe_code() {
    for source in sources() {
        assert!(positions(&source.code, "unsafe").is_empty(), "{}", source.path);
    }
}

#[test]
fn files_are_short_enough_to_read() {
    let long: Vec<_> = sources()
        .into_iter()
        .filter(|source| source.lines > FILE_LINES)
        .map(|source| (source.path, source.lines))
        .collect();
    assert!(long.is_empty(), "more than {FILE_LINES} lines without tests: {long:?}");
}

#[test]
fn every_file_says_what_it_is_for() {
    for folder in ["src", "tests", "benches"] {
        let files = rust_files(&root().join(folder));
        assert!(!files.is_empty());
        for file in files {
            assert!(fs::read_to_string(&file).unwrap().starts_with("//! "), "{}", file.display());
        }
    }
}

#[test]
fn tests_wait_for_events_and_never_sleep() {
    for file in rust_files(&root().join("tests")) {
        let text = fs::read_to_string(&file).unwrap();
        // Written apart, or this file would find itself.
        for call in ["thread::sl", "time::sl", " sl"].map(|start| format!("{start}eep(")) {
            assert!(!text.contains(&call), "{}: {call}", file.display());
        }
    }
}
