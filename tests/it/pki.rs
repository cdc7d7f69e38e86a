//! The private CA: what it issues is good for what it is for, and for nothing else.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use portcullis::{
    config::{ClientAuthority, private_ca},
    pki::{self, Authority, Init, PkiError, State, SubjectName, Subtree},
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::{
    CertificateError, Error, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};

pub const MONTH: Duration = Duration::from_hours(30 * 24);
const DAY: Duration = Duration::from_hours(24);

fn init(folder: &Path, permit: &[&str]) -> Result<(), PkiError> {
    let permit = permit.iter().map(|text| Subtree::parse(text).unwrap()).collect();
    Authority::init(folder, &Init { permit, group: None }, SystemTime::now())
}

fn ca(folder: &Path, permit: &[&str]) -> Authority {
    init(folder, permit).unwrap();
    Authority::open(folder).unwrap()
}

fn names(names: &[&str]) -> Vec<SubjectName> {
    names.iter().map(|name| SubjectName::parse(name).unwrap()).collect()
}

fn der(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

fn roots(folder: &Path) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(der(&folder.join("ca.crt"))).unwrap();
    Arc::new(roots)
}

/// What a client says of a server's certificate.
fn verdict(folder: &Path, chain: &[CertificateDer<'static>], name: &str) -> Result<(), Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(folder), provider).build().unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()).map(|_| ())
}

/// What a server says of a client's certificate.
fn client_verdict(folder: &Path, chain: &[CertificateDer<'static>]) -> Result<(), Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(folder), provider).build().unwrap();
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).map(|_| ())
}

fn client_authority(folder: &Path) -> ClientAuthority {
    let file = |name: &str| folder.join(private_ca::FOLDER).join(name);
    let (chain_file, key_file) = (file(private_ca::CLIENT_CERTIFICATE), file(private_ca::CLIENT_KEY));
    ClientAuthority {
        certificate: der(&chain_file),
        key: PrivateKeyDer::from_pem_file(&key_file).unwrap(),
        chain_file,
        key_file,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_it_issues_is_for_its_names_and_for_servers() {
    let folder = tempfile::tempdir().unwrap();
    let ca = ca(folder.path(), &[]);
    let issued = ca.issue(&names(&["web1.internal", "10.0.0.11", "::1"]), MONTH, SystemTime::now()).unwrap();
    let chain = [der(&issued.folder.join("backend.crt"))];
    for name in ["web1.internal", "10.0.0.11", "::1"] {
        assert_eq!(verdict(folder.path(), &chain, name), Ok(()), "{name}");
    }
    let other = verdict(folder.path(), &chain, "web2.internal").unwrap_err();
    assert!(matches!(other, Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })));
    assert!(client_verdict(folder.path(), &chain).is_err(), "a web server is no balancer");
    assert!(issued.folder.ends_with("issued/web1.internal"));
    assert_eq!(
        fs::read(issued.folder.join("ca.crt")).unwrap(),
        fs::read(folder.path().join("ca.crt")).unwrap()
    );
}

#[test]
fn keys_are_for_their_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let issued = ca(folder.path(), &[]).issue(&names(&["web1.internal"]), MONTH, SystemTime::now()).unwrap();
    let keys = [
        folder.path().join("ca.key"),
        folder.path().join("balancer/client-ca.key"),
        issued.folder.join("backend.key"),
    ];
    for key in keys {
        assert_eq!(mode(&key), 0o600, "{}", key.display());
    }
    assert_eq!(mode(&issued.folder), 0o700);
    for public in ["ca.crt", "balancer/ca.crt", "balancer/ca.crl", "balancer/client-ca.crt"] {
        assert_eq!(mode(&folder.path().join(public)), 0o644, "{public}");
    }
}

