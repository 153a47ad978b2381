// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The ports of a switch: adding, removing and showing them, from the command line's start and from
//! the control socket.
//!
//! A port is a socket, a NIC and its workers. The event loop has its sockets; it cannot be changed
//! while it hands out events, which is when a command of the control socket is carried out. So what
//! is to be changed there waits until the loop calls [`Ports::apply`], and the server lets no client
//! go on before that, the one who asked included: what an answer says has happened has happened.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use event_manager::{EventManager, MutEventSubscriber, SubscriberId, SubscriberOps};
use parking_lot::Mutex;

use crate::datapath::Dataplane;
use crate::datapath::workers::Workers;
use crate::frontend::port::{OnEnd, Port, Source};
use crate::nic::events::{Event, EventBus};
use crate::nic::offload::Offloads;
use crate::nic::{MacAddress, Nic, NicConfig};
use crate::socket::{Access, bind};
use crate::switch::vlan::{VlanId, VlanMode, VlanSet};
use crate::switch::{Switch, UPLINK_NAME, UplinkPort};

/// The control thread's event loop.
pub type EventLoop = EventManager<Box<dyn MutEventSubscriber>>;

/// Longest name of a port.
const LONGEST_NAME: usize = 32;

/// What all guests' NICs have in common.
#[derive(Clone, Debug)]
pub struct PortDefaults {
    /// The MTU.
    pub mtu: u16,
    /// Mbit/s told to the guests.
    pub speed: u32,
    /// Pairs of queues.
    pub queue_pairs: u16,
    /// Packed virtqueues are offered.
    pub packed: bool,
    /// Receive-side scaling is offered.
    pub rss: bool,
    /// To report hashes is offered.
    pub hash_report: bool,
    /// Whether a new port's cable is in.
    pub link_up: bool,
    /// How their workers run.
    pub workers: Workers,
}

/// A port to be made, as `key=value` pairs with commas between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSpec {
    /// Where its frontend is waited for.
    pub socket: Option<PathBuf>,
    /// Its name; otherwise `p` and the smallest number that is free.
    pub name: Option<String>,
    /// The NIC's own address; otherwise a random one.
    pub mac: Option<MacAddress>,
    /// Its VLANs.
    pub vlans: VlanMode,
}

/// Why a port was not made or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortProblem(pub String);

impl fmt::Display for PortProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PortProblem {}

fn problem(error: impl fmt::Display) -> PortProblem {
    PortProblem(error.to_string())
}

impl PortSpec {
    /// A port at this socket, with everything else left open.
    pub fn at(socket: PathBuf) -> Self {
        PortSpec {
            socket: Some(socket),
            ..PortSpec::default()
        }
    }

    /// Only the VLANs of a port.
    pub fn of(vlans: &VlanMode) -> Self {
        PortSpec {
            vlans: vlans.clone(),
            ..PortSpec::default()
        }
    }
}

impl FromStr for PortSpec {
    type Err = PortProblem;

    fn from_str(text: &str) -> Result<Self, PortProblem> {
        let mut spec = PortSpec::default();
        let (mut vlan, mut trunk, mut native): (Option<VlanId>, Option<VlanSet>, Option<VlanId>) =
            (None, None, None);
        for part in text.split(',') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(PortProblem(format!(
                    "'{}' is not of the form key=value",
                    part.escape_debug()
                )));
            };
            match key {
                "socket" => spec.socket = Some(value.into()),
                "name" => spec.name = Some(value.into()),
                "mac" => spec.mac = Some(value.parse().map_err(problem)?),
                "vlan" => vlan = Some(value.parse().map_err(problem)?),
                "trunk" => trunk = Some(value.parse().map_err(problem)?),
                "native" => native = Some(value.parse().map_err(problem)?),
                _ => {
                    return Err(PortProblem(format!(
                        "a port has no '{}'; known are socket, name, mac, vlan, trunk and native",
                        key.escape_debug()
                    )));
                }
            }
        }
        spec.vlans = VlanMode::new(vlan, trunk, native).map_err(problem)?;
        Ok(spec)
    }
}

