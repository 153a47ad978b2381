// SPDX-License-Identifier: Apache-2.0 OR MIT

use super::*;
use crate::datapath::tests::scaling::{hashes, rss};
use crate::nic::counters::DropReason;
use crate::nic::features::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_DEVICE_STATS, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_NOTF_COAL, VIRTIO_NET_F_RSS, VIRTIO_NET_F_VQ_NOTF_COAL,
};
use crate::nic::rss::Rss;
use proptest::prelude::*;

mod hashing;

const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 9];
const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

fn config() -> NicConfig {
    NicConfig {
        mac: "52:54:00:12:34:56".parse().unwrap(),
        mtu: 1500,
        speed: 10_000,
        queue_pairs: 4,
        packed: true,
        rss: true,
        hash_report: true,
        offloads: Offloads::ALL,
        uplink: "loopback".into(),
    }
}

/// A driver that has accepted everything but `refused`.
fn without(refused: &[u32]) -> DriverState {
    let config = config();
    let mask = refused.iter().fold(!0u64, |mask, bit| mask & !(1 << bit));
    let mut state = DriverState::new(&config);
    state.reset(Features(Features::offered(&config).0 & mask));
    state
}

/// Queues of which all but the last are enabled.
#[derive(Debug)]
struct AllButLast {
    counters: [PairCounters; 4],
    control: ControlCounters,
}

impl AllButLast {
    /// Ones, twos and so on up to eights, by virtqueue index.
    fn new() -> Self {
        let counters = [0, 2, 4, 6].map(|first| {
            let pair = PairCounters::default();
            for (n, queue) in (first + 1..).zip([&pair.rx, &pair.tx]) {
                queue.kicks.add(n * 10);
                queue.packets.add(n * 100);
                queue.bytes.add(n * 1000);
                queue.interrupts.add(n << 40);
                queue.drops.add(DropReason::NoBuffers);
                queue.drops.add(DropReason::LinkDown);
                for reason in [
                    DropReason::BadDescriptor,
                    DropReason::BadHeader,
                    DropReason::TooShort,
                    DropReason::TooLong,
                ] {
                    queue.drops.add(reason);
                }
            }
            pair
        });
        let control = ControlCounters::default();
        control.commands.add(9);
        control.carried_out.add(7);
        AllButLast { counters, control }
    }
}

impl Queues for AllButLast {
    fn is_enabled(&self, index: usize) -> bool {
        index < 7
    }

    fn counters(&self, pair: usize) -> Option<&PairCounters> {
        self.counters.get(pair)
    }

    fn control_counters(&self) -> &ControlCounters {
        &self.control
    }
}

impl DriverState {
    fn obey(&mut self, command: &[u8]) -> Outcome {
        self.handle(command, &AllButLast::new())
    }
}

fn ok(change: Change) -> Outcome {
    Outcome {
        ack: VIRTIO_NET_OK,
        result: Vec::new(),
        change: Some(change),
    }
}

const ERR: Outcome = Outcome {
    ack: VIRTIO_NET_ERR,
    result: Vec::new(),
    change: None,
};

fn scaling(state: &DriverState) -> Option<&Rss> {
    state.hashing()?.rss()
}

fn wants(state: &DriverState, destination: [u8; 6]) -> bool {
    let frame = [&destination[..], &[2, 0, 0, 0, 0, 1, 8, 0, 0x45]].concat();
    state.filter().accepts(&frame)
}

fn tables(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    let mut command = vec![1, 0];
    for table in [unicast, multicast] {
        command.extend((table.len() as u32).to_le_bytes());
        command.extend(table.concat());
    }
    command
}

