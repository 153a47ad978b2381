// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest, as seen through its agent: commands, files, the clock.
//!
//! The agent is QEMU's own (`qemu-ga`) on an ISA serial port, so the guest can be
//! reached whatever the state of its PCI drivers.

mod agent;
mod clock;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use qapi::qga;

use agent::Agent;
pub use clock::{ClockOffset, host_now_ns};

/// The time limit of commands for which none is given.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// How much longer than its own limit a command is waited for before the guest counts as dead.
const GRACE: Duration = Duration::from_secs(15);
/// How much of a file goes into one message.
const CHUNK: usize = 48 * 1024;

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    agent: Mutex<Agent>,
    /// How many times as long as elsewhere things may take in it.
    patience: u32,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code, or 128 + signal.
    pub code: i64,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A command that runs in the background.
#[derive(Debug)]
pub struct Running<'a> {
    guest: &'a Guest,
    what: String,
    pid: i64,
}

impl Guest {
    /// Connects to the agent; it need not have been started yet. Limits of time are `patience` times
    /// what they are said to be.
    pub fn connect(
        socket: &std::path::Path,
        patience: u32,
        deadline: Instant,
        alive: impl FnMut() -> bool,
    ) -> Result<Self> {
        let agent =
            Agent::connect(socket, deadline, alive).context("the guest's agent does not answer")?;
        Ok(Guest {
            agent: Mutex::new(agent),
            patience,
        })
    }

    /// Waits until the agent answers, again or for the first time.
    pub fn wait_ready(&self, deadline: Instant, alive: impl FnMut() -> bool) -> Result<()> {
        self.agent()
            .sync(deadline, alive)
            .context("the guest's agent does not answer")
    }

    fn agent(&self) -> MutexGuard<'_, Agent> {
        // A panic elsewhere leaves at worst an answer unread, and the agent notices that.
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a shell command that must succeed, and returns its standard output.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.sh_within(script, COMMAND_LIMIT)
    }

    /// The same with a time limit.
    pub fn sh_within(&self, script: &str, limit: Duration) -> Result<String> {
        let output = self.try_sh(script, limit)?;
        if output.code != 0 {
            bail!(
                "in the guest, `{script}` ended with {}:\n{}{}",
                output.code,
                output.stdout,
                output.stderr
            );
        }
        Ok(output.stdout)
    }

    /// Runs a shell command and returns whatever comes of it. Past the limit it is killed, which is an error.
    pub fn try_sh(&self, script: &str, limit: Duration) -> Result<Output> {
        let limit = self.patience * limit;
        let seconds = format!("{}", limit.as_secs_f64());
        let output = self
            .start(
                script,
                "/usr/bin/timeout",
                &["-s", "KILL", &seconds, "/bin/sh", "-c", script],
            )?
            .wait_patiently(limit + GRACE)?;
        // That is how timeout(1) says that it had to kill; a command killed by others looks the same.
        if output.code == 137 {
            bail!(
                "in the guest, `{script}` took longer than {} s:\n{}{}",
                limit.as_secs(),
                output.stdout,
                output.stderr
            );
        }
        Ok(output)
    }

    /// Starts a shell command in the background.
    pub fn spawn(&self, script: &str) -> Result<Running<'_>> {
        // A session of its own, so that kill() reaches all of it.
        self.start(script, "/usr/bin/setsid", &["/bin/sh", "-c", script])
    }

    fn start(&self, what: &str, path: &str, args: &[&str]) -> Result<Running<'_>> {
        let command = qga::guest_exec {
            path: path.into(),
            arg: Some(args.iter().map(|a| (*a).to_owned()).collect()),
            env: None,
            input_data: None,
            capture_output: Some(qga::GuestExecCaptureOutput::flag(true)),
        };
        let started = self
            .agent()
            .execute(&command)
            .with_context(|| format!("cannot run `{what}` in the guest"))?;
        Ok(Running {
            guest: self,
            what: what.to_owned(),
            pid: started.pid,
        })
    }

    /// Writes a file.
    pub fn write_file(&self, path: &str, data: &[u8]) -> Result<()> {
        let mut agent = self.agent();
        let open = qga::guest_file_open {
            path: path.into(),
            mode: Some("w".into()),
        };
        let handle = agent
            .execute(&open)
            .with_context(|| format!("cannot open {path} in the guest"))?;
        for chunk in data.chunks(CHUNK) {
            let write = qga::guest_file_write {
                handle,
                buf_b64: chunk.to_vec(),
                count: None,
            };
            agent
                .execute(&write)
                .with_context(|| format!("cannot write {path} in the guest"))?;
        }
        agent.execute(&qga::guest_file_close { handle })?;
        Ok(())
    }

    /// Reads a file.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        let mut agent = self.agent();
        let open = qga::guest_file_open {
            path: path.into(),
            mode: Some("r".into()),
        };
        let handle = agent
            .execute(&open)
            .with_context(|| format!("cannot open {path} in the guest"))?;
        let mut data = Vec::new();
        loop {
            let read = qga::guest_file_read {
                handle,
                count: Some(CHUNK as i64),
            };
            let part = agent
                .execute(&read)
                .with_context(|| format!("cannot read {path} in the guest"))?;
            data.extend_from_slice(&part.buf_b64);
            if part.eof || part.buf_b64.is_empty() {
                break;
            }
        }
        agent.execute(&qga::guest_file_close { handle })?;
        Ok(data)
    }

    /// How far the guest's clock is ahead of the host's.
    pub fn clock_offset(&self) -> Result<ClockOffset> {
        clock::measure(&mut self.agent())
    }
}

impl Running<'_> {
    /// Waits for the command to end.
    pub fn wait(&self, limit: Duration) -> Result<Output> {
        self.wait_patiently(self.guest.patience * limit)
    }

    fn wait_patiently(&self, limit: Duration) -> Result<Output> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(2);
        loop {
            if let Some(output) = self.poll()? {
                return Ok(output);
            }
            if Instant::now() > deadline {
                bail!(
                    "in the guest, `{}` has not ended within {} s",
                    self.what,
                    limit.as_secs()
                );
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Looks whether the command has ended. Its output is there only then.
    pub fn poll(&self) -> Result<Option<Output>> {
        let status = self
            .guest
            .agent()
            .execute(&qga::guest_exec_status { pid: self.pid })
            .with_context(|| format!("cannot ask how `{}` does in the guest", self.what))?;
        if !status.exited {
            return Ok(None);
        }
        let text =
            |data: Option<Vec<u8>>| String::from_utf8_lossy(&data.unwrap_or_default()).into_owned();
        let code = status
            .exitcode
            .unwrap_or_else(|| 128 + status.signal.unwrap_or(0));
        Ok(Some(Output {
            code,
            stdout: text(status.out_data),
            stderr: text(status.err_data),
        }))
    }

    /// Ends the command and everything it started.
    pub fn kill(&self) -> Result<()> {
        self.guest.try_sh(
            &format!("kill -TERM -{0} || kill -TERM {0}", self.pid),
            COMMAND_LIMIT,
        )?;
        Ok(())
    }
}
