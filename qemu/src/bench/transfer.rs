// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Transfers by iperf3: what is sent, what came of it, and what of that goes into reports.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Context, Result};

use super::case::{Better, Case, rounded};
use super::cost::{Cost, HEADINGS, Meter};
use super::host::Weather;
use super::samples::Samples;
use crate::backend::Backend;
use crate::guest::Guest;
use crate::traffic::{Client, Direction, Transfer};

/// Payload of a small datagram: a frame of 106 octets, with room for iperf3's own header.
const DATAGRAM: u32 = 64;
/// Seconds at the start of each transfer that do not count towards its rate: TCP's slow start.
const WARM_UP: u32 = 1;

/// What goes over the cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Its name in reports.
    pub name: &'static str,
    direction: Direction,
    udp: bool,
    streams: u32,
}

/// One transfer.
#[derive(Debug)]
pub struct Measured {
    /// The set-up's name.
    setup: String,
    load: Load,
    /// Gb/s of TCP, thousands of datagrams a second of UDP, as the receiver got them.
    rate: f64,
    retransmits: f64,
    lost_percent: f64,
    cost: Cost,
}

/// A set-up of ours and those it is compared with, by their names.
#[derive(Debug)]
pub struct Group {
    /// Its name in reports.
    pub name: &'static str,
    /// Ours.
    pub ours: String,
    /// Theirs.
    pub peers: Vec<String>,
    /// In what.
    pub loads: &'static [Load],
}

impl Load {
    /// One stream of TCP.
    pub const fn tcp(name: &'static str, direction: Direction) -> Self {
        Load {
            name,
            direction,
            udp: false,
            streams: 1,
        }
    }

    /// Small datagrams, as fast as they can be sent.
    pub const fn udp(name: &'static str, direction: Direction) -> Self {
        let mut load = Self::tcp(name, direction);
        load.udp = true;
        load
    }

    /// So many at a time.
    pub const fn streams(mut self, streams: u32) -> Self {
        self.streams = streams;
        self
    }

    /// Measures it between this guest and a server.
    pub fn measure(
        self,
        setup: String,
        (guest, backend): (&Guest, Option<&Backend>),
        server: &str,
        seconds: u32,
    ) -> Result<Measured> {
        let client = Client::new(server, self.direction, seconds).with(&self.options());
        let meter = Meter::start(guest, backend)?;
        let transfer = client.run(guest).context(self.name)?;
        let cost = meter.stop()?;
        Ok(Measured {
            setup,
            load: self,
            rate: self.rate(&transfer),
            retransmits: transfer.retransmits as f64,
            lost_percent: transfer.lost_percent,
            cost,
        })
    }

    fn options(self) -> String {
        let mut options = format!("--omit {WARM_UP}");
        if self.udp {
            let _ = write!(options, " --udp --bandwidth 0 --length {DATAGRAM}");
        }
        if self.streams > 1 {
            let _ = write!(options, " --parallel {}", self.streams);
        }
        options
    }

    fn rate(self, transfer: &Transfer) -> f64 {
        if self.udp {
            transfer.gbps * 1e6 / f64::from(8 * DATAGRAM)
        } else {
            transfer.gbps
        }
    }

    fn unit(self) -> &'static str {
        if self.udp { "kdatagrams/s" } else { "Gb/s" }
    }

    fn own_headings(self) -> [&'static str; 2] {
        if self.udp {
            ["lost-%", "cpu-s"]
        } else {
            ["resent", "s/GB"]
        }
    }
}

/// A transfer that is not counted: under TCG the guest's code is translated when it first runs, and the
/// transfer that came first would pay for that.
pub fn warm_up(guest: &Guest, server: &str) -> Result<()> {
    let client = Client::new(server, Direction::GuestToHost, WARM_UP);
    client.run(guest).context("warm-up").map(|_| ())
}

/// Tells the report what the host did during transfers.
pub fn note(weather: &mut Weather, measured: &[Measured]) {
    measured.iter().for_each(|m| weather.note(m.cost.span));
}

/// A line while the bench runs.
pub fn summary(measured: &[Measured]) -> String {
    let rates: Vec<_> = measured
        .iter()
        .map(|m| format!("{} {} {}", m.load.name, rounded(m.rate), m.load.unit()))
        .collect();
    rates.join(", ")
}

fn samples(
    measured: &[Measured],
    setup: &str,
    load: Load,
    figure: impl Fn(&Measured) -> f64,
) -> Samples {
    measured
        .iter()
        .filter(|m| m.setup == setup && m.load == load)
        .map(figure)
        .collect()
}

