// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What `ip`, sysfs and netlink do with an interface, with a look at whether it is so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{DEVICE_TAP, EVERY, NETDEV_TAP, QEMU_TAP, Scenario};
use crate::artefacts::kernel::Flavour;
use crate::cable::{INTERFACE, wait_carrier};
use crate::driver::Driver;
use crate::far_end::BytesServer;
use crate::guest::Guest;
use crate::machine::nic::Attach;
use crate::net::{GUEST_IP, HOST_IP};
use crate::test::Form;
use crate::test::bed::Bed;
use crate::test::setup::{Port, Setup};
use crate::traffic::{Client, Direction};

const TWO_QUEUES: &[Setup] = &[
    NETDEV_TAP.queues(2),
    DEVICE_TAP.queues(2),
    QEMU_TAP.queues(2),
];
/// One CPU takes all interrupts; four share fewer queues.
const CPUS: &[Setup] = &[
    NETDEV_TAP.cpus(1),
    DEVICE_TAP.cpus(1),
    NETDEV_TAP.cpus(4).queues(2),
    DEVICE_TAP.cpus(4).queues(2),
    QEMU_TAP.cpus(1),
    QEMU_TAP.cpus(4).queues(2),
];
const LARGE: &[Setup] = &[
    NETDEV_TAP.mtu(9000),
    DEVICE_TAP.mtu(9000),
    QEMU_TAP.mtu(9000),
];

pub const TABLE: &[Scenario] = &[
    Scenario::new("up_and_down", EVERY, up_and_down),
    Scenario::new("mtu_small", EVERY, mtu_small),
    Scenario::new("mtu_large", LARGE, mtu_large),
    Scenario::new("namespaces", EVERY, namespaces),
    Scenario::new("bridge", EVERY, bridge),
    Scenario::new("unbound_is_no_master", EVERY, unbound_is_no_master).only(&[Driver::Ferronic]),
    Scenario::new("netlink_queues", EVERY, netlink_queues),
    Scenario::new("netlink_queues", TWO_QUEUES, netlink_queues),
    Scenario::new("threaded_napi", EVERY, threaded_napi),
    Scenario::new("busy_polling", EVERY, busy_polling),
    Scenario::new("whole_with_any_cpus", CPUS, whole_with_any_cpus),
    Scenario::new("queues_on_their_cpus", TWO_QUEUES, queues_on_their_cpus),
    Scenario::new("behind_an_iommu", &[QEMU_TAP.iommu()], behind_an_iommu),
];

/// Bytes get through whole, both ways.
pub fn whole(bed: &Bed, form: Form) -> Result<()> {
    let server = BytesServer::start(bed.lab, HOST_IP)?;
    let bytes = form.pick(4, 64) << 20;
    for (verb, amount) in [
        ("send", bytes),
        ("fetch", bytes),
        ("echo", form.pick(100, 2000)),
    ] {
        bed.guest()
            .sh_within(&server.client(verb, amount), Duration::from_secs(300))?;
    }
    Ok(())
}

/// Down and up in quick succession, at rest and with traffic.
fn up_and_down(bed: &mut Bed, form: Form) -> Result<()> {
    let rounds = bed.rounds(form, 10, 100);
    bed.guest().sh(&format!(
        "for i in $(seq {rounds}); do ip link set {INTERFACE} down && ip link set {INTERFACE} up || exit 1; done"
    ))?;
    bed.lay_cable()?;
    let client = Client::new(&bed.cable.server, Direction::GuestToHost, 3600).with("--bidir");
    let flow = client.start(bed.guest())?;
    let result = bed.guest().sh_within(
        &format!(
            "for i in $(seq {rounds}); do sleep 0.2; ip link set {INTERFACE} down && ip link set {INTERFACE} up || exit 1; done"
        ),
        Duration::from_secs(120),
    );
    flow.kill()?;
    result?;
    bed.lay_cable()?;
    whole(bed, form)
}

/// The largest packet that fits goes through, a larger one does not, and what comes may be larger.
fn mtus(bed: &mut Bed, sizes: &[u32]) -> Result<()> {
    let old = bed
        .guest()
        .sh(&format!("cat /sys/class/net/{INTERFACE}/mtu"))?;
    for mtu in sizes {
        // What the kernel has learnt of the path at a smaller MTU is forgotten.
        bed.guest().sh(&format!(
            "ip link set {INTERFACE} mtu {mtu} && ip route flush cache"
        ))?;
        // Less the headers of IP and ICMP.
        let payload = mtu - 28;
        let ping = |size| format!("ping -q -M do -c 3 -i 0.02 -w 10 -s {size} {HOST_IP}");
        bed.guest()
            .sh(&ping(payload))
            .with_context(|| format!("MTU {mtu}"))?;
        let larger = bed
            .guest()
            .try_sh(&ping(payload + 1), Duration::from_secs(20))?;
        ensure!(
            larger.code != 0,
            "with MTU {mtu} one octet more went through"
        );
        let server = BytesServer::start(bed.lab, HOST_IP)?;
        // Not tens of thousands of segments where they are tiny.
        let bytes = u64::from(500 * mtu).min(300_000);
        for (verb, amount) in [("send", bytes), ("fetch", bytes), ("echo", 30)] {
            bed.guest()
                .sh(&server.client(verb, amount))
                .with_context(|| format!("MTU {mtu}"))?;
        }
    }
    bed.guest()
        .sh(&format!("ip link set {INTERFACE} mtu {}", old.trim()))?;
    bed.lay_cable()
}

