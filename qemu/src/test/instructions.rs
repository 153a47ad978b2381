// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How many instructions a packet takes, so that a change which makes packets dearer shows without a
//! stopwatch.
//!
//! `device/benches/instructions.rs` moves packets, callgrind counts. What is counted is our own program:
//! the C library has other `memcpy`s for other processors, ours has one code for all. So the figures are
//! the same on every host, and with the same compiler the same in every run but for a few instructions
//! that depend on the time.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::artefacts::valgrind;
use crate::cache::Cache;
use crate::lab;
use crate::progress::{Step, say};
use crate::sandbox::tool::ToolRoot;

/// The figures that are known, from the repository's root.
const FIGURES: &str = "device/benches/instructions.txt";
/// The function of the bench that is counted, with all that it calls.
const COUNTED: &str = "--toggle-collect=*counted_turns*";
/// By how many percent a figure may differ from the known one,
const TOLERANCE: f64 = 3.0;
/// and where another compiler than that of the known figures is used.
const TOLERANCE_OTHER_COMPILER: f64 = 10.0;

/// What packets have cost with some compiler.
#[derive(Debug, PartialEq)]
struct Figures {
    rustc: String,
    loads: BTreeMap<String, f64>,
}

/// Counts, and compares with what is known.
pub fn cost_no_more(cache: &Cache) -> Result<()> {
    let path = lab::workspace().join(FIGURES);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let known = Figures::read(&text).with_context(|| FIGURES.to_owned())?;
    let valgrind = valgrind::valgrind(cache)?;
    let bench = build()?;
    let step = Step::start("counting instructions");
    let found = Figures {
        rustc: rustc()?,
        loads: count_all(&valgrind, &bench)?,
    };
    step.done();
    say(found.to_string());
    let (worse, better) = compare(&known, &found);
    if !better.is_empty() {
        say(format!(
            "{}fewer than before: lower the figures in {FIGURES}",
            better
        ));
    }
    ensure!(
        worse.is_empty(),
        "{worse}More than before. If that is not what the change is worth, find what costs more \
         (callgrind_annotate tells); if it is, write the new figures into {FIGURES}."
    );
    Ok(())
}

impl Figures {
    fn read(text: &str) -> Result<Self> {
        let mut rustc = None;
        let mut loads = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (None, ..) => {}
                (Some("rustc"), Some(version), None) => rustc = Some(version.to_owned()),
                (Some(load), Some(figure), None) => {
                    let figure = figure.parse().with_context(|| format!("in '{line}'"))?;
                    let before = loads.insert(load.to_owned(), figure);
                    ensure!(before.is_none(), "'{load}' is there twice");
                }
                _ => bail!("'{line}' is neither a load and its figure nor the compiler's version"),
            }
        }
        let rustc = rustc.context("the compiler's version is missing")?;
        Ok(Figures { rustc, loads })
    }
}

impl std::fmt::Display for Figures {
    /// As in the file.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:26}{:>8}", "rustc", self.rustc)?;
        for (load, figure) in &self.loads {
            write!(f, "\n{load:26}{figure:>8.1}")?;
        }
        Ok(())
    }
}

/// What is worse and what is better than was known, a line each.
fn compare(known: &Figures, found: &Figures) -> (String, String) {
    let tolerance = match known.rustc == found.rustc {
        true => TOLERANCE,
        false => TOLERANCE_OTHER_COMPILER,
    };
    let (mut worse, mut better) = (String::new(), String::new());
    for (load, now) in &found.loads {
        let Some(before) = known.loads.get(load) else {
            let _ = writeln!(worse, "{load}: {now:.1} instructions a packet, none known");
            continue;
        };
        let percent = (now / before - 1.0) * 100.0;
        let list = match percent {
            _ if percent > tolerance => &mut worse,
            _ if percent < -tolerance => &mut better,
            _ => continue,
        };
        let _ = writeln!(
            list,
            "{load}: {now:.1} instructions a packet, {before:.1} known: {percent:+.1} % where \
             {tolerance} % may be"
        );
    }
    for load in known.loads.keys() {
        if !found.loads.contains_key(load) {
            let _ = writeln!(worse, "{load}: known, but there is no such load");
        }
    }
    (worse, better)
}

/// Builds the bench, as `cargo bench` would; where it is.
fn build() -> Result<PathBuf> {
    /// What cargo says of what it has built.
    #[derive(Deserialize)]
    struct Artifact {
        target: Target,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let step = Step::start("building the bench that is counted");
    let mut command = Command::new(lab::cargo());
    command.args(["bench", "--no-run", "--message-format", "json"]);
    command.args(["--package", "ferronic", "--bench", "instructions"]);
    let stdout = run(command.current_dir(lab::workspace()))?;
    // The program `ferronic` is built, too, before it or after it.
    let found = stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
        .find(|artifact| artifact.target.name == "instructions")
        .and_then(|artifact| artifact.executable);
    step.done();
    found.context("cargo has not said where the bench is")
}

/// The compiler's version.
fn rustc() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = run(Command::new(rustc)
        .arg("--version")
        .current_dir(lab::workspace()))?;
    let version = text.split_whitespace().nth(1);
    Ok(version.context("rustc has no version")?.to_owned())
}

