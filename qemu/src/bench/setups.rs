// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The set-ups that are measured: a guest whose NIC is ours or a peer's.
//!
//! All have the same machine, kernel and image, and but for the bench of drivers the same driver;
//! only the NIC's backend differs. Peers run as their own documentation starts them.

use anyhow::Result;

use super::passt::{Mode, Passt};
use super::turns::Subject;
use crate::backend::{Backend, Options, Uplink};
use crate::cable::Cable;
use crate::lab::Lab;
use crate::machine::nic::{Attach, Nic};
use crate::machine::{Machine, Spec};
use crate::net;

/// A set-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// Our NIC, with so many pairs of queues.
    Ours(Attach, Uplink, usize),
    /// QEMU's virtio-net on a tap, in QEMU's own process, with so many pairs of queues.
    QemuTap(usize),
    /// QEMU's virtio-net with its built-in user-mode network (libslirp).
    QemuUser,
    /// QEMU's virtio-net with passt behind a socket.
    PasstStream,
    /// virtio-net with passt as its vhost-user backend.
    PasstVhostUser,
}

impl Subject for Setup {
    fn name(self) -> String {
        let (name, pairs) = match self {
            Setup::Ours(Attach::Netdev, uplink, pairs) => {
                (format!("ferronic-{}", uplink.name()), pairs)
            }
            Setup::Ours(Attach::Device, uplink, pairs) => {
                (format!("ferronic-device-{}", uplink.name()), pairs)
            }
            Setup::QemuTap(pairs) => ("qemu-tap".to_owned(), pairs),
            Setup::QemuUser => ("qemu-user".to_owned(), 1),
            Setup::PasstStream => ("passt-stream".to_owned(), 1),
            Setup::PasstVhostUser => ("passt-vhost-user".to_owned(), 1),
        };
        match pairs {
            1 => name,
            pairs => format!("{name}-{pairs}q"),
        }
    }

    fn is_ours(self) -> bool {
        matches!(self, Setup::Ours(..))
    }
}

impl Setup {
    /// What the guest's end of the cable must be set up for.
    fn cable(self) -> Uplink {
        match self {
            Setup::Ours(_, uplink, _) => uplink,
            Setup::QemuTap(_) => Uplink::Tap,
            // All of them give an address by DHCP, and their gateway leads to the host's loopback.
            Setup::QemuUser | Setup::PasstStream | Setup::PasstVhostUser => Uplink::User,
        }
    }

    fn pairs(self) -> usize {
        match self {
            Setup::Ours(_, _, pairs) | Setup::QemuTap(pairs) => pairs,
            Setup::QemuUser | Setup::PasstStream | Setup::PasstVhostUser => 1,
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
            net::make_tap(lab, setup.pairs() > 1)?;
        }
        let (nic, behind) = match setup {
            Setup::Ours(attach, uplink, queues) => {
                let options = Options {
                    queues,
                    ..Options::new(uplink)
                };
                let backend = Backend::start(lab, &options)?;
                (backend.nic(attach, queues)?, Behind::Ferronic(backend))
            }
            Setup::QemuTap(queues) => (
                Nic::Tap {
                    name: net::TAP.into(),
                    queues,
                },
                Behind::Qemu,
            ),
            Setup::QemuUser => (Nic::User, Behind::Qemu),
            Setup::PasstStream => {
                let passt = Passt::start(lab, Mode::Stream)?;
                (
                    Nic::Stream {
                        socket: passt.socket.clone(),
                        listens: false,
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
