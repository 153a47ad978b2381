// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Getting hold of a tap: the descriptors, and what stands in the way where it fails.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use super::error::TapErrorKind;
use super::ioctl;
use super::name::InterfaceName;
use crate::nic::offload::Offloads;

const BASE_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
const MULTI_FLAGS: libc::c_int = BASE_FLAGS | libc::IFF_MULTI_QUEUE;

/// A tap's descriptors.
pub(super) struct Opened {
    /// One for each queue, all attached.
    pub queues: Vec<OwnedFd>,
    /// The interface's number.
    pub index: u32,
    /// Whether the interface came to be just now, and will go with us.
    pub created: bool,
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> TapErrorKind {
    move |source| TapErrorKind::System { what, source }
}

fn device() -> Result<OwnedFd, TapErrorKind> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map(OwnedFd::from)
        .map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => TapErrorKind::DeviceForbidden(e),
            _ => TapErrorKind::NoDevice(e),
        })
}

/// The interface's number, if there is one of that name.
pub(super) fn index_of(name: &InterfaceName) -> Result<Option<u32>, TapErrorKind> {
    let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None)
        .map_err(|e| system("cannot make a socket to look for the interface")(e.into()))?;
    match netdevice::name_to_index(any, name.as_str()) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(e) => Err(system("cannot look for the interface")(e.into())),
    }
}

/// Who has the tap, as far as `/proc` shows it to us. Another network namespace may have a tap of
/// the same name, so only processes of ours count, and our own.
pub(super) fn holder_of(name: &InterfaceName) -> Option<String> {
    let line = format!("iff:\t{name}");
    let here = fs::read_link("/proc/thread-self/ns/net").ok()?;
    let ourselves = std::process::id().to_string();
    let near = |pid: &str| {
        pid == ourselves || fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|n| n == here)
    };
    let holds = |pid: &str| {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
            return false;
        };
        entries
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .any(|text| text.lines().any(|l| l == line))
    };
    let pid = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        .find(|pid| near(pid) && holds(pid))?;
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{pid} ({})", comm.trim_end()))
}

fn check_features(fd: &OwnedFd, multi_queue: bool) -> Result<(), TapErrorKind> {
    let features = ioctl::features(fd.as_fd()).map_err(system(
        "/dev/net/tun does not tell its features; is it the tun driver's device?",
    ))?;
    // Never changes sign: the flags are 16 bits wide.
    let has = |flag: libc::c_int| features & flag as libc::c_uint != 0;
    if !has(libc::IFF_VNET_HDR) {
        return Err(TapErrorKind::NoFeature("virtio-net headers (IFF_VNET_HDR)"));
    }
    if multi_queue && !has(libc::IFF_MULTI_QUEUE) {
        return Err(TapErrorKind::NoFeature("multiple queues (IFF_MULTI_QUEUE)"));
    }
    Ok(())
}

/// Attaches the first queue.
fn attach_first(fd: &OwnedFd, name: &InterfaceName, many: bool) -> Result<(), TapErrorKind> {
    let wanted = if many { MULTI_FLAGS } else { BASE_FLAGS };
    match ioctl::set_interface(fd.as_fd(), name, wanted) {
        Ok(()) => return Ok(()),
        // The interface exists and differs in kind or in being multi-queue: see below.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
        Err(e) => return Err(refused(name, e)?),
    }
    if index_of(name)?.is_none() {
        return Err(TapErrorKind::System {
            what: "the tun driver refuses the name",
            source: Errno::INVAL.into(),
        });
    }
    // One queue is all we want: a multi-queue interface has it too.
    let other = if many { BASE_FLAGS } else { MULTI_FLAGS };
    match ioctl::set_interface(fd.as_fd(), name, other) {
        Ok(()) if many => Err(TapErrorKind::SingleQueue),
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Err(TapErrorKind::NotTap),
        Err(_) if many => Err(TapErrorKind::SingleQueue),
        Err(e) => Err(refused(name, e)?),
    }
}

/// Why TUNSETIFF failed; `Err` when even that cannot be found out.
fn refused(name: &InterfaceName, error: io::Error) -> Result<TapErrorKind, TapErrorKind> {
    Ok(match error.raw_os_error() {
        Some(libc::EPERM) => match index_of(name)? {
            Some(_) => TapErrorKind::NotOwner,
            None => TapErrorKind::Missing,
        },
        Some(libc::EBUSY) => TapErrorKind::Busy {
            holder: holder_of(name),
        },
        Some(libc::E2BIG) => TapErrorKind::QueueCount,
        _ => system("cannot attach to the interface (TUNSETIFF)")(error),
    })
}

/// Opens `count` queues of the tap.
pub(super) fn open(name: &InterfaceName, count: u16) -> Result<Opened, TapErrorKind> {
    if count == 0 {
        return Err(TapErrorKind::QueueCount);
    }
    let created = index_of(name)?.is_none();
    let first = device()?;
    check_features(&first, count > 1)?;
    attach_first(&first, name, count > 1)?;
    // The first queue of all says what the interface is like, and that may be another process's.
    if !ioctl::has_header(first.as_fd()).map_err(system("cannot ask for its flags (TUNGETIFF)"))? {
        let holder = holder_of(name);
        return Err(TapErrorKind::Busy { holder });
    }
    let mut queues = vec![first];
    for _ in 1..count {
        let queue = device()?;
        if let Err(e) = ioctl::set_interface(queue.as_fd(), name, MULTI_FLAGS) {
            return Err(refused(name, e)?);
        }
        queues.push(queue);
    }
    let index = index_of(name)?.ok_or(TapErrorKind::System {
        what: "the interface vanished while it was opened",
        source: Errno::NODEV.into(),
    })?;
    Ok(Opened {
        queues,
        index,
        created,
    })
}

