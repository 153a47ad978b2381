// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What each command of the control socket does.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::replies::{FrontendReply, LinkReply, LinkSetReply, PairReply, StatsReply, StatusReply};
use super::stop::Stop;
use crate::nic::Nic;
use crate::nic::events::Event;

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

type Run = fn(&Commands, Arguments) -> Result<Value, CommandError>;

/// Every command but `qmp_capabilities`, which is the session's own.
const COMMANDS: [(&str, Run); 8] = [
    ("query-status", |c, a| c.query_status(read(a)?)),
    ("query-link", |c, a| c.query_link(read(a)?)),
    ("link-set", |c, a| c.link_set(read(a)?)),
    ("query-stats", |c, a| c.query_stats(read(a)?)),
    ("query-frontend", |c, a| c.query_frontend(read(a)?)),
    ("query-version", |c, a| c.query_version(read(a)?)),
    ("query-commands", |c, a| c.query_commands(read(a)?)),
    ("quit", |c, a| c.quit(read(a)?)),
];

/// Carries commands out on a NIC.
#[derive(Clone, Debug)]
pub struct Commands {
    nic: Arc<Nic>,
    stop: Stop,
    follow: bool,
    started: Instant,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoArguments {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkSet {
    up: bool,
}

impl Commands {
    /// Commands for `nic`. `follow` says whether the link follows the uplink.
    pub fn new(nic: Arc<Nic>, stop: Stop, follow: bool) -> Self {
        Commands {
            nic,
            stop,
            follow,
            started: Instant::now(),
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
        let config = &self.nic.config;
        reply(&StatusReply {
            running: true,
            status: "running".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            mac: config.mac.to_string(),
            mtu: config.mtu,
            queue_pairs: config.queue_pairs,
            uplink: config.uplink.clone(),
        })
    }

    fn query_link(&self, _: NoArguments) -> Result<Value, CommandError> {
        reply(&LinkReply {
            up: self.nic.link_up(),
            uplink_up: self.nic.uplink_up(),
            follow: self.follow,
            speed: self.nic.config.speed,
        })
    }

    fn link_set(&self, arguments: LinkSet) -> Result<Value, CommandError> {
        let changed = self.nic.set_link(arguments.up);
        reply(&LinkSetReply { changed })
    }

    fn query_stats(&self, _: NoArguments) -> Result<Value, CommandError> {
        let queues = self.nic.counters.iter().enumerate();
        let queues = queues
            .map(|(index, counters)| PairReply { index, counters })
            .collect();
        reply(&StatsReply { queues })
    }

    fn query_frontend(&self, _: NoArguments) -> Result<Value, CommandError> {
        let info = self.nic.frontend();
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
    let (name, data) = match event {
        Event::LinkChanged { up } => ("LINK_CHANGED", json!({"up": up})),
        Event::FrontendConnected { pid: Some(pid) } => ("FRONTEND_CONNECTED", json!({"pid": pid})),
        Event::FrontendConnected { pid: None } => ("FRONTEND_CONNECTED", json!({})),
        Event::FrontendDisconnected => ("FRONTEND_DISCONNECTED", json!({})),
        Event::UplinkChanged { up } => ("UPLINK_CHANGED", json!({"up": up})),
    };
    // A clock before 1970 is QMP's case of a host that cannot tell the time: -1.
    let timestamp = match now.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(time) => json!({"seconds": time.as_secs(), "microseconds": time.subsec_micros()}),
        Err(_) => json!({"seconds": -1, "microseconds": -1}),
    };
    json!({"event": name, "data": data, "timestamp": timestamp})
}

/// Reads a command's arguments; what is missing, unknown or of a wrong type is said.
pub fn read<T: DeserializeOwned>(arguments: Arguments) -> Result<T, CommandError> {
    serde_json::from_value(Value::Object(arguments))
        .map_err(|e| CommandError::Generic(format!("bad arguments: {}", shorten(&e.to_string()))))
}

fn reply<T: Serialize>(answer: &T) -> Result<Value, CommandError> {
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
