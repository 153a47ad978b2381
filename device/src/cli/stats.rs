// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic stats`: what the NIC has counted.

use std::fmt::Write;

use clap::Args;
use serde_json::Value;

use super::{ControlArgs, Failure, port_argument, print, print_json};
use crate::control::replies::{QueueStats, Stats};

/// Options of `ferronic stats`.
#[derive(Debug, Args)]
#[command(
    after_help = "rx and tx are seen from the guest: rx0 is the first queue that the guest \
receives on, and web/rx0 that of the guest at port web.\ninterrupts are those sent; suppressed are those the driver had asked not to get; \
kicks are\nthe driver's notifications; ring-errors count rings found broken. Below come the reasons for\ndrops, and packets that the uplink gave to one queue and receive-side scaling to another."
)]
pub struct StatsArgs {
    #[command(flatten)]
    control: ControlArgs,

    /// Of a switch only this port [default: all].
    #[arg(long, value_name = "NAME")]
    port: Option<String>,

    /// Print JSON, with every counter.
    #[arg(long)]
    json: bool,
}

/// Runs `ferronic stats`.
pub fn run(args: &StatsArgs) -> Result<(), Failure> {
    let mut client = args.control.connect()?;
    let arguments = port_argument(args.port.as_deref());
    if args.json {
        let stats: Value = client.ask("query-stats", arguments)?;
        return print_json(&stats);
    }
    let stats: Stats = client.ask("query-stats", arguments)?;
    print(&table(&stats))
}

const HEADINGS: [&str; 8] = [
    "queue",
    "packets",
    "bytes",
    "drops",
    "interrupts",
    "suppressed",
    "kicks",
    "ring-errors",
];

fn row(name: String, queue: &QueueStats) -> [String; 8] {
    let drops = queue.drops.values().fold(0u64, |a, b| a.saturating_add(*b));
    [
        name,
        queue.packets.to_string(),
        queue.bytes.to_string(),
        drops.to_string(),
        queue.interrupts.to_string(),
        queue.interrupts_suppressed.to_string(),
        queue.kicks.to_string(),
        queue.ring_errors.to_string(),
    ]
}

/// The counters as aligned columns, and below them what most queues have nothing of.
fn table(stats: &Stats) -> String {
    let mut rows = vec![HEADINGS.map(String::from)];
    let mut reasons = String::new();
    let mut steered = String::new();
    let of_ports = stats.ports.iter().flat_map(|port| {
        let queues = port.queues.iter();
        queues.map(|pair| (format!("{}/", port.port), pair))
    });
    let own = stats.queues.iter().map(|pair| (String::new(), pair));
    for (port, pair) in own.chain(of_ports) {
        for (direction, queue) in [("rx", &pair.rx), ("tx", &pair.tx)] {
            let name = format!("{port}{direction}{}", pair.index);
            for (reason, count) in &queue.drops {
                let _ = writeln!(reasons, "  {name}  {reason}  {count}");
            }
            if queue.steered != 0 {
                let _ = writeln!(steered, "  {name}  {}", queue.steered);
            }
            rows.push(row(name, queue));
        }
    }
    let mut widths = [0usize; HEADINGS.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    for row in &rows {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let _ = match column {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    if !reasons.is_empty() {
        let _ = write!(text, "\ndrops by reason:\n{reasons}");
    }
    if !steered.is_empty() {
        let _ = write!(
            text,
            "\ngiven to other queues by receive-side scaling:\n{steered}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_drops_have_reasons() {
        let stats: Stats = serde_json::from_value(serde_json::json!({"queues": [{
            "index": 0,
            "rx": {"packets": 1234567, "bytes": 9, "drops": {}, "interrupts": 1,
                   "interrupts-suppressed": 2, "kicks": 3, "ring-errors": 0},
            "tx": {"packets": 5, "bytes": 6, "drops": {"link-down": 7, "filtered": 1},
                   "interrupts": 0, "interrupts-suppressed": 0, "kicks": 8, "ring-errors": 0},
        }]}))
        .unwrap();
        let text = table(&stats);
        assert_eq!(
            text,
            "\
queue  packets  bytes  drops  interrupts  suppressed  kicks  ring-errors
rx0    1234567      9      0           1           2      3            0
tx0          5      6      8           0           0      8            0

drops by reason:
  tx0  filtered  1
  tx0  link-down  7
"
        );
    }

    #[test]
    fn packets_of_other_queues_are_told_where_there_are_some() {
        let stats: Stats = serde_json::from_value(serde_json::json!({"queues": [
            {"index": 0, "rx": {"steered": 12}, "tx": {}},
        ]}))
        .unwrap();
        let text = table(&stats);
        let end = "\n\ngiven to other queues by receive-side scaling:\n  rx0  12\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn a_switch_has_queues_by_port() {
        let stats: Stats = serde_json::from_value(serde_json::json!({"ports": [
            {"port": "web", "queues": [{"index": 0, "rx": {"packets": 1}, "tx": {}}]},
            {"port": "uplink", "queues": [{"index": 0, "rx": {}, "tx": {"drops": {"link-down": 2}}}]},
        ]}))
        .unwrap();
        let text = table(&stats);
        let first: Vec<&str> = text
            .lines()
            .map(|line| line.split(' ').next().unwrap())
            .collect();
        assert_eq!(
            first[..5],
            ["queue", "web/rx0", "web/tx0", "uplink/rx0", "uplink/tx0"]
        );
        assert!(text.ends_with("  uplink/tx0  link-down  2\n"), "{text}");
    }
}
