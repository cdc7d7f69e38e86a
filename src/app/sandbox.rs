//! What can the process still do once it serves? Only what serving needs: here the rest is given up,
//! for the case that somebody finds a hole in it.
//!
//! Entered after bind and after root is dropped, before any thread starts: threads inherit it, so it
//! holds for all of them, those of name lookups too. A kernel that lacks a part of it is no reason
//! not to serve; what is in force is logged. Why these rules: decision 0014.

mod calls;

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};
use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

use crate::config::{AccessSink, AdminAddress, ClusterTls, Config, NetworkLists, Sandbox};

/// The newest rules that this is written for; an older kernel enforces those it knows.
const KNOWN: ABI = ABI::V6;

/// What name lookups, authorities of the system, allocator and process metrics read.
///
/// Nothing may be executed: glibc loads the modules of name lookups by reading them. The whole of
/// /proc, because the rule for a process' own folder is gone once the kernel forgets that folder's
/// inode; what is secret in those of others, Landlock keeps out of reach by itself.
const SYSTEM: [&str; 10] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/proc",
    "/sys/devices/system/cpu",
    "/dev/null",
    "/dev/urandom",
];
/// Often symbolic links to where the system keeps what changes.
const LOOKUPS: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];

/// What a part of the sandbox has come to: its name if it is in force, or why it is not.
type Part = Result<&'static str, String>;

/// Gives up for good, in this thread and those it starts, what serving `config` does not need.
pub(super) fn enter(config: &Config) {
    if config.sandbox == Sandbox::Off {
        return tracing::info!("the sandbox is off");
    }
    let parts = [no_new_privileges(), no_core_dumps(), restrict_files(config), calls::restrict()];
    let (there, missing): (Vec<Part>, Vec<Part>) = parts.into_iter().partition(Result::is_ok);
    let there: Vec<_> = there.into_iter().flatten().collect();
    let missing: Vec<_> = missing.into_iter().filter_map(Result::err).collect();
    let missing = match missing.as_slice() {
        [] => String::new(),
        missing => format!("; not in force: {}", missing.join(", ")),
    };
    tracing::info!("sandbox: {}{missing}", there.join(", "));
}

fn no_new_privileges() -> Part {
    let set = prctl::set_no_new_privs();
    set.map(|()| "no new privileges").map_err(|error| format!("no new privileges ({error})"))
}

/// Keys are in memory: it goes into no file, and no other process of the same user may read it.
fn no_core_dumps() -> Part {
    let set = setrlimit(Resource::RLIMIT_CORE, 0, 0).and_then(|()| prctl::set_dumpable(false));
    set.map(|()| "no core dumps").map_err(|error| format!("no core dumps ({error})"))
}

fn restrict_files(config: &Config) -> Part {
    match landlock(config) {
        Ok(RulesetStatus::FullyEnforced) => Ok("Landlock"),
        Ok(RulesetStatus::PartiallyEnforced) => Ok("Landlock as far as this kernel has it"),
        Ok(RulesetStatus::NotEnforced) => Err("Landlock (this kernel has none)".to_owned()),
        Err(error) => Err(format!("Landlock ({error})")),
    }
}

fn landlock(config: &Config) -> Result<RulesetStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        // Everything is bound by now. Connecting is what a balancer does.
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(readable(config), read))?
        .add_rules(path_beneath_rules(["/dev/null"], BitFlags::from(AccessFs::WriteFile)))?
        .add_rules(path_beneath_rules(log_places(config), AccessFs::WriteFile | AccessFs::MakeReg))?
        .add_rules(path_beneath_rules(
            acme_storages(config),
            read | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile,
        ))?
        .add_rules(path_beneath_rules(socket_folder(config), BitFlags::from(AccessFs::RemoveFile)))?;
    Ok(rules.restrict_self()?.ruleset)
}

/// What the system needs, and the folders of the configuration and of every file it names: those
/// files may be replaced, and are read again then.
fn readable(config: &Config) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
    places.extend(LOOKUPS.iter().flat_map(|path| places_of(Path::new(path))));
    places.extend(narrow(or_here(&config.folder)));
    places.extend(files(config).into_iter().flat_map(places_of));
    places
}

/// The files that the configuration names, but for those that are written.
fn files(config: &Config) -> Vec<&Path> {
    let mut files: Vec<&Path> = Vec::new();
    let tls = config.listeners.iter().filter_map(|listener| listener.tls.as_ref());
    for tls in tls {
        for certificate in &tls.certificates {
            files.extend([certificate.chain_file.as_path(), certificate.key_file.as_path()]);
            files.extend(certificate.ocsp.as_ref().map(|file| file.path.as_path()));
        }
        files.extend(tls.ticket_keys.as_ref().map(|file| file.path.as_path()));
        let of_hosts = tls.hosts.iter().filter_map(|host| host.client_auth.as_ref());
        for auth in tls.client_auth.iter().chain(of_hosts) {
            files.push(&auth.ca_file);
            files.extend(auth.crl_file.as_deref());
        }
    }
    for cluster in &config.clusters {
        files.extend(cluster.tls.iter().flat_map(ClusterTls::files));
    }
    let of_listeners = config.listeners.iter().map(|listener| &listener.firewall.lists);
    let of_routes = config.routes.iter().filter_map(|route| route.firewall.as_ref()).map(|each| &each.lists);
    for lists in of_listeners.chain(of_routes) {
        let lists: &NetworkLists = lists;
        files.extend(lists.files.iter().map(|(path, _)| path.as_path()));
    }
    files
}

