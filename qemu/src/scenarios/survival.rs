// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the NIC lives through: resets, reboots, new drivers, a new QEMU, its own death.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{BOTH, EVERY, NETDEV_TAP, Scenario};
use crate::cable::{INTERFACE, wait_carrier};
use crate::net::HOST_IP;
use crate::process::{Memory, wakeups};
use crate::test::Form;
use crate::test::bed::Bed;
use crate::traffic::{self, Client, Direction};

pub const TABLE: &[Scenario] = &[
    Scenario::new("kill_backend", &[NETDEV_TAP], kill_backend),
    Scenario::new("rebind_driver", EVERY, rebind_driver),
    Scenario::new("reload_driver", EVERY, reload_driver),
    Scenario::new("idle_is_idle", BOTH, idle_is_idle),
    Scenario::new("guest_reboot", EVERY, guest_reboot),
    Scenario::new("machine_reset_under_traffic", EVERY, reset_under_traffic),
    Scenario::new("kill_qemu", BOTH, kill_qemu),
];

/// How long traffic may take to flow again.
const RESUME: Duration = Duration::from_secs(10);

/// kill -9 under traffic, and a new backend: traffic resumes, and nobody touches the guest.
pub fn kill_backend(bed: &mut Bed, form: Form) -> Result<()> {
    for direction in [Direction::GuestToHost, Direction::HostToGuest] {
        let rounds = form.pick(2, 5);
        let client = Client::new(&bed.cable.server, direction, 3600);
        let flow = client.start(bed.guest())?;
        let result = (1..=rounds).try_for_each(|round| {
            std::thread::sleep(Duration::from_millis(700));
            bed.backend()?.kill()?;
            std::thread::sleep(Duration::from_millis(300));
            bed.backend()?.start_again()?;
            traffic::wait_flow(bed.guest(), direction, 10_000_000, RESUME)
                .with_context(|| format!("{direction:?}, round {round} of {rounds}"))
        });
        flow.kill()?;
        result?;
    }
    works(bed)
}

/// Traffic both ways.
fn works(bed: &Bed) -> Result<()> {
    wait_carrier(bed.guest(), true)?;
    bed.guest()
        .sh(&format!("ping -q -c 3 -i 0.05 -w 10 {HOST_IP}"))?;
    for direction in [Direction::GuestToHost, Direction::HostToGuest] {
        let transfer = Client::new(&bed.cable.server, direction, 1).run(bed.guest())?;
        transfer
            .ensure_flowed()
            .with_context(|| format!("{direction:?}"))?;
    }
    Ok(())
}

pub fn rebind_driver(bed: &mut Bed, form: Form) -> Result<()> {
    for _ in 0..form.pick(2, 10) {
        // The C driver is two: the PCI device's and, on a bus of its own, the NIC's.
        bed.guest().sh(&format!(
            "device=/sys/class/net/{INTERFACE}/device && name=$(basename $(readlink -f $device)) && \
             cd $(readlink -f $device/driver) && echo $name > unbind && echo $name > bind"
        ))?;
        bed.lay_cable()?;
    }
    works(bed)
}

/// All the way down: the PCI device itself is let go.
fn reload_driver(bed: &mut Bed, form: Form) -> Result<()> {
    for _ in 0..form.pick(2, 10) {
        let driver = bed.setup.driver.name();
        bed.guest()
            .sh(&format!("driver unload {driver} && driver load {driver}"))?;
        bed.lay_cable()?;
    }
    works(bed)
}

/// Without traffic the backend does not wake up, and it is small.
fn idle_is_idle(bed: &mut Bed, form: Form) -> Result<()> {
    // The interface is up but for IPv6, whose neighbour discovery would be traffic.
    bed.guest().sh(&format!(
        "sysctl -q -w net.ipv6.conf.{INTERFACE}.disable_ipv6=1"
    ))?;
    std::thread::sleep(Duration::from_secs(1));
    let seconds = form.pick(3, 20);
    let pid = bed.backend()?.pid();
    let quiet = (0..3).any(|_| {
        let before = wakeups(pid);
        std::thread::sleep(Duration::from_secs(seconds));
        let after = wakeups(pid);
        log::info!("wake-ups: {before:?} to {after:?}");
        before.is_ok() && before.ok() == after.ok()
    });
    bed.guest().sh(&format!(
        "sysctl -q -w net.ipv6.conf.{INTERFACE}.disable_ipv6=0"
    ))?;
    bed.lay_cable()?;
    ensure!(
        quiet,
        "the backend woke up in each of three idle spells of {seconds} s"
    );

    let kib = Memory::of(pid)?.own;
    ensure!(
        kib < 20 * 1024,
        "the backend has {kib} KiB of memory of its own"
    );
    Ok(())
}

fn guest_reboot(bed: &mut Bed, _: Form) -> Result<()> {
    // The answer to the command is lost with the guest, so it comes a moment later.
    bed.guest()
        .sh("(sleep 0.3; echo b > /proc/sysrq-trigger) > /dev/null 2>&1 &")?;
    bed.machine.wait_reset()?;
    bed.lay_cable()?;
    works(bed)
}

fn reset_under_traffic(bed: &mut Bed, form: Form) -> Result<()> {
    for _ in 0..form.pick(1, 5) {
        let client = Client::new(&bed.cable.server, Direction::HostToGuest, 60);
        client.start(bed.guest())?;
        std::thread::sleep(Duration::from_millis(700));
        bed.machine.reset()?;
        bed.lay_cable()?;
    }
    works(bed)
}

/// A frontend that is killed in the middle of traffic, and another in its place.
fn kill_qemu(bed: &mut Bed, form: Form) -> Result<()> {
    for _ in 0..form.pick(1, 5) {
        let client = Client::new(&bed.cable.server, Direction::GuestToHost, 60);
        client.start(bed.guest())?;
        std::thread::sleep(Duration::from_millis(700));
        bed.replace_machine()?;
    }
    works(bed)
}
