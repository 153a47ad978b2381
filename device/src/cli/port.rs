// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic port`: the ports of a switch.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{ControlArgs, Failure, print, print_json};
use crate::control::ports::absolute;
use crate::control::replies::{AddressesReply, PortReply, PortsReply};
use crate::nic::MacAddress;
use crate::switch::vlan::{VlanId, VlanSet};

/// Options of `ferronic port`.
#[derive(Debug, Args)]
#[command(after_help = "\
The backend must be a switch: ferronic serve --uplink switch --control PATH.

A port is a member of one VLAN, whose frames have no tag there (--vlan), or of several, whose frames
have one (--trunk), but for the native one. Without any of these it is a member of all, and what has
no tag is of VLAN 1.")]
pub struct PortArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Add a port: a socket for a frontend, and a NIC.
    Add(Box<Add>),
    /// Remove a port. Its guest loses its NIC's cable; the others do not notice.
    Remove(Remove),
    /// Show the ports, or the addresses that are known to be behind them.
    Show(Show),
}

#[derive(Debug, Args)]
struct Add {
    #[command(flatten)]
    control: ControlArgs,

    /// Listen here for the frontend (QEMU's -chardev socket,path=...).
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,

    /// The port's name [default: p and the smallest number that is free].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// The NIC's own address [default: a random one].
    #[arg(long, value_name = "MAC")]
    mac: Option<MacAddress>,

    /// The port's only VLAN, 1 to 4094.
    #[arg(long, value_name = "N", conflicts_with_all = ["trunk", "native"])]
    vlan: Option<VlanId>,

    /// The VLANs whose frames have tags at this port: all, or as in 10,20-29.
    #[arg(long, value_name = "LIST")]
    trunk: Option<VlanSet>,

    /// The VLAN whose frames have none.
    #[arg(long, value_name = "N")]
    native: Option<VlanId>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Remove {
    /// The port's name.
    name: String,

    #[command(flatten)]
    control: ControlArgs,
}

#[derive(Debug, Args)]
struct Show {
    #[command(flatten)]
    control: ControlArgs,

    /// Show the addresses that the switch has learned.
    #[arg(long)]
    addresses: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `ferronic port`.
pub fn run(args: &PortArgs) -> Result<(), Failure> {
    match &args.action {
        Action::Add(add) => run_add(add),
        Action::Remove(remove) => {
            let mut client = remove.control.connect()?;
            client.execute("port-remove", json!({"name": remove.name}))?;
            Ok(())
        }
        Action::Show(show) => run_show(show),
    }
}

fn run_add(add: &Add) -> Result<(), Failure> {
    let socket = absolute(&add.socket_path).map_err(|e| Failure::Usage(e.to_string()))?;
    let Some(socket) = socket.to_str() else {
        return Err(Failure::Usage(format!(
            "--socket-path: {} is not UTF-8, which the control socket needs",
            socket.display()
        )));
    };
    let mut arguments = Map::new();
    arguments.insert("socket-path".into(), socket.into());
    for (key, value) in [
        ("name", add.name.as_ref().map(|name| json!(name))),
        ("mac", add.mac.map(|mac| json!(mac))),
        ("vlan", add.vlan.map(|vlan| json!(vlan.get()))),
        (
            "trunk",
            add.trunk.as_ref().map(|set| json!(set.to_string())),
        ),
        ("native", add.native.map(|vlan| json!(vlan.get()))),
    ] {
        if let Some(value) = value {
            arguments.insert(key.into(), value);
        }
    }
    let answer: Value = add.control.connect()?.ask("port-add", arguments)?;
    if add.json {
        return print_json(&answer);
    }
    let name = answer.get("name").and_then(Value::as_str);
    print(&format!("port {} added\n", name.unwrap_or("?")))
}

fn run_show(show: &Show) -> Result<(), Failure> {
    let mut client = show.control.connect()?;
    let command = match show.addresses {
        true => "query-addresses",
        false => "query-ports",
    };
    if show.json {
        let answer: Value = client.query(command)?;
        return print_json(&answer);
    }
    if show.addresses {
        let answer: AddressesReply = client.query(command)?;
        return print(&addresses(&answer));
    }
    let answer: PortsReply = client.query(command)?;
    print(&table(&answer.ports))
}

fn addresses(answer: &AddressesReply) -> String {
    let rows = answer.addresses.iter().map(|a| {
        let age = format!("{} s", a.age);
        [a.port.clone(), a.vlan.to_string(), a.mac.clone(), age]
    });
    columns(["port", "vlan", "address", "seen"], rows)
}

/// The ports as aligned columns.
pub fn table(ports: &[PortReply]) -> String {
    let rows = ports.iter().map(|port| {
        let state = match (port.up, port.connected) {
            (false, _) => "link down",
            (true, false) => "not connected",
            (true, true) => "up",
        };
        [
            port.name.clone(),
            state.into(),
            port.vlans.clone(),
            port.addresses.to_string(),
            port.received.to_string(),
            port.sent.to_string(),
            port.drops.to_string(),
            port.socket.clone().unwrap_or_default(),
        ]
    });
    let headings = [
        "port",
        "state",
        "vlans",
        "addresses",
        "received",
        "sent",
        "drops",
        "socket",
    ];
    columns(headings, rows)
}

fn columns<const N: usize>(headings: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = std::iter::once(headings.map(String::from))
        .chain(rows)
        .collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:<width$}  "))
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let port = PortReply {
            name: "web".into(),
            socket: Some("/run/web.sock".into()),
            mac: None,
            vlans: "trunk all, native 1".into(),
            up: true,
            connected: false,
            addresses: 2,
            received: 3,
            sent: 4,
            drops: 0,
        };
        assert_eq!(
            table(&[port]),
            "\
port  state          vlans                addresses  received  sent  drops  socket
web   not connected  trunk all, native 1  2          3         4     0      /run/web.sock
"
        );
    }
}
