// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What ethtool tells and sets, with a look at whether it is so.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::interface::whole;
use super::{DEVICE_TAP, EVERY, NETDEV_TAP, QEMU_TAP, Scenario};
use crate::cable::INTERFACE;
use crate::driver::Driver;
use crate::net::{HOST_IP, TAP};
use crate::test::Form;
use crate::test::bed::Bed;
use crate::test::setup::Setup;
use crate::traffic::{Client, Direction};

/// Devices whose rings the C driver can resize: it wants VIRTIO_F_RING_RESET. Ours does not.
const RING_RESET: &[Setup] = &[QEMU_TAP];
/// Devices that tell the driver what they have counted.
const COUNTING: &[Setup] = &[DEVICE_TAP];
/// Devices that do not let interrupts wait on demand: QEMU's own do not, nor ours where the control
/// queue is QEMU's.
const UNMODERATED: &[Setup] = &[NETDEV_TAP, QEMU_TAP];
/// Devices that get to know when the driver changes its mind on offloads: QEMU keeps that from a
/// vhost-user backend in the netdev attachment.
const TOLD: &[Setup] = &[DEVICE_TAP, QEMU_TAP];
const TWO_QUEUES: &[Setup] = &[
    NETDEV_TAP.queues(2),
    DEVICE_TAP.queues(2),
    QEMU_TAP.queues(2),
];

pub const TABLE: &[Scenario] = &[
    Scenario::new("ethtool_driver", EVERY, driver),
    Scenario::new("ethtool_link", EVERY, link),
    Scenario::new("ethtool_statistics", EVERY, statistics),
    Scenario::new("ethtool_device_statistics", COUNTING, device_statistics),
    Scenario::new("ethtool_segmentation", EVERY, segmentation),
    Scenario::new("ethtool_receive_coalescing", TOLD, receive_coalescing),
    Scenario::new("ethtool_checksums", EVERY, checksums),
    Scenario::new("ethtool_coalesce", UNMODERATED, coalesce),
    Scenario::new("ethtool_rings", RING_RESET, rings).only(&[Driver::C]),
    Scenario::new("ethtool_rings", EVERY, rings).only(&[Driver::Ferronic]),
    Scenario::new("ethtool_channels", TWO_QUEUES, channels),
    Scenario::new("ethtool_timestamping", EVERY, timestamping),
    Scenario::new("ethtool_registers", EVERY, registers).only(&[Driver::Ferronic]),
    Scenario::new("ethtool_message_level", EVERY, message_level).only(&[Driver::Ferronic]),
    Scenario::new("ethtool_self_test", EVERY, self_test).only(&[Driver::Ferronic]),
];

/// One object of `ethtool --json`.
pub(super) fn query(bed: &Bed, flag: &str) -> Result<Value> {
    let text = bed
        .guest()
        .sh(&format!("ethtool --json {flag} {INTERFACE}"))?;
    let mut all: Vec<Value> = serde_json::from_str(&text)
        .with_context(|| format!("`ethtool --json {flag}` printed: {text}"))?;
    all.pop().context("ethtool printed an empty list")
}

/// The number after `NAME:` in what ethtool prints without JSON.
pub(super) fn number(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
        .and_then(|value| value.trim().parse().ok())
}

/// Whether a feature is on, and whether it could be otherwise.
fn feature(bed: &Bed, name: &str) -> Result<(bool, bool)> {
    let all = query(bed, "-k")?;
    let flag = |key| {
        all.pointer(&format!("/{name}/{key}"))
            .and_then(Value::as_bool)
    };
    let active = flag("active").with_context(|| format!("ethtool knows no feature {name}"))?;
    Ok((active, !flag("fixed").unwrap_or(false)))
}

pub(super) fn set(bed: &Bed, arguments: &str) -> Result<()> {
    bed.guest().sh(&format!("ethtool {arguments}")).map(|_| ())
}

fn driver(bed: &mut Bed, _: Form) -> Result<()> {
    let info = bed.guest().sh(&format!("ethtool -i {INTERFACE}"))?;
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    let name = match bed.setup.driver {
        Driver::C => "virtio_net",
        Driver::Ferronic => "ferronic",
    };
    ensure!(field("driver:") == name, "{info}");
    // The device that lspci would show, whatever buses are between.
    let path = bed
        .guest()
        .sh(&format!("readlink -f /sys/class/net/{INTERFACE}/device"))?;
    let address = field("bus-info:");
    ensure!(
        !address.is_empty() && path.contains(&address),
        "bus-info is {address:?}, the device is {}",
        path.trim()
    );
    Ok(())
}

