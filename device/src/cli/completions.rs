// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic completions`: scripts that complete the command line.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, Failure, print};

/// Options of `ferronic completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Runs `ferronic completions`.
pub fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    // Into memory first: the generator panics where a write fails.
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "ferronic", &mut script);
    print(&String::from_utf8_lossy(&script))
}