/// One good command of each kind, and the feature that it takes.
fn good_commands() -> Vec<(Vec<u8>, u32)> {
    let mut commands = vec![
        (tables(&[OTHER], &[GROUP]), VIRTIO_NET_F_CTRL_RX),
        (vec![1, 1, 2, 0, 0, 0, 0, 7], VIRTIO_NET_F_CTRL_MAC_ADDR),
        (vec![2, 0, 100, 0], VIRTIO_NET_F_CTRL_VLAN),
        (vec![2, 1, 100, 0], VIRTIO_NET_F_CTRL_VLAN),
        (vec![3, 0], VIRTIO_NET_F_GUEST_ANNOUNCE),
        (vec![4, 0, 2, 0], VIRTIO_NET_F_MQ),
        (
            vec![5, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        ),
        (vec![6, 0, 1, 0, 0, 0, 9, 0, 0, 0], VIRTIO_NET_F_NOTF_COAL),
        (vec![6, 1, 1, 0, 0, 0, 9, 0, 0, 0], VIRTIO_NET_F_NOTF_COAL),
        (
            vec![6, 2, 3, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0],
            VIRTIO_NET_F_VQ_NOTF_COAL,
        ),
        (vec![6, 3, 3, 0, 0, 0], VIRTIO_NET_F_VQ_NOTF_COAL),
        (rss(&[3, 0, 1, 2], 1, 2), VIRTIO_NET_F_RSS),
        (hashes(0x3f, &[7; 40]), VIRTIO_NET_F_HASH_REPORT),
        (vec![8, 0], VIRTIO_NET_F_DEVICE_STATS),
        (statistics(&[(0, 1)]), VIRTIO_NET_F_DEVICE_STATS),
    ];
    for mode in 0..6 {
        let feature = if mode < 2 {
            VIRTIO_NET_F_CTRL_RX
        } else {
            VIRTIO_NET_F_CTRL_RX_EXTRA
        };
        commands.push((vec![0, mode, 1], feature));
    }
    commands
}

#[test]
fn each_command_takes_its_feature_and_the_control_queue() {
    for (command, feature) in good_commands() {
        assert_eq!(
            without(&[]).obey(&command).ack,
            VIRTIO_NET_OK,
            "{command:?}"
        );
        assert_eq!(without(&[feature]).obey(&command), ERR, "{command:?}");
        assert_eq!(
            without(&[VIRTIO_NET_F_CTRL_VQ]).obey(&command),
            ERR,
            "{command:?}"
        );
    }
}

#[test]
fn a_command_of_the_wrong_length_is_refused() {
    for (command, _) in good_commands() {
        for len in 0..command.len() {
            assert_eq!(without(&[]).obey(&command[..len]), ERR, "{command:?}");
        }
        let long = [&command[..], &[0]].concat();
        let mut state = without(&[]);
        let expected = match command[..2] {
            // Linux pads these.
            [4, 1] => ok(Change::Scaling),
            [4, 2] => ok(Change::Hashing),
            _ => ERR,
        };
        assert_eq!(state.obey(&long), expected, "{command:?}");
    }
}

#[test]
fn unknown_classes_and_commands_are_refused() {
    let known: Vec<_> = good_commands().into_iter().map(|(c, _)| c).collect();
    for class in 0..=255 {
        for command in 0..=255 {
            if !known.iter().any(|k| k.starts_with(&[class, command])) {
                assert_eq!(without(&[]).obey(&[class, command, 1]), ERR);
                assert_eq!(without(&[]).obey(&[class, command]), ERR);
            }
        }
    }
}

#[test]
fn receive_modes_go_on_and_off_and_take_nothing_else() {
    let mut state = without(&[]);
    assert!(wants(&state, OTHER));
    assert_eq!(state.obey(&[0, 0, 0]), ok(Change::Filter));
    assert!(!wants(&state, OTHER));
    assert!(!wants(&state, GROUP));
    assert_eq!(state.obey(&[0, 1, 1]), ok(Change::Filter));
    assert!(wants(&state, GROUP));
    assert_eq!(state.obey(&[0, 2, 1]), ok(Change::Filter));
    assert!(wants(&state, OTHER));
    assert_eq!(state.obey(&[0, 3, 1]), ok(Change::Filter));
    assert!(!wants(&state, GROUP));
    assert_eq!(state.obey(&[0, 4, 1]), ok(Change::Filter));
    assert!(!wants(&state, OTHER));
    assert!(wants(&state, [0xff; 6]));
    assert_eq!(state.obey(&[0, 5, 1]), ok(Change::Filter));
    assert!(!wants(&state, [0xff; 6]));
    assert_eq!(state.obey(&[0, 0, 1]), ok(Change::Filter));
    assert!(wants(&state, [0xff; 6]));
    assert_eq!(state.obey(&[0, 0, 2]), ERR);
}

#[test]
fn mac_tables_are_set_and_their_counts_are_not_believed() {
    let mut state = without(&[]);
    assert_eq!(state.obey(&[0, 0, 0]), ok(Change::Filter));
    assert_eq!(state.obey(&tables(&[OTHER], &[GROUP])), ok(Change::Filter));
    assert!(wants(&state, OTHER) && wants(&state, GROUP));
    for count in [2u32, 3, 0x2aaa_aaab, 0x8000_0000, u32::MAX] {
        let mut lie = tables(&[OTHER], &[GROUP]);
        lie[2..6].copy_from_slice(&count.to_le_bytes());
        assert_eq!(state.obey(&lie), ERR);
        let mut lie = tables(&[OTHER], &[GROUP]);
        lie[12..16].copy_from_slice(&count.to_le_bytes());
        assert_eq!(state.obey(&lie), ERR);
    }
    assert!(wants(&state, OTHER) && wants(&state, GROUP), "unchanged");
    assert_eq!(state.obey(&tables(&[], &[])), ok(Change::Filter));
    assert!(!wants(&state, OTHER) && !wants(&state, GROUP));
}

#[test]
fn a_new_address_is_filtered_for_and_the_old_one_is_not() {
    let mut state = without(&[]);
    let old = config().mac;
    assert_eq!(state.obey(&[0, 0, 0]), ok(Change::Filter));
    let mut command = vec![1, 1];
    command.extend(OTHER);
    assert_eq!(state.obey(&command), ok(Change::Mac(MacAddress(OTHER))));
    assert_eq!(state.mac(), MacAddress(OTHER));
    assert!(wants(&state, OTHER) && !wants(&state, old.0));
    for bad in [GROUP, [0; 6], [0xff; 6]] {
        assert_eq!(state.obey(&[&[1, 1], &bad[..]].concat()), ERR);
    }
    state.reset(Features::offered(&config()));
    assert_eq!(state.mac(), old, "reset gives the permanent address back");
}

#[test]
fn a_legacy_driver_writes_its_address_into_the_configuration() {
    let config = config();
    let mut state = DriverState::new(&config);
    state.reset(Features(1 << VIRTIO_NET_F_MAC));
    for (offset, octet) in (0..5).zip(OTHER) {
        assert_eq!(state.write_config(offset, &[octet]), None);
    }
    let new = MacAddress(OTHER);
    assert_eq!(state.write_config(5, &[9]), Some(Change::Mac(new)));
    assert_eq!((state.mac(), state.write_config(0, &OTHER)), (new, None));
    // Others have a command for it, or must not write at all.
    for features in [
        1 << VIRTIO_F_VERSION_1,
        1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR,
    ] {
        state.reset(Features(features));
        assert_eq!(state.write_config(0, &OTHER), None);
        assert_eq!(state.mac(), config.mac);
    }
}

#[test]
fn queue_pairs_are_one_to_the_most_there_are() {
    let mut state = without(&[]);
    assert_eq!(state.queue_pairs(), 1);
    for pairs in [1u16, 4] {
        let [a, b] = pairs.to_le_bytes();
        assert_eq!(state.obey(&[4, 0, a, b]), ok(Change::QueuePairs(pairs)));
    }
    for pairs in [0u16, 5, 0x8000, 0xffff] {
        let [a, b] = pairs.to_le_bytes();
        assert_eq!(state.obey(&[4, 0, a, b]), ERR);
    }
    assert_eq!(state.queue_pairs(), 4);
    state.reset(Features::offered(&config()));
    assert_eq!(state.queue_pairs(), 1);
}

#[test]
fn guest_offloads_are_a_subset_of_the_negotiated_ones() {
    let command = |bits: &[u32]| {
        let mask = bits.iter().fold(0u64, |mask, bit| mask | 1 << bit);
        [&[5, 0], &mask.to_le_bytes()[..]].concat()
    };
    let mut state = without(&[VIRTIO_NET_F_GUEST_USO6]);
    let all = state.guest_offloads();
    assert!(all.contains(Offloads::CSUM | Offloads::TSO4 | Offloads::USO4));
    assert!(!all.contains(Offloads::USO6));

    let both = command(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4]);
    let wanted = Offloads::CSUM | Offloads::TSO4;
    assert_eq!(state.obey(&both), ok(Change::GuestOffloads(wanted)));
    assert_eq!(state.obey(&command(&[VIRTIO_NET_F_GUEST_USO6])), ERR);
    assert_eq!(state.obey(&command(&[VIRTIO_NET_F_MAC])), ERR);
    assert_eq!(state.guest_offloads(), wanted, "unchanged");
    // Segmentation without checksums is no segmentation.
    assert_eq!(
        state.obey(&command(&[VIRTIO_NET_F_GUEST_TSO4])),
        ok(Change::GuestOffloads(Offloads::NONE))
    );
}

