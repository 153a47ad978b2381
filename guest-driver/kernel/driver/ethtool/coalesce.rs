// SPDX-License-Identifier: GPL-2.0

//! Holding interrupts back: `ethtool -c` and `-C`.

use super::super::nic::Nic;
use crate::net::{
    ethtool::{
        Coalesce,
        ExtAck, //
    },
    Device, //
};
use kernel::prelude::*;

/// What a device does that holds nothing back: an interrupt for each packet, at once.
const AT_ONCE: Coalesce = Coalesce {
    rx_usecs: 0,
    rx_frames: 1,
    tx_usecs: 0,
    tx_frames: 1,
    adaptive_rx: false,
};

impl Nic<'_> {
    pub(super) fn coalesce(&self) -> Result<Coalesce> {
        Ok(AT_ONCE)
    }

    pub(super) fn change_coalesce(
        &self,
        _dev: &Device<Self>,
        coalesce: Coalesce,
        ack: ExtAck<'_>,
    ) -> Result {
        if coalesce == AT_ONCE {
            return Ok(());
        }
        Err(ack.refuse(EOPNOTSUPP, c"the device does not hold interrupts back"))
    }
}
