// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic status`: what the NIC is, its link, and who is plugged in.

use std::fmt::Write;

use clap::Args;
use serde_json::{Value, json};

use super::{ControlArgs, Failure, link, print, print_json};
use crate::control::replies::{Frontend, LinkReply, StatusReply};

/// Options of `ferronic status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    control: ControlArgs,

    /// Print JSON: the objects `status`, `link` and `frontend`.
    #[arg(long)]
    json: bool,
}

/// Runs `ferronic status`.
pub fn run(args: &StatusArgs) -> Result<(), Failure> {
    let mut client = args.control.connect()?;
    if args.json {
        let status: Value = client.query("query-status")?;
        let link: Value = client.query("query-link")?;
        let frontend: Value = client.query("query-frontend")?;
        return print_json(&json!({"status": status, "link": link, "frontend": frontend}));
    }
    let status: StatusReply = client.query("query-status")?;
    let link: LinkReply = client.query("query-link")?;
    let frontend: Frontend = client.query("query-frontend")?;
    print(&describe(&status, &link, &frontend))
}

fn describe(status: &StatusReply, link: &LinkReply, frontend: &Frontend) -> String {
    let mut text = format!(
        "ferronic {}, process {}, running for {} s\n",
        status.version, status.pid, status.uptime_seconds
    );
    let _ = writeln!(
        text,
        "mac {}, mtu {}, queue pairs {}, uplink {}",
        status.mac, status.mtu, status.queue_pairs, status.uplink
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
