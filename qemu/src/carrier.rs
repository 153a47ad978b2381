// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How long the guest takes to see that its cable was pulled or put back.
//!
//! In the guest, `carrier-watch` notes the guest's time of each change that the kernel
//! announces over rtnetlink. On the host the time before the command is noted. The two
//! clocks are compared just before each command ([`crate::guest::ClockOffset`]), and
//! the guest's time is moved to the host's clock. So the figure holds everything from
//! starting `ferronic link` to the announcement, and none of the lab's own ways of
//! getting to know of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::guest::{Guest, Running, host_now_ns};

const LOG: &str = "/run/carrier-watch.log";
/// How long a change may take to show.
const LIMIT: Duration = Duration::from_secs(10);

/// A watch on the guest's carrier. It ends when dropped.
#[derive(Debug)]
pub struct Watch<'a> {
    guest: &'a Guest,
    watcher: Running<'a>,
}

/// One change as the guest saw it.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Change {
    ns: i128,
    carrier: bool,
}

/// How long a change took.
#[derive(Debug, Clone, Copy)]
pub struct Delay {
    /// From the command to the guest's announcement.
    pub ms: f64,
    /// By how much that may be off, since the clocks are two.
    pub error_ms: f64,
}

impl<'a> Watch<'a> {
    /// Starts watching.
    pub fn start(guest: &'a Guest, interface: &str) -> Result<Self> {
        guest.sh(&format!("rm -f {LOG}"))?;
        let watcher = guest.spawn(&format!("exec carrier-watch {interface} > {LOG} 2>&1"))?;
        let watch = Watch { guest, watcher };
        let deadline = Instant::now() + LIMIT;
        while watch.changes().unwrap_or_default().is_empty() {
            if Instant::now() > deadline {
                bail!(
                    "carrier-watch does not start: {}",
                    String::from_utf8_lossy(&guest.read_file(LOG)?)
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(watch)
    }

    /// The changes so far; the first is the state at start.
    fn changes(&self) -> Result<Vec<Change>> {
        let log = self.guest.read_file(LOG)?;
        String::from_utf8_lossy(&log)
            .lines()
            .map(|line| {
                serde_json::from_str(line).with_context(|| format!("carrier-watch printed: {line}"))
            })
            .collect()
    }

    /// Runs `command`, which is to bring the carrier into the state `up`, and waits for that.
    pub fn time(&self, up: bool, command: impl FnOnce() -> Result<()>) -> Result<Delay> {
        let seen = self.changes()?.len();
        let clocks = self.guest.clock_offset()?;
        let commanded_ns = host_now_ns();
        command()?;
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(change) = self.changes()?.iter().skip(seen).find(|c| c.carrier == up) {
                let ns = clocks.to_host_ns(change.ns) - commanded_ns;
                return Ok(Delay {
                    ms: ns as f64 / 1e6,
                    error_ms: clocks.error.as_secs_f64() * 1e3,
                });
            }
            if Instant::now() > deadline {
                let state = if up { "up" } else { "down" };
                bail!(
                    "the guest's carrier did not go {state} within {} s",
                    LIMIT.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // The guest may be gone; then so is the watcher.
        let _ = self.watcher.kill();
    }
}
