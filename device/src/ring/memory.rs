// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guest physical addresses to host memory.
//!
//! A [`MemoryMap`] is made once from the frontend's memory table and then only read. Translation is
//! a scan over the regions: a machine has two or three. A [`Window`] is a stretch that was
//! translated once and is used many times, such as a ring, a [`View`] one that is used at once; each
//! access is checked against its length.
//!
//! A region whose file is made shorter after it was mapped raises SIGBUS on access. The file is
//! checked when the map is made; a frontend that shrinks it later can end the process, as it can
//! end itself: the frontend is trusted that far, the guest is not and cannot do it. A device of memory
//! (`/dev/dax0.0`) has no such length, but one that it cannot lose, which sysfs tells.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

/// One region of guest memory.
///
/// # Invariants
/// `host` points to `len` octets that stay mapped, readable and writable, while the [`MemoryMap`]
/// that holds the region lives.
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    len: u64,
    host: NonNull<u8>,
}

/// All of guest memory that the frontend shares with us.
pub struct MemoryMap {
    regions: Vec<Region>,
    // Keeps the mappings of `regions` alive.
    guest: Arc<GuestMemoryMmap>,
}

// SAFETY: the pointers are to shared mappings that `guest` keeps alive from any thread; they are
// only used for volatile, atomic or kernel access.
unsafe impl Send for MemoryMap {}
// SAFETY: as above.
unsafe impl Sync for MemoryMap {}

impl fmt::Debug for MemoryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(
                self.regions
                    .iter()
                    .map(|r| format!("{:#x}+{:#x}", r.start, r.len)),
            )
            .finish()
    }
}

/// Octets of a file that holds guest memory; `sys` is where to look for those of a device.
fn size_of(file: &File, sys: &Path) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if !metadata.file_type().is_char_device() {
        return Ok(metadata.len());
    }
    let device = metadata.rdev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let path = sys.join(format!("{major}:{minor}/size"));
    let problem = |e: &dyn fmt::Display| {
        io::Error::other(format!(
            "it is in character device {major}:{minor}, and how large that is cannot be told \
             ({}: {e}); a memfd or a file will do",
            path.display()
        ))
    };
    let text = fs::read_to_string(&path).map_err(|e| problem(&e))?;
    text.trim_end().parse().map_err(|e| problem(&e))
}

