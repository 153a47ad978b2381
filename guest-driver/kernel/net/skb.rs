// SPDX-License-Identifier: GPL-2.0

//! Socket buffers: packets.
//!
//! C header: [`include/linux/skbuff.h`](srctree/include/linux/skbuff.h)

use super::{
    Device,
    Operations,
    PollContext,
    PoolBuffer, //
};
use crate::{
    bindings,
    dma::{
        Mapper,
        Mapping,
        Segment, //
    }, //
};
use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    dma::DataDirection,
    prelude::*, //
};

/// The most pieces of a packet to be sent: its linear part and its fragments.
pub(crate) const MAX_SEGMENTS: usize = bindings::FERRONIC_MAX_SKB_FRAGS as usize + 1;

/// How many octets behind a packet in a buffer must be left for the kernel.
pub(crate) const SKB_TAIL: u32 = bindings::FERRONIC_SKB_TAIL;

/// A packet.
///
/// # Invariants
///
/// It is a valid `struct sk_buff` that is ours to free.
#[repr(transparent)]
pub(crate) struct SkBuff(NonNull<bindings::sk_buff>);

// SAFETY: Packets go from context to context.
unsafe impl Send for SkBuff {}

/// What is to be done with a packet beyond carrying it, in the terms of VIRTIO 1.3, 5.1.6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offload {
    /// VIRTIO_NET_HDR_F_ bits.
    pub(crate) flags: u8,
    /// VIRTIO_NET_HDR_GSO_ value.
    pub(crate) gso_type: u8,
    /// Payload octets of each segment.
    pub(crate) gso_size: u16,
    /// Where summing begins.
    pub(crate) csum_start: u16,
    /// Where, from there, the sum goes.
    pub(crate) csum_offset: u16,
}

impl Offload {
    /// Unpacks what shim.c has packed.
    #[inline]
    pub(super) const fn from_packed(packed: u64) -> Self {
        // CAST: Each takes its bits.
        Self {
            flags: packed as u8,
            gso_type: (packed >> 8) as u8,
            gso_size: (packed >> 16) as u16,
            csum_start: (packed >> 32) as u16,
            csum_offset: (packed >> 48) as u16,
        }
    }

    /// Packs it for shim.c.
    #[inline]
    pub(super) const fn packed(self) -> u64 {
        self.flags as u64
            | (self.gso_type as u64) << 8
            | (self.gso_size as u64) << 16
            | (self.csum_start as u64) << 32
            | (self.csum_offset as u64) << 48
    }
}

impl SkBuff {
    /// # Safety
    ///
    /// The type invariants must hold.
    #[inline]
    pub(super) unsafe fn from_raw(raw: NonNull<bindings::sk_buff>) -> Self {
        // INVARIANT: By the safety requirement.
        Self(raw)
    }

    /// Gives the packet away.
    #[inline]
    pub(super) fn into_raw(self) -> *mut bindings::sk_buff {
        ManuallyDrop::new(self).0.as_ptr()
    }

    #[inline]
    fn raw(&self) -> *mut bindings::sk_buff {
        self.0.as_ptr()
    }