fn mtu_small(bed: &mut Bed, _: Form) -> Result<()> {
    mtus(bed, &[68, 128, 576, 1280, 1500])?;
    let refused = bed.guest().try_sh(
        &format!("ip link set {INTERFACE} mtu 67"),
        Duration::from_secs(10),
    )?;
    ensure!(refused.code != 0, "an MTU of 67 was taken: IP needs 68");
    Ok(())
}

fn mtu_large(bed: &mut Bed, _: Form) -> Result<()> {
    mtus(bed, &[1600, 4096, 9000, 1500, 68, 9000])?;
    let refused = bed.guest().try_sh(
        &format!("ip link set {INTERFACE} mtu 9001"),
        Duration::from_secs(10),
    )?;
    ensure!(
        refused.code != 0,
        "the device's MTU is 9000, and 9001 was taken"
    );
    Ok(())
}

/// To another network namespace and back; the second time home because the namespace ends.
fn namespaces(bed: &mut Bed, _: Form) -> Result<()> {
    bed.guest().sh(&format!(
        "set -e; ip netns add away; ip link set {INTERFACE} netns away; \
         ip -n away addr add {GUEST_IP}/24 dev {INTERFACE}; ip -n away link set {INTERFACE} up; \
         ip netns exec away ping -q -c 3 -i 0.05 -w 10 {HOST_IP}; \
         ip -n away link set {INTERFACE} netns 1; ip netns del away"
    ))?;
    bed.lay_cable()?;
    whole(bed, Form::Short)
}

/// As a port of a bridge the interface is promiscuous, and the address is the bridge's.
fn bridge(bed: &mut Bed, form: Form) -> Result<()> {
    bed.guest().sh(&format!(
        "set -e; ip addr flush dev {INTERFACE}; ip link add br0 type bridge; ip link set br0 address 02:00:00:00:00:77; \
         ip link set {INTERFACE} master br0; ip link set br0 up; ip addr add {GUEST_IP}/24 dev br0"
    ))?;
    let result = bed
        .guest()
        .sh(&format!("ping -q -c 3 -i 0.05 -w 10 {HOST_IP}"))
        .and_then(|_| whole(bed, form));
    bed.guest().sh("ip link del br0")?;
    result?;
    bed.lay_cable()?;
    whole(bed, Form::Short)
}

/// A device without a driver cannot write to memory.
fn unbound_is_no_master(bed: &mut Bed, _: Form) -> Result<()> {
    // Bit 2 of the command register.
    let command = bed.guest().sh(&format!(
        "set -e; device=$(ethtool -i {INTERFACE} | sed -n 's/^bus-info: //p'); \
         read() {{ od -An -tu2 -j4 -N2 /sys/bus/pci/devices/$device/config; }}; \
         read; echo $device > /sys/bus/pci/drivers/ferronic/unbind; read; \
         echo $device > /sys/bus/pci/drivers/ferronic/bind"
    ))?;
    let bits: Vec<bool> = command
        .split_whitespace()
        .filter_map(|word| Some(word.parse::<u16>().ok()? & 4 != 0))
        .collect();
    ensure!(
        bits == [true, false],
        "command register before and after: {command}"
    );
    bed.lay_cable()?;
    whole(bed, Form::Short)
}

/// What the guest's kernel knows of the interface's queues.
pub fn queues(guest: &Guest) -> Result<Value> {
    let text = guest.sh(&format!("netdev-genl {INTERFACE}"))?;
    serde_json::from_str(&text).with_context(|| format!("netdev-genl printed: {text}"))
}

fn list<'a>(all: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    all.get(name)
        .and_then(Value::as_array)
        .with_context(|| format!("no {name}: {all}"))
}

fn sum(all: &Value, field: &str) -> Result<u64> {
    let stats = list(all, "qstats")?;
    Ok(stats.iter().filter_map(|q| q.get(field)?.as_u64()).sum())
}

