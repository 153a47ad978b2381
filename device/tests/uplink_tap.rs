// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The tap uplink against the kernel's own network stack, each test in a network namespace of its
//! own. Needs root.
#![allow(missing_docs, reason = "a test")]

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use ferronic::nic::counters::DropReason;
use ferronic::nic::offload::Offloads;
use ferronic::ring::pieces::PiecesMut;
use ferronic::uplink::tap::TapErrorKind;
use ferronic::uplink::{
    Negotiated, OpenOptions, Received, Sent, Uplink, UplinkError, UplinkQueue, open,
};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::retry_on_intr;

mod uplink_support;
use uplink_support::*;

const UDP: u8 = 17;
const TCP: u8 = 6;

fn make_tap(options: &str) {
    ip(&format!("tuntap add dev fer0 mode tap {options}"));
    ip("link set fer0 address 02:00:00:00:00:01");
    ip("address add 10.99.0.1/24 dev fer0");
    ip("link set fer0 up");
    ip("neighbour add 10.99.0.2 lladdr 02:00:00:00:00:02 dev fer0 nud permanent");
}

fn try_open(queue_pairs: u16) -> Result<Box<dyn Uplink>, UplinkError> {
    let options = OpenOptions {
        queue_pairs,
        mtu: 1500,
        passt: None,
    };
    open(&"tap:fer0".parse().unwrap(), &options, carrier().0)
}

fn kind_of(result: Result<Box<dyn Uplink>, UplinkError>) -> (TapErrorKind, String) {
    let error = result.expect_err("must not open");
    let text = error.to_string();
    match error {
        UplinkError::Tap(e) => (e.kind, text),
        #[allow(unreachable_patterns, reason = "other uplinks have other errors")]
        other => panic!("{other:?}"),
    }
}

fn open_one(header_len: usize, receive: Offloads) -> (Box<dyn Uplink>, Box<dyn UplinkQueue>) {
    let mut tap = try_open(1);
    // A tap that was just closed may live on for a moment in a process that another test forked.
    eventually("the tap opens", || {
        if matches!(&tap, Err(UplinkError::Tap(e)) if matches!(e.kind, TapErrorKind::Busy { .. })) {
            tap = try_open(1);
        }
        tap.is_ok()
    });
    let mut tap = tap.unwrap();
    tap.negotiate(Negotiated {
        header_len,
        receive,
    })
    .unwrap();
    let queue = tap.take_queues().pop().unwrap();
    (tap, queue)
}