#[test]
fn an_announcement_is_asked_for_once_and_acknowledged() {
    let mut state = without(&[]);
    let quiet = Outcome {
        ack: VIRTIO_NET_OK,
        result: Vec::new(),
        change: None,
    };
    assert_eq!(state.obey(&[3, 0]), quiet);
    assert!(state.request_announce() && state.announce_pending());
    assert_eq!(state.obey(&[3, 0]), ok(Change::Announced));
    assert!(!state.announce_pending());
    assert_eq!(state.obey(&[3, 0]), quiet);
    let mut deaf = without(&[VIRTIO_NET_F_GUEST_ANNOUNCE]);
    assert!(!deaf.request_announce() && !deaf.announce_pending());
}

/// Asks queues for kinds of statistics.
fn statistics(requests: &[(u16, u64)]) -> Vec<u8> {
    let mut command = vec![8, 1];
    for (index, kinds) in requests {
        command.extend(index.to_le_bytes());
        command.extend([0xee; 6]);
        command.extend(kinds.to_le_bytes());
    }
    command
}

/// A record of statistics.
fn record(kind: u8, index: u8, values: &[u64]) -> Vec<u8> {
    let mut record = vec![kind, 0, index, 0, 0, 0, 8 + 8 * values.len() as u8, 0];
    record.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    record
}

