// SPDX-License-Identifier: Apache-2.0 OR MIT
//! passt as a peer: plugged into QEMU itself, without us between.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::host::tail;
use crate::lab::Lab;

/// How long passt may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

/// How passt talks to QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Frames over a socket, as our own user uplink does: for `-netdev stream`.
    Stream,
    /// As a vhost-user backend: for `-netdev vhost-user`.
    VhostUser,
}

/// A running passt. It ends when dropped.
#[derive(Debug)]
pub struct Passt {
    /// Where QEMU plugs in.
    pub socket: PathBuf,
    process: Child,
}

impl Passt {
    /// Starts passt and waits until it listens.
    pub fn start(lab: &Lab, mode: Mode) -> Result<Self> {
        let id = lab.unique("passt");
        let socket = lab.run.dir.join(format!("{id}.sock"));
        let log = lab.run.logs.join(format!("{id}.log"));
        let file =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let process = command(lab, mode, &socket)
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot run passt")?;
        let mut passt = Passt { socket, process };
        let deadline = Instant::now() + START_LIMIT;
        // Looked for, not connected to: passt takes the first connection for the guest's.
        while !passt.socket.exists() {
            let ended = passt.process.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let how = ended.map_or("does not listen".to_owned(), |s| format!("ended with {s}"));
                let said = std::fs::read(&log).unwrap_or_default();
                bail!("passt {how}; it said ({}):\n{}", log.display(), tail(&said));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(passt)
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// How passt is started to listen at a socket.
pub fn command(lab: &Lab, mode: Mode, socket: &Path) -> Command {
    let mut command = lab.tools.command("passt");
    // Addresses as in QEMU's own user-mode network. As root it would become nobody, who
    // cannot reach the run's directory.
    command.args(["--foreground", "--runas", "0", "--address", "10.0.2.15"]);
    command.args(["--netmask", "24", "--gateway", "10.0.2.2"]);
    if mode == Mode::VhostUser {
        command.arg("--vhost-user");
    }
    command.arg("--socket").arg(socket).stdin(Stdio::null());
    command
}

impl Drop for Passt {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
