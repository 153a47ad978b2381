// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The repository's own tests, by `cargo test`, whether benches and documentation can be made, and what a
//! packet costs.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{Counts, instructions, quiet};
use crate::cache::Cache;
use crate::lab;
use crate::sandbox::tool::ToolRoot;

type Test = fn(&Cache) -> Result<()>;

/// The tests here that are none of cargo's.
const TESTS: [(&str, Test); 3] = [
    ("host::benches_compile", benches_compile),
    ("host::documentation_is_whole", documentation_is_whole),
    (
        "host::packets_cost_no_more_instructions",
        instructions::cost_no_more,
    ),
];

/// Runs those that the filter selects.
pub fn run(filter: Option<&str>, tools: &ToolRoot, cache: &Cache) -> Result<Counts> {
    let mut counts = cargo_test(filter, tools)?;
    let filter = filter.unwrap_or("");
    for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(filter)) {
        match test(cache) {
            Ok(()) => {
                println!("test {name} ... ok");
                counts.passed += 1;
            }
            Err(e) => {
                println!("test {name} ... FAILED\n{e:#}");
                counts.failed += 1;
            }
        }
    }
    Ok(counts)
}

/// Cargo's tests leave out those that are run by nothing but `cargo bench`.
fn benches_compile(_: &Cache) -> Result<()> {
    let mut command = Command::new(lab::cargo());
    command.args(["check", "--workspace", "--benches", "--quiet"]);
    quiet(command.current_dir(lab::workspace()))
}

/// Links that lead nowhere, or to what readers do not see, show only when it is made.
fn documentation_is_whole(_: &Cache) -> Result<()> {
    let mut command = Command::new(lab::cargo());
    command.args(["doc", "--no-deps", "--workspace", "--quiet"]);
    command.current_dir(lab::workspace());
    quiet(command.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Runs the tests, shows what cargo says, and adds up its summary lines.
fn cargo_test(filter: Option<&str>, tools: &ToolRoot) -> Result<Counts> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let passt = directory.path().join("passt");
    tools.write_wrapper(&passt, &[], "passt")?;
    let mut command = Command::new(lab::cargo());
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(filter);
    command
        .current_dir(lab::workspace())
        // The tests of the user uplink skip what needs passt where they find none.
        .env("FERRONIC_PASST", &passt)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot run cargo test")?;
    let mut counts = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("cannot read what cargo test prints")?;
            println!("{line}");
            counts.add(summary(&line).unwrap_or_default());
        }
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    if !status.success() && counts.failed == 0 {
        // Something did not build, or a test ended the whole process.
        counts.failed = 1;
    }
    Ok(counts)
}

/// Reads `test result: ok. 3 passed; 0 failed; ...`.
fn summary(line: &str) -> Option<Counts> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for part in rest.split("; ") {
        match part.split_once(' ') {
            Some((n, "passed")) => counts.passed = n.parse().ok()?,
            Some((n, "failed")) => counts.failed = n.parse().ok()?,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_lines_are_read_and_others_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let counts = summary(line).unwrap();
        assert_eq!((counts.passed, counts.failed), (12, 3));
        assert!(summary("test ring::wraps ... ok").is_none());
        assert!(summary("running 3 tests").is_none());
    }
}
