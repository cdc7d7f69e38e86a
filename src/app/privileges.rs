//! What the process may do: how many files it may open, and as whom it runs.

use std::ffi::CString;

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{Gid, Group, Uid, User, initgroups, setgid, setgroups, setuid},
};

/// Raises the soft limit on open files to the hard one and returns what holds now.
pub(super) fn raise_file_limit() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    usize::try_from(if raised { hard } else { soft }).unwrap_or(usize::MAX)
}

/// Becomes another user and group for good; call it before threads are started.
///
/// # Errors
/// What the operator has to mend, in words.
pub(super) fn drop_to(user: Option<&str>, group: Option<&str>) -> Result<(), String> {
    let user = user.map(find_user).transpose()?;
    let gid = match (group, &user) {
        (Some(name), _) => Some(find_group(name)?.gid),
        (None, Some(user)) => Some(user.gid),
        (None, None) => None,
    };
    if user.is_none() && gid.is_none() {
        return Ok(());
    }
    if !Uid::effective().is_root() {
        return Err(
            "user and group can be changed only when started as root: start as root, or remove them \
                    from the configuration"
                .to_owned(),
        );
    }
    if let Some(gid) = gid {
        // Who names a group wants no other.
        set_groups(user.as_ref().filter(|_| group.is_none()), gid)?;
        setgid(gid).map_err(|error| format!("changing to group {gid} failed: {error}"))?;
    }
    if let Some(user) = user {
        setuid(user.uid).map_err(|error| format!("changing to user \"{}\" failed: {error}", user.name))?;
    }
    Ok(())
}

/// Takes on the supplementary groups of the user, or none.
fn set_groups(user: Option<&User>, group: Gid) -> Result<(), String> {
    let set = match user.and_then(|user| CString::new(user.name.as_str()).ok()) {
        Some(name) => initgroups(&name, group),
        None => setgroups(&[group]),
    };
    set.map_err(|error| format!("changing the supplementary groups failed: {error}"))
}

fn find_user(name: &str) -> Result<User, String> {
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(format!("user \"{name}\" does not exist: create it, or name another one")),
        Err(error) => Err(format!("looking up user \"{name}\" failed: {error}")),
    }
}

fn find_group(name: &str) -> Result<Group, String> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group),
        Ok(None) => Err(format!("group \"{name}\" does not exist: create it, or name another one")),
        Err(error) => Err(format!("looking up group \"{name}\" failed: {error}")),
    }
}
