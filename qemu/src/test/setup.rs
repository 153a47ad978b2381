// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How a bed is made.

use std::fmt;

use crate::artefacts::kernel::Flavour;
use crate::backend::Uplink;
use crate::driver::Driver;
use crate::machine::nic::Attach;

/// The NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Ours.
    Ours(Attach),
    /// QEMU's own virtio-net on a tap: the device that our driver was not made for.
    Qemu,
}

/// How a bed is made. Scenarios with equal setups share a bed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// The NIC.
    pub port: Port,
    /// Where the cable goes.
    pub uplink: Uplink,
    /// Pairs of queues.
    pub queues: usize,
    /// The NIC's MTU, if it is not the usual one.
    pub mtu: Option<u16>,
    /// More properties of QEMU's virtio-net-pci (all but the device attachment).
    pub properties: &'static [&'static str],
    /// More options of `ferronic serve`.
    pub serve: &'static [&'static str],
    /// What this setup is called beside NIC and uplink.
    pub label: &'static str,
    /// CPUs of the guest.
    pub cpus: usize,
    /// Whether the NIC is behind an IOMMU.
    pub iommu: bool,
    /// What drives the NIC.
    pub driver: Driver,
    /// The guest's kernel.
    pub kernel: Flavour,
}

impl Setup {
    /// Our NIC, plain.
    pub const fn new(attach: Attach, uplink: Uplink) -> Self {
        Setup {
            port: Port::Ours(attach),
            uplink,
            queues: 1,
            mtu: None,
            properties: &[],
            serve: &[],
            label: "",
            cpus: 2,
            iommu: false,
            driver: Driver::C,
            kernel: Flavour::Base,
        }
    }

    /// QEMU's own NIC on a tap.
    pub const fn qemu() -> Self {
        let mut setup = Setup::new(Attach::Netdev, Uplink::Tap);
        setup.port = Port::Qemu;
        setup
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

    /// With so many CPUs in the guest.
    pub const fn cpus(mut self, cpus: usize) -> Self {
        self.cpus = cpus;
        self
    }

    /// Behind an IOMMU, for devices of QEMU's own.
    pub const fn iommu(mut self) -> Self {
        self.iommu = true;
        self.properties("iommu", &["iommu_platform=on", "disable-legacy=on"])
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

    /// With options of `ferronic serve`.
    pub const fn serve(mut self, label: &'static str, options: &'static [&'static str]) -> Self {
        self.label = label;
        self.serve = options;
        self
    }

    /// Whether the NIC is plain and on a tap, or behind an IOMMU.
    pub fn is_usual(&self) -> bool {
        let plain = self.label.is_empty() && self.queues == 1 && self.cpus == 2;
        self.uplink == Uplink::Tap && self.mtu.is_none() && (plain || self.iommu)
    }

    /// With this driver on this kernel.
    pub const fn driven(mut self, driver: Driver, kernel: Flavour) -> Self {
        (self.driver, self.kernel) = (driver, kernel);
        self
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nic = match self.port {
            Port::Ours(attach) => attach.name(),
            Port::Qemu => "qemu",
        };
        write!(f, "{nic}-{}", self.uplink.name())?;
        if self.queues > 1 {
            write!(f, "-{}q", self.queues)?;
        }
        if self.cpus != 2 {
            write!(f, "-{}cpu", self.cpus)?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, "-mtu{mtu}")?;
        }
        if !self.label.is_empty() {
            write!(f, "-{}", self.label)?;
        }
        if self.driver != Driver::C {
            write!(f, "-{}", self.driver.name())?;
        }
        if self.kernel == Flavour::Debug {
            f.write_str("-debug")?;
        }
        Ok(())
    }
}
