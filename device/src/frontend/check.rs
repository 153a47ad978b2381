// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a frontend's message must be like before the crate and the data path get to see it.
//!
//! The crate checks most of what a message says. Here is what it does not check and what would hurt:
//!
//! * `ADD_MEM_REG` with addresses that wrap around: the crate adds them up unchecked when it
//!   translates a ring's address, which panics in a build with overflow checks. It also maps any
//!   number of regions, each of which keeps a descriptor open.
//! * A kick or call that is no eventfd. The workers write to a call while they hold a queue's lock,
//!   and a pipe that is full or a file that its server does not serve would hold them for ever.
//! * A queue that we do not have: the crate hangs up without saying what to do about it.

use std::fmt;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};

use super::relay::{Frame, request};

/// Most regions of guest memory, as the crate answers `GET_MAX_MEM_SLOTS`.
pub const MAX_REGIONS: usize = 509;

/// Why a frontend is dropped.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// A region of memory that no machine has.
    Region {
        /// Its guest physical address.
        start: u64,
        /// Its size.
        size: u64,
    },
    /// More regions than we said we take.
    TooManyRegions,
    /// A kick or call that is something else than an eventfd.
    NotAnEventfd {
        /// The message's name.
        message: &'static str,
        /// The virtqueue.
        index: u64,
    },
    /// A queue that the NIC does not have.
    NoSuchQueue {
        /// The virtqueue asked for.
        index: u64,
        /// How many there are.
        count: usize,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Region { start, size } => write!(
                f,
                "it shares a region of {size:#x} octets of memory at {start:#x}, which cannot be"
            ),
            Refused::TooManyRegions => {
                write!(f, "it shares more than {MAX_REGIONS} regions of memory")
            }
            Refused::NotAnEventfd { message, index } => {
                write!(f, "its {message} for virtqueue {index} brings no eventfd")
            }
            Refused::NoSuchQueue { index, count } => {
                let pairs = count.saturating_sub(1) / 2;
                write!(
                    f,
                    "it uses virtqueue {index}, but this NIC has {count}: give the frontend no more \
                     than {pairs} queue pairs, or `ferronic serve` more with --queues"
                )
            }
        }
    }
}

impl std::error::Error for Refused {}

/// Looks at messages before they are passed on.
#[derive(Debug)]
pub struct Check {
    queue_count: usize,
    regions: usize,
}

impl Check {
    /// For a NIC with so many virtqueues.
    pub fn new(queue_count: usize) -> Self {
        Check {
            queue_count,
            regions: 0,
        }
    }

    /// Whether `frame` may be passed on. A message that is too short is left to the crate.
    pub fn frame(&mut self, frame: &Frame) -> Result<(), Refused> {
        match frame.request() {
            Some(request::SET_MEM_TABLE) => {
                // The crate's limit is lower than ours, and it checks the addresses.
                self.regions = frame.fds.len();
                Ok(())
            }
            Some(request::ADD_MEM_REG) => {
                self.regions += 1;
                if self.regions > MAX_REGIONS {
                    return Err(Refused::TooManyRegions);
                }
                region(frame)
            }
            Some(request::REM_MEM_REG) => {
                self.regions = self.regions.saturating_sub(1);
                region(frame)
            }
            Some(request::SET_VRING_KICK) => self.event(frame, "SET_VRING_KICK"),
            Some(request::SET_VRING_CALL) => self.event(frame, "SET_VRING_CALL"),
            Some(
                request::SET_VRING_NUM
                | request::SET_VRING_ADDR
                | request::SET_VRING_BASE
                | request::GET_VRING_BASE
                | request::SET_VRING_ENABLE,
            ) => self.queue(frame.payload::<4>(0).map(u32::from_ne_bytes)),
            _ => Ok(()),
        }
    }

    fn queue(&self, index: Option<u32>) -> Result<(), Refused> {
        match index {
            Some(index) if usize::try_from(index).is_ok_and(|i| i >= self.queue_count) => {
                Err(Refused::NoSuchQueue {
                    index: index.into(),
                    count: self.queue_count,
                })
            }
            _ => Ok(()),
        }
    }

    fn event(&self, frame: &Frame, message: &'static str) -> Result<(), Refused> {
        let index = frame.payload::<8>(0).map_or(0, u64::from_ne_bytes) & 0xff;
        self.queue(u32::try_from(index).ok())?;
        if frame.fds.iter().all(|fd| make_quick(fd).is_ok()) {
            Ok(())
        } else {
            Err(Refused::NotAnEventfd { message, index })
        }
    }
}