#[test]
fn a_name_beyond_the_constraints_is_refused_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ca = ca(folder.path(), &["prod.example", "10.1.0.0/16"]);
    for name in ["example.com", "prod.example.com", "10.2.0.1", "::1"] {
        let refused = ca.issue(&names(&["web.prod.example", name]), MONTH, SystemTime::now()).unwrap_err();
        assert!(refused.to_string().contains(&format!("may not certify {name}: ")), "{refused}");
        assert!(refused.to_string().contains("prod.example, 10.1.0.0/16"), "{refused}");
    }
    assert_eq!(fs::read_dir(folder.path().join("issued")).unwrap().count(), 0);
    assert!(ca.issue(&names(&["web.prod.example", "10.1.2.3"]), MONTH, SystemTime::now()).is_ok());
}

/// Signs with a key whatever it is asked to, as a thief would.
fn stolen(
    certificate: &CertificateDer<'_>,
    key: &Path,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
) -> CertificateDer<'static> {
    let key = KeyPair::from_pem(&fs::read_to_string(key).unwrap()).unwrap();
    let issuer = Issuer::from_ca_cert_der(certificate, key).unwrap();
    let mut leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
    leaf.extended_key_usages = vec![usage];
    leaf.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone()
}

#[test]
fn nobody_believes_the_ca_beyond_its_constraints() {
    let folder = tempfile::tempdir().unwrap();
    for permit in [&[][..], &["internal"], &["10.0.0.0/8"]] {
        let folder = folder
            .path()
            .join(permit.len().to_string() + permit.first().unwrap_or(&"x").trim_end_matches("/8"));
        init(&folder, permit).unwrap();
        let certificate = der(&folder.join("ca.crt"));
        for name in ["bank.example", "192.0.2.1", "2001:db8::1"] {
            let leaf =
                stolen(&certificate, &folder.join("ca.key"), name, ExtendedKeyUsagePurpose::ServerAuth);
            assert!(verdict(&folder, &[leaf], name).is_err(), "{permit:?} {name}");
        }
    }
}

#[test]
fn the_balancers_authority_is_for_clients_alone() {
    let folder = tempfile::tempdir().unwrap();
    init(folder.path(), &[]).unwrap();
    let authority = client_authority(folder.path());
    let identity = pki::identity(&authority, SystemTime::now()).unwrap();
    assert_eq!(client_verdict(folder.path(), &identity.chain), Ok(()));
    assert!(identity.renew_at > SystemTime::now() && identity.renew_at < SystemTime::now() + DAY);
    // A thief of its key is no web server, not even with a name that the CA permits.
    for (name, usage) in [
        ("web1.internal", ExtendedKeyUsagePurpose::ServerAuth),
        ("web1.internal", ExtendedKeyUsagePurpose::ClientAuth),
        ("10.0.0.1", ExtendedKeyUsagePurpose::ServerAuth),
    ] {
        let leaf = stolen(&authority.certificate, &authority.key_file, name, usage);
        let chain = [leaf, authority.certificate.clone()];
        assert!(verdict(folder.path(), &chain, name).is_err(), "{name}");
    }
}

#[test]
fn each_certificate_of_a_balancer_is_another_one() {
    let folder = tempfile::tempdir().unwrap();
    init(folder.path(), &[]).unwrap();
    let authority = client_authority(folder.path());
    let [one, other] = [0, 1].map(|_| pki::identity(&authority, SystemTime::now()).unwrap());
    assert_ne!(one.chain[0], other.chain[0]);
    let late = SystemTime::now() + 2 * DAY;
    assert!(
        client_verdict(folder.path(), &pki::identity(&authority, late).unwrap().chain).is_err(),
        "not yet"
    );
}

#[test]
fn a_second_ca_never_takes_the_place_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    init(folder.path(), &[]).unwrap();
    let before = fs::read(folder.path().join("ca.key")).unwrap();
    let refused = init(folder.path(), &[]).unwrap_err();
    assert!(matches!(refused, PkiError::Exists(_)), "{refused}");
    assert_eq!(fs::read(folder.path().join("ca.key")).unwrap(), before);
}