/// ethtool and ip agree on the link soon after each change.
fn link(bed: &mut Bed, form: Form) -> Result<()> {
    for _ in 0..form.pick(2, 20) {
        for up in [false, true] {
            bed.set_link(up)?;
            crate::cable::wait_carrier(bed.guest(), up)?;
            let told = bed.guest().sh(&format!(
                "ethtool {INTERFACE} | grep 'Link detected'; ip -br link show {INTERFACE}"
            ))?;
            let (ethtool, ip) = (
                told.contains("Link detected: yes"),
                !told.contains("NO-CARRIER"),
            );
            ensure!(ethtool == up && ip == up, "the link is {up}, but:\n{told}");
        }
    }
    Ok(())
}

/// Statistics of the driver move with the traffic, and agree with the interface's own.
fn statistics(bed: &mut Bed, _: Form) -> Result<()> {
    let pings = 50;
    let read = || -> Result<(u64, u64, usize)> {
        let text = bed.guest().sh(&format!(
            "cd /sys/class/net/{INTERFACE}/statistics && cat rx_packets tx_packets && ethtool -S {INTERFACE}"
        ))?;
        let mut lines = text.lines();
        let mut next = || lines.next()?.trim().parse::<u64>().ok();
        let (rx, tx) = (next(), next());
        let counters = text.lines().filter(|line| line.contains(": ")).count();
        Ok((
            rx.context("no rx_packets")?,
            tx.context("no tx_packets")?,
            counters,
        ))
    };
    let before = read()?;
    bed.guest()
        .sh(&format!("ping -q -c {pings} -i 0.01 -w 20 {HOST_IP}"))?;
    let after = read()?;
    ensure!(
        after.0 >= before.0 + pings && after.1 >= before.1 + pings,
        "{pings} pings, but packets in and out went from {before:?} to {after:?}"
    );
    ensure!(after.2 > 0, "ethtool -S has no counters");
    ensure!(
        after.2 == before.2,
        "ethtool -S has now {} counters, now {}",
        before.2,
        after.2
    );
    Ok(())
}

/// What the device tells of itself is what the driver has seen and what `ferronic stats` prints.
fn device_statistics(bed: &mut Bed, _: Form) -> Result<()> {
    let pings = 50;
    let prefix = match bed.setup.driver {
        Driver::C => "hw",
        Driver::Ferronic => "dev",
    };
    let read = || -> Result<(String, Value)> {
        let text = bed.guest().sh(&format!("ethtool -S {INTERFACE}"))?;
        Ok((text, bed.backend()?.query(&["stats"])?))
    };
    let before = read()?;
    bed.guest()
        .sh(&format!("ping -q -c {pings} -i 0.01 -w 20 {HOST_IP}"))?;
    let after = read()?;
    // The C driver keeps those that it counts itself for others than ethtool.
    let shared = [("notifications", "kicks"), ("interrupts", "interrupts")];
    let ours = [("packets", "packets"), ("bytes", "bytes")];
    let all = match bed.setup.driver {
        Driver::C => shared.to_vec(),
        Driver::Ferronic => [shared, ours].concat(),
    };
    for side in ["rx", "tx"] {
        for (name, counter) in &all {
            let name = format!("{side}0_{prefix}_{name}");
            let told = |text: &str| {
                number(text, &name).with_context(|| format!("ethtool -S tells no {name}:\n{text}"))
            };
            let counted = |stats: &Value| {
                stats
                    .pointer(&format!("/queues/0/{side}/{counter}"))
                    .and_then(Value::as_u64)
                    .with_context(|| format!("`ferronic stats` tells no {counter}: {stats}"))
            };
            // Read in the guest first, and a packet may come between.
            let (told, least, most) = (told(&after.0)?, counted(&before.1)?, counted(&after.1)?);
            ensure!(
                (least..=most).contains(&told),
                "{name} is {told}, and the NIC's {counter} went from {least} to {most}"
            );
        }
    }
    if bed.setup.driver == Driver::Ferronic {
        for side in ["rx", "tx"] {
            let grown = |name: &str| {
                let count = |text| number(text, name).with_context(|| format!("no {name}"));
                anyhow::Ok(count(&after.0)? - count(&before.0)?)
            };
            let driver = grown(&format!("{side}0_packets"))?;
            let device = grown(&format!("{side}0_dev_packets"))?;
            ensure!(
                driver >= pings && device >= pings && driver.abs_diff(device) <= 5,
                "{side}: for {pings} pings the driver has counted {driver} packets, the device {device}"
            );
        }
    }
    Ok(())
}

