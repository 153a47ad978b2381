// SPDX-License-Identifier: GPL-2.0

//! Net devices and their registration.
//!
//! C header: [`include/linux/netdevice.h`](srctree/include/linux/netdevice.h)

use super::{
    ethtool,
    operations::VTable,
    Features,
    Operations, //
};
use crate::bindings;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    device::Bound,
    error::to_result,
    prelude::*,
    sync::Refcount,
    types::Opaque, //
};

/// An Ethernet address.
pub(crate) type Address = [u8; 6];

/// What lies at the start of the private area of a net device, whatever its data is.
#[repr(C)]
struct Base {
    /// References to the memory: those that [`Reference`] counts, and one for the device itself.
    references: Refcount,
    timer: Opaque<bindings::ferronic_timer>,
    ethtool: ethtool::Counts,
}

/// What lies in the private area of a net device.
#[repr(C)]
struct Private<T> {
    base: Base,
    data: T,
}

/// A net device whose private data is a `T`.
///
/// # Invariants
///
/// It is a valid `struct net_device` that was made by [`Registration::new`], with a `Private<T>`
/// in its private area whose `base` is initialised.
#[repr(transparent)]
pub(crate) struct Device<T: Operations>(Opaque<bindings::net_device>, PhantomData<T>);

// SAFETY: The methods may be called from any context that their documentation names.
unsafe impl<T: Operations> Sync for Device<T> {}

