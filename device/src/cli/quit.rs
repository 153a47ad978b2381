// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic quit`: end the backend.

use clap::Args;
use serde_json::json;

use super::{ControlArgs, Failure};

/// Options of `ferronic quit`.
#[derive(Debug, Args)]
pub struct QuitArgs {
    #[command(flatten)]
    control: ControlArgs,
}

/// Runs `ferronic quit`.
pub fn run(args: &QuitArgs) -> Result<(), Failure> {
    args.control.connect()?.execute("quit", json!({}))?;
    Ok(())
}
