// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Addresses at both ends of the cable, and an iperf3 server at the far end.
//!
//! - tap, and switch: the far end is the tap in the run's network namespace.
//! - user, and the switch with it: passt gives the guest an address by DHCP; the gateway it names leads to the
//!   namespace's own loopback.
//! - loopback: what the guest sends comes back, so both ends are in the guest. Two macvlan
//!   interfaces in VEPA mode, one of them in a network namespace, send each other nothing
//!   directly but count on the switch to send it back: the loopback is that switch.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::backend::Uplink;
use crate::guest::Guest;
use crate::lab::Lab;
use crate::net::{GUEST_IP, GUEST_IP6, HOST_IP};
use crate::traffic::Server;

/// The NIC's interface in the guest.
pub const INTERFACE: &str = "eth0";
const CARRIER_LIMIT: Duration = Duration::from_secs(10);

/// A cable with addresses.
#[derive(Debug)]
pub struct Cable {
    /// Where the guest reaches the iperf3 server.
    pub server: String,
    host_server: Option<Server>,
}

impl Cable {
    /// Sets up the guest's end, and the far end's server.
    pub fn lay(lab: &Lab, guest: &Guest, uplink: Uplink) -> Result<Self> {
        guest.sh(&format!("ip link set {INTERFACE} up"))?;
        wait_carrier(guest, true)?;
        let (server, host_server) = match uplink {
            Uplink::Tap | Uplink::Switch => {
                guest.sh(&format!(
                    "ip addr replace {GUEST_IP}/24 dev {INTERFACE} && \
                     ip addr replace {GUEST_IP6}/64 dev {INTERFACE} nodad"
                ))?;
                (HOST_IP.to_owned(), Some(Server::start(lab)?))
            }
            Uplink::User | Uplink::SwitchUser => {
                guest
                    .sh(&format!("udhcpc -i {INTERFACE} -n -q -t 5 -T 1"))
                    .context("the guest gets no address by DHCP")?;
                (gateway(guest)?, Some(Server::start(lab)?))
            }
            Uplink::Loopback => {
                guest.sh(&format!(
                    "ip netns add far && \
                     ip link add near0 link {INTERFACE} type macvlan mode vepa && \
                     ip link add far0 link {INTERFACE} type macvlan mode vepa && \
                     ip link set far0 netns far && \
                     ip addr add {GUEST_IP}/24 dev near0 && ip link set near0 up && \
                     ip -n far addr add {HOST_IP}/24 dev far0 && ip -n far link set far0 up && \
                     ip -n far link set lo up && \
                     ip netns exec far iperf3 --server --daemon"
                ))?;
                (HOST_IP.to_owned(), None)
            }
        };
        let cable = Cable {
            server,
            host_server,
        };
        // Not through passt: whether the host lets it send pings is another question, and DHCP has
        // shown already that there is a far end.
        if !matches!(uplink, Uplink::User | Uplink::SwitchUser) {
            guest
                .sh(&format!("ping -c 1 -w 10 {}", cable.server))
                .with_context(|| {
                    format!("the guest does not reach the far end, {}", cable.server)
                })?;
        }
        Ok(cable)
    }

    /// The same again, for a guest that has lost its end: after a reboot, or with a new driver.
    pub fn lay_again(&mut self, lab: &Lab, guest: &Guest, uplink: Uplink) -> Result<()> {
        // The old server holds the port, and may be waiting for a client that is gone.
        self.host_server = None;
        *self = Cable::lay(lab, guest, uplink)?;
        Ok(())
    }
}

/// Waits until the guest has a carrier, or has none.
pub fn wait_carrier(guest: &Guest, up: bool) -> Result<()> {
    let deadline = Instant::now() + CARRIER_LIMIT;
    loop {
        let carrier = guest.sh(&format!("cat /sys/class/net/{INTERFACE}/carrier"))?;
        if (carrier.trim() == "1") == up {
            return Ok(());
        }
        if Instant::now() > deadline {
            let wanted = if up { "has no" } else { "still has a" };
            bail!(
                "the guest's {INTERFACE} {wanted} carrier after {} s",
                CARRIER_LIMIT.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn gateway(guest: &Guest) -> Result<String> {
    let routes: Value = serde_json::from_str(&guest.sh("ip -j route show default")?)?;
    let gateway = routes.pointer("/0/gateway").and_then(Value::as_str);
    Ok(gateway
        .context("DHCP gave the guest no gateway")?
        .to_owned())
}