/// Where the access log is opened anew after a rotation.
fn log_places(config: &Config) -> Vec<PathBuf> {
    match &config.log.access {
        AccessSink::File(path) => {
            let folders = places_of(path);
            // A log that is there already may be a device or a link to somewhere else.
            folders.into_iter().chain([path.clone()]).collect()
        }
        AccessSink::Stdout | AccessSink::Stderr | AccessSink::Off => Vec::new(),
    }
}

/// Where certificates that come are written: beside their place, then renamed over what is there.
fn acme_storages(config: &Config) -> impl Iterator<Item = &Path> {
    let acme = config.listeners.iter().filter_map(|listener| listener.tls.as_ref()?.acme.as_ref());
    acme.map(|acme| acme.storage.as_path())
}

/// Where the admin address' socket is removed at the end.
fn socket_folder(config: &Config) -> Vec<PathBuf> {
    match config.admin.as_ref().map(|admin| &admin.address) {
        Some(AdminAddress::Unix(path)) => folder_of(path).into_iter().collect(),
        Some(AdminAddress::Tcp(_)) | None => Vec::new(),
    }
}

/// The folder of a file as it is named, and that of what it is a link to.
fn places_of(path: &Path) -> Vec<PathBuf> {
    let target = path.canonicalize().ok();
    let places = [folder_of(path), target.as_deref().and_then(folder_of)].into_iter().flatten();
    // In the root folder a rule for the folder would be one for everything.
    if places.clone().next().is_some() { places.collect() } else { vec![path.to_owned()] }
}

fn folder_of(path: &Path) -> Option<PathBuf> {
    narrow(or_here(path.parent()?))
}

fn or_here(folder: &Path) -> PathBuf {
    if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() }
}

/// Any folder but the root, of which there is no part that is not in it.
fn narrow(folder: PathBuf) -> Option<PathBuf> {
    let is_root = folder.canonicalize().is_ok_and(|folder| folder.parent().is_none());
    (!is_root).then_some(folder)
}

#[cfg(test)]
mod tests {
    use std::{fs, net::TcpListener, os::unix::fs::symlink, thread};

    use super::*;
    use crate::config;

    fn config(text: &str, folder: &Path) -> Config {
        let rest = "[[listeners]]\naddress = \"127.0.0.1:0\"\n[[routes]]\ncluster = \"web\"\n\
                    [clusters.web]\nbackends = [\"127.0.0.1:9\"]\n";
        config::parse("test.toml", &format!("{text}\n{rest}"), folder).unwrap().0
    }

    /// What `check` says in a thread behind these rules; `None` where the kernel has no Landlock.
    fn behind<T: Send + 'static>(config: Config, check: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        thread::spawn(move || restrict_files(&config).ok().map(|_| check())).join().unwrap()
    }

    #[test]
    fn files_beside_the_configuration_are_read_and_others_are_not() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [inside, other] = [folder.path().join("a"), outside.path().join("a")];
        fs::write(&inside, "a").unwrap();
        fs::write(&other, "a").unwrap();
        let link = folder.path().join("link");
        symlink(&other, &link).unwrap();
        let paths = [inside, other, link, PathBuf::from("/etc/hosts"), PathBuf::from("/proc/self/stat")];
        let Some(found) = behind(config("", folder.path()), move || paths.map(|path| fs::read(path).is_ok()))
        else {
            return;
        };
        assert_eq!(found, [true, false, false, true, true]);
    }

    #[test]
    fn a_list_that_is_a_link_may_be_read_where_it_leads() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let real = outside.path().join("list");
        fs::write(&real, "192.0.2.0/24\n").unwrap();
        symlink(&real, folder.path().join("list")).unwrap();
        let config = config("[firewall]\ndeny_files = [\"list\"]", folder.path());
        assert!(behind(config, move || fs::read(real).is_ok()).unwrap_or(true));
    }

    #[test]
    fn only_the_log_is_written_and_nothing_is_bound() {
        let (folder, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let log = logs.path().join("access.log");
        let [moved, beside] = [logs.path().join("moved"), folder.path().join("new")];
        let text = format!("[log]\naccess = \"{}\"", log.display());
        let Some(found) = behind(config(&text, folder.path()), move || {
            [
                fs::write(&log, "a").is_ok(),
                fs::write(beside, "a").is_ok(),
                fs::rename(&log, moved).is_ok(),
                fs::write("/dev/null", "a").is_ok(),
            ]
        }) else {
            return;
        };
        assert_eq!(found, [true, false, false, true]);
    }

    #[test]
    fn no_port_is_bound_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let bound = behind(config("", folder.path()), || TcpListener::bind("127.0.0.1:0").is_ok());
        // WHY: before its fourth version Landlock knows nothing of ports.
        let is_known = thread::spawn(|| {
            let rules = landlock::CompatLevel::HardRequirement;
            landlock::Compatible::set_compatibility(Ruleset::default(), rules)
                .handle_access(AccessNet::BindTcp)
                .is_ok()
        });
        assert!(!is_known.join().unwrap() || bound != Some(true));
    }

    #[test]
    fn the_root_folder_is_never_opened() {
        assert_eq!(places_of(Path::new("/nothing.pem")), [PathBuf::from("/nothing.pem")]);
        assert_eq!(places_of(Path::new("/etc/hosts"))[0], PathBuf::from("/etc"));
        assert_eq!(narrow(PathBuf::from("/etc/..")), None);
        assert_eq!(folder_of(Path::new("portcullis.toml")), Some(PathBuf::from(".")));
    }
}
