// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A device that lies, asks for a reset, or is gone: the driver says so, recovers or gives up, and
//! the guest lives on.
//!
//! No device at hand lies. So the lab does, in the guest's memory, where the device has its say: in
//! the part of a ring that it writes. Where the rings are is in the driver's dump of registers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::churn::{flows, start};
use super::interface::whole;
use super::{DEVICE_TAP, EVERY, NETDEV_TAP, QEMU_TAP, Scenario};
use crate::artefacts::kernel::Flavour;
use crate::cable::INTERFACE;
use crate::driver::Driver;
use crate::machine::memory::GuestMemory;
use crate::net::HOST_IP;
use crate::test::Form;
use crate::test::bed::Bed;
use crate::test::setup::Setup;
use crate::traffic::{Direction, wait_flow};

/// The device attachment takes packed rings by itself, QEMU's own NIC when told to.
const LIARS: &[Setup] = &[
    NETDEV_TAP,
    DEVICE_TAP,
    QEMU_TAP,
    QEMU_TAP.properties("packed", &["packed=on"]),
];
/// What the driver says of a device that lies, and what of one that does nothing else.
const LIES: &[&str] = &["queue 0: device", ": resetting"];
const HOPELESS: &[&str] = &[
    "queue 0: device",
    ": resetting",
    "is given up",
    "does not answer",
    "nothing was sent for too long",
    "NETDEV WATCHDOG",
    // The kernel itself, of any device that is given up.
    "failed to kill vid",
];

pub const TABLE: &[Scenario] = &[
    Scenario::new("device_lies", LIARS, lies)
        .only(&[Driver::Ferronic])
        .on(&[Flavour::Base])
        .forgiving(LIES),
    // There most lies are overwritten before the driver looks: it takes minutes.
    Scenario::new("device_lies", LIARS, lies)
        .only(&[Driver::Ferronic])
        .on(&[Flavour::Debug])
        .forgiving(LIES)
        .full_only(),
    Scenario::new("device_wants_reset", &[QEMU_TAP], wants_reset)
        .only(&[Driver::Ferronic])
        .forgiving(LIES),
    // The debug kernel is too slow for as many resets within half a minute as make the driver give up.
    Scenario::new("device_always_lies", EVERY, always_lies)
        .only(&[Driver::Ferronic])
        .on(&[Flavour::Base])
        .forgiving(HOPELESS),
    Scenario::new("device_disappears", EVERY, disappears)
        .only(&[Driver::Ferronic])
        .forgiving(HOPELESS),
];

/// How long traffic may take to flow again.
const RESUME: Duration = Duration::from_secs(15);
/// How long the driver may go on with a device that does not work.
const GIVING_UP: Duration = Duration::from_secs(60);
/// How long it takes the driver to notice, if it does.
const NOTICE: Duration = Duration::from_millis(30);
/// A lie that the device has overwritten before the driver saw it is told again, so many times.
const TELLINGS: u32 = 200;
/// VIRTIO_F_RING_PACKED.
const RING_PACKED: u32 = 34;
/// VIRTQ_DESC_F_AVAIL and VIRTQ_DESC_F_USED (2.8.1): a descriptor in which they differ is available.
const PACKED_AVAIL: u16 = 1 << 7;
const PACKED_USED: u16 = 1 << 15;
/// What the driver says when it gives a device up.
const GIVEN_UP: &str = "device does not work and is given up";

/// One of the driver's rings, as `ethtool -d` shows it; see `ethtool/registers.rs` of the driver.
struct Ring {
    memory: GuestMemory,
    packed: bool,
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
}

/// What can be wrong in what a device has used.
#[derive(Debug, Clone, Copy)]
enum Lie {
    /// There is no such identifier.
    NoSuchIdentifier,
    /// It has written more than there was room for.
    TooLong,
    /// It has used more than it was given.
    TooMany,
}