fn host_socket() -> UdpSocket {
    let socket = UdpSocket::bind(SocketAddrV4::new(HOST_IP, 5000)).unwrap();
    socket.connect(SocketAddrV4::new(GUEST_IP, 6000)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn next_udp(queue: &mut dyn UplinkQueue, header: usize) -> Vec<u8> {
    next(queue, PATIENCE, |p| is_to(p, header, UDP, 6000)).expect("a datagram")
}

#[test]
fn packets_cross_unchanged_both_ways_with_any_header() {
    in_namespace(|| {
        make_tap("");
        for header in [10, 12, 20] {
            let (_tap, mut queue) = open_one(header, Offloads::NONE);
            let socket = host_socket();
            for len in [0, 1, 2, 1000, 1471, 1472] {
                let payload = pattern(len, header as u32);
                socket.send(&payload).unwrap();
                let packet = next_udp(&mut *queue, header);
                assert_eq!(packet.len(), header + L4 + 8 + len);
                assert_eq!(packet[..10], [0; 10], "nothing is left to do");
                assert_eq!(packet[header..header + 6], GUEST_MAC);
                assert_eq!(l4_residue(&packet[header..]), 0);
                assert_eq!(packet[header + L4 + 8..], payload);

                let frame = udp(6000, 5000, &payload, true);
                let out = [&vec![0; header], &frame[..]].concat();
                assert_eq!(send(&mut *queue, &out), Sent::Done);
                let mut back = [0; 2000];
                let got = socket.recv(&mut back).unwrap();
                assert_eq!(back[..got], payload);
            }
        }
    });
}

#[test]
fn checksums_are_left_to_whom_agreed_to_do_them() {
    in_namespace(|| {
        make_tap("");
        let (tap, mut queue) = open_one(12, Offloads::CSUM);
        let socket = host_socket();
        assert!(tap.offloads().contains(Offloads::CSUM));
        socket.send(b"unfinished").unwrap();
        let packet = next_udp(&mut *queue, 12);
        // NEEDS_CSUM, no GSO, csum_start, csum_offset, all little-endian.
        assert_eq!(packet[..2], [1, 0]);
        assert_eq!(packet[6..10], [L4 as u8, 0, 6, 0]);
        assert_ne!(l4_residue(&packet[12..]), 0);

        let frame = udp(6000, 5000, b"finish this", false);
        let header = [1, 0, 0, 0, 0, 0, L4 as u8, 0, 6, 0, 0, 0];
        assert_eq!(
            send(&mut *queue, &[&header, &frame[..]].concat()),
            Sent::Done
        );
        let mut back = [0; 100];
        let got = socket.recv(&mut back).unwrap();
        assert_eq!(&back[..got], b"finish this");

        // The driver changes its mind.
        tap.negotiate(Negotiated {
            header_len: 12,
            receive: Offloads::NONE,
        })
        .unwrap();
        socket.send(b"finished").unwrap();
        let packet = next_udp(&mut *queue, 12);
        assert_eq!(packet[..10], [0; 10]);
        assert_eq!(l4_residue(&packet[12..]), 0);
    });
}

#[test]
fn udp_segmentation_is_left_to_whom_agreed_to_do_it() {
    in_namespace(|| {
        make_tap("");
        let uso = Offloads::CSUM | Offloads::USO4 | Offloads::USO6;
        let (tap, mut queue) = open_one(12, uso);
        if !tap.offloads().contains(uso) {
            return skip("this kernel's tap has no UDP segmentation");
        }
        let socket = host_socket();
        let size: libc::c_int = 1000;
        // SAFETY: the option takes an int.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                (&raw const size).cast(),
                size_of_val(&size) as libc::socklen_t,
            )
        };
        assert_eq!(set, 0);
        let payload = pattern(7500, 7);
        socket.send(&payload).unwrap();
        let packet = next_udp(&mut *queue, 12);
        assert_eq!(packet.len(), 12 + L4 + 8 + payload.len(), "in one piece");
        assert_eq!(packet[..2], [1, 5], "checksum and UDP segmentation to do");
        assert_eq!(packet[4..6], 1000u16.to_le_bytes(), "the segments' size");
        assert_eq!(packet[12 + L4 + 8..], payload);

        // The same the other way: the host gets the segments.
        let frame = udp(6000, 5000, &payload, false);
        let header = [1, 5, L4 as u8 + 8, 0, 0xe8, 3, L4 as u8, 0, 6, 0, 0, 0];
        assert_eq!(
            send(&mut *queue, &[&header, &frame[..]].concat()),
            Sent::Done
        );
        for chunk in payload.chunks(1000) {
            let mut back = [0; 2000];
            let got = socket.recv(&mut back).unwrap();
            assert_eq!(&back[..got], chunk);
        }

        tap.negotiate(Negotiated {
            header_len: 12,
            receive: Offloads::CSUM,
        })
        .unwrap();
        socket.send(&payload).unwrap();
        for chunk in payload.chunks(1000) {
            let packet = next_udp(&mut *queue, 12);
            assert_eq!(packet[1], 0);
            assert_eq!(&packet[12 + L4 + 8..], chunk);
        }
    });
}

/// Plays the guest's side of a TCP connection to which the host writes `payload`; returns the
/// packets that it arrived in, headers included.
fn stream_from_host(queue: &mut dyn UplinkQueue, payload: Vec<u8>) -> Vec<Vec<u8>> {
    let len = payload.len();
    let host = thread::spawn(move || {
        let mut stream = TcpStream::connect(SocketAddrV4::new(GUEST_IP, 6000)).unwrap();
        stream.write_all(&payload).unwrap();
        let _ = stream.read(&mut [0; 1]);
    });
    let tcp_to_us = |p: &[u8]| is_to(p, 12, TCP, 6000);
    let out = |queue: &mut dyn UplinkQueue, frame: Vec<u8>| {
        let packet = [&[0; 12], &frame[..]].concat();
        assert_eq!(send(queue, &packet), Sent::Done);
    };
    let syn = next(queue, PATIENCE, tcp_to_us).expect("SYN");
    let port = u16_at(&syn, 12 + L4);
    let first = u32_at(&syn, 12 + L4 + 4).wrapping_add(1);
    const SYN_ACK: u8 = 0x12;
    const ACK: u8 = 0x10;
    const RST_ACK: u8 = 0x14;
    // Options: MSS 1460, and the window counted in units of 128.
    let options = [2, 4, 5, 0xb4, 1, 3, 3, 7];
    out(queue, tcp(6000, port, 1000, first, SYN_ACK, &options));
    let mut got = 0;
    let mut packets = Vec::new();
    while got < len {
        let packet = next(queue, PATIENCE, tcp_to_us).expect("data");
        let l4 = 12 + L4;
        let data = l4 + usize::from(packet[l4 + 12] >> 4) * 4;
        let at = u32_at(&packet, l4 + 4).wrapping_sub(first) as usize;
        if packet.len() > data && at == got {
            got += packet.len() - data;
            packets.push(packet);
            let ack = first.wrapping_add(got as u32);
            out(queue, tcp(6000, port, 1001, ack, ACK, &[]));
        }
    }
    let ack = first.wrapping_add(got as u32);
    out(queue, tcp(6000, port, 1001, ack, RST_ACK, &[]));
    host.join().unwrap();
    packets
}

