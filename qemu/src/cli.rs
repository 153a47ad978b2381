// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::accel::Choice;
use crate::artefacts::kernel::Flavour;
use crate::driver::Driver;
use crate::lab::{Needs, When};
use crate::sandbox::tool::ToolArgs;
use crate::{bench, demo, shell, test};

const AFTER_HELP: &str = "\
Exit codes: 0 all went well, 1 something failed, 2 wrong usage.

What the lab needs (QEMU, a guest kernel, a guest) it makes once, from Debian packages, in the cache \
directory: $FERRONIC_CACHE, else $XDG_CACHE_HOME/ferronic, else ~/.cache/ferronic. It takes 10 to 25 minutes \
on two cores and 8 GB. Logs of the last runs are kept there too, in logs/.";

/// Boots guests with the ferronic NIC: to see it work, to test it, to measure it
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// Options of all commands
    #[command(flatten)]
    pub options: Options,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands that boot guests.
#[derive(Debug, Args)]
pub struct Options {
    /// What guests run on
    #[arg(long, global = true, value_enum, default_value = "auto")]
    pub accel: Choice,
    /// What drives the NIC in guests
    #[arg(long, global = true, value_enum)]
    pub driver: Option<Driver>,
    /// Boot the debug kernel, which checks its drivers and is slow
    #[arg(long, global = true)]
    pub debug_kernel: bool,
    /// Boot this bzImage instead of the lab's own kernel
    #[arg(
        long,
        global = true,
        value_name = "BZIMAGE",
        requires = "modules",
        conflicts_with = "debug_kernel"
    )]
    pub kernel: Option<PathBuf>,
    /// The modules of that kernel: what INSTALL_MOD_PATH named when they were installed
    #[arg(long, global = true, value_name = "DIR", requires = "kernel")]
    pub modules: Option<PathBuf>,
    /// Use this QEMU instead of Debian's
    #[arg(long, global = true, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
}

impl Options {
    /// The driver of a command that boots one guest. A stranger's kernel has only its own.
    pub fn driver(&self) -> Driver {
        let usual = match self.kernel {
            None => Driver::DEFAULT,
            Some(_) => Driver::C,
        };
        self.driver.unwrap_or(usual)
    }

    /// The kernel of a command that boots one guest.
    pub fn flavour(&self) -> Flavour {
        if self.debug_kernel {
            Flavour::Debug
        } else {
            Flavour::Base
        }
    }
}

/// What to do
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the NIC at work: iperf3 both ways, the cable pulled under traffic, a report
    Demo(demo::Args),
    /// Run all tests: the repository's own on the host, and scenarios in guests
    Test(test::Args),
    /// Measure the NIC beside QEMU's own, passt and DPDK
    Bench(bench::Args),
    /// Boot a guest and give you its console, with the NIC and its control socket ready
    Shell(shell::Args),
    /// Boot a guest, run a shell command in it and print what it says
    Run {
        /// The command, given to sh -c
        script: String,
    },
    /// Make what is missing (tools, kernel, guest), and nothing else
    Prepare,
    /// Run a program of the tool root: qemu-system-x86_64, passt, iperf3, ...
    Exec {
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
    /// Remove all that the lab has made
    Clean,
    /// Become a program of the tool root
    #[command(name = crate::sandbox::tool::SUBCOMMAND, hide = true)]
    Tool(ToolArgs),
}

impl Command {
    /// The name of its log directories.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Demo(_) => "demo",
            Command::Test(_) => "test",
            Command::Bench(_) => "bench",
            Command::Shell(_) => "shell",
            Command::Run { .. } => "run",
            Command::Prepare => "prepare",
            Command::Exec { .. } => "exec",
            Command::Clean => "clean",
            Command::Tool(_) => crate::sandbox::tool::SUBCOMMAND,
        }
    }

    /// What it needs made.
    pub fn needs(&self, options: &Options) -> Needs {
        match self {
            Command::Test(args) => test::needs(args, options),
            Command::Bench(args) => bench::needs(args),
            _ => Needs {
                debug_kernel: if options.debug_kernel {
                    When::Now
                } else {
                    When::Never
                },
                module: options.driver() == Driver::Ferronic,
            },
        }
    }

    /// Whether it plugs in our NIC.
    pub fn needs_ferronic(&self) -> bool {
        matches!(
            self,
            Command::Demo(_) | Command::Test(_) | Command::Bench(_) | Command::Shell(_)
        )
    }
}
