// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the kernel tells of a running process: its memory, how often it wakes up, its children.

use std::fs;

use anyhow::{Context, Result};

/// Resident memory of a process, in KiB, without what it shares with others: guest memory is a memfd,
/// which the kernel counts apart (`RssShmem`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Its own: heap, stacks, variables, huge pages.
    pub own: u64,
    /// Pages of files: the program's text, libraries.
    pub files: u64,
}

impl Memory {
    /// That of a process.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Self::parse(&status).with_context(|| format!("{path} does not tell of its memory"))
    }

    fn parse(status: &str) -> Option<Self> {
        let kib = |name| field(status, name);
        Some(Memory {
            // Kernels without huge pages have no such line.
            own: kib("RssAnon:")? + kib("HugetlbPages:").unwrap_or(0),
            files: kib("RssFile:")?,
        })
    }

    /// Both together.
    pub fn total(self) -> u64 {
        self.own + self.files
    }
}

impl std::iter::Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Memory::default(), |sum, one| Memory {
            own: sum.own + one.own,
            files: sum.files + one.files,
        })
    }
}

/// How often the threads of a process have gone to sleep, and so woken up.
pub fn wakeups(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        sum += field(&status, "voluntary_ctxt_switches:").context("no voluntary_ctxt_switches")?;
    }
    Ok(sum)
}

/// The children of a process, whichever of its threads has started them.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("children"))?;
        children.extend(
            text.split_whitespace()
                .filter_map(|c| c.parse::<u32>().ok()),
        );
    }
    Ok(children)
}

/// A process, its children, and theirs.
pub fn family(pid: u32) -> Result<Vec<u32>> {
    let mut family = vec![pid];
    let mut looked_at = 0;
    while let Some(member) = family.get(looked_at) {
        let children = children(*member)?;
        family.extend(children);
        looked_at += 1;
    }
    Ok(family)
}

/// The number in a line of `/proc/PID/status` (proc_pid_status(5)).
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, Signal, kill_process};
    use std::process::Command;

    const STATUS: &str = "Name:\tpasst\nVmRSS:\t    3000 kB\nRssAnon:\t     100 kB\n\
                          RssFile:\t     900 kB\nRssShmem:\t    2000 kB\nHugetlbPages:\t    2048 kB\n\
                          voluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t7\n";

    #[test]
    fn memory_is_told_apart_from_what_is_shared() {
        let memory = Memory::parse(STATUS).unwrap();
        assert_eq!((memory.own, memory.files), (2148, 900));
        assert_eq!(memory.total(), 3048);
        let without = STATUS.replace("HugetlbPages", "Nothing");
        assert_eq!(Memory::parse(&without).unwrap().own, 100);
        assert_eq!(Memory::parse("Name:\tkthreadd\n"), None);
        assert_eq!([memory, memory].into_iter().sum::<Memory>().own, 4296);
    }

    #[test]
    fn only_sleeping_of_its_own_accord_is_a_wake_up() {
        assert_eq!(field(STATUS, "voluntary_ctxt_switches:"), Some(12));
    }

    #[test]
    fn a_process_and_what_it_has_started() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .spawn()
            .unwrap();
        let mut family = Vec::new();
        while family.len() < 2 {
            family = super::family(shell.id()).unwrap();
        }
        assert_eq!(family[0], shell.id());
        assert!(Memory::of(shell.id()).unwrap().total() > 0);
        assert!(wakeups(std::process::id()).unwrap() > 0);
        shell.kill().unwrap();
        shell.wait().unwrap();
        let child = Pid::from_raw(i32::try_from(family[1]).unwrap()).unwrap();
        kill_process(child, Signal::KILL).unwrap();
    }
}