/// How much of an interface could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// As many queues as there are descriptors.
    All,
    /// Nothing: there is no interface of that name.
    Missing,
    /// Not all, since another process has a queue of it.
    Busy,
}

/// Makes descriptors that were queues of an interface that is no more queues of the one that has the
/// name now. What was not complete can be tried again.
pub(super) fn attach_again(
    name: &InterfaceName,
    fds: &[Arc<OwnedFd>],
) -> Result<Taken, TapErrorKind> {
    // The first queue of all says what the interface is like. While the process that makes it has one,
    // that may be without headers, and queues of ours would have to stay with it. So a descriptor
    // goes first that need not stay.
    let vanguard = device()?;
    let flags = match attach_existing(&vanguard, name, MULTI_FLAGS) {
        Ok(()) if ioctl::has_header(vanguard.as_fd()).unwrap_or(true) => MULTI_FLAGS,
        Ok(()) => return Ok(Taken::Busy),
        // One of a single queue, if it is a tap.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) && fds.len() == 1 => BASE_FLAGS,
        Err(e) => return not_taken(name, e, fds.len() > 1),
    };
    for fd in fds {
        match attach_existing(fd, name, flags) {
            Ok(()) => {}
            // In an attempt that did not get further.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            Err(e) => return not_taken(name, e, fds.len() > 1),
        }
    }
    Ok(Taken::All)
}

/// Why a queue of an interface cannot be had.
fn not_taken(name: &InterfaceName, error: io::Error, many: bool) -> Result<Taken, TapErrorKind> {
    match error.raw_os_error() {
        Some(libc::EBUSY) => Ok(Taken::Busy),
        _ if index_of(name)?.is_none() => Ok(Taken::Missing),
        Some(libc::EINVAL) if many => Err(TapErrorKind::SingleQueue),
        Some(libc::EINVAL) => Err(TapErrorKind::NotTap),
        _ => Err(refused(name, error)?),
    }
}

/// Attaches a queue of an interface that is there; makes none.
fn attach_existing(fd: &OwnedFd, name: &InterfaceName, flags: libc::c_int) -> io::Result<()> {
    let attach = || ioctl::set_interface(fd.as_fd(), name, flags);
    let exists = || index_of(name).is_ok_and(|index| index.is_some());
    if !exists() {
        return Err(Errno::NODEV.into());
    }
    // The tun driver makes one that is missing, and it may be missing by now. Who has deleted it wants
    // it no more, or is about to make it otherwise. Without privilege the driver makes none.
    match without_net_admin(attach) {
        // It is another user's, for which it takes the privilege.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) && exists() => attach(),
        result => result,
    }
}

/// Runs something without `CAP_NET_ADMIN`, which is each thread's own.
fn without_net_admin<R>(run: impl FnOnce() -> R) -> R {
    let Ok(had) = thread::capabilities(None) else {
        return run();
    };
    let effective = had.effective.difference(CapabilitySet::NET_ADMIN);
    // Neither can fail: both are permitted.
    let _ = thread::set_capabilities(None, CapabilitySets { effective, ..had });
    let result = run();
    let _ = thread::set_capabilities(None, had);
    result
}

/// Finds out which offloads this kernel's tun driver knows, and leaves all of them off.
pub(super) fn probe_offloads(fd: &OwnedFd) -> Result<Offloads, TapErrorKind> {
    let tcp = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::ECN;
    let known = [Offloads::ALL, tcp, Offloads::CSUM]
        .into_iter()
        .find(|&set| ioctl::set_offload(fd.as_fd(), offload_flags(set)).is_ok())
        .unwrap_or(Offloads::NONE);
    ioctl::set_offload(fd.as_fd(), 0)
        .map_err(system("cannot turn the offloads off (TUNSETOFFLOAD)"))?;
    Ok(known)
}

/// The flags of TUNSETOFFLOAD for what the driver accepts. The kernel takes no segmentation
/// without checksums, no ECN without TCP segmentation, and the two kinds of UDP segmentation only
/// together; what cannot be said is left out, so that the driver gets finished packets instead.
pub(super) fn offload_flags(accepted: Offloads) -> libc::c_uint {
    if !accepted.contains(Offloads::CSUM) {
        return 0;
    }
    let mut flags = libc::TUN_F_CSUM;
    for (offload, flag) in [
        (Offloads::TSO4, libc::TUN_F_TSO4),
        (Offloads::TSO6, libc::TUN_F_TSO6),
    ] {
        if accepted.contains(offload) {
            flags |= flag;
        }
    }
    if flags != libc::TUN_F_CSUM && accepted.contains(Offloads::ECN) {
        flags |= libc::TUN_F_TSO_ECN;
    }
    if accepted.contains(Offloads::USO4 | Offloads::USO6) {
        flags |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_never_say_what_the_kernel_refuses() {
        use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6};
        let flags = offload_flags;
        assert_eq!(flags(Offloads::NONE), 0);
        assert_eq!(flags(Offloads::TSO4 | Offloads::ECN), 0);
        assert_eq!(flags(Offloads::CSUM | Offloads::ECN), TUN_F_CSUM);
        assert_eq!(flags(Offloads::CSUM | Offloads::USO4), TUN_F_CSUM);
        assert_eq!(
            flags(Offloads::CSUM | Offloads::TSO6 | Offloads::ECN),
            TUN_F_CSUM | TUN_F_TSO6 | TUN_F_TSO_ECN
        );
        assert_eq!(
            flags(Offloads::ALL),
            TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6
        );
    }
}
