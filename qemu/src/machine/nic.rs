// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How the machine's NIC is plugged in: ours, and its peers.

use std::path::PathBuf;

/// The two ways to attach our NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Attach {
    /// `-netdev vhost-user` with `virtio-net-pci`: QEMU owns config space and control queue
    Netdev,
    /// `vhost-user-test-device-pci`: the backend owns everything
    Device,
}

impl Attach {
    /// Its name on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Attach::Netdev => "netdev",
            Attach::Device => "device",
        }
    }
}

/// The machine's NIC.
#[derive(Debug, Clone)]
pub enum Nic {
    /// None at all.
    None,
    /// A vhost-user backend with these QEMU arguments, as `ferronic qemu-args` prints them.
    Backend(Vec<String>),
    /// A foreign vhost-user backend (passt) on this socket.
    VhostUser { socket: PathBuf, queues: usize },
    /// QEMU's own virtio-net on a tap that exists.
    Tap { name: String, queues: usize },
    /// QEMU's own virtio-net with its built-in user-mode network.
    User,
    /// QEMU's own virtio-net with frames over this socket: it listens there, or somebody else does.
    Stream { socket: PathBuf, listens: bool },
}

impl Nic {
    /// QEMU's arguments.
    pub fn qemu_args(&self) -> Vec<String> {
        let (chardev, netdev, queues) = match self {
            Nic::None => return Vec::new(),
            Nic::Backend(args) => return args.clone(),
            Nic::VhostUser { socket, queues } => (
                Some(format!(
                    "socket,id=nic0,path={},reconnect-ms=100",
                    socket.display()
                )),
                format!("vhost-user,id=net0,chardev=nic0,queues={queues}"),
                *queues,
            ),
            Nic::Tap { name, queues } => {
                let multi = if *queues > 1 {
                    format!(",queues={queues}")
                } else {
                    String::new()
                };
                (
                    None,
                    format!(
                        "tap,id=net0,ifname={name},script=no,downscript=no,vhost=off,vnet_hdr=on{multi}"
                    ),
                    *queues,
                )
            }
            Nic::User => (None, "user,id=net0".to_owned(), 1),
            Nic::Stream { socket, listens } => (
                None,
                format!(
                    "stream,id=net0,server={},addr.type=unix,addr.path={}",
                    if *listens { "on" } else { "off" },
                    socket.display()
                ),
                1,
            ),
        };
        let mut device = "virtio-net-pci,netdev=net0,romfile=".to_owned();
        if queues > 1 {
            // One interrupt vector for each queue, one for the control queue, one for the configuration.
            device += &format!(",mq=on,vectors={}", 2 * queues + 2);
        }
        let mut args = Vec::new();
        for (flag, value) in [
            ("-chardev", chardev),
            ("-netdev", Some(netdev)),
            ("-device", Some(device)),
        ] {
            if let Some(value) = value {
                args.push(flag.to_owned());
                args.push(value);
            }
        }
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_end_of_a_stream_listens_for_the_other() {
        let args = |listens| {
            let socket = PathBuf::from("/run/joint");
            Nic::Stream { socket, listens }.qemu_args().join(" ")
        };
        let path = "addr.type=unix,addr.path=/run/joint";
        assert!(args(true).contains(&format!("stream,id=net0,server=on,{path}")));
        assert!(args(false).contains(&format!("stream,id=net0,server=off,{path}")));
    }

    #[test]
    fn with_pairs_of_queues_each_queue_has_a_vector() {
        let args = |queues| {
            let name = "tap0".to_owned();
            Nic::Tap { name, queues }.qemu_args().join(" ")
        };
        assert!(args(2).contains(",queues=2") && args(2).contains("mq=on,vectors=6"));
        assert!(!args(1).contains("queues=") && !args(1).contains("vectors="));
    }
}
