// SPDX-License-Identifier: GPL-2.0

//! The operations of a net device, and the functions by which the C side calls them.
//!
//! C header: [`include/linux/netdevice.h`](srctree/include/linux/netdevice.h)

use super::{
    Address,
    BaseStats,
    Device,
    DeviceStats,
    Features,
    QueueStatsRx,
    QueueStatsTx,
    SkBuff,
    XmitQueue, //
};
use crate::bindings;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    error::from_result,
    prelude::*, //
};

/// A packet that cannot be sent now. The queue must have been stopped.
pub(crate) struct Busy(pub(crate) SkBuff);

/// A list of addresses, as it was when [`Operations::set_rx_mode`] was called.
#[derive(Clone, Copy)]
pub(crate) struct Addresses<'a>(&'a bindings::netdev_hw_addr_list);

impl Addresses<'_> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        // SAFETY: It is a list that nobody changes.
        unsafe { bindings::ferronic_hw_addr_count(self.0) as usize }
    }

    /// Copies as many as there is room for. Returns their number.
    pub(crate) fn copy_to(&self, to: &mut [Address]) -> usize {
        let max = u32::try_from(to.len()).unwrap_or(u32::MAX);
        // SAFETY: It is a list that nobody changes, and there is room for that many.
        unsafe { bindings::ferronic_hw_addr_copy(self.0, to.as_mut_ptr().cast(), max) as usize }
    }
}

/// What a driver does for its net device.
///
/// Unless said otherwise all of it is called in process context with RTNL held, so one at a time.
pub(crate) trait Operations: Sync + Sized {
    /// The device is not registered, any more or at all, and is going to be dropped.
    fn release(&self);

    /// The device goes up.
    fn open(&self, dev: &Device<Self>) -> Result;

    /// The device goes down. No packet is being sent any more.
    fn stop(&self, dev: &Device<Self>);

    /// Sends a packet on a queue, whose lock is held. With softirqs disabled.
    fn start_xmit(
        &self,
        dev: &Device<Self>,
        skb: SkBuff,
        queue: &mut XmitQueue<'_>,
    ) -> Result<(), Busy>;

    /// Adds up statistics. In any context but hard interrupts, perhaps several at a time.
    fn get_stats(&self, dev: &Device<Self>, stats: &mut DeviceStats);

    /// Which frames are wanted has changed.
    fn set_rx_mode(
        &self,
        dev: &Device<Self>,
        unicast: Addresses<'_>,
        multicast: Addresses<'_>,
    ) -> Result;

    /// Sets the address, which is a valid one.
    fn set_mac_address(&self, dev: &Device<Self>, address: &Address) -> Result;

    /// Sets the MTU, which is in the range of the device.
    fn change_mtu(&self, dev: &Device<Self>, mtu: u32) -> Result;

    /// Frames of VLAN `vid` are wanted.
    fn vlan_add(&self, dev: &Device<Self>, vid: u16) -> Result;

    /// Frames of VLAN `vid` are not wanted any more.
    fn vlan_kill(&self, dev: &Device<Self>, vid: u16) -> Result;

    /// Which of these features can be on together.
    fn fix_features(&self, dev: &Device<Self>, wanted: Features) -> Features;

    /// Turns features on and off, from what [`Device::features`] says.
    fn set_features(&self, dev: &Device<Self>, wanted: Features) -> Result;

    /// A packet has waited on a queue for too long. In a softirq.
    fn tx_timeout(&self, dev: &Device<Self>, queue: u32);

    /// Events that were given to [`Device::schedule_work`].
    fn work(&self, dev: &Device<Self>, events: usize);

    /// Statistics of a receive queue.
    fn queue_stats_rx(&self, dev: &Device<Self>, queue: u32, stats: &mut QueueStatsRx);

    /// Statistics of a transmit queue.
    fn queue_stats_tx(&self, dev: &Device<Self>, queue: u32, stats: &mut QueueStatsTx);

