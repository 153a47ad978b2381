// SPDX-License-Identifier: Apache-2.0 OR MIT
//! DPDK's vhost library, in DPDK's own `testpmd`: what comes in at a port goes out at the same, or at
//! the other.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::stage::Processors;
use crate::host::tail;
use crate::sandbox::tool::ToolRoot;

/// How long it may take to listen.
const START_LIMIT: Duration = Duration::from_secs(30);
/// MiB of memory that it has.
const MEMORY: u64 = 512;
/// How many of the kernel's huge pages are to be had.
const FREE_HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
/// Octets of a packet buffer that are not for the packet (`RTE_PKTMBUF_HEADROOM`).
const HEADROOM: usize = 128;

/// How ports are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One, with itself.
    Loop,
    /// Two, with each other.
    Pair,
}

impl Topology {
    /// How many ports there are.
    pub fn ports(self) -> usize {
        match self {
            Topology::Loop => 1,
            Topology::Pair => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Topology::Loop => "loop",
            Topology::Pair => "paired",
        }
    }
}

/// A running testpmd. It ends when dropped.
#[derive(Debug)]
pub struct Testpmd {
    process: Child,
}

impl Testpmd {
    /// Starts one that listens at these sockets, for packets of up to so many octets, and waits until
    /// it listens.
    pub fn start(
        root: &ToolRoot,
        processors: Processors,
        topology: Topology,
        sockets: &[PathBuf],
        largest: usize,
        log: &Path,
    ) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = command(root, processors, topology, sockets, largest);
        let process = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot run dpdk-testpmd")?;
        let mut testpmd = Testpmd { process };
        let deadline = Instant::now() + START_LIMIT;
        // Looked for, not connected to: a connection is a frontend. What it says stays in its buffer.
        while !sockets.iter().all(|socket| socket.exists()) {
            let ended = testpmd.process.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let how = ended.map_or("does not listen".to_owned(), |s| format!("ended with {s}"));
                let said = fs::read(log).unwrap_or_default();
                bail!(
                    "dpdk-testpmd {how}; it said ({}):\n{}",
                    log.display(),
                    tail(&said)
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(testpmd)
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// How one is started that listens at these sockets, for packets of up to so many octets.
pub fn command(
    root: &ToolRoot,
    processors: Processors,
    topology: Topology,
    sockets: &[PathBuf],
    largest: usize,
) -> Command {
    let mut command = root.command("dpdk-testpmd");
    let Processors { device, generator } = processors;
    // The first lcore only waits for the end of its input.
    command.arg(format!("--lcores=0@{generator},1@{device}"));
    command.args(["--no-pci", "--no-telemetry"]);
    command.args(if has_huge_pages() {
        &["--in-memory", "--single-file-segments"][..]
    } else {
        &["--no-huge", "--no-shconf"]
    });
    command.arg("-m").arg(MEMORY.to_string());
    for (number, socket) in sockets.iter().enumerate() {
        command.arg(format!(
            "--vdev=net_vhost{number},iface={},queues=1",
            socket.display()
        ));
    }
    command.args(["--", "--forward-mode=io", "--nb-cores=1"]);
    command.arg(format!("--port-topology={}", topology.name()));
    // A packet in one buffer, if that is more than the usual; and no more buffers than there is
    // memory for.
    let buffer = (largest + HEADROOM).next_multiple_of(64).max(2176);
    command.arg(format!("--mbuf-size={buffer}"));
    command.arg(format!(
        "--total-num-mbufs={}",
        if buffer > 4096 { 2048 } else { 16384 }
    ));
    // Its end would end testpmd.
    command.stdin(Stdio::piped());
    command
}

/// Whether there are huge pages for it.
pub fn has_huge_pages() -> bool {
    let text = fs::read_to_string(FREE_HUGE_PAGES).unwrap_or_default();
    text.trim()
        .parse::<u64>()
        .is_ok_and(|pages| 2 * pages >= MEMORY)
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
