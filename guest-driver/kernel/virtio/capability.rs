// SPDX-License-Identifier: GPL-2.0

//! Where a device says its registers are (VIRTIO 1.3, 4.1.4).
//!
//! The registers lie in windows of BARs, and a vendor-specific PCI capability describes each
//! window. [`walk`] reads the list of capabilities. It touches no device but through
//! [`ConfigSpace`], and takes every value for hostile: it reads nothing beyond the 256 octets of
//! the configuration space, ends on lists that loop, and returns only windows that lie in their
//! BAR.

use kernel::prelude::*;

/// What [`walk`] needs to know of a PCI function.
pub(super) trait ConfigSpace {
    /// Reads one octet of the configuration space.
    fn read8(&self, offset: u8) -> Option<u8>;

    /// Length of memory BAR `index` (0 to 5) in octets; 0 for one that is not there or is not
    /// memory.
    fn bar_length(&self, index: u8) -> u64;
}

/// A range of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// Which BAR, 0 to 5.
    pub(super) bar: u8,
    /// The first octet's offset in the BAR.
    pub(super) offset: u32,
    /// Length in octets.
    pub(super) length: u32,
}

/// The structures of a virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Structures {
    /// The common configuration structure (4.1.4.3).
    pub(super) common: Range,
    /// Where queues are notified (4.1.4.4).
    pub(super) notify: Range,
    /// By this the notification offset of a queue is multiplied.
    pub(super) notify_off_multiplier: u32,
    /// The interrupt status (4.1.4.5).
    pub(super) isr: Range,
    /// The configuration of the device's type (4.1.4.6), if it has any.
    pub(super) device: Option<Range>,
}

/// A structure without which a device cannot be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// The function has no list of capabilities, or its configuration space cannot be read.
    Capabilities,
    /// There is no usable common configuration structure.
    Common,
    /// There is no usable notification structure.
    Notify,
    /// There is no usable interrupt status.
    Isr,
}

impl Missing {
    /// What is missing, in words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Missing::Capabilities => "list of capabilities",
            Missing::Common => "common configuration structure",
            Missing::Notify => "notification structure",
            Missing::Isr => "interrupt status structure",
        }
    }
}

/// PCI_STATUS.
const STATUS: u8 = 0x06;
/// PCI_STATUS_CAP_LIST.
const STATUS_CAP_LIST: u8 = 1 << 4;
/// PCI_CAPABILITY_LIST.
const FIRST: u8 = 0x34;
/// Where the header ends: no capability begins before.
const HEADER_END: u8 = 0x40;
/// PCI_CAP_ID_VNDR.
const VENDOR_SPECIFIC: u8 = 0x09;
/// So many capabilities of four octets fit behind the header; a longer list is a loop.
const MAX_CAPABILITIES: usize = (256 - HEADER_END as usize) / 4;

// cfg_type (4.1.4).
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;

/// Length of struct virtio_pci_cap.
const CAP_LEN: u8 = 16;
/// Length of struct virtio_pci_notify_cap.
const NOTIFY_CAP_LEN: u8 = 20;
/// The common configuration structure of VIRTIO 1.0; later fields came with features.
pub(super) const COMMON_MIN_LENGTH: u32 = 56;

/// Finds the structures of a device.
///
/// Of several structures of a kind, the first that can be used is taken (4.1.4.1).
pub(super) fn walk(space: &impl ConfigSpace) -> Result<Structures, Missing> {
    let mut common = None;
    let mut notify = None;
    let mut isr = None;
    let mut device = None;

    let status = space.read8(STATUS).ok_or(Missing::Capabilities)?;
    // All ones: the function is gone.
    if status & STATUS_CAP_LIST == 0 || status == u8::MAX {
        return Err(Missing::Capabilities);
    }
    let mut position = space.read8(FIRST).ok_or(Missing::Capabilities)?;
    for _ in 0..MAX_CAPABILITIES {
        // The two low bits are reserved (PCI Local Bus Specification 3.0, 6.7).
        position &= !3;
        if position < HEADER_END {
            break;
        }
        let Some((id, next)) = read_header(space, position) else {
            break;
        };
        if id == VENDOR_SPECIFIC {
            if let Some(capability) = Capability::read(space, position) {
                let range = capability.range;
                match capability.cfg_type {
                    COMMON_CFG if common.is_none() => {
                        common = usable(space, range, COMMON_MIN_LENGTH, 4);
                    }
                    NOTIFY_CFG if notify.is_none() => {
                        notify = capability
                            .read_multiplier(space)
                            .and_then(|m| Some((usable(space, range, 2, 2)?, m)));
                    }
                    ISR_CFG if isr.is_none() => isr = usable(space, range, 1, 1),
                    DEVICE_CFG if device.is_none() => device = usable(space, range, 1, 4),
                    // A kind we have already, do not need, or do not know (4.1.4.1: "MUST ignore").
                    _ => {}
                }
            }
        }
        position = next;
    }

    let (notify, notify_off_multiplier) = notify.ok_or(Missing::Notify)?;
    Ok(Structures {
        common: common.ok_or(Missing::Common)?,
        notify,
        notify_off_multiplier,
        isr: isr.ok_or(Missing::Isr)?,
        device,
    })
}

