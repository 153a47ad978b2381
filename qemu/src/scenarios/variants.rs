// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Drivers that take less than they are offered, and NICs that are larger than the usual one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Scenario;
use crate::backend::Uplink;
use crate::cable::INTERFACE;
use crate::driver::Driver;
use crate::far_end::BytesServer;
use crate::kernel_log::complaints;
use crate::machine::nic::{Attach, Nic};
use crate::machine::{Machine, Spec};
use crate::net::HOST_IP;
use crate::test::Form;
use crate::test::bed::Bed;
use crate::test::setup::Setup;
use crate::traffic::{Client, Direction};

const NETDEV: Setup = Setup::new(Attach::Netdev, Uplink::Tap);
const DEVICE: Setup = Setup::new(Attach::Device, Uplink::Tap);

/// The interface before VIRTIO 1.0, which our driver does not know.
const LEGACY: &[Setup] = &[
    NETDEV.properties("legacy", &["disable-modern=on", "disable-legacy=off"]),
    NETDEV.properties(
        "legacy-nomergeable",
        &["disable-modern=on", "disable-legacy=off", "mrg_rxbuf=off"],
    ),
];

/// QEMU takes features away before the driver sees them.
const FEWER_FEATURES: &[Setup] = &[
    NETDEV.properties("nomergeable", &["mrg_rxbuf=off"]),
    NETDEV.properties(
        "transitional",
        &["disable-modern=off", "disable-legacy=off"],
    ),
    NETDEV.properties("noevent", &["event_idx=off", "indirect_desc=off"]),
    NETDEV.properties(
        "nooffload",
        &[
            "csum=off",
            "guest_csum=off",
            "gso=off",
            "host_tso4=off",
            "host_tso6=off",
            "host_ecn=off",
            "host_ufo=off",
            "guest_tso4=off",
            "guest_tso6=off",
            "guest_ecn=off",
            "guest_ufo=off",
            "host_uso=off",
            "guest_uso4=off",
            "guest_uso6=off",
        ],
    ),
    NETDEV.properties(
        "smallring",
        &[
            "rx_queue_size=256",
            "tx_queue_size=256",
            "mrg_rxbuf=off",
            "indirect_desc=off",
        ],
    ),
];

pub const TABLE: &[Scenario] = &[
    Scenario::new("contents_and_speed", LEGACY, contents_and_speed).only(&[Driver::C]),
    Scenario::new("contents_and_speed", FEWER_FEATURES, contents_and_speed),
    Scenario::new("legacy_is_refused", &[NETDEV], legacy_is_refused).only(&[Driver::Ferronic]),
    Scenario::new("mtu", &[NETDEV.mtu(9000), DEVICE.mtu(9000)], large_mtu),
    Scenario::new(
        "two_queues",
        &[NETDEV.queues(2), DEVICE.queues(2)],
        two_queues,
    ),
    Scenario::new(
        "fewer_queues",
        &[NETDEV.queues(2), DEVICE.queues(2)],
        fewer_queues,
    ),
];

/// A device that only knows the interface before VIRTIO 1.0 is left as it was, for another driver.
fn legacy_is_refused(bed: &mut Bed, _: Form) -> Result<()> {
    let mut spec = Spec::new(format!("{}-legacy", bed.setup), Nic::User);
    (spec.driver, spec.kernel) = (None, bed.setup.kernel);
    spec.nic_property("disable-modern=on");
    spec.nic_property("disable-legacy=off");
    let machine = Machine::boot(bed.lab, &spec)?;
    let refused = machine.guest.sh(&format!(
        "driver load ferronic && ! test -e /sys/class/net/{INTERFACE} && dmesg --raw"
    ))?;
    ensure!(
        refused.contains("structure: a legacy device?"),
        "the driver says nothing of a legacy device:\n{refused}"
    );
    let driven = machine.guest.sh(&format!(
        "driver unload ferronic && driver load c && ethtool -i {INTERFACE}"
    ))?;
    ensure!(
        driven.contains("virtio_net"),
        "Linux's own driver does not get the device: {driven}"
    );
    let log = machine.guest.sh("dmesg --raw")?;
    let complaints = complaints(&log);
    // The refusal itself is one, as it is an error of our driver's.
    ensure!(complaints.len() == 1, "the kernel complains:\n{log}");
    machine.quit()
}

