// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The user-mode uplink against stand-ins for passt that do what is wanted of them, and against
//! passt itself, where there is one: in `PATH`, or where `FERRONIC_PASST` says.
#![allow(missing_docs, reason = "a test")]

use std::fs;
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ferronic::nic::counters::DropReason;
use ferronic::nic::offload::Offloads;
use ferronic::uplink::user::UserError;
use ferronic::uplink::{
    Negotiated, OpenOptions, Received, Sent, Uplink, UplinkError, UplinkQueue, open,
};
use rustix::event::{Timespec, epoll};
use rustix::io::retry_on_intr;
use tempfile::TempDir;

mod uplink_support;
use uplink_support::*;

/// A directory with a stand-in for passt in it. The script finds the socket at descriptor `$fd`.
struct StandIn {
    directory: TempDir,
}

impl StandIn {
    fn new(script: &str) -> StandIn {
        let stand_in = StandIn {
            directory: tempfile::tempdir().unwrap(),
        };
        stand_in.becomes(script);
        stand_in
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("passt")
    }

    /// Notes its process number and goes on with `script`. Written by a process of its own, so
    /// that no other test's child holds the script open for writing when it is to be run.
    fn becomes(&self, script: &str) {
        let text = format!(
            "#!/bin/bash\nfd=$2\necho $$ >>{}\n{script}\n",
            self.directory.path().join("pids").display()
        );
        let new = self.directory.path().join("new");
        let write = "cat >\"$1\" && chmod +x \"$1\" && mv \"$1\" \"$2\"";
        let mut shell = Command::new("sh")
            .args(["-c", write, "sh"])
            .args([&new, &self.path()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = shell.stdin.take().unwrap();
        input.write_all(text.as_bytes()).unwrap();
        drop(input);
        assert!(shell.wait().unwrap().success());
    }

    fn pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.directory.path().join("pids")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    fn signal(&self, signal: &str) {
        let pid = self.pids().pop().unwrap().to_string();
        let status = Command::new("kill").args([signal, &pid]).status();
        assert!(status.unwrap().success());
    }

    fn open(&self) -> (Box<dyn Uplink>, Box<dyn UplinkQueue>, Receiver<bool>) {
        open_with(self.path(), 1).unwrap()
    }
}

const ECHO: &str = "exec cat <&$fd >&$fd";

type Opened = (Box<dyn Uplink>, Box<dyn UplinkQueue>, Receiver<bool>);

fn open_with(passt: PathBuf, queue_pairs: u16) -> Result<Opened, UserError> {
    let (tell, told) = carrier();
    let options = OpenOptions {
        queue_pairs,
        mtu: 1500,
        passt: Some(passt),
    };
    let mut uplink = match open(&"user".parse().unwrap(), &options, tell) {
        Ok(uplink) => uplink,
        Err(UplinkError::User(e)) => return Err(e),
        Err(other) => panic!("{other:?}"),
    };
    assert_eq!(uplink.offloads(), Offloads::NONE);
    let queue = uplink.take_queues().pop().unwrap();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(true));
    Ok((uplink, queue, told))
}

/// Watches a queue as a worker does.
struct Watcher(std::os::fd::OwnedFd);

impl Watcher {
    fn new(queue: &dyn UplinkQueue) -> Watcher {
        let watcher = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&watcher, queue.poll_fd().unwrap(), data, flags).unwrap();
        Watcher(watcher)
    }

    /// Whether the queue called within this time.
    fn called(&self, patience: Duration) -> bool {
        let mut events = Vec::with_capacity(4);
        let patience = Timespec::try_from(patience).unwrap();
        // A process that is stopped and goes on is interrupted.
        let called = retry_on_intr(|| {
            let room = rustix::buffer::spare_capacity(&mut events);
            epoll::wait(&self.0, room, Some(&patience))
        });
        called.unwrap() > 0
    }

    /// Waits until the queue has not called for a while.
    fn settle(&self) {
        while self.called(Duration::from_millis(100)) {}
    }
}

