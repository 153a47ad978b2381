// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What moving the data took: packets and their size, interrupts, notifications, processor time.
//!
//! Packets and interrupts are counted in the guest, where they are the same thing for every
//! set-up. Notifications (kicks) only our own NIC counts.

use anyhow::{Context, Result};
use serde_json::Value;

use super::host::{Moment, Span};
use crate::backend::Backend;
use crate::cable::INTERFACE;
use crate::guest::Guest;

/// One direction of the NIC, as the guest sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Side {
    packets: f64,
    bytes: f64,
    interrupts: f64,
    kicks: Option<f64>,
}

/// All that is counted, up to a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Counts {
    rx: Side,
    tx: Side,
    /// Interrupts that cannot be told apart: one vector for all queues, or INTx.
    shared: f64,
    /// Packets that our NIC gave up.
    drops: f64,
}

/// A measurement under way.
#[derive(Debug)]
pub struct Meter<'a> {
    guest: &'a Guest,
    backend: Option<&'a Backend>,
    counts: Counts,
    moment: Moment,
}

/// What it came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    counts: Counts,
    /// What the host's processors did meanwhile.
    pub span: Span,
}

impl<'a> Meter<'a> {
    /// Starts counting, in the guest and in our NIC, if it is ours alone.
    pub fn start(guest: &'a Guest, backend: Option<&'a Backend>) -> Result<Self> {
        // The processors last, so that reading the counters costs nobody anything.
        Ok(Meter {
            guest,
            backend,
            counts: Counts::read(guest, backend)?,
            moment: Moment::now()?,
        })
    }

    /// Ends counting.
    pub fn stop(self) -> Result<Cost> {
        let span = self.moment.until_now()?;
        Ok(Cost {
            counts: Counts::read(self.guest, self.backend)?.since(self.counts),
            span,
        })
    }
}

impl Cost {
    /// Seconds of processor time that QEMU and what is behind its NIC took for 10^9 octets.
    pub fn seconds_per_gigabyte(&self) -> f64 {
        self.span.rig_seconds / ((self.counts.rx.bytes + self.counts.tx.bytes) / 1e9)
    }

    /// Interrupts for each packet, both ways together.
    pub fn interrupts_per_packet(&self) -> f64 {
        let c = &self.counts;
        let interrupts = c.rx.interrupts + c.tx.interrupts + c.shared;
        interrupts / (c.rx.packets + c.tx.packets)
    }

    /// Notifications for each packet, both ways together, if they are counted.
    pub fn kicks_per_packet(&self) -> Option<f64> {
        let c = &self.counts;
        Some((c.rx.kicks? + c.tx.kicks?) / (c.rx.packets + c.tx.packets))
    }

    /// Its columns in [`HEADINGS`].
    pub fn columns(&self) -> Vec<(&'static str, f64)> {
        let c = &self.counts;
        let per_thousand = |n: f64, side: Side| n * 1e3 / side.packets;
        let mut columns = vec![
            ("rx-kpackets", c.rx.packets / 1e3),
            ("rx-octets", c.rx.bytes / c.rx.packets),
            ("rx-irq/1000", per_thousand(c.rx.interrupts, c.rx)),
            ("tx-kpackets", c.tx.packets / 1e3),
            ("tx-octets", c.tx.bytes / c.tx.packets),
            ("tx-irq/1000", per_thousand(c.tx.interrupts, c.tx)),
            ("irq", c.rx.interrupts + c.tx.interrupts + c.shared),
        ];
        if let (Some(rx), Some(tx)) = (c.rx.kicks, c.tx.kicks) {
            columns.push(("rx-kick/1000", per_thousand(rx, c.rx)));
            columns.push(("tx-kick/1000", per_thousand(tx, c.tx)));
            columns.push(("drops", c.drops));
        }
        columns
    }
}

/// The columns that there can be.
pub const HEADINGS: [&str; 10] = [
    "rx-kpackets",
    "rx-octets",
    "rx-irq/1000",
    "tx-kpackets",
    "tx-octets",
    "tx-irq/1000",
    "irq",
    "rx-kick/1000",
    "tx-kick/1000",
    "drops",
];

impl Counts {
    fn read(guest: &Guest, backend: Option<&Backend>) -> Result<Self> {
        let mut counts = Counts::of_guest(guest)?;
        if let Some(backend) = backend {
            counts.add_nic(backend)?;
        }
        Ok(counts)
    }

    fn of_guest(guest: &Guest) -> Result<Self> {
        let text = guest.sh(&format!(
            "cd /sys/class/net/{INTERFACE}/statistics && \
             cat rx_packets rx_bytes tx_packets tx_bytes /proc/interrupts"
        ))?;
        Counts::parse(&text).with_context(|| format!("the guest's counters make no sense:\n{text}"))
    }

