// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupts that wait as the driver asks (VIRTIO_NET_F_NOTF_COAL, VIRTIO_NET_F_VQ_NOTF_COAL):
//! what `ethtool -C` sets can be read back, and is what the device does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use qapi::qmp;
use serde_json::Value;

use super::ethtool::{number, query, set};
use super::interface::whole;
use super::{DEVICE_TAP, Scenario};
use crate::cable::INTERFACE;
use crate::net::HOST_IP;
use crate::test::Form;
use crate::test::bed::Bed;
use crate::test::setup::Setup;
use crate::traffic::{Client, Direction};

/// Devices that have the features: elsewhere QEMU keeps the control queue, and has them not.
const MODERATED: &[Setup] = &[DEVICE_TAP];
const TWO_QUEUES: &[Setup] = &[DEVICE_TAP.queues(2)];

pub const TABLE: &[Scenario] = &[
    Scenario::new("coalescing_time", MODERATED, time),
    Scenario::new("coalescing_packets", MODERATED, packets),
    Scenario::new("coalescing_adaptive", MODERATED, adaptive),
    Scenario::new("coalescing_queues", TWO_QUEUES, queues),
];

/// Both ways: in the device attachment all queues share an interrupt, and one for what was sent takes
/// along what was received.
const LONG: &str = "rx-usecs 60000 rx-frames 64 tx-usecs 60000 tx-frames 64";
/// Milliseconds that an echo takes then; a few otherwise.
const LONG_WAIT: f64 = 60.0;

/// Milliseconds that an echo takes, on average.
fn round_trip(bed: &Bed) -> Result<f64> {
    let text = bed
        .guest()
        .sh(&format!("ping -q -c 10 -i 0.15 -w 20 {HOST_IP}"))?;
    text.lines()
        .find_map(|line| line.split_once("min/avg/max"))
        .and_then(|(_, numbers)| numbers.split_once('=')?.1.split('/').nth(1))
        .and_then(|average| average.trim().parse().ok())
        .with_context(|| format!("ping tells no times: {text}"))
}

/// Echoes take as long as their interrupts wait, and are fast otherwise.
fn echoes_wait(bed: &Bed, wait: bool) -> Result<()> {
    let took = round_trip(bed)?;
    log::info!("an echo takes {took} ms");
    ensure!(
        (took >= LONG_WAIT / 2.0) == wait,
        "an echo takes {took} ms, where its interrupt {}",
        if wait { "waits" } else { "does not wait" }
    );
    Ok(())
}

fn field(all: &Value, name: &str) -> Result<u64> {
    all.get(name)
        .and_then(Value::as_u64)
        .with_context(|| format!("ethtool -c tells no {name}: {all}"))
}

/// What is set now, as it can be set again. It is nothing for receiving, and for sending what the
/// driver likes: the C driver changes its ways with `tx-frames 0`, and cannot under way.
fn as_is(bed: &Bed) -> Result<String> {
    let now = query(bed, "-c")?;
    let mut words = Vec::new();
    for name in ["rx-usecs", "rx-frames", "tx-usecs", "tx-frames"] {
        words.push(format!("{name} {}", field(&now, name)?));
    }
    Ok(words.join(" "))
}

/// The wait is what was asked for, also after a pause of the machine.
fn time(bed: &mut Bed, _: Form) -> Result<()> {
    let off = as_is(bed)?;
    echoes_wait(bed, false)?;
    set(bed, &format!("-C {INTERFACE} {LONG}"))?;
    let now = query(bed, "-c")?;
    let told = (field(&now, "rx-usecs")?, field(&now, "rx-frames")?);
    ensure!(told == (60_000, 64), "{LONG} has become {now}");
    echoes_wait(bed, true)?;
    bed.machine.qmp(|q| q.execute(&qmp::stop {}))?;
    bed.machine.qmp(|q| q.execute(&qmp::cont {}))?;
    echoes_wait(bed, true)?;
    set(bed, &format!("-C {INTERFACE} {off}"))?;
    echoes_wait(bed, false)?;
    // The same for one queue.
    let queue = format!("-Q {INTERFACE} queue_mask 0x1 --coalesce");
    set(bed, &format!("{queue} {LONG}"))?;
    echoes_wait(bed, true)?;
    set(bed, &format!("{queue} {off}"))?;
    echoes_wait(bed, false)?;
    whole(bed, Form::Short)
}

