// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What each command of the control socket does.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::ports::{PortProblem, Ports};
use super::replies::{
    FrontendReply, LinkReply, LinkSetReply, PairReply, PortStatsReply, StatsReply, StatusReply,
};
use super::stop::Stop;
use crate::nic::Nic;
use crate::nic::events::{Event, EventBus};

/// Why a command was not carried out: the two classes that QMP knows and clients tell apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// There is no such command, or not now.
    NotFound(String),
    /// Anything else.
    Generic(String),
}

impl CommandError {
    /// As a QMP error object.
    pub fn to_json(&self) -> Value {
        let (class, desc) = match self {
            CommandError::NotFound(desc) => ("CommandNotFound", desc),
            CommandError::Generic(desc) => ("GenericError", desc),
        };
        json!({"class": class, "desc": desc})
    }
}

/// Arguments as they came.
pub type Arguments = Map<String, Value>;

impl From<PortProblem> for CommandError {
    fn from(problem: PortProblem) -> Self {
        CommandError::Generic(problem.to_string())
    }
}

type Run = fn(&Commands, Arguments) -> Result<Value, CommandError>;

/// Every command but `qmp_capabilities`, which is the session's own.
const COMMANDS: [(&str, Run); 12] = [
    ("query-status", |c, a| c.query_status(read(a)?)),
    ("query-link", |c, a| c.query_link(read(a)?)),
    ("link-set", |c, a| c.link_set(read(a)?)),
    ("query-stats", |c, a| c.query_stats(read(a)?)),
    ("query-frontend", |c, a| c.query_frontend(read(a)?)),
    ("query-ports", |c, a| c.query_ports(read(a)?)),
    ("query-addresses", |c, a| c.query_addresses(read(a)?)),
    ("port-add", |c, a| c.port_add(read(a)?)),
    ("port-remove", |c, a| c.port_remove(read(a)?)),
    ("query-version", |c, a| c.query_version(read(a)?)),
    ("query-commands", |c, a| c.query_commands(read(a)?)),
    ("quit", |c, a| c.quit(read(a)?)),
];

/// What the commands are for.
#[derive(Clone, Debug)]
enum Target {
    Nic(Arc<Nic>),
    Switch(Arc<Ports>, String),
}

/// Carries commands out on a NIC, or on a switch and the NICs at its ports.
#[derive(Clone, Debug)]
pub struct Commands {
    target: Target,
    stop: Stop,
    follow: bool,
    started: Instant,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoArguments {}

/// Which of several NICs is meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    port: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkSet {
    up: bool,
    port: Option<String>,
}

impl Commands {
    /// Commands for `nic`. `follow` says whether the link follows the uplink.
    pub fn new(nic: Arc<Nic>, stop: Stop, follow: bool) -> Self {
        Commands {
            target: Target::Nic(nic),
            stop,
            follow,
            started: Instant::now(),
        }
    }

    /// Commands for a switch; `uplink` is what people call it.
    pub fn for_switch(ports: Arc<Ports>, uplink: String, stop: Stop) -> Self {
        Commands {
            target: Target::Switch(ports, uplink),
            stop,
            follow: false,
            started: Instant::now(),
        }
    }

    /// Where what happens is told.
    pub fn events(&self) -> &EventBus {
        match &self.target {
            Target::Nic(nic) => nic.events(),
            Target::Switch(ports, _) => ports.events(),
        }
    }

    /// Whether what has been commanded last is still being done, and no other command may be
    /// carried out.
    pub fn changing(&self) -> bool {
        match &self.target {
            Target::Nic(_) => false,
            Target::Switch(ports, _) => ports.changing(),
        }
    }

    /// The switch, where there is one.
    pub(super) fn ports(&self) -> Result<&Arc<Ports>, CommandError> {
        match &self.target {
            Target::Switch(ports, _) => Ok(ports),
            Target::Nic(_) => Err(CommandError::Generic(
                "this NIC has no ports: the backend was not started with --uplink switch".into(),
            )),
        }
    }

    /// The NIC that is meant.
    fn nic(&self, port: Option<&str>) -> Result<Arc<Nic>, CommandError> {
        match (&self.target, port) {
            (Target::Nic(nic), None) => Ok(Arc::clone(nic)),
            (Target::Nic(_), Some(_)) => Err(self.ports().err().unwrap_or_else(no_port)),
            (Target::Switch(ports, _), Some(port)) => Ok(ports.find(port)?.nic),
            (Target::Switch(ports, _), None) => Err(CommandError::Generic(format!(
                "this is a switch: name a port; {}",
                ports.names()
            ))),
        }
    }

    /// Carries out the command `name`.
    pub fn run(&self, name: &str, arguments: Arguments) -> Result<Value, CommandError> {
        match COMMANDS.iter().find(|(known, _)| *known == name) {
            Some((_, run)) => run(self, arguments),
            None => Err(CommandError::NotFound(format!(
                "there is no command '{}'; query-commands lists them",
                shorten(name)
            ))),
        }
    }

    fn query_status(&self, _: NoArguments) -> Result<Value, CommandError> {
        let (mac, mtu, queue_pairs, uplink, ports) = match &self.target {
            Target::Nic(nic) => {
                let config = &nic.config;
                let (mac, uplink) = (config.mac.to_string(), config.uplink.clone());
                (Some(mac), config.mtu, config.queue_pairs, uplink, None)
            }
            Target::Switch(ports, uplink) => {
                let defaults = ports.defaults();
                let count = ports.views().len();
                let (mtu, pairs) = (defaults.mtu, defaults.queue_pairs);
                (None, mtu, pairs, uplink.clone(), Some(count))
            }
        };
        reply(&StatusReply {
            running: true,
            status: "running".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            mac,
            mtu,
            queue_pairs,
            uplink,
            ports,
        })
    }

