// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Receive-side scaling: received packets go to the queue that the table names for their flow.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::interface::{queues, whole};
use super::{DEVICE_TAP, QEMU_TAP, Scenario};
use crate::cable::INTERFACE;
use crate::driver::Driver;
use crate::test::Form;
use crate::test::bed::Bed;
use crate::test::setup::Setup;
use crate::traffic::{Client, Direction};

/// Our device, and QEMU's own NIC; in the netdev attachment QEMU has the control queue, and would
/// promise what it cannot keep.
const SCALING: &[Setup] = &[
    DEVICE_TAP.queues(2),
    QEMU_TAP.queues(2).properties("rss", &["rss=on"]),
];

pub const TABLE: &[Scenario] = &[
    Scenario::new("flow_hash_table", SCALING, table),
    Scenario::new("flow_hash_key", SCALING, key),
    Scenario::new("flow_hash_fields", SCALING, fields),
];

fn set(bed: &Bed, arguments: &str) -> Result<()> {
    bed.guest().sh(&format!("ethtool {arguments}")).map(|_| ())
}

/// What `ethtool -x` prints.
fn show(bed: &Bed) -> Result<String> {
    bed.guest().sh(&format!("ethtool -x {INTERFACE}"))
}

/// Packets received, by queue.
fn received(bed: &Bed) -> Result<BTreeMap<u64, u64>> {
    let all = queues(bed.guest())?;
    let stats = all.get("qstats").and_then(|s| s.as_array());
    Ok(stats
        .context("no statistics of queues")?
        .iter()
        .filter_map(|q| {
            let number = |field| q.get(field)?.as_u64();
            (q.get("type")? == "rx").then(|| Some((number("id")?, number("rx-packets")?)))?
        })
        .collect())
}

/// What each of two queues receives of several flows.
fn spread(bed: &Bed) -> Result<[u64; 2]> {
    let before = received(bed)?;
    Client::new(&bed.cable.server, Direction::HostToGuest, 1)
        .with("--parallel 8")
        .run(bed.guest())?;
    let after = received(bed)?;
    let of = |queue| {
        let now = after.get(&queue)?;
        Some(now - before.get(&queue).unwrap_or(&0))
    };
    of(0)
        .zip(of(1))
        .map(|(a, b)| [a, b])
        .with_context(|| format!("not two queues: {after:?}"))
}

/// All to the one, all to the other, some to each.
fn table(bed: &mut Bed, form: Form) -> Result<()> {
    for (weights, used) in [
        ("1 0", [true, false]),
        ("0 1", [false, true]),
        ("1 1", [true, true]),
    ] {
        set(bed, &format!("-X {INTERFACE} weight {weights}"))?;
        let counts = spread(bed)?;
        // Whatever else the host says is little beside the transfer.
        let enough = counts.iter().sum::<u64>() / 20;
        ensure!(
            counts.map(|count| count > enough) == used,
            "weights {weights}, but the queues received {counts:?}"
        );
    }
    set(bed, &format!("-X {INTERFACE} default"))?;
    ensure!(
        set(bed, &format!("-X {INTERFACE} equal 3")).is_err(),
        "a table with a third of two queues was taken"
    );
    whole(bed, form)
}

/// A key is kept, and one of another length refused.
fn key(bed: &mut Bed, form: Form) -> Result<()> {
    let octets: Vec<String> = (1..=40).map(|i| format!("{i:02x}")).collect();
    let key = octets.join(":");
    set(bed, &format!("-X {INTERFACE} hkey {key}"))?;
    ensure!(show(bed)?.contains(&key), "{}", show(bed)?);
    ensure!(
        set(bed, &format!("-X {INTERFACE} hkey {}", &key[3..])).is_err(),
        "a key of 39 octets was taken"
    );
    whole(bed, form)
}

/// With addresses alone all flows between two hosts are one.
fn fields(bed: &mut Bed, form: Form) -> Result<()> {
    if bed.setup.driver == Driver::C {
        // Otherwise it keeps to itself what is to be hashed.
        set(bed, &format!("-K {INTERFACE} rxhash on"))?;
    }
    set(bed, &format!("-N {INTERFACE} rx-flow-hash tcp4 sd"))?;
    let counts = spread(bed)?;
    let least = counts.iter().min().copied().unwrap_or(0);
    ensure!(
        least * 20 < counts.iter().sum(),
        "flows between two addresses went to both queues: {counts:?}"
    );
    set(bed, &format!("-N {INTERFACE} rx-flow-hash tcp4 sdfn"))?;
    whole(bed, form)
}