    /// What was counted elsewhere than on queues. What is left alone is not shown.
    fn base_stats(&self, dev: &Device<Self>, stats: BaseStats<'_>);
}

/// The tables of functions for a driver.
pub(super) struct VTable<T: Operations>(PhantomData<T>);

#[allow(
    clippy::missing_safety_doc,
    reason = "the requirement is the same for all: see `Self::of`"
)]
impl<T: Operations> VTable<T> {
    pub(super) const OPERATIONS: bindings::net_device_ops = bindings::net_device_ops {
        ndo_open: Some(Self::open),
        ndo_stop: Some(Self::stop),
        ndo_start_xmit: Some(Self::start_xmit),
        ndo_features_check: Some(bindings::passthru_features_check),
        ndo_get_stats64: Some(Self::get_stats64),
        ndo_set_rx_mode_async: Some(Self::set_rx_mode),
        ndo_set_mac_address: Some(Self::set_mac_address),
        ndo_validate_addr: Some(bindings::eth_validate_addr),
        ndo_change_mtu: Some(Self::change_mtu),
        ndo_vlan_rx_add_vid: Some(Self::vlan_add),
        ndo_vlan_rx_kill_vid: Some(Self::vlan_kill),
        ndo_fix_features: Some(Self::fix_features),
        ndo_set_features: Some(Self::set_features),
        ndo_tx_timeout: Some(Self::tx_timeout),
        ndo_work: Some(Self::work),
        // SAFETY: All fields are optional functions, for which zero is `None`.
        ..unsafe { core::mem::zeroed() }
    };

    pub(super) const STATISTICS: bindings::netdev_stat_ops = bindings::netdev_stat_ops {
        get_queue_stats_rx: Some(Self::queue_stats_rx),
        get_queue_stats_tx: Some(Self::queue_stats_tx),
        get_base_stats: Some(Self::base_stats),
    };

