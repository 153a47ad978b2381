// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The host's side of the network, inside the run's namespace.
//!
//! - `fer0`, a tap, is the far end of the NIC's cable.
//! - `fer1` and `fer2`, taps in a bridge, join guests whose NICs are QEMU's own.
//! - `wan0`, a tap that nobody reads, has a default route and stands for the host's way
//!   to the world: passt takes addresses and routes from it as it does on a real host.
//!   (Not a dummy interface: small host kernels have none, and the tun driver is needed
//!   anyway.)

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::lab::Lab;

/// The tap.
pub const TAP: &str = "fer0";
/// The host's address on the tap.
pub const HOST_IP: &str = "10.77.0.1";
/// The guest's address on the tap.
pub const GUEST_IP: &str = "10.77.0.2";
/// The host's IPv6 address on the tap.
pub const HOST_IP6: &str = "fd77::1";
/// The guest's IPv6 address on the tap.
pub const GUEST_IP6: &str = "fd77::2";
/// Two taps in a bridge, by which two guests reach each other.
pub const BRIDGED: [&str; 2] = ["fer1", "fer2"];
/// The bridge.
const BRIDGE: &str = "ferbr0";
/// The host's address on `wan0`.
pub const WAN_IP: &str = "192.0.2.2";

/// Gives the new network namespace its loopback and its way out.
pub fn settle(lab: &Lab) -> Result<()> {
    ip(
        lab,
        &format!(
            "link set lo up\n\
             tuntap add dev wan0 mode tap\n\
             addr add {WAN_IP}/24 dev wan0\n\
             addr add 2001:db8::2/64 dev wan0 nodad\n\
             link set wan0 up\n\
             route add default via 192.0.2.1\n\
             route add default via 2001:db8::1\n"
        ),
    )
}

/// Makes the tap anew. One that is there is removed, with whatever state it had.
pub fn make_tap(lab: &Lab, multi_queue: bool) -> Result<()> {
    remove(lab, TAP)?;
    let multi_queue = if multi_queue { " multi_queue" } else { "" };
    ip(
        lab,
        &format!(
            "tuntap add dev {TAP} mode tap vnet_hdr{multi_queue}\n\
             addr add {HOST_IP}/24 dev {TAP}\n\
             addr add {HOST_IP6}/64 dev {TAP} nodad\n\
             link set {TAP} up\n"
        ),
    )
}

/// Makes the bridge and its taps anew.
pub fn make_bridge(lab: &Lab) -> Result<()> {
    let mut lines = format!("link add {BRIDGE} type bridge\nlink set {BRIDGE} up\n");
    for name in [BRIDGE].into_iter().chain(BRIDGED) {
        remove(lab, name)?;
    }
    for tap in BRIDGED {
        lines += &format!(
            "tuntap add dev {tap} mode tap vnet_hdr\n\
             link set {tap} master {BRIDGE}\n\
             link set {tap} up\n"
        );
    }
    ip(lab, &lines)
}

/// Removes an interface, if it is there.
fn remove(lab: &Lab, name: &str) -> Result<()> {
    if std::path::Path::new("/sys/class/net").join(name).exists() {
        ip(lab, &format!("link del {name}\n"))?;
    }
    Ok(())
}

/// Runs lines of `ip -batch`.
pub fn ip(lab: &Lab, lines: &str) -> Result<()> {
    let mut child = lab
        .tools
        .command("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        // Should ip have died, its message says more than a broken pipe does.
        let _ = stdin.write_all(lines.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "ip failed: {}\nof\n{lines}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
