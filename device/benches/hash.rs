// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What receive-side scaling adds to a packet: finding its queue, by the hash of its flow.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ferronic::nic::flow_hash::{FlowHasher, HEADERS, SUPPORTED_HASH_TYPES};
use ferronic::nic::hashing::Hashing;
use ferronic::nic::rss::Rss;
use ferronic::nic::toeplitz::{INPUT_LEN, KEY_LEN, Toeplitz};

const KEY: [u8; KEY_LEN] = [0x5a; KEY_LEN];

/// A frame with an IP header of this version, and TCP behind it.
fn frame(ipv6: bool) -> Vec<u8> {
    let mut frame = vec![2; 12];
    if ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        frame.extend(1..=32);
    } else {
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend(1..=8);
    }
    frame.resize(HEADERS, 7);
    frame
}

fn hashes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash");
    let toeplitz = Toeplitz::new(&KEY);
    for len in [12, INPUT_LEN] {
        let input = vec![0xa7; len];
        group.bench_function(format!("toeplitz/{len}"), |bencher| {
            bencher.iter(|| toeplitz.hash(black_box(&input)));
        });
    }
    let hasher = FlowHasher::new(SUPPORTED_HASH_TYPES, &KEY);
    let rss = Rss::new(vec![0; 128].into(), 0).expect("a table of 128");
    let hashing = Hashing::new(hasher, Some(rss));
    for (name, ipv6) in [("queue/tcp4", false), ("queue/tcp6", true)] {
        let frame = frame(ipv6);
        group.bench_function(name, |bencher| {
            bencher.iter(|| hashing.queue(hashing.hash(black_box(&frame))));
        });
    }
    group.bench_function("key", |bencher| {
        bencher.iter(|| Toeplitz::new(black_box(&KEY)));
    });
    group.finish();
}

criterion_group!(benches, hashes);
criterion_main!(benches);
