// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The tool root: the programs of the host's side.

use anyhow::Result;

use super::debian::System;
use crate::cache::{Cache, Key, Leftover};
use crate::progress::Step;
use crate::sandbox::tool::ToolRoot;

/// The kernel's source package; its name holds the version.
pub const KERNEL_SOURCE_PACKAGE: &str = "linux-source-7.3";

/// Machines, peers and measurements; mke2fs reads tar files through libarchive.
const MACHINES: &[&str] = &[
    "qemu-system-x86",
    "seabios",
    "ipxe-qemu",
    "passt",
    "iperf3",
    "iproute2",
    "ethtool",
    "python3",
    "e2fsprogs",
    "libarchive13t64",
];

/// The guest kernel's source, and what builds it and modules for it, in C and Rust.
pub const COMPILERS: &[&str] = &[
    KERNEL_SOURCE_PACKAGE,
    "gcc",
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "xz-utils",
    "kmod",
    "rustc",
    "rust-src",
    "bindgen",
    "libclang-dev",
];

/// Clang builds the debug kernel: gcc's KASAN and Rust do not go together.
pub const CLANG: &[&str] = &["clang"];

/// What looks at our module's source.
const LINTERS: &[&str] = &["rustfmt", "rust-clippy"];

/// Returns the tool root, made if it is not there.
pub fn tools(cache: &Cache) -> Result<ToolRoot> {
    let packages = [MACHINES, COMPILERS, CLANG, LINTERS].concat();
    let system = System {
        variant: "minbase",
        backports: true,
        packages: &packages,
    };
    let key = Key::new("tools").with("1").with(system.inputs());
    let dir = cache.artefact(key, Leftover::Discard, |part| {
        cache.need_space(5000, "the tool root")?;
        let step =
            Step::start("fetching QEMU and the kernel's compilers from Debian (about 1 min)");
        system.make_directory(&part.join("root"), &part.join("log"))?;
        step.done();
        Ok(())
    })?;
    Ok(ToolRoot::new(dir.join("root")))
}
