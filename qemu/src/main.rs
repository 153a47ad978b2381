// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The lab, run as `cargo lab`.

mod artefacts;
mod cache;
mod cli;
mod host;
mod progress;
mod sandbox;

use clap::Parser;

fn main() -> anyhow::Result<()> {
    match cli::Cli::parse().command {
        cli::Command::Tool(args) => sandbox::tool::exec(&args),
        cli::Command::Prepare => {
            let cache = cache::Cache::open()?;
            let tools = artefacts::tools::tools(&cache)?;
            let kernel = artefacts::kernel::kernel(&cache, &tools, &[artefacts::kernel::BASE])?;
            let image = artefacts::guest::image(&cache, &tools, &kernel)?;
            println!("{kernel:?} {image:?}");
            Ok(())
        }
    }
}