#[test]
fn an_attempt_that_broke_off_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    init(folder.path(), &[]).unwrap();
    fs::remove_file(folder.path().join("ca.crt")).unwrap();
    let issued = ca(folder.path(), &[]).issue(&names(&["web1.internal"]), MONTH, SystemTime::now()).unwrap();
    assert_eq!(verdict(folder.path(), &[der(&issued.folder.join("backend.crt"))], "web1.internal"), Ok(()));
}

fn states(ca: &Authority, now: SystemTime) -> Vec<(String, State)> {
    ca.list(now).unwrap().into_iter().map(|(record, state)| (record.name().to_string(), state)).collect()
}

#[test]
fn what_is_in_its_last_third_is_renewed_with_a_new_key() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, now) = (ca(folder.path(), &[]), SystemTime::now());
    let issued = ca.issue(&names(&["web1.internal", "10.0.0.1"]), MONTH, now).unwrap();
    let key = fs::read(issued.folder.join("backend.key")).unwrap();
    assert!(ca.renew(false, now + 19 * DAY).unwrap().is_empty());
    assert_eq!(states(&ca, now + 19 * DAY), [("web1.internal".to_owned(), State::Valid)]);
    assert_eq!(states(&ca, now + 21 * DAY), [("web1.internal".to_owned(), State::Due)]);
    let later = now + 21 * DAY;
    let renewed = ca.renew(false, later).unwrap();
    assert_eq!(renewed.len(), 1);
    assert_eq!(renewed[0].record.names, names(&["web1.internal", "10.0.0.1"]));
    assert_ne!(fs::read(issued.folder.join("backend.key")).unwrap(), key);
    let web1 = |state| ("web1.internal".to_owned(), state);
    assert_eq!(states(&ca, later), [web1(State::Valid), web1(State::Replaced)]);
    assert_eq!(states(&ca, later + 40 * DAY), [web1(State::Expired), web1(State::Expired)]);
    assert!(ca.renew(false, later).unwrap().is_empty(), "once");
    assert_eq!(ca.renew(true, later).unwrap().len(), 1, "all");
}

#[test]
fn revoking_a_name_revokes_all_that_is_still_good_and_lasts() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ca, now) = (ca(folder.path(), &[]), SystemTime::now());
    for name in ["web1.internal", "web1.internal", "web2.internal"] {
        ca.issue(&names(&[name]), MONTH, now).unwrap();
    }
    assert_eq!(ca.revoke("WEB1.internal", now).unwrap().len(), 2);
    assert!(ca.revoke("web1.internal", now).unwrap().is_empty(), "already");
    drop(ca);
    let mut ca = Authority::open(folder.path()).unwrap();
    let of = |name: &str, state| (name.to_owned(), state);
    let expected = [
        of("web1.internal", State::Revoked),
        of("web1.internal", State::Revoked),
        of("web2.internal", State::Valid),
    ];
    assert_eq!(states(&ca, now), expected);
    assert!(
        ca.renew(true, now).unwrap().iter().all(|issued| issued.record.names == names(&["web2.internal"]))
    );
    let unknown = ca.revoke("web3.internal", now).unwrap_err();
    assert!(unknown.to_string().ends_with("the names are web1.internal, web2.internal"), "{unknown}");
}

#[test]
fn a_name_that_was_revoked_is_not_renewed_for_what_had_expired_before() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ca, now) = (ca(folder.path(), &[]), SystemTime::now());
    ca.issue(&names(&["web1.internal"]), MONTH, now).unwrap();
    for day in [20, 40] {
        ca.issue(&names(&["web1.internal"]), MONTH, now + day * DAY).unwrap();
    }
    let later = now + 45 * DAY;
    assert_eq!(ca.revoke("web1.internal", later).unwrap().len(), 2, "the first has expired");
    assert!(ca.renew(false, later).unwrap().is_empty());
    assert!(ca.renew(true, later + 100 * DAY).unwrap().is_empty(), "nor when all have");
}

