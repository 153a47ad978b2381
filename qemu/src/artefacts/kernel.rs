// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest kernel: Debian's source, `allnoconfig` and the fragments in `qemu/kernel/`.
//!
//! Source and build tree are always shown to the compilers at the same two paths,
//! whatever the cache directory is called. So a build tree can be moved, and modules
//! can be built against it later under the same paths.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian::versions;
use super::tools::{CLANG, COMPILERS, KERNEL_SOURCE_PACKAGE};
use crate::cache::{Cache, Key, Leftover};
use crate::host::run_logged;
use crate::progress::Step;
use crate::sandbox::tool::ToolRoot;

/// Where the compilers see the source.
const SOURCE_AT: &str = "/build/source";
/// Where the compilers see the build tree.
const BUILD_AT: &str = "/build/kernel";
/// Where the compilers see a module's source.
pub const MODULE_AT: &str = "/build/module";
/// The kernel's own settings of rustfmt, as the compilers see them.
pub const RUSTFMT_CONFIG_AT: &str = "/build/source/.rustfmt.toml";

/// A piece of kernel configuration.
#[derive(Debug, Clone, Copy)]
struct Fragment {
    /// Its file name in `qemu/kernel/`.
    name: &'static str,
    text: &'static str,
}

const BASE: Fragment = Fragment {
    name: "base.config",
    text: include_str!("../../kernel/base.config"),
};
const DEBUG: Fragment = Fragment {
    name: "debug.config",
    text: include_str!("../../kernel/debug.config"),
};

/// The kernels that the lab makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// That of the demo, the tests and the benchmarks.
    Base,
    /// The same with the kernel's own checks: slow, and sharp.
    Debug,
}

impl Flavour {
    fn fragments(self) -> &'static [Fragment] {
        match self {
            Flavour::Base => &[BASE],
            Flavour::Debug => &[BASE, DEBUG],
        }
    }

    /// How many times as long as elsewhere things may take on it, the more so on a busy host.
    pub fn patience(self) -> u32 {
        match self {
            Flavour::Base => 1,
            Flavour::Debug => 4,
        }
    }

    /// The packages whose versions tell one build from another.
    fn compilers(self) -> Vec<&'static str> {
        match self {
            Flavour::Base => COMPILERS.to_vec(),
            Flavour::Debug => [COMPILERS, CLANG].concat(),
        }
    }

    fn c_compiler(self) -> &'static str {
        match self {
            Flavour::Base => "gcc",
            Flavour::Debug => "clang",
        }
    }
}

/// A kernel to boot.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// The directory that becomes the guest's `/lib/modules`.
    pub modules: PathBuf,
    /// What modules can be built against, if it is a kernel of the lab's own.
    pub tree: Option<Tree>,
}

/// Source and build tree of a kernel.
#[derive(Debug, Clone)]
pub struct Tree {
    source: PathBuf,
    build: PathBuf,
    c_compiler: &'static str,
}

impl Tree {
    /// A command of the tool root that sees source and build tree where the kernel was built, and
    /// more directories where the caller wants them.
    pub fn command(&self, tools: &ToolRoot, binds: &[(&Path, &Path)], program: &str) -> Command {
        let mut all = vec![
            (self.source.as_path(), Path::new(SOURCE_AT)),
            (self.build.as_path(), Path::new(BUILD_AT)),
        ];
        all.extend(binds);
        tools.command_with(&all, program)
    }

    /// `make` in there, for this kernel's machine and with its compiler.
    fn make(&self, tools: &ToolRoot, binds: &[(&Path, &Path)]) -> Command {
        let mut command = self.command(tools, binds, "make");
        command.args(["ARCH=x86_64", &format!("CC={}", self.c_compiler)]);
        let jobs = std::thread::available_parallelism().map_or(2, usize::from);
        command.arg(format!("-j{jobs}"));
        command
    }

    /// `make` for the module whose source is in a directory, which it sees at [`MODULE_AT`].
    pub fn make_module(&self, tools: &ToolRoot, module: &Path) -> Command {
        let mut command = self.make(tools, &[(module, Path::new(MODULE_AT))]);
        command.args(["-C", BUILD_AT, "--silent", &format!("M={MODULE_AT}")]);
        command
    }
}

impl Kernel {
    /// A kernel that the user built: a bzImage, and the directory given to `INSTALL_MOD_PATH`.
    pub fn of_user(image: &Path, modules: &Path) -> Result<Self> {
        let lib_modules = modules.join("lib/modules");
        let modules = if lib_modules.is_dir() {
            lib_modules
        } else {
            modules.to_owned()
        };
        if !image.is_file() {
            bail!("there is no kernel image {}", image.display());
        }
        if !modules.is_dir() {
            bail!(
                "there is no directory of kernel modules {}",
                modules.display()
            );
        }
        Ok(Kernel {
            image: image.canonicalize()?,
            modules: modules.canonicalize()?,
            tree: None,
        })
    }
}