/// A command that prints the driver's dump of registers as words.
fn dump() -> String {
    format!("ethtool -d {INTERFACE} raw on | od -An -v -tx4 -w4")
}

impl Ring {
    /// The ring of queue `index`.
    fn find(bed: &Bed, index: usize) -> Result<Self> {
        Self::parse(bed, index, &bed.guest().sh(&dump())?)
    }

    /// The ring of queue `index` in what [`dump`] has printed.
    fn parse(bed: &Bed, index: usize, dump: &str) -> Result<Self> {
        let words: Vec<u32> = dump
            .split_whitespace()
            .map(|word| u32::from_str_radix(word, 16))
            .collect::<Result<_, _>>()
            .with_context(|| format!("no words: {dump}"))?;
        let word = |i: usize| -> Result<u64> {
            let word = words.get(i).context("the dump of registers is too short")?;
            Ok(u64::from(*word))
        };
        let double = |i: usize| -> Result<u64> { Ok(word(i)? | word(i + 1)? << 32) };
        let queue = 6 + 14 * index;
        Ok(Ring {
            memory: bed.machine.memory()?,
            packed: double(2)? >> RING_PACKED & 1 != 0,
            // CAST: Two registers of 16 bits each.
            size: word(queue + 6)? as u16,
            descriptors: double(queue + 8)?,
            available: double(queue + 10)?,
            used: double(queue + 12)?,
        })
    }

    /// Says something that is not true.
    fn lie(&self, lie: Lie) -> Result<()> {
        if self.packed {
            return self.lie_packed(lie);
        }
        let index = self.memory.read_u16(self.used + 2)?;
        let slot = u64::from(index % self.size);
        // Devices use what is available in order, so this is the identifier that comes next.
        let next = self.memory.read_u16(self.available + 4 + 2 * slot)?;
        let (identifier, length, count): (u32, u32, u16) = match lie {
            Lie::NoSuchIdentifier => (u32::from(self.size) + 7, 60, 1),
            Lie::TooLong => (u32::from(next), 1 << 30, 1),
            Lie::TooMany => (u32::from(next), 60, self.size + 5),
        };
        let mut element = [0; 8];
        element[..4].copy_from_slice(&identifier.to_le_bytes());
        element[4..].copy_from_slice(&length.to_le_bytes());
        self.memory.write(self.used + 4 + 8 * slot, &element)?;
        let index = index.wrapping_add(count);
        self.memory.write(self.used + 2, &index.to_le_bytes())
    }

    /// Where the driver looks next is not in memory, so the device is said to have used all that is
    /// available.
    fn lie_packed(&self, lie: Lie) -> Result<()> {
        let mut first = None;
        for slot in 0..u64::from(self.size) {
            let place = self.descriptors + 16 * slot + 8;
            let [_, _, _, _, i0, i1, f0, f1] = self.memory.read::<8>(place)?;
            let flags = u16::from_le_bytes([f0, f1]);
            let available = flags & PACKED_AVAIL != 0;
            if available == (flags & PACKED_USED != 0) {
                continue;
            }
            let identifier = u16::from_le_bytes([i0, i1]);
            // The same again and again is more than was given.
            let first = *first.get_or_insert(identifier);
            let (length, identifier) = match lie {
                Lie::NoSuchIdentifier => (60, self.size + 7),
                Lie::TooLong => (1 << 30, identifier),
                Lie::TooMany => (60, first),
            };
            let flags = if available {
                PACKED_AVAIL | PACKED_USED
            } else {
                0
            };
            let mut octets = [0; 8];
            octets[..4].copy_from_slice(&u32::to_le_bytes(length));
            octets[4..6].copy_from_slice(&identifier.to_le_bytes());
            octets[6..].copy_from_slice(&flags.to_le_bytes());
            self.memory.write(place, &octets)?;
        }
        Ok(())
    }

