// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which port an address is behind (IEEE 802.1Q, the filtering database).
//!
//! # Design
//! Workers look up every packet's destination and nearly never change anything, so a look takes no
//! lock and writes nothing. An address and its VLAN are one number, so is what is known of them, and
//! a reader that has found the first looks at it again after it has read the second: a writer that
//! makes an entry another's takes the first away before it touches the second. Writers have a lock.
//! A sender takes it for an address that is new, or at a new port, and else once a second at most
//! writes down, without it, that it has seen the address.
//!
//! The table is of fixed size: 2048 buckets of four entries, in which an address has one bucket,
//! by a hash that nobody outside can foresee. Where a bucket is full, the port that has the most
//! addresses gives one up, and if that would have to be one with fewer than the sender's own, the
//! address is not learned. So a guest that makes up addresses pushes out its own and never those of
//! a guest that has few: it cannot make the switch flood what is not for it.
//!
//! Time is in seconds, and given by the caller.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use parking_lot::Mutex;

use crate::nic::MacAddress;

use super::vlan::VlanId;

const BUCKETS: usize = 2048;
const WAYS: usize = 4;
/// The most addresses that are known at a time.
pub const CAPACITY: usize = BUCKETS * WAYS;
/// Seconds after which an address that was not seen is forgotten (the default of IEEE 802.1Q, 8.8.3).
pub const AGEING: u32 = 300;
/// Seconds between two looks through the whole table for addresses to be forgotten.
const SWEEP: u32 = 60;
/// Set in the key of an entry that is in use.
const USED: u64 = 1 << 63;

/// Number of a port.
pub type PortIndex = u8;

/// An address of a VLAN as one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The key of `mac` in `vlan`.
    pub fn new(vlan: VlanId, mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        Key(USED | u64::from(vlan.get()) << 48 | mac)
    }

    fn vlan(self) -> u16 {
        (self.0 >> 48) as u16 & 0xfff
    }

    fn mac(self) -> MacAddress {
        let [_, _, octets @ ..] = self.0.to_be_bytes();
        MacAddress(octets)
    }
}

/// Where an address is, and when it was seen last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    port: PortIndex,
    seen: u32,
}

impl Place {
    fn pack(self) -> u64 {
        u64::from(self.seen) << 8 | u64::from(self.port)
    }

    fn unpack(value: u64) -> Self {
        Place {
            port: value as u8,
            seen: (value >> 8) as u32,
        }
    }

    fn is_old(self, now: u32) -> bool {
        now.saturating_sub(self.seen) >= AGEING
    }
}

#[derive(Debug, Default)]
struct Entry {
    /// A [`Key`]; 0 while the entry is free, or is being made another's.
    key: AtomicU64,
    /// A [`Place`].
    place: AtomicU64,
}

impl Entry {
    fn place(&self) -> Place {
        Place::unpack(self.place.load(Ordering::Relaxed))
    }

    /// For writers: has it be nobody's.
    fn clear(&self) {
        self.key.store(0, Ordering::Relaxed);
        // A reader that sees what is written into the place next also sees that the key has gone.
        fence(Ordering::Release);
    }

    fn set(&self, key: Key, place: Place) {
        self.clear();
        self.place.store(place.pack(), Ordering::Relaxed);
        self.key.store(key.0, Ordering::Release);
    }
}

/// One cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket([Entry; WAYS]);

/// What only writers need.
#[derive(Debug)]
struct Writer {
    /// Addresses of each port.
    counts: [usize; PortIndex::MAX as usize + 1],
    swept: u32,
}

impl Writer {
    fn count(&self, port: PortIndex) -> usize {
        self.counts.get(usize::from(port)).copied().unwrap_or(0)
    }

    fn add(&mut self, port: PortIndex) {
        if let Some(count) = self.counts.get_mut(usize::from(port)) {
            *count += 1;
        }
    }

    fn remove(&mut self, port: PortIndex) {
        if let Some(count) = self.counts.get_mut(usize::from(port)) {
            *count = count.saturating_sub(1);
        }
    }
}

/// An address, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Its VLAN.
    pub vlan: u16,
    /// The address.
    pub mac: MacAddress,
    /// The port that it is behind.
    pub port: PortIndex,
    /// Seconds since a frame came from it.
    pub age: u32,
}

/// The table.
#[derive(Debug)]
pub struct Table {
    buckets: Box<[Bucket]>,
    seeds: [u64; 2],
    writer: Mutex<Writer>,
}

impl Default for Table {
    fn default() -> Self {
        let random = || RandomState::new().build_hasher().finish();
        Table::new(BUCKETS, [random(), random() | 1])
    }
}

