// SPDX-License-Identifier: GPL-2.0

//! Notification coalescing (VIRTIO 1.3, 5.1.6.5.9): the device holds interrupts back until some
//! packets have been used, or some time has passed.

use super::{
    control::{
        self,
        Command, //
    },
    features,
    nic::{
        Control,
        Nic, //
    }, //
    queues::{
        rx_queue,
        tx_queue, //
    },
};
use crate::{
    net::{
        ethtool::Coalesce,
        Moderation, //
    },
    virtio::Features, //
};
use kernel::{
    prelude::*,
    sync::atomic::Relaxed, //
};

/// `struct virtio_net_ctrl_coal`, which the commands for one direction have alone.
fn encode(moderation: Moderation) -> [u8; 8] {
    let mut octets = [0; 8];
    let (frames, usecs) = octets.split_at_mut(4);
    frames.copy_from_slice(&moderation.frames.to_le_bytes());
    usecs.copy_from_slice(&moderation.usecs.to_le_bytes());
    octets
}

/// `struct virtio_net_ctrl_coal_vq`.
fn encode_queue(queue: u16, moderation: Moderation) -> [u8; 12] {
    let mut octets = [0; 12];
    let (head, tail) = octets.split_at_mut(4);
    let (number, _reserved) = head.split_at_mut(2);
    number.copy_from_slice(&queue.to_le_bytes());
    tail.copy_from_slice(&encode(moderation));
    octets
}

pub(super) fn of_rx(coalesce: Coalesce) -> Moderation {
    Moderation {
        usecs: coalesce.rx_usecs,
        frames: coalesce.rx_frames,
    }
}

pub(super) fn of_tx(coalesce: Coalesce) -> Moderation {
    Moderation {
        usecs: coalesce.tx_usecs,
        frames: coalesce.tx_frames,
    }
}

impl<'a> Nic<'a> {
    /// Tells the device about one pair of queues, in one or both directions.
    ///
    /// `EOPNOTSUPP` if that cannot be told for one pair.
    pub(super) fn tell_queue_coalesce(
        &self,
        control: &mut Control<'a>,
        pair: u16,
        rx: Option<Moderation>,
        tx: Option<Moderation>,
    ) -> Result {
        let features = control.driven.as_ref().ok_or(ENODEV)?.features;
        let queues = [(rx_queue(pair), rx), (tx_queue(pair), tx)];
        let whole = [control::NOTF_COAL_RX_SET, control::NOTF_COAL_TX_SET];
        for ((queue, moderation), command) in queues.into_iter().zip(whole) {
            let Some(moderation) = moderation else {
                continue;
            };
            if features.contains(features::VQ_NOTF_COAL) {
                let octets = encode_queue(queue, moderation);
                self.command(control, control::NOTF_COAL_VQ_SET, &octets)?;
            } else if features.contains(features::NOTF_COAL) && self.pairs.len() == 1 {
                self.command(control, command, &encode(moderation))?;
            } else {
                return Err(EOPNOTSUPP);
            }
        }
        Ok(())
    }

    /// Tells the device about all pairs at once.
    pub(super) fn tell_coalesce(
        &self,
        control: &mut Control<'a>,
        rx: Option<Moderation>,
        tx: Option<Moderation>,
    ) -> Result {
        let features = control.driven.as_ref().ok_or(ENODEV)?.features;
        if features.contains(features::NOTF_COAL) {
            let mut tell = |command: Command, moderation: Option<Moderation>| match moderation {
                Some(moderation) => self.command(control, command, &encode(moderation)),
                None => Ok(()),
            };
            tell(control::NOTF_COAL_RX_SET, rx)?;
            return tell(control::NOTF_COAL_TX_SET, tx);
        }
        // CAST: There are at most 0x3fff pairs.
        for pair in 0..self.pairs.len() as u16 {
            self.tell_queue_coalesce(control, pair, rx, tx)?;
        }
        Ok(())
    }

    /// Tells the device after a reset, which has made it forget.
    pub(super) fn tell_coalesce_again(&self, control: &mut Control<'a>) -> Result {
        let features = control.driven.as_ref().ok_or(ENODEV)?.features;
        if !can_coalesce(features) {
            return Ok(());
        }
        let all = control.wishes.coalesce;
        self.tell_coalesce(control, Some(of_rx(all)), Some(of_tx(all)))?;
        for pair in 0..self.pairs.len() {
            let Some(one) = control.wishes.pair_coalesce.get(pair).copied() else {
                continue;
            };
            if one != all {
                // CAST: As in `tell_coalesce`.
                let (rx, tx) = (Some(of_rx(one)), Some(of_tx(one)));
                self.tell_queue_coalesce(control, pair as u16, rx, tx)?;
            }
        }
        Ok(())
    }

    /// Whether interrupts of single receive queues can be held back, as needed for doing so by
    /// what arrives.
    pub(super) fn can_adapt(&self, features: Features) -> bool {
        features.contains(features::VQ_NOTF_COAL)
            || features.contains(features::NOTF_COAL) && self.pairs.len() == 1
    }

    /// Turns adapting to what arrives on or off for a pair. Polling notices.
    pub(super) fn set_adaptive(&self, pair: usize, on: bool) {
        if let Some(pair) = self.pairs.get(pair) {
            pair.rx.handler().adaptive.store(on, Relaxed);
        }
    }

    /// Tells the device what was decided by what arrives.
    pub(super) fn moderate(&self, control: &mut Control<'a>) {
        for index in 0..self.pairs.len() {
            let Some(driven) = control.driven.as_mut() else {
                return;
            };
            let Some(decision) = driven.decisions.get_mut(index).and_then(|d| d.get()) else {
                continue;
            };
            let coalesce = control.wishes.pair_coalesce.get(index).copied();
            if let Some(before) = coalesce.filter(|coalesce| coalesce.adaptive_rx) {
                // CAST: As in `tell_coalesce`. Tried again at the next decision if it fails.
                let told = self
                    .tell_queue_coalesce(control, index as u16, Some(decision), None)
                    .is_ok();
                if let Some(now) = control.wishes.pair_coalesce.get_mut(index).filter(|_| told) {
                    *now = Coalesce {
                        rx_usecs: decision.usecs,
                        rx_frames: decision.frames,
                        ..before
                    };
                }
            }
            let driven = control.driven.as_mut();
            if let Some(decisions) = driven.and_then(|d| d.decisions.get_mut(index)) {
                decisions.acknowledge();
            }
        }
    }
}

/// Whether the device holds interrupts back at all.
pub(super) fn can_coalesce(features: Features) -> bool {
    features.intersects(features::NOTF_COAL | features::VQ_NOTF_COAL)
}

#[kunit_tests(ferronic_coalesce)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_before_time() {
        let moderation = Moderation {
            usecs: 0x0102_0304,
            frames: 0x0a0b,
        };
        assert_eq!(encode(moderation), [0x0b, 0x0a, 0, 0, 4, 3, 2, 1]);
        assert_eq!(
            encode_queue(0x105, moderation),
            [5, 1, 0, 0, 0x0b, 0x0a, 0, 0, 4, 3, 2, 1]
        );
    }
}
