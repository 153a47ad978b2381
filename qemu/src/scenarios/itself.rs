// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The lab's own ways with the guest: the other scenarios rest on them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{NETDEV_TAP, Scenario};
use crate::driver::Driver;
use crate::test::Form;
use crate::test::bed::Bed;

pub const TABLE: &[Scenario] = &[
    Scenario::new("lab_commands", &[NETDEV_TAP], commands).only(&[Driver::C]),
    Scenario::new("lab_files", &[NETDEV_TAP], files).only(&[Driver::C]),
    Scenario::new("lab_clock", &[NETDEV_TAP], clock).only(&[Driver::C]),
    Scenario::new("lab_log", &[NETDEV_TAP], log).only(&[Driver::C]),
];

fn commands(bed: &mut Bed, _: Form) -> Result<()> {
    let guest = bed.guest();
    let limit = Duration::from_secs(10);
    let output = guest.try_sh("echo out; echo err >&2; exit 7", limit)?;
    ensure!(
        (output.code, output.stdout.as_str(), output.stderr.as_str()) == (7, "out\n", "err\n"),
        "{output:?}"
    );
    ensure!(
        guest.sh("exit 1").is_err(),
        "a failed command counts as well done"
    );
    let start = Instant::now();
    ensure!(
        guest.try_sh("sleep 60", Duration::from_secs(1)).is_err(),
        "a time limit is not kept"
    );
    ensure!(
        start.elapsed() < limit,
        "a command with a limit of 1 s took {:?}",
        start.elapsed()
    );

    let background = guest.spawn("sleep 60 & sleep 60")?;
    ensure!(
        background.poll()?.is_none(),
        "a background command has ended at once"
    );
    background.kill()?;
    background.wait(limit)?;
    Ok(())
}

fn files(bed: &mut Bed, _: Form) -> Result<()> {
    let guest = bed.guest();
    // All byte values, over several messages.
    let data: Vec<u8> = (0..60_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    guest.write_file("/tmp/file", &data)?;
    ensure!(
        guest.read_file("/tmp/file")? == data,
        "a file comes back changed"
    );
    ensure!(
        guest.read_file("/tmp/no-such-file").is_err(),
        "a file that is not there can be read"
    );
    Ok(())
}

/// A complaint of the kernel makes a test fail, and only that test.
fn log(bed: &mut Bed, _: Form) -> Result<()> {
    let complain = "echo '<4>WARNING: CPU: 0 PID: 1 at lab.c:1 lab_log+0x1/0x2' > /dev/kmsg";
    bed.guest().sh(complain)?;
    ensure!(bed.check_log(&[]).is_err(), "a warning is not seen");
    bed.check_log(&["at lab.c:1"])?;
    bed.mark_log("after the warning")?;
    bed.check_log(&[])
}

/// Carrier times are no better than this.
fn clock(bed: &mut Bed, _: Form) -> Result<()> {
    let (first, second) = (bed.guest().clock_offset()?, bed.guest().clock_offset()?);
    let error = first.error + second.error;
    ensure!(
        error < Duration::from_millis(20),
        "the clocks can only be compared to within {error:?}"
    );
    let moved = first.ahead_ns.abs_diff(second.ahead_ns);
    ensure!(
        moved < error.as_nanos() + 1_000_000,
        "the clocks moved {moved} ns against each other in no time"
    );
    Ok(())
}
