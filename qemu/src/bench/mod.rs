// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo lab bench`: our NIC beside others, in the same guest on the same kernel.

mod iperf;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::lab::Lab;

/// Options of `cargo lab bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which benchmark: all of them if none is named (iperf)
    pub name: Option<String>,
    /// How often everything is measured; the medians are reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,
    /// Write the cases to this file too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// One measurement of ours and of all peers.
#[derive(Debug, Clone, Serialize)]
struct Case {
    case: String,
    unit: &'static str,
    ours: f64,
    peers: BTreeMap<String, f64>,
    /// Above 1 means that ours is better than the best peer, whatever the unit.
    ratio_to_best: f64,
}

impl Case {
    /// A case whose unit is the better the larger it is.
    fn larger_is_better(
        case: String,
        unit: &'static str,
        ours: f64,
        peers: BTreeMap<String, f64>,
    ) -> Self {
        let best = peers.values().copied().fold(f64::NAN, f64::max);
        Case {
            case,
            unit,
            ours,
            peers,
            ratio_to_best: ours / best,
        }
    }
}

type Bench = fn(&Lab, &Args) -> Result<Vec<Case>>;
const BENCHES: &[(&str, Bench)] = &[("iperf", iperf::run)];

/// Runs benchmarks.
pub fn run(lab: &Lab, args: &Args) -> Result<()> {
    let wanted = |name: &str| args.name.as_deref().is_none_or(|n| n == name);
    let chosen: Vec<_> = BENCHES.iter().filter(|(name, _)| wanted(name)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = BENCHES.iter().map(|(name, _)| *name).collect();
        bail!(
            "there is no benchmark {}; there is {}",
            args.name.as_deref().unwrap_or(""),
            names.join(", ")
        );
    }
    let mut cases = Vec::new();
    for (name, bench) in chosen {
        cases.extend(bench(lab, args).with_context(|| format!("benchmark {name}"))?);
    }
    println!(
        "\nMedians of {} rounds, guests on {}",
        args.rounds,
        lab.accel.name()
    );
    cases.iter().for_each(print);
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&cases)?;
        fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn print(case: &Case) {
    println!("\n{} ({})", case.case, case.unit);
    println!("  {:<24}{:8.2}", "ours", case.ours);
    for (peer, value) in &case.peers {
        println!(
            "  {peer:<24}{value:8.2}   ours is {:.2} times that",
            case.ours / value
        );
    }
    println!("  ratio to the best       {:8.2}", case.ratio_to_best);
}

/// The middle value.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
