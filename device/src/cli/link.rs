// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic link`: pull the cable, put it back, look.

use std::fmt::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{ControlArgs, Failure, port_argument, print, print_json};
use crate::control::client::Client;
use crate::control::replies::{LinkReply, LinkSetReply};
use crate::control::stop::Stop;

/// Options of `ferronic link`.
#[derive(Debug, Args)]
pub struct LinkArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Put the cable in.
    Up(Common),
    /// Pull the cable out.
    Down(Common),
    /// Say whether the cable is in.
    Show(Common),
    /// Pull the cable and put it back, again and again. Ends with the cable in, also when
    /// interrupted.
    Flap(Flap),
}

#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    control: ControlArgs,

    /// The port of a switch; `uplink` is its way out.
    #[arg(long, value_name = "NAME")]
    port: Option<String>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Flap {
    #[command(flatten)]
    common: Common,

    /// How often.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,

    /// How long the cable is out each time, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    down_ms: u32,

    /// How long it is in before it is pulled again, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    up_ms: u32,
}

/// Runs `ferronic link`.
pub fn run(args: &LinkArgs) -> Result<(), Failure> {
    match &args.action {
        Action::Up(common) => set(common, true),
        Action::Down(common) => set(common, false),
        Action::Show(common) => show(common),
        Action::Flap(flap) => run_flap(flap),
    }
}

fn name(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

fn set_link(client: &mut Client, common: &Common, up: bool) -> Result<LinkSetReply, Failure> {
    let mut arguments = port_argument(common.port.as_deref());
    arguments.insert("up".into(), up.into());
    let answer = client.execute("link-set", arguments.into())?;
    serde_json::from_value(answer)
        .map_err(|e| Failure::Operation(format!("cannot read the answer to link-set: {e}")))
}

fn set(common: &Common, up: bool) -> Result<(), Failure> {
    let reply = set_link(&mut common.control.connect()?, common, up)?;
    if common.json {
        return print_json(&json!({"up": up, "changed": reply.changed}));
    }
    let already = if reply.changed { "" } else { " already" };
    print(&format!("link {}{already}\n", name(up)))
}

fn show(common: &Common) -> Result<(), Failure> {
    let mut client = common.control.connect()?;
    let arguments = port_argument(common.port.as_deref());
    if common.json {
        let link: Value = client.ask("query-link", arguments)?;
        return print_json(&link);
    }
    let link: LinkReply = client.ask("query-link", arguments)?;
    print(&describe(&link))
}

/// The link, in lines for people.
pub fn describe(link: &LinkReply) -> String {
    let mut text = format!("link {}, {} Mbit/s", name(link.up), link.speed);
    // With a colon, so that a search for "link up" finds the link only.
    let _ = write!(text, ", uplink: {}", name(link.uplink_up));
    if link.follow {
        text.push_str(", follows the uplink");
    }
    text.push('\n');
    text
}

fn run_flap(flap: &Flap) -> Result<(), Failure> {
    let stop = Stop::new()
        .and_then(|stop| stop.on_signals().map(|()| stop))
        .map_err(|e| Failure::Operation(format!("cannot catch signals: {e}")))?;
    let mut client = flap.common.control.connect()?;
    let mut done = 0;
    let mut last = false;
    while done < flap.count && !last {
        set_link(&mut client, &flap.common, false)?;
        last = stop.wait(Duration::from_millis(flap.down_ms.into()));
        // Whatever happened: the cable goes back in.
        set_link(&mut client, &flap.common, true)?;
        done += 1;
        last = last || (done < flap.count && stop.wait(Duration::from_millis(flap.up_ms.into())));
    }
    if flap.common.json {
        print_json(&json!({"up": true, "flaps": done}))?;
    } else {
        let times = if done == 1 { "once" } else { "times" };
        let count = if done == 1 {
            String::new()
        } else {
            format!("{done} ")
        };
        print(&format!("link flapped {count}{times}, now up\n"))?;
    }
    if last {
        return Err(Failure::Operation(format!(
            "interrupted after {done} of {} flaps; the link is up",
            flap.count
        )));
    }
    Ok(())
}