fn packet(header: usize, len: usize, seed: u32) -> Vec<u8> {
    [vec![0; header], pattern(len, seed)].concat()
}

/// Receives as a worker does: asks again only when the queue has called.
fn receive_next(queue: &mut dyn UplinkQueue, watcher: &Watcher) -> Vec<u8> {
    loop {
        match receive(queue) {
            Ok(packet) => return packet,
            Err(Received::Empty) => {
                queue.flush();
                assert!(watcher.called(PATIENCE), "the queue never called");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn packets_go_through_the_child_and_back() {
    let passt = StandIn::new(ECHO);
    let (uplink, mut queue, _told) = passt.open();
    let watcher = Watcher::new(&*queue);
    for header_len in [12, 10, 20] {
        let negotiated = Negotiated {
            header_len,
            receive: Offloads::NONE,
        };
        uplink.negotiate(negotiated).unwrap();
        for (i, len) in [14, 60, 1514, 9014, 65_500, 65_554].into_iter().enumerate() {
            let packet = packet(header_len, len, i as u32);
            assert_eq!(send(&mut *queue, &packet), Sent::Done);
            queue.flush();
            let mut back = receive_next(&mut *queue, &watcher);
            // The hash at the end of the longest header is not the uplink's business.
            if let Some(hash) = back.get_mut(12..header_len) {
                hash.fill(0);
            }
            assert_eq!(back, packet, "{len}");
        }
    }
}

#[test]
fn a_full_stream_is_busy_and_calls_when_there_is_room() {
    let passt = StandIn::new(ECHO);
    let (_uplink, mut queue, _told) = passt.open();
    let watcher = Watcher::new(&*queue);
    let mut next_out = 0u32;
    let mut next_in = 0u32;
    let mut busy = 0;
    let of = |i: u32| packet(12, 60 + (i as usize * 7919) % 30_000, i);
    while next_in < 3000 {
        while next_out < 3000 {
            match send(&mut *queue, &of(next_out)) {
                Sent::Done => next_out += 1,
                Sent::Busy => {
                    busy += 1;
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        queue.flush();
        // Take a few only, so that both directions fill up.
        for _ in 0..40 {
            match receive(&mut *queue) {
                Ok(packet) => {
                    assert!(packet == of(next_in), "packet {next_in}");
                    next_in += 1;
                }
                Err(Received::Empty) => {
                    if next_in < 3000 {
                        assert!(watcher.called(PATIENCE), "the queue never called");
                    }
                    break;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    assert!(busy > 0, "never full");
}

#[test]
fn room_alone_makes_the_queue_call() {
    // Reads nothing until told to.
    let script = "trap 'exec cat <&$fd >/dev/null' USR1; while :; do sleep 0.05; done";
    let passt = StandIn::new(script);
    let (_uplink, mut queue, _told) = passt.open();
    let watcher = Watcher::new(&*queue);
    let large = packet(12, 60_000, 1);
    while send(&mut *queue, &large) == Sent::Done {}
    assert_eq!(send(&mut *queue, &large), Sent::Busy);
    watcher.settle();
    passt.signal("-USR1");
    for _ in 0..20 {
        while send(&mut *queue, &large) == Sent::Busy {
            assert!(watcher.called(PATIENCE), "the queue never called");
        }
    }
}

#[test]
fn an_idle_queue_never_calls() {
    let passt = StandIn::new(ECHO);
    let (_uplink, mut queue, _told) = passt.open();
    let watcher = Watcher::new(&*queue);
    for i in 0..10 {
        let packet = packet(12, 100, i);
        assert_eq!(send(&mut *queue, &packet), Sent::Done);
        queue.flush();
        assert_eq!(receive_next(&mut *queue, &watcher), packet);
    }
    assert_eq!(receive(&mut *queue), Err(Received::Empty));
    watcher.settle();
    assert!(!watcher.called(Duration::from_millis(500)));
}

#[test]
fn what_cannot_be_sent_is_dropped_for_a_reason() {
    let passt = StandIn::new(ECHO);
    let (_uplink, mut queue, _told) = passt.open();
    let q = &mut *queue;
    let dropped = Sent::Dropped;
    assert_eq!(send(q, &[]), dropped(DropReason::TooShort));
    assert_eq!(send(q, &[0; 11]), dropped(DropReason::TooShort));
    assert_eq!(send(q, &[0; 25]), dropped(DropReason::TooShort));
    assert_eq!(send(q, &vec![0; 70_000]), dropped(DropReason::TooLong));
    let mut unfinished = packet(12, 100, 1);
    unfinished[0] = 1;
    assert_eq!(send(q, &unfinished), dropped(DropReason::BadHeader));
    unfinished[..2].copy_from_slice(&[0, 1]);
    assert_eq!(send(q, &unfinished), dropped(DropReason::BadHeader));
}

#[test]
fn a_killed_child_is_replaced_and_the_queue_calls() {
    let passt = StandIn::new(ECHO);
    let (_uplink, mut queue, told) = passt.open();
    let watcher = Watcher::new(&*queue);
    for round in 0..3 {
        let hello = packet(12, 200, round);
        assert_eq!(send(&mut *queue, &hello), Sent::Done);
        queue.flush();
        assert_eq!(receive_next(&mut *queue, &watcher), hello);
        watcher.settle();

        passt.signal("-KILL");
        assert_eq!(told.recv_timeout(PATIENCE), Ok(false));
        assert!(watcher.called(PATIENCE), "the queue never called");
        // Whether it is back already is a matter of luck.
        if told.try_recv() != Ok(true) {
            let lost = send(&mut *queue, &hello);
            assert!(matches!(
                lost,
                Sent::Dropped(DropReason::UplinkError) | Sent::Done
            ));
            assert_eq!(told.recv_timeout(PATIENCE), Ok(true));
        }
        eventually("a sent packet comes back", || {
            send(&mut *queue, &hello);
            queue.flush();
            receive(&mut *queue).is_ok_and(|back| back == hello)
        });
        while receive(&mut *queue) != Err(Received::Empty) {}
        watcher.settle();
        while receive(&mut *queue) != Err(Received::Empty) {}
    }
    assert_eq!(passt.pids().len(), 4);
}

#[test]
fn a_stream_out_of_step_ends_the_child() {
    let passt = StandIn::new(r"printf '\xff\xff\xff\xff' >&$fd; exec sleep 1000 {fd}>&-");
    let (_uplink, mut queue, told) = passt.open();
    let watcher = Watcher::new(&*queue);
    passt.becomes(ECHO);
    let lost = loop {
        match receive(&mut *queue) {
            Err(Received::Empty) => assert!(watcher.called(PATIENCE)),
            other => break other,
        }
    };
    assert_eq!(lost, Err(Received::Dropped(DropReason::UplinkError)));
    assert_eq!(receive(&mut *queue), Err(Received::Empty));
    assert_eq!(told.recv_timeout(PATIENCE), Ok(false));
    assert_eq!(told.recv_timeout(PATIENCE), Ok(true));
    let hello = packet(12, 200, 1);
    assert_eq!(send(&mut *queue, &hello), Sent::Done);
    queue.flush();
    assert_eq!(receive_next(&mut *queue, &watcher), hello);
}

#[test]
fn a_child_that_closes_its_socket_and_stays_is_replaced() {
    let passt = StandIn::new("sleep 0.3; eval \"exec $fd>&-\"; exec sleep 1000");
    let (_uplink, mut queue, told) = passt.open();
    let watcher = Watcher::new(&*queue);
    while told.try_recv().is_err() {
        let _ = watcher.called(Duration::from_millis(20));
        let _ = receive(&mut *queue);
    }
    assert_eq!(told.recv_timeout(PATIENCE), Ok(true));
    assert!(passt.pids().len() >= 2);
}

#[test]
fn a_child_that_keeps_ending_is_started_less_and_less_often() {
    let passt = StandIn::new(ECHO);
    let (_uplink, _queue, told) = passt.open();
    passt.becomes("echo 'it hurts here' >&2; exit 3");
    passt.signal("-KILL");
    assert_eq!(told.recv_timeout(PATIENCE), Ok(false));
    // 0.1, 0.2, 0.4, 0.8, 1.6 s: five starts in 3.1 s.
    std::thread::sleep(Duration::from_millis(2500));
    let starts = passt.pids().len() - 1;
    assert!((3..=4).contains(&starts), "{starts}");
    assert!(told.try_recv().is_err(), "no carrier meanwhile");
    passt.becomes(ECHO);
    assert_eq!(told.recv_timeout(PATIENCE), Ok(true));
}

#[test]
fn dropping_the_uplink_ends_the_child() {
    let passt = StandIn::new(ECHO);
    let (uplink, mut queue, _told) = passt.open();
    let pid = passt.pids().pop().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    let before = Instant::now();
    drop(uplink);
    assert!(before.elapsed() < Duration::from_secs(2));
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    let lost = send(&mut *queue, &packet(12, 60, 1));
    assert_eq!(lost, Sent::Dropped(DropReason::UplinkError));
    assert_eq!(receive(&mut *queue), Err(Received::Empty));
    queue.flush();
}

#[test]
fn a_child_that_fails_at_the_start_is_an_error_with_what_it_said() {
    for script in [
        "echo 'no such option' >&2; exit 3",
        "eval \"exec $fd>&-\"; sleep 0.1; echo 'no such option' >&2; exit 3",
    ] {
        let passt = StandIn::new(script);
        let text = match open_with(passt.path(), 1) {
            Err(e @ UserError::Ended { .. }) => e.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.contains("no such option"), "{text}");
    }
}

#[test]
fn a_missing_or_useless_passt_is_an_error_that_says_what_to_do() {
    let missing = open_with("no-such-passt-anywhere".into(), 1).unwrap_err();
    assert!(matches!(missing, UserError::NotFound(_)));
    assert!(missing.to_string().contains("apt install passt"));
    let missing = open_with("/no/such/passt".into(), 1).unwrap_err();
    assert!(missing.to_string().contains("--passt"));
    let useless = open_with("/etc/passwd".into(), 1).unwrap_err();
    assert!(matches!(useless, UserError::NotStarted { .. }));
    let pairs = open_with("passt".into(), 2).unwrap_err();
    assert!(pairs.to_string().contains("--queues 1"), "{pairs}");
}

fn real_passt() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FERRONIC_PASST") {
        return Some(path.into());
    }
    let found = std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join("passt"))
        .find(|path| path.is_file());
    if found.is_none() {
        skip("no passt in PATH; install it, or say where it is with FERRONIC_PASST");
    }
    found
}

/// A guest of passt's, as far as these tests need one.
struct Guest {
    _uplink: Box<dyn Uplink>,
    queue: Box<dyn UplinkQueue>,
    gateway: [u8; 6],
}

const ADDRESS: [u8; 4] = [10, 0, 2, 15];
const HOST: [u8; 4] = [10, 0, 2, 2];

impl Guest {
    fn out(&mut self, frame: &[u8]) {
        let packet = [&[0; 12], frame].concat();
        assert_eq!(send(&mut *self.queue, &packet), Sent::Done);
        self.queue.flush();
    }

    fn arp(&self, operation: u8, target: [u8; 6], address: [u8; 4]) -> Vec<u8> {
        let to = if operation == 1 { [0xff; 6] } else { target };
        let mut frame = [&to[..], &GUEST_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0]].concat();
        frame.push(operation);
        frame.extend([&GUEST_MAC[..], &ADDRESS, &target, &address].concat());
        frame
    }

    /// The next frame that is wanted; answers ARP meanwhile.
    fn until(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        loop {
            let packet = next(&mut *self.queue, PATIENCE, |_| true).expect("an answer");
            assert_eq!(packet[..12], [0; 12]);
            let frame = &packet[12..];
            if wanted(frame) {
                return frame.to_vec();
            }
            let asks_for_us = frame[12..14] == [8, 6] && frame[21] == 1 && frame[38..42] == ADDRESS;
            if asks_for_us {
                let to = frame[22..28].try_into().unwrap();
                let address = frame[28..32].try_into().unwrap();
                let answer = self.arp(2, to, address);
                self.out(&answer);
            }
        }
    }

    /// Makes a frame of ours one from this guest to that address.
    fn address(&self, mut frame: Vec<u8>, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        frame[..6].copy_from_slice(&self.gateway);
        readdress(&mut frame, from, to);
        frame
    }

    fn new(passt: PathBuf) -> Guest {
        let (uplink, queue, _) = open_with(passt, 1).unwrap();
        let mut guest = Guest {
            _uplink: uplink,
            queue,
            gateway: [0xff; 6],
        };
        // DHCP: discover, with the options that ask for mask, router, DNS and MTU.
        let mut discover = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0];
        discover.extend([0; 16]);
        discover.extend(GUEST_MAC);
        discover.extend([0; 202]);
        discover.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 55, 4, 1, 3, 6, 26, 255]);
        let frame = guest.address(udp(68, 67, &discover, true), [0; 4], [255; 4]);
        guest.out(&frame);
        let offer = guest.until(|f| f[12..14] == [8, 0] && f[23] == 17 && u16_at(f, L4 + 2) == 68);
        let bootp = &offer[L4 + 8..];
        assert_eq!(bootp[16..20], ADDRESS);
        let options = &bootp[240..];
        let has = |option: &[u8]| options.windows(option.len()).any(|w| w == option);
        assert!(has(&[1, 4, 255, 255, 255, 0]), "{options:?}");
        assert!(has(&[3, 4, 10, 0, 2, 2]), "{options:?}");
        assert!(has(&[26, 2, 5, 0xdc]), "the MTU: {options:?}");
        let asks = guest.arp(1, [0; 6], HOST);
        guest.out(&asks);
        let tells = guest.until(|f| f[12..14] == [8, 6] && f[21] == 2 && f[28..32] == HOST);
        guest.gateway.copy_from_slice(&tells[22..28]);
        guest
    }
}

#[test]
fn passt_gives_an_address_and_carries_datagrams() {
    let Some(passt) = real_passt() else {
        return;
    };
    let mut guest = Guest::new(passt);
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = host.local_addr().unwrap().port();
    for len in [1, 100, 1472] {
        let payload = pattern(len, 9);
        let frame = udp(4000, port, &payload, true);
        let frame = guest.address(frame, ADDRESS, HOST);
        guest.out(&frame);
        let mut got = [0; 2000];
        let (n, from) = host.recv_from(&mut got).unwrap();
        assert_eq!(got[..n], payload);
        host.send_to(&payload, from).unwrap();
        let back = guest.until(|f| f[12..14] == [8, 0] && f[23] == 17 && u16_at(f, L4 + 2) == 4000);
        assert_eq!(back[L4 + 8..L4 + 8 + len], payload);
        assert_eq!(back[30..34], ADDRESS);
    }
}

#[test]
fn passt_opens_connections() {
    let Some(passt) = real_passt() else {
        return;
    };
    let mut guest = Guest::new(passt);
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let frame = guest.address(tcp(4001, port, 77, 0, 2, &[2, 4, 5, 0xb4]), ADDRESS, HOST);
    guest.out(&frame);
    let answer = guest.until(|f| f[12..14] == [8, 0] && f[23] == 6 && u16_at(f, L4 + 2) == 4001);
    assert_eq!(answer[L4 + 13] & 0x3f, 0x12, "SYN and ACK");
    assert_eq!(u32_at(&answer, L4 + 8), 78);
    assert_eq!(l4_residue(&answer), 0);
    host.accept().unwrap();
}