/// All groups' cases: rates, and of TCP what it cost.
pub fn cases(groups: &[Group], measured: &[Measured]) -> Vec<Case> {
    let mut cases = Vec::new();
    for group in groups {
        let mut compare = |name: String, unit, better, load, figure: fn(&Measured) -> f64| {
            let of = |setup: &str| samples(measured, setup, load, figure);
            let peers = group.peers.iter().map(|peer| (peer.clone(), of(peer)));
            let peers = peers
                .filter(|(_, samples)| samples.median().is_some())
                .collect();
            cases.push(Case {
                name,
                unit,
                better,
                ours: of(&group.ours),
                peers,
            });
        };
        for &load in group.loads {
            let name = format!("{} {}", group.name, load.name);
            compare(name, load.unit(), Better::More, load, |m| m.rate);
        }
        for &load in group.loads.iter().filter(|load| !load.udp) {
            let name = format!("{} {} cpu", group.name, load.name);
            compare(name, "s/GB", Better::Less, load, |m| {
                m.cost.seconds_per_gigabyte()
            });
        }
    }
    cases
}

/// Why the figures are what they are: medians of what was counted during the transfers, a table for each
/// load.
pub fn details(measured: &[Measured]) -> String {
    let mut text = String::new();
    let mut loads: Vec<Load> = Vec::new();
    for load in measured.iter().map(|m| m.load) {
        if !loads.contains(&load) {
            loads.push(load);
        }
    }
    let width = measured.iter().map(|m| m.setup.len()).max().unwrap_or(0);
    for load in loads {
        let _ = write!(text, "{}\n  {:width$}", load.name, "");
        for heading in HEADINGS.into_iter().chain(load.own_headings()) {
            let _ = write!(text, " {heading:>12}");
        }
        text.push('\n');
        let setups: BTreeSet<&str> = measured
            .iter()
            .filter(|m| m.load == load)
            .map(|m| m.setup.as_str())
            .collect();
        for setup in setups {
            let median = |figure: &dyn Fn(&Measured) -> f64| {
                let median = samples(measured, setup, load, figure).median();
                median.map_or("-".to_owned(), rounded)
            };
            let _ = write!(text, "  {setup:width$}");
            for heading in HEADINGS {
                let column = |m: &Measured| {
                    let columns = m.cost.columns();
                    columns
                        .iter()
                        .find(|(name, _)| *name == heading)
                        .map_or(f64::NAN, |(_, v)| *v)
                };
                let _ = write!(text, " {:>12}", median(&column));
            }
            let own: [&dyn Fn(&Measured) -> f64; 2] = if load.udp {
                [&|m| m.lost_percent, &|m| m.cost.span.rig_seconds]
            } else {
                [&|m| m.retransmits, &|m| m.cost.seconds_per_gigabyte()]
            };
            for figure in own {
                let _ = write!(text, " {:>12}", median(figure));
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_counted_from_their_bits() {
        let transfer = Transfer {
            gbps: 0.0512,
            retransmits: 0,
            lost_percent: 0.0,
        };
        let udp = Load::udp("", Direction::GuestToHost);
        assert_eq!(udp.rate(&transfer).round(), 100.0);
        let tcp = Load::tcp("", Direction::GuestToHost);
        assert_eq!(tcp.rate(&transfer), 0.0512);
    }

    #[test]
    fn streams_are_asked_for_where_there_are_several() {
        let load = Load::udp("", Direction::HostToGuest);
        assert!(!load.options().contains("--parallel"));
        let options = load.streams(4).options();
        assert!(options.contains("--udp") && options.ends_with("--parallel 4"));
    }

    #[test]
    fn a_group_has_a_case_for_each_load_and_those_peers_that_were_measured() {
        const LOADS: &[Load] = &[
            Load::tcp("out", Direction::GuestToHost),
            Load::udp("in", Direction::HostToGuest),
        ];
        let of = |setup: &str, load, rate| Measured {
            setup: setup.into(),
            load,
            rate,
            retransmits: 0.0,
            lost_percent: 0.0,
            cost: Cost::default(),
        };
        let group = Group {
            name: "two",
            ours: "ours".into(),
            peers: vec!["theirs".into(), "absent".into()],
            loads: LOADS,
        };
        let measured = [
            of("ours", LOADS[0], 2.0),
            of("theirs", LOADS[0], 1.0),
            of("ours", LOADS[1], 50.0),
            of("stranger", LOADS[1], 50.0),
        ];
        let cases = cases(&[group], &measured);
        let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["two out", "two in", "two out cpu"]);
        let peers: Vec<&str> = cases[0]
            .peers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(peers, ["theirs"]);
        assert_eq!(cases[0].ratio_to(&cases[0].peers[0].1), Some(2.0));
        assert!(cases[1].peers.is_empty());
        let details = details(&measured);
        assert!(
            details.contains("stranger") && details.contains("lost-%"),
            "{details}"
        );
    }
}