/// A random address: individual, locally administered (IEEE 802c: `x2` in the first octet).
pub fn random_mac() -> Result<MacAddress, PortProblem> {
    let mut octets = [0u8; 6];
    let got = rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty());
    if got != Ok(octets.len()) {
        return Err(PortProblem(
            "the system gives no random numbers for an address; choose one with --mac".into(),
        ));
    }
    octets[0] = (octets[0] & 0xf0) | 0x02;
    Ok(MacAddress(octets))
}

/// A port of the switch, from the outside.
#[derive(Clone, Debug)]
pub struct PortView {
    /// Its name.
    pub name: String,
    /// Where its frontend is waited for; the uplink has none.
    pub socket: Option<PathBuf>,
    /// Its VLANs.
    pub vlans: VlanMode,
    /// Its NIC.
    pub nic: Arc<Nic>,
}

/// A guest's port.
#[derive(Debug)]
struct Plugged {
    view: PortView,
    /// Its place in the event loop, once it is there.
    id: Option<SubscriberId>,
}

#[derive(Debug)]
enum Change {
    /// Into the event loop.
    Add(String, Box<Port>),
    /// Out of it.
    Remove(SubscriberId),
}

#[derive(Debug, Default)]
struct State {
    plugged: Vec<Plugged>,
    changes: Vec<Change>,
    uplink: Option<UplinkPort>,
    /// The uplink's VLANs.
    uplink_vlans: VlanMode,
}

/// The ports of a switch.
#[derive(Debug)]
pub struct Ports {
    switch: Arc<Switch>,
    defaults: PortDefaults,
    events: Arc<EventBus>,
    state: Mutex<State>,
}

impl Ports {
    /// A switch without ports.
    pub fn new(defaults: PortDefaults) -> Arc<Self> {
        Arc::new(Ports {
            switch: Switch::new(),
            defaults,
            events: Arc::default(),
            state: Mutex::default(),
        })
    }

    /// The switch.
    pub fn switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// What all guests' NICs have in common.
    pub fn defaults(&self) -> &PortDefaults {
        &self.defaults
    }

    /// Where what happens at any port is told.
    pub fn events(&self) -> &Arc<EventBus> {
        &self.events
    }

    /// A NIC for a port.
    pub fn nic(&self, name: &str, mac: MacAddress, uplink: String) -> Arc<Nic> {
        let config = NicConfig {
            mac,
            mtu: self.defaults.mtu,
            speed: self.defaults.speed,
            queue_pairs: self.defaults.queue_pairs,
            packed: self.defaults.packed,
            rss: self.defaults.rss,
            hash_report: self.defaults.hash_report,
            offloads: Offloads::ALL,
            uplink,
        };
        let nic = Nic::at_port(config, name, Arc::clone(&self.events));
        if !self.defaults.link_up {
            nic.set_link(false);
        }
        Arc::new(nic)
    }

    /// Makes `uplink` a port; there is one at most.
    pub fn set_uplink(&self, uplink: UplinkPort, vlans: VlanMode) {
        uplink.link_changed();
        let mut state = self.state.lock();
        state.uplink = Some(uplink);
        state.uplink_vlans = vlans;
    }

    /// Makes a port, and gives its name. It takes frontends after the next [`Ports::apply`].
    pub fn add(&self, spec: &PortSpec) -> Result<String, PortProblem> {
        let Some(path) = &spec.socket else {
            return Err(PortProblem(
                "a port needs a socket for its frontend: its path is missing".into(),
            ));
        };
        let name = match &spec.name {
            Some(name) => check_name(name)?.clone(),
            None => self.free_name(),
        };
        let mac = match spec.mac {
            Some(mac) => mac,
            None => random_mac()?,
        };
        let nic = self.nic(&name, mac, "switch".into());
        // First of all: a port that is there but cannot be plugged in would be of no use.
        let bound = bind(path, Access::Umask).map_err(problem)?;
        let uplink = self
            .switch
            .add(&name, Arc::clone(&nic), spec.vlans.clone())
            .map_err(problem)?;
        let dataplane =
            Dataplane::start(Arc::clone(&nic), Box::new(uplink), &self.defaults.workers)
                .map_err(|e| PortProblem(format!("cannot start its workers: {e}")))?;
        self.switch.connect(&name, dataplane.inlets());
        let on_end = OnEnd(Box::new(|| {}));
        let source = Source::Bound(bound);
        let port = Port::new(source, Arc::clone(&nic), Arc::new(dataplane), on_end)
            .map_err(|e| PortProblem(format!("cannot serve its socket: {e}")))?;
        let view = PortView {
            name: name.clone(),
            socket: Some(path.clone()),
            vlans: spec.vlans.clone(),
            nic,
        };
        let mut state = self.state.lock();
        state.plugged.push(Plugged { view, id: None });
        state
            .changes
            .push(Change::Add(name.clone(), Box::new(port)));
        log::info!(
            "port {name}: mac {mac}, {}, waiting for a frontend on {}",
            spec.vlans,
            path.display()
        );
        self.events.publish(Event::PortAdded { port: name.clone() });
        Ok(name)
    }