impl<T: Operations> Device<T> {
    /// # Safety
    ///
    /// `raw` must be as in the type's invariants throughout `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(raw: *mut bindings::net_device) -> &'a Self {
        // SAFETY: By the safety requirement; the type is transparent.
        unsafe { &*raw.cast() }
    }

    #[inline]
    pub(super) fn raw(&self) -> *mut bindings::net_device {
        self.0.get()
    }

    #[inline]
    fn private(&self) -> *mut Private<T> {
        // The private area begins where the structure ends, as in netdev_priv().
        // SAFETY: By the type invariant the area belongs to the same allocation.
        unsafe { (&raw mut (*self.raw()).priv_).cast() }
    }

    /// The private data.
    ///
    /// # Safety
    ///
    /// It must have been initialised, as it is in every call of the device's operations.
    #[inline]
    pub(super) unsafe fn data(&self) -> &T {
        // SAFETY: By the type invariant, and the safety requirement.
        unsafe { &(*self.private()).data }
    }

    /// Keeps the memory of the net device, but nothing else of it.
    pub(super) fn reference(&self) -> Reference {
        // SAFETY: By the type invariant the base is initialised.
        unsafe { &(*self.private()).base }.references.inc();
        // INVARIANT: A reference was just taken.
        Reference(NonNull::from(&self.0).cast())
    }

    /// A reference that may be kept where the device's own data cannot be, such as in handlers of
    /// interrupts. It does not keep the device registered.
    pub(crate) fn weak(&self) -> WeakDevice<T> {
        WeakDevice(self.reference(), PhantomData)
    }

    /// What ethtool was told.
    pub(super) fn ethtool_counts(&self) -> &ethtool::Counts {
        // SAFETY: By the type invariant the base is initialised.
        unsafe { &(*self.private()).base.ethtool }
    }

    /// The transmit queue `index`.
    pub(super) fn tx_queue(&self, index: u32) -> Option<NonNull<bindings::netdev_queue>> {
        // SAFETY: By the type invariant; the number of queues never changes.
        if index >= unsafe { (*self.raw()).num_tx_queues } {
            return None;
        }
        // SAFETY: As before, and there is such a queue.
        NonNull::new(unsafe { bindings::ferronic_txq(self.raw(), index) })
    }

    /// The address.
    pub(crate) fn address(&self) -> Address {
        // SAFETY: By the type invariant; the address of an Ethernet device has 6 octets.
        unsafe { *(*self.raw()).dev_addr.cast::<Address>() }
    }

    /// Sets the address. RTNL must be held once the device is registered.
    pub(crate) fn set_address(&self, address: &Address) {
        // SAFETY: By the type invariant.
        unsafe { bindings::ferronic_set_address(self.raw(), address.as_ptr()) };
    }

    /// The largest packet without its Ethernet header.
    #[inline]
    pub(crate) fn mtu(&self) -> u32 {
        // SAFETY: By the type invariant. It may change meanwhile.
        unsafe { (&raw const (*self.raw()).mtu).read_volatile() }
    }

    /// Sets the MTU, in [`Operations::change_mtu`].
    pub(crate) fn set_mtu(&self, mtu: u32) {
        // SAFETY: By the type invariant. RTNL is held.
        unsafe { (&raw mut (*self.raw()).mtu).write_volatile(mtu) };
    }

    /// The features that are on.
    #[inline]
    pub(crate) fn features(&self) -> Features {
        // SAFETY: By the type invariant.
        Features::from_raw(unsafe { (&raw const (*self.raw()).features).read_volatile() })
    }

    /// Whether all frames are wanted. RTNL must be held.
    pub(crate) fn is_promiscuous(&self) -> bool {
        self.flags() & IFF_PROMISC != 0
    }

    /// Whether all multicast frames are wanted. RTNL must be held.
    pub(crate) fn is_all_multicast(&self) -> bool {
        self.flags() & IFF_ALLMULTI != 0
    }

    fn flags(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { (&raw const (*self.raw()).flags).read_volatile() }
    }

    /// Whether the device is up, or about to be.
    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { bindings::ferronic_running(self.raw()) }
    }

    /// Whether there is a carrier.
    pub(crate) fn has_carrier(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { bindings::ferronic_carrier(self.raw()) }
    }

    /// Says whether there is a carrier. In any context.
    pub(crate) fn set_carrier(&self, on: bool) {
        // SAFETY: By the type invariant.
        unsafe {
            if on {
                bindings::netif_carrier_on(self.raw());
            } else {
                bindings::netif_carrier_off(self.raw());
            }
        }
    }

    /// Tells the network that this host is here. RTNL must be held.
    pub(crate) fn notify_peers(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::ferronic_notify_peers(self.raw()) };
    }

    /// Uses the first `pairs` queues in both directions, and spreads CPUs over them. RTNL must be
    /// held once the device is registered.
    pub(crate) fn set_queue_pairs(&self, pairs: u32) -> Result {
        // SAFETY: By the type invariant.
        unsafe {
            to_result(bindings::netif_set_real_num_tx_queues(self.raw(), pairs))?;
            to_result(bindings::netif_set_real_num_rx_queues(self.raw(), pairs))
        }
    }

    /// Has each CPU send on the queue whose interrupt it gets. May sleep.
    pub(crate) fn set_xps(&self, pairs: u32) {
        // SAFETY: By the type invariant.
        unsafe { bindings::ferronic_set_xps(self.raw(), pairs) };
    }

    /// Stops all transmit queues; when it returns nothing is being sent. In process context.
    pub(crate) fn tx_disable(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::ferronic_tx_disable(self.raw()) };
    }

    /// Says that the device is gone, for good or until [`Self::attach`].
    pub(crate) fn detach(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::netif_device_detach(self.raw()) };
    }

    /// Undoes [`Self::detach`], and wakes all queues.
    pub(crate) fn attach(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::netif_device_attach(self.raw()) };
    }

    /// Has [`Operations::work`] called soon with these events, in process context with RTNL held.
    ///
    /// In softirqs and process context. Does nothing unless the device is registered.
    pub(crate) fn schedule_work(&self, events: usize) {
        // SAFETY: By the type invariant.
        unsafe { bindings::ferronic_work_sched(self.raw(), events) };
    }

    /// Undoes that, for events that have not led to a call yet.
    pub(crate) fn cancel_work(&self, events: usize) {
        // SAFETY: By the type invariant.
        unsafe { bindings::netdev_work_cancel(self.raw(), events) };
    }

    /// As [`Self::schedule_work`] after some milliseconds: as many as the first of several such calls
    /// says.
    #[inline]
    pub(crate) fn schedule_work_in(&self, events: usize, ms: u32) {
        // SAFETY: By the type invariant the timer is initialised.
        unsafe {
            bindings::ferronic_timer_start(
                (&raw mut (*self.private()).base.timer).cast(),
                events,
                ms,
            )
        };
    }
}

/// IFF_PROMISC.
const IFF_PROMISC: u32 = 1 << 8;
/// IFF_ALLMULTI.
const IFF_ALLMULTI: u32 = 1 << 9;

