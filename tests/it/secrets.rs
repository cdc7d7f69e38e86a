//! Private keys and tokens are printed nowhere, whatever is printed of what holds them.

use std::{fmt::Debug, fs, os::unix::fs::PermissionsExt};

use portcullis::{app::App, config};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SignatureAlgorithm};

use crate::support::{backend::Backend, engine::Setup};

const TOKEN: &str = "a-token-of-the-admin-address";
const TEXT: &str = r#"
    sandbox = "off"
    [admin]
    address = "127.0.0.1:0"
    token_file = "token"
    [log]
    access = "off"
    [[listeners]]
    address = "127.0.0.1:0"
    tls.certificates = [{ chain = "site.crt", key = "site.key" }]
    [[routes]]
    cluster = "web"
    [clusters.web]
    backends = ["127.0.0.1:9"]
"#;

/// A folder for `TEXT`, and the key in it.
fn folder(algorithm: &'static SignatureAlgorithm) -> (tempfile::TempDir, KeyPair) {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate_for(algorithm).unwrap();
    let site = CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    for (name, content) in
        [("site.crt", site.pem()), ("site.key", key.serialize_pem()), ("token", TOKEN.to_owned())]
    {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    (folder, key)
}

/// Every run of bytes of the key's file in every form in which programs print bytes.
fn forms(key: &KeyPair) -> Vec<String> {
    // The public part stands in the certificate, which may be printed: it is the end of the file.
    let secret = key.serialize_der();
    let secret = &secret[36..64];
    let join = |separator: &str, form: &dyn Fn(&u8) -> String| {
        secret.iter().map(form).collect::<Vec<_>>().join(separator)
    };
    let pem = key.serialize_pem();
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    vec![
        join(",", &|byte| byte.to_string()),
        join("", &|byte| format!("{byte:02x}")),
        join(",", &|byte| format!("{byte:x}")),
        join(",", &|byte| format!("{byte:02x}")),
        join(",", &|byte| format!("0x{byte:02x}")),
        join(":", &|byte| format!("{byte:02x}")),
        join("", &|byte| std::ascii::escape_default(*byte).to_string()),
        String::from_utf8_lossy(secret).into_owned(),
        base64[48..80].to_owned(),
    ]
}

/// Without white space, which is all that `{:#?}` adds, and in lower case.
fn dense(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_lowercase()
}

fn assert_silent(key: &KeyPair, what: &impl Debug) {
    for shown in [format!("{what:?}"), format!("{what:#?}"), format!("{what:x?}")] {
        assert!(shown.contains("a.example"), "the certificate is in it");
        let shown = dense(&shown);
        for form in forms(key) {
            assert!(!shown.contains(&dense(&form)), "a key in the form of {form}");
        }
        assert!(!shown.contains(TOKEN));
    }
}

#[test]
fn neither_configuration_nor_app_print_keys_or_tokens() {
    let (folder, key) = folder(&PKCS_ECDSA_P256_SHA256);
    let (config, _) = config::parse("test.toml", TEXT, folder.path()).unwrap();
    assert_silent(&key, &config);
    assert_silent(&key, &App::new(config).unwrap());
}

#[test]
fn the_search_finds_a_key_that_is_printed() {
    let (_folder, key) = folder(&PKCS_ECDSA_P256_SHA256);
    let der = key.serialize_der();
    let shown = [format!("{der:?}"), format!("{der:#?}"), format!("{der:x?}"), key.serialize_pem()];
    for shown in shown {
        assert!(forms(&key).iter().any(|form| dense(&shown).contains(&dense(form))), "{shown}");
    }
}

#[test]
fn the_admin_address_asks_for_its_token() {
    let backend = Backend::saying("ok");
    let engine = Setup::new(&[backend.address]).token(TOKEN).start();
    let bearer = |token: &str| format!("authorization: Bearer {token}\r\n");
    for path in ["/metrics", "/status", "/readyz", "/bans", "/nothing", "/healthz/", "/healthz/../status"] {
        for fields in [String::new(), bearer("wrong"), bearer(&TOKEN[1..]), bearer(&format!("{TOKEN}x"))] {
            assert_eq!(engine.admin_as(path, &fields).0, 401, "{path} {fields}");
        }
    }
    assert_eq!(engine.admin_as("/status", &format!("authorization: Basic {TOKEN}\r\n")).0, 401);
    assert_eq!(engine.admin_as("/status", &format!("authorization: bearer  {TOKEN}\r\n")).0, 200);
    assert_eq!(engine.admin_as("/status", &bearer(TOKEN)).0, 200);
    assert_eq!(engine.admin_as("/healthz", "").0, 200);
}
