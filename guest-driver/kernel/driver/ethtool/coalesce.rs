// SPDX-License-Identifier: GPL-2.0

//! Holding interrupts back: `ethtool -c` and `-C`, and both with `-Q`.

use super::super::{
    coalesce::{
        can_coalesce,
        of_rx,
        of_tx, //
    },
    nic::Nic, //
};
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

impl<'a> Nic<'a> {
    pub(super) fn coalesce(&self) -> Result<Coalesce> {
        let control = self.control.lock();
        let features = control.driven.as_ref().ok_or(ENODEV)?.features;
        if !can_coalesce(features) {
            return Ok(AT_ONCE);
        }
        Ok(control.wishes.coalesce)
    }

    pub(super) fn change_coalesce(
        &self,
        dev: &Device<Self>,
        coalesce: Coalesce,
        ack: ExtAck<'_>,
    ) -> Result {
        let mut control = self.control.lock();
        let features = control.driven.as_ref().ok_or(ENODEV)?.features;
        if !can_coalesce(features) {
            return if coalesce == AT_ONCE {
                Ok(())
            } else {
                Err(ack.refuse(EOPNOTSUPP, c"the device does not hold interrupts back"))
            };
        }
        let adaptive = coalesce.adaptive_rx;
        if adaptive && !self.can_adapt(features) {
            return Err(ack.refuse(EOPNOTSUPP, c"not for single queues, so it cannot adapt"));
        }
        let before = control.wishes.coalesce;
        if adaptive && of_rx(coalesce) != of_rx(before) {
            return Err(ack.refuse(EINVAL, c"adaptive-rx chooses rx-usecs and rx-frames itself"));
        }
        let rx = (!adaptive).then_some(of_rx(coalesce));
        let result = self.tell_coalesce(&mut control, rx, Some(of_tx(coalesce)));
        if result.is_ok() {
            control.wishes.coalesce = coalesce;
            for (index, one) in control.wishes.pair_coalesce.iter_mut().enumerate() {
                // What was chosen by what arrives goes on from there.
                *one = Coalesce {
                    rx_usecs: if adaptive {
                        one.rx_usecs
                    } else {
                        coalesce.rx_usecs
                    },
                    rx_frames: if adaptive {
                        one.rx_frames
                    } else {
                        coalesce.rx_frames
                    },
                    ..coalesce
                };
                self.set_adaptive(index, adaptive);
            }
        }
        self.check_control(dev, &control);
        result
    }

    pub(super) fn queue_coalesce(&self, queue: u32) -> Result<Coalesce> {
        let control = self.control.lock();
        let features = control.driven.as_ref().ok_or(ENODEV)?.features;
        let wishes = &control.wishes;
        if queue >= wishes.pairs.into() {
            return Err(EINVAL);
        }
        if !can_coalesce(features) {
            return Ok(AT_ONCE);
        }
        let one = wishes.pair_coalesce.get(queue as usize).copied();
        one.ok_or(EINVAL)
    }

    pub(super) fn change_queue_coalesce(
        &self,
        dev: &Device<Self>,
        queue: u32,
        coalesce: Coalesce,
    ) -> Result {
        let before = self.queue_coalesce(queue)?;
        let mut control = self.control.lock();
        let features = control.driven.as_ref().ok_or(ENODEV)?.features;
        if coalesce == before {
            return Ok(());
        }
        if !self.can_adapt(features) {
            return Err(EOPNOTSUPP);
        }
        let adaptive = coalesce.adaptive_rx;
        if adaptive && of_rx(coalesce) != of_rx(before) {
            return Err(EINVAL);
        }
        let pair = u16::try_from(queue)?;
        let rx = (!adaptive).then_some(of_rx(coalesce));
        let tx = Some(of_tx(coalesce));
        let result = self.tell_queue_coalesce(&mut control, pair, rx, tx);
        if result.is_ok() {
            if let Some(one) = control.wishes.pair_coalesce.get_mut(queue as usize) {
                *one = coalesce;
            }
            self.set_adaptive(queue as usize, adaptive);
        }
        self.check_control(dev, &control);
        result
    }
}
