// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whether the host had its processors for us: what others took of them during measurements.
//!
//! The run has a PID namespace of its own, so what `/proc` lists are our processes and nobody
//! else's, while `/proc/stat` counts the whole host. The difference is what others used.

use std::fmt::Write;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::param::clock_ticks_per_second;

use super::case::rounded;
use super::samples::Samples;

/// From this share of the host's processors on, what others use spoils the figures.
const NOISY: f64 = 0.1;
const WARNING: &str = "NOISY: others used the processors too. Trust the ratios little, and the figures not at all: \
                       measure again on an idle host.";

/// Processor time since the host's start, in seconds, summed over its processors.
#[derive(Debug, Clone, Copy)]
struct CpuTime {
    /// Spent on anything, by anyone on this host.
    busy: f64,
    /// Taken by the hypervisor for other guests.
    stolen: f64,
}

/// Processor time of the run's processes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Ours {
    /// All of it.
    total: f64,
    /// Without the lab itself and iperf3: QEMU and what is behind its NIC.
    rig: f64,
}

/// What the processors did up to a moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    at: Instant,
    host: CpuTime,
    ours: Ours,
}

/// What they did between two.
#[derive(Debug, Clone, Copy, Default)]
pub struct Span {
    /// Seconds of processor time that QEMU and what is behind its NIC used.
    pub rig_seconds: f64,
    /// Processors that others kept busy, on average.
    pub others: f64,
    /// Processors that the hypervisor took away.
    pub stolen: f64,
}

impl Moment {
    /// Now.
    pub fn now() -> Result<Self> {
        Ok(Moment {
            at: Instant::now(),
            host: CpuTime::read()?,
            ours: Ours::read()?,
        })
    }

    /// From then to now. No process of ours may have ended meanwhile.
    pub fn until_now(self) -> Result<Span> {
        let now = Moment::now()?;
        let seconds = (now.at - self.at).as_secs_f64();
        let busy = now.host.busy - self.host.busy;
        let ours = now.ours.total - self.ours.total;
        Ok(Span {
            rig_seconds: now.ours.rig - self.ours.rig,
            // Clock ticks are coarse: the difference may fall below nothing.
            others: ((busy - ours) / seconds).max(0.0),
            stolen: (now.host.stolen - self.host.stolen) / seconds,
        })
    }
}

impl CpuTime {
    fn read() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        CpuTime::parse(&stat).context("/proc/stat has no `cpu` line as Linux writes it")
    }

    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|l| l.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        // proc_stat(5): user nice system idle iowait irq softirq steal; guest time is in user's.
        let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = *ticks else {
            return None;
        };
        let busy = seconds(user + nice + system + irq + softirq);
        Some(CpuTime {
            busy,
            stolen: seconds(steal),
        })
    }
}

impl Ours {
    fn read() -> Result<Self> {
        let mut ours = Ours::default();
        for entry in fs::read_dir("/proc").context("cannot list /proc")? {
            let entry = entry.context("cannot list /proc")?;
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            // One that ends as we look at it is none of those that are measured.
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            ours.add(pid == std::process::id(), &stat);
        }
        Ok(ours)
    }

    /// Adds what `/proc/PID/stat` says of a process.
    fn add(&mut self, is_lab: bool, stat: &str) {
        let Some((name, spent)) = spent(stat) else {
            return;
        };
        self.total += spent;
        if !is_lab && name != "iperf3" {
            self.rig += spent;
        }
    }
}

/// Name and processor time of a process, from its `stat`.
fn spent(stat: &str) -> Option<(&str, f64)> {
    // The name is in parentheses and may hold any character (proc_pid_stat(5)).
    let (head, rest) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    let mut fields = rest.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((name, seconds(ticks()? + ticks()?)))
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / clock_ticks_per_second() as f64
}

/// What the host was like over the whole bench.
#[derive(Debug)]
pub struct Weather {
    processors: usize,
    load_at_start: f64,
    spans: Vec<Span>,
}

impl Weather {
    /// Looks at the host before anything runs.
    pub fn observe() -> Result<Self> {
        let text = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
        let first = text.split(' ').next().and_then(|word| word.parse().ok());
        let load_at_start = first.context("/proc/loadavg does not start with a number")?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Weather {
            processors,
            load_at_start,
            spans: Vec::new(),
        })
    }

    /// Notes what the processors did during a measurement.
    pub fn note(&mut self, span: Span) {
        self.spans.push(span);
    }

    /// A line or two for the report.
    pub fn report(&self) -> String {
        let mut text = format!(
            "host: {} processors, load average {} at the start",
            self.processors,
            rounded(self.load_at_start)
        );
        for (samples, what) in [
            (self.others(), "used by others"),
            (self.stolen(), "taken by its hypervisor"),
        ] {
            if let (Some(median), Some((low, high))) = (samples.median(), samples.spread()) {
                let (median, low, high) = (rounded(median), rounded(low), rounded(high));
                let _ = write!(
                    text,
                    "; {what} during measurements: {median} ({low}..{high})"
                );
            }
        }
        text.push('\n');
        if let Some(warning) = self.warning() {
            let _ = writeln!(text, "{warning}");
        }
        text
    }

    /// What is to be said of the figures if the host had others to serve.
    pub fn warning(&self) -> Option<&'static str> {
        let taken = [self.others(), self.stolen()].map(|samples| samples.median().unwrap_or(0.0));
        let noisy = taken.iter().sum::<f64>() > NOISY * self.processors as f64;
        noisy.then_some(WARNING)
    }

    fn others(&self) -> Samples {
        self.spans.iter().map(|span| span.others).collect()
    }

    fn stolen(&self) -> Samples {
        self.spans.iter().map(|span| span.stolen).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_stat_of_the_host() {
        let hz = clock_ticks_per_second();
        let text = format!("cpu  {hz} 0 {hz} 900 10 0 {hz} {hz} 0 0\ncpu0 1 2 3\n");
        let time = CpuTime::parse(&text).unwrap();
        assert_eq!((time.busy, time.stolen), (3.0, 1.0));
        assert!(CpuTime::parse("cpu  1 2\n").is_none());
        assert!(CpuTime::parse("nonsense").is_none());
    }

    #[test]
    fn only_qemu_and_what_is_behind_it_count_as_the_rig() {
        let hz = clock_ticks_per_second();
        let stat = |name: &str| format!("7 ({name}) S 1 7 7 0 -1 0 0 0 0 0 {hz} {hz} 0 0 20");
        let mut ours = Ours::default();
        ours.add(true, &stat("ferronic-lab"));
        ours.add(false, &stat("iperf3"));
        ours.add(false, &stat("a) strange (name"));
        ours.add(false, "gone");
        assert_eq!(
            ours,
            Ours {
                total: 6.0,
                rig: 2.0
            }
        );
    }

    #[test]
    fn a_loaded_host_is_said() {
        let mut weather = Weather {
            processors: 2,
            load_at_start: 0.5,
            spans: Vec::new(),
        };
        weather.note(Span {
            rig_seconds: 1.0,
            others: 0.01,
            stolen: 0.0,
        });
        assert!(!weather.report().contains("NOISY"), "{}", weather.report());
        weather.note(Span {
            rig_seconds: 1.0,
            others: 1.0,
            stolen: 0.1,
        });
        assert!(weather.report().contains("NOISY"), "{}", weather.report());
    }
}