/// Octets a frame, as the host's end of the cable counts them during a transfer.
fn octets_a_frame(bed: &Bed, direction: Direction, form: Form) -> Result<f64> {
    let way = match direction {
        Direction::GuestToHost => "rx",
        Direction::HostToGuest => "tx",
    };
    let count = || -> Result<(f64, f64)> {
        let text = bed.lab.tool("ip", &["-s", "-j", "link", "show", TAP])?;
        let all: Value = serde_json::from_str(&text)?;
        let number = |field: &str| {
            let at = format!("/0/stats64/{way}/{field}");
            all.pointer(&at).and_then(Value::as_f64)
        };
        number("bytes")
            .zip(number("packets"))
            .context("ip tells no statistics")
    };
    let before = count()?;
    Client::new(&bed.cable.server, direction, form.pick(1, 5)).run(bed.guest())?;
    let after = count()?;
    Ok((after.0 - before.0) / (after.1 - before.1))
}

/// A feature that is on makes frames larger than the MTU, one that is off does not.
fn makes_large(bed: &Bed, names: &[&str], direction: Direction, form: Form) -> Result<()> {
    for on in [false, true] {
        let value = if on { "on" } else { "off" };
        let words: Vec<_> = names.iter().map(|name| format!("{name} {value}")).collect();
        set(bed, &format!("-K {INTERFACE} {}", words.join(" ")))?;
        for name in names {
            let active = feature(bed, name)?.0;
            ensure!(active == on, "{name} was set {value}, but is {active}");
        }
        let octets = octets_a_frame(bed, direction, form)?;
        let large = octets > 2000.0;
        ensure!(
            large == on,
            "with {names:?} {value} the frames have {octets:.0} octets"
        );
    }
    Ok(())
}

fn segmentation(bed: &mut Bed, form: Form) -> Result<()> {
    makes_large(bed, &["tx-tcp-segmentation"], Direction::GuestToHost, form)
}

/// The device may hand over what it has put together, if the driver likes it.
fn receive_coalescing(bed: &mut Bed, form: Form) -> Result<()> {
    // The name of it has changed with the years, and so with the driver.
    for name in ["rx-gro-hw", "rx-lro"] {
        let (active, changeable) = feature(bed, name)?;
        if active && changeable {
            return makes_large(bed, &[name], Direction::HostToGuest, form);
        }
    }
    bail!("neither rx-gro-hw nor rx-lro is on and can be set")
}

/// Whoever computes the checksums, they are right.
fn checksums(bed: &mut Bed, form: Form) -> Result<()> {
    let mut names = Vec::new();
    for name in ["tx-checksum-ip-generic", "rx-checksumming"] {
        let (active, changeable) = feature(bed, name)?;
        ensure!(active, "{name} is off");
        if changeable {
            names.push(name);
        }
    }
    ensure!(
        names.contains(&"tx-checksum-ip-generic"),
        "transmit checksums cannot be set"
    );
    for name in names {
        for value in ["off", "on"] {
            set(bed, &format!("-K {INTERFACE} {name} {value}"))?;
            let active = feature(bed, name)?.0;
            ensure!(
                active == (value == "on"),
                "{name} was set {value}, but is {active}"
            );
            whole(bed, form)?;
        }
    }
    // Segmentation needs checksums, and comes back with them.
    ensure!(
        feature(bed, "tx-tcp-segmentation")?.0,
        "segmentation has not come back with the checksums"
    );
    Ok(())
}

/// Without VIRTIO_NET_F_NOTF_COAL what is can be said again, and nothing is promised that the device
/// cannot do.
fn coalesce(bed: &mut Bed, _: Form) -> Result<()> {
    let before = query(bed, "-c")?;
    for name in ["rx-frames", "tx-frames"] {
        let frames = before
            .get(name)
            .and_then(Value::as_u64)
            .with_context(|| format!("ethtool -c tells no {name}: {before}"))?;
        set(bed, &format!("-C {INTERFACE} {name} {frames}"))?;
    }
    for impossible in ["rx-usecs 100", "tx-usecs 100"] {
        ensure!(
            set(bed, &format!("-C {INTERFACE} {impossible}")).is_err(),
            "{impossible} was taken"
        );
    }
    // The C driver takes this, and does nothing of the kind.
    let _ = set(bed, &format!("-C {INTERFACE} adaptive-rx on"));
    let after = query(bed, "-c")?;
    ensure!(after == before, "{before} has become {after}");
    whole(bed, Form::Short)
}

