// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is needed late is made beside what comes first.
//!
//! Guests leave half of a small host idle, and the debug kernel takes as long to build as the tests
//! that come before those that need it. So the lab calls itself a second time, to build in what the
//! first leaves of the processors. Who needs what is built waits for its lock; see [`crate::cache`].

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group, setpriority_process};

/// The lowest priority.
const NICE: i32 = 19;

/// A lab that makes whatever is missing. It is ended when dropped, with all that it has started.
#[derive(Debug)]
pub struct Meanwhile {
    lab: Child,
}

impl Meanwhile {
    /// Starts it, with a log of its own in the directory of logs.
    pub fn prepare(logs: &Path) -> Result<Self> {
        let path = logs.join("prepare.log");
        let log =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let lab = Command::new("/proc/self/exe")
            .arg("prepare")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("cannot start a second lab")?;
        let meanwhile = Meanwhile { lab };
        // All that it starts inherits this.
        setpriority_process(Some(meanwhile.group()), NICE)
            .context("cannot lower a process's priority")?;
        Ok(meanwhile)
    }

    fn group(&self) -> Pid {
        Pid::from_child(&self.lab)
    }
}

impl Drop for Meanwhile {
    fn drop(&mut self) {
        // Fails only if there is nobody left.
        let _ = kill_process_group(self.group(), Signal::KILL);
        let _ = self.lab.wait();
    }
}