    fn free_name(&self) -> String {
        let taken = self.views();
        let free = |name: &String| taken.iter().all(|port| port.name != *name);
        let names = (0..=taken.len()).map(|number| format!("p{number}"));
        names.into_iter().find(free).unwrap_or_default()
    }

    /// Takes a port away, and its frontend with it, with the next [`Ports::apply`].
    pub fn remove(&self, name: &str) -> Result<(), PortProblem> {
        if name == UPLINK_NAME {
            return Err(PortProblem(
                "the uplink stays as long as the switch; `link down --port uplink` takes it out \
                 of use"
                    .into(),
            ));
        }
        let mut state = self.state.lock();
        let at = state.plugged.iter().position(|port| port.view.name == name);
        let Some(at) = at else {
            drop(state);
            return Err(self.unknown(name));
        };
        let port = state.plugged.remove(at);
        match port.id {
            Some(id) => state.changes.push(Change::Remove(id)),
            // It has never been there.
            None => state
                .changes
                .retain(|change| !matches!(change, Change::Add(added, _) if added == name)),
        }
        drop(state);
        log::info!("port {name}: removed");
        self.events
            .publish(Event::PortRemoved { port: name.into() });
        Ok(())
    }

    /// The ports, in the order in which they were made, the uplink last.
    pub fn views(&self) -> Vec<PortView> {
        let state = self.state.lock();
        let uplink = state.uplink.as_ref().map(|uplink| PortView {
            name: UPLINK_NAME.into(),
            socket: None,
            vlans: state.uplink_vlans.clone(),
            nic: Arc::clone(uplink.nic()),
        });
        let guests = state.plugged.iter().map(|port| port.view.clone());
        guests.chain(uplink).collect()
    }

    /// The port of this name.
    pub fn find(&self, name: &str) -> Result<PortView, PortProblem> {
        let mut views = self.views().into_iter();
        views
            .find(|port| port.name == name)
            .ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> PortProblem {
        let shown: String = name.chars().take(LONGEST_NAME).collect();
        PortProblem(format!(
            "there is no port '{}'; {}",
            shown.escape_debug(),
            self.names()
        ))
    }

    /// The ports' names, for people.
    pub fn names(&self) -> String {
        let names: Vec<String> = self.views().into_iter().map(|port| port.name).collect();
        match names.len() {
            0 => "the switch has none".into(),
            _ => format!("the ports are {}", names.join(", ")),
        }
    }

    /// Pulls a port's cable or puts it back; whether that changed anything.
    pub fn set_link(&self, name: &str, up: bool) -> Result<bool, PortProblem> {
        let port = self.find(name)?;
        let changed = port.nic.set_link(up);
        if name == UPLINK_NAME
            && let Some(uplink) = &self.state.lock().uplink
        {
            uplink.link_changed();
        }
        Ok(changed)
    }

    /// Whether the event loop has changes to make.
    pub fn changing(&self) -> bool {
        !self.state.lock().changes.is_empty()
    }

    /// Makes the changes in the event loop.
    pub fn apply(&self, event_loop: &mut EventLoop) {
        let changes = std::mem::take(&mut self.state.lock().changes);
        for change in changes {
            match change {
                Change::Add(name, port) => {
                    let id = event_loop.add_subscriber(port);
                    let mut state = self.state.lock();
                    let mut plugged = state.plugged.iter_mut();
                    if let Some(port) = plugged.find(|port| port.view.name == name) {
                        port.id = Some(id);
                    }
                }
                // Dropping it ends its workers and unplugs its frontend.
                Change::Remove(id) => drop(event_loop.remove_subscriber(id)),
            }
        }
    }

    /// Ends the uplink.
    pub fn close(&self) {
        let uplink = self.state.lock().uplink.take();
        drop(uplink);
    }
}

fn check_name(name: &String) -> Result<&String, PortProblem> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(plain) {
        return Ok(name);
    }
    let shown: String = name.chars().take(LONGEST_NAME).collect();
    Err(PortProblem(format!(
        "'{}' cannot be a port's name: that is 1 to {LONGEST_NAME} letters, digits, dots, hyphens \
         and underscores",
        shown.escape_debug()
    )))
}

