// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What can be wrong with a tap, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;

use super::name::InterfaceName;

/// Why a tap could not be opened.
#[derive(Debug)]
pub struct TapError {
    /// The interface.
    pub name: InterfaceName,
    /// Queues that were wanted.
    pub queue_pairs: u16,
    /// What was wrong.
    pub kind: TapErrorKind,
}

/// What was wrong with a tap.
#[derive(Debug)]
pub enum TapErrorKind {
    /// There is no `/dev/net/tun`.
    NoDevice(io::Error),
    /// `/dev/net/tun` is there but may not be opened.
    DeviceForbidden(io::Error),
    /// The interface does not exist and we may not make it.
    Missing,
    /// The interface exists but belongs to another user.
    NotOwner,
    /// Another process has the interface.
    Busy {
        /// That process, where it can be seen: `1234 (qemu-system-x86)`.
        holder: Option<String>,
    },
    /// The interface has one queue only, and more were wanted.
    SingleQueue,
    /// The interface exists and is no tap.
    NotTap,
    /// So many queues, or none, cannot be had.
    QueueCount,
    /// The kernel's tun driver lacks this feature.
    NoFeature(&'static str),
    /// A system call failed that has no reason to.
    System {
        /// What was tried.
        what: &'static str,
        /// How it ended.
        source: io::Error,
    },
}

impl TapError {
    /// The command that makes the tap that was wanted.
    pub(super) fn create(&self) -> String {
        let queues = if self.queue_pairs > 1 {
            " multi_queue"
        } else {
            ""
        };
        let name = &self.name;
        format!(
            "sudo ip tuntap add dev {name} mode tap{queues} user $(id -un) && \
             sudo ip link set {name} up"
        )
    }
}

impl fmt::Display for TapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.kind {
            TapErrorKind::NoDevice(e) => write!(
                f,
                "tap {name}: cannot open /dev/net/tun: {e}; load the driver with \
                 'sudo modprobe tun', or give the container the device (--device /dev/net/tun)"
            ),
            TapErrorKind::DeviceForbidden(e) => write!(
                f,
                "tap {name}: cannot open /dev/net/tun: {e}; most systems let everybody open it: \
                 'sudo chmod 0666 /dev/net/tun', or run as root"
            ),
            TapErrorKind::Missing => write!(
                f,
                "tap {name}: there is no such interface, and making it needs CAP_NET_ADMIN; \
                 make it with: {}",
                self.create()
            ),
            TapErrorKind::NotOwner => write!(
                f,
                "tap {name}: it belongs to another user; run as that user or as root, or make it \
                 anew: sudo ip link delete {name} && {}",
                self.create()
            ),
            TapErrorKind::Busy {
                holder: Some(holder),
            } => write!(
                f,
                "tap {name}: process {holder} has it; end that one or use another tap"
            ),
            TapErrorKind::Busy { holder: None } => write!(
                f,
                "tap {name}: another process has it; end that one (to find it: \
                 sudo grep -lx 'iff:.{name}' /proc/[0-9]*/fdinfo/*) or use another tap"
            ),
            TapErrorKind::SingleQueue => write!(
                f,
                "tap {name}: it has one queue, and {} were wanted; use --queues 1, or make it \
                 anew: sudo ip link delete {name} && {}",
                self.queue_pairs,
                self.create()
            ),
            TapErrorKind::NotTap => write!(
                f,
                "tap {name}: the interface exists but is no tap; choose another name, for example \
                 one made with: sudo ip tuntap add dev fer0 mode tap user $(id -un) && \
                 sudo ip link set fer0 up"
            ),
            TapErrorKind::QueueCount => write!(
                f,
                "tap {name}: {} queues cannot be had; the kernel gives 1 to 256, less those that \
                 other processes use: set --queues accordingly",
                self.queue_pairs
            ),
            TapErrorKind::NoFeature(feature) => write!(
                f,
                "tap {name}: this kernel's tun driver has no {feature}; Linux 4.0 or newer has it"
            ),
            TapErrorKind::System { what, source } => write!(f, "tap {name}: {what}: {source}"),
        }
    }
}

impl Error for TapError {
    // The message holds the causes' text already.
}