impl MemoryMap {
    /// A map of `guest`; refuses a region whose file is shorter than it claims.
    pub fn new(guest: Arc<GuestMemoryMmap>) -> io::Result<Self> {
        let mut regions = Vec::new();
        for region in guest.iter() {
            let start = region.start_addr().0;
            let len = region.len();
            if let Some(file) = region.file_offset() {
                let end = file.start().checked_add(len);
                let size = size_of(file.file(), Path::new("/sys/dev/char"))
                    .map_err(|e| io::Error::other(format!("memory region at {start:#x}: {e}")))?;
                if end.is_none_or(|end| end > size) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!(
                            "memory region at {start:#x} claims {len:#x} octets from {:#x} of a \
                             file of {size:#x}",
                            file.start()
                        ),
                    ));
                }
            }
            let host = region
                .get_host_address(MemoryRegionAddress(0))
                .ok()
                .and_then(NonNull::new)
                .ok_or_else(|| io::Error::other("memory region is not mapped"))?;
            regions.push(Region { start, len, host });
        }
        Ok(MemoryMap { regions, guest })
    }

    /// The same memory for the crates of the rust-vmm family.
    pub fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }

    /// The host address of `addr`, and how many octets from there lie in the same region.
    #[inline]
    fn locate(&self, addr: u64) -> Option<(NonNull<u8>, u64)> {
        self.regions.iter().find_map(|region| {
            // Of an address before the region this is more than any region has.
            let offset = addr.wrapping_sub(region.start);
            if offset >= region.len {
                return None;
            }
            // SAFETY: offset < len, so the result is inside the mapping (invariant of Region).
            // The cast cannot truncate: the mapping exists, so its length fits usize.
            let host = unsafe { region.host.add(offset as usize) };
            Some((host, region.len - offset))
        })
    }

    /// The `len` octets at `addr`, if they lie inside one region.
    pub fn view(&self, addr: u64, len: usize) -> Option<View<'_>> {
        let (host, room) = self.locate(addr)?;
        let fits = u64::try_from(len).is_ok_and(|len| len <= room);
        fits.then_some(View {
            host,
            len,
            _map: PhantomData,
        })
    }

    /// Appends the pieces of `len` octets at guest address `addr` to `pieces`: more than one where
    /// they cross from a region into the next. `false`, and nothing appended, when any octet is
    /// not guest memory.
    #[inline]
    pub(super) fn gather(&self, addr: u64, len: u32, pieces: &mut Vec<libc::iovec>) -> bool {
        self.gather_one(addr, len, pieces) || self.gather_across(addr, len, pieces)
    }

    /// As `gather`, of octets that are one piece, as nearly always; else nothing is appended.
    #[inline]
    pub(super) fn gather_one(&self, addr: u64, len: u32, pieces: &mut Vec<libc::iovec>) -> bool {
        let Some((host, room)) = self.locate(addr) else {
            return false;
        };
        let fits = len > 0 && u64::from(len) <= room;
        if fits {
            pieces.push(libc::iovec {
                iov_base: host.as_ptr().cast(),
                iov_len: len as usize,
            });
        }
        fits
    }

    #[cold]
    fn gather_across(&self, addr: u64, len: u32, pieces: &mut Vec<libc::iovec>) -> bool {
        let before = pieces.len();
        let mut addr = addr;
        let mut left = u64::from(len);
        while left > 0 {
            let Some((host, here)) = self.locate(addr) else {
                pieces.truncate(before);
                return false;
            };
            let here = here.min(left);
            pieces.push(libc::iovec {
                iov_base: host.as_ptr().cast(),
                iov_len: here as usize,
            });
            left -= here;
            // Wraps only at the very end of the address space, where no region can follow.
            addr = addr.wrapping_add(here);
        }
        true
    }
}

/// Octets of a descriptor: two 64-bit fields.
const DESCRIPTOR: usize = 16;

/// A stretch of guest memory inside one region, looked at for a moment.
///
/// # Invariants
/// `host` points to `len` octets that are mapped for `'m`.
#[derive(Clone, Copy)]
pub struct View<'m> {
    host: NonNull<u8>,
    len: usize,
    _map: PhantomData<&'m MemoryMap>,
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl View<'_> {
    #[inline]
    fn at(&self, offset: usize, size: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(size)?;
        if end > self.len {
            return None;
        }
        // SAFETY: offset + size <= len (just checked), all of it mapped by the invariant.
        Some(unsafe { self.host.add(offset) })
    }

    /// Reads the two little-endian 64-bit fields that are descriptor `index` of a table, and that the
    /// guest may be changing; each in one access where the table is aligned.
    #[inline]
    pub fn read_descriptor(&self, index: usize) -> Option<[u64; 2]> {
        let host = self.at(index.checked_mul(DESCRIPTOR)?, DESCRIPTOR)?;
        if host.as_ptr().addr().is_multiple_of(8) {
            let field = host.cast::<u64>();
            // SAFETY: sixteen octets are mapped there, aligned (just checked); volatile reads make no
            // reference to memory that the guest may change.
            let fields = unsafe { [field.read_volatile(), field.add(1).read_volatile()] };
            return Some(fields.map(u64::from_le));
        }
        // SAFETY: as above; arrays of octets have no alignment.
        let octets = unsafe { host.cast::<[[u8; 8]; 2]>().as_ptr().read_volatile() };
        Some(octets.map(u64::from_le_bytes))
    }
}

/// A stretch of guest memory inside one region, translated once and kept.
///
/// # Invariants
/// `host` points to `len` octets of a region of `map`.
#[derive(Clone)]
pub struct Window {
    host: NonNull<u8>,
    len: usize,
    map: Arc<MemoryMap>,
}