#[test]
fn a_name_that_was_revoked_when_all_had_expired_is_not_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ca, now) = (ca(folder.path(), &[]), SystemTime::now());
    for day in [0, 20] {
        ca.issue(&names(&["web1.internal"]), MONTH, now + day * DAY).unwrap();
    }
    let later = now + 60 * DAY;
    assert_eq!(ca.revoke("web1.internal", later).unwrap().len(), 1, "the newest");
    assert!(ca.renew(true, later).unwrap().is_empty());
    assert!(ca.revoke("web1.internal", later).unwrap().is_empty(), "already");
}

#[test]
fn a_renewal_that_broke_off_is_made_up_for() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, now) = (ca(folder.path(), &[]), SystemTime::now());
    let issued = ca.issue(&names(&["web1.internal"]), MONTH, now).unwrap();
    let certificate = issued.folder.join("backend.crt");
    let before = fs::read(&certificate).unwrap();
    let later = now + 25 * DAY;
    assert_eq!(ca.renew(false, later).unwrap().len(), 1);
    assert!(ca.renew(false, later).unwrap().is_empty());
    fs::write(&certificate, before).unwrap();
    assert_eq!(ca.renew(false, later + DAY).unwrap().len(), 1, "what is to be copied is not the newest");
    fs::remove_dir_all(&issued.folder).unwrap();
    assert!(ca.renew(false, later + 2 * DAY).unwrap().is_empty(), "it was taken away");
}

#[test]
fn a_ca_that_has_ended_certifies_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ca = ca(folder.path(), &[]);
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(ca.not_after()).unwrap());
    ca.issue(&names(&["web1.internal"]), MONTH, end - DAY).unwrap();
    let refused = ca.issue(&names(&["web1.internal"]), MONTH, end).unwrap_err();
    assert!(refused.to_string().contains("this CA ended on "), "{refused}");
}

#[test]
fn a_name_that_was_revoked_can_be_issued_and_renewed_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ca, now) = (ca(folder.path(), &[]), SystemTime::now());
    ca.issue(&names(&["web1.internal"]), 3 * MONTH, now).unwrap();
    ca.revoke("web1.internal", now).unwrap();
    // Shorter than what was revoked: the newest counts, not the one that ends last.
    ca.issue(&names(&["web1.internal"]), MONTH, now).unwrap();
    let found: Vec<State> = states(&ca, now).into_iter().map(|(_, state)| state).collect();
    assert!(found.contains(&State::Revoked) && found.contains(&State::Valid), "{found:?}");
    assert_eq!(ca.renew(false, now + 25 * DAY).unwrap().len(), 1);
}

#[test]
fn no_certificate_outlives_its_ca() {
    let folder = tempfile::tempdir().unwrap();
    let ca = ca(folder.path(), &[]);
    let late = SystemTime::now() + Duration::from_hours((10 * 365 - 3) * 24);
    let issued = ca.issue(&names(&["web1.internal"]), MONTH, late).unwrap();
    assert_eq!(issued.record.not_after, ca.not_after());
}

#[test]
fn what_is_missing_or_broken_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = Authority::open(&folder.path().join("none")).unwrap_err().to_string();
    assert!(nothing.contains("portcullis pki init --directory"), "{nothing}");
    init(folder.path(), &[]).unwrap();
    let issue = || {
        let ca = Authority::open(folder.path()).unwrap();
        let refused = ca.issue(&names(&["web1.internal"]), MONTH, SystemTime::now()).unwrap_err();
        // What there is can be listed without the key.
        assert!(ca.list(SystemTime::now()).unwrap().is_empty());
        refused.to_string()
    };
    fs::write(folder.path().join("ca.key"), "x").unwrap();
    let broken = issue();
    assert!(broken.contains("ca.key can't be used: "), "{broken}");
    fs::remove_file(folder.path().join("ca.key")).unwrap();
    let missing = issue();
    assert!(missing.starts_with("reading ") && missing.contains("ca.key failed: "), "{missing}");
    fs::remove_file(folder.path().join("balancer/ca.crl")).unwrap();
    let missing = Authority::open(folder.path()).unwrap_err().to_string();
    assert!(missing.starts_with("reading ") && missing.contains("ca.crl failed: "), "{missing}");
}