/// New sizes are in force, with traffic through the new rings.
fn rings(bed: &mut Bed, form: Form) -> Result<()> {
    let before = query(bed, "-g")?;
    let field = |all: &Value, name: &str| {
        all.get(name)
            .and_then(Value::as_u64)
            .with_context(|| format!("ethtool -g tells no {name}: {all}"))
    };
    let (rx_max, tx_max) = (field(&before, "rx-max")?, field(&before, "tx-max")?);
    let sizes = [(64, 128), (128, 64), (rx_max, tx_max)];
    for (rx, tx) in sizes
        .into_iter()
        .chain([(field(&before, "rx")?, field(&before, "tx")?)])
    {
        set(bed, &format!("-G {INTERFACE} rx {rx} tx {tx}"))?;
        let now = query(bed, "-g")?;
        ensure!(
            (field(&now, "rx")?, field(&now, "tx")?) == (rx, tx),
            "rings of {rx} and {tx} were asked for: {now}"
        );
        whole(bed, form)?;
    }
    let refused = set(bed, &format!("-G {INTERFACE} rx {}", rx_max * 2));
    ensure!(
        refused.is_err(),
        "a ring of twice the device's size was taken"
    );
    whole(bed, form)
}

fn channels(bed: &mut Bed, form: Form) -> Result<()> {
    let most = query_channels(bed)?.1;
    ensure!(most == 2, "the device has 2 pairs, the driver says {most}");
    for count in [1, 2, 1, 2] {
        set(bed, &format!("-L {INTERFACE} combined {count}"))?;
        let now = query_channels(bed)?.0;
        ensure!(
            now == count,
            "{count} channels were asked for, {now} are there"
        );
        whole(bed, form)?;
        let client = Client::new(&bed.cable.server, Direction::GuestToHost, 1);
        client.with("--parallel 4").run(bed.guest())?;
    }
    ensure!(
        set(bed, &format!("-L {INTERFACE} combined 3")).is_err(),
        "three channels of two were taken"
    );
    Ok(())
}

/// Channels in use, and how many there can be.
fn query_channels(bed: &Bed) -> Result<(u64, u64)> {
    let text = bed.guest().sh(&format!("ethtool -l {INTERFACE}"))?;
    let (head, tail) = text
        .split_once("Current hardware settings")
        .context("ethtool -l prints something new")?;
    number(tail, "Combined")
        .zip(number(head, "Combined"))
        .with_context(|| format!("ethtool -l tells no channels:\n{text}"))
}

/// Packets can be stamped in software at least.
fn timestamping(bed: &mut Bed, _: Form) -> Result<()> {
    let text = bed.guest().sh(&format!("ethtool -T {INTERFACE}"))?;
    for capability in ["software-transmit", "software-receive"] {
        ensure!(text.contains(capability), "no {capability}:\n{text}");
    }
    Ok(())
}

fn registers(bed: &mut Bed, _: Form) -> Result<()> {
    let text = bed.guest().sh(&format!("ethtool -d {INTERFACE} hex on"))?;
    let octets = text
        .lines()
        .filter_map(|line| line.split_once(":\t").or(line.split_once(": ")))
        .flat_map(|(_, rest)| rest.split_whitespace())
        .filter(|word| u8::from_str_radix(word, 16).is_ok())
        .count();
    ensure!(octets >= 16, "a register dump of {octets} octets:\n{text}");
    // Reading registers must not disturb the device.
    whole(bed, Form::Short)
}

fn message_level(bed: &mut Bed, _: Form) -> Result<()> {
    set(bed, &format!("-s {INTERFACE} msglvl 0x3"))?;
    let text = bed.guest().sh(&format!("ethtool {INTERFACE}"))?;
    ensure!(
        text.contains("0x00000003"),
        "the message level was set to 3:\n{text}"
    );
    Ok(())
}

/// Online under traffic; offline, after which everything works again.
fn self_test(bed: &mut Bed, _: Form) -> Result<()> {
    let client = Client::new(&bed.cable.server, Direction::GuestToHost, 60);
    let flow = client.start(bed.guest())?;
    let online = bed.guest().sh(&format!("ethtool -t {INTERFACE} online"));
    flow.kill()?;
    let online = online?;
    ensure!(online.contains("PASS"), "{online}");
    let start = Instant::now();
    let offline = bed.guest().sh(&format!("ethtool -t {INTERFACE} offline"))?;
    ensure!(offline.contains("PASS"), "{offline}");
    log::info!("the offline test took {:?}", start.elapsed());
    bed.lay_cable()?;
    whole(bed, Form::Short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_ethtool() {
        let text = "Channel parameters for eth0:\nPre-set maximums:\nRX:\t\tn/a\nCombined:\t2\n";
        assert_eq!(number(text, "Combined"), Some(2));
        assert_eq!(number(text, "RX"), None);
        assert_eq!(number(text, "TX"), None);
    }
}
