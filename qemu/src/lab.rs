// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Everything a command needs, made ready.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::accel::{self, Accel};
use crate::artefacts::kernel::{self, Flavour, Kernel};
use crate::artefacts::{guest, module, tools};
use crate::cache::Cache;
use crate::cli::Options;
use crate::driver::Driver;
use crate::machine::Spec;
use crate::machine::nic::Nic;
use crate::progress::Step;
use crate::sandbox::net::Run;
use crate::sandbox::tool::ToolRoot;

/// What is made once and kept.
#[derive(Debug)]
pub struct Parts {
    cache: Cache,
    tools: ToolRoot,
    base: System,
    module: bool,
}

/// When something is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Never.
    Never,
    /// At once.
    Now,
    /// After much else, beside which it can be made.
    Later,
}

/// What is needed beside what every command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The debug kernel.
    pub debug_kernel: When,
    /// Our driver.
    pub module: bool,
}

impl Needs {
    /// All there is.
    pub const ALL: Needs = Needs {
        debug_kernel: When::Now,
        module: true,
    };
}

/// A kernel, and the disks that go with it.
#[derive(Debug)]
pub struct System {
    /// The kernel.
    pub kernel: Kernel,
    /// The guest's root file system.
    pub image: PathBuf,
    /// The tar file with our driver, if it was asked for.
    pub module: Option<PathBuf>,
}

/// The lab, inside its namespaces.
#[derive(Debug)]
pub struct Lab {
    /// The cache directory.
    pub cache: Cache,
    /// The programs of the host's side.
    pub tools: ToolRoot,
    /// The usual kernel.
    pub base: System,
    /// The driver of the NIC that the user has chosen.
    pub driver: Driver,
    /// The program `ferronic`.
    pub ferronic: PathBuf,
    /// What guests run on.
    pub accel: Accel,
    /// Where this run's files go.
    pub run: Run,
    flavour: Flavour,
    debug: OnceLock<System>,
    module: bool,
    qemu: Option<PathBuf>,
    names: AtomicU32,
}

/// Makes what is missing. Done outside of the run's namespaces, where the network is.
pub fn prepare(options: &Options, needs: Needs) -> Result<Parts> {
    let cache = Cache::open()?;
    let tools = tools::tools(&cache)?;
    let kernel = match (&options.kernel, &options.modules) {
        (Some(image), Some(modules)) => Kernel::of_user(image, modules)?,
        _ => kernel::kernel(&cache, &tools, Flavour::Base)?,
    };
    let base = System::make(&cache, &tools, kernel, needs.module)?;
    if needs.debug_kernel == When::Now {
        System::debug(&cache, &tools, needs.module)?;
    }
    Ok(Parts {
        cache,
        tools,
        base,
        module: needs.module,
    })
}

impl System {
    fn make(cache: &Cache, tools: &ToolRoot, kernel: Kernel, module: bool) -> Result<Self> {
        Ok(System {
            image: guest::image(cache, tools, &kernel)?,
            module: match module {
                true => Some(module::archive(cache, tools, &kernel)?),
                false => None,
            },
            kernel,
        })
    }

    fn debug(cache: &Cache, tools: &ToolRoot, module: bool) -> Result<Self> {
        let kernel = kernel::kernel(cache, tools, Flavour::Debug)?;
        Self::make(cache, tools, kernel, module)
    }
}

/// Builds the NIC.
pub fn build_ferronic() -> Result<()> {
    let step = Step::start("building ferronic (release)");
    let output = Command::new(cargo())
        .args(["build", "--release", "--package", "ferronic"])
        .current_dir(workspace())
        .stdin(Stdio::null())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!(
            "cargo build failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    step.done();
    Ok(())
}

/// The cargo that runs the lab, or the one in PATH.
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The repository.
pub fn workspace() -> &'static Path {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
    lab.parent().unwrap_or(lab)
}

/// The program `ferronic`, built for release as the lab itself is.
pub fn ferronic() -> Result<PathBuf> {
    let lab = std::env::current_exe().context("cannot find the lab's own program file")?;
    Ok(lab.with_file_name("ferronic"))
}

impl Parts {
    /// The cache directory.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The programs of the host's side.
    pub fn tools(&self) -> &ToolRoot {
        &self.tools
    }

    /// The usual kernel.
    pub fn base(&self) -> &System {
        &self.base
    }

    /// Goes on inside the run's namespaces.
    pub fn into_lab(self, options: &Options, run: Run) -> Result<Lab> {
        if let Some(qemu) = &options.qemu
            && !qemu.is_file()
        {
            bail!("there is no QEMU {}", qemu.display());
        }
        let Parts {
            cache,
            tools,
            base,
            module,
        } = self;
        let qemu = options.qemu.clone();
        let ferronic = ferronic()?;
        let accel = Accel::Tcg;
        let mut lab = Lab {
            cache,
            tools,
            base,
            debug: OnceLock::new(),
            module,
            driver: options.driver(),
            flavour: options.flavour(),
            ferronic,
            accel,
            run,
            qemu,
            names: AtomicU32::new(0),
        };
        lab.accel = accel::choose(&lab, options.accel)?;
        Ok(lab)
    }
}

impl Lab {
    /// A machine with this NIC, with the driver and the kernel that the user has chosen.
    pub fn spec(&self, name: impl Into<String>, nic: Nic) -> Spec {
        let mut spec = Spec::new(name, nic);
        (spec.driver, spec.kernel) = (Some(self.driver), self.flavour);
        spec
    }

    /// A kernel and its disks. The debug kernel is waited for, or made, when it is first asked for.
    pub fn system(&self, flavour: Flavour) -> Result<&System> {
        if flavour == Flavour::Base {
            return Ok(&self.base);
        }
        if let Some(system) = self.debug.get() {
            return Ok(system);
        }
        let system = System::debug(&self.cache, &self.tools, self.module)?;
        Ok(self.debug.get_or_init(|| system))
    }

    /// A name that nothing else in this run has.
    pub fn unique(&self, name: &str) -> String {
        format!("{}-{name}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// A command that runs QEMU.
    pub fn qemu(&self) -> Command {
        match &self.qemu {
            Some(path) => Command::new(path),
            None => self.tools.command("qemu-system-x86_64"),
        }
    }

    /// QEMU's command line for a user's terminal.
    pub fn qemu_command_line(&self, arguments: &[String]) -> String {
        let program = match &self.qemu {
            Some(path) => path.display().to_string(),
            None => "cargo lab exec qemu-system-x86_64".to_owned(),
        };
        format!("{program} {}", quote(arguments))
    }

    /// Runs a tool that must succeed, and returns its standard output.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self
            .tools
            .command(program)
            .args(arguments)
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            bail!(
                "`{program} {}` ended with {}:\n{}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Joins arguments so that a shell takes them apart again.
pub fn quote<S: AsRef<str>>(arguments: &[S]) -> String {
    shlex::try_join(arguments.iter().map(AsRef::as_ref))
        .unwrap_or_else(|_| "(an argument holds a NUL)".into())
}