impl Table {
    fn new(buckets: usize, seeds: [u64; 2]) -> Self {
        Table {
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            seeds,
            writer: Mutex::new(Writer {
                counts: [0; PortIndex::MAX as usize + 1],
                swept: 0,
            }),
        }
    }

    fn bucket(&self, key: Key) -> &[Entry] {
        let [add, multiply] = self.seeds;
        let product = u128::from(key.0 ^ add) * u128::from(multiply);
        let hash = (product >> 64) as u64 ^ product as u64;
        // Below the number of buckets, which is a usize.
        let index = ((u128::from(hash) * self.buckets.len() as u128) >> 64) as usize;
        self.buckets.get(index).map_or(&[], |bucket| &bucket.0)
    }

    /// The port that the address is behind, if that is known.
    pub fn find(&self, key: Key, now: u32) -> Option<PortIndex> {
        for entry in self.bucket(key) {
            if entry.key.load(Ordering::Acquire) != key.0 {
                continue;
            }
            let place = entry.place();
            fence(Ordering::Acquire);
            if entry.key.load(Ordering::Relaxed) == key.0 && !place.is_old(now) {
                return Some(place.port);
            }
        }
        None
    }

    /// Takes note that a frame from the address has come in at `port`; whether the address is known
    /// to be there now.
    pub fn learn(&self, key: Key, port: PortIndex, now: u32) -> bool {
        let here = Place { port, seen: now };
        for entry in self.bucket(key) {
            if entry.key.load(Ordering::Acquire) != key.0 {
                continue;
            }
            let place = entry.place();
            if place == here {
                return true;
            }
            if place.port != port {
                break;
            }
            // Fails when the entry has been given to another meanwhile, or another queue of this
            // port was quicker; the next frame comes here again.
            let _ = entry.place.compare_exchange(
                place.pack(),
                here.pack(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            return true;
        }
        self.write(key, here)
    }

    /// As `learn`, for an address that is new or has moved.
    fn write(&self, key: Key, here: Place) -> bool {
        let mut writer = self.writer.lock();
        if here.seen.saturating_sub(writer.swept) >= SWEEP {
            writer.swept = here.seen;
            self.remove_where(&mut writer, |place| place.is_old(here.seen));
        }
        let bucket = self.bucket(key);
        let used = |entry: &&Entry| entry.key.load(Ordering::Relaxed) != 0;
        let own = writer.count(here.port);
        let entry = bucket
            .iter()
            .find(|entry| entry.key.load(Ordering::Relaxed) == key.0)
            .or_else(|| bucket.iter().find(|entry| !used(entry)))
            .or_else(|| {
                let place = |entry: &&Entry| entry.place();
                bucket
                    .iter()
                    .filter(|entry| {
                        let Place { port, .. } = place(entry);
                        place(entry).is_old(here.seen)
                            || port == here.port
                            || writer.count(port) > own
                    })
                    .max_by_key(|entry| {
                        let Place { port, seen } = place(entry);
                        let old = place(entry).is_old(here.seen);
                        (old, writer.count(port), here.seen.saturating_sub(seen))
                    })
            });
        let Some(entry) = entry else {
            return false;
        };
        if used(&entry) {
            writer.remove(entry.place().port);
        }
        writer.add(here.port);
        entry.set(key, here);
        true
    }

    fn entries(&self) -> impl Iterator<Item = (Key, &Entry)> {
        self.buckets.iter().flat_map(|bucket| {
            bucket.0.iter().filter_map(|entry| {
                let key = entry.key.load(Ordering::Acquire);
                (key != 0).then_some((Key(key), entry))
            })
        })
    }

    fn remove_where(&self, writer: &mut Writer, gone: impl Fn(Place) -> bool) {
        for (_, entry) in self.entries() {
            let place = entry.place();
            if gone(place) {
                writer.remove(place.port);
                entry.clear();
            }
        }
    }

    /// Forgets all that is behind `port`.
    pub fn forget(&self, port: PortIndex) {
        let mut writer = self.writer.lock();
        self.remove_where(&mut writer, |place| place.port == port);
    }

    /// All that is known, in no order.
    pub fn list(&self, now: u32) -> Vec<Address> {
        // Nobody but a writer makes an entry another's.
        let _writer = self.writer.lock();
        self.entries()
            .map(|(key, entry)| (key, entry.place()))
            .filter(|(_, place)| !place.is_old(now))
            .map(|(key, place)| Address {
                vlan: key.vlan(),
                mac: key.mac(),
                port: place.port,
                age: now.saturating_sub(place.seen),
            })
            .collect()
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