pub fn contents_and_speed(bed: &mut Bed, form: Form) -> Result<()> {
    whole(bed, form)?;
    for direction in [Direction::GuestToHost, Direction::HostToGuest] {
        let transfer =
            Client::new(&bed.cable.server, direction, form.pick(1, 10)).run(bed.guest())?;
        transfer
            .ensure_flowed()
            .with_context(|| format!("{direction:?}"))?;
    }
    Ok(())
}

fn whole(bed: &Bed, form: Form) -> Result<()> {
    let server = BytesServer::start(bed.lab, HOST_IP)?;
    let bytes = form.pick(8, 128) << 20;
    let limit = Duration::from_secs(form.pick(60, 600));
    for (verb, amount) in [
        ("send", bytes),
        ("fetch", bytes),
        ("echo", form.pick(200, 2000)),
    ] {
        bed.guest().sh_within(&server.client(verb, amount), limit)?;
    }
    Ok(())
}

/// Frames of 9000 bytes, with segmentation offload and without.
fn large_mtu(bed: &mut Bed, form: Form) -> Result<()> {
    let mtu = bed
        .guest()
        .sh(&format!("cat /sys/class/net/{INTERFACE}/mtu"))?;
    ensure!(mtu.trim() == "9000", "the guest's MTU is {}", mtu.trim());
    for size in [1473, 4000, 8972] {
        bed.guest().sh(&format!(
            "ping -q -M do -c 5 -i 0.02 -w 10 -s {size} {HOST_IP}"
        ))?;
    }
    whole(bed, form)?;
    bed.guest()
        .sh(&format!("ethtool -K {INTERFACE} tso off gso off gro off"))?;
    whole(bed, form)?;
    bed.guest()
        .sh(&format!("ethtool -K {INTERFACE} tso on gso on gro on"))?;
    Ok(())
}

/// Packets of each queue pair, received and sent, as the NIC counts them.
fn per_queue(bed: &Bed) -> Result<Vec<(u64, u64)>> {
    let stats = bed.backend()?.query(&["stats"])?;
    let queues = stats
        .get("queues")
        .and_then(Value::as_array)
        .context("`ferronic stats` tells of no queues")?;
    let count = |queue: &Value, way: &str| {
        queue
            .pointer(&format!("/{way}/packets"))
            .and_then(Value::as_u64)
    };
    queues
        .iter()
        .map(|queue| {
            count(queue, "rx")
                .zip(count(queue, "tx"))
                .with_context(|| format!("`ferronic stats` says of a queue: {queue}"))
        })
        .collect()
}

/// Both pairs carry traffic, both ways.
fn two_queues(bed: &mut Bed, form: Form) -> Result<()> {
    bed.guest()
        .sh(&format!("ethtool -L {INTERFACE} combined 2"))?;
    let before = per_queue(bed)?;
    for direction in [Direction::GuestToHost, Direction::HostToGuest] {
        let client =
            Client::new(&bed.cable.server, direction, form.pick(3, 15)).with("--parallel 8");
        let transfer = client.run(bed.guest())?;
        transfer
            .ensure_flowed()
            .with_context(|| format!("{direction:?}"))?;
    }
    for (index, (after, before)) in per_queue(bed)?.iter().zip(before).enumerate() {
        let (received, sent) = (after.0 - before.0, after.1 - before.1);
        ensure!(
            received > 100 && sent > 100,
            "queue pair {index} has carried only {received} packets in, {sent} out"
        );
    }
    whole(bed, form)
}

/// A driver that uses one pair of two.
fn fewer_queues(bed: &mut Bed, form: Form) -> Result<()> {
    bed.guest()
        .sh(&format!("ethtool -L {INTERFACE} combined 1"))?;
    let result = contents_and_speed(bed, form);
    bed.guest()
        .sh(&format!("ethtool -L {INTERFACE} combined 2"))?;
    result
}
