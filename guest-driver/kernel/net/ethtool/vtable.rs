// SPDX-License-Identifier: GPL-2.0

//! The functions by which the C side calls those of [`Ethtool`].

use super::{
    strings::{
        names_mut,
        slice_mut,
        write_name, //
    },
    Coalesce,
    Ethtool,
    ExtAck,
    FlowHash,
    FlowType,
    HashFunction,
    LinkSettings,
    RxfhChange,
    Statistics,
    TestResult, //
};
use crate::{
    bindings,
    net::Device, //
};
use core::marker::PhantomData;
use kernel::{
    error::from_result,
    fmt,
    prelude::*, //
};

/// The table of functions for a driver: those that it has.
pub(super) struct VTable<T: Ethtool>(PhantomData<T>);

/// The function if the driver has it.
macro_rules! has {
    ($has:ident, $function:ident) => {
        if T::$has {
            Some(Self::$function)
        } else {
            None
        }
    };
}

#[allow(
    clippy::missing_safety_doc,
    reason = "the requirement is the same for all: see `Self::of`"
)]
impl<T: Ethtool> VTable<T> {
    const HAS_TESTS: bool = T::HAS_SELF_TEST && !T::SELF_TESTS.is_empty();
    const HAS_STRINGS: bool = T::HAS_GET_ETHTOOL_STATS || Self::HAS_TESTS;

    pub(super) const OPERATIONS: bindings::ethtool_ops = bindings::ethtool_ops {
        supported_coalesce_params: T::COALESCE_PARAMETERS.0,
        get_link: Some(bindings::ethtool_op_get_link),
        get_ts_info: Some(bindings::ethtool_op_get_ts_info),
        get_msglevel: has!(HAS_GET_MSGLEVEL, get_msglevel),
        set_msglevel: has!(HAS_SET_MSGLEVEL, set_msglevel),
        get_link_ksettings: has!(HAS_GET_LINK_KSETTINGS, get_link_ksettings),
        set_link_ksettings: has!(HAS_SET_LINK_KSETTINGS, set_link_ksettings),
        get_ringparam: has!(HAS_GET_RINGPARAM, get_ringparam),
        set_ringparam: has!(HAS_SET_RINGPARAM, set_ringparam),
        get_channels: has!(HAS_GET_CHANNELS, get_channels),
        set_channels: has!(HAS_SET_CHANNELS, set_channels),
        get_coalesce: has!(HAS_GET_COALESCE, get_coalesce),
        set_coalesce: has!(HAS_SET_COALESCE, set_coalesce),
        get_per_queue_coalesce: has!(HAS_GET_PER_QUEUE_COALESCE, get_per_queue_coalesce),
        set_per_queue_coalesce: has!(HAS_SET_PER_QUEUE_COALESCE, set_per_queue_coalesce),
        get_sset_count: if Self::HAS_STRINGS {
            Some(Self::get_sset_count)
        } else {
            None
        },
        get_strings: if Self::HAS_STRINGS {
            Some(Self::get_strings)
        } else {
            None
        },
        get_ethtool_stats: has!(HAS_GET_ETHTOOL_STATS, get_ethtool_stats),
        get_regs_len: has!(HAS_GET_REGS_LEN, get_regs_len),
        get_regs: has!(HAS_GET_REGS, get_regs),
        self_test: if Self::HAS_TESTS {
            Some(Self::self_test)
        } else {
            None
        },
        get_rxfh_key_size: has!(HAS_GET_RXFH_KEY_SIZE, get_rxfh_key_size),
        get_rxfh_indir_size: has!(HAS_GET_RXFH_INDIR_SIZE, get_rxfh_indir_size),
        get_rx_ring_count: has!(HAS_GET_RXFH, get_rx_ring_count),
        get_rxfh: has!(HAS_GET_RXFH, get_rxfh),
        set_rxfh: has!(HAS_SET_RXFH, set_rxfh),
        get_rxfh_fields: has!(HAS_GET_RXFH_FIELDS, get_rxfh_fields),
        set_rxfh_fields: has!(HAS_SET_RXFH_FIELDS, set_rxfh_fields),
        // SAFETY: All fields are numbers or optional functions, for which zero is `None`.
        ..unsafe { core::mem::zeroed() }
    };