    /// Tells the device, not the driver, something that is not true: that descriptors are available
    /// which do not exist.
    fn offer_nonsense(&self) -> Result<()> {
        let nonsense = vec![0xff; 2 * usize::from(self.size)];
        self.memory.write(self.available + 4, &nonsense)?;
        let index = self.memory.read_u16(self.available + 2)?.wrapping_add(1);
        self.memory.write(self.available + 2, &index.to_le_bytes())
    }
}

/// How often the driver has said this since the scenario's begin.
fn said(bed: &Bed, text: &str) -> Result<u64> {
    let count = bed.guest().sh(&format!(
        "dmesg | tac | sed '/lab: mark/q' | grep -c '{text}' || true"
    ))?;
    count.trim().parse().context("no count")
}

/// How often a queue, `rx0` or `tx0`, was found broken.
fn broken(bed: &Bed, queue: &str) -> Result<u64> {
    let text = bed.guest().sh(&format!(
        "ethtool -S {INTERFACE} | sed -n 's/^ *{queue}_broken: *//p'"
    ))?;
    text.trim()
        .parse()
        .with_context(|| format!("{queue}_broken is no number: {text}"))
}

/// Each lie under traffic: it is counted, the device is reset, and the same connections go on.
fn lies(bed: &mut Bed, form: Form) -> Result<()> {
    let traffic = start(bed)?;
    let round = || -> Result<()> {
        for (queue, index) in [("rx0", 0), ("tx0", 1)] {
            for lie in [Lie::NoSuchIdentifier, Lie::TooLong, Lie::TooMany] {
                // Nothing is written for transmission, so all lengths are ignored there.
                if !(index == 1 && matches!(lie, Lie::TooLong)) {
                    flows(bed)?;
                    one_lie(bed, queue, index, lie).with_context(|| format!("{queue}: {lie:?}"))?;
                }
            }
        }
        flows(bed)
    };
    let result = (0..form.pick(1, 20)).try_for_each(|i| {
        if i > 0 {
            // More than ten resets within half a minute, and the driver would give up.
            std::thread::sleep(Duration::from_secs(31));
        }
        round()
    });
    traffic.kill()?;
    result?;
    ensure!(
        said(bed, GIVEN_UP)? == 0,
        "the driver has given the device up"
    );
    bed.lay_cable()?;
    whole(bed, Form::Short)
}

/// Lies until it is noticed.
fn one_lie(bed: &Bed, queue: &str, index: usize, lie: Lie) -> Result<()> {
    let before = broken(bed, queue)?;
    for _ in 0..TELLINGS {
        // Each time anew: a ring that was given up may be anything by now.
        Ring::find(bed, index)?.lie(lie)?;
        std::thread::sleep(NOTICE);
        if broken(bed, queue)? > before {
            return Ok(());
        }
    }
    bail!("told {TELLINGS} times, and never noticed")
}

/// The driver's offer is nonsense, to which the device answers with DEVICE_NEEDS_RESET (2.1.2).
fn wants_reset(bed: &mut Bed, form: Form) -> Result<()> {
    let traffic = start(bed)?;
    let once = || -> Result<()> {
        flows(bed)?;
        let before = said(bed, "asks for a reset: resetting")?;
        for _ in 0..TELLINGS {
            Ring::find(bed, 1)?.offer_nonsense()?;
            std::thread::sleep(NOTICE);
            if said(bed, "asks for a reset: resetting")? > before {
                return flows(bed);
            }
        }
        bail!("the device was told {TELLINGS} times, and was never reset")
    };
    let result = (0..form.pick(2, 6)).try_for_each(|_| once());
    traffic.kill()?;
    result?;
    bed.lay_cable()?;
    whole(bed, Form::Short)
}

