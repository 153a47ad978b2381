// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The processor's time stamp counter, which goes at one rate whatever the processor does.

use std::time::{Duration, Instant};

/// Counts the counter's ticks over a time.
#[derive(Debug)]
pub struct Ticks {
    at: Instant,
    ticks: u64,
}

impl Ticks {
    /// From now on; `None` on processors that have no such counter.
    pub fn start() -> Option<Self> {
        let ticks = read()?;
        Some(Ticks {
            at: Instant::now(),
            ticks,
        })
    }

    /// Ticks a nanosecond since then.
    pub fn rate(&self) -> Option<f64> {
        let elapsed = self.at.elapsed();
        let ticks = read()?.wrapping_sub(self.ticks);
        (elapsed >= Duration::from_millis(1)).then(|| ticks as f64 / elapsed.as_nanos() as f64)
    }
}

#[cfg(target_arch = "x86_64")]
fn read() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn read() -> Option<u64> {
    None
}
