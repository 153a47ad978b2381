// SPDX-License-Identifier: GPL-2.0

//! How received packets are spread over queues: `ethtool -x`, `-X`, and `-N DEV rx-flow-hash`.

use super::super::{
    nic::{
        Control,
        Nic, //
    },
    rss::Rss, //
};
use crate::net::{
    ethtool::{
        ExtAck,
        FlowHash,
        FlowType,
        HashFunction,
        RxfhChange, //
    },
    Device, //
};
use kernel::prelude::*;

impl<'a> Nic<'a> {
    /// Sizes of the table and the key; 0 if the device has none.
    pub(super) fn flow_hash_sizes(&self) -> (u32, u32) {
        let control = self.control.lock();
        // CAST: Neither is larger than 16 bits.
        let sizes = |rss: &Rss| (rss.table.len() as u32, rss.key.len() as u32);
        control.wishes.rss.as_ref().map_or((0, 0), sizes)
    }

    pub(super) fn flow_hash(&self, table: &mut [u32], key: &mut [u8]) -> Result<HashFunction> {
        let control = self.control.lock();
        let rss = control.wishes.rss.as_ref().ok_or(EOPNOTSUPP)?;
        for (to, from) in table.iter_mut().zip(&rss.table) {
            *to = (*from).into();
        }
        for (to, from) in key.iter_mut().zip(&rss.key) {
            *to = *from;
        }
        Ok(HashFunction::Toeplitz)
    }

    pub(super) fn change_flow_hash(
        &self,
        dev: &Device<Self>,
        change: RxfhChange<'_>,
        ack: ExtAck<'_>,
    ) -> Result {
        if change.function.is_some_and(|f| f != HashFunction::Toeplitz) {
            return Err(ack.refuse(EOPNOTSUPP, c"the device only knows toeplitz"));
        }
        self.change_rss(dev, |rss, pairs| {
            if let Some(table) = change.table {
                rss.set_table(table, pairs)?;
            }
            if let Some(key) = change.key {
                if key.len() != rss.key.len() {
                    return Err(EINVAL);
                }
                rss.key.copy_from_slice(key);
            }
            Ok(())
        })
    }

    pub(super) fn flow_hash_fields(&self, flow: FlowType) -> Result<FlowHash> {
        let control = self.control.lock();
        let rss = control.wishes.rss.as_ref().ok_or(EOPNOTSUPP)?;
        Ok(rss.types.get(flow))
    }

    pub(super) fn change_flow_hash_fields(
        &self,
        dev: &Device<Self>,
        flow: FlowType,
        hash: FlowHash,
        mut ack: ExtAck<'_>,
    ) -> Result {
        self.change_rss(dev, |rss, _pairs| {
            rss.types = rss
                .types
                .with(rss.limits.types, flow, hash)
                .inspect_err(|_| {
                    ack.set(c"the device cannot do that for this flow, or only for others, too");
                })?;
            Ok(())
        })
    }

    /// Changes how packets are spread, and tells the device. If it refuses nothing has changed.
    fn change_rss(
        &self,
        dev: &Device<Self>,
        change: impl FnOnce(&mut Rss, u16) -> Result,
    ) -> Result {
        let mut control = self.control.lock();
        let Control { wishes, .. } = &mut *control;
        let mut rss = wishes.rss.as_ref().ok_or(EOPNOTSUPP)?.try_clone()?;
        change(&mut rss, wishes.pairs)?;
        let before = wishes.rss.replace(rss);
        let result = self.tell_pairs(&mut control);
        if result.is_err() {
            control.wishes.rss = before;
        }
        self.check_control(dev, &control);
        result
    }
}
