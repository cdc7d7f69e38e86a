//! Which system calls are refused: those that a balancer never makes and an intruder would.
//!
//! A list of what is refused and not of what is allowed: libc, allocator and runtime change what
//! they call with every version, and an allow list would end a balancer that works (decision 0014).

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

use super::Part;

/// Refused whatever their arguments.
const REFUSED: &[libc::c_long] = &[
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Mounts, namespaces, files past their folders.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    // Large and young parts of the kernel, where most ways to root have been found.
    libc::SYS_bpf,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    // The machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_personality,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Who it is.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
];

/// Calls that only one architecture has.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_mknod,
    libc::SYS_kexec_file_load,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// Kinds of sockets that are needed: for backends, for name lookups and the system's log, and for
/// the addresses of this machine, which name lookups ask for.
const FAMILIES: [libc::c_int; 4] = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK];

/// Refuses them in this thread and those it starts, for good.
pub(super) fn restrict() -> Part {
    let name = "a filter of system calls";
    let failed = |error: &dyn std::error::Error| format!("{name} ({error})");
    for program in programs().map_err(|error| failed(&error))? {
        apply_filter(&program).map_err(|error| failed(&error))?;
    }
    Ok(name)
}

fn programs() -> Result<[BpfProgram; 2], BackendError> {
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().chain(REFUSED_HERE).map(|&call| (call, Vec::new())).collect();
    refused.insert(libc::SYS_clone, vec![new_process()?]);
    refused.insert(libc::SYS_socket, vec![other_family()?]);
    // WHY: it takes its flags behind a pointer, which a filter can't follow. Told that the kernel has no
    // such call, libc starts its threads with clone.
    let newest = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok([program(newest, libc::ENOSYS)?, program(refused, libc::EPERM)?])
}

fn program(calls: BTreeMap<i64, Vec<SeccompRule>>, errno: libc::c_int) -> Result<BpfProgram, BackendError> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(with_x32(calls), SeccompAction::Allow, refuse, architecture)?.try_into()
}

/// On x86-64 every call can be made under a second number, where the kernel has the x32 interface.
fn with_x32(mut calls: BTreeMap<i64, Vec<SeccompRule>>) -> BTreeMap<i64, Vec<SeccompRule>> {
    const X32: i64 = 0x4000_0000;
    if cfg!(target_arch = "x86_64") {
        let seconds: Vec<_> = calls.iter().map(|(call, rules)| (X32 | call, rules.clone())).collect();
        calls.extend(seconds);
        // The calls that differ there, execve and ptrace among them.
        calls.extend((512..=547).map(|call| (X32 | call, Vec::new())));
    }
    calls
}

/// A clone that is not a thread.
fn new_process() -> Result<SeccompRule, BackendError> {
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    SeccompRule::new(vec![SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(thread),
        0,
    )?])
}

fn other_family() -> Result<SeccompRule, BackendError> {
    let is_not = |family: libc::c_int| {
        let family = u64::from(family.unsigned_abs());
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    };
    SeccompRule::new(FAMILIES.into_iter().map(is_not).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use std::{io, net::ToSocketAddrs, process::Command, thread};

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    use super::*;

    /// What `check` says in a thread of its own behind the filter.
    fn behind<T: Send + 'static>(check: impl FnOnce() -> T + Send + 'static) -> T {
        let inside = thread::spawn(move || {
            restrict().unwrap();
            check()
        });
        inside.join().unwrap()
    }

    fn is_open(family: AddressFamily) -> nix::Result<()> {
        socket(family, SockType::Datagram, SockFlag::empty(), None).map(drop)
    }

    #[test]
    fn no_program_is_run() {
        let error = behind(|| Command::new("/bin/true").spawn().map(drop)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn no_root_folder_is_changed() {
        let error = behind(|| std::os::unix::fs::chroot("/")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn threads_start_and_names_are_looked_up() {
        let found = behind(|| {
            let lookup = || ("localhost", 80).to_socket_addrs().map(Iterator::count);
            thread::spawn(lookup).join().unwrap()
        });
        assert!(found.unwrap() > 0);
    }

    #[test]
    fn sockets_are_those_of_the_internet_and_of_this_machine() {
        let opened = behind(|| {
            [AddressFamily::Inet, AddressFamily::Unix, AddressFamily::Packet, AddressFamily::Vsock]
                .map(is_open)
        });
        assert_eq!(opened, [Ok(()), Ok(()), Err(nix::Error::EPERM), Err(nix::Error::EPERM)]);
    }
}