    /// Its length in octets.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { (*self.raw()).len }
    }

    /// The length of its linear part.
    #[inline]
    pub(crate) fn head_len(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { (*self.raw()).len.wrapping_sub((*self.raw()).data_len) }
    }

    /// What the device is to do with it. `None` for what cannot be asked of it.
    #[inline]
    pub(crate) fn offload(&self) -> Option<Offload> {
        // SAFETY: By the type invariant.
        match unsafe { bindings::ferronic_skb_offload(self.raw()) } {
            u64::MAX => None,
            packed => Some(Offload::from_packed(packed)),
        }
    }

    /// Frees it after it was sent.
    #[inline]
    pub(crate) fn consume(self, context: PollContext<'_>) {
        // CAST: A budget is small.
        let budget = context.budget() as i32;
        // SAFETY: By the type invariant; it is given away. The context shows that a budget other
        // than 0 is that of a poll function.
        unsafe { bindings::ferronic_skb_free(self.into_raw(), budget) };
    }

    /// A frame with these octets, to be sent. May sleep.
    pub(crate) fn from_octets<T: Operations>(dev: &Device<T>, octets: &[u8]) -> Result<Self> {
        let len = u32::try_from(octets.len())?;
        // SAFETY: The octets are there; `dev` is a net device.
        let raw = unsafe { bindings::ferronic_skb_alloc(dev.raw(), octets.as_ptr().cast(), len) };
        // INVARIANT: A new packet.
        NonNull::new(raw).map(Self).ok_or(ENOMEM)
    }

    /// Has the networking core send it, through the queueing discipline. In process context.
    pub(crate) fn queue_xmit(self) {
        // SAFETY: By the type invariant; it is given away.
        unsafe { bindings::ferronic_skb_queue_xmit(self.into_raw()) };
    }

    /// Frees it after it was sent, in any context.
    pub(crate) fn consume_any(self) {
        // SAFETY: By the type invariant; it is given away. 0 stands for any context.
        unsafe { bindings::ferronic_skb_free(self.into_raw(), 0) };
    }

    /// Prepares it for the device with `header` before it. Returns its pieces' number.
    ///
    /// `maps` is where mappings are kept if `mapper` makes some; it is part of what is returned.
    /// Where it fails the packet is given back.
    #[inline]
    pub(crate) fn prepare<'a, const N: usize>(
        self,
        header: &[u8; N],
        mapper: Mapper<'a>,
        maps: Option<KBox<TxMaps<'a>>>,
        segments: &mut [Segment; MAX_SEGMENTS],
    ) -> Result<(TxBuffer<'a>, usize), Unprepared<'a>> {
        // CAST: A header is small.
        let len = N as u32;
        // SAFETY: By the type invariant.
        if unsafe { bindings::ferronic_skb_make_ready(self.raw(), len) } != 0 {
            return Err((self, maps));
        }
        // SAFETY: There are that many octets before the data, and they are this packet's own.
        unsafe {
            let place = (*self.raw()).data.sub(N).cast::<[u8; N]>();
            place.write_unaligned(*header);
        }
        let Some(mut maps) = maps else {
            // SAFETY: By the type invariant; there is room for so many segments.
            let count = unsafe {
                bindings::ferronic_skb_segments(
                    self.raw(),
                    len,
                    segments.as_mut_ptr().cast(),
                    MAX_SEGMENTS as u32,
                )
            };
            return match usize::try_from(count) {
                Ok(count) => Ok((
                    TxBuffer {
                        maps: None,
                        skb: self,
                    },
                    count,
                )),
                Err(_) => Err((self, None)),
            };
        };
        match self.map(len, mapper, &mut maps, segments) {
            Some(count) => Ok((
                TxBuffer {
                    maps: Some(maps),
                    skb: self,
                },
                count,
            )),
            None => {
                maps.clear();
                Err((self, Some(maps)))
            }
        }
    }

    /// Maps all pieces.
    fn map<'a>(
        &self,
        headroom: u32,
        mapper: Mapper<'a>,
        maps: &mut TxMaps<'a>,
        segments: &mut [Segment; MAX_SEGMENTS],
    ) -> Option<usize> {
        maps.clear();
        let len = self.head_len().checked_add(headroom)?;
        // SAFETY: By the type invariant, `headroom` octets before the data being there. The packet
        // is kept in a `TxBuffer` beside the mappings, which are dropped first.
        let mapping = unsafe {
            let start = (*self.raw()).data.sub(headroom as usize);
            mapper.map_single(NonNull::new(start)?, len, DataDirection::ToDevice)
        };
        let mut count = 0;
        let mut push = |mapping: Mapping<'a>| -> Option<()> {
            *segments.get_mut(count)? = Segment {
                addr: mapping.addr(),
                len: mapping.len(),
            };
            *maps.0.get_mut(count)? = Some(mapping);
            count += 1;
            Some(())
        };
        push(mapping.ok()?)?;
        for index in 0u32.. {
            let (mut offset, mut len) = (0, 0);
            // SAFETY: By the type invariant.
            let page = unsafe {
                bindings::ferronic_skb_frag(self.raw(), index, &raw mut offset, &raw mut len)
            };
            let Some(page) = NonNull::new(page) else {
                break;
            };
            // SAFETY: The fragment is this packet's, which is kept as above.
            let mapping = unsafe { mapper.map_page(page, offset, len, DataDirection::ToDevice) };
            push(mapping.ok()?)?;
        }
        Some(count)
    }

    /// A packet in a buffer of a page pool: `len` octets that `headroom` octets precede and at
    /// least [`SKB_TAIL`] follow. Where the pool's queue is polled. Gives the buffer back if that
    /// cannot be.
    #[inline]
    pub(crate) fn build(
        buffer: PoolBuffer,
        headroom: u32,
        len: u32,
        context: PollContext<'_>,
    ) -> Result<Self, PoolBuffer> {
        let end = u64::from(headroom) + u64::from(len) + u64::from(SKB_TAIL);
        if end > buffer.size().into() {
            return Err(buffer);
        }
        let start = buffer.start().as_ptr().cast();
        // SAFETY: By its type invariant the buffer is ours alone, and there is room for all. The
        // context shows that `napi` is being polled.
        let raw = unsafe {
            bindings::ferronic_skb_build(context.raw(), start, buffer.size(), headroom, len)
        };
        match NonNull::new(raw) {
            Some(raw) => {
                // It is the packet's now.
                let _ = buffer.into_start();
                // INVARIANT: A new packet.
                Ok(Self(raw))
            }
            None => Err(buffer),
        }
    }

    /// A packet with a copy of `len` octets at `offset` of a buffer. Where a queue is polled.
    #[inline]
    pub(crate) fn copy_from(
        buffer: &PoolBuffer,
        offset: u32,
        len: u32,
        context: PollContext<'_>,
    ) -> Option<Self> {
        if u64::from(offset) + u64::from(len) > buffer.size().into() {
            return None;
        }
        // SAFETY: By its type invariant these octets are the buffer's.
        let raw = unsafe {
            let from = buffer.start().as_ptr().add(offset as usize).cast();
            bindings::ferronic_skb_copy(context.raw(), from, len)
        };
        // INVARIANT: A new packet.
        NonNull::new(raw).map(Self)
    }

    /// Says that the checksum was found to be right.
    #[inline]
    pub(crate) fn set_checked(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::ferronic_skb_checked(self.raw()) };
    }

    /// Takes over what the sender has left to be done. Fails if that makes no sense for it.
    #[inline]
    pub(crate) fn set_offload(&mut self, offload: Offload) -> Result {
        // SAFETY: By the type invariant.
        kernel::error::to_result(unsafe {
            bindings::ferronic_skb_set_offload(self.raw(), offload.packed())
        })
    }

    /// Notes the hash of its flow; `l4` if ports are part of it.
    #[inline]
    pub(crate) fn set_hash(&mut self, hash: u32, l4: bool) {
        // SAFETY: By the type invariant.
        unsafe { bindings::ferronic_skb_set_hash(self.raw(), hash, l4) };
    }

    /// Hands a frame that was received on `queue` to the networking core.
    #[inline]
    pub(crate) fn receive(self, queue: u32, context: PollContext<'_>) {
        // SAFETY: By the type invariant; it is given away. The context shows that `napi` is being
        // polled.
        unsafe { bindings::ferronic_skb_receive(context.raw(), self.into_raw(), queue) };
    }
}

