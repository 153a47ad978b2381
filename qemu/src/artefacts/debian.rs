// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Debian systems, made with mmdebstrap.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::host;

/// The Debian release that tools and guests come from.
pub const SUITE: &str = "trixie";
/// Files that neither tools nor guests are asked for.
const LEFT_OUT: [&str; 4] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
];

/// A system to make.
#[derive(Debug)]
pub struct System<'a> {
    /// mmdebstrap's variant: how much is in it besides `packages`.
    pub variant: &'a str,
    /// Whether packages are taken from the backports suite where it has them.
    pub backports: bool,
    /// The packages.
    pub packages: &'a [&'a str],
}

impl System<'_> {
    /// What it is made of, for cache keys.
    pub fn inputs(&self) -> String {
        format!(
            "{SUITE} {} {} {}",
            self.variant,
            self.backports,
            self.packages.join(",")
        )
    }

    /// Makes the system as a tar file.
    pub fn make(&self, tar: &Path, log: &Path) -> Result<()> {
        host::need_packages()?;
        let mirror = host::debian_mirror()?;
        let mut command = Command::new("mmdebstrap");
        // Without root this makes a user namespace; as root it only makes a mount namespace.
        command
            .args(["--mode=unshare", "--format=tar"])
            .arg(format!("--variant={}", self.variant));
        command.arg("--aptopt=APT::Install-Recommends \"false\"");
        if self.backports {
            command.arg(format!(
                "--aptopt=APT::Default-Release \"{SUITE}-backports\""
            ));
        }
        for pattern in LEFT_OUT {
            command.arg(format!("--dpkgopt=path-exclude={pattern}"));
        }
        command.arg(format!("--include={}", self.packages.join(",")));
        command.arg(SUITE).arg(tar);
        command.arg(format!("deb {mirror} {SUITE} main"));
        if self.backports {
            command.arg(format!("deb {mirror} {SUITE}-backports main"));
        }
        host::run_logged(&mut command, log).with_context(|| {
            format!("cannot fetch Debian packages from {mirror} (is the network up? set {} for another mirror)", host::MIRROR_ENV)
        })
    }

    /// Makes the system as a directory whose files all belong to the caller.
    pub fn make_directory(&self, dir: &Path, log: &Path) -> Result<()> {
        let tar = dir.with_extension("tar");
        self.make(&tar, log)?;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let mut extract = Command::new("tar");
        extract
            .args(["--no-same-owner", "--exclude=./dev/*", "-xf"])
            .arg(&tar)
            .arg("-C")
            .arg(dir);
        host::run_logged(&mut extract, log)?;
        fs::remove_file(&tar).with_context(|| format!("cannot remove {}", tar.display()))
    }
}

/// The versions of packages in a system, as far as it has them, for cache keys.
pub fn versions(root: &Path, packages: &[&str]) -> Result<String> {
    let status = root.join("var/lib/dpkg/status");
    let text =
        fs::read_to_string(&status).with_context(|| format!("cannot read {}", status.display()))?;
    Ok(versions_in(&text, packages))
}

fn versions_in(status: &str, packages: &[&str]) -> String {
    let mut found: Vec<String> = status
        .split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name));
            let package = field("Package: ")?;
            let wanted = packages.contains(&package);
            wanted.then(|| format!("{package}={}", field("Version: ").unwrap_or_default()))
        })
        .collect();
    found.sort();
    found.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_the_packages_asked_for() {
        let status = "Package: gcc\nStatus: install ok installed\nVersion: 4:14.2\n\n\
                      Package: gcc-14\nVersion: 14.2-19\n\n\
                      Package: bc\nDescription: x\n Version: none\nVersion: 1.07\n";
        assert_eq!(
            versions_in(status, &["gcc", "bc", "absent"]),
            "bc=1.07 gcc=4:14.2"
        );
    }
}
