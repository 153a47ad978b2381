// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where back-ends are measured without a guest: two processors, one for the back-end and one for what
//! drives it, and back-ends of ours and of others.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::testpmd::{Testpmd, Topology};
use crate::artefacts::dpdk;
use crate::backend::{Backend, Launch};
use crate::cache::Cache;
use crate::sandbox::net::Run;
use crate::sandbox::tool::ToolRoot;

/// Processors.
#[derive(Debug, Clone, Copy)]
pub struct Processors {
    /// The back-end's.
    pub device: usize,
    /// That of what drives it.
    pub generator: usize,
}

/// A run's own place for back-ends.
#[derive(Debug)]
pub struct Stage {
    run: Run,
    ferronic: PathBuf,
    /// DPDK, where it is.
    pub dpdk: Option<ToolRoot>,
    /// The two processors.
    pub processors: Processors,
    names: AtomicU32,
}

/// A back-end that runs, with one NIC or two.
#[derive(Debug)]
pub struct Actor {
    /// Where frontends plug in.
    pub sockets: Vec<PathBuf>,
    process: Process,
}

#[derive(Debug)]
enum Process {
    Ferronic(Backend),
    Testpmd(Testpmd),
}

impl Stage {
    /// A stage for a run.
    pub fn new(run: Run, ferronic: PathBuf) -> Result<Self> {
        let allowed = sched_getaffinity(None).context("cannot ask which processors there are")?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let (Some(device), Some(generator)) = (cpus.next(), cpus.next()) else {
            bail!("this bench needs two processors: one for the back-end, one for what drives it");
        };
        let cache = Cache::open()?;
        Ok(Stage {
            run,
            ferronic,
            dpdk: dpdk::find(&cache),
            processors: Processors { device, generator },
            names: AtomicU32::new(0),
        })
    }

    fn path(&self, dir: &Path, name: &str) -> PathBuf {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        dir.join(format!("stage-{number}.{name}"))
    }

    fn socket(&self) -> PathBuf {
        self.path(&self.run.dir, "sock")
    }

    /// `ferronic serve` with its worker on the device's processor: one NIC on a loopback, or two on a
    /// switch.
    pub fn ferronic(&self, topology: Topology, extra: &[&str]) -> Result<Actor> {
        let control = self.path(&self.run.dir, "ctl");
        let sockets: Vec<_> = (0..topology.ports()).map(|_| self.socket()).collect();
        let uplink = match topology {
            Topology::Loop => "loopback",
            Topology::Pair => "switch",
        };
        let cpu = self.processors.device.to_string();
        let mut arguments = vec!["serve".to_owned()];
        let mut add =
            |flag: &str, value: &str| arguments.extend([flag.to_owned(), value.to_owned()]);
        add("--control", &control.display().to_string());
        add("--uplink", uplink);
        add("--cpus", &cpu);
        for socket in &sockets {
            add("--socket-path", &socket.display().to_string());
        }
        arguments.extend(extra.iter().map(|word| (*word).to_owned()));
        let backend = Backend::launch(Launch {
            binary: self.ferronic.clone(),
            arguments,
            socket: sockets.first().cloned().unwrap_or_default(),
            control,
            log: self.path(&self.run.logs, "backend.log"),
            port: None,
        })?;
        Ok(Actor {
            sockets,
            process: Process::Ferronic(backend),
        })
    }

    /// testpmd with ports of `net_vhost`, forwarding on the device's processor.
    pub fn testpmd(&self, topology: Topology, largest: usize) -> Result<Actor> {
        let root = self.dpdk.as_ref().context("DPDK is not there")?;
        let sockets: Vec<_> = (0..topology.ports()).map(|_| self.socket()).collect();
        let log = self.path(&self.run.logs, "testpmd.log");
        let testpmd = Testpmd::start(root, self.processors, topology, &sockets, largest, &log)?;
        Ok(Actor {
            sockets,
            process: Process::Testpmd(testpmd),
        })
    }

    /// Does something in a thread of its own that has the generator's processor, or the device's.
    pub fn on<T: Send>(&self, cpu: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let pinned = || {
            let mut set = CpuSet::new();
            set.set(cpu);
            sched_setaffinity(None, &set)
                .with_context(|| format!("cannot have processor {cpu} for a thread"))?;
            work()
        };
        thread::scope(|scope| scope.spawn(pinned).join())
            .unwrap_or_else(|_| Err(anyhow!("a thread of the bench has panicked")))
    }
}

impl Actor {
    /// Nanoseconds for which its threads have had a processor.
    pub fn processor_time(&self) -> Result<u64> {
        let pid = match &self.process {
            Process::Ferronic(backend) => backend.pid(),
            Process::Testpmd(testpmd) => testpmd.pid(),
        };
        let tasks = format!("/proc/{pid}/task");
        let what = || format!("cannot read the processor time of process {pid}");
        let mut sum = 0;
        for task in fs::read_dir(&tasks).with_context(what)? {
            let text = fs::read_to_string(task?.path().join("schedstat")).with_context(what)?;
            let time = text.split(' ').next().and_then(|word| word.parse().ok());
            sum += time.unwrap_or(0);
        }
        Ok(sum)
    }
}