/// Returns a kernel, built if it is not there.
pub fn kernel(cache: &Cache, tools: &ToolRoot, flavour: Flavour) -> Result<Kernel> {
    let source = source(cache, tools)?;
    let fragments = flavour.fragments();
    // By version, not by tool root: Rust modules have to be built with the compiler of the kernel,
    // and other packages may come and go.
    let mut key = Key::new("kernel")
        .with("1")
        .with(versions(tools.path(), &flavour.compilers())?);
    for fragment in fragments {
        key = key.with(fragment.text);
    }
    let dir = cache.artefact(key, Leftover::Resume, |part| {
        cache.need_space(2000, "the guest kernel")?;
        let names: Vec<_> = fragments.iter().map(|f| f.name).collect();
        let step = Step::start(format!(
            "building the guest kernel ({}; 5 to 15 min on two cores)",
            names.join(" + ")
        ));
        build(tools, tree(&source, part, flavour), part, fragments)?;
        step.done();
        Ok(())
    })?;
    Ok(Kernel {
        image: dir.join("bzImage"),
        modules: dir.join("build/install/lib/modules"),
        tree: Some(tree(&source, &dir, flavour)),
    })
}

fn tree(source: &Path, artefact: &Path, flavour: Flavour) -> Tree {
    Tree {
        source: source.to_owned(),
        build: artefact.join("build"),
        c_compiler: flavour.c_compiler(),
    }
}

/// The unpacked kernel source.
fn source(cache: &Cache, tools: &ToolRoot) -> Result<PathBuf> {
    let archive = format!("usr/src/{KERNEL_SOURCE_PACKAGE}.tar.xz");
    let key = Key::new("source")
        .with("1")
        .with(versions(tools.path(), &[KERNEL_SOURCE_PACKAGE])?);
    let dir = cache.artefact(key, Leftover::Discard, |part| {
        cache.need_space(2500, "the kernel's source")?;
        let step = Step::start("unpacking the kernel's source");
        let mut tar = tools.command("tar");
        tar.arg("-xf")
            .arg(tools.path().join(&archive))
            .arg("-C")
            .arg(part);
        run_logged(&mut tar, &part.join("log"))?;
        step.done();
        Ok(())
    })?;
    Ok(dir.join(KERNEL_SOURCE_PACKAGE))
}

fn build(tools: &ToolRoot, tree: Tree, part: &Path, fragments: &[Fragment]) -> Result<()> {
    let dir = &tree.build;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let text: String = fragments.iter().map(|f| f.text).collect();
    fs::write(dir.join("fragments.config"), &text)
        .context("cannot write the kernel's configuration")?;
    let log = part.join("log");
    let make = |arguments: &[&str]| {
        let mut command = tree.make(tools, &[]);
        command.args(["-C", SOURCE_AT, &format!("O={BUILD_AT}")]);
        // The same kernel whoever builds it, so that a measurement can be repeated elsewhere.
        command.args(["KBUILD_BUILD_USER=lab", "KBUILD_BUILD_HOST=ferronic"]);
        command.args(arguments);
        run_logged(&mut command, &log).context("cannot build the guest kernel")
    };
    make(&[
        &format!("KCONFIG_ALLCONFIG={BUILD_AT}/fragments.config"),
        "allnoconfig",
    ])?;
    check_config(&text, &dir.join(".config"))?;
    make(&["bzImage", "modules"])?;
    make(&[
        &format!("INSTALL_MOD_PATH={BUILD_AT}/install"),
        "modules_install",
    ])?;
    fs::copy(dir.join("arch/x86/boot/bzImage"), part.join("bzImage"))
        .context("the kernel build made no bzImage")?;
    Ok(())
}

/// Fails when a line of the fragments did not make it into the configuration: Kconfig drops what it
/// does not know, and what depends on something that is off, without a word.
fn check_config(wanted: &str, config: &Path) -> Result<()> {
    let got =
        fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
    let missing = missing(wanted, &got);
    if !missing.is_empty() {
        bail!(
            "the kernel's configuration has not taken up {}: look in qemu/kernel/ for what they depend on",
            missing.join(", ")
        );
    }
    Ok(())
}

/// The lines of a fragment that a configuration does not follow.
fn missing<'a>(wanted: &'a str, got: &str) -> Vec<&'a str> {
    let got: HashSet<&str> = got.lines().collect();
    let is_off = |name: &str| {
        got.contains(format!("# {name} is not set").as_str())
            || !got.iter().any(|line| line.split('=').next() == Some(name))
    };
    let follows = |line: &str| got.contains(line) || line.strip_suffix("=n").is_some_and(is_off);
    wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !follows(line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_were_dropped_are_found() {
        let wanted = "# CONFIG_COMMENT=y\nCONFIG_A=y\nCONFIG_B=m\nCONFIG_C=n\nCONFIG_D=n\nCONFIG_E=n\nCONFIG_F=y\n";
        let got = "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_EE=y\nCONFIG_D=y\n";
        assert_eq!(
            missing(wanted, got),
            ["CONFIG_B=m", "CONFIG_D=n", "CONFIG_F=y"]
        );
    }

    #[test]
    fn no_option_is_set_twice() {
        let text: String = Flavour::Debug.fragments().iter().map(|f| f.text).collect();
        let options: Vec<_> = text
            .lines()
            .filter(|l| l.starts_with("CONFIG_"))
            .filter_map(|l| l.split('=').next())
            .collect();
        let set: HashSet<_> = options.iter().collect();
        assert_eq!(set.len(), options.len());
    }
}