/// The identifier of the capability at `position`, and where the next is.
fn read_header(space: &impl ConfigSpace, position: u8) -> Option<(u8, u8)> {
    Some((
        space.read8(position)?,
        space.read8(position.checked_add(1)?)?,
    ))
}

/// A virtio capability, as the device wrote it.
struct Capability {
    position: u8,
    cap_len: u8,
    cfg_type: u8,
    range: Range,
}

impl Capability {
    /// Reads struct virtio_pci_cap; `None` if it is cut short.
    fn read(space: &impl ConfigSpace, position: u8) -> Option<Self> {
        let octet = |at: u8| space.read8(position.checked_add(at)?);
        let cap_len = octet(2)?;
        if cap_len < CAP_LEN {
            return None;
        }
        Some(Self {
            position,
            cap_len,
            cfg_type: octet(3)?,
            range: Range {
                bar: octet(4)?,
                offset: read_le32(space, position.checked_add(8)?)?,
                length: read_le32(space, position.checked_add(12)?)?,
            },
        })
    }

    /// Reads notify_off_multiplier, which follows in a notification capability.
    fn read_multiplier(&self, space: &impl ConfigSpace) -> Option<u32> {
        if self.cap_len < NOTIFY_CAP_LEN {
            return None;
        }
        read_le32(space, self.position.checked_add(CAP_LEN)?)
    }
}

fn read_le32(space: &impl ConfigSpace, position: u8) -> Option<u32> {
    let octet = |at: u8| space.read8(position.checked_add(at)?);
    Some(u32::from_le_bytes([
        octet(0)?,
        octet(1)?,
        octet(2)?,
        octet(3)?,
    ]))
}

/// Returns `range` if it lies in a memory BAR, holds `min_length` octets and begins at a multiple
/// of `align`.
fn usable(space: &impl ConfigSpace, range: Range, min_length: u32, align: u32) -> Option<Range> {
    // Other values of bar are reserved (4.1.4).
    if range.bar > 5 || range.length < min_length || !range.offset.is_multiple_of(align) {
        return None;
    }
    let end = u64::from(range.offset) + u64::from(range.length);
    (end <= space.bar_length(range.bar)).then_some(range)
}

#[kunit_tests(ferronic_capabilities)]
mod tests {
    use super::*;

    /// A configuration space made up octet by octet, with BARs of given lengths.
    struct Space {
        octets: [u8; 256],
        bars: [u64; 6],
        end: usize,
        last: usize,
    }

    impl ConfigSpace for Space {
        fn read8(&self, offset: u8) -> Option<u8> {
            self.octets.get(usize::from(offset)).copied()
        }

        fn bar_length(&self, index: u8) -> u64 {
            // An index that `walk` must not ask for is answered invitingly.
            *self.bars.get(usize::from(index)).unwrap_or(&u64::MAX)
        }
    }

    impl Space {
        fn new() -> Self {
            let mut octets = [0; 256];
            octets[0x06] = 0x10;
            Space {
                octets,
                bars: [0, 0x1000, 0, 0, 0x4000, 0],
                end: 0x40,
                last: 0x34,
            }
        }

        /// Appends a capability and links it in. Returns where it is.
        fn add(&mut self, id: u8, body: &[u8]) -> usize {
            let at = self.end;
            self.octets[self.last] = at as u8;
            self.octets[at] = id;
            self.octets[at + 1] = 0;
            self.octets[at + 2..at + 2 + body.len()].copy_from_slice(body);
            self.last = at + 1;
            self.end = (at + 2 + body.len() + 3) & !3;
            at
        }

