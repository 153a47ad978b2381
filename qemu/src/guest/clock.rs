// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Comparing the guest's clock with the host's.
//!
//! The guest is asked for its time again and again. Each answer was given somewhere
//! between question and answer, so half the round trip bounds the error of taking the
//! middle; the quickest round trip bounds it best.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use qapi::qga::guest_get_time;

use super::agent::Agent;

const ROUNDS: usize = 20;

/// The result of the comparison.
#[derive(Debug, Clone, Copy)]
pub struct ClockOffset {
    /// Guest time less host time, in nanoseconds.
    pub ahead_ns: i128,
    /// By how much that may be off.
    pub error: Duration,
}

impl ClockOffset {
    /// The guest's reading (nanoseconds since the epoch) on the host's clock.
    pub fn to_host_ns(self, guest_ns: i128) -> i128 {
        guest_ns - self.ahead_ns
    }
}

/// Nanoseconds since the epoch on the host's clock.
pub fn host_now_ns() -> i128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as i128)
}

pub fn measure(agent: &mut Agent) -> Result<ClockOffset> {
    let mut best: Option<ClockOffset> = None;
    for _ in 0..ROUNDS {
        let asked_ns = host_now_ns();
        let asked = Instant::now();
        let guest_ns = i128::from(agent.execute(&guest_get_time {})?);
        let error = asked.elapsed() / 2;
        if best.is_none_or(|b| error < b.error) {
            best = Some(ClockOffset {
                ahead_ns: guest_ns - (asked_ns + error.as_nanos() as i128),
                error,
            });
        }
    }
    // ROUNDS is not zero.
    Ok(best.unwrap_or(ClockOffset {
        ahead_ns: 0,
        error: Duration::MAX,
    }))
}
