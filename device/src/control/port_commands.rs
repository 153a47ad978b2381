// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What those commands do that only a switch has.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::commands::{CommandError, Commands, NoArguments, reply};
use super::ports::{PortProblem, PortSpec, PortView};
use super::replies::{AddressReply, AddressesReply, PortReply, PortsReply};
use crate::nic::counters::PairCounters;
use crate::switch::vlan::{VlanId, VlanMode};

/// Arguments of `port-add`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct PortAdd {
    socket_path: PathBuf,
    name: Option<String>,
    mac: Option<String>,
    vlan: Option<u16>,
    trunk: Option<String>,
    native: Option<u16>,
}

/// Arguments of `port-remove`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PortRemove {
    name: String,
}

fn problem(error: impl std::fmt::Display) -> PortProblem {
    PortProblem(error.to_string())
}

fn vlan(id: Option<u16>) -> Result<Option<VlanId>, PortProblem> {
    id.map(|id| {
        VlanId::new(id).ok_or_else(|| PortProblem(format!("{id} is no VLAN; those are 1 to 4094")))
    })
    .transpose()
}

impl PortAdd {
    fn spec(self) -> Result<PortSpec, PortProblem> {
        if !self.socket_path.is_absolute() {
            return Err(PortProblem(
                "the path of the socket must be absolute: the backend may be in another directory"
                    .into(),
            ));
        }
        let trunk = self.trunk.map(|set| set.parse()).transpose();
        Ok(PortSpec {
            socket: Some(self.socket_path),
            name: self.name,
            mac: self
                .mac
                .map(|mac| mac.parse())
                .transpose()
                .map_err(problem)?,
            vlans: VlanMode::new(
                vlan(self.vlan)?,
                trunk.map_err(problem)?,
                vlan(self.native)?,
            )
            .map_err(problem)?,
        })
    }
}

impl Commands {
    pub(super) fn port_add(&self, arguments: PortAdd) -> Result<Value, CommandError> {
        let ports = self.ports()?;
        let name = ports.add(&arguments.spec()?)?;
        Ok(json!({"name": name}))
    }

    pub(super) fn port_remove(&self, arguments: PortRemove) -> Result<Value, CommandError> {
        self.ports()?.remove(&arguments.name)?;
        Ok(json!({}))
    }

    pub(super) fn query_ports(&self, _: NoArguments) -> Result<Value, CommandError> {
        let ports = self.ports()?;
        let addresses = ports.switch().addresses();
        let known = |name: &str| addresses.iter().filter(|(_, port)| port == name).count();
        let views = ports.views();
        reply(&PortsReply {
            ports: (views.iter())
                .map(|view| port_reply(view, known(&view.name)))
                .collect(),
        })
    }

    pub(super) fn query_addresses(&self, _: NoArguments) -> Result<Value, CommandError> {
        let addresses = self.ports()?.switch().addresses().into_iter();
        let addresses = addresses.map(|(address, port)| AddressReply {
            vlan: address.vlan,
            mac: address.mac.to_string(),
            port,
            age: address.age,
        });
        reply(&AddressesReply {
            addresses: addresses.collect(),
        })
    }
}

fn port_reply(view: &PortView, addresses: usize) -> PortReply {
    let nic = &view.nic;
    let sum = |part: fn(&PairCounters) -> u64| {
        let parts = nic.counters.iter().map(part);
        parts.fold(0, u64::wrapping_add)
    };
    let guest = view.socket.is_some();
    PortReply {
        name: view.name.clone(),
        socket: (view.socket.as_ref()).map(|path| path.display().to_string()),
        mac: guest.then(|| nic.config.mac.to_string()),
        vlans: view.vlans.to_string(),
        up: nic.link_up(),
        connected: if guest {
            nic.frontend().is_some()
        } else {
            nic.uplink_up()
        },
        addresses,
        received: sum(|pair| pair.rx.packets.get()),
        sent: sum(|pair| pair.tx.packets.get()),
        drops: sum(|pair| pair.rx.drops.total().wrapping_add(pair.tx.drops.total())),
    }
}
