// SPDX-License-Identifier: Apache-2.0 OR MIT

use super::*;

fn cable(header_len: usize, receive: Offloads) -> (Loopback, Box<dyn UplinkQueue>) {
    let mut cable = Loopback::open(1, &(Arc::new(|up: bool| assert!(up)) as OnCarrier));
    cable
        .negotiate(Negotiated {
            header_len,
            receive,
        })
        .unwrap();
    let queue = cable.take_queues().pop().unwrap();
    (cable, queue)
}

fn send(queue: &mut dyn UplinkQueue, packet: &[u8]) -> Sent {
    Pieces::with_bytes(packet, |p| queue.send(p))
}

fn receive(queue: &mut dyn UplinkQueue) -> Result<Vec<u8>, Received> {
    let mut room = vec![0xaa; MAX_PACKET];
    match PiecesMut::with_bytes(&mut room, |mut r| queue.receive(&mut r)) {
        Received::Packet(len) => Ok(room[..len].to_vec()),
        other => Err(other),
    }
}

fn frame(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_add(i as u8)).collect()
}

const NEEDS_CSUM: [u8; 12] = [1, 0, 0, 0, 0, 0, 20, 0, 6, 0, 0, 0];

#[test]
fn packets_come_back_in_order_with_any_header() {
    for header in [10, 12, 20] {
        let (_cable, mut queue) = cable(header, Offloads::NONE);
        for len in [14, 60, 1514, 65550] {
            let packet = [vec![0; header], frame(len as u8, len)].concat();
            assert_eq!(send(&mut *queue, &packet), Sent::Done);
        }
        for len in [14, 60, 1514, 65550] {
            let mut packet = [vec![0; header], frame(len as u8, len)].concat();
            // The hash is others' business.
            if let Some(hash) = packet.get_mut(12..header) {
                hash.fill(0xaa);
            }
            assert_eq!(receive(&mut *queue), Ok(packet));
        }
        assert_eq!(receive(&mut *queue), Err(Received::Empty));
    }
}

#[test]
fn a_partial_checksum_is_kept_or_completed_as_the_driver_accepts() {
    let frame = frame(3, 61);
    let packet = [&NEEDS_CSUM, &frame[..]].concat();
    let (cable, mut queue) = cable(12, Offloads::CSUM);
    assert_eq!(send(&mut *queue, &packet), Sent::Done);
    assert_eq!(receive(&mut *queue), Ok(packet.clone()));

    // The driver changes its mind while one waits, and takes the short header from now on.
    assert_eq!(send(&mut *queue, &packet), Sent::Done);
    cable
        .negotiate(Negotiated {
            header_len: 10,
            receive: Offloads::NONE,
        })
        .unwrap();
    let mut complete = frame;
    assert!(complete_checksum(&mut complete, 20, 6));
    let expected = [vec![0; 10], complete].concat();
    assert_eq!(receive(&mut *queue), Ok(expected));
}

#[test]
fn flags_that_only_a_device_may_set_do_not_come_back() {
    let (_cable, mut queue) = cable(12, Offloads::CSUM);
    // DATA_VALID, RSC_INFO, an unknown flag, and fields that mean nothing without a flag.
    let header = [0x86, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
    assert_eq!(
        send(&mut *queue, &[&header, &frame(1, 60)[..]].concat()),
        Sent::Done
    );
    assert_eq!(receive(&mut *queue).unwrap()[..12], [0; 12]);
}

#[test]
fn what_cannot_be_is_dropped_for_a_reason() {
    let (_cable, mut queue) = cable(12, Offloads::NONE);
    let sent = |queue: &mut dyn UplinkQueue, header: [u8; 12], len| {
        send(queue, &[&header, &frame(0, len)[..]].concat())
    };
    let dropped = Sent::Dropped;
    let q = &mut *queue;
    assert_eq!(sent(q, [0; 12], 13), dropped(DropReason::TooShort));
    assert_eq!(send(q, &[0; 5]), dropped(DropReason::TooShort));
    assert_eq!(send(q, &[]), dropped(DropReason::TooShort));
    assert_eq!(sent(q, [0; 12], MAX_PACKET), dropped(DropReason::TooLong));
    // The checksum outside the frame, and segmentation, which is not offered.
    assert_eq!(sent(q, NEEDS_CSUM, 27), dropped(DropReason::BadHeader));
    let segment = [1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0];
    assert_eq!(sent(q, segment, 1000), dropped(DropReason::BadHeader));
    assert_eq!(receive(q), Err(Received::Empty));

    assert_eq!(sent(q, [0; 12], 100), Sent::Done);
    let mut small = [0; 111];
    let received = PiecesMut::with_bytes(&mut small, |mut r| q.receive(&mut r));
    assert_eq!(received, Received::Dropped(DropReason::TooLong));
    assert_eq!(receive(q), Err(Received::Empty));
}

#[test]
fn a_full_queue_is_busy_until_packets_are_taken() {
    let (_cable, mut queue) = cable(12, Offloads::NONE);
    let small = [0; 12 + 60];
    for _ in 0..MOST_PACKETS {
        assert_eq!(send(&mut *queue, &small), Sent::Done);
    }
    assert_eq!(send(&mut *queue, &small), Sent::Busy);
    receive(&mut *queue).unwrap();
    assert_eq!(send(&mut *queue, &small), Sent::Done);
    assert_eq!(send(&mut *queue, &small), Sent::Busy);
    queue.set_active(false).unwrap();
    assert_eq!(receive(&mut *queue), Err(Received::Empty));

    let large = vec![0; 12 + 65550];
    let mut taken = 0;
    while send(&mut *queue, &large) == Sent::Done {
        taken += 1;
    }
    assert!((2..=8).contains(&taken), "bounded by octets: {taken}");
}
