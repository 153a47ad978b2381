// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Start-ups, pauses and resets as QEMU 11.1 does them, recorded from it.

mod frontend_support;

use std::io::Write as _;

use ferronic::frontend::relay::{Frame, Relay};
use ferronic::nic::Attachment;

use frontend_support::client::{self, Client};
use frontend_support::recorded::{ALL, Message, parse};
use frontend_support::{Device, eventually};

fn pairs(name: &str) -> u16 {
    if name.ends_with('2') { 2 } else { 1 }
}

fn attachment(name: &str) -> Attachment {
    match name.starts_with("netdev") {
        true => Attachment::Netdev,
        false => Attachment::Device,
    }
}

/// All messages up to the first time that the rings are stopped.
fn start_up(messages: Vec<Message>) -> Vec<Message> {
    let set = |m: &Message| m.request == client::SET_VRING_KICK;
    let first = messages.iter().position(set).unwrap();
    let stops = |m: &Message| {
        let disables = m.request == client::SET_VRING_ENABLE && m.payload[4] == 0;
        disables || m.request == client::GET_VRING_BASE
    };
    let end = first + messages[first..].iter().position(stops).unwrap();
    messages[..end].to_vec()
}

#[test]
fn the_relay_adds_features_where_the_crate_wants_them_and_nothing_else() {
    for (name, text) in ALL {
        let mut relay = Relay::new(2 * usize::from(pairs(name)) + 1);
        let mut accepted = false;
        for sent in parse(text) {
            let frame = Frame {
                bytes: sent.bytes(),
                fds: sent.descriptors(),
            };
            let passed: Vec<Frame> = relay.from_frontend(frame).unwrap().collect();
            assert_eq!(passed[0].bytes, sent.bytes(), "{name}");
            assert_eq!(passed[0].fds.len(), sent.fds, "{name}");
            let added: Vec<&[u8]> = passed[1..].iter().map(|frame| &frame.bytes[..]).collect();
            let protocol = client::message(client::SET_FEATURES, 1, &(1u64 << 30).to_ne_bytes());
            match sent.request {
                client::SET_PROTOCOL_FEATURES | client::RESET_DEVICE => {
                    assert_eq!(added, [&protocol[..]], "{name}");
                    accepted = true;
                }
                _ => assert!(added.is_empty(), "{name}: {sent:?}"),
            }
            // This is what the crate hangs up on.
            let enables = sent.request == client::SET_VRING_ENABLE;
            assert!(accepted || !enables, "{name}");
        }
        assert_eq!(relay.attachment(), Some(attachment(name)));
        assert!(relay.has_memory());
        assert!(relay.backend_channel().is_some());
    }
}

/// Says all of it, and checks that every answer comes and none is a refusal.
fn replay(client: &mut Client, name: &str, messages: &[Message]) {
    for sent in messages {
        sent.send(&client.stream);
        if !sent.is_answered() {
            continue;
        }
        let (request, payload) = client
            .reply()
            .unwrap_or_else(|| panic!("{name}: hung up on {sent:?}"));
        assert_eq!(request, sent.request, "{name}");
        if sent.flags & 8 != 0 {
            assert_eq!(payload, [0; 8], "{name}: {sent:?}");
        }
    }
}

#[test]
fn every_recording_starts_all_rings_and_is_not_dropped() {
    for (name, text) in ALL {
        let device = Device::new(pairs(name));
        for _ in 0..3 {
            let mut client = Client::connect(device.path());
            let messages = parse(text);
            let start = start_up(messages.clone());
            replay(&mut client, name, &start);
            let rings = match attachment(name) {
                Attachment::Netdev => 2 * pairs(name),
                Attachment::Device => 2 * pairs(name) + 1,
            };
            eventually(name, || device.active() == u32::from(rings));
            let info = device.nic.frontend().unwrap();
            assert_eq!(info.attachment, Some(attachment(name)));
            replay(&mut client, name, &messages[start.len()..]);
            eventually(name, || device.active() == 0);
            drop(client);
            eventually(name, || device.nic.frontend().is_none());
        }
        device.is_quiet();
    }
}

#[test]
fn a_frontend_that_goes_at_any_point_leaves_a_device_that_works() {
    for (name, text) in ALL {
        let device = Device::new(pairs(name));
        let messages = start_up(parse(text));
        for cut in 0..messages.len() {
            // Within the message: not at all, in the header, in the payload.
            for part in [0, 7, 15] {
                let mut client = Client::connect(device.path());
                replay(&mut client, name, &messages[..cut]);
                let bytes = messages[cut].bytes();
                let _ = client.stream.write_all(&bytes[..part.min(bytes.len())]);
                drop(client);
            }
        }
        eventually(name, || device.nic.frontend().is_none());
        let mut client = Client::connect(device.path());
        replay(&mut client, name, &messages);
    }
}

#[test]
fn octet_by_octet_is_as_good() {
    for (name, text) in ALL {
        let device = Device::new(pairs(name));
        let mut client = Client::connect(device.path());
        for sent in start_up(parse(text)) {
            if sent.fds > 0 {
                sent.send(&client.stream);
            } else {
                for octet in sent.bytes() {
                    client.stream.write_all(&[octet]).unwrap();
                    std::thread::sleep(std::time::Duration::from_micros(20));
                }
            }
            if sent.is_answered() {
                client.reply().unwrap_or_else(|| panic!("{name}: {sent:?}"));
            }
        }
        eventually(name, || device.active() >= u32::from(2 * pairs(name)));
    }
}

#[test]
fn all_at_once_is_as_good() {
    for (name, text) in ALL {
        let device = Device::new(pairs(name));
        let mut client = Client::connect(device.path());
        let messages = start_up(parse(text));
        for sent in &messages {
            sent.send(&client.stream);
        }
        for sent in messages.iter().filter(|sent| sent.is_answered()) {
            let (request, _) = client.reply().unwrap();
            assert_eq!(request, sent.request);
        }
        eventually(name, || device.active() >= u32::from(2 * pairs(name)));
    }
}
