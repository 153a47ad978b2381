// SPDX-License-Identifier: GPL-2.0

//! What ethtool shows of the card and changes on it.
//!
//! All of it is called with RTNL held, so that nothing else changes the card meanwhile but the
//! device itself.

mod coalesce;
mod flow_hash;
mod messages;
mod registers;
mod self_test;
mod statistics;

pub(super) use messages::Messages;

use super::nic::Nic;
use crate::{
    net::{
        ethtool::{
            Channels,
            Coalesce,
            CoalesceParameters,
            Ethtool,
            ExtAck,
            FlowHash,
            FlowType,
            HashFunction,
            LinkSettings,
            Rings,
            RxfhChange,
            Statistics,
            TestResult, //
        },
        Device, //
    },
    virtio::best_size, //
};
use kernel::prelude::*;

/// The smallest ring. A packet of 64 KiB takes up to 18 descriptors when sent, and 33 buffers of
/// the smallest kind when received.
const MIN_RING: u32 = 64;

#[vtable]
impl Ethtool for Nic<'_> {
    const COALESCE_PARAMETERS: CoalesceParameters = CoalesceParameters::USECS
        .with(CoalesceParameters::FRAMES)
        .with(CoalesceParameters::ADAPTIVE_RX);
    const REGS_VERSION: u32 = registers::VERSION;
    const SELF_TESTS: &'static [&'static str] = &self_test::NAMES;

    fn get_msglevel(&self, _dev: &Device<Self>) -> u32 {
        self.messages.level()
    }

    fn set_msglevel(&self, _dev: &Device<Self>, level: u32) {
        self.messages.set_level(level);
    }

    fn get_link_ksettings(&self, _dev: &Device<Self>) -> Result<LinkSettings> {
        let control = self.control.lock();
        let link = control.driven.as_ref().ok_or(ENODEV)?.link;
        Ok(control.wishes.link.unwrap_or(LinkSettings {
            speed: link.speed,
            full_duplex: link.full_duplex,
        }))
    }

    /// Holds until the device says something else.
    fn set_link_ksettings(&self, _dev: &Device<Self>, settings: LinkSettings) -> Result {
        self.control.lock().wishes.link = Some(settings);
        Ok(())
    }

    fn get_ringparam(&self, _dev: &Device<Self>) -> Rings {
        let control = self.control.lock();
        control
            .driven
            .as_ref()
            .map_or(Rings::default(), |d| d.rings)
    }

    /// Rings are made anew: what is on its way is lost.
    fn set_ringparam(&self, dev: &Device<Self>, rx: u32, tx: u32, ack: ExtAck<'_>) -> Result {
        let rings = self.get_ringparam(dev);
        let possible = |size: u32, max: u32| -> Option<u16> {
            let size = u16::try_from(size).ok()?;
            (best_size(max.try_into().ok()?, size) == Some(size)).then_some(size)
        };
        let (Some(rx), Some(tx)) = (possible(rx, rings.rx_max), possible(tx, rings.tx_max)) else {
            return Err(ack.refuse(EINVAL, c"the number of descriptors must be a power of two"));
        };
        let enough = |size: u16, max: u32| u32::from(size) >= MIN_RING.min(max);
        if !enough(rx, rings.rx_max) || !enough(tx, rings.tx_max) {
            return Err(ack.refuse(
                EINVAL,
                c"a large packet would not fit into so few descriptors",
            ));
        }
        if (rx.into(), tx.into()) == (rings.rx, rings.tx) {
            return Ok(());
        }
        self.set_queue_sizes(dev, rx, tx)
    }

    fn get_channels(&self, _dev: &Device<Self>) -> Channels {
        let control = self.control.lock();
        let combined_max = control
            .driven
            .as_ref()
            .map_or(0, |driven| self.default_pairs(driven).into());
        Channels {
            combined: control.wishes.pairs.into(),
            combined_max,
        }
    }

    fn set_channels(&self, dev: &Device<Self>, combined: u32) -> Result {
        self.set_pairs(dev, combined.try_into()?)
    }

    fn get_coalesce(&self, _dev: &Device<Self>) -> Result<Coalesce> {
        self.coalesce()
    }

    fn set_coalesce(&self, dev: &Device<Self>, coalesce: Coalesce, ack: ExtAck<'_>) -> Result {
        self.change_coalesce(dev, coalesce, ack)
    }

    fn get_per_queue_coalesce(&self, _dev: &Device<Self>, queue: u32) -> Result<Coalesce> {
        self.queue_coalesce(queue)
    }

    fn set_per_queue_coalesce(&self, dev: &Device<Self>, queue: u32, coalesce: Coalesce) -> Result {
        self.change_queue_coalesce(dev, queue, coalesce)
    }

    fn get_ethtool_stats(&self, dev: &Device<Self>, list: &mut Statistics<'_>) {
        self.tell_statistics(dev, list);
    }

    fn get_regs_len(&self, _dev: &Device<Self>) -> u32 {
        self.registers_len()
    }

    fn get_regs(&self, _dev: &Device<Self>, dump: &mut [u8]) {
        self.dump_registers(dump);
    }

    fn self_test(&self, dev: &Device<Self>, offline: bool, results: &mut [TestResult]) {
        self.test(dev, offline, results);
    }

    fn get_rxfh_key_size(&self, _dev: &Device<Self>) -> u32 {
        self.flow_hash_sizes().1
    }

    fn get_rxfh_indir_size(&self, _dev: &Device<Self>) -> u32 {
        self.flow_hash_sizes().0
    }

    fn get_rxfh(
        &self,
        _dev: &Device<Self>,
        table: &mut [u32],
        key: &mut [u8],
    ) -> Result<HashFunction> {
        self.flow_hash(table, key)
    }

    fn set_rxfh(&self, dev: &Device<Self>, change: RxfhChange<'_>, ack: ExtAck<'_>) -> Result {
        self.change_flow_hash(dev, change, ack)
    }

    fn get_rxfh_fields(&self, _dev: &Device<Self>, flow: FlowType) -> Result<FlowHash> {
        self.flow_hash_fields(flow)
    }

    fn set_rxfh_fields(
        &self,
        dev: &Device<Self>,
        flow: FlowType,
        hash: FlowHash,
        ack: ExtAck<'_>,
    ) -> Result {
        self.change_flow_hash_fields(dev, flow, hash, ack)
    }
}