/// Keeps the memory of a net device: it is freed with the last of these.
///
/// # Invariants
///
/// It is a net device as in [`Device`], and one of its references is counted for this.
pub(super) struct Reference(NonNull<bindings::net_device>);

// SAFETY: References may be dropped anywhere that memory may be freed.
unsafe impl Send for Reference {}
// SAFETY: Nothing can be done with a shared one but look at the pointer.
unsafe impl Sync for Reference {}

impl Reference {
    #[inline]
    pub(super) fn raw(&self) -> *mut bindings::net_device {
        self.0.as_ptr()
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a base at the start of the private area.
        let base = unsafe { &*(&raw const (*self.raw()).priv_).cast::<Base>() };
        if base.references.dec_and_test() {
            // SAFETY: Nobody has it any more: it is not registered, and its data is dropped, or
            // the device itself would have a reference.
            unsafe { bindings::free_netdev(self.raw()) };
        }
    }
}

/// A reference to a net device that may be on its way out.
pub(crate) struct WeakDevice<T>(Reference, PhantomData<fn() -> T>);

impl<T: Operations> WeakDevice<T> {
    /// Only for what does no harm to a device that is not registered any more.
    #[inline]
    fn device(&self) -> &Device<T> {
        // SAFETY: The memory is that of a `Device<T>` and is kept.
        unsafe { Device::from_raw(self.0.raw()) }
    }

    /// As [`Device::schedule_work`].
    pub(crate) fn schedule_work(&self, events: usize) {
        self.device().schedule_work(events);
    }

    /// As [`Device::schedule_work_in`].
    #[inline]
    pub(crate) fn schedule_work_in(&self, events: usize, ms: u32) {
        // A timer that was shut down stays off.
        self.device().schedule_work_in(events, ms);
    }
}

/// A net device before it is registered: what must not change later can be set.
pub(crate) struct Setup<'a, T: Operations>(&'a Device<T>);

impl<T: Operations> core::ops::Deref for Setup<'_, T> {
    type Target = Device<T>;

    fn deref(&self) -> &Device<T> {
        self.0
    }
}

impl<T: Operations> Setup<'_, T> {
    /// The smallest and largest MTU, and the one to begin with.
    pub(crate) fn set_mtu_range(&self, min: u32, max: u32, mtu: u32) {
        let dev = self.0.raw();
        // SAFETY: By the type invariant of `Device`. Nobody else uses it yet.
        unsafe {
            (*dev).min_mtu = min;
            (*dev).max_mtu = max;
            (*dev).mtu = mtu;
        }
    }

    /// Which features are on, which of them can be changed, and which hold for VLANs on top.
    pub(crate) fn set_features(&self, on: Features, changeable: Features, vlan: Features) {
        let dev = self.0.raw();
        // SAFETY: As in `set_mtu_range`.
        unsafe {
            (*dev).features = on.into_raw();
            (*dev).hw_features = changeable.into_raw();
            (*dev).vlan_features = vlan.into_raw();
        }
    }

    /// How much room packets to be sent should have before their data.
    pub(crate) fn set_headroom(&self, octets: u16) {
        // SAFETY: As in `set_mtu_range`.
        unsafe { (*self.0.raw()).needed_headroom = octets };
    }

    /// An address made up, different each time.
    pub(crate) fn set_random_address(&self) {
        // SAFETY: As in `set_mtu_range`.
        unsafe { bindings::ferronic_random_address(self.0.raw()) };
    }
}

