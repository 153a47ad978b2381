// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Our driver, `ferronic.ko`, built against one of the lab's kernels.
//!
//! The source is that of the checkout which the lab is run from, read when the lab runs: changing
//! the driver does not mean building the lab anew. It is copied and built aside, so nothing is left
//! in the checkout. A build takes seconds, and starts from nothing: nearly all of the module is one
//! crate, of which the compiler would keep nothing.
//!
//! The guest gets it as a tar file that the machine puts behind the root file system, on the same
//! disk: the kernel finds several disks in any order, and has to name the one with its root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use crate::cache::{Cache, Key, Leftover};
use crate::host::{run_logged, tail};
use crate::lab::workspace;
use crate::progress::Step;
use crate::sandbox::tool::ToolRoot;

/// The module's file.
const MODULE: &str = "ferronic.ko";
const ARCHIVE: &str = "module.tar";

/// Where the module's source is.
pub fn source() -> PathBuf {
    workspace().join("guest-driver/kernel")
}

/// Returns a tar file with the module in it, made if it is not there. Its size is in whole MiB.
pub fn archive(cache: &Cache, tools: &ToolRoot, kernel: &Kernel) -> Result<PathBuf> {
    let Some(tree) = &kernel.tree else {
        bail!(
            "the driver ferronic is built for the lab's own kernel: leave --kernel away, or take --driver c"
        );
    };
    let sources = Sources::read(&source())?;
    let mut key = Key::new("module")
        .with("2")
        .with_artefact(cache, &kernel.image);
    for (name, text) in &sources.0 {
        key = key.with(name.as_os_str().as_encoded_bytes()).with(text);
    }
    let dir = cache.artefact(key, Leftover::Discard, |part| {
        let step = Step::start("building ferronic.ko");
        let copy = part.join("source");
        sources.write(&copy)?;
        let output = tree
            .make_module(tools, &copy)
            .arg("modules")
            .stdin(Stdio::null())
            .output()
            .context("cannot run make")?;
        if !output.status.success() {
            bail!(
                "{} does not compile:\n{}{}",
                source().display(),
                tail(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        fs::copy(copy.join(MODULE), part.join(MODULE))
            .with_context(|| format!("the build made no {MODULE}"))?;
        let mut tar = Command::new("tar");
        // Records of 2048 blocks are 1 MiB.
        tar.args(["--owner=0", "--group=0", "--blocking-factor=2048"]);
        tar.arg("-cf").arg(part.join(ARCHIVE));
        tar.arg("-C").arg(part).arg(MODULE);
        run_logged(&mut tar, &part.join("log"))?;
        fs::remove_dir_all(&copy)?;
        step.done();
        Ok(())
    })?;
    Ok(dir.join(ARCHIVE))
}

/// The files that the module is built from, with their paths in its directory, in order.
#[derive(Debug)]
pub struct Sources(Vec<(PathBuf, Vec<u8>)>);

impl Sources {
    /// Reads a directory of sources. What a build has left there is none.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(sub) = todo.pop() {
            let path = dir.join(&sub);
            for entry in
                fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?
            {
                let entry = entry?;
                let name = sub.join(entry.file_name());
                if is_product(&entry.file_name().to_string_lossy()) {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    todo.push(name);
                } else {
                    let text = fs::read(entry.path())
                        .with_context(|| format!("cannot read {}", entry.path().display()))?;
                    files.push((name, text));
                }
            }
        }
        files.sort();
        Ok(Sources(files))
    }

    /// Writes them to another directory.
    pub fn write(&self, dir: &Path) -> Result<()> {
        for (name, text) in &self.0 {
            let path = dir.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)
                    .with_context(|| format!("cannot create {}", parent.display()))?;
            }
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// The Rust files, with their text.
    pub fn rust(&self) -> impl Iterator<Item = (&Path, String)> {
        self.0
            .iter()
            .filter(|(name, _)| name.extension().is_some_and(|e| e == "rs"))
            .map(|(name, text)| (name.as_path(), String::from_utf8_lossy(text).into_owned()))
    }
}

/// Whether kbuild makes files of such names. One that is missed costs a needless build.
fn is_product(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    name.starts_with('.')
        || name.ends_with(".mod.c")
        || name.ends_with("_generated.rs")
        || ["Module.symvers", "modules.order", "rust-project.json"].contains(&name)
        || ["o", "ko", "mod", "a", "d", "cmd", "rmeta", "so"].contains(&extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_from_products_and_copied_whole() {
        let from = tempfile::tempdir().unwrap();
        for (name, is_source) in [
            ("Kbuild", true),
            ("core.rs", true),
            ("net/shim.c", true),
            ("net/.shim.o.cmd", false),
            ("net/shim.o", false),
            ("ferronic.ko", false),
            ("ferronic.mod.c", false),
            ("bindings/bindings_generated.rs", false),
            (".tmp_versions/x", false),
        ] {
            let path = from.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, if is_source { "source" } else { "product" }).unwrap();
        }
        let sources = Sources::read(from.path()).unwrap();
        let to = tempfile::tempdir().unwrap();
        sources.write(to.path()).unwrap();
        let copied = Sources::read(to.path()).unwrap();
        let names: Vec<_> = copied
            .0
            .iter()
            .map(|(name, _)| name.to_str().unwrap())
            .collect();
        assert_eq!(names, ["Kbuild", "core.rs", "net/shim.c"]);
        assert!(copied.0.iter().all(|(_, text)| text == b"source"));
        assert_eq!(sources.rust().count(), 1);
    }
}
