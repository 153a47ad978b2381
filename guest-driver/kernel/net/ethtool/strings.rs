// SPDX-License-Identifier: GPL-2.0

//! Statistics and tests, which have names.

use crate::bindings;
use kernel::{
    fmt,
    prelude::*,
    str::Formatter,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// Octets of a name, with the 0 at its end: ETH_GSTRING_LEN.
const NAME: usize = 32;

/// What the C side was told last, of a net device.
///
/// It asks how many there are, gets memory for so many, and asks for them, all of it with RTNL
/// held. What it does not say when it asks for names is how many it has memory for.
pub(in super::super) struct Counts {
    statistics: Atomic<u32>,
}

impl Counts {
    pub(in super::super) const fn new() -> Self {
        Self {
            statistics: Atomic::new(0),
        }
    }

    pub(super) fn set_statistics(&self, count: u32) {
        self.statistics.store(count, Relaxed);
    }

    pub(super) fn statistics(&self) -> u32 {
        self.statistics.load(Relaxed)
    }
}

/// What is wanted of the statistics.
enum Wanted<'a> {
    Count,
    Names(&'a mut [[u8; NAME]]),
    Values(&'a mut [u64]),
}

/// Where statistics are told.
///
/// Names and values are told at once, so that they cannot be in different orders; which of them is
/// used the driver need not know.
pub(crate) struct Statistics<'a> {
    wanted: Wanted<'a>,
    told: usize,
}

impl<'a> Statistics<'a> {
    pub(super) fn count() -> Self {
        Self {
            wanted: Wanted::Count,
            told: 0,
        }
    }

    pub(super) fn names(to: &'a mut [[u8; NAME]]) -> Self {
        Self {
            wanted: Wanted::Names(to),
            told: 0,
        }
    }

    pub(super) fn values(to: &'a mut [u64]) -> Self {
        Self {
            wanted: Wanted::Values(to),
            told: 0,
        }
    }

    /// Whether values are wanted: else it does not matter what they are.
    pub(crate) fn wants_values(&self) -> bool {
        matches!(self.wanted, Wanted::Values(_))
    }

    /// How many were told.
    pub(super) fn told(&self) -> u32 {
        u32::try_from(self.told).unwrap_or(u32::MAX)
    }

    /// Tells one. Its name is cut off after 31 octets.
    pub(crate) fn add(&mut self, name: fmt::Arguments<'_>, value: u64) {
        match &mut self.wanted {
            Wanted::Count => {}
            Wanted::Names(to) => {
                if let Some(place) = to.get_mut(self.told) {
                    write_name(place, name);
                }
            }
            Wanted::Values(to) => {
                if let Some(place) = to.get_mut(self.told) {
                    *place = value;
                }
            }
        }
        self.told = self.told.saturating_add(1);
    }
}

/// The result of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TestResult {
    /// All is as it should be.
    Passed = 0,
    /// It is not.
    Failed = 1,
    /// It could not be found out, or was not to be.
    Skipped = 2,
}

/// Writes a name and zeros behind it.
pub(super) fn write_name(place: &mut [u8; NAME], name: fmt::Arguments<'_>) {
    *place = [0; NAME];
    if let Some((_zero, room)) = place.split_last_mut() {
        // What does not fit is left out.
        let _ = fmt::Write::write_fmt(&mut Formatter::new(room), name);
    }
}

/// The memory for names.
///
/// # Safety
///
/// `data` must point to `count` names that are the caller's to write throughout `'a`.
pub(super) unsafe fn names_mut<'a>(data: *mut u8, count: u32) -> &'a mut [[u8; NAME]] {
    const _: () = assert!(NAME == bindings::ETH_GSTRING_LEN as usize);
    if data.is_null() || count == 0 {
        return &mut [];
    }
    // SAFETY: By the safety requirement; octets have no alignment.
    unsafe { core::slice::from_raw_parts_mut(data.cast(), count as usize) }
}

/// The memory for values: see [`names_mut`].
///
/// # Safety
///
/// `data` must be null or point to `count` values that are the caller's to write throughout `'a`.
pub(super) unsafe fn slice_mut<'a, V>(data: *mut V, count: u32) -> &'a mut [V] {
    if data.is_null() || count == 0 {
        return &mut [];
    }
    // SAFETY: By the safety requirement.
    unsafe { core::slice::from_raw_parts_mut(data, count as usize) }
}

#[kunit_tests(ferronic_net_ethtool)]
mod tests {
    use super::*;

    fn tell(list: &mut Statistics<'_>) {
        for queue in 0..2u64 {
            list.add(fmt!("rx{}_packets", queue), 10 + queue);
        }
        list.add(fmt!("a_name_of_exactly_forty_octets_and_not_31"), 3);
    }

    #[test]
    fn names_and_values_agree() {
        let mut count = Statistics::count();
        tell(&mut count);
        assert_eq!(count.told(), 3);
        let mut names = [[0xff; NAME]; 3];
        tell(&mut Statistics::names(&mut names));
        let mut values = [0; 3];
        tell(&mut Statistics::values(&mut values));
        assert_eq!(values, [10, 11, 3]);
        assert!(names[1].starts_with(b"rx1_packets\0"));
        assert_eq!(&names[2][..], b"a_name_of_exactly_forty_octets_\0");
    }

    #[test]
    fn more_than_there_is_room_for_is_not_written() {
        let mut names = [[0xff; NAME]; 2];
        tell(&mut Statistics::names(&mut names[..1]));
        assert_eq!(names[1], [0xff; NAME]);
        let mut values = [7; 2];
        tell(&mut Statistics::values(&mut values[..1]));
        assert_eq!(values, [10, 7]);
    }
}