/// Interrupts a received packet, of echoes that come one by one, as the NIC counts both.
fn interrupts_a_packet(bed: &Bed, form: Form) -> Result<f64> {
    let count = || -> Result<(f64, f64)> {
        let stats = bed.backend()?.query(&["stats"])?;
        let number = |name: &str| {
            let at = format!("/queues/0/rx/{name}");
            stats.pointer(&at).and_then(Value::as_f64)
        };
        number("interrupts")
            .zip(number("packets"))
            .with_context(|| format!("`ferronic stats` says: {stats}"))
    };
    let echoes = form.pick(500, 2000);
    let before = count()?;
    bed.guest()
        .sh(&format!("ping -q -c {echoes} -i 0.004 -w 60 {HOST_IP}"))?;
    let after = count()?;
    let (interrupts, packets) = (after.0 - before.0, after.1 - before.1);
    ensure!(
        packets >= f64::from(echoes),
        "of {echoes} echoes only {packets} were received"
    );
    log::info!("{interrupts} interrupts for {packets} packets");
    Ok(interrupts / packets)
}

/// Packets that come one by one share interrupts.
fn packets(bed: &mut Bed, form: Form) -> Result<()> {
    let off = as_is(bed)?;
    let at_once = interrupts_a_packet(bed, form)?;
    let wish = "rx-usecs 200000 rx-frames 16 tx-usecs 200000 tx-frames 16";
    set(bed, &format!("-C {INTERFACE} {wish}"))?;
    let held = interrupts_a_packet(bed, form)?;
    set(bed, &format!("-C {INTERFACE} {off}"))?;
    ensure!(
        held < at_once / 3.0 && held < 0.2,
        "{at_once:.3} interrupts a packet at once, {held:.3} for 16 packets together"
    );
    let again = interrupts_a_packet(bed, form)?;
    ensure!(
        again > 2.0 * held,
        "{held:.3} interrupts a packet have become only {again:.3}"
    );
    whole(bed, form)
}

/// What is set for a queue's receiving: microseconds, packets.
fn of_queue(bed: &Bed, queue: u32) -> Result<(u64, u64)> {
    let text = bed.guest().sh(&format!(
        "ethtool -Q {INTERFACE} queue_mask {:#x} --show-coalesce",
        1 << queue
    ))?;
    number(&text, "rx-usecs")
        .zip(number(&text, "rx-frames"))
        .with_context(|| format!("ethtool -Q tells nothing of queue {queue}:\n{text}"))
}

/// The kernel chooses by what arrives, and the device does it.
fn adaptive(bed: &mut Bed, form: Form) -> Result<()> {
    let off = as_is(bed)?;
    let before = of_queue(bed, 0)?;
    set(bed, &format!("-C {INTERFACE} adaptive-rx on"))?;
    let on = query(bed, "-c")?;
    ensure!(
        on.get("adaptive-rx").and_then(Value::as_bool) == Some(true),
        "adaptive-rx was set: {on}"
    );
    let client = Client::new(&bed.cable.server, Direction::HostToGuest, 60);
    let flow = client.start(bed.guest())?;
    let changed = wait_change(bed, before);
    flow.kill()?;
    log::info!("{before:?} has become {:?}", changed?);
    whole(bed, form)?;
    set(bed, &format!("-C {INTERFACE} adaptive-rx off {off}"))?;
    ensure!(
        of_queue(bed, 0)? == before,
        "what was chosen is still there"
    );
    echoes_wait(bed, false)
}

/// Waits until something else is set for the first queue.
fn wait_change(bed: &Bed, before: (u64, u64)) -> Result<(u64, u64)> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        let now = of_queue(bed, 0)?;
        if now != before {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bail!("under load it is still {before:?}")
}

/// Each queue has its own, and all have what is set for all.
fn queues(bed: &mut Bed, form: Form) -> Result<()> {
    set(bed, &format!("-L {INTERFACE} combined 2"))?;
    let queue = |number: u32, wish: &str| {
        let mask = 1 << number;
        set(
            bed,
            &format!("-Q {INTERFACE} queue_mask {mask:#x} --coalesce {wish}"),
        )
    };
    queue(0, "rx-usecs 300 rx-frames 8")?;
    queue(1, "rx-usecs 500 rx-frames 9")?;
    let now = (of_queue(bed, 0)?, of_queue(bed, 1)?);
    ensure!(now == ((300, 8), (500, 9)), "the queues have {now:?}");
    whole(bed, form)?;
    for (usecs, frames) in [(400, 10), (0, 0)] {
        let wish = format!("rx-usecs {usecs} rx-frames {frames}");
        set(bed, &format!("-C {INTERFACE} {wish}"))?;
        for number in 0..2 {
            let now = of_queue(bed, number)?;
            ensure!(
                now == (usecs, frames),
                "{wish} was set for all, queue {number} has {now:?}"
            );
        }
    }
    whole(bed, form)
}
