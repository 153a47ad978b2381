// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a scenario runs on: a backend, a machine with it as NIC, and addresses on the cable.

use std::fmt;
use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;

use crate::backend::{Backend, Options, Uplink};
use crate::cable::Cable;
use crate::guest::Guest;
use crate::host::tail;
use crate::lab::Lab;
use crate::machine::nic::{Attach, Nic};
use crate::machine::{Machine, Spec};
use crate::net;

/// How a bed is made. Scenarios with equal setups share a bed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// How the NIC is plugged in.
    pub attach: Attach,
    /// Where the cable goes.
    pub uplink: Uplink,
    /// Pairs of queues.
    pub queues: usize,
    /// The NIC's MTU, if it is not the usual one.
    pub mtu: Option<u16>,
    /// More properties of QEMU's virtio-net-pci (netdev attachment): `-global virtio-net-pci.X`.
    pub properties: &'static [&'static str],
    /// What this setup is called beside attachment and uplink.
    pub label: &'static str,
}

impl Setup {
    /// The plain NIC.
    pub const fn new(attach: Attach, uplink: Uplink) -> Self {
        Setup {
            attach,
            uplink,
            queues: 1,
            mtu: None,
            properties: &[],
            label: "",
        }
    }

    /// With pairs of queues.
    pub const fn queues(mut self, queues: usize) -> Self {
        self.queues = queues;
        self
    }

    /// With an MTU.
    pub const fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// With properties of QEMU's device.
    pub const fn properties(
        mut self,
        label: &'static str,
        properties: &'static [&'static str],
    ) -> Self {
        self.label = label;
        self.properties = properties;
        self
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.attach.name(), self.uplink.name())?;
        if self.queues > 1 {
            write!(f, "-{}q", self.queues)?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, "-mtu{mtu}")?;
        }
        if !self.label.is_empty() {
            write!(f, "-{}", self.label)?;
        }
        Ok(())
    }
}

/// A bed.
#[derive(Debug)]
pub struct Bed<'a> {
    /// The lab it is in.
    pub lab: &'a Lab,
    /// How it was made.
    pub setup: Setup,
    /// The NIC.
    pub backend: Backend,
    /// The machine it is in.
    pub machine: Machine,
    /// Its cable.
    pub cable: Cable,
}

impl<'a> Bed<'a> {
    /// Makes a bed.
    pub fn make(lab: &'a Lab, setup: Setup) -> Result<Self> {
        if setup.uplink == Uplink::Tap {
            net::make_tap(lab, setup.queues > 1)?;
            if let Some(mtu) = setup.mtu {
                net::ip(lab, &format!("link set {} mtu {mtu}\n", net::TAP))?;
            }
        }
        let mut options = Options {
            queues: setup.queues,
            ..Options::new(setup.uplink)
        };
        // Chosen, so that it is the same after a restart and in every log.
        options.extra.extend([
            "--mac".into(),
            GUEST_MAC.into(),
            "--log".into(),
            "debug".into(),
        ]);
        if let Some(mtu) = setup.mtu {
            options.extra.extend(["--mtu".into(), mtu.to_string()]);
        }
        let backend = Backend::start(lab, &options)?;
        let machine = Self::boot(lab, setup, &backend)?;
        let cable = Cable::lay(lab, &machine.guest, setup.uplink)?;
        Ok(Bed {
            lab,
            setup,
            backend,
            machine,
            cable,
        })
    }

    fn boot(lab: &Lab, setup: Setup, backend: &Backend) -> Result<Machine> {
        let mut nic = backend.nic(setup.attach, setup.queues)?;
        if let Nic::Backend(arguments) = &mut nic
            && setup.attach == Attach::Netdev
        {
            let mut global = |property: &str| {
                arguments.extend(["-global".to_owned(), format!("virtio-net-pci.{property}")]);
            };
            global(&format!("mac={GUEST_MAC}"));
            if let Some(mtu) = setup.mtu {
                global(&format!("host_mtu={mtu}"));
            }
            setup.properties.iter().for_each(|p| global(p));
        }
        Machine::boot(lab, &Spec::new(setup.to_string(), nic))
    }

    /// Kills QEMU, starts another on the same backend, and sets up the guest again.
    pub fn replace_machine(&mut self) -> Result<()> {
        self.machine.kill();
        self.machine = Self::boot(self.lab, self.setup, &self.backend)?;
        self.lay_cable()
    }

    /// Sets up the guest's addresses again, after the guest has booted.
    pub fn lay_cable(&mut self) -> Result<()> {
        self.cable
            .lay_again(self.lab, &self.machine.guest, self.setup.uplink)
    }

    /// The guest.
    pub fn guest(&self) -> &Guest {
        &self.machine.guest
    }

    /// Ends everything in good order.
    pub fn close(self) -> Result<()> {
        self.machine.quit()?;
        self.backend.terminate()
    }

    /// All that may help to find out why a scenario failed.
    pub fn diagnosis(&self) -> String {
        let mut text = String::new();
        let guest = match self.machine.ended() {
            Some(status) => format!("QEMU has ended with {status}"),
            None => match self
                .guest()
                .try_sh("dmesg | tail -n 25; ip -s addr", Duration::from_secs(10))
            {
                Ok(output) => output.stdout,
                Err(e) => {
                    let console = std::fs::read(&self.machine.console_log).unwrap_or_default();
                    format!("{e:#}; its console's end:\n{}", tail(&console))
                }
            },
        };
        let log = std::fs::read(&self.backend.log).unwrap_or_default();
        let qemu = std::fs::read(&self.machine.qemu_log).unwrap_or_default();
        let _ = writeln!(text, "--- guest\n{}", guest.trim_end());
        let _ = writeln!(text, "--- backend ({})", self.backend.log.display());
        if let Some(status) = self.backend.ended() {
            let _ = writeln!(text, "it has ended with {status}");
        }
        let _ = writeln!(text, "{}", tail(&log));
        if let Ok(stats) = self.backend.control(&["stats"]) {
            let _ = writeln!(text, "{}", stats.trim_end());
        }
        let _ = writeln!(
            text,
            "--- QEMU ({})\n{}",
            self.machine.qemu_log.display(),
            tail(&qemu)
        );
        let _ = writeln!(
            text,
            "--- command lines\n{}\n{}",
            self.backend.command_line(),
            self.machine.command_line
        );
        text
    }
}

/// The guest's address on every bed.
pub const GUEST_MAC: &str = "52:54:00:fe:00:01";
