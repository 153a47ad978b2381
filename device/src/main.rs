// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The binary `ferronic`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ferronic::cli::main()
}
