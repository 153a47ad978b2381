// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the lab needs of the host: two packages and the name of a Debian mirror.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;

use crate::progress::{Step, say};

/// Names the Debian mirror where apt's own configuration cannot.
pub const MIRROR_ENV: &str = "FERRONIC_DEBIAN_MIRROR";

/// Programs, and the Debian packages they come in. Root needs no id mapping helpers.
const PROGRAMS: [(&str, &str, bool); 3] = [
    ("mmdebstrap", "mmdebstrap", true),
    ("tar", "tar", true),
    ("newuidmap", "uidmap", false),
];

/// Finds a program by name in PATH and the system's directories.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
}

/// Makes sure that the programs which build Debian systems are there.
pub fn need_packages() -> Result<()> {
    let root = geteuid().is_root();
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _, always)| (*always || !root) && find_program(program).is_none())
        .map(|(_, package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    if find_program("apt-get").is_none() {
        bail!(
            "this host lacks {packages}, and it has no apt-get to install them with: install them by hand"
        );
    }
    if !root {
        bail!(
            "this host lacks {packages}. Please run:\n\n    sudo apt-get install {packages}\n\nand call the lab again"
        );
    }
    let step = Step::start(format!("installing {packages}"));
    let mut output = apt_get("install", &missing)?;
    if !output.status.success() {
        // The package lists may be old or not there at all.
        let update = apt_get("update", &[])?;
        if !update.status.success() {
            bail!("apt-get update failed: {}", tail(&update.stderr));
        }
        output = apt_get("install", &missing)?;
    }
    if !output.status.success() {
        bail!(
            "apt-get install {packages} failed: {}",
            tail(&output.stderr)
        );
    }
    step.done();
    Ok(())
}

fn apt_get(verb: &str, packages: &[&str]) -> Result<std::process::Output> {
    Command::new("apt-get")
        .args(["-q", "-y", "--no-install-recommends", verb])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("cannot run apt-get")
}

/// The Debian mirror to take packages from: the one that the host's own apt uses.
pub fn debian_mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var(MIRROR_ENV)
        && !mirror.is_empty()
    {
        return Ok(mirror);
    }
    let targets = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(SITE) $(CODENAME)",
            "Created-By: Packages",
        ])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot ask apt for a Debian mirror: set {MIRROR_ENV} to one"))?;
    let text = String::from_utf8_lossy(&targets.stdout);
    // A Debian archive's address ends in /debian; security and third-party ones end otherwise.
    let mirror = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(|uri| uri.trim_end_matches('/'))
        .find(|uri| uri.ends_with("/debian"));
    match mirror {
        Some(mirror) => Ok(mirror.to_owned()),
        None => bail!(
            "this host's apt names no Debian mirror (is it Debian?): set {MIRROR_ENV} to the address of one, \
             http://.../debian"
        ),
    }
}

/// The last lines of what a program said.
pub fn tail(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(15)..)
        .unwrap_or(&lines)
        .join("\n")
}

/// Runs a long command with its output in a log file; a failure shows the end of the log.
pub fn run_logged(command: &mut Command, log: &std::path::Path) -> Result<()> {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let program = command.get_program().to_owned();
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        let said = std::fs::read(log).unwrap_or_default();
        say(format!("the end of {}:\n{}", log.display(), tail(&said)));
        bail!(
            "{} ended with {status}; all it said is in {}",
            program.display(),
            log.display()
        );
    }
    Ok(())
}
