// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The connection to the guest agent.
//!
//! A serial line has no beginning and no end: what was said before the agent ran, or
//! an answer that nobody waited for any more, may still be on it. The agent's own
//! remedy is used: a byte 0xff throws away what it has read so far, and its answer to
//! `guest-sync-delimited` starts with such a byte and repeats a number.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use qapi::Command;
use qapi::qga::guest_sync_delimited;
use serde_json::Value;

use crate::machine::wire::{Wire, WireError, answer};

/// How long the agent may take for an answer. Under TCG on a busy host it has been seen to take seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long an answer to the first sync is waited for before asking again, and to later ones at most.
/// Questions that nobody reads fill the socket's buffer, while a slow guest boots: not too many.
const SYNC_FIRST: Duration = Duration::from_millis(200);
const SYNC_EVERY: Duration = Duration::from_secs(3);
const DELIMITER: u8 = 0xff;

#[derive(Debug)]
pub struct Agent {
    wire: Wire,
    /// Whether the next line from the agent is the answer to the next command.
    synced: bool,
    last_id: i64,
}

impl Agent {
    /// Connects to QEMU's side of the serial line, and waits for the agent.
    pub fn connect(
        path: &Path,
        deadline: Instant,
        mut alive: impl FnMut() -> bool,
    ) -> Result<Self> {
        let wire = Wire::connect(path, deadline, &mut alive)
            .with_context(|| format!("cannot connect to {}", path.display()))?;
        let mut agent = Agent {
            wire,
            synced: false,
            last_id: 0,
        };
        agent.sync(deadline, alive)?;
        Ok(agent)
    }

    /// Gives a command and waits for its answer.
    pub fn execute<C: Command>(&mut self, command: &C) -> Result<C::Ok> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        if !self.synced {
            self.sync(deadline, || true)?;
        }
        self.synced = false;
        self.wire.send(command)?;
        let message = self
            .wire
            .receive(deadline)
            .context("the guest's agent does not answer")?;
        self.synced = true;
        Ok(answer::<C>(message)?)
    }

    /// Waits until the agent answers, and until that answer is the last thing on the line.
    pub fn sync(&mut self, deadline: Instant, mut alive: impl FnMut() -> bool) -> Result<()> {
        self.synced = false;
        let mut patience = SYNC_FIRST;
        loop {
            self.last_id += 1;
            self.wire.discard_pending();
            self.wire.send_bytes(&[DELIMITER])?;
            self.wire.send(&guest_sync_delimited { id: self.last_id })?;
            let answer = self.await_sync(deadline.min(Instant::now() + patience));
            patience = (patience * 2).min(SYNC_EVERY);
            match answer {
                Ok(()) => {
                    self.synced = true;
                    return Ok(());
                }
                Err(WireError::TimedOut) if !alive() => return Err(WireError::Closed.into()),
                Err(WireError::TimedOut) if Instant::now() < deadline => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn await_sync(&mut self, deadline: Instant) -> Result<(), WireError> {
        loop {
            let line = self.wire.receive_line(deadline)?;
            // Anything else is an answer to an earlier question, or noise of the line.
            if let Some(at) = line.iter().rposition(|b| *b == DELIMITER)
                && let Ok(message) =
                    serde_json::from_slice::<Value>(line.get(at + 1..).unwrap_or_default())
                && message.get("return").and_then(Value::as_i64) == Some(self.last_id)
            {
                return Ok(());
            }
        }
    }
}