// SAFETY: as for MemoryMap, which `map` keeps alive.
unsafe impl Send for Window {}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Window {
    /// The window of `len` octets at guest address `addr`. `None` when it is not inside one region
    /// or not aligned to `align` in host memory.
    pub fn new(map: &Arc<MemoryMap>, addr: u64, len: usize, align: usize) -> Option<Window> {
        let View { host, len, .. } = map.view(addr, len)?;
        let aligned = host.as_ptr().addr().is_multiple_of(align);
        aligned.then(|| Window {
            host,
            len,
            map: map.clone(),
        })
    }

    /// All of the window.
    #[inline]
    pub fn view(&self) -> View<'_> {
        View {
            host: self.host,
            len: self.len,
            _map: PhantomData,
        }
    }

    /// The map this is a window of.
    pub fn map(&self) -> &Arc<MemoryMap> {
        &self.map
    }

    fn atomic_u16(&self, offset: usize) -> Option<&AtomicU16> {
        let host = self.view().at(offset, 2)?;
        if !host.as_ptr().addr().is_multiple_of(2) {
            return None;
        }
        // SAFETY: mapped for the life of `self`, aligned (just checked), and shared memory of the
        // guest, which is only ever accessed atomically or by volatile copies.
        Some(unsafe { AtomicU16::from_ptr(host.as_ptr().cast()) })
    }

    /// Reads a little-endian 16-bit field. An offset outside the window reads 0: callers derive
    /// offsets from the length that they made the window with, so that does not occur.
    pub fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        self.atomic_u16(offset)
            .map_or(0, |field| u16::from_le(field.load(order)))
    }

    /// Writes a little-endian 16-bit field; outside the window it does nothing.
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        if let Some(field) = self.atomic_u16(offset) {
            field.store(value.to_le(), order);
        }
    }

    /// Descriptor `index` of a window that is a descriptor ring; `None` outside the window, or where
    /// that is not aligned.
    #[inline]
    pub fn descriptor(&self, index: u16) -> Option<&Descriptor> {
        self.descriptors().get(usize::from(index))
    }

    /// All descriptors of a window that is a descriptor ring; none where that is not aligned.
    #[inline]
    pub fn descriptors(&self) -> &[Descriptor] {
        if !self.host.as_ptr().addr().is_multiple_of(8) {
            return &[];
        }
        // SAFETY: so many descriptors are inside the window, whose octets are mapped for the life of
        // `self`; it is aligned (just checked), and shared memory of the guest, which is only ever
        // accessed atomically or by volatile copies.
        unsafe { slice::from_raw_parts(self.host.as_ptr().cast(), self.len / DESCRIPTOR) }
    }

    /// Writes a little-endian 32-bit field; outside the window, or misaligned, it does nothing.
    pub fn write_u32(&self, offset: usize, value: u32) {
        if let Some(host) = self.view().at(offset, 4)
            && host.as_ptr().addr().is_multiple_of(4)
        {
            // SAFETY: four octets are mapped there and may be written, aligned (just checked); a
            // volatile write makes no reference to memory that the guest sees.
            unsafe { host.cast::<u32>().as_ptr().write_volatile(value.to_le()) }
        }
    }
}

/// A descriptor in a descriptor ring, which the guest may be changing: two little-endian 64-bit fields.
#[derive(Debug)]
#[repr(transparent)]
pub struct Descriptor([AtomicU64; 2]);

impl Descriptor {
    /// The buffer's address.
    #[inline]
    pub fn addr(&self) -> u64 {
        u64::from_le(self.0[0].load(Ordering::Relaxed))
    }

    /// What is behind the address.
    #[inline]
    pub fn word(&self, order: Ordering) -> u64 {
        u64::from_le(self.0[1].load(order))
    }

