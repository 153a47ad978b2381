// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the driver asks to receive is what it gets.
//!
//! In the device attachment the control queue is ours, and so is the filter: frames that
//! were not asked for must not reach the guest at all. QEMU's own NIC has such a filter, too. In the netdev attachment QEMU keeps
//! the control queue to itself, the backend knows no filter, and the guest's stack sorts
//! the frames; there only what was asked for is checked.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{EVERY, Scenario};
use crate::cable::INTERFACE;
use crate::far_end::send_frames;
use crate::machine::nic::Attach;
use crate::net::HOST_IP;
use crate::test::Form;
use crate::test::bed::{Bed, GUEST_MAC};
use crate::test::setup::Port;

pub const TABLE: &[Scenario] = &[
    Scenario::new("filter_unicast", EVERY, unicast),
    Scenario::new("filter_multicast", EVERY, multicast),
    Scenario::new("filter_promiscuous", EVERY, promiscuous),
    Scenario::new("filter_vlan", EVERY, vlan),
    Scenario::new("mac_change", EVERY, mac_change),
];

const STRANGER: &str = "02:00:00:00:00:99";
const GROUP: &str = "01:00:5e:01:02:03";
const OTHER_GROUP: &str = "01:00:5e:0a:0b:0c";
const LOG: &str = "/run/frames.json";
/// How long the guest listens at most. It is told when all has been sent.
const LISTEN: Duration = Duration::from_secs(60);
const COUNT: u32 = 20;

/// Sends frames of these names to these addresses (and VLANs), and counts what the guest gets of them.
fn exchange(bed: &Bed, frames: &[(&str, &str, Option<u16>)]) -> Result<HashMap<String, u32>> {
    let guest = bed.guest();
    guest.sh(&format!("rm -f {LOG}"))?;
    let listener = guest.spawn(&format!(
        "exec frames listen {INTERFACE} {} {LOG}",
        LISTEN.as_secs_f64()
    ))?;
    wait_for_file(bed, LOG)?;
    let count = COUNT.to_string();
    for (name, destination, vlan) in frames {
        let vlan = vlan.map(|id| id.to_string());
        let mut arguments = vec![*name, *destination, "--count", &count];
        if let Some(id) = &vlan {
            arguments.extend(["--vlan", id]);
        }
        send_frames(bed.lab, &arguments)?;
    }
    listener.kill()?;
    let output = listener.wait(LISTEN)?;
    ensure!(
        output.code == 0,
        "the listener in the guest failed: {}",
        output.stderr
    );
    let text = guest.read_file(LOG)?;
    let seen: HashMap<String, u32> =
        serde_json::from_slice(&text).context("the listener in the guest wrote no JSON")?;
    ensure!(
        !seen.contains_key("damaged"),
        "frames arrived damaged: {seen:?}"
    );
    Ok(seen)
}

/// Waits until a listener in the guest has made its file.
pub(super) fn wait_for_file(bed: &Bed, file: &str) -> Result<()> {
    let deadline = Instant::now() + bed.setup.kernel.patience() * Duration::from_secs(10);
    while bed
        .guest()
        .try_sh(&format!("test -e {file}"), Duration::from_secs(5))?
        .code
        != 0
    {
        if Instant::now() > deadline {
            bail!("the listener in the guest does not start");
        }
    }
    Ok(())
}

fn all_of(seen: &HashMap<String, u32>, name: &str) -> Result<()> {
    let got = seen.get(name).copied().unwrap_or(0);
    ensure!(
        got == COUNT,
        "of {COUNT} frames \"{name}\" the guest got {got}; all it got: {seen:?}"
    );
    Ok(())
}

/// Where the filter is ours, none may come.
fn none_of(bed: &Bed, seen: &HashMap<String, u32>, name: &str) -> Result<()> {
    let got = seen.get(name).copied().unwrap_or(0);
    if bed.setup.port != Port::Ours(Attach::Netdev) {
        ensure!(
            got == 0,
            "the guest got {got} frames \"{name}\" that it had not asked for; all it got: {seen:?}"
        );
    }
    Ok(())
}