    /// # Safety
    ///
    /// `raw` must be a net device of `T` that is registered, with RTNL held.
    unsafe fn of<'a>(raw: *mut bindings::net_device) -> (&'a Device<T>, &'a T) {
        // SAFETY: By the safety requirement; the data is there while the device is registered.
        unsafe {
            let dev = Device::from_raw(raw);
            (dev, dev.data())
        }
    }

    unsafe extern "C" fn get_msglevel(raw: *mut bindings::net_device) -> u32 {
        // SAFETY: The C side calls this with a device that has this table, and RTNL held.
        let (dev, data) = unsafe { Self::of(raw) };
        data.get_msglevel(dev)
    }

    unsafe extern "C" fn set_msglevel(raw: *mut bindings::net_device, level: u32) {
        // SAFETY: As in `get_msglevel`.
        let (dev, data) = unsafe { Self::of(raw) };
        data.set_msglevel(dev, level);
    }

    unsafe extern "C" fn get_link_ksettings(
        raw: *mut bindings::net_device,
        settings: *mut bindings::ethtool_link_ksettings,
    ) -> i32 {
        // SAFETY: As in `get_msglevel`; `settings` is for this to write.
        let ((dev, data), settings) = unsafe { (Self::of(raw), &mut *settings) };
        from_result(|| {
            data.get_link_ksettings(dev)?.write(&mut settings.base);
            Ok(0)
        })
    }

    unsafe extern "C" fn set_link_ksettings(
        raw: *mut bindings::net_device,
        settings: *const bindings::ethtool_link_ksettings,
    ) -> i32 {
        // SAFETY: As in `get_msglevel`.
        let (dev, data) = unsafe { Self::of(raw) };
        let (mut speed, mut duplex) = (0, 0);
        // SAFETY: The settings are the caller's for this to read; the others are ours.
        let result = unsafe {
            bindings::ethtool_virtdev_set_link_ksettings(raw, settings, &mut speed, &mut duplex)
        };
        if result != 0 {
            return result;
        }
        from_result(|| {
            data.set_link_ksettings(dev, LinkSettings::from_raw(speed, duplex))
                .map(|()| 0)
        })
    }

    unsafe extern "C" fn get_ringparam(
        raw: *mut bindings::net_device,
        parameters: *mut bindings::ethtool_ringparam,
        _more: *mut bindings::kernel_ethtool_ringparam,
        _ack: *mut bindings::netlink_ext_ack,
    ) {
        // SAFETY: As in `get_msglevel`; `parameters` is for this to write.
        let ((dev, data), parameters) = unsafe { (Self::of(raw), &mut *parameters) };
        let rings = data.get_ringparam(dev);
        parameters.rx_pending = rings.rx;
        parameters.rx_max_pending = rings.rx_max;
        parameters.tx_pending = rings.tx;
        parameters.tx_max_pending = rings.tx_max;
    }

    unsafe extern "C" fn set_ringparam(
        raw: *mut bindings::net_device,
        parameters: *mut bindings::ethtool_ringparam,
        _more: *mut bindings::kernel_ethtool_ringparam,
        ack: *mut bindings::netlink_ext_ack,
    ) -> i32 {
        // SAFETY: As in `get_msglevel`; `parameters` is for this to read, `ack` to write or null.
        let ((dev, data), parameters, ack) =
            unsafe { (Self::of(raw), &*parameters, ExtAck::from_raw(ack)) };
        from_result(|| {
            data.set_ringparam(dev, parameters.rx_pending, parameters.tx_pending, ack)
                .map(|()| 0)
        })
    }

    unsafe extern "C" fn get_channels(
        raw: *mut bindings::net_device,
        channels: *mut bindings::ethtool_channels,
    ) {
        // SAFETY: As in `get_msglevel`; `channels` is for this to write.
        let ((dev, data), channels) = unsafe { (Self::of(raw), &mut *channels) };
        let now = data.get_channels(dev);
        channels.combined_count = now.combined;
        channels.max_combined = now.combined_max;
    }

    unsafe extern "C" fn set_channels(
        raw: *mut bindings::net_device,
        channels: *mut bindings::ethtool_channels,
    ) -> i32 {
        // SAFETY: As in `get_msglevel`; `channels` is for this to read.
        let ((dev, data), channels) = unsafe { (Self::of(raw), &*channels) };
        from_result(|| {
            // The core has compared all with the most that there can be.
            if channels.combined_count == 0 {
                return Err(EINVAL);
            }
            data.set_channels(dev, channels.combined_count).map(|()| 0)
        })
    }

    unsafe extern "C" fn get_coalesce(
        raw: *mut bindings::net_device,
        coalesce: *mut bindings::ethtool_coalesce,
        _more: *mut bindings::kernel_ethtool_coalesce,
        _ack: *mut bindings::netlink_ext_ack,
    ) -> i32 {
        // SAFETY: As in `get_msglevel`; `coalesce` is for this to write.
        let ((dev, data), coalesce) = unsafe { (Self::of(raw), &mut *coalesce) };
        from_result(|| {
            data.get_coalesce(dev)?.write(coalesce);
            Ok(0)
        })
    }

    unsafe extern "C" fn set_coalesce(
        raw: *mut bindings::net_device,
        coalesce: *mut bindings::ethtool_coalesce,
        _more: *mut bindings::kernel_ethtool_coalesce,
        ack: *mut bindings::netlink_ext_ack,
    ) -> i32 {
        // SAFETY: As in `get_msglevel`; `coalesce` is for this to read, `ack` to write or null.
        let ((dev, data), coalesce, ack) =
            unsafe { (Self::of(raw), &*coalesce, ExtAck::from_raw(ack)) };
        from_result(|| {
            data.set_coalesce(dev, Coalesce::from_raw(coalesce), ack)
                .map(|()| 0)
        })
    }

    unsafe extern "C" fn get_per_queue_coalesce(
        raw: *mut bindings::net_device,
        queue: u32,
        coalesce: *mut bindings::ethtool_coalesce,
    ) -> i32 {
        // SAFETY: As in `get_msglevel`; `coalesce` is for this to write.
        let ((dev, data), coalesce) = unsafe { (Self::of(raw), &mut *coalesce) };
        from_result(|| {
            data.get_per_queue_coalesce(dev, queue)?.write(coalesce);
            Ok(0)
        })
    }

    unsafe extern "C" fn set_per_queue_coalesce(
        raw: *mut bindings::net_device,
        queue: u32,
        coalesce: *mut bindings::ethtool_coalesce,
    ) -> i32 {
        // SAFETY: As in `get_msglevel`; `coalesce` is for this to read.
        let ((dev, data), coalesce) = unsafe { (Self::of(raw), &*coalesce) };
        from_result(|| {
            data.set_per_queue_coalesce(dev, queue, Coalesce::from_raw(coalesce))
                .map(|()| 0)
        })
    }

    unsafe extern "C" fn get_sset_count(raw: *mut bindings::net_device, set: i32) -> i32 {
        // SAFETY: As in `get_msglevel`.
        let (dev, data) = unsafe { Self::of(raw) };
        match set.unsigned_abs() {
            bindings::ethtool_stringset_ETH_SS_STATS if T::HAS_GET_ETHTOOL_STATS => {
                let mut list = Statistics::count();
                data.get_ethtool_stats(dev, &mut list);
                let Ok(count) = i32::try_from(list.told()) else {
                    return EOVERFLOW.to_errno();
                };
                dev.ethtool_counts().set_statistics(list.told());
                count
            }
            // CAST: A constant, and not a large one.
            bindings::ethtool_stringset_ETH_SS_TEST if Self::HAS_TESTS => {
                T::SELF_TESTS.len() as i32
            }
            _ => EOPNOTSUPP.to_errno(),
        }
    }

    unsafe extern "C" fn get_strings(raw: *mut bindings::net_device, set: u32, strings: *mut u8) {
        // SAFETY: As in `get_msglevel`.
        let (dev, data) = unsafe { Self::of(raw) };
        match set {
            bindings::ethtool_stringset_ETH_SS_STATS if T::HAS_GET_ETHTOOL_STATS => {
                // SAFETY: The C side has memory for as many as it was told before, with RTNL held
                // all along.
                let names = unsafe { names_mut(strings, dev.ethtool_counts().statistics()) };
                data.get_ethtool_stats(dev, &mut Statistics::names(names));
            }
            bindings::ethtool_stringset_ETH_SS_TEST if Self::HAS_TESTS => {
                // SAFETY: The C side has memory for as many as it was told before, which is
                // always the same. CAST: As in `get_sset_count`.
                let names = unsafe { names_mut(strings, T::SELF_TESTS.len() as u32) };
                for (place, name) in names.iter_mut().zip(T::SELF_TESTS) {
                    write_name(place, fmt!("{}", *name));
                }
            }
            _ => {}
        }
    }

    unsafe extern "C" fn get_ethtool_stats(
        raw: *mut bindings::net_device,
        stats: *mut bindings::ethtool_stats,
        values: *mut u64,
    ) {
        // SAFETY: As in `get_msglevel`; the C side has memory for as many values as it says.
        let ((dev, data), values) = unsafe { (Self::of(raw), slice_mut(values, (*stats).n_stats)) };
        data.get_ethtool_stats(dev, &mut Statistics::values(values));
    }

    unsafe extern "C" fn get_regs_len(raw: *mut bindings::net_device) -> i32 {
        // SAFETY: As in `get_msglevel`.
        let (dev, data) = unsafe { Self::of(raw) };
        i32::try_from(data.get_regs_len(dev)).unwrap_or(0)
    }

    unsafe extern "C" fn get_regs(
        raw: *mut bindings::net_device,
        regs: *mut bindings::ethtool_regs,
        dump: *mut c_void,
    ) {
        // SAFETY: As in `get_msglevel`; `regs` is for this to read and write.
        let ((dev, data), regs) = unsafe { (Self::of(raw), &mut *regs) };
        regs.version = T::REGS_VERSION;
        // SAFETY: The C side has memory for as many octets as it says.
        data.get_regs(dev, unsafe { slice_mut(dump.cast(), regs.len) });
    }

    unsafe extern "C" fn self_test(
        raw: *mut bindings::net_device,
        test: *mut bindings::ethtool_test,
        values: *mut u64,
    ) {
        // SAFETY: As in `get_msglevel`; `test` is for this to read and write.
        let ((dev, data), test) = unsafe { (Self::of(raw), &mut *test) };
        // SAFETY: The C side has memory for as many values as it says.
        let values = unsafe { slice_mut(values, test.len) };
        let Ok(mut results) = KVec::from_elem(TestResult::Skipped, values.len(), GFP_KERNEL) else {
            test.flags |= bindings::ethtool_test_flags_ETH_TEST_FL_FAILED;
            return;
        };
        let offline = test.flags & bindings::ethtool_test_flags_ETH_TEST_FL_OFFLINE != 0;
        data.self_test(dev, offline, &mut results);
        for (value, result) in values.iter_mut().zip(&results) {
            *value = *result as u64;
            if *result == TestResult::Failed {
                test.flags |= bindings::ethtool_test_flags_ETH_TEST_FL_FAILED;
            }
        }
    }

    unsafe extern "C" fn get_rxfh_key_size(raw: *mut bindings::net_device) -> u32 {
        // SAFETY: As in `get_msglevel`.
        let (dev, data) = unsafe { Self::of(raw) };
        data.get_rxfh_key_size(dev)
    }

    unsafe extern "C" fn get_rxfh_indir_size(raw: *mut bindings::net_device) -> u32 {
        // SAFETY: As in `get_msglevel`.
        let (dev, data) = unsafe { Self::of(raw) };
        data.get_rxfh_indir_size(dev)
    }

    unsafe extern "C" fn get_rx_ring_count(raw: *mut bindings::net_device) -> u32 {
        // SAFETY: As in `get_msglevel`. The number changes only with RTNL held.
        unsafe { (*raw).real_num_rx_queues }
    }

    unsafe extern "C" fn get_rxfh(
        raw: *mut bindings::net_device,
        rxfh: *mut bindings::ethtool_rxfh_param,
    ) -> i32 {
        // SAFETY: As in `get_msglevel`; `rxfh` is for this to read and write.
        let ((dev, data), rxfh) = unsafe { (Self::of(raw), &mut *rxfh) };
        // SAFETY: Each is null or has the size that goes with it.
        let (table, key) = unsafe {
            (
                slice_mut(rxfh.indir, rxfh.indir_size),
                slice_mut(rxfh.key, rxfh.key_size),
            )
        };
        from_result(|| {
            rxfh.hfunc = data.get_rxfh(dev, table, key)?.into_raw();
            Ok(0)
        })
    }

    unsafe extern "C" fn set_rxfh(
        raw: *mut bindings::net_device,
        rxfh: *mut bindings::ethtool_rxfh_param,
        ack: *mut bindings::netlink_ext_ack,
    ) -> i32 {
        // SAFETY: As in `get_msglevel`; `rxfh` is for this to read, `ack` to write or null.
        let ((dev, data), rxfh, ack) = unsafe { (Self::of(raw), &*rxfh, ExtAck::from_raw(ack)) };
        // SAFETY: Each is null or has the size that goes with it.
        let (table, key) = unsafe {
            (
                slice_mut(rxfh.indir, rxfh.indir_size),
                slice_mut(rxfh.key, rxfh.key_size),
            )
        };
        let change = RxfhChange {
            table: (!table.is_empty()).then_some(table),
            key: (!key.is_empty()).then_some(key),
            function: HashFunction::from_raw(rxfh.hfunc),
        };
        from_result(|| data.set_rxfh(dev, change, ack).map(|()| 0))
    }

    unsafe extern "C" fn get_rxfh_fields(
        raw: *mut bindings::net_device,
        fields: *mut bindings::ethtool_rxfh_fields,
    ) -> i32 {
        // SAFETY: As in `get_msglevel`; `fields` is for this to read and write.
        let ((dev, data), fields) = unsafe { (Self::of(raw), &mut *fields) };
        from_result(|| {
            let flow = FlowType::from_raw(fields.flow_type).ok_or(EINVAL)?;
            fields.data = data.get_rxfh_fields(dev, flow)?.into_raw();
            Ok(0)
        })
    }

    unsafe extern "C" fn set_rxfh_fields(
        raw: *mut bindings::net_device,
        fields: *const bindings::ethtool_rxfh_fields,
        ack: *mut bindings::netlink_ext_ack,
    ) -> i32 {
        // SAFETY: As in `get_msglevel`; `fields` is for this to read, `ack` to write or null.
        let ((dev, data), fields, ack) =
            unsafe { (Self::of(raw), &*fields, ExtAck::from_raw(ack)) };
        from_result(|| {
            let flow = FlowType::from_raw(fields.flow_type).ok_or(EINVAL)?;
            let Some(hash) = FlowHash::from_raw(fields.data) else {
                return Err(ack.refuse(EINVAL, c"only addresses, or addresses and ports"));
            };
            data.set_rxfh_fields(dev, flow, hash, ack).map(|()| 0)
        })
    }
}
