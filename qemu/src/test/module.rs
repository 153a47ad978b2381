// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of our driver's source: what the compilers and a look at the text can tell.

use anyhow::{Context, Result, ensure};

use super::{Counts, quiet};
use crate::artefacts::kernel::{MODULE_AT, RUSTFMT_CONFIG_AT, Tree};
use crate::artefacts::module::{self, Sources};
use crate::sandbox::tool::ToolRoot;

/// The layer that has no unsafe code.
const SAFE_LAYER: &str = "driver";

type Test = fn(&Workbench) -> Result<()>;

const TESTS: [(&str, Test); 3] = [
    ("module::is_clippy_clean", is_clippy_clean),
    ("module::is_formatted", is_formatted),
    (
        "module::is_safe_above_the_wrappers",
        is_safe_above_the_wrappers,
    ),
];

/// A copy of the source, and what to treat it with.
struct Workbench<'a> {
    tools: &'a ToolRoot,
    tree: &'a Tree,
    sources: Sources,
    copy: tempfile::TempDir,
}

/// Runs those whose name contains the filter.
pub fn run(filter: Option<&str>, tools: &ToolRoot, tree: &Tree) -> Result<Counts> {
    let filter = filter.unwrap_or("");
    let mut counts = Counts::default();
    let selected = TESTS.iter().filter(|(name, _)| name.contains(filter));
    for (name, test) in selected {
        let sources = Sources::read(&module::source())?;
        let copy = tempfile::tempdir().context("cannot make a temporary directory")?;
        sources.write(copy.path())?;
        match test(&Workbench {
            tools,
            tree,
            sources,
            copy,
        }) {
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

fn is_clippy_clean(bench: &Workbench) -> Result<()> {
    let mut make = bench.tree.make_module(bench.tools, bench.copy.path());
    quiet(make.args(["CLIPPY=1", "modules"]))
}

fn is_formatted(bench: &Workbench) -> Result<()> {
    let binds = [(bench.copy.path(), MODULE_AT.as_ref())];
    let mut rustfmt = bench.tree.command(bench.tools, &binds, "rustfmt");
    rustfmt.args(["--check", "--edition", "2021"]);
    rustfmt.args(["--config-path", RUSTFMT_CONFIG_AT]);
    for (name, _) in bench.sources.rust() {
        rustfmt.arg(format!("{MODULE_AT}/{}", name.display()));
    }
    quiet(&mut rustfmt)
}

/// The compiler checks it where it is told to; this checks that it is told to.
fn is_safe_above_the_wrappers(bench: &Workbench) -> Result<()> {
    let mut denied = false;
    let mut blocks = 0;
    for (name, text) in bench.sources.rust() {
        let here = text
            .lines()
            .map(code)
            .filter(|c| words(c).any(|w| w == "unsafe"));
        let count = here.count();
        blocks += count;
        if name.starts_with(SAFE_LAYER) {
            ensure!(
                count == 0,
                "{} has {count} lines with unsafe code",
                name.display()
            );
            denied |=
                text.contains("#![deny(unsafe_code)]") || text.contains("#![forbid(unsafe_code)]");
        }
    }
    ensure!(denied, "{SAFE_LAYER}/ does not deny unsafe code");
    println!("the module has {blocks} lines with `unsafe`, none of them in {SAFE_LAYER}/");
    Ok(())
}

/// A line without its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_is_a_word_in_code() {
        let has = |line| words(code(line)).any(|w| w == "unsafe");
        assert!(has("    let x = unsafe { f() };") && has("unsafe impl Send for X {}"));
        assert!(!has("#![deny(unsafe_code)]") && !has("// unsafe { }") && !has("x(); // unsafe"));
    }
}
