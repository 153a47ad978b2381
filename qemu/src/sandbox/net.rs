// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The namespaces of a whole run.
//!
//! Commands that boot guests run in fresh network, PID and mount namespaces. The
//! lab calls itself again with the same arguments in there, as process 1 of the
//! PID namespace: when that process ends, for whatever reason, the kernel kills
//! everything it started, and the interfaces go with the network namespace. It is
//! told to die with its parent, which stays outside to pass on the exit status
//! and to remove the directory of sockets.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::users::unshare_as_root;

/// Tells the lab that it runs inside, and where its files are.
const INSIDE_ENV: &str = "FERRONIC_LAB_INSIDE";
/// Socket paths are limited to 107 bytes, so the directory has a short name in a short place.
const RUN_PARENT: &str = "/tmp";
const RUN_PREFIX: &str = "ferronic-lab.";

/// The directories of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Sockets and other things that go away with the run.
    pub dir: PathBuf,
    /// Logs, which are kept in the cache.
    pub logs: PathBuf,
}

/// The run that this process is inside of, if it is.
pub fn inside() -> Result<Option<Run>> {
    let Some(text) = env::var_os(INSIDE_ENV) else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    let run = serde_json::from_str(&text)
        .with_context(|| format!("{INSIDE_ENV} holds nonsense: {text}"))?;
    Ok(Some(run))
}

/// Calls the lab again, with the same arguments, in new namespaces, and waits for it to end.
///
/// The process must have one thread only.
pub fn run_inside(logs: &Path) -> Result<ExitStatus> {
    sweep();
    let dir = tempfile::Builder::new()
        .prefix(RUN_PREFIX)
        .tempdir_in(RUN_PARENT)
        .with_context(|| format!("cannot create a directory for sockets in {RUN_PARENT}"))?;
    let lock = File::create(dir.path().join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the run's directory")?;

    let (interrupted, on_signal) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, on_signal.try_clone()?)?;
    }

    unshare_as_root(UnshareFlags::NEWNET | UnshareFlags::NEWPID | UnshareFlags::NEWNS)?;
    let run = Run {
        dir: dir.path().to_owned(),
        logs: logs.to_owned(),
    };
    let mut command = Command::new("/proc/self/exe");
    command
        .args(env::args_os().skip(1))
        .env(INSIDE_ENV, serde_json::to_string(&run)?);
    // SAFETY: the closure makes one system call and touches no memory that a fork could have
    // left in a half-changed state.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
    let mut child = command
        .spawn()
        .context("cannot start the lab in its namespaces")?;
    wait(&mut child, &interrupted)
}

/// Waits for the child to end or for a signal, which ends the child.
fn wait(child: &mut Child, interrupted: &UnixStream) -> Result<ExitStatus> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())
        .context("cannot watch the child process")?;
    loop {
        let mut fds = [
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(interrupted.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context("cannot wait for the child process")?,
        };
        let stop = !fds[1].revents().is_empty();
        if stop {
            child.kill().context("cannot end the child process")?;
        }
        let status = child.wait()?;
        if stop {
            bail!("interrupted");
        }
        return Ok(status);
    }
}

/// What the inner process does first: gives the namespaces their own /proc and /sys.
pub fn settle() -> Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .context("cannot make the mounts private")?;
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys")] {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        if let Err(e) = mount(kind, at, kind, flags, None) {
            // Refused inside some containers. The host's view does as well for nearly everything.
            log::debug!("cannot mount a {kind} of our own on {at}: {e}");
        }
    }
    Ok(())
}

/// Removes the directories of runs that were killed before they could do it.
fn sweep() {
    let Ok(entries) = fs::read_dir(RUN_PARENT) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(RUN_PREFIX)
            && is_abandoned(&entry.path()).unwrap_or(false)
        {
            // Another lab may be removing it as well.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_abandoned(dir: &Path) -> io::Result<bool> {
    let lock = File::open(dir.join("lock"))?;
    Ok(flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok())
}
