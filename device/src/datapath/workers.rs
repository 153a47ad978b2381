// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How the workers' threads run: on which CPUs, and for how long they look before they sleep.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPUs by number, as the command line lists them: `0,2-3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let number = text.parse::<usize>().ok();
            number.filter(|cpu| *cpu < CpuSet::MAX_CPU).ok_or_else(|| {
                format!("'{text}' is no CPU's number; numbers and ranges such as 0,2-3 are")
            })
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("'{part}' has its ends the wrong way round"));
            }
            cpus.extend(first..=last);
        }
        Ok(CpuList(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<_> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

impl CpuList {
    /// The first of these CPUs that this process may not run on.
    pub fn forbidden(&self) -> io::Result<Option<usize>> {
        let allowed = sched_getaffinity(None)?;
        Ok(self.0.iter().copied().find(|cpu| !allowed.is_set(*cpu)))
    }
}

/// How workers run; copies share the turn in which CPUs are given out.
#[derive(Clone, Debug, Default)]
pub struct Workers {
    /// Each worker is pinned to one of these, the next one in turn; without a list the scheduler
    /// places them.
    pub cpus: Option<CpuList>,
    /// How long a worker goes on looking for packets after the last one before it sleeps.
    pub poll: Duration,
    pinned: Arc<AtomicUsize>,
}

impl Workers {
    /// Workers that are placed so, and poll so long.
    pub fn new(cpus: Option<CpuList>, poll: Duration) -> Self {
        Workers {
            cpus,
            poll,
            pinned: Arc::default(),
        }
    }

    /// The CPU for one more worker.
    pub(super) fn next_cpu(&self) -> Option<usize> {
        let cpus = &self.cpus.as_ref()?.0;
        let turn = self.pinned.fetch_add(1, Ordering::Relaxed);
        cpus.get(turn.checked_rem(cpus.len())?).copied()
    }
}

/// Pins the calling thread.
pub(super) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    // It was allowed when the process started. Taken away since, it is no reason not to serve.
    if let Err(e) = sched_setaffinity(None, &set) {
        log::warn!("a worker cannot be pinned to CPU {cpu}: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        let list: CpuList = "3,0-2,7".parse().unwrap();
        assert_eq!(list.to_string(), "3,0,1,2,7");
        for bad in [
            "",
            ",",
            "1,",
            "a",
            "-1",
            "1-",
            "3-2",
            "1-2-3",
            "1024",
            "0-99999999999",
        ] {
            assert!(bad.parse::<CpuList>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus_are_given_out_in_turn_over_all_nics() {
        let workers = Workers::new("4,6".parse().ok(), Duration::ZERO);
        let other = workers.clone();
        let given = [&workers, &other, &workers].map(Workers::next_cpu);
        assert_eq!(given, [Some(4), Some(6), Some(4)]);
        assert_eq!(Workers::default().next_cpu(), None);
    }

    #[test]
    fn a_thread_is_pinned() {
        let allowed = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU)
            .find(|cpu| allowed.is_set(*cpu))
            .unwrap();
        let pinned = std::thread::spawn(move || {
            pin(cpu);
            sched_getaffinity(None).unwrap()
        });
        let pinned = pinned.join().unwrap();
        assert_eq!((pinned.count(), pinned.is_set(cpu)), (1, true));
        assert_eq!(CpuList(vec![cpu]).forbidden().unwrap(), None);
        let none = (0..CpuSet::MAX_CPU).find(|cpu| !allowed.is_set(*cpu));
        assert_eq!(
            CpuList(none.into_iter().collect()).forbidden().unwrap(),
            none
        );
    }
}