fn unicast(bed: &mut Bed, _: Form) -> Result<()> {
    let frames = [
        ("mine", GUEST_MAC, None),
        ("stranger", STRANGER, None),
        ("broadcast", "ff:ff:ff:ff:ff:ff", None),
    ];
    let seen = exchange(bed, &frames)?;
    all_of(&seen, "mine")?;
    all_of(&seen, "broadcast")?;
    none_of(bed, &seen, "stranger")?;
    // A second address, as a macvlan asks for it.
    bed.guest().sh(&format!(
        "bridge fdb add {STRANGER} dev {INTERFACE} self permanent"
    ))?;
    let seen = exchange(bed, &frames)?;
    bed.guest().sh(&format!(
        "bridge fdb del {STRANGER} dev {INTERFACE} self permanent"
    ))?;
    all_of(&seen, "mine")?;
    all_of(&seen, "stranger")
}

fn multicast(bed: &mut Bed, _: Form) -> Result<()> {
    let frames = [("group", GROUP, None), ("other", OTHER_GROUP, None)];
    let seen = exchange(bed, &frames)?;
    none_of(bed, &seen, "group")?;
    none_of(bed, &seen, "other")?;

    bed.guest()
        .sh(&format!("ip maddr add {GROUP} dev {INTERFACE}"))?;
    let seen = exchange(bed, &frames)?;
    bed.guest()
        .sh(&format!("ip maddr del {GROUP} dev {INTERFACE}"))?;
    all_of(&seen, "group")?;
    none_of(bed, &seen, "other")?;

    bed.guest()
        .sh(&format!("ip link set {INTERFACE} allmulticast on"))?;
    let seen = exchange(bed, &frames)?;
    bed.guest()
        .sh(&format!("ip link set {INTERFACE} allmulticast off"))?;
    all_of(&seen, "group")?;
    all_of(&seen, "other")
}

fn promiscuous(bed: &mut Bed, _: Form) -> Result<()> {
    let frames = [("stranger", STRANGER, None), ("group", GROUP, None)];
    bed.guest()
        .sh(&format!("ip link set {INTERFACE} promisc on"))?;
    let seen = exchange(bed, &frames)?;
    bed.guest()
        .sh(&format!("ip link set {INTERFACE} promisc off"))?;
    all_of(&seen, "stranger")?;
    all_of(&seen, "group")?;
    let seen = exchange(bed, &frames)?;
    none_of(bed, &seen, "stranger")?;
    none_of(bed, &seen, "group")
}

fn vlan(bed: &mut Bed, _: Form) -> Result<()> {
    let frames = [
        ("ten", GUEST_MAC, Some(10)),
        ("eleven", GUEST_MAC, Some(11)),
        ("high", GUEST_MAC, Some(4094)),
        ("plain", GUEST_MAC, None),
    ];
    bed.guest().sh(&format!(
        "ip link add link {INTERFACE} name v10 type vlan id 10 && ip link add link {INTERFACE} name v4094 type vlan id 4094 && \
         ip link set v10 up && ip link set v4094 up"
    ))?;
    let seen = exchange(bed, &frames)?;
    all_of(&seen, "10:ten")?;
    all_of(&seen, "4094:high")?;
    all_of(&seen, "plain")?;
    none_of(bed, &seen, "11:eleven")?;
    bed.guest().sh("ip link del v10")?;
    let seen = exchange(bed, &frames)?;
    bed.guest().sh("ip link del v4094")?;
    all_of(&seen, "4094:high")?;
    none_of(bed, &seen, "10:ten")
}

fn mac_change(bed: &mut Bed, _: Form) -> Result<()> {
    let guest = bed.guest();
    guest.sh(&format!("ip link set {INTERFACE} address {STRANGER}"))?;
    let result = (|| {
        let seen = exchange(bed, &[("new", STRANGER, None), ("old", GUEST_MAC, None)])?;
        all_of(&seen, "new")?;
        none_of(bed, &seen, "old")?;
        guest
            .sh(&format!("ping -q -c 3 -i 0.05 -w 10 {HOST_IP}"))
            .map(|_| ())
    })();
    guest.sh(&format!("ip link set {INTERFACE} address {GUEST_MAC}"))?;
    guest.sh(&format!("ping -q -c 3 -i 0.05 -w 10 {HOST_IP}"))?;
    result
}
