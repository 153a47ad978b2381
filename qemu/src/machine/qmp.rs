// SPDX-License-Identifier: Apache-2.0 OR MIT
//! QEMU's control socket.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use qapi::Command;
use qapi::qmp::qmp_capabilities;
use serde_json::Value;

use super::wire::{Wire, WireError, answer};

/// How long QEMU may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A connection to QEMU's control socket.
#[derive(Debug)]
pub struct Qmp {
    wire: Wire,
    /// Names of the events that nobody has waited for yet.
    events: VecDeque<String>,
}

impl Qmp {
    /// Connects as soon as QEMU listens, and shakes hands.
    pub fn connect(
        path: &Path,
        deadline: Instant,
        alive: impl FnMut() -> bool,
    ) -> Result<Self, WireError> {
        let mut wire = Wire::connect(path, deadline, alive)?;
        let greeting = wire.receive(deadline)?;
        if greeting.get("QMP").is_none() {
            return Err(WireError::Nonsense(format!(
                "{greeting} instead of QMP's greeting"
            )));
        }
        let mut qmp = Qmp {
            wire,
            events: VecDeque::new(),
        };
        qmp.ask(&qmp_capabilities { enable: None }, deadline)?;
        Ok(qmp)
    }

    /// Gives a command and waits for its answer.
    pub fn execute<C: Command>(&mut self, command: &C) -> Result<C::Ok> {
        self.ask(command, Instant::now() + ANSWER_LIMIT)
            .with_context(|| format!("QMP command {} failed", C::NAME))
    }

    fn ask<C: Command>(&mut self, command: &C, deadline: Instant) -> Result<C::Ok, WireError> {
        self.wire.send(command)?;
        loop {
            let message = self.wire.receive(deadline)?;
            match event(&message) {
                Some(event) => self.events.push_back(event),
                None => return answer::<C>(message),
            }
        }
    }

    /// Waits for an event of this name. Events of other names are dropped.
    pub fn wait_event(&mut self, name: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let next = match self.events.pop_front() {
                Some(event) => Some(event),
                None => {
                    let message = self.wire.receive(deadline);
                    event(&message.with_context(|| format!("QEMU sent no {name} event"))?)
                }
            };
            if next.is_some_and(|event| event == name) {
                return Ok(());
            }
        }
    }
}

/// The event's name, if the message is an event.
fn event(message: &Value) -> Option<String> {
    Some(message.get("event")?.as_str()?.to_owned())
}
