// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo lab test`: the repository's tests on the host, then scenarios in guests.

pub mod bed;
mod host;
mod runner;

use std::fs;
use std::path::Path;
use std::process::ExitStatus;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::lab::Lab;
use crate::sandbox::tool::ToolRoot;
use crate::scenarios;
use crate::test::runner::Runner;

/// The file in the directory of logs that tells the outer process how the scenarios went.
const COUNTS: &str = "counts.json";

/// Options of `cargo lab test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only tests whose name contains this
    pub filter: Option<String>,
    /// The long form: more rounds, longer measurements, rare configurations
    #[arg(long)]
    pub full: bool,
    /// Only the tests that need a guest
    #[arg(long)]
    pub guest_only: bool,
    /// List the tests that need a guest, and run nothing
    #[arg(long)]
    pub list: bool,
}

/// How much of each scenario is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As much as shows that it works.
    Short,
    /// As much as shows that it goes on working.
    Full,
}

impl Form {
    /// One of two values.
    pub fn pick<T>(self, short: T, full: T) -> T {
        match self {
            Form::Short => short,
            Form::Full => full,
        }
    }
}

/// How many tests passed and failed.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Prints the names of the guest scenarios.
pub fn list() {
    for case in scenarios::cases() {
        println!("{}", case.name());
    }
}

/// The outer process's first part: the tests on the host.
pub fn on_host(args: &Args, tools: &ToolRoot) -> Result<Counts> {
    if args.guest_only {
        Ok(Counts::default())
    } else {
        host::run(args.filter.as_deref(), tools)
    }
}

/// The inner process's part: the scenarios in guests.
pub fn in_guests(lab: &Lab, args: &Args) -> Result<bool> {
    let form = if args.full { Form::Full } else { Form::Short };
    let counts = Runner::new(lab, form).run(args.filter.as_deref().unwrap_or(""));
    let path = lab.run.logs.join(COUNTS);
    fs::write(&path, serde_json::to_string(&counts)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(counts.failed == 0)
}

/// The outer process's second part: the sum of it all, as the very last line.
pub fn conclude(mut counts: Counts, logs: &Path, inner: ExitStatus) -> bool {
    let guests = fs::read(logs.join(COUNTS))
        .ok()
        .and_then(|text| serde_json::from_slice::<Counts>(&text).ok());
    match guests {
        Some(guests) => counts.add(guests),
        // It ended before it could say; that is one failure at least.
        None => counts.failed += 1,
    }
    if !inner.success() && counts.failed == 0 {
        counts.failed = 1;
    }
    if counts.passed + counts.failed == 0 {
        println!("no test has such a name; `cargo lab test --list` lists those in guests");
    }
    if counts.failed > 0 {
        println!("logs are in {}", logs.display());
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    counts.failed == 0 && counts.passed > 0
}
