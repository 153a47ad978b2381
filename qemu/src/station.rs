// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest among others on one network, with the addresses that its number gives it.

use anyhow::Result;

use crate::cable::{INTERFACE, wait_carrier};
use crate::lab::Lab;
use crate::machine::{Machine, Spec};

/// A guest.
#[derive(Debug)]
pub struct Station {
    /// Its IPv4 address.
    pub address: String,
    /// Its machine.
    pub machine: Machine,
}

/// The Ethernet address of the guest with this number.
pub fn mac(number: u8) -> String {
    format!("52:54:00:fe:00:{number:02x}")
}

impl Station {
    /// Boots the guest with this number. It has to be told its Ethernet address.
    pub fn boot(lab: &Lab, spec: &Spec, number: u8) -> Result<Self> {
        Ok(Station {
            address: format!("10.77.0.{number}"),
            machine: Machine::boot(lab, spec)?,
        })
    }

    /// Gives it its address, and waits until it is there for the others.
    pub fn join(&self) -> Result<()> {
        let guest = &self.machine.guest;
        guest.sh(&format!(
            "ip link set {INTERFACE} up && ip addr add {}/24 dev {INTERFACE}",
            self.address
        ))?;
        wait_carrier(guest, true)
    }
}
