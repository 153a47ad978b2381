// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory that is shared with a backend, as a guest's is.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{
    AtomicInteger, ByteValued, FileOffset, MmapRegion, VolatileArrayRef, VolatileMemory,
    VolatileSlice,
};

/// Where the guest would see its first octet. Not 0, which a backend may take for no address.
const GUEST_BASE: u64 = 1 << 30;

/// A memfd, mapped.
#[derive(Debug)]
pub struct Memory {
    region: MmapRegion,
    file: File,
}

impl Memory {
    /// So many octets of zeros, all of them there: no page is first touched while something is measured.
    pub fn new(size: usize) -> Result<Self> {
        let memfd = memfd_create("ferronic-load", MemfdFlags::CLOEXEC).context("no memfd")?;
        ftruncate(&memfd, size as u64).context("cannot size a memfd")?;
        let file = File::from(memfd);
        let offset = FileOffset::new(file.try_clone()?, 0);
        let region = MmapRegion::from_file(offset, size).context("cannot map a memfd")?;
        let memory = Memory { region, file };
        let all = memory.slice(0, size)?;
        let zeros = [0u8; 4096];
        for page in (0..size).step_by(zeros.len()) {
            all.offset(page)?.copy_from(&zeros);
        }
        Ok(memory)
    }

    /// Octets from `at` on.
    pub fn slice(&self, at: usize, len: usize) -> Result<VolatileSlice<'_>> {
        self.region
            .get_slice(at, len)
            .with_context(|| format!("{len} octets at {at:#x} are not in the shared memory"))
    }

    /// So many values from `at` on.
    pub fn array<T: ByteValued>(&self, at: usize, count: usize) -> Result<VolatileArrayRef<'_, T>> {
        self.region
            .get_array_ref(at, count)
            .with_context(|| format!("{count} values at {at:#x} are not in the shared memory"))
    }

    /// A value that is written and read as a whole.
    #[inline]
    pub fn atomic<T: AtomicInteger>(&self, at: usize) -> Result<&T> {
        match self.region.get_atomic_ref(at) {
            Ok(value) => Ok(value),
            Err(e) => bail!("no value at {at:#x} of the shared memory: {e}"),
        }
    }

    /// The guest's address of an offset.
    pub fn guest(&self, at: usize) -> u64 {
        GUEST_BASE + at as u64
    }

    /// The frontend's own address of an offset, which is what the protocol has rings at.
    pub fn user(&self, at: usize) -> u64 {
        self.region.as_ptr().addr() as u64 + at as u64
    }

    /// How a backend is told.
    pub fn info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_BASE,
            memory_size: self.region.size() as u64,
            userspace_addr: self.user(0),
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }
}
