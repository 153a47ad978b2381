// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which uplink is wanted, as the command line says it: `loopback`, `tap:NAME`, `user`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::Uplink;
use super::loopback::Loopback;
use super::tap::{BadInterfaceName, InterfaceName, Tap, TapError};
use super::user::{User, UserError};

/// An uplink by kind and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UplinkSpec {
    /// What goes out comes back.
    Loopback,
    /// The host's tap interface of this name.
    Tap(InterfaceName),
    /// A user-mode network, played by passt.
    User,
}

impl UplinkSpec {
    /// The MTU that serves this uplink best. passt takes plain frames only, with nothing left to
    /// segment: its throughput comes from large ones.
    pub fn default_mtu(&self) -> u16 {
        match self {
            UplinkSpec::User => super::user::MAX_MTU,
            UplinkSpec::Loopback | UplinkSpec::Tap(_) => 1500,
        }
    }
}

impl fmt::Display for UplinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UplinkSpec::Loopback => f.write_str("loopback"),
            UplinkSpec::Tap(name) => write!(f, "tap:{name}"),
            UplinkSpec::User => f.write_str("user"),
        }
    }
}

/// Why a text names no uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadUplinkSpec {
    /// There is no such kind.
    UnknownKind(String),
    /// The tap cannot have this name.
    TapName(BadInterfaceName),
}

impl fmt::Display for BadUplinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadUplinkSpec::UnknownKind(text) => write!(
                f,
                "there is no uplink '{}'; known are loopback, tap:NAME and user",
                text.escape_debug()
            ),
            BadUplinkSpec::TapName(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for BadUplinkSpec {}

impl FromStr for UplinkSpec {
    type Err = BadUplinkSpec;

    fn from_str(text: &str) -> Result<Self, BadUplinkSpec> {
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind, Some(rest)),
            None => (text, None),
        };
        match (kind, rest) {
            ("loopback", None) => Ok(UplinkSpec::Loopback),
            ("user", None) => Ok(UplinkSpec::User),
            ("tap", name) => name
                .unwrap_or_default()
                .parse()
                .map(UplinkSpec::Tap)
                .map_err(BadUplinkSpec::TapName),
            _ => Err(BadUplinkSpec::UnknownKind(text.into())),
        }
    }
}

/// What an uplink has to know of the NIC it serves.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Queues to open, one for each pair of the NIC.
    pub queue_pairs: u16,
    /// The NIC's MTU.
    pub mtu: u16,
    /// Where passt is; `None` searches `PATH`.
    pub passt: Option<PathBuf>,
}

/// Told when the uplink's own carrier comes or goes, and once before [`open`] returns. Called from
/// a thread of the uplink; must not drop the uplink.
pub type OnCarrier = Arc<dyn Fn(bool) + Send + Sync>;

/// Why an uplink could not be opened.
#[derive(Debug)]
pub enum UplinkError {
    /// The tap.
    Tap(TapError),
    /// The user-mode network.
    User(UserError),
}

impl fmt::Display for UplinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UplinkError::Tap(e) => e.fmt(f),
            UplinkError::User(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for UplinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            UplinkError::Tap(e) => e.source(),
            UplinkError::User(e) => e.source(),
        }
    }
}

/// Opens the uplink. Its queues get packets from then on; they wait in the uplink until a worker
/// takes them.
pub fn open(
    spec: &UplinkSpec,
    options: &OpenOptions,
    on_carrier: OnCarrier,
) -> Result<Box<dyn Uplink>, UplinkError> {
    match spec {
        UplinkSpec::Loopback => Ok(Box::new(Loopback::open(options.queue_pairs, &on_carrier))),
        UplinkSpec::Tap(name) => Tap::open(name, options.queue_pairs, on_carrier)
            .map(|tap| Box::new(tap) as Box<dyn Uplink>)
            .map_err(UplinkError::Tap),
        UplinkSpec::User => User::open(options, on_carrier)
            .map(|user| Box::new(user) as Box<dyn Uplink>)
            .map_err(UplinkError::User),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read_and_written_alike() {
        for text in ["loopback", "tap:fer0", "user"] {
            assert_eq!(text.parse::<UplinkSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_uplink_is_refused_with_what_is_one() {
        for text in [
            "",
            "tun:x",
            "Loopback",
            "loopback:1",
            "user:",
            "switch",
            "x\n",
        ] {
            let error = text.parse::<UplinkSpec>().unwrap_err();
            let text = error.to_string();
            assert!(
                text.ends_with("known are loopback, tap:NAME and user"),
                "{text}"
            );
        }
        for text in ["tap", "tap:", "tap:a/b"] {
            let error = text.parse::<UplinkSpec>().unwrap_err();
            assert!(matches!(error, BadUplinkSpec::TapName(_)), "{error}");
        }
    }
}
