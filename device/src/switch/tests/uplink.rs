// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The port behind which is the rest of the world; here, the test.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::offloads::{finished, sender, tcp};
use super::station::{BROADCAST, Station, access, frame, mac, payload, trunk};
use crate::datapath::tests::cable::{Cable, CableUplink};
use crate::datapath::tests::rig::{Make, drops};
use crate::nic::counters::DropReason;
use crate::nic::offload::Offloads;
use crate::ring::driver::memory;
use crate::switch::vlan::VlanMode;
use crate::switch::{Switch, UplinkPort};

fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(result) = done() {
            return result;
        }
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn world(switch: &Arc<Switch>, vlans: VlanMode) -> (UplinkPort, Cable) {
    world_that_takes(Offloads::ALL, switch, vlans)
}

fn world_that_takes(
    offloads: Offloads,
    switch: &Arc<Switch>,
    vlans: VlanMode,
) -> (UplinkPort, Cable) {
    let (mut uplink, mut cables, _) = CableUplink::new(1, false);
    uplink.offloads = offloads;
    let nic = Make::default().nic();
    let port = UplinkPort::start(switch.clone(), nic, vlans, Box::new(uplink)).unwrap();
    (port, cables.remove(0))
}

#[test]
fn guests_reach_the_world_and_it_reaches_them() {
    let switch = Switch::new();
    let (port, cable) = world(&switch, trunk());
    let mut one = Station::new(&switch, 0, Make::mergeable(), trunk());
    let mut two = Station::new(&switch, 1, Make::mergeable(), access(10));
    one.offer(1526);
    two.offer(1526);
    let sent = one.send_to(mac(99), 1, 300);
    assert_eq!(cable.take_sent(), [sent]);
    two.send_to(mac(99), 2, 300);
    let tagged = frame(mac(99), mac(1), Some(10), &payload(2, 300));
    assert_eq!(cable.take_sent(), [tagged]);
    // What one guest says to another does not go out, once it is known where that is.
    one.received();
    let answer = frame(mac(0), mac(99), None, &payload(3, 300));
    cable.arrive(answer.clone());
    let got = eventually("an answer", || {
        Some(one.received()).filter(|got| !got.is_empty())
    });
    assert_eq!(got, [answer]);
    cable.arrive(frame(mac(1), mac(99), Some(10), &payload(4, 300)));
    let got = eventually("an answer", || {
        Some(two.received()).filter(|got| !got.is_empty())
    });
    assert_eq!(got, [frame(mac(1), mac(99), None, &payload(4, 300))]);
    let counters = &port.nic().counters[0];
    eventually("counters", || {
        (counters.tx.packets.get() == 2).then_some(())
    });
    assert_eq!(counters.rx.packets.get(), 2);
    drop(port);
    assert_eq!(switch.ports().len(), 2);
    one.send_to(BROADCAST, 5, 100);
    assert!(cable.take_sent().is_empty());
}

#[test]
fn what_it_has_no_room_for_waits_and_then_is_lost() {
    let switch = Switch::new();
    let (port, cable) = world(&switch, trunk());
    let mut one = Station::new(&switch, 0, Make::mergeable(), trunk());
    cable.set_space(0);
    let sent: Vec<_> = (0..1100).map(|n| one.send_to(mac(99), n, 60)).collect();
    let counters = &port.nic().counters[0];
    assert_eq!(drops(&counters.rx), [(DropReason::UplinkFull, 1100 - 1024)]);
    cable.set_space(usize::MAX);
    let mut out = Vec::new();
    eventually("what waited", || {
        out.extend(cable.take_sent());
        (out.len() == 1024).then_some(())
    });
    assert_eq!(out, sent[..1024]);
    assert_eq!(one.tx_drops(), []);
}

#[test]
fn its_cable_can_be_pulled() {
    let switch = Switch::new();
    let (port, cable) = world(&switch, trunk());
    let mut one = Station::new(&switch, 0, Make::mergeable(), trunk());
    one.offer(1526);
    port.nic().set_link(false);
    port.link_changed();
    one.send_to(mac(99), 1, 100);
    cable.arrive(frame(mac(0), mac(99), None, &payload(3, 300)));
    let counters = &port.nic().counters[0];
    eventually("both are lost", || {
        let lost = [drops(&counters.rx), drops(&counters.tx)];
        (lost == [[(DropReason::LinkDown, 1)], [(DropReason::LinkDown, 1)]]).then_some(())
    });
    assert_eq!(one.received(), [] as [Vec<u8>; 0]);
    assert!(cable.take_sent().is_empty());
}

#[test]
fn a_way_out_without_offloads_gets_finished_frames() {
    let switch = Switch::new();
    let (_port, cable) = world_that_takes(Offloads::NONE, &switch, trunk());
    let mut one = Station::new(&switch, 0, sender(), trunk());
    for len in [100, 9000] {
        one.send(&tcp(None, 1, len));
        let sent = cable.take_sent();
        assert_eq!(sent.len(), len.div_ceil(1448));
        let parts: Vec<&[u8]> = sent.iter().map(|packet| finished(packet)).collect();
        assert_eq!(parts.concat(), payload(1, len));
    }
}

#[test]
fn what_comes_in_is_spread_over_queues_flow_by_flow() {
    let switch = Switch::new();
    let (_port, cable) = world(&switch, trunk());
    let make = Make {
        pairs: 2,
        ..Make::mergeable()
    };
    let mut guest = Station::plugged_in(&switch, 0, make, trunk(), false);
    guest.start(make);
    let mut second = make.guest(&memory(), 2);
    guest.dataplane.start_ring(2, second.setup(0)).unwrap();
    guest.offer(1526);
    while second.free() > 0 {
        second.offer_room(&[1526]);
    }
    let counters = &guest.nic.counters;
    let counts = || [0, 1].map(|queue: usize| counters[queue].rx.packets.get());
    let mut seen = Vec::new();
    for flow in 0..16u8 {
        let before = counts();
        for number in 0..3 {
            let mut packet = tcp(None, number, 100);
            packet[12..18].copy_from_slice(&mac(0));
            packet[18..24].copy_from_slice(&mac(99));
            // The source port.
            packet[46] = 0x20 + flow;
            cable.arrive(packet);
        }
        let sum = |counts: [u64; 2]| counts[0] + counts[1];
        eventually("the flow arrives", || {
            (sum(counts()) == sum(before) + 3).then_some(())
        });
        let after = counts();
        assert!((0..2).any(|queue| after[queue] == before[queue] + 3));
        seen.push(after[0] > before[0]);
    }
    assert!(seen.contains(&true) && seen.contains(&false));
}
