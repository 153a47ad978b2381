// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Packets get through, both ways, whole.

use anyhow::{Context, Result, ensure};

use super::{
    BOTH, DEVICE_TAP, LOOPBACK, NETDEV_TAP, QEMU_TAP, SWITCH, SWITCH_USER, Scenario, USER,
};
use crate::backend::Uplink;
use crate::far_end::BytesServer;
use crate::net::{HOST_IP, HOST_IP6};
use crate::test::Form;
use crate::test::bed::Bed;
use crate::test::setup::Setup;
use crate::traffic::{Client, Direction};

const ALL: &[Setup] = &[
    NETDEV_TAP,
    DEVICE_TAP,
    USER,
    LOOPBACK,
    SWITCH,
    SWITCH_USER,
    QEMU_TAP,
];
/// Those whose far end is the tap.
const ON_TAP: &[Setup] = &[NETDEV_TAP, DEVICE_TAP, SWITCH, QEMU_TAP];

pub const TABLE: &[Scenario] = &[
    Scenario::new("ping", ON_TAP, ping),
    Scenario::new("contents", ON_TAP, contents),
    Scenario::new("tcp", ALL, tcp),
    Scenario::new("udp", ALL, udp),
    Scenario::new("soak", BOTH, soak).full_only(),
];

fn ping(bed: &mut Bed, form: Form) -> Result<()> {
    let count = form.pick(5, 50);
    for address in [HOST_IP, HOST_IP6] {
        for size in [0, 1, 18, 56, 1000, 1452] {
            bed.guest().sh(&format!(
                "ping -q -c {count} -i 0.01 -w 20 -s {size} {address}"
            ))?;
        }
    }
    Ok(())
}

/// Every byte of TCP streams and of datagrams of all sizes.
fn contents(bed: &mut Bed, form: Form) -> Result<()> {
    let server = BytesServer::start(bed.lab, HOST_IP)?;
    let bytes = form.pick(16, 256) << 20;
    let limit = std::time::Duration::from_secs(form.pick(60, 600));
    for (verb, amount) in [
        ("send", bytes),
        ("fetch", bytes),
        ("echo", form.pick(300, 5000)),
    ] {
        bed.guest().sh_within(&server.client(verb, amount), limit)?;
    }
    Ok(())
}

fn tcp(bed: &mut Bed, form: Form) -> Result<()> {
    for direction in [Direction::GuestToHost, Direction::HostToGuest] {
        let client = Client::new(&bed.cable.server, direction, form.pick(2, 20));
        let client = match bed.setup.uplink {
            // A switch loses what its way out has no room for, and passt is slow to recover.
            Uplink::SwitchUser => client.with("--bitrate 200M"),
            _ => client,
        };
        let transfer = client.run(bed.guest())?;
        transfer
            .ensure_flowed()
            .with_context(|| format!("{direction:?}"))?;
    }
    Ok(())
}

/// Few datagrams are lost at a rate that is far from the limit.
fn udp(bed: &mut Bed, form: Form) -> Result<()> {
    for direction in [Direction::GuestToHost, Direction::HostToGuest] {
        let rate = 0.01 / f64::from(bed.setup.kernel.patience());
        let client = Client::new(&bed.cable.server, direction, form.pick(2, 20)).with(&format!(
            "--udp --bitrate {}K --length 1400",
            (rate * 1e6).round()
        ));
        // On a host that is busy with other things a socket buffer may overflow now and then.
        let mut tries = Vec::new();
        while tries.len() < 3 {
            let transfer = client.run(bed.guest())?;
            let good = transfer.gbps > 0.8 * rate && transfer.lost_percent < 2.0;
            tries.push((transfer.gbps, transfer.lost_percent));
            if good {
                break;
            }
            ensure!(
                tries.len() < 3,
                "{direction:?}: (Gb/s of {rate}, percent lost) in three tries: {tries:.4?}"
            );
        }
    }
    Ok(())
}

/// Ten minutes both ways at once.
fn soak(bed: &mut Bed, _: Form) -> Result<()> {
    let client =
        Client::new(&bed.cable.server, Direction::GuestToHost, 600).with("--bidir --parallel 4");
    let transfer = client.run(bed.guest())?;
    transfer.ensure_flowed()?;
    contents(bed, Form::Full)
}