#[test]
fn tcp_segmentation_is_left_to_whom_agreed_to_do_it() {
    in_namespace(|| {
        make_tap("");
        let payload = pattern(40_000, 3);
        let joined = |packets: &[Vec<u8>]| {
            packets
                .iter()
                .flat_map(|p| {
                    let l4 = 12 + L4;
                    p[l4 + usize::from(p[l4 + 12] >> 4) * 4..].to_vec()
                })
                .collect::<Vec<u8>>()
        };
        let (_tap, mut queue) = open_one(12, Offloads::CSUM | Offloads::TSO4 | Offloads::ECN);
        let packets = stream_from_host(&mut *queue, payload.clone());
        assert_eq!(joined(&packets), payload);
        let large = packets.iter().find(|p| p.len() > 12 + 1514);
        let large = large.expect("frames above the MTU");
        assert_eq!(large[..2], [1, 1], "checksum and TCP segmentation to do");
        drop((_tap, queue));

        let (_tap, mut queue) = open_one(12, Offloads::NONE);
        let packets = stream_from_host(&mut *queue, payload.clone());
        assert_eq!(joined(&packets), payload);
        for packet in packets {
            assert!(packet.len() <= 12 + 1514);
            assert_eq!(packet[..10], [0; 10]);
            assert_eq!(l4_residue(&packet[12..]), 0);
        }
    });
}