        fn add_virtio(&mut self, cfg_type: u8, bar: u8, offset: u32, length: u32) -> usize {
            let mut body = [0; 14];
            body[0] = 16;
            body[1] = cfg_type;
            body[2] = bar;
            body[6..10].copy_from_slice(&offset.to_le_bytes());
            body[10..14].copy_from_slice(&length.to_le_bytes());
            self.add(9, &body)
        }

        fn add_notify(&mut self, bar: u8, offset: u32, length: u32, multiplier: u32) -> usize {
            let mut body = [0; 18];
            body[0] = 20;
            body[1] = 2;
            body[2] = bar;
            body[6..10].copy_from_slice(&offset.to_le_bytes());
            body[10..14].copy_from_slice(&length.to_le_bytes());
            body[14..18].copy_from_slice(&multiplier.to_le_bytes());
            self.add(9, &body)
        }

        /// What a well-behaved device has, less the structures for which `leave` says so.
        fn usual(leave: impl Fn(u8) -> bool) -> Self {
            let mut space = Space::new();
            space.add(0x11, &[0; 10]);
            if !leave(1) {
                space.add_virtio(1, 4, 0, 0x1000);
            }
            if !leave(3) {
                space.add_virtio(3, 4, 0x1000, 0x1000);
            }
            if !leave(4) {
                space.add_virtio(4, 4, 0x2000, 0x1000);
            }
            if !leave(2) {
                space.add_notify(4, 0x3000, 0x1000, 4);
            }
            space
        }
    }

    fn range(bar: u8, offset: u32, length: u32) -> Range {
        Range {
            bar,
            offset,
            length,
        }
    }

    #[test]
    fn finds_all_structures() {
        let expected = Structures {
            common: range(4, 0, 0x1000),
            notify: range(4, 0x3000, 0x1000),
            notify_off_multiplier: 4,
            isr: range(4, 0x1000, 0x1000),
            device: Some(range(4, 0x2000, 0x1000)),
        };
        assert_eq!(walk(&Space::usual(|_| false)), Ok(expected));
    }

    #[test]
    fn says_which_structure_is_missing() {
        assert_eq!(walk(&Space::usual(|t| t == 1)), Err(Missing::Common));
        assert_eq!(walk(&Space::usual(|t| t == 2)), Err(Missing::Notify));
        assert_eq!(walk(&Space::usual(|t| t == 3)), Err(Missing::Isr));
        let without_device = walk(&Space::usual(|t| t == 4));
        assert!(without_device.is_ok_and(|found| found.device.is_none()));
    }

    #[test]
    fn a_function_without_list_has_nothing() {
        let mut space = Space::usual(|_| false);
        space.octets[0x06] = 0;
        assert_eq!(walk(&space), Err(Missing::Capabilities));
    }

    #[test]
    fn a_function_that_is_gone_has_nothing() {
        let mut space = Space::new();
        space.octets = [0xff; 256];
        assert_eq!(walk(&space), Err(Missing::Capabilities));
    }

    #[test]
    fn a_list_that_loops_ends() {
        let mut space = Space::usual(|_| false);
        space.octets[space.last] = 0x40;
        assert!(walk(&space).is_ok());

        let mut space = Space::new();
        let at = space.add(0x05, &[0; 2]);
        space.octets[at + 1] = at as u8;
        assert_eq!(walk(&space), Err(Missing::Notify));
    }

    #[test]
    fn a_link_into_the_header_ends_the_list() {
        for target in [0x00, 0x04, 0x34, 0x3c, 0x3f] {
            let mut space = Space::usual(|t| t == 2);
            space.octets[space.last] = target;
            assert_eq!(walk(&space), Err(Missing::Notify));
        }
    }

    #[test]
    fn reserved_bits_of_a_link_are_ignored() {
        let mut space = Space::usual(|_| false);
        space.octets[0x34] |= 3;
        assert!(walk(&space).is_ok());
    }

    #[test]
    fn a_capability_cut_off_by_the_end_of_the_space_is_ignored() {
        let mut space = Space::usual(|t| t == 2);
        space.octets[space.last] = 0xfc;
        space.octets[0xfc..].copy_from_slice(&[9, 0, 20, 2]);
        assert_eq!(walk(&space), Err(Missing::Notify));
        // Sixteen octets fit, the multiplier does not.
        let mut space = Space::usual(|t| t == 2);
        space.octets[space.last] = 0xf0;
        space.octets[0xf0..0xf5].copy_from_slice(&[9, 0, 20, 2, 4]);
        space.octets[0xfc..].copy_from_slice(&4096u32.to_le_bytes());
        assert_eq!(walk(&space), Err(Missing::Notify));
    }

