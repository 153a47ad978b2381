// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Valgrind, whose callgrind counts instructions for one test: a root of its own, with nothing in it but
//! this and the C library. Beside the tools it would have everybody fetch those again.

use std::fs;

use anyhow::{Context, Result};

use super::debian::System;
use crate::cache::{Cache, Key, Leftover};
use crate::progress::Step;
use crate::sandbox::tool::ToolRoot;

/// Packages are unpacked and not set up, which neither of them needs.
const SYSTEM: System<'_> = System {
    variant: "extract",
    backports: false,
    packages: &["base-files", "valgrind"],
};

/// Makes it if it is not there.
pub fn valgrind(cache: &Cache) -> Result<ToolRoot> {
    let key = Key::new("valgrind").with("1").with(SYSTEM.inputs());
    let dir = cache.artefact(key, Leftover::Discard, |part| {
        cache.need_space(300, "Valgrind")?;
        let step = Step::start("fetching Valgrind from Debian (about 10 s)");
        let root = part.join("root");
        SYSTEM.make_directory(&root, &part.join("log"))?;
        // Setting up would have made it. Whoever enters the root mounts something there.
        let mnt = root.join("mnt");
        fs::create_dir_all(&mnt).with_context(|| format!("cannot create {}", mnt.display()))?;
        step.done();
        Ok(())
    })?;
    Ok(ToolRoot::new(dir.join("root")))
}
