// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The user uplink: what passt does for the guest.
//!
//! That the guest has an address by DHCP and reaches the host through its gateway is what every
//! bed with this uplink starts with.

use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Scenario, USER};
use crate::backend::Uplink;
use crate::process::children;
use crate::test::Form;
use crate::test::bed::Bed;
use crate::traffic::{Client, Direction};

pub const TABLE: &[Scenario] = &[
    Scenario::new("dns", &[USER], dns),
    Scenario::new("passt_dies", &[USER], passt_dies),
];

const LIMIT: Duration = Duration::from_secs(20);
/// What the name server here says to every question.
const ANSWER: [u8; 4] = [192, 0, 2, 77];

/// The guest asks the name server that DHCP told it of, and the host's answers.
fn dns(bed: &mut Bed, _: Form) -> Result<()> {
    let server = UdpSocket::bind("127.0.0.1:53")
        .context("cannot be a name server in the run's namespace")?;
    server.set_read_timeout(Some(LIMIT))?;
    let lookup = bed.guest().spawn("getent ahostsv4 ferronic.test")?;
    let mut buffer = [0; 512];
    let (n, client) = server
        .recv_from(&mut buffer)
        .context("the guest's question does not arrive")?;
    let reply = reply(buffer.get(..n).unwrap_or_default())
        .context("the guest's question makes no sense")?;
    server.send_to(&reply, client)?;
    let output = lookup.wait(LIMIT)?;
    ensure!(
        output.stdout.contains("192.0.2.77"),
        "the guest has got no answer: {output:?}"
    );
    Ok(())
}

/// RFC 1035, 4.1: the question again, and one answer of type A.
fn reply(question: &[u8]) -> Option<Vec<u8>> {
    let name = question.get(12..)?;
    let end = 12 + name.iter().position(|b| *b == 0)? + 5;
    let mut reply = question.get(..end)?.to_vec();
    // A response, recursion available; one question, one answer.
    reply
        .get_mut(2..12)?
        .copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    // The name is that at octet 12; type A, class IN, a minute, four octets.
    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    reply.extend(ANSWER);
    Some(reply)
}

/// The backend notices, says so and starts another; the guest only sees its connections end.
fn passt_dies(bed: &mut Bed, form: Form) -> Result<()> {
    for _ in 0..form.pick(1, 5) {
        let old = child_of(bed.backend()?.pid())?;
        kill_process(old, Signal::KILL).context("cannot kill passt")?;
        let deadline = Instant::now() + LIMIT;
        while child_of(bed.backend()?.pid())
            .ok()
            .is_none_or(|new| new == old)
        {
            if Instant::now() > deadline {
                bail!("passt was not started again within {} s", LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bed.cable
            .lay_again(bed.lab, &bed.machine.guest, Uplink::User)?;
        Client::new(&bed.cable.server, Direction::HostToGuest, 1).run(bed.guest())?;
    }
    let log = fs::read_to_string(&bed.backend()?.log)?;
    ensure!(
        log.contains("passt ended"),
        "the backend's log does not tell that passt ended"
    );
    Ok(())
}

/// The one child of a process.
fn child_of(pid: u32) -> Result<Pid> {
    let first = children(pid)?.first().copied();
    let first = first.and_then(|child| Pid::from_raw(i32::try_from(child).ok()?));
    first.with_context(|| format!("process {pid} has no child"))
}
