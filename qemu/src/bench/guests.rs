// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From guest to guest, both on this host: through our switch, one process with a port for each, beside
//! two QEMUs with taps in a bridge of the kernel, and two QEMUs joined by a socket.

use anyhow::{Context, Result};

use super::Args;
use super::host::Weather;
use super::transfer::{self, Group, Load, Measured};
use super::turns::{self, Subject};
use crate::backend::{Backend, Launch};
use crate::lab::Lab;
use crate::machine::Spec;
use crate::machine::nic::{Attach, Nic};
use crate::net;
use crate::station::{self, Station};
use crate::traffic::Direction::{GuestToHost, HostToGuest};

/// What joins the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joint {
    /// Our switch.
    Switch(Attach),
    /// Two taps in a bridge of the kernel.
    Bridge,
    /// QEMU's own socket from the one to the other.
    Stream,
}

/// The second guest has iperf3's server: it is what elsewhere is the host.
const LOADS: &[Load] = &[
    Load::tcp("guest_to_guest", GuestToHost),
    Load::tcp("guest_to_guest_back", HostToGuest),
    Load::udp("udp_guest_to_guest", GuestToHost),
];

const OURS: [(&str, Joint); 2] = [
    ("guests", Joint::Switch(Attach::Netdev)),
    ("device-guests", Joint::Switch(Attach::Device)),
];
const PEERS: [Joint; 2] = [Joint::Bridge, Joint::Stream];

impl Subject for Joint {
    fn name(self) -> String {
        let name = match self {
            Joint::Switch(Attach::Netdev) => "ferronic-switch",
            Joint::Switch(Attach::Device) => "ferronic-device-switch",
            Joint::Bridge => "qemu-tap-bridge",
            Joint::Stream => "qemu-stream",
        };
        name.to_owned()
    }

    fn is_ours(self) -> bool {
        matches!(self, Joint::Switch(_))
    }
}

/// What is compared with what.
pub fn groups() -> Vec<Group> {
    let group = |(name, ours): (_, Joint)| Group {
        name,
        ours: ours.name(),
        peers: PEERS.map(Joint::name).to_vec(),
        loads: LOADS,
    };
    OURS.map(group).into()
}

/// Measures everything.
pub fn run(lab: &Lab, args: &Args, weather: &mut Weather) -> Result<Vec<Measured>> {
    let joints = OURS.map(|(_, joint)| joint).into_iter().chain(PEERS);
    turns::take(
        "iperf, guest to guest,",
        args.rounds,
        joints.collect(),
        transfer::summary,
        |joint| {
            let all = measure(lab, joint, args)?;
            transfer::note(weather, &all);
            Ok(all)
        },
    )
}

/// All transfers in one set-up.
fn measure(lab: &Lab, joint: Joint, args: &Args) -> Result<Vec<Measured>> {
    let Two { stations, backend } = Two::start(lab, joint)?;
    let [a, b] = &stations;
    a.join()?;
    b.join()?;
    let guest = &a.machine.guest;
    guest
        .sh(&format!("ping -q -c 3 -i 0.1 -w 10 {}", b.address))
        .context("the guests do not reach each other")?;
    b.machine.guest.sh("iperf3 --server --daemon")?;
    transfer::warm_up(guest, &b.address)?;
    let measured = LOADS
        .iter()
        .map(|load| load.measure(joint.name(), (guest, None), &b.address, args.seconds))
        .collect::<Result<_>>()?;
    for station in stations {
        station.machine.quit()?;
    }
    if let Some(backend) = backend {
        backend.terminate()?;
    }
    Ok(measured)
}

/// Two guests, and what is between them. The guests go first.
struct Two {
    stations: [Station; 2],
    backend: Option<Backend>,
}

impl Two {
    fn start(lab: &Lab, joint: Joint) -> Result<Self> {
        let ([a, b], backend) = match joint {
            Joint::Switch(attach) => {
                let sockets = ["a", "b"].map(|name| lab.run.dir.join(lab.unique(name)));
                let backend = switch(lab, &sockets)?;
                let [a, b] = &sockets;
                let nics = [backend.nic_at(a, attach, 1)?, backend.nic_at(b, attach, 1)?];
                (nics, Some(backend))
            }
            Joint::Bridge => {
                net::make_bridge(lab)?;
                let nic = |name: &str| Nic::Tap {
                    name: name.to_owned(),
                    queues: 1,
                };
                (net::BRIDGED.map(nic), None)
            }
            Joint::Stream => {
                let socket = lab.run.dir.join(lab.unique("stream"));
                let nic = |listens| Nic::Stream {
                    socket: socket.clone(),
                    listens,
                };
                ([nic(true), nic(false)], None)
            }
        };
        let boot = |nic, number| {
            let mut spec = Spec::new(format!("{}-{number}", joint.name()), nic);
            // Where the backend owns config space it has addresses for both.
            if joint != Joint::Switch(Attach::Device) {
                spec.nic_property(&format!("mac={}", station::mac(number)));
            }
            Station::boot(lab, &spec, number)
        };
        // The first listens for the second.
        let stations = [boot(a, 2)?, boot(b, 3)?];
        Ok(Two { stations, backend })
    }
}

/// Our switch, with a port at each socket and no way out.
fn switch(lab: &Lab, sockets: &[std::path::PathBuf; 2]) -> Result<Backend> {
    let id = lab.unique("switch");
    let control = lab.run.dir.join(format!("{id}.ctl"));
    let mut arguments = vec!["serve".to_owned()];
    let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
    add("--control", control.display().to_string());
    add("--uplink", "switch".into());
    for socket in sockets {
        add("--socket-path", socket.display().to_string());
    }
    let [socket, _] = sockets;
    Backend::launch(Launch {
        binary: lab.ferronic.clone(),
        arguments,
        socket: socket.clone(),
        control,
        log: lab.run.logs.join(format!("{id}.backend.log")),
        port: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_compared_with_all_peers() {
        let groups = groups();
        assert_eq!(groups.len(), OURS.len());
        for group in groups {
            assert!(group.ours.starts_with("ferronic"));
            assert_eq!(group.peers, ["qemu-tap-bridge", "qemu-stream"]);
        }
        assert!(!PEERS.iter().any(|peer| peer.is_ours()));
    }
}
