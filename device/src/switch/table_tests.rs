// SPDX-License-Identifier: Apache-2.0 OR MIT

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::thread;

use proptest::prelude::*;

use super::*;

fn vlan(id: u16) -> VlanId {
    VlanId::new(id).unwrap()
}

fn key(number: u32) -> Key {
    let [a, b, c, d] = number.to_be_bytes();
    Key::new(vlan(1), [2, 0, a, b, c, d])
}

/// With a hash that is the same in every run.
fn table(buckets: usize) -> Table {
    Table::new(buckets, [0x243f_6a88_85a3_08d3, 0x9e37_79b9_7f4a_7c15])
}

#[test]
fn an_address_is_found_in_its_vlan_until_it_is_old() {
    let table = table(BUCKETS);
    let mac = [2, 1, 2, 3, 4, 5];
    let here = Key::new(vlan(10), mac);
    assert_eq!(table.find(here, 0), None);
    assert!(table.learn(here, 7, 5));
    assert_eq!(table.find(here, 5), Some(7));
    for other in [
        Key::new(vlan(11), mac),
        Key::new(vlan(10), [2, 1, 2, 3, 4, 6]),
    ] {
        assert_eq!(table.find(other, 5), None);
    }
    assert_eq!(table.find(here, 5 + AGEING - 1), Some(7));
    assert_eq!(table.find(here, 5 + AGEING), None);
    // One that is seen again stays, and one that moves is found where it is.
    assert!(table.learn(here, 7, 200));
    assert_eq!(table.find(here, 5 + AGEING), Some(7));
    assert!(table.learn(here, 8, 201));
    assert_eq!(table.find(here, 201), Some(8));
    let expected = Address {
        vlan: 10,
        mac: MacAddress(mac),
        port: 8,
        age: 9,
    };
    assert_eq!(table.list(210), [expected]);
    assert_eq!(table.list(201 + AGEING), []);
}

#[test]
fn a_port_that_goes_is_forgotten() {
    let table = table(BUCKETS);
    for number in 0..100 {
        table.learn(key(number), (number % 2) as u8, 0);
    }
    table.forget(0);
    for number in 0..100 {
        let expected = (number % 2 == 1).then_some(1);
        assert_eq!(table.find(key(number), 0), expected);
    }
    assert_eq!(table.writer.lock().count(0), 0);
    assert_eq!(table.writer.lock().count(1), 50);
}

#[test]
fn who_makes_up_addresses_pushes_out_only_its_own() {
    let table = table(BUCKETS);
    for number in 0..200 {
        assert!(table.learn(key(number), 1, 0));
    }
    for number in 1000..100_000 {
        table.learn(key(number), 2, 1);
    }
    for number in 0..200 {
        assert_eq!(table.find(key(number), 2), Some(1), "{number}");
    }
    // And a third finds room, at the cost of the one that has most.
    for number in 200..400 {
        assert!(table.learn(key(number), 3, 2));
    }
    let of = |port| (table.list(2).iter().filter(|a| a.port == port)).count();
    assert_eq!((of(1), of(3)), (200, 200));
    assert!(of(2) > CAPACITY / 2 && of(2) <= CAPACITY - 400, "{}", of(2));
}

#[test]
fn old_addresses_make_room() {
    let table = table(1);
    for number in 0..4 {
        assert!(table.learn(key(number), number as u8, 0));
    }
    assert!(!table.learn(key(4), 4, 0) || table.find(key(4), 0) == Some(4));
    let later = AGEING + 1;
    for number in 10..14 {
        assert!(table.learn(key(number), 9, later));
        assert_eq!(table.find(key(number), later), Some(9));
    }
    let writer = table.writer.lock();
    assert_eq!(writer.counts.iter().sum::<usize>(), 4);
    assert_eq!(writer.count(9), 4);
}

/// Entries that are given from one address to another under the eyes of readers: an address is
/// never found behind another's port.
#[test]
fn readers_never_see_half_an_entry() {
    let table = table(1);
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    for number in 0..16 {
                        if let Some(port) = table.find(key(number), 0) {
                            assert_eq!(u32::from(port), number);
                        }
                    }
                }
            });
        }
        for round in 0..20_000u32 {
            let number = round % 16;
            table.learn(key(number), number as u8, 0);
            if round % 3 == 0 {
                table.forget((round % 16) as u8);
            }
        }
        end.store(true, Ordering::Relaxed);
    });
}

#[derive(Clone, Debug)]
enum Step {
    Learn(u32, u8),
    Forget(u8),
    Later(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..64u32, 0..8u8).prop_map(|(number, port)| Step::Learn(number, port)),
        1 => (0..8u8).prop_map(Step::Forget),
        2 => (0..AGEING / 2).prop_map(Step::Later),
    ]
}

proptest! {
    /// Against a map: with room for all the table knows just as much; without it may know less,
    /// but what it knows is right, and its counts are those of its entries.
    #[test]
    fn the_table_knows_what_it_was_told(
        steps in proptest::collection::vec(step(), 0..300),
        small: bool,
    ) {
        let table = table(if small { 4 } else { 4096 });
        let mut model: HashMap<u32, (u8, u32)> = HashMap::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Learn(number, port) => {
                    let learned = table.learn(key(number), port, now);
                    prop_assert!(learned || small);
                    if learned {
                        prop_assert_eq!(table.find(key(number), now), Some(port));
                    }
                    model.insert(number, (port, now));
                }
                Step::Forget(port) => {
                    table.forget(port);
                    model.retain(|_, (at, _)| *at != port);
                }
                Step::Later(seconds) => now += seconds,
            }
            for number in 0..64 {
                let known = model.get(&number).filter(|(_, seen)| now - seen < AGEING);
                let found = table.find(key(number), now);
                if !small {
                    prop_assert_eq!(found, known.map(|(port, _)| *port));
                }
            }
        }
        let writer = table.writer.lock();
        let mut counts = [0; 256];
        for (_, entry) in table.entries() {
            counts[usize::from(entry.place().port)] += 1;
        }
        prop_assert_eq!(writer.counts, counts);
    }
}