#[test]
fn what_the_kernel_cannot_take_is_dropped_for_a_reason() {
    in_namespace(|| {
        make_tap("");
        let (_tap, mut queue) = open_one(12, Offloads::NONE);
        let dropped = |reason| Sent::Dropped(reason);
        for len in [0, 1, 11, 12, 25] {
            let sent = send(&mut *queue, &vec![0; len]);
            assert_eq!(sent, dropped(DropReason::TooShort), "{len}");
        }
        let mut bad = udp(6000, 5000, b"x", true);
        // A segmentation type that does not exist.
        bad.splice(0..0, [0, 0x7f, 54, 0, 100, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(send(&mut *queue, &bad), dropped(DropReason::BadHeader));
        // A header length beyond the frame.
        bad.splice(0..12, [0, 1, 255, 255, 100, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(send(&mut *queue, &bad), dropped(DropReason::BadHeader));
    });
}

#[test]
fn a_packet_cut_to_the_room_is_noticed() {
    in_namespace(|| {
        make_tap("");
        let (_tap, mut queue) = open_one(12, Offloads::NONE);
        let socket = host_socket();
        socket.send(&[7; 1000]).unwrap();
        socket.send(b"after").unwrap();
        let mut small = [0; 500];
        let mut cut = |queue: &mut dyn UplinkQueue| {
            PiecesMut::with_bytes(&mut small, |mut room| queue.receive(&mut room))
        };
        let mut received = cut(&mut *queue);
        while matches!(received, Received::Packet(_)) {
            received = cut(&mut *queue);
        }
        assert_eq!(received, Received::Dropped(DropReason::TooLong));
        assert!(next_udp(&mut *queue, 12).ends_with(b"after"));
    });
}

#[test]
fn queues_take_part_as_they_are_told() {
    in_namespace(|| {
        make_tap("multi_queue");
        let mut tap = try_open(2).unwrap();
        let mut queues = tap.take_queues();
        assert!(tap.take_queues().is_empty());
        let (mut second, mut first) = (queues.pop().unwrap(), queues.pop().unwrap());
        let socket = host_socket();
        let ports: Vec<u16> = (6001..6033).collect();
        // The flow's other direction teaches the kernel which queue it belongs to.
        let out = |queue: &mut dyn UplinkQueue, port: u16| {
            let frame = udp(port, 5000, b"teach", true);
            assert_eq!(send(queue, &[&[0; 12], &frame[..]].concat()), Sent::Done);
        };
        let socket_to = |port| {
            socket
                .send_to(&port_text(port), SocketAddrV4::new(GUEST_IP, port))
                .unwrap();
        };
        fn port_text(port: u16) -> Vec<u8> {
            port.to_string().into_bytes()
        }
        let arrives = |queue: &mut dyn UplinkQueue, port: u16, patience: u64| {
            next(queue, Duration::from_millis(patience), |p| {
                is_to(p, 12, UDP, port) && p.ends_with(&port_text(port))
            })
            .is_some()
        };
        rustix::net::connect_unspec(&socket).unwrap();

        // Only the first takes part at the start, yet both send.
        for &port in &ports {
            out(&mut *second, port);
            socket_to(port);
            assert!(arrives(&mut *first, port, 10_000), "{port}");
        }
        assert_eq!(receive(&mut *second), Err(Received::Empty));

        second.set_active(true).unwrap();
        second.set_active(true).unwrap();
        for &port in &ports {
            out(&mut *second, port);
            socket_to(port);
            assert!(arrives(&mut *second, port, 10_000), "{port}");
        }
        second.set_active(false).unwrap();
        for &port in &ports {
            socket_to(port);
            assert!(arrives(&mut *first, port, 10_000), "{port}");
        }
        // The first cannot be taken out.
        first.set_active(false).unwrap();
        socket_to(7777);
        assert!(arrives(&mut *first, 7777, 10_000));
    });
}

#[test]
fn a_multi_queue_tap_serves_a_single_queue_too() {
    in_namespace(|| {
        make_tap("multi_queue");
        let (_tap, mut queue) = open_one(12, Offloads::NONE);
        host_socket().send(b"hello").unwrap();
        assert!(next_udp(&mut *queue, 12).ends_with(b"hello"));
    });
}

#[test]
fn a_pulled_cable_shows_as_no_carrier() {
    in_namespace(|| {
        make_tap("");
        let (tell, told) = carrier();
        let options = OpenOptions {
            queue_pairs: 1,
            mtu: 1500,
            passt: None,
        };
        let tap = open(&"tap:fer0".parse().unwrap(), &options, tell).unwrap();
        assert!(told.recv_timeout(PATIENCE).unwrap());
        for _ in 0..3 {
            tap.set_link(false).unwrap();
            assert!(ip("-o link show fer0").contains("NO-CARRIER"));
            tap.set_link(true).unwrap();
            assert!(!ip("-o link show fer0").contains("NO-CARRIER"));
        }
        // That was our doing, and is no news of the uplink.
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
    });
}

#[test]
fn taking_the_interface_down_is_noticed_and_so_is_deleting_it() {
    in_namespace(|| {
        make_tap("");
        let (tell, told) = carrier();
        let options = OpenOptions {
            queue_pairs: 1,
            mtu: 1500,
            passt: None,
        };
        let mut tap = open(&"tap:fer0".parse().unwrap(), &options, tell).unwrap();
        let mut queue = tap.take_queues().pop().unwrap();
        let watched = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let edges = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&watched, queue.poll_fd().unwrap(), data, edges).unwrap();
        assert!(told.recv_timeout(PATIENCE).unwrap());

        let frame = udp(6000, 5000, b"x", true);
        let packet = [&[0; 12], &frame[..]].concat();
        assert_eq!(send(&mut *queue, &packet), Sent::Done);
        ip("link set fer0 down");
        assert!(!told.recv_timeout(PATIENCE).unwrap());
        let lost = Sent::Dropped(DropReason::UplinkError);
        assert_eq!(send(&mut *queue, &packet), lost);
        ip("link set fer0 up");
        assert!(told.recv_timeout(PATIENCE).unwrap());
        assert_eq!(send(&mut *queue, &packet), Sent::Done);

        ip("link delete fer0");
        assert!(!told.recv_timeout(PATIENCE).unwrap());
        assert_eq!(send(&mut *queue, &packet), lost);
        assert_eq!(receive(&mut *queue), Err(Received::Empty));
        // A worker that waits for the descriptor is told, and then sleeps.
        let mut events = Vec::with_capacity(4);
        let moment = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        let mut wakes = 0;
        let wake = |events: &mut Vec<epoll::Event>| {
            // A process that is stopped and goes on is interrupted.
            retry_on_intr(|| epoll::wait(&watched, spare_capacity(events), Some(&moment))).unwrap()
        };
        while wake(&mut events) > 0 {
            wakes += 1;
            assert!(wakes < 10, "a busy loop");
            assert_eq!(receive(&mut *queue), Err(Received::Empty));
            events.clear();
        }
        assert!(wakes > 0);
        // Kept for the next.
        tap.set_link(false).unwrap();
        thread::sleep(Duration::from_millis(100));
        assert!(!ip("link").contains("fer0"), "it was deleted to be gone");
    });
}

#[test]
fn an_interface_made_again_is_taken_and_told_what_the_one_before_was() {
    in_namespace(|| {
        for (options, queue_pairs) in [("", 1), ("multi_queue", 1), ("multi_queue", 2)] {
            make_tap(options);
            let (tell, told) = carrier();
            let open_options = OpenOptions {
                queue_pairs,
                mtu: 1500,
                passt: None,
            };
            let mut tap = open(&"tap:fer0".parse().unwrap(), &open_options, tell).unwrap();
            let mut queues = tap.take_queues();
            assert!(told.recv_timeout(PATIENCE).unwrap());
            let negotiate = |header_len, receive| {
                tap.negotiate(Negotiated {
                    header_len,
                    receive,
                })
                .unwrap();
            };
            // Each of these is another than what a new interface has.
            negotiate(12, Offloads::CSUM);
            if let Some(second) = queues.get_mut(1) {
                second.set_active(true).unwrap();
            }
            let socket = host_socket();
            let moment = Duration::from_millis(100);
            socket.set_read_timeout(Some(moment)).unwrap();
            for round in 0..3 {
                let header = [12, 10, 20][round];
                ip("link delete fer0");
                assert!(!told.recv_timeout(PATIENCE).unwrap());
                let frame = udp(6000, 5000, b"out", true);
                let packet = [&vec![0; header], &frame[..]].concat();
                for queue in &mut queues {
                    let lost = Sent::Dropped(DropReason::UplinkError);
                    assert_eq!(send(&mut **queue, &packet), lost);
                    assert_eq!(receive(&mut **queue), Err(Received::Empty));
                }
                // What is said while it is gone counts, too.
                if round > 0 {
                    negotiate(header, [Offloads::NONE, Offloads::CSUM][round - 1]);
                    tap.set_link(false).unwrap();
                }
                make_tap(options);
                assert!(told.recv_timeout(PATIENCE).unwrap());
                if round > 0 {
                    assert!(ip("-o link show fer0").contains("NO-CARRIER"));
                    tap.set_link(true).unwrap();
                }
                // The kernel takes its time to notice a carrier.
                for queue in &mut queues {
                    let mut back = [0; 3];
                    eventually("what was sent", || {
                        assert_eq!(send(&mut **queue, &packet), Sent::Done);
                        socket.recv(&mut back).is_ok()
                    });
                    assert_eq!(back, *b"out");
                }
                // The flow was last seen on the last queue that gets packets.
                let active = if round < 2 { queue_pairs } else { 1 };
                let queue = &mut *queues[usize::from(active) - 1];
                let mut packet = None;
                eventually("a datagram", || {
                    socket.send(b"in").unwrap();
                    packet = next(queue, moment, |p| is_to(p, header, UDP, 6000));
                    packet.is_some()
                });
                let packet = packet.unwrap();
                let unfinished = header != 10;
                assert_eq!(packet[0], u8::from(unfinished), "a checksum is left to do");
                assert_eq!(l4_residue(&packet[header..]) != 0, unfinished);
                assert!(packet.ends_with(b"in"));
                if round == 1
                    && let Some(second) = queues.get_mut(1)
                {
                    second.set_active(false).unwrap();
                }
            }
            drop((tap, queues));
            ip("link delete fer0");
        }
    });
}

#[test]
fn one_that_will_not_do_is_not_taken_and_the_next_that_will_is() {
    in_namespace(|| {
        make_tap("multi_queue");
        let (tell, told) = carrier();
        let options = OpenOptions {
            queue_pairs: 2,
            mtu: 1500,
            passt: None,
        };
        let mut tap = open(&"tap:fer0".parse().unwrap(), &options, tell).unwrap();
        let mut queue = tap.take_queues().swap_remove(0);
        assert!(told.recv_timeout(PATIENCE).unwrap());
        for bad in ["mode tun", "mode tap"] {
            ip("link delete fer0");
            ip(&format!("tuntap add dev fer0 {bad}"));
            ip("link set fer0 up");
        }
        assert!(!told.recv_timeout(PATIENCE).unwrap());
        assert!(told.recv_timeout(Duration::from_millis(200)).is_err());
        let frame = udp(6000, 5000, b"x", true);
        let packet = [&[0; 12], &frame[..]].concat();
        let lost = Sent::Dropped(DropReason::UplinkError);
        assert_eq!(send(&mut *queue, &packet), lost);
        ip("link delete fer0");
        make_tap("multi_queue");
        assert!(told.recv_timeout(PATIENCE).unwrap());
        assert_eq!(send(&mut *queue, &packet), Sent::Done);
    });
}

#[test]
fn a_tap_that_is_down_at_the_start_says_so() {
    in_namespace(|| {
        make_tap("");
        ip("link set fer0 down");
        let (tell, told) = carrier();
        let options = OpenOptions {
            queue_pairs: 1,
            mtu: 1500,
            passt: None,
        };
        let _tap = open(&"tap:fer0".parse().unwrap(), &options, tell).unwrap();
        assert_eq!(told.try_recv(), Ok(false));
    });
}

#[test]
fn a_missing_tap_is_made_and_goes_again() {
    in_namespace(|| {
        let tap = try_open(2).unwrap();
        assert!(ip("-d link show fer0").contains("multi_queue"));
        drop(tap);
        eventually("the tap goes", || !ip("link").contains("fer0"));
    });
}

#[test]
fn a_tap_in_use_is_refused_with_the_user_named() {
    in_namespace(|| {
        make_tap("");
        let _tap = try_open(1).unwrap();
        let (kind, text) = kind_of(try_open(1));
        assert!(matches!(kind, TapErrorKind::Busy { .. }), "{text}");
        assert!(text.contains(&std::process::id().to_string()), "{text}");
    });
}

#[test]
fn a_single_queue_tap_is_refused_for_two_with_the_command_that_helps() {
    in_namespace(|| {
        make_tap("");
        for _held in [None, try_open(1).ok()] {
            let (kind, text) = kind_of(try_open(2));
            assert!(matches!(kind, TapErrorKind::SingleQueue), "{text}");
            assert!(text.contains("ip tuntap add dev fer0 mode tap multi_queue"));
        }
    });
}

#[test]
fn an_interface_that_is_no_tap_is_refused() {
    in_namespace(|| {
        ip("tuntap add dev fer0 mode tun");
        for queues in [1, 2] {
            let (kind, text) = kind_of(try_open(queues));
            assert!(matches!(kind, TapErrorKind::NotTap), "{text}");
        }
    });
}

#[test]
fn impossible_numbers_of_queues_are_refused() {
    in_namespace(|| {
        make_tap("multi_queue");
        for queues in [0, 257, 300] {
            let (kind, text) = kind_of(try_open(queues));
            assert!(matches!(kind, TapErrorKind::QueueCount), "{text}");
        }
    });
}

#[test]
fn without_privilege_the_command_that_makes_the_tap_is_told() {
    in_namespace(|| {
        rustix::thread::set_capabilities(
            None,
            rustix::thread::CapabilitySets {
                effective: rustix::thread::CapabilitySet::empty(),
                permitted: rustix::thread::capabilities(None).unwrap().permitted,
                inheritable: rustix::thread::CapabilitySet::empty(),
            },
        )
        .unwrap();
        let (kind, text) = kind_of(try_open(2));
        assert!(matches!(kind, TapErrorKind::Missing), "{text}");
        assert!(text.contains("ip tuntap add dev fer0 mode tap multi_queue user"));
        // `ip` is run anew with all of root's privileges.
        ip("tuntap add dev fer0 mode tap user 12345");
        let (kind, text) = kind_of(try_open(1));
        assert!(matches!(kind, TapErrorKind::NotOwner), "{text}");
    });
}
