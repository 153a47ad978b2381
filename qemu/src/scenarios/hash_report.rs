// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Hash reports: the guest's kernel has each received packet's Toeplitz hash from the device, by the
//! key that it shows.
//!
//! Linux keeps to itself whether a packet's hash is the device's or one that it has made up, but to a
//! socket's filter (`flow-hashes` in the guest). Hashes are worked out here bit by bit, as the
//! definition has it, so that a mistake in the device's tables is not made twice.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::filters::wait_for_file;
use super::interface::whole;
use super::{DEVICE_TAP, QEMU_TAP, Scenario};
use crate::backend::Uplink;
use crate::cable::INTERFACE;
use crate::driver::Driver;
use crate::machine::nic::Attach;
use crate::net::{GUEST_IP, GUEST_IP6, HOST_IP, HOST_IP6};
use crate::test::Form;
use crate::test::bed::Bed;
use crate::test::setup::Setup;

/// Our device with one pair; with two, where the hash chooses between them or does not; at a switch,
/// where it is the sender's side that hashes. And QEMU's own NIC, to know that the scenario is right.
const REPORTING: &[Setup] = &[
    DEVICE_TAP,
    DEVICE_TAP.queues(2),
    DEVICE_TAP.queues(2).serve("no-rss", &["--no-rss"]),
    Setup::new(Attach::Device, Uplink::Switch),
    QEMU_TAP
        .queues(2)
        .properties("hash", &["rss=on", "hash=on"]),
];

/// Our driver does not take hashes from the device.
pub const TABLE: &[Scenario] =
    &[Scenario::new("flow_hash_report", REPORTING, report).only(&[Driver::C])];

const LOG: &str = "/run/flow-hashes.json";
/// How long the guest listens at most. It is told when all has been sent.
const LISTEN: Duration = Duration::from_secs(60);
/// Flows of each kind.
const FLOWS: usize = 6;
/// Nobody listens there.
const PORT: u16 = 9;

/// What a packet's hash is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ipv4,
    Tcp4,
    Udp4,
    Ipv6,
    Tcp6,
    Udp6,
}

const ALL: [Kind; 6] = [
    Kind::Ipv4,
    Kind::Tcp4,
    Kind::Udp4,
    Kind::Ipv6,
    Kind::Tcp6,
    Kind::Udp6,
];

/// The kind of a packet that starts so, its addresses, and its ports, without options before them, as
/// hosts send them. None for one that is not IP.
fn dissect(head: &[u8]) -> Option<(Kind, &[u8], &[u8])> {
    match *head.get(12..14)? {
        [0x08, 0x00] => {
            let kind = match head.get(23)? {
                6 => Kind::Tcp4,
                17 => Kind::Udp4,
                _ => Kind::Ipv4,
            };
            Some((kind, head.get(26..34)?, head.get(34..38)?))
        }
        [0x86, 0xdd] => {
            let kind = match head.get(20)? {
                6 => Kind::Tcp6,
                17 => Kind::Udp6,
                _ => Kind::Ipv6,
            };
            Some((kind, head.get(22..54)?, head.get(54..58)?))
        }
        _ => None,
    }
}

/// The definition: for each bit of the input that is set, the 32 bits of the key from there on.
fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let bit = |octets: &[u8], at: usize| {
        let octet = octets.get(at / 8).copied().unwrap_or(0);
        u32::from(octet >> (7 - at % 8) & 1)
    };
    (0..8 * input.len())
        .filter(|at| bit(input, *at) == 1)
        .map(|at| (at..at + 32).fold(0, |window, at| window << 1 | bit(key, at)))
        .fold(0, |hash, window| hash ^ window)
}

/// What the guest's kernel was told of the packets that came in while it was sent some of every kind.
fn exchange(bed: &Bed) -> Result<Vec<(Vec<u8>, u32)>> {
    let guest = bed.guest();
    guest.sh(&format!("rm -f {LOG}"))?;
    let listener = guest.spawn(&format!(
        "exec flow-hashes {INTERFACE} {} {LOG}",
        LISTEN.as_secs_f64()
    ))?;
    wait_for_file(bed, LOG)?;
    for (from, to) in [(HOST_IP, GUEST_IP), (HOST_IP6, GUEST_IP6)] {
        let (from, to): (IpAddr, IpAddr) = (from.parse()?, to.parse()?);
        for _ in 0..FLOWS {
            let socket = UdpSocket::bind((from, 0))?;
            socket.send_to(&[0; 100], (to, PORT))?;
            // Refused, which is all there is to it.
            let _ = TcpStream::connect_timeout(&SocketAddr::new(to, PORT), Duration::from_secs(10));
        }
        guest.sh(&format!("ping -c 3 -i 0.2 -w 20 {from}"))?;
    }
    listener.kill()?;
    let output = listener.wait(LISTEN)?;
    ensure!(
        output.code == 0,
        "the listener in the guest failed: {}",
        output.stderr
    );
    let text = guest.read_file(LOG)?;
    let seen: Vec<(String, u32)> =
        serde_json::from_slice(&text).context("the listener in the guest wrote no JSON")?;
    seen.into_iter()
        .map(|(head, hash)| Ok((octets(&head)?, hash)))
        .collect()
}

