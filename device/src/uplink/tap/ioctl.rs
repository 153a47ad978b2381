// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control calls of `/dev/net/tun` that we use (Linux, `include/uapi/linux/if_tun.h`).
//!
//! All unsafe code of the tap uplink is here.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_short, c_uint, c_void};

use super::name::InterfaceName;

fn checked(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A call that takes a pointer to a value of type `T` and may change it.
///
/// # Safety
/// `request` must be one whose argument is a pointer to a `T`.
unsafe fn call<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    let argument = std::ptr::from_mut(argument).cast::<c_void>();
    // SAFETY: the descriptor is open while borrowed, the pointer is valid for reads and writes,
    // and by this function's contract of the type that the request wants.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) })
}

/// The interface flags (`IFF_…`) that this kernel's tun driver knows.
pub(super) fn features(fd: BorrowedFd<'_>) -> io::Result<c_uint> {
    let mut features: c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int.
    unsafe { call(fd, libc::TUNGETFEATURES, &mut features)? };
    Ok(features)
}

fn request_of(flags: c_int) -> libc::ifreq {
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // Never truncates: the flags of TUNSETIFF and TUNSETQUEUE are 16 bits wide.
    request.ifr_ifru.ifru_flags = flags as c_short;
    request
}

/// Makes `fd` a queue of the interface `name`, which is created where it is missing.
pub(super) fn set_interface(
    fd: BorrowedFd<'_>,
    name: &InterfaceName,
    flags: c_int,
) -> io::Result<()> {
    let mut request = request_of(flags);
    // A name is shorter than ifr_name by the invariant of InterfaceName: a zero always remains.
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: TUNSETIFF takes an ifreq and writes the name back into it.
    unsafe { call(fd, libc::TUNSETIFF, &mut request) }
}

/// The flags (`IFF_…`) of the interface to which `fd` belongs; an error if there is none.
fn interface_flags(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    let mut request = request_of(0);
    // SAFETY: TUNGETIFF writes an ifreq.
    unsafe { call(fd, libc::TUNGETIFF, &mut request)? };
    // SAFETY: of the union it writes the flags.
    Ok(c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
}

/// Whether `fd` still belongs to an interface.
pub(super) fn has_interface(fd: BorrowedFd<'_>) -> bool {
    interface_flags(fd).is_ok()
}

/// Whether packets of the interface come with a virtio-net header.
pub(super) fn has_header(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(interface_flags(fd)? & libc::IFF_VNET_HDR != 0)
}

/// Attaches a queue of a multi-queue interface, or detaches it.
pub(super) fn set_attached(fd: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    let mut request = request_of(if attached {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    });
    // SAFETY: TUNSETQUEUE reads an ifreq.
    unsafe { call(fd, libc::TUNSETQUEUE, &mut request) }
}

/// Sets the octets of virtio-net header before each frame.
pub(super) fn set_header_len(fd: BorrowedFd<'_>, octets: c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    unsafe { call(fd, libc::TUNSETVNETHDRSZ, &mut { octets }) }
}

/// Makes the header's fields little-endian, as VIRTIO 1 has them, on every host.
pub(super) fn set_little_endian(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TUNSETVNETLE reads one int.
    unsafe { call::<c_int>(fd, libc::TUNSETVNETLE, &mut 1) }
}

/// Says which unfinished packets (`TUN_F_…`) the interface may hand us.
pub(super) fn set_offload(fd: BorrowedFd<'_>, flags: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes the flags themselves and touches no memory of ours.
    checked(unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(flags),
        )
    })
}

/// Shows the interface with a carrier or without.
pub(super) fn set_carrier(fd: BorrowedFd<'_>, up: bool) -> io::Result<()> {
    // SAFETY: TUNSETCARRIER reads one int.
    unsafe { call(fd, libc::TUNSETCARRIER, &mut c_int::from(up)) }
}
