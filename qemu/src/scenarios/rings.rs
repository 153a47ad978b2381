// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Split and packed rings, and where they go on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qapi::qmp;
use serde_json::Value;

use super::{DEVICE_TAP, NETDEV_TAP, Scenario, link, survival, variants};
use crate::cable::INTERFACE;
use crate::driver::Driver;
use crate::test::Form;
use crate::test::bed::Bed;
use crate::test::setup::Setup;
use crate::traffic::{self, Client, Direction};

/// Bit number of `VIRTIO_F_RING_PACKED`.
const RING_PACKED: u32 = 34;
/// ... and of `VIRTIO_F_IN_ORDER`.
const IN_ORDER: usize = 35;
/// How long traffic may take to flow again.
const RESUME: Duration = Duration::from_secs(10);

/// In the device attachment a driver that can uses packed rings anyway.
const PACKED: Setup = NETDEV_TAP.properties("packed", &["packed=on"]);
/// Packed rings with chains of several descriptors.
const PACKED_DIRECT: Setup =
    NETDEV_TAP.properties("packed-direct", &["packed=on", "indirect_desc=off"]);
const PACKED_PLAIN: Setup = NETDEV_TAP.properties(
    "packed-plain",
    &["packed=on", "event_idx=off", "mrg_rxbuf=off"],
);
/// What the guest has sent is given back in batches. In the device attachment a driver that knows of
/// that accepts it anyway. Ours does not.
const SPLIT_IN_ORDER: Setup = NETDEV_TAP.properties("in-order", &["in_order=on"]);
const PACKED_IN_ORDER: Setup =
    NETDEV_TAP.properties("packed-in-order", &["packed=on", "in_order=on"]);
const DEVICE_SPLIT: Setup = DEVICE_TAP.serve("split", &["--no-packed"]);

pub const TABLE: &[Scenario] = &[
    Scenario::new(
        "rings_are_packed",
        &[PACKED, PACKED_DIRECT, PACKED_PLAIN, DEVICE_TAP],
        |bed, _| kind_of_rings(bed, true),
    ),
    Scenario::new("rings_are_split", &[NETDEV_TAP, DEVICE_SPLIT], |bed, _| {
        kind_of_rings(bed, false)
    }),
    Scenario::new(
        "contents_and_speed",
        &[PACKED, PACKED_DIRECT, PACKED_PLAIN, DEVICE_SPLIT],
        variants::contents_and_speed,
    ),
    Scenario::new(
        "pause",
        &[NETDEV_TAP, PACKED, DEVICE_TAP, DEVICE_SPLIT],
        pause,
    ),
    Scenario::new("link_toggles", &[PACKED, PACKED_DIRECT], link::toggles),
    Scenario::new("rebind_driver", &[PACKED], survival::rebind_driver),
    Scenario::new(
        "kill_backend",
        &[PACKED, PACKED_DIRECT],
        survival::kill_backend,
    ),
    Scenario::new(
        "buffers_are_used_in_order",
        &[SPLIT_IN_ORDER, PACKED_IN_ORDER, DEVICE_TAP, DEVICE_SPLIT],
        in_order,
    )
    .only(&[Driver::C]),
    Scenario::new(
        "contents_and_speed",
        &[SPLIT_IN_ORDER, PACKED_IN_ORDER],
        variants::contents_and_speed,
    )
    .only(&[Driver::C]),
    Scenario::new(
        "kill_backend",
        &[SPLIT_IN_ORDER, PACKED_IN_ORDER],
        survival::kill_backend,
    )
    .only(&[Driver::C]),
    Scenario::new(
        "link_toggles",
        &[SPLIT_IN_ORDER, PACKED_IN_ORDER],
        link::toggles,
    )
    .only(&[Driver::C]),
];

/// The kind of rings that the driver has accepted.
fn kind_of_rings(bed: &Bed, packed: bool) -> Result<()> {
    let status = bed.backend()?.query(&["status"])?;
    let features = status
        .pointer("/frontend/features")
        .and_then(Value::as_u64)
        .with_context(|| format!("`ferronic status` tells of no features: {status}"))?;
    ensure!(
        (features >> RING_PACKED & 1 == 1) == packed,
        "the driver has accepted {features:#x}"
    );
    Ok(())
}

/// The driver knows that buffers are used in order.
fn in_order(bed: &mut Bed, _: Form) -> Result<()> {
    // One character for each bit.
    let accepted = bed
        .guest()
        .sh(&format!("cat /sys/class/net/{INTERFACE}/device/features"))?;
    ensure!(
        accepted.as_bytes().get(IN_ORDER) == Some(&b'1'),
        "the driver has accepted {accepted}"
    );
    Ok(())
}

/// The machine stops and goes on under traffic.
fn pause(bed: &mut Bed, form: Form) -> Result<()> {
    for direction in [Direction::GuestToHost, Direction::HostToGuest] {
        let client = Client::new(&bed.cable.server, direction, 3600);
        let flow = client.start(bed.guest())?;
        let rounds = form.pick(3, 10);
        let result = (1..=rounds).try_for_each(|round| {
            std::thread::sleep(Duration::from_millis(300));
            bed.machine.qmp(|q| q.execute(&qmp::stop {}))?;
            std::thread::sleep(Duration::from_millis(200));
            bed.machine.qmp(|q| q.execute(&qmp::cont {}))?;
            traffic::wait_flow(bed.guest(), direction, 10_000_000, RESUME)
                .with_context(|| format!("{direction:?}, round {round} of {rounds}"))
        });
        flow.kill()?;
        result?;
    }
    Ok(())
}
