// SPDX-License-Identifier: Apache-2.0 OR MIT
//! passt as a vhost-user backend of its own: a peer to measure ourselves against.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::host::tail;
use crate::lab::Lab;

const START_LIMIT: Duration = Duration::from_secs(10);

/// A running passt. It ends when dropped.
#[derive(Debug)]
pub struct Passt {
    /// Where QEMU plugs in.
    pub socket: PathBuf,
    process: Child,
}

impl Passt {
    /// Starts passt and waits until it listens.
    pub fn start(lab: &Lab) -> Result<Self> {
        let id = lab.unique("passt");
        let socket = lab.run.dir.join(format!("{id}.sock"));
        let log = lab.run.logs.join(format!("{id}.log"));
        let file =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let process = lab
            .tools
            .command("passt")
            // As root it would become nobody, who cannot reach the run's directory.
            .args(["--foreground", "--vhost-user", "--runas", "0", "--socket"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot run passt")?;
        let mut passt = Passt { socket, process };
        let deadline = Instant::now() + START_LIMIT;
        // Not by connecting: the first connection is the guest's.
        while !passt.socket.exists() {
            let ended = passt.process.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                bail!(
                    "passt does not listen: {}",
                    tail(&std::fs::read(&log).unwrap_or_default())
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(passt)
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