fn region(frame: &Frame) -> Result<(), Refused> {
    // Padding, guest address, size, address in the frontend, offset in the file.
    let field = |i: usize| frame.payload::<8>(8 * i).map(u64::from_ne_bytes);
    let [Some(start), Some(size), Some(user), Some(offset)] = [1, 2, 3, 4].map(field) else {
        return Ok(());
    };
    let fits = |at: u64| at.checked_add(size).is_some();
    if size == 0 || !fits(start) || !fits(user) || !fits(offset) {
        return Err(Refused::Region { start, size });
    }
    Ok(())
}

/// Makes sure that reading and writing `fd` never blocks: that it is an eventfd, or at least
/// something of the kernel's own without a file type, and non-blocking. The flag is the frontend's
/// as well; all that are known set it themselves.
fn make_quick(fd: &OwnedFd) -> Result<(), ()> {
    let kind = FileType::from_raw_mode(fstat(fd).map_err(drop)?.st_mode);
    if kind != FileType::Unknown {
        return Err(());
    }
    let flags = fcntl_getfl(fd).map_err(drop)?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(drop)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn frame(request: u32, payload: &[u64], fds: Vec<OwnedFd>) -> Frame {
        let payload: Vec<u8> = payload.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut bytes = Vec::new();
        for word in [request, 1, payload.len() as u32] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&payload);
        Frame { bytes, fds }
    }

    fn check(request: u32, payload: &[u64], fds: Vec<OwnedFd>) -> Result<(), Refused> {
        Check::new(5).frame(&frame(request, payload, fds))
    }

    #[test]
    fn memory_that_wraps_around_is_refused() {
        const ADD: u32 = request::ADD_MEM_REG;
        let page = 0x1000;
        assert_eq!(
            check(ADD, &[0, 0, page, u64::MAX - page, 0], vec![]),
            Ok(())
        );
        for region in [
            [0, u64::MAX, page, 0, 0],
            [0, 0, page, u64::MAX - page + 1, 0],
            [0, 0, page, 0, u64::MAX],
            [0, 0, 0, 0, 0],
        ] {
            assert!(check(ADD, &region, vec![]).is_err(), "{region:x?}");
        }
    }

    #[test]
    fn no_more_regions_than_announced() {
        let mut check = Check::new(5);
        let add = frame(request::ADD_MEM_REG, &[0, 0, 1, 0, 0], vec![]);
        let remove = frame(request::REM_MEM_REG, &[0, 0, 1, 0, 0], vec![]);
        for _ in 0..2 * MAX_REGIONS {
            check.frame(&add).unwrap();
            check.frame(&remove).unwrap();
        }
        for _ in 0..MAX_REGIONS {
            check.frame(&add).unwrap();
        }
        assert_eq!(check.frame(&add), Err(Refused::TooManyRegions));
    }

    #[test]
    fn a_kick_or_call_must_be_an_eventfd_and_is_made_non_blocking() {
        for request in [request::SET_VRING_KICK, request::SET_VRING_CALL] {
            let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            let copy = event.try_clone().unwrap();
            assert_eq!(check(request, &[4], vec![event]), Ok(()));
            assert!(fcntl_getfl(&copy).unwrap().contains(OFlags::NONBLOCK));
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            let file = std::fs::File::open("/dev/null").unwrap();
            for other in [reader, writer, file.into()] {
                assert!(check(request, &[4], vec![other]).is_err());
            }
            // One that polls brings none.
            assert_eq!(check(request, &[0x100], vec![]), Ok(()));
        }
    }

    #[test]
    fn a_queue_too_many_is_explained() {
        for request in [
            request::SET_VRING_NUM,
            request::SET_VRING_ADDR,
            request::SET_VRING_BASE,
            request::GET_VRING_BASE,
            request::SET_VRING_ENABLE,
            request::SET_VRING_KICK,
            request::SET_VRING_CALL,
        ] {
            assert_eq!(check(request, &[4, 0, 0, 0, 0], vec![]), Ok(()));
            let refused = check(request, &[5, 0, 0, 0, 0], vec![]).unwrap_err();
            assert!(
                refused.to_string().contains("no more than 2 queue pairs"),
                "{refused}"
            );
        }
    }
}
