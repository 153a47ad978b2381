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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::Map;

    use super::*;
    use crate::control::ports::{EventLoop, PortDefaults, Ports};
    use crate::control::stop::Stop;
    use crate::datapath::workers::Workers;

    #[derive(Clone, Debug)]
    enum Step {
        /// Name, socket, VLAN.
        Add(u8, u8, u16),
        Remove(u8),
        Link(u8, bool),
        /// A command with an argument that it does not have, or of another type.
        Nonsense(usize, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4u8, 0..4u8, prop_oneof![1..4094u16, Just(0), 4095..=u16::MAX])
                .prop_map(|(name, socket, vlan)| Step::Add(name, socket, vlan)),
            2 => (0..4u8).prop_map(Step::Remove),
            1 => (0..4u8, any::<bool>()).prop_map(|(name, up)| Step::Link(name, up)),
            1 => (0..5usize, any::<bool>()).prop_map(|(which, wrong)| Step::Nonsense(which, wrong)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Against a map: a port is there from the answer to port-add on until that to port-remove,
        /// and what is refused changes nothing.
        #[test]
        fn ports_are_as_commanded(steps in proptest::collection::vec(step(), 0..24)) {
            let directory = tempfile::tempdir().unwrap();
            let ports = Ports::new(PortDefaults {
                mtu: 1500,
                speed: 10_000,
                queue_pairs: 1,
                packed: true,
                rss: true,
                hash_report: true,
                link_up: true,
                workers: Workers::default(),
            });
            let mut event_loop = EventLoop::new().unwrap();
            let stop = Stop::new().unwrap();
            let commands = Commands::for_switch(ports.clone(), "switch".into(), stop);
            let run = |name: &str, arguments: Value| match arguments {
                Value::Object(arguments) => commands.run(name, arguments),
                _ => commands.run(name, Map::new()),
            };
            // The socket of each port, and whether its link is up.
            let mut model: BTreeMap<String, (PathBuf, bool)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Add(name, socket, vlan) => {
                        let name = format!("n{name}");
                        let socket = directory.path().join(format!("s{socket}"));
                        let free = !model.contains_key(&name)
                            && model.values().all(|(taken, _)| *taken != socket);
                        let done = run("port-add", json!({
                            "socket-path": socket, "name": name, "vlan": vlan,
                        }));
                        let valid = (1..=4094).contains(&vlan);
                        prop_assert_eq!(done.is_ok(), free && valid, "{:?}", done);
                        if done.is_ok() {
                            model.insert(name, (socket, true));
                        }
                    }
                    Step::Remove(name) => {
                        let name = format!("n{name}");
                        let done = run("port-remove", json!({"name": name}));
                        prop_assert_eq!(done.is_ok(), model.remove(&name).is_some());
                    }
                    Step::Link(name, up) => {
                        let name = format!("n{name}");
                        let done = run("link-set", json!({"up": up, "port": name}));
                        match model.get_mut(&name) {
                            Some((_, was)) => {
                                let changed = std::mem::replace(was, up) != up;
                                prop_assert_eq!(done, Ok(json!({"changed": changed})));
                            }
                            None => prop_assert!(done.is_err()),
                        }
                    }
                    Step::Nonsense(which, wrong) => {
                        let names = ["port-add", "port-remove", "query-ports", "query-addresses", "link-set"];
                        let argument = if wrong { json!({"name": []}) } else { json!({"x": 1}) };
                        prop_assert!(run(names[which], argument).is_err());
                    }
                }
                ports.apply(&mut event_loop);
                let answer: PortsReply =
                    serde_json::from_value(run("query-ports", json!({})).unwrap()).unwrap();
                let mut there: Vec<_> = answer.ports.into_iter().map(|p| (p.name, p.up)).collect();
                there.sort();
                let expected: Vec<_> = model.iter().map(|(n, (_, up))| (n.clone(), *up)).collect();
                prop_assert_eq!(there, expected);
                let files = directory.path().read_dir().unwrap().count();
                // A netdev's socket goes with its link only once a frontend was there.
                prop_assert_eq!(files, model.len());
                prop_assert_eq!(ports.switch().ports().len(), model.len());
            }
        }
    }
}
