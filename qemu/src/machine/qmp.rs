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

/// Something that QEMU said unasked.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its name, such as `SHUTDOWN`.
    pub name: String,
    /// What came with it.
    pub data: Value,
}

/// A connection to QEMU's control socket.
#[derive(Debug)]
pub struct Qmp {
    wire: Wire,
    events: VecDeque<Event>,
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
    pub fn wait_event(&mut self, name: &str, limit: Duration) -> Result<Event> {
        let deadline = Instant::now() + limit;
        loop {
            let next = match self.events.pop_front() {
                Some(event) => Some(event),
                None => event(
                    &self
                        .wire
                        .receive(deadline)
                        .with_context(|| format!("QEMU sent no {name} event"))?,
                ),
            };
            if let Some(event) = next
                && event.name == name
            {
                return Ok(event);
            }
        }
    }
}

fn event(message: &Value) -> Option<Event> {
    let name = message.get("event")?.as_str()?.to_owned();
    Some(Event {
        name,
        data: message.get("data").cloned().unwrap_or(Value::Null),
    })
}
