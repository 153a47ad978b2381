// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The command line.

use clap::{Parser, Subcommand};

use crate::sandbox::tool::ToolArgs;

/// The lab
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab")]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make everything
    Prepare,
    /// Become a program of the tool root
    #[command(name = crate::sandbox::tool::SUBCOMMAND, hide = true)]
    Tool(ToolArgs),
}
