// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo lab test`: the repository's tests on the host, then scenarios in guests.

pub mod bed;
mod host;
mod instructions;
mod module;
mod runner;
pub mod setup;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::artefacts::kernel::Flavour;
use crate::cli::Options;
use crate::driver::Driver;
use crate::lab::{Lab, Needs, Parts, When};
use crate::machine::nic::Attach;
use crate::scenarios::{self, Case, Runs};
use crate::test::runner::Runner;
use crate::test::setup::Port;

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
pub fn list(options: &Options) {
    for case in scenarios::cases(&combinations(options)) {
        println!("{}", case.name());
    }
}

/// The drivers that are tested, and the kernels that each is tested on.
fn combinations(options: &Options) -> Vec<(Driver, Flavour)> {
    let drivers = match (&options.driver, &options.kernel) {
        (Some(driver), _) => std::slice::from_ref(driver),
        (None, None) => Driver::ALL,
        // A stranger's kernel has only its own.
        (None, Some(_)) => &[Driver::C],
    };
    let mut all = Vec::new();
    for driver in drivers {
        if !options.debug_kernel {
            all.push((*driver, Flavour::Base));
        }
        // The stock driver is for comparison: nobody doubts what the kernel's checks say of it.
        if options.debug_kernel || (*driver == Driver::Ferronic && options.kernel.is_none()) {
            all.push((*driver, Flavour::Debug));
        }
    }
    all
}

/// The scenarios that these options select.
fn selected(args: &Args, options: &Options) -> Vec<Case> {
    let filter = args.filter.as_deref().unwrap_or("");
    scenarios::cases(&combinations(options))
        .into_iter()
        .filter(|case| case.name().contains(filter))
        .filter(|case| args.full || case.scenario.runs == Runs::Always)
        .filter(|case| is_worth_it(case, args, options))
        .collect()
}

/// Whether a case is worth its time, where nobody has asked for it by the driver's or the kernel's name.
fn is_worth_it(case: &Case, args: &Args, options: &Options) -> bool {
    // With a stranger's driver, a stranger's device and what is about the driver only show that the
    // scenarios are right.
    let strange = case.setup.port == Port::Qemu || case.scenario.about_driver;
    if case.setup.driver == Driver::C && strange && options.driver.is_none() {
        return false;
    }
    if case.setup.kernel == Flavour::Base || args.full || options.debug_kernel {
        return true;
    }
    // The debug kernel is slow, and takes a quarter of an hour to build. Its checks find on the usual
    // beds most of what there is to find, and on one of them, with what is about drivers, most of that.
    let whole = args.filter.is_none() || case.scenario.kernels == [Flavour::Debug];
    let device = case.setup.port == Port::Ours(Attach::Device);
    case.setup.is_usual()
        && (options.driver.is_some() || (whole && device && case.scenario.about_driver))
}

/// What has to be made for them.
pub fn needs(args: &Args, options: &Options) -> Needs {
    let cases = selected(args, options);
    let debug = |case: &Case| case.setup.kernel == Flavour::Debug;
    Needs {
        debug_kernel: match cases.iter().position(debug) {
            None => When::Never,
            Some(0) => When::Now,
            Some(_) => When::Later,
        },
        module: cases
            .iter()
            .any(|case| case.setup.driver == Driver::Ferronic),
    }
}

/// The outer process's first part: the tests on the host.
pub fn on_host(args: &Args, options: &Options, parts: &Parts) -> Result<Counts> {
    if args.guest_only {
        return Ok(Counts::default());
    }
    let filter = args.filter.as_deref();
    let mut counts = host::run(filter, parts.tools(), parts.cache())?;
    let ours = combinations(options)
        .iter()
        .any(|(driver, _)| *driver == Driver::Ferronic);
    if let Some(tree) = &parts.base().kernel.tree
        && ours
    {
        counts.add(module::run(filter, parts.tools(), tree)?);
    }
    Ok(counts)
}

/// Runs a checker that says nothing of what it likes.
fn quiet(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("cannot run a checker")?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let warned = said
        .lines()
        .any(|l| l.starts_with("warning") || l.contains(": warning"));
    if !output.status.success() || warned {
        bail!("{said}");
    }
    Ok(())
}

/// The inner process's part: the scenarios in guests.
pub fn in_guests(lab: &Lab, args: &Args, options: &Options) -> Result<bool> {
    let form = if args.full { Form::Full } else { Form::Short };
    let counts = Runner::new(lab, form).run(&selected(args, options));
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    /// The names of the cases that a command line selects, and when they need the debug kernel.
    fn select(line: &str) -> (Vec<String>, When) {
        let cli = Cli::parse_from(["lab", "test"].into_iter().chain(line.split_whitespace()));
        let Command::Test(args) = &cli.command else {
            panic!("not a test");
        };
        let cases = selected(args, &cli.options);
        let names = cases.iter().map(Case::name).collect();
        (names, needs(args, &cli.options).debug_kernel)
    }

    #[test]
    fn the_debug_kernel_is_needed_after_all_else() {
        let (names, when) = select("");
        let first = names.iter().position(|name| name.contains("-debug::"));
        assert!(first.is_some_and(|first| first > names.len() / 2));
        let other = |name: &String| !name.starts_with("device-tap-ferronic-debug::");
        assert!(!names.iter().skip(first.unwrap_or(0)).any(other));
        assert_eq!(when, When::Later);
    }

    #[test]
    fn a_filter_does_not_wait_for_the_debug_kernel_unless_it_must() {
        let (names, when) = select("ping");
        assert!(!names.is_empty() && !names.iter().any(|name| name.contains("-debug::")));
        assert_eq!(when, When::Never);
        assert_eq!(
            select("kunit"),
            (
                vec!["device-tap-ferronic-debug::kunit".to_owned()],
                When::Now
            )
        );
        assert_eq!(select("--driver ferronic ping").1, When::Later);
        assert_eq!(select("--driver c").1, When::Never);
    }
}
