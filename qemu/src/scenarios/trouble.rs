// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Things go wrong around the driver: no memory, a device that does not answer.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::interface::whole;
use super::{BOTH, EVERY, Scenario};
use crate::artefacts::kernel::Flavour;
use crate::cable::INTERFACE;
use crate::test::Form;
use crate::test::bed::Bed;
use crate::traffic::{Client, Direction};

pub const TABLE: &[Scenario] = &[
    Scenario::new("memory_pressure", EVERY, memory_pressure).forgiving(&[
        "page allocation failure",
        "SLUB: Unable to allocate",
        "invoked oom-killer",
        "Out of memory",
    ]),
    Scenario::new("device_stalls", BOTH, device_stalls).forgiving(&[
        "NETDEV WATCHDOG",
        "transmit queue",
        "TX timeout",
        ": resetting",
    ]),
    Scenario::new("probe_without_memory", EVERY, probe_without_memory)
        .on(&[Flavour::Debug])
        .forgiving(WITHOUT_MEMORY),
    Scenario::new("open_without_memory", EVERY, open_without_memory)
        .on(&[Flavour::Debug])
        .forgiving(WITHOUT_MEMORY),
];

/// What the kernel says of a driver that does not get what it needs, and what of itself: it goes on
/// without entries in /proc/irq, and wonders later where they are. What keeps account of objects
/// gives up.
const WITHOUT_MEMORY: &[&str] = &[
    "probe with driver ferronic failed",
    "can't reserve [mem",
    "really_probe: driver_sysfs_add failed",
    "at remove_proc_entry",
    "kobject: can not set name properly",
    "ref_tracker: memory allocation failure",
    "kmemleak: Cannot allocate a ",
];

/// A program in the guest takes all memory it can get, is killed, and starts over, while traffic
/// flows and the kernel has no reserve for interrupts. Then all is well again.
fn memory_pressure(bed: &mut Bed, form: Form) -> Result<()> {
    let seconds = form.pick(6, 60);
    let reserve = bed.guest().sh("cat /proc/sys/vm/min_free_kbytes")?;
    bed.guest().sh("echo 512 > /proc/sys/vm/min_free_kbytes")?;
    let client = Client::new(&bed.cable.server, Direction::GuestToHost, seconds).with("--bidir");
    let traffic = client.start(bed.guest())?;
    let hog = "a = []\nwhile True: a.append(b'x' * (1 << 20))";
    let pressed = bed.guest().sh_within(
        &format!(
            "end=$(($(date +%s) + {seconds})); n=0; \
             while [ $(date +%s) -lt $end ]; do \
                 (echo 1000 > /proc/self/oom_score_adj; exec timeout {seconds} python3 -c \"{hog}\") && exit 1; n=$((n + 1)); \
             done; echo $n"
        ),
        Duration::from_secs(120 + u64::from(seconds)),
    );
    traffic.kill()?;
    bed.guest().sh(&format!(
        "echo {} > /proc/sys/vm/min_free_kbytes",
        reserve.trim()
    ))?;
    let times: u32 = pressed?.trim().parse().context("no number of kills")?;
    ensure!(times > 0, "memory has never run out");
    bed.lay_cable()?;
    whole(bed, form)
}

/// The backend stands still for longer than the kernel waits for a transmission, and goes on.
fn device_stalls(bed: &mut Bed, form: Form) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(bed.backend()?.pid())?).context("no process")?;
    for _ in 0..form.pick(1, 5) {
        let client = Client::new(&bed.cable.server, Direction::GuestToHost, 3600).with("--bidir");
        let traffic = client.start(bed.guest())?;
        std::thread::sleep(Duration::from_secs(1));
        kill_process(pid, Signal::STOP).context("cannot stop the backend")?;
        std::thread::sleep(Duration::from_secs(12));
        kill_process(pid, Signal::CONT).context("cannot let the backend go on")?;
        traffic.kill()?;
        bed.lay_cable()?;
        whole(bed, Form::Short)?;
    }
    Ok(())
}

/// Each allocation of binding the driver fails once; none is missed, nothing is left behind.
fn probe_without_memory(bed: &mut Bed, form: Form) -> Result<()> {
    let device = bed.guest().sh(&format!(
        "ethtool -i {INTERFACE} | sed -n 's/^bus-info: //p'"
    ))?;
    let driver = bed.setup.driver.on_pci();
    let arguments = format!("bind {driver} {}", device.trim());
    let failed = fail_each(bed, &arguments, form.pick(13, 1))?;
    ensure!(failed > 0, "the driver is bound without memory");
    bed.lay_cable()?;
    whole(bed, Form::Short)
}

/// The same with each allocation of bringing the interface up.
fn open_without_memory(bed: &mut Bed, form: Form) -> Result<()> {
    let failed = fail_each(bed, &format!("up {INTERFACE}"), form.pick(7, 1))?;
    // Few of these allocations cannot be done without, and the short form may miss them.
    ensure!(
        failed > 0 || form == Form::Short,
        "the interface comes up without memory"
    );
    bed.lay_cable()?;
    whole(bed, Form::Short)
}

/// Returns how often the whole failed.
fn fail_each(bed: &Bed, what: &str, step: u32) -> Result<u32> {
    let limit = Duration::from_secs(if step == 1 { 1800 } else { 300 });
    let said = bed
        .guest()
        .sh_within(&format!("fail-nth {what} {step}"), limit)?;
    let mut numbers = said.split_whitespace().map(str::parse::<u32>);
    let (Some(Ok(tried)), Some(Ok(failed))) = (numbers.next(), numbers.next()) else {
        bail!("fail-nth printed: {said}");
    };
    ensure!(tried > 0, "nothing was made to fail");
    println!("{what}: {tried} allocations failed, {failed} times the whole did");
    Ok(failed)
}
