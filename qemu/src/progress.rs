// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Saying what is going on: one line when a step starts, a sign of life while
//! it lasts, one line with the time it took when it ends.
//!
//! On a terminal the running step is one line that counts seconds. Elsewhere (CI
//! logs) a line is printed every half minute. Everything goes to standard error;
//! standard output belongs to results.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Steps shorter than this are not mentioned when they end well.
const QUIET: Duration = Duration::from_secs(2);
/// How often a step outside a terminal says that it is still running.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Prints one line about what the lab does.
pub fn say(line: impl AsRef<str>) {
    eprintln!("lab: {}", line.as_ref());
}

/// A step that may take a while. Dropping it without [`Step::done`] means that it failed.
#[derive(Debug)]
pub struct Step {
    what: String,
    start: Instant,
    stop: Arc<AtomicBool>,
    ticker: Option<JoinHandle<()>>,
}

impl Step {
    /// Starts a step; `what` reads like "building the guest kernel (about 5 min)".
    pub fn start(what: impl Into<String>) -> Self {
        let what = what.into();
        let start = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let (name, stopped) = (what.clone(), stop.clone());
        let ticker = std::thread::spawn(move || tick(&name, start, &stopped));
        Step {
            what,
            start,
            stop,
            ticker: Some(ticker),
        }
    }

    /// Ends the step well.
    pub fn done(mut self) -> Duration {
        self.halt();
        let took = self.start.elapsed();
        if took >= QUIET {
            say(format!("{}: {:.1} s", self.what, took.as_secs_f64()));
        }
        took
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(ticker) = self.ticker.take() {
            ticker.thread().unpark();
            // The ticker only prints; if it panicked there is nothing to save.
            let _ = ticker.join();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if self.ticker.is_some() {
            self.halt();
            say(format!(
                "{}: failed after {:.1} s",
                self.what,
                self.start.elapsed().as_secs_f64()
            ));
        }
    }
}

fn tick(what: &str, start: Instant, stop: &AtomicBool) {
    let mut err = std::io::stderr();
    let terminal = err.is_terminal();
    let mut said = start;
    let mut drawn = false;
    while !stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(500));
        let elapsed = start.elapsed();
        if elapsed < QUIET / 2 || stop.load(Ordering::Relaxed) {
            continue;
        }
        if terminal {
            let _ = write!(err, "\r\x1b[Klab: {what} ... {} s", elapsed.as_secs());
            drawn = true;
        } else if said == start {
            say(format!("{what} ..."));
            said = Instant::now();
        } else if said.elapsed() >= LOG_EVERY {
            say(format!(
                "{what} ... still at it after {} s",
                elapsed.as_secs()
            ));
            said = Instant::now();
        }
    }
    if drawn {
        let _ = write!(err, "\r\x1b[K");
    }
}
