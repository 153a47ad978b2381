// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A virtqueue of either kind, and what the two kinds have in common.

use std::fmt;
use std::sync::Arc;

use super::memory::MemoryMap;
use super::packed::PackedRing;
use super::piece_list::PieceList;
use super::pieces::MAX_PIECES;
use super::split::SplitRing;

/// Size of a descriptor, in the ring and in an indirect table (2.7.5, 2.8.13).
pub(super) const DESC_SIZE: usize = 16;
/// `VIRTQ_DESC_F_NEXT`: the chain goes on.
pub(super) const DESC_F_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: the device may write, not read.
pub(super) const DESC_F_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`: the buffer is a table of descriptors.
pub(super) const DESC_F_INDIRECT: u16 = 4;
/// Most descriptors, and most pieces, of one chain: half of what one system call takes, so that a
/// receive queue can hold a whole chain beside those that were not large enough for a packet. It is
/// also what a chain can cost us.
pub(super) const MAX_CHAIN: u16 = (MAX_PIECES / 2) as u16;
/// The largest queue size (2.7, 2.8).
pub const MAX_SIZE: u16 = 32768;

/// Where a ring lies in guest memory and how it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Queue size: entries of the descriptor table or ring, up to 32768. For a split virtqueue a
    /// power of two.
    pub size: u16,
    /// Guest physical address of the descriptor table or ring (descriptor area).
    pub desc: u64,
    /// Guest physical address of the available ring or driver event suppression (driver area).
    pub avail: u64,
    /// Guest physical address of the used ring or device event suppression (device area).
    pub used: u64,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
}

/// Why a ring cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// Queue size is 0 or above 32768, or no power of two in a split virtqueue.
    BadSize(u16),
    /// An area is not aligned, or not inside one region of guest memory.
    BadArea(&'static str, u64),
    /// The available index ran ahead by more than the queue size.
    BadAvailIndex {
        /// What the driver wrote.
        driver: u16,
        /// Where the device is.
        device: u16,
    },
    /// A head outside the descriptor table.
    BadHead(u16),
    /// The place to go on from is outside the descriptor ring.
    BadPlace(u16),
    /// A chain that has more descriptors than the descriptor ring.
    Endless(u16),
    /// The descriptor ring does not tell where the device before us stood.
    Lost,
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingError::BadSize(size) => {
                write!(
                    f,
                    "queue size {size} is not from 1 to {MAX_SIZE}, or no power of two"
                )
            }
            RingError::BadArea(area, addr) => {
                write!(
                    f,
                    "{area} at {addr:#x} is misaligned or not in guest memory"
                )
            }
            RingError::BadAvailIndex { driver, device } => {
                write!(
                    f,
                    "available index {driver} is ahead of {device} by more than the ring"
                )
            }
            RingError::BadHead(head) => write!(f, "descriptor {head} is outside the table"),
            RingError::BadPlace(slot) => {
                write!(f, "descriptor {slot} to go on from is outside the ring")
            }
            RingError::Endless(slot) => {
                write!(f, "the chain at descriptor {slot} is longer than the ring")
            }
            RingError::Lost => write!(
                f,
                "the descriptors do not tell where the device that served it before has stopped"
            ),
        }
    }
}

impl std::error::Error for RingError {}

/// What the chain's buffers are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Read by the device: a transmit queue.
    Readable,
    /// Written by the device: a receive queue.
    Writable,
}

/// Flags that tell what kind of chain a descriptor begins.
pub(super) const KIND: u16 = DESC_F_NEXT | DESC_F_INDIRECT | DESC_F_WRITE;

impl Direction {
    /// What [`KIND`] is where one buffer of this direction is the whole chain.
    #[inline]
    pub(super) fn alone(self) -> u16 {
        match self {
            Direction::Readable => 0,
            Direction::Writable => DESC_F_WRITE,
        }
    }
}

/// A chain taken from the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Index of its first descriptor (split) or its buffer id (packed); goes back with
    /// [`Ring::push`].
    pub head: u16,
    /// Octets, or `None` when the chain breaks the rules and has no pieces.
    pub len: Option<usize>,
}

/// A chain of one buffer that was taken from the ring, and is one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct One {
    /// As in [`Chain`].
    pub head: u16,
    /// Octets: at least one.
    pub len: u32,
}

/// Takes chains from a ring: what is the same for both kinds.
pub(super) trait Take {
    /// Takes the next chain: its head (split) or id (packed), and whether all of it was taken by
    /// `to`.
    fn take(&mut self, to: &mut impl Collect) -> Result<Option<(u16, bool)>, RingError>;

    /// As [`Ring::pop_run`].
    fn pop_run(
        &mut self,
        direction: Direction,
        pieces: &mut PieceList,
        most: usize,
        took: impl FnMut(One),
    );

    /// As [`Ring::pop`].
    #[inline]
    fn pop(
        &mut self,
        direction: Direction,
        pieces: &mut PieceList,
    ) -> Result<Option<Chain>, RingError> {
        let mut to = OneWay::new(direction, pieces);
        let taken = self.take(&mut to)?;
        Ok(taken.map(|(head, whole)| to.chain(head, whole)))
    }

    /// As [`Ring::pop_both`].
    fn pop_both(
        &mut self,
        readable: &mut PieceList,
        writable: &mut PieceList,
    ) -> Result<Option<Chain>, RingError> {
        let mut both = BothWays(
            OneWay::new(Direction::Readable, readable),
            OneWay::new(Direction::Writable, writable),
        );
        let taken = self.take(&mut both)?;
        let BothWays(readable, writable) = both;
        Ok(taken.map(|(head, whole)| {
            writable.chain(head, whole);
            readable.chain(head, whole)
        }))
    }
}

/// Takes the buffers of one chain.
pub(super) trait Collect {
    /// The next buffer; `None` when the chain breaks the rules.
    fn put(&mut self, writable: bool, addr: u64, len: u32) -> Option<()>;
}

/// Collects the buffers of one direction and passes over the others.
struct OneWay<'a> {
    pieces: &'a mut PieceList,
    writable: bool,
    /// Pieces and octets that were there before.
    count: usize,
    len: usize,
}

impl<'a> OneWay<'a> {
    #[inline]
    fn new(direction: Direction, pieces: &'a mut PieceList) -> Self {
        OneWay {
            writable: direction == Direction::Writable,
            count: pieces.count(),
            len: pieces.len(),
            pieces,
        }
    }

    /// The chain that was followed to its end, if it was `whole`.
    #[inline]
    fn chain(self, head: u16, whole: bool) -> Chain {
        if !whole {
            self.pieces.truncate(self.count);
        }
        Chain {
            head,
            len: whole.then_some(self.pieces.len() - self.len),
        }
    }
}

impl Collect for OneWay<'_> {
    #[inline]
    fn put(&mut self, writable: bool, addr: u64, len: u32) -> Option<()> {
        if writable != self.writable {
            return Some(());
        }
        let gathered = self.pieces.gather(addr, len);
        let fits = self.pieces.count() - self.count <= usize::from(MAX_CHAIN);
        (gathered && fits).then_some(())
    }
}

/// Collects the buffers of both directions.
struct BothWays<'a>(OneWay<'a>, OneWay<'a>);

impl Collect for BothWays<'_> {
    fn put(&mut self, writable: bool, addr: u64, len: u32) -> Option<()> {
        self.0.put(writable, addr, len)?;
        self.1.put(writable, addr, len)
    }
}

/// A virtqueue of either kind: what [`SplitRing`] and [`PackedRing`] have in common, by the same
/// names.
#[derive(Debug)]
pub enum Ring {
    /// 2.7.
    Split(SplitRing),
    /// 2.8.
    Packed(PackedRing),
}

/// What kind of ring it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Format {
    /// `VIRTIO_F_RING_PACKED` was negotiated.
    pub packed: bool,
    /// Chains are used in batches of all that is published at a time (2.7.9, 2.8.6), of which the
    /// driver is told once and without lengths: `VIRTIO_F_IN_ORDER` was negotiated, and the device
    /// writes into no chain.
    pub batches: bool,
}

/// Where a ring goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At this available index: the device was told so, or has said so when it stopped. In a packed
    /// virtqueue bit 15 is the wrap counter.
    At(u16),
    /// At this index if nothing else is known. Where a device that is gone has stopped, a packed
    /// virtqueue, and one that is used in batches, can tell better than whoever remembers where that
    /// device has started.
    Perhaps(u16),
}

macro_rules! either {
    ($self:expr, $ring:ident => $call:expr) => {
        match $self {
            Ring::Split($ring) => $call,
            Ring::Packed($ring) => $call,
        }
    };
}

impl Ring {
    /// The ring at `layout`.
    pub fn new(
        format: Format,
        map: &Arc<MemoryMap>,
        layout: Layout,
        start: Start,
    ) -> Result<Self, RingError> {
        let Format { packed, batches } = format;
        Ok(match (packed, start) {
            (false, Start::Perhaps(_)) if batches => Ring::Split(SplitRing::recover(map, layout)?),
            (false, Start::At(next_avail) | Start::Perhaps(next_avail)) => {
                Ring::Split(SplitRing::new(map, layout, next_avail, batches)?)
            }
            (true, Start::At(place)) => Ring::Packed(PackedRing::new(map, layout, place, batches)?),
            (true, Start::Perhaps(_)) => Ring::Packed(PackedRing::recover(map, layout, batches)?),
        })
    }

    /// Queue size.
    pub fn size(&self) -> u16 {
        either!(self, ring => ring.size())
    }

    /// The available index at which this or another device goes on: see [`Start::At`].
    pub fn next_avail(&self) -> u16 {
        either!(self, ring => ring.next_avail())
    }

    /// Takes the next chain and appends its pieces to `pieces`. A chain that breaks the rules has
    /// no pieces and must be pushed back like any other.
    #[inline]
    pub fn pop(
        &mut self,
        direction: Direction,
        pieces: &mut PieceList,
    ) -> Result<Option<Chain>, RingError> {
        either!(self, ring => ring.pop(direction, pieces))
    }

    /// Takes chains that are one buffer of this direction, and one piece, as nearly all are: up to
    /// `most`, and none from the first on that is anything else, which is for [`Ring::pop`]. `took`
    /// hears of each in order, behind its piece.
    #[inline]
    pub fn pop_run(
        &mut self,
        direction: Direction,
        pieces: &mut PieceList,
        most: usize,
        took: impl FnMut(One),
    ) {
        either!(self, ring => ring.pop_run(direction, pieces, most, took));
    }

    /// As `pop`, of a chain with something to read and room to write into; its length is what there
    /// is to read.
    pub fn pop_both(
        &mut self,
        readable: &mut PieceList,
        writable: &mut PieceList,
    ) -> Result<Option<Chain>, RingError> {
        either!(self, ring => ring.pop_both(readable, writable))
    }

    /// Gives back the last `n` chains that were popped and not pushed; they come again.
    pub fn rewind(&mut self, n: u16) {
        either!(self, ring => ring.rewind(n));
    }

    /// Uses a chain, of which `written` octets were written: none in a ring that is used in
    /// [batches](Format::batches). The driver sees it after [`Ring::publish`].
    #[inline]
    pub fn push(&mut self, head: u16, written: u32) {
        either!(self, ring => ring.push(head, written));
    }

    /// Shows the driver all that was pushed.
    #[inline]
    pub fn publish(&mut self) {
        either!(self, ring => ring.publish());
    }

    /// Entries of the ring that were published since the last decision on an interrupt.
    #[inline]
    pub fn undecided(&self) -> u16 {
        either!(self, ring => ring.undecided())
    }

    /// Whether the driver wants an interrupt for what was published since the last call. `None`:
    /// nothing was.
    pub fn interrupt_wanted(&mut self) -> Option<bool> {
        either!(self, ring => ring.interrupt_wanted())
    }

    /// Asks the driver not to notify while we look at the ring ourselves.
    #[inline]
    pub fn disarm(&mut self) {
        either!(self, ring => ring.disarm());
    }

    /// After `pop` has found nothing: asks the driver to notify when it makes more available.
    /// `true` when it already has: the caller must look again, no notification may come.
    pub fn arm(&mut self) -> Result<bool, RingError> {
        either!(self, ring => ring.arm())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Takes up to `most` chains, in `runs` where they are such as come in runs.
    pub fn take(
        ring: &mut impl Take,
        direction: Direction,
        pieces: &mut PieceList,
        most: usize,
        runs: bool,
    ) -> Result<Vec<Chain>, RingError> {
        let mut chains = Vec::new();
        while chains.len() < most {
            let before = chains.len();
            if runs {
                ring.pop_run(direction, pieces, most - before, |One { head, len }| {
                    let len = Some(len as usize);
                    chains.push(Chain { head, len });
                });
                assert!(chains.len() <= most);
            }
            if chains.len() == before {
                match ring.pop(direction, pieces)? {
                    Some(chain) => chains.push(chain),
                    None => break,
                }
            }
        }
        Ok(chains)
    }
}