/// Octets as hexadecimal digits, with colons between them or without.
fn octets(text: &str) -> Result<Vec<u8>> {
    let digits = text.trim().replace(':', "");
    (0..digits.len())
        .step_by(2)
        .map(|at| {
            let octet = digits.get(at..at + 2).context("half an octet")?;
            u8::from_str_radix(octet, 16).with_context(|| format!("'{text}' is not hexadecimal"))
        })
        .collect()
}

/// The key that the guest's driver shows.
fn key(bed: &Bed) -> Result<Vec<u8>> {
    // It fails where there is no table of queues, but shows the key.
    let shown = bed.guest().sh(&format!("ethtool -x {INTERFACE} || true"))?;
    let mut lines = shown.lines();
    if !lines.any(|line| line.starts_with("RSS hash key")) {
        bail!("ethtool -x shows no key: {shown}");
    }
    octets(lines.next().context("nothing behind 'RSS hash key'")?)
}

/// Checks the hash of every packet of some of each kind. Of these kinds addresses alone are hashed,
/// beside those that have no ports; without a key nothing is.
fn check(bed: &Bed, key: Option<&[u8]>, by_addresses: &[Kind]) -> Result<()> {
    let mut count: BTreeMap<Kind, usize> = BTreeMap::new();
    for (head, hash) in exchange(bed)? {
        let Some((kind, addresses, ports)) = dissect(&head) else {
            continue;
        };
        let portless = matches!(kind, Kind::Ipv4 | Kind::Ipv6) || by_addresses.contains(&kind);
        let ports = if portless { &[] } else { ports };
        let expected = key.map_or(0, |key| toeplitz(key, &[addresses, ports].concat()));
        ensure!(
            hash == expected,
            "the guest was told the hash {hash:#010x} of a packet of {kind:?} where it is \
             {expected:#010x}: {head:02x?}"
        );
        *count.entry(kind).or_default() += 1;
    }
    for kind in ALL {
        let least = match kind {
            Kind::Ipv4 | Kind::Ipv6 => 3,
            _ => FLOWS,
        };
        let got = count.get(&kind).copied().unwrap_or(0);
        ensure!(got >= least, "of {kind:?} {got} packets were seen");
    }
    Ok(())
}

fn ethtool(bed: &Bed, arguments: &str) -> Result<String> {
    bed.guest().sh(&format!("ethtool {arguments}"))
}

fn report(bed: &mut Bed, form: Form) -> Result<()> {
    let feature = |bed: &Bed, wanted: &str| -> Result<()> {
        let all = ethtool(bed, &format!("-k {INTERFACE}"))?;
        let line = format!("receive-hashing: {wanted}");
        ensure!(all.lines().any(|l| l.trim() == line), "no '{line}': {all}");
        Ok(())
    };
    ethtool(bed, &format!("-K {INTERFACE} rxhash on"))?;
    feature(bed, "on")?;
    let first = key(bed)?;
    check(bed, Some(&first), &[])?;
    // Another key, and fewer fields.
    let octets: Vec<String> = (1..=40).map(|i| format!("{:02x}", i * 5)).collect();
    ethtool(bed, &format!("-X {INTERFACE} hkey {}", octets.join(":")))?;
    let second = key(bed)?;
    ensure!(first != second, "the key is what it was");
    ethtool(bed, &format!("-N {INTERFACE} rx-flow-hash udp4 sd"))?;
    check(bed, Some(&second), &[Kind::Udp4])?;
    ethtool(bed, &format!("-N {INTERFACE} rx-flow-hash udp4 sdfn"))?;
    check(bed, Some(&second), &[])?;
    whole(bed, form)?;
    // Also with another number of queues.
    if bed.setup.queues > 1 {
        for count in [1, 2] {
            ethtool(bed, &format!("-L {INTERFACE} combined {count}"))?;
        }
        check(bed, Some(&second), &[])?;
    }
    ethtool(bed, &format!("-K {INTERFACE} rxhash off"))?;
    feature(bed, "off")?;
    check(bed, None, &[])?;
    whole(bed, form)?;
    // Off would leave no hashes to scale by, which is not how Linux begins.
    ethtool(bed, &format!("-K {INTERFACE} rxhash on")).map(|_| ())
}
