// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a packet's headers cost: reading and checking the virtio-net header, completing a checksum,
//! cutting up a large frame, and the receive filter.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ferronic::nic::features::{Features, VIRTIO_NET_F_CTRL_RX};
use ferronic::nic::filter::{Filter, MAC_TABLE_ENTRIES};
use ferronic::nic::header::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, VirtioNetHdr, complete_checksum,
};
use ferronic::nic::offload::Offloads;
use ferronic::nic::segment::segment;

/// Octets of Ethernet, IPv4 and TCP headers.
const HEADERS: usize = 14 + 20 + 20;
/// Octets of payload in a segment.
const SEGMENT: usize = 1448;

/// Of a frame that is to be segmented.
const TO_SEGMENT: VirtioNetHdr = VirtioNetHdr {
    flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
    gso_type: VIRTIO_NET_HDR_GSO_TCPV4,
    hdr_len: HEADERS as u16,
    gso_size: SEGMENT as u16,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
    hash_value: 0,
    hash_report: 0,
};

/// A TCP segment over IPv4 with so much payload.
fn frame(payload: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADERS + payload];
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[23] = 6;
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[46] = 0x50;
    frame
}

fn headers(c: &mut Criterion) {
    let mut group = c.benchmark_group("header");
    let plain = VirtioNetHdr::default();
    for (name, header, len) in [("plain", plain, 64), ("segmented", TO_SEGMENT, 65226)] {
        let octets = header.encode();
        group.bench_function(format!("decode and validate, {name}"), |b| {
            b.iter(|| {
                let header = VirtioNetHdr::decode(black_box(&octets)).unwrap();
                header.validate(black_box(len), Offloads::ALL).unwrap();
                header
            });
        });
    }
    group.bench_function("encode", |b| b.iter(|| black_box(&TO_SEGMENT).encode()));
    group.finish();
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for payload in [10, SEGMENT] {
        let mut frame = frame(payload);
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(format!("{} octets", frame.len()), |b| {
            b.iter(|| assert!(complete_checksum(black_box(&mut frame), 34, 16)));
        });
    }
    group.finish();
}

fn segments(c: &mut Criterion) {
    let mut group = c.benchmark_group("segment");
    let frame = frame(45 * SEGMENT);
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("64 KiB into 45", |b| {
        let (mut memory, mut count) = (Vec::new(), 0);
        b.iter(|| {
            count = 0;
            let each = |segment: &[u8]| {
                black_box(segment);
                count += 1;
            };
            segment(black_box(&frame), &TO_SEGMENT, &mut memory, each).unwrap();
            assert_eq!(count, 45);
        });
    });
    group.finish();
}

fn filters(c: &mut Criterion) {
    let mut group = c.benchmark_group("filter");
    let own = "52:54:00:12:34:56".parse().unwrap();
    let promiscuous = Filter::new(Features(1 << VIRTIO_NET_F_CTRL_RX), own);
    let mut exact = promiscuous.clone();
    exact.modes_mut().promiscuous = false;
    let entries: Vec<[u8; 6]> = (0..MAC_TABLE_ENTRIES as u8)
        .map(|i| [2, 0, 0, 0, 1, i])
        .collect();
    exact.set_tables(&entries, &[]);
    let mut frame = frame(10);
    for (name, filter, to) in [
        ("promiscuous", &promiscuous, own.0),
        ("own address", &exact, own.0),
        ("one of a full table", &exact, entries[17]),
    ] {
        frame[..6].copy_from_slice(&to);
        group.bench_function(name, |b| {
            b.iter(|| assert!(filter.accepts(black_box(&frame[..18]))));
        });
    }
    group.finish();
}

criterion_group!(benches, headers, checksums, segments, filters);
criterion_main!(benches);