/// A device that lies after every reset is given up, with one message; nothing hangs, and a new
/// driver starts anew.
fn always_lies(bed: &mut Bed, _: Form) -> Result<()> {
    let traffic = start(bed)?;
    flows(bed)?;
    let before = broken(bed, "rx0")?;
    // All in one: the driver gives up after eleven resets within half a minute, not after as many
    // within a minute, and each command takes its time in a guest that is busy with traffic.
    let look = format!(
        "dmesg | tac | sed '/lab: mark/q' > /run/said; grep -c '{GIVEN_UP}' /run/said; \
         grep -c ': resetting' /run/said; ethtool -S {INTERFACE} | sed -n 's/^ *rx0_broken: *//p'; {}",
        dump()
    );
    let deadline = Instant::now() + GIVING_UP;
    loop {
        ensure!(
            Instant::now() < deadline,
            "the device lies, and the driver goes on with it"
        );
        let seen = bed.guest().sh(&look)?;
        let mut lines = seen.splitn(4, '\n');
        let mut number = || lines.next()?.trim().parse::<u64>().ok();
        let (given_up, resets, broken) = (number(), number(), number());
        if given_up != Some(0) {
            break;
        }
        // While the driver has noticed, but not yet reset the device, the ring is about to go.
        if let (Some(resets), Some(broken), Some(dump)) = (resets, broken, lines.next())
            && broken <= before + resets
            && let Ok(ring) = Ring::parse(bed, 0, dump)
        {
            ring.lie(Lie::NoSuchIdentifier)?;
        }
        std::thread::sleep(NOTICE);
    }
    traffic.kill()?;
    after_the_end(bed)
}

/// Nothing that is written arrives, and nothing is read that means anything: as if someone had pulled
/// the card, and its slot had not noticed. So the driver finds out when what it sends piles up, which
/// takes more than one socket's buffer.
fn disappears(bed: &mut Bed, _: Form) -> Result<()> {
    let traffic = bed.guest().spawn(&format!(
        "exec python3 -c 'import socket\nall = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(16)]\n\
         while True:\n    for one in all:\n        try: one.sendto(bytes(1400), socket.MSG_DONTWAIT, (\"{HOST_IP}\", 9))\n        except OSError: pass'"
    ))?;
    wait_flow(bed.guest(), Direction::GuestToHost, 1_000_000, RESUME)?;
    // The command register: no memory, no bus master.
    bed.guest().sh(&format!(
        "device=$(ethtool -i {INTERFACE} | sed -n 's/^bus-info: //p'); \
         printf '\\0\\0' | dd of=/sys/bus/pci/devices/$device/config bs=1 seek=4 conv=notrunc status=none"
    ))?;
    let deadline = Instant::now() + bed.setup.kernel.patience() * GIVING_UP;
    while said(bed, GIVEN_UP)? == 0 {
        ensure!(
            Instant::now() < deadline,
            "the device is gone, and the driver has not noticed"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    traffic.kill()?;
    after_the_end(bed)
}

/// What is asked of an interface whose device was given up is answered, soon; the message was one;
/// and with a new driver all is well again.
fn after_the_end(bed: &mut Bed) -> Result<()> {
    let asked = format!(
        "ip -s link show {INTERFACE}; ethtool {INTERFACE}; ethtool -S {INTERFACE}; ethtool -d {INTERFACE}; \
         ethtool -g {INTERFACE}; ethtool -G {INTERFACE} rx 64; ethtool -K {INTERFACE} gro off; \
         ip link set {INTERFACE} mtu 1400; ip link set {INTERFACE} down; ip link set {INTERFACE} up; \
         ip link set {INTERFACE} down"
    );
    bed.guest().try_sh(&asked, Duration::from_secs(20))?;
    let times = said(bed, GIVEN_UP)?;
    ensure!(
        times == 1,
        "the driver has said {times} times that it gives up"
    );
    let driver = bed.setup.driver.name();
    bed.guest()
        .sh(&format!("driver unload {driver} && driver load {driver}"))?;
    bed.lay_cable()?;
    whole(bed, Form::Short)
}
