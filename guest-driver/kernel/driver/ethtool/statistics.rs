// SPDX-License-Identifier: GPL-2.0

//! Statistics of each queue, the driver's and the device's own: `ethtool -S`.
//!
//! Those of the whole interface are where they are for all devices: `ip -s -s link`. Names of what
//! the device has counted have `dev` in them.

use super::super::{
    control,
    device_stats::{
        self,
        Kind, //
    },
    nic::{
        Control,
        Nic, //
    }, //
    queues::{
        rx_queue,
        tx_queue, //
    },
};
use crate::net::{
    ethtool::Statistics,
    Device, //
};
use kernel::{
    fmt,
    prelude::*, //
};

/// Whose statistics: `rx3` and the like.
#[derive(Clone, Copy)]
enum Queue {
    Rx(u16),
    Tx(u16),
    Control(u16),
}

impl Queue {
    fn number(self) -> u16 {
        match self {
            Self::Rx(pair) => rx_queue(pair),
            Self::Tx(pair) => tx_queue(pair),
            Self::Control(number) => number,
        }
    }

    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Rx(_) => &device_stats::RX,
            Self::Tx(_) => &device_stats::TX,
            Self::Control(_) => &device_stats::CONTROL,
        }
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rx(pair) => write!(f, "rx{pair}"),
            Self::Tx(pair) => write!(f, "tx{pair}"),
            Self::Control(_) => f.write_str("control"),
        }
    }
}

impl<'a> Nic<'a> {
    /// Tells all, of queues in use or not: counters of a queue stay when it is not used any more.
    pub(super) fn tell_statistics(&self, dev: &Device<Self>, list: &mut Statistics<'_>) {
        let mut control = self.control.lock();
        list.add(fmt!("resets"), control.recovery.total());
        for (pair, i) in self.pairs.iter().zip(0u16..) {
            for (name, counter) in pair.rx.handler().stats.named() {
                list.add(fmt!("rx{}_{}", i, name), counter.get());
            }
            self.tell_device_statistics(&mut control, Queue::Rx(i), list);
        }
        for (pair, i) in self.pairs.iter().zip(0u16..) {
            for (name, counter) in pair.tx.handler().stats.named() {
                list.add(fmt!("tx{}_{}", i, name), counter.get());
            }
            self.tell_device_statistics(&mut control, Queue::Tx(i), list);
        }
        let number = control.driven.as_ref().and_then(|d| d.control_index());
        if let Some(number) = number {
            self.tell_device_statistics(&mut control, Queue::Control(number), list);
        }
        self.check_control(dev, &control);
    }

    /// Tells what the device has counted of a queue; 0 if it does not say.
    fn tell_device_statistics(
        &self,
        control: &mut Control<'a>,
        queue: Queue,
        list: &mut Statistics<'_>,
    ) {
        let Some(driven) = control.driven.as_mut() else {
            return;
        };
        let all = driven.statistics;
        let types = device_stats::types_of(queue.kinds(), all);
        if types == 0 {
            return;
        }
        let number = queue.number();
        let mut answer = [0; device_stats::MAX_REPLY];
        let mut len = 0;
        if let Some(queue) = driven.control.as_mut().filter(|_| list.wants_values()) {
            let request = device_stats::request(number, types);
            let result = queue.ask(control::STATS_GET, &request, &mut answer);
            len = result.unwrap_or(0);
        }
        let answer = answer.get(..len).unwrap_or_default();
        for kind in queue.kinds().iter().filter(|kind| kind.is_in(all)) {
            let mut values = kind.values(answer, number);
            for name in kind.names {
                let value = values.next().unwrap_or(0);
                list.add(fmt!("{}_dev_{}", queue, *name), value);
            }
        }
    }
}
