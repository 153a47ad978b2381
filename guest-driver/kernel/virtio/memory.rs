// SPDX-License-Identifier: GPL-2.0

//! What both layouts of rings put into memory that the device can reach.

use super::ring::Refused;
use crate::dma::Segment;
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::{
        Coherent,
        CoherentView,
        DmaAddress, //
    },
    io::{
        io_project,
        Io, //
    },
    prelude::*,
    sync::barrier::{
        mb,
        smp_mb,
        Full, //
    },
    transmute::{
        AsBytes,
        FromBytes, //
    }, //
};

/// A descriptor (VIRTIO 1.3, 2.7.5 and 2.8.13), little-endian.
///
/// In two words, since so it is written in two stores. In both layouts the second has the length
/// in its low half; the other two fields change places.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) rest: u64,
}

// SAFETY: All bit patterns are values: the fields are integers and there is no padding.
unsafe impl FromBytes for Descriptor {}
// SAFETY: The fields are integers and there is no padding.
unsafe impl AsBytes for Descriptor {}

/// VIRTQ_DESC_F_NEXT: the chain goes on.
pub(super) const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: for the device to write.
pub(super) const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT: not a piece, but a table of pieces.
pub(super) const INDIRECT: u16 = 4;

/// The second word of a descriptor in the split layout.
#[inline(always)]
pub(super) const fn split_rest(len: u32, flags: u16, next: u16) -> u64 {
    len as u64 | (flags as u64) << 32 | (next as u64) << 48
}

/// The second word of a descriptor in the packed layout.
#[inline(always)]
pub(super) const fn packed_rest(len: u32, id: u16, flags: u16) -> u64 {
    len as u64 | (id as u64) << 32 | (flags as u64) << 48
}

/// Writes both words of the descriptor at `place`.
#[inline(always)]
pub(super) fn write_descriptor(
    table: CoherentView<'_, [Descriptor]>,
    place: usize,
    addr: DmaAddress,
    rest: u64,
) -> Result {
    let descriptor = io_project!(table, [try: place]);
    io_project!(descriptor, .addr).copy_write(u64::to_le(addr));
    io_project!(descriptor, .rest).copy_write(rest.to_le());
    Ok(())
}

/// Checks a piece of a buffer, and adds what of it the device can write to `room`.
#[inline(always)]
pub(super) fn check(segment: &Segment, flags: u16, room: &mut u32) -> Result<(), Refused> {
    if segment.len == 0 {
        return Err(Refused::Empty);
    }
    if flags & WRITE != 0 {
        *room = room.checked_add(segment.len).ok_or(Refused::TooLong)?;
    }
    Ok(())
}

/// Tables of descriptors for chains that take but one descriptor of the ring (2.7.5.3, 2.8.7): one
/// for each descriptor, all made beforehand.
pub(super) struct Tables {
    /// Each a number of tables that is a power of two; the last may have fewer.
    pub(super) chunks: KVec<Coherent<[Descriptor]>>,
    /// That power.
    shift: u32,
    /// Descriptors in a table.
    length: u16,
}

impl Tables {
    /// More is asked for in one piece only for a single table.
    const CHUNK_OCTETS: usize = 32 * 1024;

    pub(super) fn new(dev: &Device<Bound>, count: u16, length: u16) -> Result<Self> {
        let octets = usize::from(length) * size_of::<Descriptor>();
        let shift = (Self::CHUNK_OCTETS / octets.max(1)).max(1).ilog2();
        let per_chunk = 1usize << shift;
        let mut chunks = KVec::new();
        let mut left = usize::from(count);
        while left > 0 {
            let tables = left.min(per_chunk);
            let descriptors = tables * usize::from(length);
            chunks.push(
                Coherent::zeroed_slice(dev, descriptors, GFP_KERNEL)?,
                GFP_KERNEL,
            )?;
            left -= tables;
        }
        Ok(Self {
            chunks,
            shift,
            length,
        })
    }

    /// The longest chain that a table can hold.
    #[inline(always)]
    pub(super) fn length(&self) -> usize {
        self.length.into()
    }

    /// The first `count` descriptors of table `index`.
    #[inline(always)]
    fn table(&self, index: u16, count: usize) -> Result<CoherentView<'_, [Descriptor]>> {
        let chunk = self
            .chunks
            .get(usize::from(index) >> self.shift)
            .ok_or(EINVAL)?;
        let table = usize::from(index) & ((1 << self.shift) - 1);
        let first = table * usize::from(self.length);
        Ok(io_project!(chunk, [try: first..first + count]))
    }

    /// Writes the pieces, `count` together, to table `index`. `rest` makes the second word of a
    /// descriptor from its length, its flags but for [`NEXT`], its place and whether it is the
    /// last.
    ///
    /// Returns the table as a piece, and how many octets of its pieces the device can write.
    #[inline(always)]
    pub(super) fn write(
        &self,
        index: u16,
        count: usize,
        out: &[Segment],
        input: &[Segment],
        rest: impl Fn(u32, u16, usize, bool) -> u64,
    ) -> Result<(Segment, u32), Refused> {
        let table = self.table(index, count).map_err(|_| Refused::Broken)?;
        let mut room = 0;
        let mut at = 0usize;
        let mut write = |segment: &Segment, flags: u16| -> Result<(), Refused> {
            check(segment, flags, &mut room)?;
            let place = at;
            at = at.wrapping_add(1);
            let rest = rest(segment.len, flags, place, at == count);
            write_descriptor(table, place, segment.addr, rest).map_err(|_| Refused::Broken)
        };
        for segment in out {
            write(segment, 0)?;
        }
        for segment in input {
            write(segment, WRITE)?;
        }
        let whole = Segment {
            addr: table.dma_address(),
            // CAST: A table has fewer than 65536 descriptors of 16 octets.
            len: (count * size_of::<Descriptor>()) as u32,
        };
        Ok((whole, room))
    }
}

/// Orders everything before against everything after, for the other side too.
///
/// `order_platform`: the other side is hardware, for which what orders processors is not enough.
#[inline(always)]
pub(super) fn full_barrier(order_platform: bool) {
    if order_platform || cfg!(not(CONFIG_SMP)) {
        // A kernel for one processor may run beside a device on another: its barriers between
        // processors would be too weak.
        mb(Full);
    } else {
        smp_mb(Full);
    }
}
