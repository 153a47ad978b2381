// SPDX-License-Identifier: Apache-2.0 OR MIT
//! passt as a child process.
//!
//! The child holds one end of a socket pair and serves nobody else; passt ends when that socket is
//! closed, so it goes when we go, however we go. It gets a process group of its own, so that a
//! Control-C in the terminal ends us, and not passt under us.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::UserError;

/// The largest MTU that passt knows.
pub const MAX_MTU: u16 = 65520;
/// Lines of standard error that are kept for when it ends.
const LINES: usize = 8;
/// Octets of a line that are kept.
const LINE: usize = 400;

/// How to run passt.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// The program.
    pub path: PathBuf,
    /// The MTU that the guest is told over DHCP.
    pub mtu: u16,
}

impl Program {
    /// What to say on the command line, but for the socket.
    ///
    /// The addresses are those of QEMU's own user-mode network: the guest is 10.0.2.15 and reaches
    /// the host as 10.0.2.2. Left to itself passt gives the guest the host's address, and no
    /// address at all on a host that has an interface but no default route.
    fn arguments(&self) -> [String; 9] {
        let mtu = self.mtu.min(MAX_MTU).to_string();
        [
            "--foreground",
            "--mtu",
            &mtu,
            "--address",
            "10.0.2.15",
            "--netmask",
            "24",
            "--gateway",
            "10.0.2.2",
        ]
        .map(String::from)
    }

    /// Whether the program is to be looked for in `PATH`, and is in none of its directories.
    fn is_nowhere_in_path(&self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        self.path.components().count() == 1
            && !std::env::split_paths(&path).any(|directory| directory.join(&self.path).exists())
    }

    fn start_error(&self, source: io::Error) -> UserError {
        match source.kind() {
            io::ErrorKind::NotFound => UserError::NotFound(self.path.clone()),
            // So it ends when a directory of PATH may not be searched.
            io::ErrorKind::PermissionDenied if self.is_nowhere_in_path() => {
                UserError::NotFound(self.path.clone())
            }
            _ => UserError::NotStarted {
                program: self.path.clone(),
                source,
            },
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        for argument in self.arguments() {
            write!(f, " {argument}")?;
        }
        Ok(())
    }
}

/// A running passt; killed when dropped.
#[derive(Debug)]
pub(super) struct Passt {
    child: Child,
    pidfd: OwnedFd,
    said: Said,
}

impl Passt {
    /// Starts passt; also gives our end of its socket, non-blocking.
    pub fn start(program: &Program) -> Result<(Passt, OwnedFd), UserError> {
        let system = |what| move |source| UserError::System { what, source };
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| system("cannot make a socket pair")(e.into()))?;
        fcntl_setfl(&ours, OFlags::NONBLOCK)
            .map_err(|e| system("cannot make the socket non-blocking")(e.into()))?;
        let mut command = Command::new(&program.path);
        command
            .arg("--fd")
            .arg(theirs.as_raw_fd().to_string())
            .args(program.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0);
        // SAFETY: between fork and exec this makes one system call on a descriptor that the
        // closure owns, and neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || Ok(fcntl_setfd(&theirs, FdFlags::empty())?));
        }
        let mut child = command.spawn().map_err(|e| program.start_error(e))?;
        // Their end is the child's alone from here on, so that its closing can be seen.
        drop(command);
        let watched = watch(&mut child);
        let (pidfd, said) = match watched {
            Ok(watched) => watched,
            Err(source) => {
                // Nothing more can be done about a child that can be neither watched nor killed.
                let _ = child.kill();
                let _ = child.wait();
                return Err(system("cannot watch passt (pidfd_open)")(source));
            }
        };
        Ok((Passt { child, pidfd, said }, ours))
    }

    /// Readable when passt has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable when passt has said something; `None` once it cannot any more.
    pub fn stderr(&self) -> Option<BorrowedFd<'_>> {
        self.said.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Takes in what passt has said.
    pub fn listen(&mut self) {
        self.said.listen();
    }

    /// Makes passt end, if it has not.
    pub fn kill(&mut self) {
        // Fails only when it has ended.
        let _ = self.child.kill();
    }

    /// Waits for the end.
    pub fn ending(&mut self) -> Ending {
        let status = self.child.wait();
        self.said.listen();
        self.said.end_line();
        Ending {
            status: status.ok(),
            lines: self.said.lines.iter().cloned().collect(),
        }
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        self.kill();
        // Not interesting any more.
        let _ = self.child.wait();
    }
}

fn watch(child: &mut Child) -> io::Result<(OwnedFd, Said)> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let pipe = child.stderr.take();
    if let Some(pipe) = &pipe {
        fcntl_setfl(pipe, OFlags::NONBLOCK)?;
    }
    Ok((pidfd, Said::new(pipe)))
}

/// What passt said on standard error: all of it goes to our log, and the last lines are kept.
#[derive(Debug)]
struct Said {
    pipe: Option<ChildStderr>,
    line: Vec<u8>,
    lines: VecDeque<String>,
}

impl Said {
    fn new(pipe: Option<ChildStderr>) -> Self {
        Said {
            pipe,
            line: Vec::new(),
            lines: VecDeque::new(),
        }
    }

    /// Reads what is there, up to a limit, so that a chatterbox cannot keep us.
    fn listen(&mut self) {
        let mut octets = [0; 4096];
        for _ in 0..16 {
            let Some(pipe) = &self.pipe else {
                return;
            };
            match rustix::io::read(pipe, &mut octets) {
                Ok(0) => self.pipe = None,
                Ok(len) => self.take(octets.get(..len).unwrap_or_default()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn take(&mut self, octets: &[u8]) {
        for &octet in octets {
            if octet == b'\n' {
                self.end_line();
            } else if self.line.len() < LINE {
                self.line.push(octet);
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        // Some of it may stem from the guest or the network: no control characters to a terminal.
        let line: String = line
            .trim_end()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        self.line.clear();
        if line.is_empty() {
            return;
        }
        log::debug!("passt: {line}");
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

/// How passt ended.
#[derive(Debug)]
pub struct Ending {
    /// Its exit status, where it could be had.
    pub status: Option<ExitStatus>,
    /// The last lines of its standard error.
    pub lines: Vec<String>,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}")?,
            None => f.write_str("unknown exit status")?,
        }
        if self.lines.is_empty() {
            f.write_str(", and said nothing")
        } else {
            write!(f, ", and said: {}", self.lines.join(" | "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_without_control_characters() {
        let mut said = Said::new(None);
        for i in 0..20 {
            said.take(format!("line {i}\n\n").as_bytes());
        }
        said.take(b"\x1b[31mred\xff\r\n");
        said.take(&[b'x'; 2 * LINE]);
        said.end_line();
        assert_eq!(said.lines.len(), LINES);
        assert_eq!(said.lines[LINES - 3], "line 19");
        assert_eq!(said.lines[LINES - 2], " [31mred\u{fffd}");
        assert_eq!(said.lines[LINES - 1].len(), LINE);
    }

    #[test]
    fn the_mtu_stays_within_passts_limit() {
        let program = Program {
            path: "passt".into(),
            mtu: 65535,
        };
        let line = program.to_string();
        assert!(
            line.starts_with("passt --foreground --mtu 65520 "),
            "{line}"
        );
    }
}
