// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The NIC itself: what it offers, what it has been told, what it has counted.
//!
//! Knows no socket and no guest memory, so that every rule of the device can be read and tested
//! here. One [`Nic`] lives as long as the process; frontends come and go.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

pub mod config_space;
pub mod control;
pub mod counters;
pub mod events;
pub mod features;
pub mod filter;
pub mod flow_hash;
pub mod hashing;
pub mod header;
pub mod offload;
pub mod rss;
pub mod segment;
pub mod toeplitz;

use counters::{ControlCounters, PairCounters};
use events::{Event, EventBus};
use offload::Offloads;

/// An Ethernet address, in transmission order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a text is no usable station address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadMac(String);

impl fmt::Display for BadMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadMac {}

impl FromStr for MacAddress {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let mut octets = [0u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            *octet = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|p| u8::from_str_radix(p, 16).ok())
                .ok_or_else(|| BadMac(format!("'{text}' is not of the form 52:54:00:12:34:56")))?;
        }
        if parts.next().is_some() {
            return Err(BadMac(format!("'{text}' has more than six octets")));
        }
        let mac = MacAddress(octets);
        if mac.is_multicast() {
            return Err(BadMac(format!(
                "'{text}' is a group address; a NIC needs an individual one (first octet even)"
            )));
        }
        if octets == [0; 6] {
            return Err(BadMac("the all-zero address cannot be used".into()));
        }
        Ok(mac)
    }
}

impl MacAddress {
    /// Whether this is a group address (broadcast included): bit 0 of the first octet.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether a station can have this address: neither a group's nor all zero.
    pub fn is_station(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }
}

/// What the NIC is made as; fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct NicConfig {
    /// The permanent address.
    pub mac: MacAddress,
    /// The largest payload of a frame, in octets (VIRTIO 1.3, 5.1.4, `mtu`).
    pub mtu: u16,
    /// Link speed in Mbit/s as told to the driver (5.1.4, `speed`).
    pub speed: u32,
    /// Pairs of receive and transmit queues (5.1.4, `max_virtqueue_pairs`).
    pub queue_pairs: u16,
    /// Packed virtqueues are offered (2.8).
    pub packed: bool,
    /// Receive-side scaling is offered, if there is more than one pair (5.1.6.5.7).
    pub rss: bool,
    /// To report the hash of received packets is offered (5.1.6.4.4).
    pub hash_report: bool,
    /// Offloads that the uplink can honour, both ways.
    pub offloads: Offloads,
    /// What the uplink is, for people: `tap:fer0`.
    pub uplink: String,
}

/// How a frontend has plugged the NIC in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attachment {
    /// `-netdev vhost-user`: the frontend owns config space and control queue.
    Netdev,
    /// A generic vhost-user device: config space and control queue are ours.
    Device,
}

/// What is known of the frontend that is connected now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FrontendInfo {
    /// The attachment; `None` until the frontend's first messages tell.
    pub attachment: Option<Attachment>,
    /// Process id of the peer, where the socket tells it.
    pub pid: Option<i32>,
    /// VIRTIO feature bits the driver has accepted; 0 before it did.
    pub features: u64,
    /// Rings that are started and enabled now.
    pub rings_active: u32,
}

/// The NIC: shared by frontend, workers and control socket.
#[derive(Debug)]
pub struct Nic {
    /// As made.
    pub config: NicConfig,
    /// Counters, one for each queue pair.
    pub counters: Vec<PairCounters>,
    /// Counters of the control queue.
    pub control_counters: ControlCounters,
    link_up: AtomicBool,
    uplink_up: AtomicBool,
    frontend: Mutex<Option<FrontendInfo>>,
    events: EventBus,
    port: Option<AtPort>,
}

/// Where a NIC is that is one of several.
#[derive(Debug)]
struct AtPort {
    name: String,
    /// Hears of what happens at all of them.
    events: Arc<EventBus>,
}

impl Nic {
    /// A NIC with its link up and nothing plugged in.
    pub fn new(config: NicConfig) -> Self {
        let counters = (0..config.queue_pairs)
            .map(|_| PairCounters::default())
            .collect();
        Nic {
            config,
            counters,
            control_counters: ControlCounters::default(),
            link_up: AtomicBool::new(true),
            uplink_up: AtomicBool::new(true),
            frontend: Mutex::new(None),
            events: EventBus::default(),
            port: None,
        }
    }

    /// The same at a port of the switch; what happens is also told to `events`, with the port's name.
    pub fn at_port(config: NicConfig, name: &str, events: Arc<EventBus>) -> Self {
        let name = name.into();
        Nic {
            port: Some(AtPort { name, events }),
            ..Nic::new(config)
        }
    }

    /// The name of the port of the switch that it is at, if it is.
    pub fn port_name(&self) -> Option<&str> {
        self.port.as_ref().map(|port| &port.name[..])
    }

    /// What messages for people begin with: which of several NICs it is, or nothing.
    pub fn label(&self) -> String {
        self.port_name()
            .map_or(String::new(), |name| format!("port {name}: "))
    }

    fn publish(&self, event: Event) {
        if let Some(AtPort { name, events }) = &self.port {
            events.publish(Event::AtPort {
                port: name.clone(),
                event: Box::new(event.clone()),
            });
        }
        self.events.publish(event);
    }

    /// Whether the cable is in.
    pub fn link_up(&self) -> bool {
        self.link_up.load(Ordering::Acquire)
    }

    /// Pulls the cable or puts it back; says whether that changed anything. Subscribers are told
    /// of a change.
    pub fn set_link(&self, up: bool) -> bool {
        let changed = self.link_up.swap(up, Ordering::AcqRel) != up;
        if changed {
            let state = if up { "up" } else { "down" };
            log::info!("{}link {state}", self.label());
            self.publish(Event::LinkChanged { up });
        }
        changed
    }

    /// Whether the far side of the uplink is there (tap up, passt running).
    pub fn uplink_up(&self) -> bool {
        self.uplink_up.load(Ordering::Acquire)
    }

    /// Notes a change of the uplink's own carrier.
    pub fn set_uplink(&self, up: bool) {
        if self.uplink_up.swap(up, Ordering::AcqRel) != up {
            self.publish(Event::UplinkChanged { up });
        }
    }

    /// The frontend connected now, if any.
    pub fn frontend(&self) -> Option<FrontendInfo> {
        self.frontend.lock().clone()
    }

    /// Notes that a frontend has come or gone; subscribers are told.
    pub fn set_frontend(&self, info: Option<FrontendInfo>) {
        let was = std::mem::replace(&mut *self.frontend.lock(), info.clone());
        match (was, info) {
            (None, Some(info)) => self.publish(Event::FrontendConnected { pid: info.pid }),
            (Some(_), None) => self.publish(Event::FrontendDisconnected),
            _ => {}
        }
    }

    /// Changes what is known of the connected frontend; does nothing when there is none.
    pub fn update_frontend(&self, change: impl FnOnce(&mut FrontendInfo)) {
        if let Some(info) = self.frontend.lock().as_mut() {
            change(info);
        }
    }

    /// Where changes are told.
    pub fn events(&self) -> &EventBus {
        &self.events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_round_trip() {
        let mac: MacAddress = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:12:34:56");
    }

    #[test]
    fn mac_refuses_what_no_station_can_have() {
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "5:54:00:12:34:56",
            "52-54-00-12-34-56",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "+2:54:00:12:34:56",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }
}