    /// Reads four numbers, a line each, and then `/proc/interrupts`.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut number = || lines.next()?.trim().parse::<f64>().ok();
        let (rx, rx_bytes, tx, tx_bytes) = (number()?, number()?, number()?, number()?);
        let mut counts = Counts::default();
        (counts.rx.packets, counts.rx.bytes) = (rx, rx_bytes);
        (counts.tx.packets, counts.tx.bytes) = (tx, tx_bytes);
        for line in lines {
            // The NIC is the guest's only virtio device.
            let Some(name) = line
                .split_whitespace()
                .last()
                .filter(|n| n.starts_with("virtio") || n.starts_with("ferronic"))
            else {
                continue;
            };
            let per_cpu = line
                .split_whitespace()
                .skip(1)
                .map_while(|w| w.parse::<f64>().ok());
            let total: f64 = per_cpu.sum();
            match name.rsplit_once('-') {
                Some((_, queue)) if queue.starts_with("input") => counts.rx.interrupts += total,
                Some((_, queue)) if queue.starts_with("output") => counts.tx.interrupts += total,
                // The configuration's own vector.
                Some((_, "config")) => {}
                _ => counts.shared += total,
            }
        }
        Some(counts)
    }

    fn add_nic(&mut self, backend: &Backend) -> Result<()> {
        let stats = backend.query(&["stats"])?;
        let queues = stats.get("queues").and_then(Value::as_array);
        let queues = queues.context("`ferronic stats --json` tells of no queues")?;
        let number = |q: &Value, at: &str| q.pointer(at).and_then(Value::as_f64).unwrap_or(0.0);
        let sum = |at: &str| queues.iter().map(|q| number(q, at)).sum::<f64>();
        self.rx.kicks = Some(sum("/rx/kicks"));
        self.tx.kicks = Some(sum("/tx/kicks"));
        let reasons = |q: &Value, at: &str| -> f64 {
            let drops = q.pointer(at).and_then(Value::as_object);
            drops
                .into_iter()
                .flat_map(|d| d.values())
                .filter_map(Value::as_f64)
                .sum()
        };
        self.drops = queues
            .iter()
            .map(|q| reasons(q, "/rx/drops") + reasons(q, "/tx/drops"))
            .sum();
        Ok(())
    }

    fn since(self, before: Counts) -> Counts {
        let side = |now: Side, before: Side| Side {
            packets: now.packets - before.packets,
            bytes: now.bytes - before.bytes,
            interrupts: now.interrupts - before.interrupts,
            kicks: now
                .kicks
                .zip(before.kicks)
                .map(|(now, before)| now - before),
        };
        Counts {
            rx: side(self.rx, before.rx),
            tx: side(self.tx, before.tx),
            shared: self.shared - before.shared,
            drops: self.drops - before.drops,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: &str = "10\n1000\n20\n2000\n\
           CPU0       CPU1\n\
  1:          9          9   IO-APIC   1-edge      i8042\n\
 24:          0          3   PCI-MSIX-0000:00:03.0   0-edge      virtio0-config\n\
 25:         40          2   PCI-MSIX-0000:00:03.0   1-edge      virtio0-input.0\n\
 26:          5          0   PCI-MSIX-0000:00:03.0   2-edge      virtio0-output.0\n\
NMI:          0          0   Non-maskable interrupts\n";

    #[test]
    fn the_guests_counters() {
        let counts = Counts::parse(GUEST).unwrap();
        assert_eq!(
            (counts.rx.packets, counts.rx.bytes, counts.rx.interrupts),
            (10.0, 1000.0, 42.0)
        );
        assert_eq!(
            (counts.tx.packets, counts.tx.bytes, counts.tx.interrupts),
            (20.0, 2000.0, 5.0)
        );
        assert_eq!(counts.shared, 0.0);
        assert!(Counts::parse("10\nx\n").is_none());
    }

    #[test]
    fn one_interrupt_for_all_queues_is_shared() {
        let text = "0\n0\n0\n0\n 16:  5  6  IO-APIC  16-fasteoi  virtio0\n";
        assert_eq!(Counts::parse(text).unwrap().shared, 11.0);
    }

    #[test]
    fn differences() {
        let before = Counts::parse(GUEST).unwrap();
        let mut now = before;
        now.rx.packets += 1000.0;
        now.rx.bytes += 64000.0;
        now.rx.interrupts += 50.0;
        let span = Span {
            rig_seconds: 2.0,
            others: 0.0,
            stolen: 0.0,
        };
        let cost = Cost {
            counts: now.since(before),
            span,
        };
        assert_eq!(cost.seconds_per_gigabyte().round(), 31250.0);
        let columns = cost.columns();
        assert!(columns.contains(&("rx-octets", 64.0)) && columns.contains(&("rx-irq/1000", 50.0)));
        assert!(columns.iter().all(|(name, _)| HEADINGS.contains(name)));
    }
}
