// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The cable is pulled and put back.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{BOTH, EVERY, Scenario};
use crate::cable::{INTERFACE, wait_carrier};
use crate::carrier::Watch;
use crate::net;
use crate::test::Form;
use crate::test::bed::Bed;
use crate::traffic::{self, Client, Direction, Transfer};

pub const TABLE: &[Scenario] = &[
    Scenario::new("link_toggles", EVERY, toggles),
    Scenario::new("link_down_survives_reset", EVERY, down_survives_reset).discard(),
    Scenario::new("link_down_before_start", BOTH, down_before_start).discard(),
    Scenario::new("tap_made_again", BOTH, tap_made_again),
];

/// How long traffic may take to flow again: TCP waits longer and longer for a peer that is silent.
const RESUME: Duration = Duration::from_secs(5);

/// Many times in a row, under traffic: the carrier follows each time, and traffic resumes after each.
pub fn toggles(bed: &mut Bed, form: Form) -> Result<()> {
    let rounds = bed.rounds(form, 10, 200);
    let guest = bed.guest();
    let client = Client::new(&bed.cable.server, Direction::GuestToHost, 3600);
    let traffic = client.start(guest)?;
    let watch = Watch::start(guest, INTERFACE)?;
    let result = (1..=rounds).try_for_each(|round| {
        let one = || -> Result<()> {
            let down = watch.time(false, || bed.set_link(false))?;
            let up = watch.time(true, || bed.set_link(true))?;
            log::info!(
                "carrier down after {:.1} ms, up after {:.1} ms",
                down.ms,
                up.ms
            );
            // More than what probes and neighbour discovery send.
            traffic::wait_flow(guest, Direction::GuestToHost, 1_000_000, RESUME)
        };
        one().with_context(|| format!("round {round} of {rounds}"))
    });
    drop(watch);
    let ended = traffic.poll()?;
    traffic.kill()?;
    if let Some(output) = ended {
        Transfer::parse(&output.stdout).context("the traffic ended early")?;
    }
    result
}

/// A cable that is out stays out while the guest boots.
fn down_survives_reset(bed: &mut Bed, _: Form) -> Result<()> {
    bed.set_link(false)?;
    wait_carrier(bed.guest(), false)?;
    bed.machine.reset()?;
    bed.guest().sh(&format!("ip link set {INTERFACE} up"))?;
    std::thread::sleep(Duration::from_millis(300));
    wait_carrier(bed.guest(), false)?;
    bed.set_link(true)?;
    bed.lay_cable()
}

/// A guest boots though the cable is out, and was when the one before ended.
fn down_before_start(bed: &mut Bed, _: Form) -> Result<()> {
    bed.set_link(false)?;
    wait_carrier(bed.guest(), false)?;
    bed.boot_another()?;
    bed.guest().sh(&format!("ip link set {INTERFACE} up"))?;
    std::thread::sleep(Duration::from_millis(300));
    wait_carrier(bed.guest(), false)?;
    bed.set_link(true)?;
    bed.lay_cable()
}

/// The tap is deleted under traffic and made again: traffic resumes, and nobody touches guest or NIC.
fn tap_made_again(bed: &mut Bed, form: Form) -> Result<()> {
    let client = Client::new(&bed.cable.server, Direction::GuestToHost, 3600);
    let traffic = bed.guest().spawn(&client.command())?;
    let result = (1..=form.pick(2, 10)).try_for_each(|round| {
        std::thread::sleep(Duration::from_millis(300));
        // The same address: the guest should not have to look for it.
        let address = fs::read_to_string(format!("/sys/class/net/{}/address", net::TAP))?;
        net::make_tap(bed.lab, bed.setup.queues > 1)?;
        net::ip(bed.lab, &format!("link set {} address {address}", net::TAP))?;
        traffic::wait_flow(bed.guest(), Direction::GuestToHost, 1_000_000, RESUME)
            .with_context(|| format!("round {round}"))
    });
    traffic.kill()?;
    result
}
