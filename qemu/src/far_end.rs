// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The far end of the cable in the tests: programs of `qemu/guest/` that run on the host's side too.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};

use crate::artefacts::guest::{BYTES_CHECK, FRAMES};
use crate::lab::Lab;
use crate::net::TAP;

/// Where `bytes-check serve` listens.
pub const PORT: u16 = 5202;

/// `bytes-check serve`. It ends when dropped.
#[derive(Debug)]
pub struct BytesServer {
    address: String,
    process: Child,
}

impl BytesServer {
    /// Starts it on an address of the host's side.
    pub fn start(lab: &Lab, address: &str) -> Result<Self> {
        let script = script(lab, "bytes-check", BYTES_CHECK)?;
        let mut process = lab
            .tools
            .command("python3")
            .arg(script)
            .args(["serve", address, &PORT.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run python3")?;
        let stdout = process.stdout.take();
        let server = BytesServer {
            address: address.to_owned(),
            process,
        };
        let mut line = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.trim() != "listening" {
            bail!("bytes-check does not listen on {address} port {PORT}");
        }
        Ok(server)
    }

    /// The command in the guest that moves so many bytes or datagrams.
    pub fn client(&self, verb: &str, amount: u64) -> String {
        bytes_client(&self.address, verb, amount)
    }
}

/// The command in a guest that moves so many bytes or datagrams to or from the server at an address.
pub fn bytes_client(address: &str, verb: &str, amount: u64) -> String {
    format!("bytes-check {verb} {address} {PORT} {amount} {amount}")
}

impl Drop for BytesServer {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends frames from the tap: the arguments of `frames send TAP`.
pub fn send_frames(lab: &Lab, arguments: &[&str]) -> Result<()> {
    let script = script(lab, "frames", FRAMES)?;
    let path = script.display().to_string();
    let mut all = vec![path.as_str(), "send", TAP];
    all.extend(arguments);
    lab.tool("python3", &all).map(|_| ())
}

/// Puts a program where the tools can read it.
fn script(lab: &Lab, name: &str, text: &str) -> Result<PathBuf> {
    let path = lab.run.dir.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