/// A path as another process understands it.
pub fn absolute(path: &Path) -> Result<PathBuf, PortProblem> {
    std::path::absolute(path)
        .map_err(|e| PortProblem(format!("{} cannot be found: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> Arc<Ports> {
        Ports::new(PortDefaults {
            mtu: 1500,
            speed: 10_000,
            queue_pairs: 1,
            packed: true,
            rss: true,
            hash_report: true,
            link_up: true,
            workers: Workers::default(),
        })
    }

    #[test]
    fn a_port_is_described_in_pairs() {
        let spec: PortSpec = "socket=/s,name=a,mac=52:54:00:00:00:01,trunk=5+7-9,native=3"
            .parse()
            .unwrap();
        assert_eq!(spec.socket, Some("/s".into()));
        assert_eq!(spec.name, Some("a".into()));
        assert_eq!(spec.vlans.to_string(), "trunk 5,7-9, native 3");
        let spec: PortSpec = "vlan=10".parse().unwrap();
        assert_eq!(
            (spec.vlans.to_string(), spec.socket),
            ("vlan 10".into(), None)
        );
        for (bad, hint) in [
            ("", "key=value"),
            ("socket", "key=value"),
            ("colour=red", "known are"),
            ("vlan=5000", "4094"),
            ("vlan=1,trunk=2", "either"),
            ("mac=01:00:00:00:00:00", "group"),
        ] {
            let error = bad.parse::<PortSpec>().unwrap_err().to_string();
            assert!(error.contains(hint), "{bad}: {error}");
        }
    }

    #[test]
    fn ports_come_into_the_event_loop_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let ports = ports();
        let mut event_loop = EventLoop::new().unwrap();
        for expected in ["p0", "p1"] {
            let name = ports.add(&PortSpec::at(path(expected))).unwrap();
            assert_eq!(name, expected);
        }
        assert!(ports.changing());
        ports.apply(&mut event_loop);
        assert!(!ports.changing());
        ports.remove("p0").unwrap();
        ports.apply(&mut event_loop);
        assert!(!path("p0").exists() && path("p1").exists());
        assert_eq!(ports.switch().ports().len(), 1);
        // One that goes before it has come.
        ports.add(&PortSpec::at(path("p0"))).unwrap();
        ports.remove("p0").unwrap();
        assert!(!ports.changing() && !path("p0").exists());
        assert_eq!(ports.switch().ports().len(), 1);
        drop(event_loop);
        assert!(ports.switch().ports().is_empty());
    }

    #[test]
    fn what_cannot_be_is_explained_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let ports = ports();
        let named = |name: &str, socket: &str| PortSpec {
            name: Some(name.into()),
            ..PortSpec::at(path(socket))
        };
        ports.add(&named("a", "s1")).unwrap();
        for (spec, hint) in [
            (named("a", "s2"), "already"),
            (named("uplink", "s2"), "already"),
            (named("", "s2"), "1 to 32"),
            (named("a b", "s2"), "letters"),
            (named("b", "s1"), "in use"),
            (named("b", "no/s"), "directory"),
            (PortSpec::default(), "socket"),
        ] {
            let error = ports.add(&spec).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
            assert!(!path("s2").exists());
            assert_eq!(ports.views().len(), 1);
            assert_eq!(ports.switch().ports().len(), 1);
        }
        for error in [ports.remove("b").unwrap_err(), ports.find("b").unwrap_err()] {
            assert!(error.to_string().contains("the ports are a"), "{error}");
        }
    }
}
