// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic status`: what the NIC is, its link, and who is plugged in; of a switch, its ports.

use std::fmt::Write;

use clap::Args;
use serde_json::{Value, json};

use super::{ControlArgs, Failure, link, port, print, print_json};
use crate::control::client::Client;
use crate::control::replies::{Frontend, LinkReply, PortsReply, StatusReply};

/// Options of `ferronic status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    control: ControlArgs,

    /// Print JSON: the objects `status`, `link` and `frontend`; of a switch `status` and `ports`.
    #[arg(long)]
    json: bool,
}

/// Runs `ferronic status`.
pub fn run(args: &StatusArgs) -> Result<(), Failure> {
    let mut client = args.control.connect()?;
    let status: Value = client.query("query-status")?;
    if status.get("ports").is_some() {
        return of_switch(args, &mut client, status);
    }
    if args.json {
        let link: Value = client.query("query-link")?;
        let frontend: Value = client.query("query-frontend")?;
        return print_json(&json!({"status": status, "link": link, "frontend": frontend}));
    }
    let status: StatusReply = read(status)?;
    let link: LinkReply = client.query("query-link")?;
    let frontend: Frontend = client.query("query-frontend")?;
    print(&describe(&status, &link, &frontend))
}

fn read(status: Value) -> Result<StatusReply, Failure> {
    serde_json::from_value(status)
        .map_err(|e| Failure::Operation(format!("cannot read the answer to query-status: {e}")))
}

fn of_switch(args: &StatusArgs, client: &mut Client, status: Value) -> Result<(), Failure> {
    if args.json {
        let ports: Value = client.query("query-ports")?;
        return print_json(&json!({"status": status, "ports": ports.get("ports")}));
    }
    let status = read(status)?;
    let ports: PortsReply = client.query("query-ports")?;
    let mut text = process(&status);
    let _ = writeln!(
        text,
        "{}, mtu {}, queue pairs {} a port",
        status.uplink, status.mtu, status.queue_pairs
    );
    text.push_str(&port::table(&ports.ports));
    print(&text)
}

fn process(status: &StatusReply) -> String {
    format!(
        "ferronic {}, process {}, running for {} s\n",
        status.version, status.pid, status.uptime_seconds
    )
}

fn describe(status: &StatusReply, link: &LinkReply, frontend: &Frontend) -> String {
    let mut text = process(status);
    let _ = writeln!(
        text,
        "mac {}, mtu {}, queue pairs {}, uplink {}",
        status.mac.as_deref().unwrap_or("none"),
        status.mtu,
        status.queue_pairs,
        status.uplink
    );
    text.push_str(&link::describe(link));
    if !frontend.connected {
        text.push_str("no frontend connected\n");
        return text;
    }
    let _ = write!(
        text,
        "frontend connected as {}",
        frontend.attachment.as_deref().unwrap_or("(not known yet)")
    );
    if let Some(pid) = frontend.pid {
        let _ = write!(text, ", process {pid}");
    }
    let _ = writeln!(
        text,
        ", features {:#x}, active rings {}",
        frontend.features, frontend.rings_active
    );
    text
}