    fn query_link(&self, arguments: Which) -> Result<Value, CommandError> {
        let nic = self.nic(arguments.port.as_deref())?;
        reply(&LinkReply {
            up: nic.link_up(),
            uplink_up: nic.uplink_up(),
            follow: self.follow,
            speed: nic.config.speed,
        })
    }

    fn link_set(&self, arguments: LinkSet) -> Result<Value, CommandError> {
        let changed = match (&self.target, arguments.port.as_deref()) {
            (Target::Switch(ports, _), Some(port)) => ports.set_link(port, arguments.up)?,
            (_, port) => self.nic(port)?.set_link(arguments.up),
        };
        reply(&LinkSetReply { changed })
    }

    fn query_stats(&self, arguments: Which) -> Result<Value, CommandError> {
        if let (Target::Switch(ports, _), None) = (&self.target, &arguments.port) {
            let views = ports.views();
            let ports = views.iter().map(|view| PortStatsReply {
                port: &view.name,
                queues: queues(&view.nic),
            });
            return reply(&json!({"ports": ports.collect::<Vec<_>>()}));
        }
        let nic = self.nic(arguments.port.as_deref())?;
        reply(&StatsReply {
            queues: queues(&nic),
        })
    }

    fn query_frontend(&self, arguments: Which) -> Result<Value, CommandError> {
        let info = self.nic(arguments.port.as_deref())?.frontend();
        reply(&FrontendReply {
            connected: info.is_some(),
            info,
        })
    }

    fn query_version(&self, _: NoArguments) -> Result<Value, CommandError> {
        Ok(version())
    }

    fn query_commands(&self, _: NoArguments) -> Result<Value, CommandError> {
        let names = COMMANDS.iter().map(|(name, _)| *name);
        let all = names.chain(["qmp_capabilities"]);
        Ok(all.map(|name| json!({"name": name})).collect())
    }

    fn quit(&self, _: NoArguments) -> Result<Value, CommandError> {
        log::info!("asked to quit over the control socket");
        self.stop.request();
        Ok(json!({}))
    }
}

fn no_port() -> CommandError {
    CommandError::Generic("there are no ports".into())
}

fn queues(nic: &Nic) -> Vec<PairReply<'_>> {
    let queues = nic.counters.iter().enumerate();
    queues
        .map(|(index, counters)| PairReply { index, counters })
        .collect()
}

/// What the greeting and `query-version` say. The key `qemu` is QMP's; `package` tells who we are.
pub fn version() -> Value {
    let part = |text: &str| text.parse::<u64>().unwrap_or(0);
    json!({
        "qemu": {
            "major": part(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": part(env!("CARGO_PKG_VERSION_MINOR")),
            "micro": part(env!("CARGO_PKG_VERSION_PATCH")),
        },
        "package": concat!("ferronic ", env!("CARGO_PKG_VERSION")),
    })
}

/// An event of the NIC as clients get it.
pub fn event(event: &Event, now: SystemTime) -> Value {
    let (name, data) = name_and_data(event);
    // A clock before 1970 is QMP's case of a host that cannot tell the time: -1.
    let timestamp = match now.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(time) => json!({"seconds": time.as_secs(), "microseconds": time.subsec_micros()}),
        Err(_) => json!({"seconds": -1, "microseconds": -1}),
    };
    json!({"event": name, "data": data, "timestamp": timestamp})
}

fn name_and_data(event: &Event) -> (&'static str, Value) {
    match event {
        Event::LinkChanged { up } => ("LINK_CHANGED", json!({"up": up})),
        Event::FrontendConnected { pid: Some(pid) } => ("FRONTEND_CONNECTED", json!({"pid": pid})),
        Event::FrontendConnected { pid: None } => ("FRONTEND_CONNECTED", json!({})),
        Event::FrontendDisconnected => ("FRONTEND_DISCONNECTED", json!({})),
        Event::UplinkChanged { up } => ("UPLINK_CHANGED", json!({"up": up})),
        Event::PortAdded { port } => ("PORT_ADDED", json!({"port": port})),
        Event::PortRemoved { port } => ("PORT_REMOVED", json!({"port": port})),
        Event::AtPort { port, event } => {
            let (name, mut data) = name_and_data(event);
            if let Value::Object(data) = &mut data {
                data.insert("port".into(), json!(port));
            }
            (name, data)
        }
    }
}

/// Reads a command's arguments; what is missing, unknown or of a wrong type is said.
pub fn read<T: DeserializeOwned>(arguments: Arguments) -> Result<T, CommandError> {
    serde_json::from_value(Value::Object(arguments))
        .map_err(|e| CommandError::Generic(format!("bad arguments: {}", shorten(&e.to_string()))))
}

pub(super) fn reply<T: Serialize>(answer: &T) -> Result<Value, CommandError> {
    serde_json::to_value(answer)
        .map_err(|e| CommandError::Generic(format!("cannot write the answer: {e}")))
}

/// Outside text for an error message: one that cannot be longer than a screen line or two.
pub fn shorten(text: &str) -> String {
    const LONGEST: usize = 160;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.into(),
    }
}
