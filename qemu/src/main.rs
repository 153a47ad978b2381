// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The lab, run as `cargo lab`.
fn main() {}