    /// # Safety
    ///
    /// `raw` must be a net device of `T` whose operations are being called.
    #[inline]
    unsafe fn of<'a>(raw: *mut bindings::net_device) -> (&'a Device<T>, &'a T) {
        // SAFETY: By the safety requirement; the data is there while operations are called.
        unsafe {
            let dev = Device::from_raw(raw);
            (dev, dev.data())
        }
    }

    unsafe extern "C" fn open(raw: *mut bindings::net_device) -> i32 {
        // SAFETY: The C side calls this with a device that has this table.
        let (dev, data) = unsafe { Self::of(raw) };
        from_result(|| data.open(dev).map(|()| 0))
    }

    unsafe extern "C" fn stop(raw: *mut bindings::net_device) -> i32 {
        // SAFETY: As in `open`.
        let (dev, data) = unsafe { Self::of(raw) };
        data.stop(dev);
        0
    }

    unsafe extern "C" fn start_xmit(
        skb: *mut bindings::sk_buff,
        raw: *mut bindings::net_device,
    ) -> bindings::netdev_tx_t {
        // SAFETY: As in `open`.
        let (dev, data) = unsafe { Self::of(raw) };
        // SAFETY: The C side gives the packet away, and names one of the device's queues, whose
        // lock it holds until this returns.
        let (skb, mut queue) = unsafe {
            let index = bindings::ferronic_skb_queue(skb);
            let queue = (*raw)._tx.add(index as usize);
            (
                SkBuff::from_raw(NonNull::new_unchecked(skb)),
                XmitQueue::new(NonNull::new_unchecked(queue), index),
            )
        };
        match data.start_xmit(dev, skb, &mut queue) {
            Ok(()) => bindings::netdev_tx_NETDEV_TX_OK,
            Err(Busy(skb)) => {
                // The C side has it again.
                let _ = skb.into_raw();
                bindings::netdev_tx_NETDEV_TX_BUSY
            }
        }
    }

    unsafe extern "C" fn get_stats64(
        raw: *mut bindings::net_device,
        stats: *mut bindings::rtnl_link_stats64,
    ) {
        // SAFETY: As in `open`; `stats` is for this to write. It may be in a netlink message, whose
        // attributes are aligned to 4 octets.
        unsafe {
            let (dev, data) = Self::of(raw);
            let mut sums = stats.read_unaligned();
            data.get_stats(dev, &mut sums);
            stats.write_unaligned(sums);
        }
    }

    unsafe extern "C" fn set_rx_mode(
        raw: *mut bindings::net_device,
        uc: *mut bindings::netdev_hw_addr_list,
        mc: *mut bindings::netdev_hw_addr_list,
    ) -> i32 {
        // SAFETY: As in `open`; the lists are copies for this call.
        let ((dev, data), uc, mc) = unsafe { (Self::of(raw), &*uc, &*mc) };
        from_result(|| {
            data.set_rx_mode(dev, Addresses(uc), Addresses(mc))
                .map(|()| 0)
        })
    }

    unsafe extern "C" fn set_mac_address(
        raw: *mut bindings::net_device,
        sockaddr: *mut c_void,
    ) -> i32 {
        // SAFETY: As in `open`; it is a `struct sockaddr`, whose address follows two octets of
        // family.
        let ((dev, data), address) =
            unsafe { (Self::of(raw), *sockaddr.byte_add(2).cast::<Address>()) };
        let multicast = address[0] & 1 != 0;
        from_result(|| {
            if multicast || address == [0; 6] {
                return Err(EADDRNOTAVAIL);
            }
            data.set_mac_address(dev, &address)?;
            dev.set_address(&address);
            Ok(0)
        })
    }

    unsafe extern "C" fn change_mtu(raw: *mut bindings::net_device, mtu: i32) -> i32 {
        // SAFETY: As in `open`.
        let (dev, data) = unsafe { Self::of(raw) };
        from_result(|| data.change_mtu(dev, u32::try_from(mtu)?).map(|()| 0))
    }

    unsafe extern "C" fn vlan_add(raw: *mut bindings::net_device, _proto: u16, vid: u16) -> i32 {
        // SAFETY: As in `open`.
        let (dev, data) = unsafe { Self::of(raw) };
        from_result(|| data.vlan_add(dev, vid).map(|()| 0))
    }

    unsafe extern "C" fn vlan_kill(raw: *mut bindings::net_device, _proto: u16, vid: u16) -> i32 {
        // SAFETY: As in `open`.
        let (dev, data) = unsafe { Self::of(raw) };
        from_result(|| data.vlan_kill(dev, vid).map(|()| 0))
    }

    unsafe extern "C" fn fix_features(raw: *mut bindings::net_device, wanted: u64) -> u64 {
        // SAFETY: As in `open`.
        let (dev, data) = unsafe { Self::of(raw) };
        data.fix_features(dev, Features::from_raw(wanted))
            .into_raw()
    }

    unsafe extern "C" fn set_features(raw: *mut bindings::net_device, wanted: u64) -> i32 {
        // SAFETY: As in `open`.
        let (dev, data) = unsafe { Self::of(raw) };
        from_result(|| {
            data.set_features(dev, Features::from_raw(wanted))
                .map(|()| 0)
        })
    }

    unsafe extern "C" fn tx_timeout(raw: *mut bindings::net_device, queue: u32) {
        // SAFETY: As in `open`.
        let (dev, data) = unsafe { Self::of(raw) };
        data.tx_timeout(dev, queue);
    }

    unsafe extern "C" fn work(raw: *mut bindings::net_device, events: usize) {
        // SAFETY: As in `open`.
        let (dev, data) = unsafe { Self::of(raw) };
        data.work(dev, events);
    }

    unsafe extern "C" fn queue_stats_rx(
        raw: *mut bindings::net_device,
        queue: i32,
        stats: *mut QueueStatsRx,
    ) {
        // SAFETY: As in `open`; `stats` is for this to write.
        let ((dev, data), stats) = unsafe { (Self::of(raw), &mut *stats) };
        data.queue_stats_rx(dev, queue.max(0).unsigned_abs(), stats);
    }

    unsafe extern "C" fn queue_stats_tx(
        raw: *mut bindings::net_device,
        queue: i32,
        stats: *mut QueueStatsTx,
    ) {
        // SAFETY: As in `open`; `stats` is for this to write.
        let ((dev, data), stats) = unsafe { (Self::of(raw), &mut *stats) };
        data.queue_stats_tx(dev, queue.max(0).unsigned_abs(), stats);
    }

    unsafe extern "C" fn base_stats(
        raw: *mut bindings::net_device,
        rx: *mut QueueStatsRx,
        tx: *mut QueueStatsTx,
    ) {
        // SAFETY: As in `open`; the statistics are for this to write.
        let ((dev, data), rx, tx) = unsafe { (Self::of(raw), &mut *rx, &mut *tx) };
        data.base_stats(dev, BaseStats { rx, tx });
        // The core adds up the queues in use itself; those that are not are part of the base.
        // SAFETY: As before. All of the queues named exist.
        unsafe {
            bindings::netdev_stat_queue_sum(
                raw,
                (*raw).real_num_rx_queues as i32,
                (*raw).num_rx_queues as i32,
                rx,
                (*raw).real_num_tx_queues as i32,
                (*raw).num_tx_queues as i32,
                tx,
            )
        };
    }
}