    #[test]
    fn a_capability_that_says_it_is_short_is_ignored() {
        for cap_len in [0, 2, 15] {
            let mut space = Space::new();
            let at = space.add_virtio(1, 4, 0, 0x1000);
            space.octets[at + 2] = cap_len;
            space.add_virtio(3, 4, 0x1000, 4);
            space.add_notify(4, 0x3000, 0x1000, 4);
            assert_eq!(walk(&space), Err(Missing::Common));
        }
        // Long enough for the common part only.
        let mut space = Space::usual(|t| t == 2);
        space.add_virtio(2, 4, 0x3000, 0x1000);
        assert_eq!(walk(&space), Err(Missing::Notify));
    }

    #[test]
    fn a_reserved_bar_is_ignored_and_the_next_structure_used() {
        for bar in [6, 7, 0x80, 0xff] {
            let mut space = Space::new();
            space.add_virtio(1, bar, 0, 0x1000);
            space.add_virtio(3, 4, 0x1000, 4);
            space.add_notify(4, 0x3000, 0x1000, 4);
            assert_eq!(walk(&space), Err(Missing::Common));
            space.add_virtio(1, 4, 0x2000, 0x100);
            assert!(walk(&space).is_ok_and(|found| found.common == range(4, 0x2000, 0x100)));
        }
    }

    #[test]
    fn a_range_beyond_its_bar_is_ignored() {
        for (offset, length) in [
            (0x4000, 56),
            (0x3fcc, 56),
            (0, 0x4001),
            (u32::MAX - 3, u32::MAX),
            (0xffff_fffc, 56),
            (4, u32::MAX),
        ] {
            let mut space = Space::usual(|t| t == 1);
            space.add_virtio(1, 4, offset, length);
            assert_eq!(walk(&space), Err(Missing::Common));
        }
        // Up to the last octet is in.
        let mut space = Space::usual(|t| t == 1);
        space.add_virtio(1, 4, 0x4000 - 56, 56);
        assert!(walk(&space).is_ok());
        // A BAR that is not there.
        let mut space = Space::usual(|t| t == 1);
        space.add_virtio(1, 0, 0, 56);
        assert_eq!(walk(&space), Err(Missing::Common));
    }

    #[test]
    fn a_structure_too_small_or_misaligned_is_ignored() {
        for (offset, length) in [(0, 55), (0, 0), (1, 56), (2, 56)] {
            let mut space = Space::usual(|t| t == 1);
            space.add_virtio(1, 4, offset, length);
            assert_eq!(walk(&space), Err(Missing::Common));
        }
        let mut space = Space::usual(|t| t == 2);
        space.add_notify(4, 0x3001, 0x100, 4);
        space.add_notify(4, 0x3000, 1, 4);
        assert_eq!(walk(&space), Err(Missing::Notify));
    }

    #[test]
    fn of_two_the_first_wins() {
        let mut space = Space::usual(|_| false);
        space.add_virtio(1, 1, 0, 0x100);
        space.add_notify(1, 0x100, 0x100, 0);
        space.add_virtio(4, 1, 0x200, 0x100);
        assert_eq!(walk(&space), walk(&Space::usual(|_| false)));
    }

    #[test]
    fn kinds_it_does_not_know_are_ignored() {
        let mut space = Space::new();
        for cfg_type in [0, 5, 8, 9, 0xff] {
            space.add_virtio(cfg_type, 4, 0, 0x1000);
        }
        space.add_virtio(1, 4, 0, 0x100);
        space.add_virtio(3, 4, 0x100, 4);
        space.add_notify(4, 0x3000, 0x1000, 0);
        assert!(walk(&space).is_ok());
    }

    #[test]
    fn random_spaces_never_yield_a_range_outside_its_bar() {
        let mut random = super::super::testing::Random::new(1);
        for _ in 0..2000 {
            let mut space = Space::usual(|_| false);
            // Few changes keep the list mostly whole, many make noise of it.
            for _ in 0..random.below(40) {
                let at = random.below(256) as usize;
                space.octets[at] = random.next() as u8;
            }
            let Ok(found) = walk(&space) else { continue };
            for found in [
                Some(found.common),
                Some(found.notify),
                Some(found.isr),
                found.device,
            ]
            .into_iter()
            .flatten()
            {
                assert!(found.bar < 6);
                let end = u64::from(found.offset) + u64::from(found.length);
                assert!(end <= space.bars[usize::from(found.bar)]);
            }
        }
    }
}
