// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Everything is changed again and again while traffic flows.

use std::time::Duration;

use anyhow::{Context, Result};

use super::interface::whole;
use super::{DEVICE_TAP, EVERY, QEMU_TAP, Scenario};
use crate::cable::INTERFACE;
use crate::driver::Driver;
use crate::guest::Running;
use crate::test::Form;
use crate::test::bed::Bed;
use crate::test::setup::Setup;
use crate::traffic::{Client, Direction, wait_flow};

/// Not the netdev attachment: there the backend leaves what is in a transmit ring that the frontend
/// disables where it is, and a TCP connection whose packets those are waits for them.
const TWO_QUEUES: &[Setup] = &[DEVICE_TAP.queues(2), QEMU_TAP.queues(2)];

pub const TABLE: &[Scenario] = &[
    Scenario::new("reload_under_traffic", EVERY, reload),
    Scenario::new("unbind_under_traffic", EVERY, unbind),
    Scenario::new("remove_under_traffic", EVERY, remove),
    // The C driver resizes rings only where the device has VIRTIO_F_RING_RESET.
    Scenario::new("rings_under_traffic", &[QEMU_TAP], rings).only(&[Driver::C]),
    Scenario::new("rings_under_traffic", EVERY, rings).only(&[Driver::Ferronic]),
    Scenario::new("channels_under_traffic", TWO_QUEUES, channels),
    Scenario::new("mtu_under_traffic", EVERY, mtu),
    Scenario::new("offloads_under_traffic", EVERY, offloads),
];

/// How long traffic may take to flow again.
const RESUME: Duration = Duration::from_secs(10);
/// How much has to flow between two changes.
const ENOUGH: u64 = 1_000_000;

/// iperf3 both ways, which goes on until it is killed.
pub fn start<'a>(bed: &'a Bed<'_>) -> Result<Running<'a>> {
    let client = Client::new(&bed.cable.server, Direction::GuestToHost, 3600).with("--bidir");
    client.start(bed.guest())
}

/// It moves, both ways.
pub fn flows(bed: &Bed) -> Result<()> {
    wait_flow(bed.guest(), Direction::GuestToHost, ENOUGH, RESUME)?;
    wait_flow(bed.guest(), Direction::HostToGuest, ENOUGH, RESUME)
}

/// Rounds in which the interface goes and comes back: each has traffic of its own.
fn rounds_anew(bed: &mut Bed, rounds: u32, change: &str) -> Result<()> {
    for round in 1..=rounds {
        let mut one = || -> Result<()> {
            let traffic = start(bed)?;
            flows(bed)?;
            bed.guest().sh(change)?;
            traffic.kill()?;
            bed.lay_cable()
        };
        one().with_context(|| format!("round {round} of {rounds}"))?;
    }
    whole(bed, Form::Short)
}

fn reload(bed: &mut Bed, form: Form) -> Result<()> {
    let driver = bed.setup.driver.name();
    let change = format!("driver unload {driver} && driver load {driver}");
    rounds_anew(bed, bed.rounds(form, 10, 200), &change)
}

/// The PCI device is taken from the driver and given back.
fn unbind(bed: &mut Bed, form: Form) -> Result<()> {
    let driver = bed.setup.driver.on_pci();
    let change = format!(
        "device=$(ethtool -i {INTERFACE} | sed -n 's/^bus-info: //p') && \
         cd /sys/bus/pci/drivers/{driver} && echo $device > unbind && echo $device > bind"
    );
    rounds_anew(bed, bed.rounds(form, 3, 50), &change)
}

/// The PCI device disappears, in the orderly way, and is found again.
fn remove(bed: &mut Bed, form: Form) -> Result<()> {
    let change = format!(
        "device=$(ethtool -i {INTERFACE} | sed -n 's/^bus-info: //p') && \
         echo 1 > /sys/bus/pci/devices/$device/remove && echo 1 > /sys/bus/pci/rescan"
    );
    rounds_anew(bed, bed.rounds(form, 3, 50), &change)
}

/// Rounds in which the interface stays: the same connections live through all of them.
fn rounds(bed: &mut Bed, rounds: u32, changes: &[String]) -> Result<()> {
    let traffic = start(bed)?;
    let result = (1..=rounds)
        .zip(changes.iter().cycle())
        .try_for_each(|(round, change)| {
            bed.guest()
                .sh(change)
                .and_then(|_| flows(bed))
                .with_context(|| format!("round {round} of {rounds}: {change}"))
        });
    traffic.kill()?;
    result?;
    whole(bed, Form::Short)
}

fn rings(bed: &mut Bed, form: Form) -> Result<()> {
    let changes = [(64, 256), (256, 64), (128, 128), (256, 256)]
        .map(|(rx, tx)| format!("ethtool -G {INTERFACE} rx {rx} tx {tx}"));
    rounds(bed, bed.rounds(form, 8, 200), &changes)
}

fn channels(bed: &mut Bed, form: Form) -> Result<()> {
    let changes = [1, 2].map(|count| format!("ethtool -L {INTERFACE} combined {count}"));
    rounds(bed, bed.rounds(form, 8, 200), &changes)
}

/// What is under way may be larger than what fits from now on.
fn mtu(bed: &mut Bed, form: Form) -> Result<()> {
    let changes = [1400, 1500, 1280, 1500].map(|mtu| format!("ip link set {INTERFACE} mtu {mtu}"));
    rounds(bed, bed.rounds(form, 8, 200), &changes)
}

fn offloads(bed: &mut Bed, form: Form) -> Result<()> {
    let changes = [
        "tx-tcp-segmentation off",
        "tx-tcp-segmentation on",
        "tx-checksum-ip-generic off",
        "tx-checksum-ip-generic on",
        "gro off",
        "gro on",
    ]
    .map(|feature| format!("ethtool -K {INTERFACE} {feature}"));
    rounds(bed, form.pick(6, 120), &changes)
}
