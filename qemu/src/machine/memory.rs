// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's memory, as its devices see it.
//!
//! It is a memfd, which QEMU shares with vhost-user backends; here with the lab, so that a test can
//! do what no device at hand does: write nonsense.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

/// What QEMU calls the file.
const NAME: &str = "/memfd:memory-backend-memfd";

/// A guest's memory. Addresses are physical ones below its size, of which the lab's guests have so
/// little that nothing is in between.
#[derive(Debug)]
pub struct GuestMemory(File);

impl GuestMemory {
    /// That of the QEMU with this process identifier.
    pub fn of(qemu: u32) -> Result<Self> {
        let directory = format!("/proc/{qemu}/fd");
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot list {directory}"))?;
        let path = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with(NAME))
            })
            .with_context(|| format!("QEMU has no file {NAME} open"))?;
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(GuestMemory(file))
    }

    /// Reads what is at `address`.
    pub fn read<const N: usize>(&self, address: u64) -> Result<[u8; N]> {
        let mut octets = [0; N];
        self.0
            .read_exact_at(&mut octets, address)
            .with_context(|| format!("cannot read {N} octets at {address:#x} of the guest"))?;
        Ok(octets)
    }

    /// A number of 16 bits at `address`.
    pub fn read_u16(&self, address: u64) -> Result<u16> {
        self.read(address).map(u16::from_le_bytes)
    }

    /// Writes to `address`.
    pub fn write(&self, address: u64, octets: &[u8]) -> Result<()> {
        self.0
            .write_all_at(octets, address)
            .with_context(|| format!("cannot write at {address:#x} of the guest"))
    }
}