    /// Writes what is behind the address.
    #[inline]
    pub fn set_word(&self, word: u64, order: Ordering) {
        self.0[1].store(word.to_le(), order);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use vm_memory::{FileOffset, GuestAddress};

    /// Two regions side by side, a hole, and one more.
    pub fn map() -> Arc<MemoryMap> {
        let guest = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), 0x1000),
            (GuestAddress(0x1000), 0x1000),
            (GuestAddress(0x4000), 0x1000),
        ]);
        Arc::new(MemoryMap::new(Arc::new(guest.unwrap())).unwrap())
    }

    /// Two pages at an offset of two into a file or device.
    fn pages_of(file: File) -> io::Result<MemoryMap> {
        let offset = Some(FileOffset::new(file, 0x2000));
        let guest = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), 0x2000, offset)]);
        MemoryMap::new(Arc::new(guest.unwrap()))
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn a_file_that_is_shorter_than_the_region_is_refused() {
        let file = tempfile::tempfile().unwrap();
        for (len, fits) in [(0x4000, true), (0x5000, true), (0x3fff, false), (0, false)] {
            file.set_len(len).unwrap();
            let map = pages_of(file.try_clone().unwrap());
            assert_eq!(map.is_ok(), fits, "{len:#x}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn the_size_of_a_device_is_what_sysfs_tells() {
        // One that can be mapped, and has no size.
        let zero = || {
            let mut options = File::options();
            options.read(true).write(true).open("/dev/zero").unwrap()
        };
        let error = pages_of(zero()).unwrap_err().to_string();
        assert!(error.contains("character device 1:5"), "{error}");
        let sys = tempfile::tempdir().unwrap();
        fs::create_dir(sys.path().join("1:5")).unwrap();
        for (text, size) in [("16384\n", Some(16384)), ("-1\n", None), ("", None)] {
            fs::write(sys.path().join("1:5/size"), text).unwrap();
            assert_eq!(size_of(&zero(), sys.path()).ok(), size, "{text}");
        }
    }

    #[test]
    fn windows_are_checked() {
        let map = map();
        assert!(Window::new(&map, 0xff0, 0x20, 1).is_none());
        assert!(Window::new(&map, 0x4001, 4, 2).is_none());
        assert!(Window::new(&map, 0x3000, 1, 1).is_none());
        let window = Window::new(&map, 0x4ff4, 12, 4).unwrap();
        window.store_u16(2, 0x1234, Ordering::Release);
        assert_eq!(window.load_u16(2, Ordering::Acquire), 0x1234);
        window.write_u32(4, 0x89ab_cdef);
        // Beyond the end, and misaligned.
        for offset in [12, 9, usize::MAX] {
            window.write_u32(offset, u32::MAX);
            window.store_u16(offset, u16::MAX, Ordering::Release);
            assert_eq!(window.load_u16(offset, Ordering::Acquire), 0);
        }
    }

    #[test]
    fn descriptors_outside_a_window_are_none() {
        let map = map();
        // Two, and half of a third that is not inside.
        let window = Window::new(&map, 0x4fd8, 40, 8).unwrap();
        let [first, second] = [0, 1].map(|index| window.descriptor(index).unwrap());
        first.set_word(0x89ab_cdef, Ordering::Release);
        second.set_word(7, Ordering::Release);
        assert_eq!(
            (first.addr(), first.word(Ordering::Acquire)),
            (0, 0x89ab_cdef)
        );
        assert!(
            [2, 3, u16::MAX]
                .iter()
                .all(|i| window.descriptor(*i).is_none())
        );
        let view = window.view();
        assert_eq!(view.read_descriptor(1), Some([0, 7]));
        for outside in [2, usize::MAX / 16, usize::MAX] {
            assert_eq!(view.read_descriptor(outside), None);
        }
        // Misaligned: a table can be, a ring cannot.
        let misaligned = Window::new(&map, 0x4fdc, 36, 4).unwrap();
        assert!(misaligned.descriptor(0).is_none());
        let fields = [0x89ab_cdef << 32, 0];
        assert_eq!(misaligned.view().read_descriptor(0), Some(fields));
    }
}
