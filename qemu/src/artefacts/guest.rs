// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's root file system: a small Debian, the kernel's modules and our own init.
//!
//! Two artefacts: the Debian system as a tar file, which takes a while and seldom
//! changes, and the ext4 image with modules and init added, which takes seconds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::debian::System;
use super::kernel::Kernel;
use crate::cache::{Cache, Key, Leftover};
use crate::host::run_logged;
use crate::progress::Step;
use crate::sandbox::tool::ToolRoot;

const INIT: &str = include_str!("../../guest/init");
/// Where init is in the guest, for the kernel's command line.
pub const INIT_PATH: &str = "/ferronic/init";
/// Checks bytes that went over TCP and UDP.
pub const BYTES_CHECK: &str = include_str!("../../guest/bytes-check");
/// Sends and receives single frames.
pub const FRAMES: &str = include_str!("../../guest/frames");
/// Our own programs in the guest, all in `/ferronic`.
const PROGRAMS: [(&str, &str); 9] = [
    ("init", INIT),
    ("driver", include_str!("../../guest/driver")),
    ("fail-nth", include_str!("../../guest/fail-nth")),
    ("soak", include_str!("../../guest/soak")),
    ("netdev-genl", include_str!("../../guest/netdev-genl")),
    ("carrier-watch", include_str!("../../guest/carrier-watch")),
    ("bytes-check", BYTES_CHECK),
    ("frames", FRAMES),
    ("flow-hashes", include_str!("../../guest/flow-hashes")),
];

const SYSTEM: System = System {
    variant: "essential",
    backports: false,
    packages: &[
        "qemu-guest-agent",
        "mount",
        "procps",
        "kmod",
        "iproute2",
        "ethtool",
        "iperf3",
        "iputils-ping",
        "tcpdump",
        "udhcpc",
        "busybox",
        "python3",
    ],
};

/// Returns the image for this kernel, made if it is not there.
pub fn image(cache: &Cache, tools: &ToolRoot, kernel: &Kernel) -> Result<PathBuf> {
    let system = system(cache)?;
    let mut key = Key::new("guest")
        .with("1")
        .with_artefact(cache, &system)
        .with(describe(&kernel.modules)?);
    for (name, text) in PROGRAMS {
        key = key.with(name).with(text);
    }
    let dir = cache.artefact(key, Leftover::Discard, |part| {
        cache.need_space(2000, "the guest image")?;
        let step = Step::start("making the guest image");
        build(tools, &system, &kernel.modules, part)?;
        step.done();
        Ok(())
    })?;
    Ok(dir.join("root.ext4"))
}

fn system(cache: &Cache) -> Result<PathBuf> {
    let key = Key::new("debian").with("1").with(SYSTEM.inputs());
    let dir = cache.artefact(key, Leftover::Discard, |part| {
        cache.need_space(1000, "the guest's Debian system")?;
        let step = Step::start("fetching the guest's Debian system");
        SYSTEM.make(&part.join("root.tar"), &part.join("log"))?;
        step.done();
        Ok(())
    })?;
    Ok(dir.join("root.tar"))
}

/// Names, sizes and times of the modules: a user's own kernel may change between two runs.
fn describe(modules: &Path) -> Result<String> {
    let mut text = String::new();
    let mut todo = vec![modules.to_owned()];
    while let Some(dir) = todo.pop() {
        let mut entries: Vec<_> = fs::read_dir(&dir)
            .with_context(|| format!("cannot list the kernel modules in {}", dir.display()))?
            .collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            // `build` and `source` are symbolic links out of the tree: not followed.
            let kind = entry.file_type()?;
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() {
                let meta = entry.metadata()?;
                text += &format!(
                    "{} {} {:?}\n",
                    entry.path().display(),
                    meta.len(),
                    meta.modified()?
                );
            }
        }
    }
    Ok(text)
}

fn build(tools: &ToolRoot, system: &Path, modules: &Path, part: &Path) -> Result<()> {
    let log = part.join("log");
    let tar_file = part.join("root.tar");
    fs::copy(system, &tar_file).with_context(|| format!("cannot copy {}", system.display()))?;

    let programs = part.join("ferronic");
    fs::create_dir_all(&programs)?;
    for (name, text) in PROGRAMS {
        fs::write(programs.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    let add = |dir: &Path, name: &str, options: &[&str]| {
        let mut tar = Command::new("tar");
        tar.args(["--owner=0", "--group=0", "-rf"]).arg(&tar_file);
        tar.args(options).arg("-C").arg(dir).arg(name);
        run_logged(&mut tar, &log)
    };
    add(part, "./ferronic", &["--mode=755"])?;
    add(
        modules,
        ".",
        &[
            "--exclude=./*/build",
            "--exclude=./*/source",
            "--transform=s,^\\.,./usr/lib/modules,",
        ],
    )?;

    // No journal: every boot starts from this image and throws its changes away.
    let mut mke2fs = tools.command("mke2fs");
    mke2fs.args([
        "-q",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-m",
        "0",
        "-N",
        "60000",
        "-d",
    ]);
    mke2fs.arg(&tar_file).arg(part.join("root.ext4")).arg("1G");
    run_logged(&mut mke2fs, &log)?;
    fs::remove_file(&tar_file)?;
    fs::remove_dir_all(&programs)?;
    Ok(())
}
