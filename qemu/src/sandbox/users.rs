// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The user namespace that stands in for root.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::{getegid, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Puts this process into new namespaces. Without root a user namespace comes with them, in which
/// the caller is root.
///
/// The process must have one thread only.
pub fn unshare_as_root(flags: UnshareFlags) -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    let flags = if uid.is_root() {
        flags
    } else {
        flags | UnshareFlags::NEWUSER
    };
    // SAFETY: the flags are namespaces only; FILES, the one that file descriptor owners in this
    // process could be surprised by, is not among them.
    unsafe { unshare_unsafe(flags) }.with_context(|| {
        format!(
            "cannot make namespaces ({flags:?}). Run the lab as root, or allow user namespaces: \
             sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 \
             (and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0)"
        )
    })?;
    if flags.contains(UnshareFlags::NEWUSER) {
        let write = |name: &str, text: String| {
            let path = format!("/proc/self/{name}");
            fs::write(&path, text).with_context(|| format!("cannot write {path}"))
        };
        write("setgroups", "deny".into())?;
        write("uid_map", format!("0 {} 1", uid.as_raw()))?;
        write("gid_map", format!("0 {} 1", gid.as_raw()))?;
    }
    Ok(())
}
