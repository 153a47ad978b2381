// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the tests of uplinks share: network namespaces, frames, and patience.
#![allow(dead_code, missing_docs, reason = "each test uses its part")]

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ferronic::ring::pieces::{Pieces, PiecesMut};
use ferronic::uplink::{MAX_PACKET, OnCarrier, Received, Sent, UplinkQueue};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub const PATIENCE: Duration = Duration::from_secs(10);

/// Says that a test did not run, so that it is seen even when tests pass.
pub fn skip(why: &str) {
    let name = thread::current().name().unwrap_or("?").to_owned();
    let _ = writeln!(io::stderr(), "SKIPPED {name}: {why}");
}

/// Runs `test` in a network namespace of its own, where that is permitted.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if let Err(e) = std::fs::File::open("/dev/net/tun") {
        return skip(&format!("/dev/net/tun: {e}"));
    }
    let name = thread::current().name().unwrap_or("?").to_owned();
    let runner = thread::Builder::new().name(name).spawn(|| {
        // SAFETY: only the network namespace of this thread changes, which no descriptor or
        // memory depends on.
        match unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) } {
            Ok(()) => {
                // Keeps the kernel's own chatter off the wire.
                let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
                ip("link set lo up");
                test();
            }
            Err(e) => skip(&format!("no network namespace (are you root?): {e}")),
        }
    });
    if let Err(panic) = runner.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the namespace of this thread.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("iproute2 is needed");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A carrier callback, and what it was told.
pub fn carrier() -> (OnCarrier, mpsc::Receiver<bool>) {
    let (tell, told) = mpsc::channel();
    (Arc::new(move |up| tell.send(up).unwrap()), told)
}

pub fn send(queue: &mut dyn UplinkQueue, packet: &[u8]) -> Sent {
    Pieces::with_bytes(packet, |packet| queue.send(packet))
}

pub fn receive(queue: &mut dyn UplinkQueue) -> Result<Vec<u8>, Received> {
    let mut room = vec![0xaa; MAX_PACKET];
    match PiecesMut::with_bytes(&mut room, |mut room| queue.receive(&mut room)) {
        Received::Packet(len) => {
            room.truncate(len);
            Ok(room)
        }
        other => Err(other),
    }
}

/// The next packet that `wanted` accepts.
pub fn next(
    queue: &mut dyn UplinkQueue,
    patience: Duration,
    wanted: impl Fn(&[u8]) -> bool,
) -> Option<Vec<u8>> {
    let end = Instant::now() + patience;
    loop {
        match receive(queue) {
            Ok(packet) if wanted(&packet) => return Some(packet),
            Ok(_) => {}
            Err(Received::Empty) => {
                let left = end.checked_duration_since(Instant::now())?;
                let timeout = Timespec::try_from(left).unwrap();
                let fd = queue.poll_fd().expect("something to wait for");
                poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const HOST_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// Where things lie in a frame of ours: Ethernet, IPv4 without options, UDP or TCP.
pub const IP: usize = 14;
pub const L4: usize = IP + 20;

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// An Ethernet frame from guest to host with an IPv4 packet that has its checksum, and `l4` with
/// none yet.
fn frame(protocol: u8, l4: &[u8]) -> Vec<u8> {
    let mut f = [&HOST_MAC[..], &GUEST_MAC, &[8, 0]].concat();
    f.extend([0x45, 0]);
    f.extend(u16::try_from(20 + l4.len()).unwrap().to_be_bytes());
    f.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    f.extend(GUEST_IP.octets());
    f.extend(HOST_IP.octets());
    let check = !fold(sum(&f[IP..L4]));
    f[IP + 10..IP + 12].copy_from_slice(&check.to_be_bytes());
    f.extend(l4);
    f
}

/// The checksum over pseudo header and `len` octets from L4 on.
fn pseudo(frame: &[u8]) -> u32 {
    sum(&frame[IP + 12..L4]) + u32::from(frame[IP + 9]) + (frame.len() - L4) as u32
}

/// What the L4 checksum of `frame` comes to: 0 when it is right.
pub fn l4_residue(frame: &[u8]) -> u16 {
    !fold(pseudo(frame) + sum(&frame[L4..]))
}

fn with_checksum(mut frame: Vec<u8>, at: usize, finished: bool) -> Vec<u8> {
    let value = if finished {
        match l4_residue(&frame) {
            0 => 0xffff,
            other => other,
        }
    } else {
        fold(pseudo(&frame))
    };
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
    frame
}

/// A UDP datagram from guest to host; unfinished ones hold the pseudo header's sum only.
pub fn udp(from: u16, to: u16, payload: &[u8], finished: bool) -> Vec<u8> {
    let mut l4 = [from.to_be_bytes(), to.to_be_bytes()].concat();
    l4.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    l4.extend([0, 0]);
    l4.extend(payload);
    with_checksum(frame(17, &l4), L4 + 6, finished)
}

/// Gives a finished frame other addresses, and the checksums that go with them.
pub fn readdress(frame: &mut Vec<u8>, from: [u8; 4], to: [u8; 4]) {
    frame[IP + 12..IP + 16].copy_from_slice(&from);
    frame[IP + 16..IP + 20].copy_from_slice(&to);
    frame[IP + 10..IP + 12].copy_from_slice(&[0, 0]);
    let check = !fold(sum(&frame[IP..L4]));
    frame[IP + 10..IP + 12].copy_from_slice(&check.to_be_bytes());
    let at = L4 + if frame[IP + 9] == 17 { 6 } else { 16 };
    frame[at..at + 2].copy_from_slice(&[0, 0]);
    *frame = with_checksum(std::mem::take(frame), at, true);
}

/// A TCP segment from guest to host.
pub fn tcp(from: u16, to: u16, seq: u32, ack: u32, flags: u8, options: &[u8]) -> Vec<u8> {
    let mut l4 = [from.to_be_bytes(), to.to_be_bytes()].concat();
    l4.extend(seq.to_be_bytes());
    l4.extend(ack.to_be_bytes());
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    l4.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    l4.extend(options);
    with_checksum(frame(6, &l4), L4 + 16, true)
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Whether `packet`, behind `header` octets, is IPv4 of this protocol to the guest's port.
pub fn is_to(packet: &[u8], header: usize, protocol: u8, port: u16) -> bool {
    packet.get(header..).is_some_and(|f| {
        f.len() >= L4 + 8
            && f[12..14] == [8, 0]
            && f[IP + 9] == protocol
            && u16_at(f, L4 + 2) == port
    })
}

/// Octets that do not repeat soon.
pub fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

/// Waits until `done`, asking now and then.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "never happened: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
