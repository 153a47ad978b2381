// SPDX-License-Identifier: Apache-2.0 OR MIT
//! DPDK, whose vhost library `cargo lab bench` measures ours beside: a tool root of its own, which nothing
//! else fetches.

use anyhow::Result;

use super::debian::System;
use crate::cache::{Cache, Key, Leftover};
use crate::progress::Step;
use crate::sandbox::tool::ToolRoot;

/// testpmd, the vhost back-end as a port, and where packets' memory comes from.
const SYSTEM: System<'_> = System {
    variant: "minbase",
    backports: false,
    packages: &["dpdk-dev", "librte-net-vhost25", "librte-mempool-ring25"],
};

fn key() -> Key {
    Key::new("dpdk").with("1").with(SYSTEM.inputs())
}

/// Makes it if it is not there.
pub fn dpdk(cache: &Cache) -> Result<ToolRoot> {
    let dir = cache.artefact(key(), Leftover::Discard, |part| {
        cache.need_space(1000, "DPDK")?;
        let step = Step::start("fetching DPDK from Debian (about 30 s)");
        SYSTEM.make_directory(&part.join("root"), &part.join("log"))?;
        step.done();
        Ok(())
    })?;
    Ok(ToolRoot::new(dir.join("root")))
}

/// It, if it has been made.
pub fn find(cache: &Cache) -> Option<ToolRoot> {
    let dir = cache.find(&key())?;
    Some(ToolRoot::new(dir.join("root")))
}