#[test]
fn statistics_are_those_of_the_queue_that_is_asked() {
    let mut state = without(&[]);
    let can = state.obey(&[8, 0]);
    assert_eq!((can.ack, can.change), (VIRTIO_NET_OK, None));
    assert_eq!(can.result, (1u64 | 1 << 16 | 1 << 32).to_le_bytes());
    let told = state.obey(&statistics(&[(8, 1 << 32), (0, 1), (7, 1 << 16), (2, 0)]));
    assert_eq!(told.ack, VIRTIO_NET_OK);
    let expected = [
        // The command that asks is carried out, too.
        record(32, 8, &[9, 8]),
        record(0, 0, &[10, 100, 1000, 1 << 40, 6, 1]),
        record(16, 7, &[80, 800, 8000, 8 << 40, 6, 4]),
    ];
    assert_eq!(told.result, expected.concat());
}

#[test]
fn one_wrong_request_for_statistics_fails_them_all() {
    let mut state = without(&[]);
    let wrong = [
        // Of another queue's kind, unknown, not counted, of no queue.
        (0, 1 << 16),
        (1, 1),
        (0, 1 | 1 << 32),
        (8, 1),
        (0, 1 << 63 | 1),
        (0, 1 << 1),
        (9, 0),
        (0xffff, 0),
    ];
    for request in wrong {
        assert_eq!(state.obey(&statistics(&[request])), ERR, "{request:?}");
        let command = statistics(&[(0, 1), request, (1, 1 << 16)]);
        assert_eq!(state.obey(&command), ERR, "{request:?}");
    }
    // With one pair in all the control queue comes after that.
    let mut state = without(&[VIRTIO_NET_F_MQ, VIRTIO_NET_F_RSS]);
    let told = state.obey(&statistics(&[(2, 1 << 32)]));
    assert_eq!(told.result, record(32, 2, &[9, 8]));
    assert_eq!(state.obey(&statistics(&[(3, 1 << 16)])), ERR);
}

fn wish(max_packets: u32, max_usecs: u32) -> Coalescing {
    Coalescing {
        max_packets,
        max_usecs,
    }
}

/// The words of a command behind class and command: so many octets each, little-endian.
fn coal(command: u8, words: &[&[u8]]) -> Vec<u8> {
    [&[6, command], &words.concat()[..]].concat()
}

