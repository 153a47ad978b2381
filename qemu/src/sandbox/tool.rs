// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Running a program from the tool root.
//!
//! The tool root is a Debian system in a directory. A program from it sees that
//! system's `/usr` and `/etc` and everything else of the host at the usual paths:
//! sockets, logs and sources have the same names inside and outside. The new root
//! is a tmpfs that all this is bound into, which needs no directory to be made in
//! the tool root itself, and which is entered by `pivot_root`, since passt refuses
//! to sandbox itself behind a `chroot`.
//!
//! It is done by the lab itself, called again as `ferronic-lab __tool`, which then
//! becomes the program: the process id, the inherited file descriptors, the standard
//! streams and the exit status are the program's. Who wants to know when it has become
//! the program is told ([`tell_exec`]).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, unmount,
};
use rustix::process::{chdir, pivot_root};
use rustix::thread::UnshareFlags;

use super::users::unshare_as_root;
use crate::lab::quote;

/// The hidden subcommand that enters the tool root.
pub const SUBCOMMAND: &str = "__tool";

/// Names the socket of [`tell_exec`].
const TELL_ENV: &str = "FERRONIC_LAB_TELL_EXEC";

/// What of `/` comes from the tool root; the rest is the host's.
const FROM_ROOT: [&str; 9] = [
    "usr", "etc", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "boot",
];

/// The directory that holds the tools.
#[derive(Debug, Clone)]
pub struct ToolRoot {
    root: PathBuf,
}

/// Arguments of the hidden subcommand.
#[derive(Debug, clap::Args)]
pub struct ToolArgs {
    /// The tool root
    #[arg(long)]
    root: PathBuf,
    /// Also show directory or file FROM as TO
    #[arg(long, num_args = 2, value_names = ["FROM", "TO"])]
    bind: Vec<PathBuf>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

impl ToolRoot {
    /// Takes the directory that the artefact builder made.
    pub fn new(root: PathBuf) -> Self {
        ToolRoot { root }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// A command that runs `program` of the tool root.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_with(&[], program)
    }

    /// The same, with directories bound to other paths.
    pub fn command_with(&self, binds: &[(&Path, &Path)], program: impl AsRef<OsStr>) -> Command {
        // Not current_exe(): this one still works after cargo has replaced the file.
        let mut command = Command::new("/proc/self/exe");
        command.arg(SUBCOMMAND).arg("--root").arg(&self.root);
        for (from, to) in binds {
            command.arg("--bind").arg(from).arg(to);
        }
        command.arg("--").arg(program);
        command
    }

    /// Writes an executable script to `path` that runs `program` of the tool root, with files bound
    /// to other paths: for others who want the name of a program, such as `ferronic --passt`.
    pub fn write_wrapper(
        &self,
        path: &Path,
        binds: &[(&Path, &Path)],
        program: &str,
    ) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let exe = std::env::current_exe().context("cannot find the lab's own program file")?;
        let mut words = vec![exe.as_path(), Path::new(SUBCOMMAND), Path::new("--root")];
        words.push(&self.root);
        for (from, to) in binds {
            words.extend([Path::new("--bind"), from, to]);
        }
        words.extend([Path::new("--"), Path::new(program)]);
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        let script = format!("#!/bin/sh\nexec {} \"$@\"\n", quote(&words));
        fs::write(path, script).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", path.display()))
    }
}

/// Has a command that enters a tool root connect to this socket and hang up when it becomes the
/// program.
pub fn tell_exec(command: &mut Command, socket: &Path) {
    command.env(TELL_ENV, socket);
}

/// Enters the tool root and becomes the program. Returns only if that fails.
pub fn exec(args: &ToolArgs) -> Result<()> {
    let Some((program, arguments)) = args.program.split_first() else {
        bail!("no program named");
    };
    // Closed when the program begins, as all that the standard library opens.
    let _told = std::env::var_os(TELL_ENV)
        .map(UnixStream::connect)
        .transpose()
        .with_context(|| format!("nobody listens at {TELL_ENV}"))?;
    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    enter(args).with_context(|| format!("cannot enter the tool root {}", args.root.display()))?;
    if chdir(&cwd).is_err() {
        chdir("/").context("cannot change to /")?;
    }
    let mut command = Command::new(program);
    command.args(arguments);
    // What cargo and rustup tell the lab about itself says nothing true of what compilers there build.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO") || text.starts_with("RUST") {
            command.env_remove(&name);
        }
    }
    command
        .env_remove(TELL_ENV)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .env("TMPDIR", "/tmp");
    let error = command.exec();
    Err(error).with_context(|| {
        format!(
            "cannot run {} from {}",
            program.display(),
            args.root.display()
        )
    })
}

fn enter(args: &ToolArgs) -> Result<()> {
    let root = &args.root;
    unshare_as_root(UnshareFlags::NEWNS)?;
    mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .context("cannot make the mounts private")?;
    // Any empty directory serves as mount point. Unbindable, so that binding the host's
    // directories, of which one holds the tool root, does not copy it into itself.
    let new = root.join("mnt");
    mount(
        "tmpfs",
        &new,
        "tmpfs",
        MountFlags::empty(),
        Some(c"mode=755"),
    )
    .with_context(|| format!("cannot mount a tmpfs on {}", new.display()))?;
    mount_change(&new, MountPropagationFlags::UNBINDABLE)
        .context("cannot make the new root unbindable")?;

    let is_tool = |name: &OsStr| FROM_ROOT.iter().any(|n| name == *n);
    for (top, from_root) in [(Path::new("/"), false), (root.as_path(), true)] {
        for entry in fs::read_dir(top).with_context(|| format!("cannot list {}", top.display()))? {
            let entry = entry?;
            if is_tool(&entry.file_name()) == from_root {
                show(&entry.path(), &new.join(entry.file_name()))?;
            }
        }
    }
    for pair in args.bind.chunks_exact(2) {
        let [from, to] = pair else { continue };
        let to = new.join(to.strip_prefix("/").unwrap_or(to));
        if from.is_dir() {
            fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;
        }
        mount_bind(from, &to)
            .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))?;
    }

    chdir(&new)?;
    pivot_root(".", ".").context("pivot_root failed")?;
    unmount(".", UnmountFlags::DETACH).context("cannot let go of the old root")?;
    Ok(())
}

/// Makes `from`, a directory or symbolic link, appear as `to`. Plain files in `/` are left out.
fn show(from: &Path, to: &Path) -> Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else if kind.is_dir() {
        fs::create_dir(to)?;
        mount_bind_recursive(from, to)
            .with_context(|| format!("cannot bind {}", from.display()))?;
    }
    Ok(())
}
