// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo lab bench`: our NIC beside others, in the same guest, in the same run.
//!
//! A bench measures *set-ups* ([`setups`]), ours and its peers', and says what it found as a list
//! of [`Case`]s: one figure of ours, the same figure of each peer, and the ratio to the best.
//!
//! # Limitations
//! The figures compare set-ups on this host at this hour and are good for nothing else. What other
//! processes took of the processors meanwhile is measured and said ([`host`]).

mod case;
mod cost;
mod driver;
mod host;
mod iperf;
mod passt;
mod samples;
mod setups;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::lab::{Lab, Needs, When};
use case::Case;
use host::Weather;

/// Options of `cargo lab bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure; everything if nothing is named
    #[arg(value_enum)]
    pub name: Option<Name>,
    /// Write the medians to this file too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// How often every set-up is measured
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// How long each transfer is measured
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
}

/// The benches there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// iperf3 between guest and host, TCP and small UDP datagrams, both ways
    Iperf,
    /// The guest's drivers, ours and Linux's own: throughput, small packets, delay, interrupts, and
    /// instructions a packet
    Driver,
}

impl Name {
    const ALL: &[Name] = &[Name::Iperf, Name::Driver];
}

/// What has to be made for a bench.
pub fn needs(args: &Args) -> Needs {
    Needs {
        debug_kernel: When::Never,
        module: args.name != Some(Name::Iperf),
    }
}

/// What a bench found.
#[derive(Debug)]
struct Findings {
    cases: Vec<Case>,
    /// What explains the figures, for people.
    details: String,
}

/// Runs one bench or all.
pub fn run(lab: &Lab, args: &Args) -> Result<()> {
    let names = args.name.as_ref().map_or(Name::ALL, std::slice::from_ref);
    let mut weather = Weather::observe()?;
    let mut cases = Vec::new();
    let mut details = String::new();
    for name in names {
        let found = match name {
            Name::Iperf => iperf::run(lab, args, &mut weather)?,
            Name::Driver => driver::run(lab, args, &mut weather)?,
        };
        cases.extend(found.cases);
        details += &found.details;
    }
    print!(
        "\nguest on {}, 2 CPUs; rounds: {}, {} s a transfer: median (min..max), and how many times better ours is\n\n{}\n{details}\n{}",
        lab.accel.name(),
        args.rounds,
        args.seconds,
        case::table(&cases),
        weather.report(),
    );
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&cases)?;
        fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
