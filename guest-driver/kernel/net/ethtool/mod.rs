// SPDX-License-Identifier: GPL-2.0

//! Settings of net devices: what ethtool shows and changes.
//!
//! A driver implements as much of [`Ethtool`] as its device can do, and calls
//! [`Setup::set_ethtool_ops`]. What it leaves out is answered with `EOPNOTSUPP`.
//!
//! C header: [`include/linux/ethtool.h`](srctree/include/linux/ethtool.h)

mod flow_hash;
mod parameters;
mod strings;
mod vtable;

pub(crate) use flow_hash::{
    fill_rss_key,
    FlowHash,
    FlowType,
    HashFunction,
    RxfhChange, //
};
pub(crate) use parameters::{
    Channels,
    Coalesce,
    CoalesceParameters,
    LinkSettings,
    Rings, //
};
pub(crate) use strings::{
    Statistics,
    TestResult, //
};

pub(super) use strings::Counts;

use super::{
    Device,
    Operations,
    Setup, //
};
use crate::bindings;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    build_error,
    error::VTABLE_DEFAULT_ERROR,
    prelude::*, //
};

/// Where to say why a request is refused: ethtool prints it.
///
/// # Invariants
///
/// A pointer that is there is to a `struct netlink_ext_ack` that is ours to write throughout `'a`.
pub(crate) struct ExtAck<'a>(
    Option<NonNull<bindings::netlink_ext_ack>>,
    PhantomData<&'a mut ()>,
);

impl<'a> ExtAck<'a> {
    /// # Safety
    ///
    /// `raw` must be null or as in the type's invariants.
    unsafe fn from_raw(raw: *mut bindings::netlink_ext_ack) -> Self {
        // INVARIANT: By the safety requirement.
        Self(NonNull::new(raw), PhantomData)
    }

    /// Says why. The last message counts.
    pub(crate) fn set(&mut self, message: &'static CStr) {
        if let Some(ack) = self.0 {
            // SAFETY: By the type invariant. The message lives as long as those of the macro
            // NL_SET_ERR_MSG(), which are in the module's memory, too.
            unsafe { (*ack.as_ptr())._msg = message.as_char_ptr() };
        }
    }

    /// Says why, and returns the error to be returned.
    pub(crate) fn refuse(mut self, error: Error, message: &'static CStr) -> Error {
        self.set(message);
        error
    }
}

/// What a driver lets be seen and set of its device.
///
/// All of it is called in process context with RTNL held while the device is registered, whether it
/// is up or not. (The networking core calls some with only the device's own lock for drivers that
/// ask for that, which those of [`Operations`] do not.)
#[vtable]
pub(crate) trait Ethtool: Operations {
    /// What of [`Coalesce`] there is to set. The core refuses all else.
    const COALESCE_PARAMETERS: CoalesceParameters = CoalesceParameters::NONE;

    /// What the dump of [`Self::get_regs`] looks like: changes when that does.
    const REGS_VERSION: u32 = 0;

    /// Names of the tests of [`Self::self_test`].
    const SELF_TESTS: &'static [&'static str] = &[];

    /// Which messages the driver prints: bits as in `netif_msg_drv()` and so on.
    fn get_msglevel(&self, _dev: &Device<Self>) -> u32 {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Chooses messages.
    fn set_msglevel(&self, _dev: &Device<Self>, _level: u32) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// How fast the link is.
    fn get_link_ksettings(&self, _dev: &Device<Self>) -> Result<LinkSettings> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Sets what [`Self::get_link_ksettings`] says, for a device that does not know itself how fast
    /// its link is. The values are possible ones.
    fn set_link_ksettings(&self, _dev: &Device<Self>, _settings: LinkSettings) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Sizes of rings.
    fn get_ringparam(&self, _dev: &Device<Self>) -> Rings {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Sets the sizes of rings, which are not more than the largest that
    /// [`Self::get_ringparam`] says.
    fn set_ringparam(&self, _dev: &Device<Self>, _rx: u32, _tx: u32, _ack: ExtAck<'_>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// How many queues are used.
    fn get_channels(&self, _dev: &Device<Self>) -> Channels {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Uses so many pairs of queues: at least one, not more than the most that
    /// [`Self::get_channels`] says.
    fn set_channels(&self, _dev: &Device<Self>, _combined: u32) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// How interrupts are held back.
    fn get_coalesce(&self, _dev: &Device<Self>) -> Result<Coalesce> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Changes that, for all queues. Parameters that are not in [`Self::COALESCE_PARAMETERS`]
    /// are 0.
    fn set_coalesce(&self, _dev: &Device<Self>, _coalesce: Coalesce, _ack: ExtAck<'_>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// How interrupts of one pair of queues are held back. `EINVAL` if there is no such pair.
    fn get_per_queue_coalesce(&self, _dev: &Device<Self>, _queue: u32) -> Result<Coalesce> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Changes that for one pair of queues. `EINVAL` if there is no such pair.
    fn set_per_queue_coalesce(
        &self,
        _dev: &Device<Self>,
        _queue: u32,
        _coalesce: Coalesce,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Tells all statistics, always in the same order.
    fn get_ethtool_stats(&self, _dev: &Device<Self>, _list: &mut Statistics<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Octets of a dump of registers.
    fn get_regs_len(&self, _dev: &Device<Self>) -> u32 {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Dumps registers, as much as there is room for. The memory is zero at first.
    fn get_regs(&self, _dev: &Device<Self>, _dump: &mut [u8]) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Tests the device: `results` has a place for each of [`Self::SELF_TESTS`], and is
    /// [`TestResult::Skipped`] at first. Only if `offline` traffic may be interrupted.
    fn self_test(&self, _dev: &Device<Self>, _offline: bool, _results: &mut [TestResult]) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Octets of the key with which flows are hashed; 0 if the device hashes none.
    fn get_rxfh_key_size(&self, _dev: &Device<Self>) -> u32 {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Entries in the table from hashes to queues; 0 if the device hashes no flows.
    fn get_rxfh_indir_size(&self, _dev: &Device<Self>) -> u32 {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// How received packets are spread over queues. Copies the table and the key where there is
    /// room: it is of their size or empty.
    fn get_rxfh(
        &self,
        _dev: &Device<Self>,
        _table: &mut [u32],
        _key: &mut [u8],
    ) -> Result<HashFunction> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Changes how received packets are spread over queues.
    fn set_rxfh(&self, _dev: &Device<Self>, _change: RxfhChange<'_>, _ack: ExtAck<'_>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// What of a flow is hashed. `EINVAL` for a type of flow that the device does not know.
    fn get_rxfh_fields(&self, _dev: &Device<Self>, _flow: FlowType) -> Result<FlowHash> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Chooses what of a flow is hashed.
    fn set_rxfh_fields(
        &self,
        _dev: &Device<Self>,
        _flow: FlowType,
        _hash: FlowHash,
        _ack: ExtAck<'_>,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

impl<T: Ethtool> Setup<'_, T> {
    /// Lets ethtool at the device.
    ///
    /// Whether there is a carrier, time stamps in software, and the names of driver and bus are
    /// answered without the driver.
    pub(crate) fn set_ethtool_ops(&self) {
        // SAFETY: By the type invariant of `Device`. Nobody else uses it yet; the table is a
        // constant, and is for devices of `T`.
        unsafe { (*self.raw()).ethtool_ops = &vtable::VTable::<T>::OPERATIONS };
    }
}