fn count_all(valgrind: &ToolRoot, bench: &Path) -> Result<BTreeMap<String, f64>> {
    let names = run(&mut Command::new(bench))?;
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let out = directory.path().join("callgrind.out");
    let mut loads = BTreeMap::new();
    for line in names.lines() {
        let (load, packets) = line.split_once(' ').context("a load without a number")?;
        let packets: u64 = packets.parse().with_context(|| line.to_owned())?;
        // Debian's `valgrind` is a script around this, and no shell is there.
        let mut command = valgrind.command("valgrind.bin");
        command.args(["-q", "--tool=callgrind", COUNTED]);
        command.arg(format!("--callgrind-out-file={}", out.display()));
        run(command.arg(bench).arg(load)).with_context(|| load.to_owned())?;
        let text = fs::read_to_string(&out).context("cannot read what callgrind has counted")?;
        let instructions = in_object(&text, bench)?;
        ensure!(instructions > 0, "{load}: callgrind has counted nothing");
        loads.insert(load.to_owned(), instructions as f64 / packets as f64);
    }
    Ok(loads)
}

/// Instructions in the program `object` itself, from a profile in callgrind's format.
fn in_object(profile: &str, object: &Path) -> Result<u64> {
    // A name is given with a number when it first comes, and after that the number stands for it.
    let own = format!(") {}", object.display());
    let mut own_number = None;
    let mut inside = false;
    let mut sum = 0;
    let mut lines = profile.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line
            .strip_prefix("ob=")
            .or_else(|| line.strip_prefix("cob="))
        {
            let number = name.split(')').next().unwrap_or(name);
            if name.ends_with(&own) {
                own_number = Some(number.to_owned());
            }
            if line.starts_with("ob=") {
                inside = own_number.as_deref() == Some(number);
            }
        } else if line.starts_with("calls=") {
            // The next line is what the function called has cost.
            lines.next();
        } else if inside && line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            // A line of source, perhaps relative to the one before, and instructions.
            if let Some(cost) = line.split_whitespace().nth(1) {
                let cost: u64 = cost.parse().with_context(|| format!("in '{line}'"))?;
                sum += cost;
            }
        }
    }
    Ok(sum)
}

/// Runs a program that must do well; what it prints.
fn run(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{status}\n{}", String::from_utf8_lossy(&stderr));
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(rustc: &str, loads: &[(&str, f64)]) -> Figures {
        Figures {
            rustc: rustc.into(),
            loads: loads.iter().map(|(load, x)| ((*load).into(), *x)).collect(),
        }
    }

    #[test]
    fn figures_are_read_as_they_are_written() {
        let two = figures("1.95.0", &[("a-64", 120.5), ("b-64", 7.0)]);
        assert_eq!(Figures::read(&format!("# what\n\n{two}\n")).unwrap(), two);
        for bad in [
            "a 1",
            "rustc 1.95.0\na",
            "rustc 1\na x",
            "rustc 1\na 1 2",
            "rustc 1\na 1\na 1",
        ] {
            assert!(Figures::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn more_is_worse_and_fewer_better_and_a_little_is_neither() {
        let known = figures("1.95.0", &[("a", 100.0), ("b", 100.0), ("c", 100.0)]);
        let found = |a, b, c, rustc| figures(rustc, &[("a", a), ("b", b), ("c", c)]);
        let (worse, better) = compare(&known, &found(102.9, 103.1, 96.9, "1.95.0"));
        assert!(worse.starts_with("b: 103.1") && worse.lines().count() == 1);
        assert!(better.starts_with("c: 96.9") && better.lines().count() == 1);
        let (worse, better) = compare(&known, &found(109.0, 111.0, 91.0, "1.96.0"));
        assert!(worse.starts_with("b: 111.0") && worse.lines().count() == 1);
        assert_eq!(better, "");
        let (worse, _) = compare(&known, &figures("1.95.0", &[("a", 1.0), ("d", 1.0)]));
        let lines: Vec<_> = worse.lines().map(|line| &line[..2]).collect();
        assert_eq!(lines, ["d:", "b:", "c:"]);
    }

    #[test]
    fn what_is_called_elsewhere_is_not_counted() {
        let profile = "positions: line\nevents: Ir\n\n\
                       ob=(1) /lib/libc.so.6\nfl=(1) ???\nfn=(1) memcpy\n0 1000\n\n\
                       ob=(2) /target/bench-1\nfl=(2) a.rs\nfn=(2) f\n16 5\n+3 7\n\
                       cob=(1)\ncfi=(1)\ncfn=(1)\ncalls=2 0\n* 800\n-2 1\n\n\
                       fn=(3) g\n20 10\n\nob=(1)\nfn=(4) free\n0 50\n\nob=(2)\nfn=(2)\n* 2\n";
        assert_eq!(
            in_object(profile, Path::new("/target/bench-1")).unwrap(),
            25
        );
        assert_eq!(
            in_object(profile, Path::new("/lib/libc.so.6")).unwrap(),
            1050
        );
        // The program may be called before it is the one that calls.
        let called = "ob=(1) /l\nfn=(1) a\n0 3\ncob=(2) /p\ncfn=(2) b\ncalls=1 0\n0 9\n\nob=(2)\nfn=(2)\n1 9\n";
        assert_eq!(in_object(called, Path::new("/p")).unwrap(), 9);
    }
}
