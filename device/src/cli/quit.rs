// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic quit`: end the backend, and wait until its sockets are gone, so that another can take
//! its place.

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
    let mut client = args.control.connect()?;
    client.execute("quit", json!({}))?;
    client.wait_closed().map_err(|e| {
        Failure::Operation(format!("the backend agreed to end but is still there: {e}"))
    })
}