#[test]
fn each_queue_has_the_last_wish_for_interrupts() {
    let mut state = without(&[]);
    let wishes = |state: &DriverState| (0..8).map(|i| state.coalescing(i)).collect::<Vec<_>>();
    let all = |rx, tx| [rx, tx].repeat(4);
    assert_eq!(wishes(&state), all(Coalescing::NONE, Coalescing::NONE));
    let set = |packets: u32, usecs: u32| [packets.to_le_bytes(), usecs.to_le_bytes()].concat();
    // 5.1.6.5.9 has this as its example.
    let rx_set = coal(1, &[&set(32, 0x102)]);
    assert_eq!(state.obey(&rx_set), ok(Change::Coalescing));
    assert_eq!(wishes(&state), all(wish(32, 0x102), Coalescing::NONE));
    // What is reserved is ignored.
    let vq_set = |index: u8| coal(2, &[&[index, 0, 0xff, 0xff], &set(u32::MAX, 7)]);
    for index in [0, 1] {
        assert_eq!(state.obey(&vq_set(index)), ok(Change::Coalescing));
    }
    let mut expected = all(wish(32, 0x102), Coalescing::NONE);
    expected[0] = wish(u32::MAX, 7);
    expected[1] = wish(u32::MAX, 7);
    assert_eq!(wishes(&state), expected);
    let get = |state: &mut DriverState, index: u8| state.obey(&coal(3, &[&[index, 0, 0xff, 0]]));
    let told = get(&mut state, 1);
    assert_eq!(told.result, [0xff, 0xff, 0xff, 0xff, 7, 0, 0, 0]);
    assert_eq!((told.ack, told.change), (VIRTIO_NET_OK, None));
    let tx_set = coal(0, &[&set(1, 2)]);
    assert_eq!(state.obey(&tx_set), ok(Change::Coalescing));
    assert_eq!(get(&mut state, 1).result, set(1, 2));
    assert_eq!(state.coalescing(0), wish(u32::MAX, 7));
    // Not enabled, the control queue, and none at all.
    for index in [7, 8, 9, 255] {
        assert_eq!(state.obey(&vq_set(index)), ERR);
        assert_eq!(get(&mut state, index), ERR);
    }
    state.reset(Features::offered(&config()));
    assert_eq!(wishes(&state), all(Coalescing::NONE, Coalescing::NONE));
}

/// Commands that look right in their first octets, and some that do not.
fn any_command() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..12),
        prop::collection::vec(0u8..6, 0..40),
        Just(0)
            .prop_flat_map(|_| (0usize..4, 0usize..4))
            .prop_map(|(u, m)| { tables(&vec![OTHER; u], &vec![GROUP; m])[2..].to_vec() }),
        (prop::collection::vec(0u16..5, 1..9), 0u16..5, 0u16..6)
            .prop_map(|(table, other, tx)| rss(&table, other, tx)[2..].to_vec()),
        (0u32..0x80, 0usize..43)
            .prop_map(|(types, key)| hashes(types, &[7; 42][..key.min(42)])[2..].to_vec()),
    ];
    (0u8..9, 0u8..7, data)
        .prop_map(|(class, command, data)| [&[class, command], &data[..]].concat())
}

proptest! {
    #[test]
    fn no_command_breaks_the_state(
        acked: u64,
        commands in prop::collection::vec(any_command(), 0..30),
        writes: Vec<(u32, Vec<u8>)>,
    ) {
        let mut state = DriverState::new(&config());
        state.reset(Features(acked));
        for command in commands {
            let before = state.clone();
            let outcome = state.obey(&command);
            prop_assert!(outcome.ack == VIRTIO_NET_OK || outcome == ERR);
            if outcome.ack == VIRTIO_NET_ERR {
                prop_assert_eq!(format!("{:?}", &state), format!("{before:?}"));
            }
            if let Some(rss) = scaling(&state) {
                prop_assert!(rss.queues() <= state.queue_pairs());
            }
            let hashes = [VIRTIO_NET_F_RSS, VIRTIO_NET_F_HASH_REPORT];
            let may_hash = hashes.iter().any(|bit| state.features().has(*bit));
            prop_assert!(state.hashing().is_none() || may_hash);
            if let Some(Change::QueuePairs(pairs)) = outcome.change {
                prop_assert_eq!(pairs, state.queue_pairs());
            }
        }
        for (offset, data) in writes {
            state.write_config(offset, &data);
        }
        prop_assert!((1..=4).contains(&state.queue_pairs()));
        prop_assert!(state.mac().is_station());
        prop_assert!(state.features().receive_offloads().contains(state.guest_offloads()));
    }
}