/// A net device that is registered, until this is dropped.
///
/// # Invariants
///
/// `dev` is a net device as in [`Device`], registered, with its data initialised.
pub(crate) struct Registration<'a, T: Operations + 'a> {
    dev: NonNull<bindings::net_device>,
    _data: PhantomData<(&'a kernel::device::Device<Bound>, T)>,
}

// SAFETY: It can be dropped in any context that may sleep, and so can `T`.
unsafe impl<T: Operations + Send> Send for Registration<'_, T> {}
// SAFETY: A shared reference gives a shared `Device` and `T`.
unsafe impl<T: Operations> Sync for Registration<'_, T> {}

/// Frees a net device that is not registered, with or without data.
struct Unregistered<T: Operations> {
    dev: NonNull<bindings::net_device>,
    /// The data is initialised.
    data: bool,
    _data: PhantomData<T>,
}

impl<T: Operations> Drop for Unregistered<T> {
    fn drop(&mut self) {
        // SAFETY: The net device is valid and not registered, so no operation is being called. The
        // timer is shut down before the data goes, and that before the memory.
        unsafe {
            let dev = Device::<T>::from_raw(self.dev.as_ptr());
            bindings::ferronic_timer_shutdown((&raw mut (*dev.private()).base.timer).cast());
            if self.data {
                dev.data().release();
                core::ptr::drop_in_place(&raw mut (*dev.private()).data);
            }
        }
        // INVARIANT: The device's own reference.
        drop(Reference(self.dev));
    }
}

impl<'a, T: Operations + 'a> Registration<'a, T> {
    /// Makes a net device with up to `pairs` queues in each direction and registers it.
    ///
    /// `init` makes its data; it may set up the device meanwhile. `ready` is called last before
    /// the device is registered.
    ///
    /// # Safety
    ///
    /// The result must be dropped before `'a` ends: the networking core goes on until then.
    pub(crate) unsafe fn new<I: PinInit<T, Error>>(
        parent: &'a kernel::device::Device<Bound>,
        pairs: u32,
        init: impl FnOnce(&Setup<'_, T>) -> Result<I>,
        ready: impl FnOnce(&Setup<'_, T>, &T) -> Result,
    ) -> Result<Self> {
        // The private area is aligned to 32 octets at least.
        const { assert!(align_of::<Private<T>>() <= 32) };
        let size = i32::try_from(size_of::<Private<T>>())?;
        // SAFETY: May be called in process context.
        let raw = unsafe { bindings::alloc_etherdev_mqs(size, pairs, pairs) };
        let dev = NonNull::new(raw).ok_or(ENOMEM)?;
        // SAFETY: It is a new net device, which nobody else has. `parent` outlives it, as `'a` is
        // its lifetime; the tables are constants.
        unsafe {
            let parent = core::ptr::from_ref(parent).cast_mut().cast();
            let ops = &VTable::<T>::OPERATIONS;
            let stat_ops = &VTable::<T>::STATISTICS;
            bindings::ferronic_netdev_init(raw, parent, ops, stat_ops);
            let private: *mut Private<T> = (&raw mut (*raw).priv_).cast();
            (&raw mut (*private).base.references).write(Refcount::new(1));
            (&raw mut (*private).base.ethtool).write(ethtool::Counts::new());
            bindings::ferronic_timer_init((&raw mut (*private).base.timer).cast(), raw);
        }
        let mut unregistered = Unregistered::<T> {
            dev,
            data: false,
            _data: PhantomData,
        };
        // SAFETY: The type invariants of `Device` were just established.
        let device = unsafe { Device::<T>::from_raw(raw) };
        let setup = Setup(device);
        let init = init(&setup)?;
        // SAFETY: The place is large enough, aligned, and stays where it is until it is dropped.
        unsafe { pin_init::raw_try_init(&raw mut (*device.private()).data, init)? };
        unregistered.data = true;
        // SAFETY: The data was just initialised.
        ready(&setup, unsafe { device.data() })?;
        // SAFETY: The net device is complete.
        to_result(unsafe { bindings::register_netdev(raw) })?;
        core::mem::forget(unregistered);
        // INVARIANT: Registered, and the data is initialised.
        Ok(Self {
            dev,
            _data: PhantomData,
        })
    }

    /// The net device.
    pub(crate) fn device(&self) -> &Device<T> {
        // SAFETY: By the type invariant.
        unsafe { Device::from_raw(self.dev.as_ptr()) }
    }

    /// Its data.
    pub(crate) fn data(&self) -> &T {
        // SAFETY: By the type invariant.
        unsafe { self.device().data() }
    }
}

impl<'a, T: Operations + 'a> Drop for Registration<'a, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is registered. When this returns no operation is being
        // called or will be.
        unsafe { bindings::unregister_netdev(self.dev.as_ptr()) };
        drop(Unregistered::<T> {
            dev: self.dev,
            data: true,
            _data: PhantomData,
        });
    }
}