/// A packet to which buffers are added.
///
/// # Invariants
///
/// `tail` is the last part of `skb`: itself, or the last in its list of parts.
pub(crate) struct Growing {
    skb: SkBuff,
    tail: *mut bindings::sk_buff,
}

impl From<SkBuff> for Growing {
    /// Begins with a packet that was made of a page pool's buffer, by [`SkBuff::build`] or
    /// [`SkBuff::copy_from`].
    fn from(skb: SkBuff) -> Self {
        // INVARIANT: Such a packet has one part.
        Self {
            tail: skb.raw(),
            skb,
        }
    }
}

impl Growing {
    /// Adds `len` octets at `offset` of a page pool's buffer. Gives the buffer back if there is no
    /// memory.
    #[inline]
    pub(crate) fn add(
        &mut self,
        buffer: PoolBuffer,
        offset: u32,
        len: u32,
    ) -> Result<(), PoolBuffer> {
        if u64::from(offset) + u64::from(len) > buffer.size().into() {
            return Err(buffer);
        }
        let start = buffer.start().as_ptr().cast();
        let size = buffer.size();
        // SAFETY: By their type invariants; the octets are the buffer's.
        // INVARIANT: The C side changes `tail` when it adds a part.
        let added = unsafe {
            bindings::ferronic_skb_add_page(
                self.skb.raw(),
                &raw mut self.tail,
                start,
                offset,
                len,
                size,
            )
        };
        if !added {
            return Err(buffer);
        }
        // It is the packet's now.
        let _ = buffer.into_start();
        Ok(())
    }

    /// The packet, with all that was added.
    #[inline]
    pub(crate) fn finish(self) -> SkBuff {
        self.skb
    }
}

impl Drop for SkBuff {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::ferronic_skb_drop(self.raw()) };
    }
}

/// Mappings of the pieces of one packet.
pub(crate) struct TxMaps<'a>([Option<Mapping<'a>>; MAX_SEGMENTS]);

impl TxMaps<'_> {
    /// None.
    pub(crate) fn new() -> Self {
        Self([const { None }; MAX_SEGMENTS])
    }

    fn clear(&mut self) {
        for mapping in &mut self.0 {
            if mapping.take().is_none() {
                // There are none behind the first that is missing.
                break;
            }
        }
    }
}

/// A packet that could not be prepared, and what was to keep its mappings.
pub(crate) type Unprepared<'a> = (SkBuff, Option<KBox<TxMaps<'a>>>);

/// A packet that the device may read.
///
/// It must not be dropped while the device may do so.
pub(crate) struct TxBuffer<'a> {
    // Dropped first.
    maps: Option<KBox<TxMaps<'a>>>,
    skb: SkBuff,
}

impl<'a> TxBuffer<'a> {
    /// Takes it apart, when the device has sent it.
    #[inline]
    pub(crate) fn finish(self) -> (SkBuff, Option<KBox<TxMaps<'a>>>) {
        let mut maps = self.maps;
        if let Some(maps) = &mut maps {
            maps.clear();
        }
        (self.skb, maps)
    }

    /// The length of the packet.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.skb.len()
    }
}

#[kunit_tests(ferronic_offload)]
mod tests {
    use super::*;

    #[test]
    fn packing_and_unpacking_are_inverse() {
        let offload = Offload {
            flags: 1,
            gso_type: 0x81,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        assert_eq!(Offload::from_packed(offload.packed()), offload);
        assert_eq!(offload.packed(), 0x0010_0022_05a8_8101);
        assert_eq!(Offload::default().packed(), 0);
    }
}
