// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The set-ups that are measured: a guest whose NIC is ours or a peer's.
//!
//! All have the same machine, kernel and image, and but for the bench of drivers the same driver;
//! only the NIC's backend differs. Peers run as their own documentation starts them.

use anyhow::Result;

use super::passt::{Mode, Passt};
use crate::backend::{Backend, Options, Uplink};
use crate::cable::Cable;
use crate::lab::Lab;
use crate::machine::nic::{Attach, Nic};
use crate::machine::{Machine, Spec};
use crate::net;

/// A set-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// Our NIC.
    Ours(Attach, Uplink),
    /// QEMU's virtio-net on a tap, in QEMU's own process.
    QemuTap,
    /// QEMU's virtio-net with its built-in user-mode network (libslirp).
    QemuUser,
    /// QEMU's virtio-net with passt behind a socket.
    PasstStream,
    /// virtio-net with passt as its vhost-user backend.
    PasstVhostUser,
}

impl Setup {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Setup::Ours(Attach::Netdev, Uplink::Tap) => "ferronic-tap",
            Setup::Ours(Attach::Netdev, Uplink::User) => "ferronic-user",
            Setup::Ours(Attach::Netdev, Uplink::Loopback) => "ferronic-loopback",
            Setup::Ours(Attach::Device, Uplink::Tap) => "ferronic-device-tap",
            Setup::Ours(Attach::Device, Uplink::User) => "ferronic-device-user",
            Setup::Ours(Attach::Device, Uplink::Loopback) => "ferronic-device-loopback",
            Setup::Ours(Attach::Netdev, Uplink::Switch) => "ferronic-switch",
            Setup::Ours(Attach::Device, Uplink::Switch) => "ferronic-device-switch",
            Setup::Ours(Attach::Netdev, Uplink::SwitchUser) => "ferronic-switch-user",
            Setup::Ours(Attach::Device, Uplink::SwitchUser) => "ferronic-device-switch-user",
            Setup::QemuTap => "qemu-tap",
            Setup::QemuUser => "qemu-user",
            Setup::PasstStream => "passt-stream",
            Setup::PasstVhostUser => "passt-vhost-user",
        }
    }

    /// Whether it is ours.
    pub fn is_ours(self) -> bool {
        matches!(self, Setup::Ours(..))
    }

    /// What the guest's end of the cable must be set up for.
    fn cable(self) -> Uplink {
        match self {
            Setup::Ours(_, uplink) => uplink,
            Setup::QemuTap => Uplink::Tap,
            // All of them give an address by DHCP, and their gateway leads to the host's loopback.
            Setup::QemuUser | Setup::PasstStream | Setup::PasstVhostUser => Uplink::User,
        }
    }
}

/// What is behind the NIC, if it is a process of its own.
#[derive(Debug)]
pub enum Behind {
    /// Nothing: QEMU does it itself.
    Qemu,
    /// Our backend.
    Ferronic(Backend),
    /// passt.
    Passt(Passt),
}

/// A set-up that runs. What is declared first is dropped first: the machine before what is behind
/// its NIC.
#[derive(Debug)]
pub struct Rig {
    /// The machine.
    pub machine: Machine,
    /// Its cable, with an iperf3 server at the far end.
    pub cable: Cable,
    /// What is behind its NIC.
    pub behind: Behind,
}

impl Rig {
    /// Starts everything, with the stock driver in the guest.
    pub fn start(lab: &Lab, setup: Setup) -> Result<Self> {
        Self::start_with(lab, setup, |_| ())
    }

    /// The same with a machine that is changed before it starts.
    pub fn start_with(lab: &Lab, setup: Setup, change: impl FnOnce(&mut Spec)) -> Result<Self> {
        if setup.cable().needs_tap() {
            // The same kind of tap for all, and nothing left in it by the one before.
            net::make_tap(lab, false)?;
        }
        let (nic, behind) = match setup {
            Setup::Ours(attach, uplink) => {
                let backend = Backend::start(lab, &Options::new(uplink))?;
                (backend.nic(attach, 1)?, Behind::Ferronic(backend))
            }
            Setup::QemuTap => (
                Nic::Tap {
                    name: net::TAP.into(),
                    queues: 1,
                },
                Behind::Qemu,
            ),
            Setup::QemuUser => (Nic::User, Behind::Qemu),
            Setup::PasstStream => {
                let passt = Passt::start(lab, Mode::Stream)?;
                (
                    Nic::Stream {
                        socket: passt.socket.clone(),
                    },
                    Behind::Passt(passt),
                )
            }
            Setup::PasstVhostUser => {
                let passt = Passt::start(lab, Mode::VhostUser)?;
                let nic = Nic::VhostUser {
                    socket: passt.socket.clone(),
                    queues: 1,
                };
                (nic, Behind::Passt(passt))
            }
        };
        let mut spec = Spec::new(setup.name(), nic);
        change(&mut spec);
        let machine = Machine::boot(lab, &spec)?;
        let cable = Cable::lay(lab, &machine.guest, setup.cable())?;
        Ok(Rig {
            machine,
            cable,
            behind,
        })
    }

    /// Our backend, in a set-up of ours.
    pub fn backend(&self) -> Option<&Backend> {
        match &self.behind {
            Behind::Ferronic(backend) => Some(backend),
            _ => None,
        }
    }

    /// The process behind the NIC, if it is one of its own.
    pub fn behind_pid(&self) -> Option<u32> {
        match &self.behind {
            Behind::Qemu => None,
            Behind::Ferronic(backend) => Some(backend.pid()),
            Behind::Passt(passt) => Some(passt.pid()),
        }
    }

    /// Ends everything in good order.
    pub fn stop(self) -> Result<()> {
        self.machine.quit()?;
        match self.behind {
            Behind::Ferronic(backend) => backend.terminate(),
            Behind::Qemu | Behind::Passt(_) => Ok(()),
        }
    }
}
