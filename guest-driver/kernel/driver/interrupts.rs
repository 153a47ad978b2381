// SPDX-License-Identifier: GPL-2.0

//! Interrupts: who is told what by which vector.
//!
//! | vectors | configuration | pair `i` of queues |
//! |---|---|---|
//! | more than one | 0 | `1 + i`, in turn if there are fewer |
//! | one | 0 | 0 |
//! | INTx | the interrupt status tells | the same |
//!
//! A vector that configuration and queues share does not tell which it was. Queues are polled
//! then, and the configuration is looked at a little later, once however many interrupts there
//! were: reading a register of a virtual device is dear.

use super::{
    nic::Nic,
    rx::RxPoll,
    Work, //
};
use crate::{
    net::{
        Napi,
        WeakDevice, //
    },
    virtio::Transport, //
};
use kernel::{
    irq::{
        Handler,
        IrqReturn, //
    },
    prelude::*,
    sync::Arc, //
};

/// How long after an interrupt that may be a change of the configuration that is looked at.
const SHARED_DELAY_MS: u32 = 20;

/// What is polled after an interrupt.
pub(super) type Polled<'a> = KVec<Arc<Napi<RxPoll<'a>>>>;

/// A vector of the configuration alone.
pub(super) struct Configuration<'a> {
    pub(super) dev: WeakDevice<Nic<'a>>,
}

impl Handler for Configuration<'_> {
    fn handle(&self) -> IrqReturn {
        self.dev.schedule_work_in(Work::CONFIG, 0);
        IrqReturn::Handled
    }
}

/// A vector of one pair of queues, or several.
pub(super) struct Pairs<'a> {
    pub(super) polled: Polled<'a>,
}

impl Handler for Pairs<'_> {
    fn handle(&self) -> IrqReturn {
        for napi in &self.polled {
            napi.handler().stats.interrupts.add(1);
            napi.schedule_irq();
        }
        IrqReturn::Handled
    }
}

/// The one vector of all.
pub(super) struct Shared<'a> {
    pub(super) dev: WeakDevice<Nic<'a>>,
    pub(super) pairs: Pairs<'a>,
}

impl Handler for Shared<'_> {
    fn handle(&self) -> IrqReturn {
        self.dev.schedule_work_in(Work::CONFIG, SHARED_DELAY_MS);
        self.pairs.handle()
    }
}

/// INTx, which other devices may share.
pub(super) struct Line<'a> {
    pub(super) dev: WeakDevice<Nic<'a>>,
    pub(super) transport: Arc<Transport<'a>>,
    pub(super) pairs: Pairs<'a>,
}

impl Handler for Line<'_> {
    fn handle(&self) -> IrqReturn {
        let isr = self.transport.isr();
        if isr.is_none() {
            return IrqReturn::None;
        }
        if isr.config() {
            self.dev.schedule_work_in(Work::CONFIG, 0);
        }
        if isr.queue() {
            self.pairs.handle();
        }
        IrqReturn::Handled
    }
}