/// Every queue has its NAPI, and counts what it carries.
fn netlink_queues(bed: &mut Bed, _: Form) -> Result<()> {
    let pings = 50;
    let before = queues(bed.guest())?;
    bed.guest()
        .sh(&format!("ping -q -c {pings} -i 0.01 -w 20 {HOST_IP}"))?;
    let after = queues(bed.guest())?;
    for field in ["rx-packets", "tx-packets"] {
        let (old, new) = (sum(&before, field)?, sum(&after, field)?);
        ensure!(
            new >= old + pings,
            "{pings} pings, but {field} went from {old} to {new}"
        );
    }
    let all = list(&after, "queues")?;
    let of = |kind: &'static str| {
        all.iter()
            .filter(move |q| q.get("type").is_some_and(|t| t == kind))
    };
    let wanted = bed.setup.queues;
    let counts = (of("rx").count(), of("tx").count());
    ensure!(
        counts == (wanted, wanted),
        "queues in and out: {counts:?}, not {wanted}"
    );
    let napis = list(&after, "napis")?;
    for queue in of("rx") {
        let napi = queue.get("napi").filter(|id| id.is_u64());
        ensure!(
            napi.is_some() && napis.iter().any(|n| n.get("id") == napi),
            "a receive queue without NAPI: {queue} in {after}"
        );
    }
    Ok(())
}

/// NAPI in threads of its own, and back.
fn threaded_napi(bed: &mut Bed, form: Form) -> Result<()> {
    let file = format!("/sys/class/net/{INTERFACE}/threaded");
    bed.guest().sh(&format!("echo 1 > {file}"))?;
    let threads = bed.guest().sh(&format!(
        "ps -eo comm | grep -c '^napi/{INTERFACE}-' || true"
    ))?;
    let result = whole(bed, form).and_then(|()| {
        Client::new(&bed.cable.server, Direction::HostToGuest, 1)
            .run(bed.guest())
            .map(|_| ())
    });
    bed.guest().sh(&format!("echo 0 > {file}"))?;
    result?;
    ensure!(
        threads.trim() != "0",
        "there is no thread napi/{INTERFACE}-*"
    );
    whole(bed, Form::Short)
}

/// A reader that looks for packets itself instead of waiting to be woken up.
fn busy_polling(bed: &mut Bed, form: Form) -> Result<()> {
    let set = |us: u32| {
        bed.guest().sh(&format!(
            "sysctl -q -w net.core.busy_read={us} net.core.busy_poll={us}"
        ))
    };
    set(50)?;
    let result = whole(bed, form).and_then(|()| {
        let ping = format!("ping -q -c {} -i 0.01 -w 20 {HOST_IP}", form.pick(50, 1000));
        bed.guest().sh(&ping).map(|_| ())
    });
    set(0)?;
    result
}

fn whole_with_any_cpus(bed: &mut Bed, form: Form) -> Result<()> {
    whole(bed, form)?;
    for direction in [Direction::GuestToHost, Direction::HostToGuest] {
        let client = Client::new(&bed.cable.server, direction, form.pick(1, 20));
        client.with("--parallel 4").run(bed.guest())?;
    }
    Ok(())
}

/// Transmit queues are spread over the CPUs (XPS), and so are interrupts, if each queue has its own.
fn queues_on_their_cpus(bed: &mut Bed, _: Form) -> Result<()> {
    bed.guest()
        .sh(&format!("ethtool -L {INTERFACE} combined 2"))?;
    let maps = bed.guest().sh(&format!(
        "cat /sys/class/net/{INTERFACE}/queues/tx-*/xps_cpus"
    ))?;
    let masks: Vec<u64> = maps
        .lines()
        .filter_map(|line| u64::from_str_radix(&line.replace(',', ""), 16).ok())
        .collect();
    let all = masks.iter().fold(0, |a, b| a | b);
    ensure!(
        masks.len() == 2 && all.count_ones() == 2 && masks.iter().all(|m| m.count_ones() == 1),
        "two queues, two CPUs, but the map is {masks:x?}"
    );
    if bed.setup.driver == Driver::Ferronic {
        let cpus = bed.guest().sh(
            "for irq in $(sed -n 's/^ *\\([0-9]*\\):.*ferronic-.*-pair[0-9]*$/\\1/p' /proc/interrupts); do \
                 cat /proc/irq/$irq/smp_affinity_list; done",
        )?;
        let mut cpus: Vec<&str> = cpus.lines().collect();
        let vectors = cpus.len();
        cpus.sort_unstable();
        cpus.dedup();
        // The device attachment has one vector for everything.
        ensure!(
            vectors
                == if bed.setup.port == Port::Ours(Attach::Device) {
                    0
                } else {
                    2
                }
                && cpus.len() == vectors,
            "{vectors} vectors of queues go to the CPUs {cpus:?}"
        );
    }
    Ok(())
}

/// Every address that the device is given is translated, so a wrong one is a fault in the log.
fn behind_an_iommu(bed: &mut Bed, form: Form) -> Result<()> {
    // The usual kernel knows no IOMMU; there the feature bit alone is tested.
    if bed.setup.kernel == Flavour::Debug {
        bed.guest().sh("test -e /sys/class/iommu/dmar0")?;
    }
    whole(bed, form)?;
    let client = Client::new(&bed.cable.server, Direction::GuestToHost, form.pick(1, 20));
    client.with("--bidir").run(bed.guest())?;
    wait_carrier(bed.guest(), true)
}
