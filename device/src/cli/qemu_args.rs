// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic qemu-args`: the QEMU options that attach the NIC.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::serve_options::{parse_mtu, parse_queue_pairs};
use super::{Failure, print};
use crate::nic::MacAddress;

const AFTER_HELP: &str = "\
netdev works with every QEMU: QEMU owns the NIC's configuration, and the guest sees one MSI-X
vector a queue. device needs QEMU 10.1 or newer: the backend owns all of the NIC, so speed,
filters, statistics and the link bit are its own.

In a script:
  qemu-system-x86_64 $(ferronic qemu-args --socket-path S) -nographic disk.img
A path with blanks or other odd characters is quoted; put `eval` before the line then.";

/// Options of `ferronic qemu-args`.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct QemuArgs {
    /// The vhost-user socket: what `ferronic serve --socket-path` is given.
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,

    /// How the NIC is plugged in.
    #[arg(long, value_enum, default_value_t = Attach::Netdev)]
    attach: Attach,

    /// Pairs of queues: what `ferronic serve --queues` is given, or (netdev) fewer.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_queue_pairs)]
    queues: u16,

    /// Name for the QEMU objects, needed when a guest has more than one such NIC.
    #[arg(long, value_name = "NAME", value_parser = parse_id)]
    id: Option<String>,

    /// The guest's station address (netdev; in device it is what `ferronic serve --mac` says).
    #[arg(long, value_name = "MAC")]
    mac: Option<MacAddress>,

    /// The MTU told to the guest (netdev; in device it is what `ferronic serve --mtu` says).
    #[arg(long, value_name = "N", value_parser = parse_mtu)]
    mtu: Option<u16>,

    /// Let the guest use packed virtqueues (netdev; in device it may unless `ferronic serve` says
    /// --no-packed).
    #[arg(long)]
    packed: bool,

    /// Let the guest know that buffers are used in order, so that what it sends is given back in
    /// batches (netdev; in device it always may).
    #[arg(long)]
    in_order: bool,

    /// Guest memory, which has to be shared with the backend.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_memory)]
    memory: String,

    /// Leave out the memory and machine options, for a guest that has shared memory already.
    #[arg(long, conflicts_with = "memory")]
    no_memory: bool,
}

/// How the NIC is plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// -netdev vhost-user with virtio-net-pci.
    Netdev,
    /// vhost-user-test-device-pci.
    Device,
}

/// Runs `ferronic qemu-args`.
pub fn run(args: &QemuArgs) -> Result<(), Failure> {
    let quoted: Result<Vec<_>, _> = words(args)?.iter().map(|word| quote(word)).collect();
    print(&format!("{}\n", quoted?.join(" ")))
}

/// A word as a shell needs it. Words that no shell would touch stay as they are, where `shlex`
/// alone would quote a comma: so that `qemu-system-x86_64 $(ferronic qemu-args ...)` works, in which
/// a shell would take quotes for text.
fn quote(word: &str) -> Result<String, Failure> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:,=+@".contains(&b);
    if word.bytes().all(plain) {
        return Ok(word.into());
    }
    let quoted = shlex::try_quote(word);
    let quoted =
        quoted.map_err(|_| Failure::Usage("--socket-path contains a NUL character".into()))?;
    Ok(quoted.into_owned())
}

/// The options, one word each.
fn words(args: &QemuArgs) -> Result<Vec<String>, Failure> {
    let path = option_value(&args.socket_path)?;
    let (chardev, netdev, device_id) = match &args.id {
        None => ("c0".into(), "n0".into(), String::new()),
        Some(id) => (
            format!("{id}-chardev"),
            format!("{id}-netdev"),
            format!(",id={id}"),
        ),
    };
    let mut words: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| words.extend([option.into(), value]);
    if !args.no_memory {
        let size = &args.memory;
        add(
            "-object",
            format!("memory-backend-memfd,id=mem0,size={size},share=on"),
        );
        add("-machine", "q35,memory-backend=mem0".into());
        add("-m", size.clone());
    }
    match args.attach {
        Attach::Netdev => {
            let (mut multi_netdev, mut multi_device) = (String::new(), String::new());
            if args.queues > 1 {
                multi_netdev = format!(",queues={}", args.queues);
                // One for each queue, one for the control queue's change of configuration.
                multi_device = format!(",mq=on,vectors={}", 2 * args.queues + 2);
            }
            let mac = args
                .mac
                .map(|mac| format!(",mac={mac}"))
                .unwrap_or_default();
            let mtu = args
                .mtu
                .map(|n| format!(",host_mtu={n}"))
                .unwrap_or_default();
            let packed = if args.packed { ",packed=on" } else { "" };
            let in_order = if args.in_order { ",in_order=on" } else { "" };
            add(
                "-chardev",
                format!("socket,id={chardev},path={path},reconnect-ms=100"),
            );
            add(
                "-netdev",
                format!("vhost-user,id={netdev},chardev={chardev}{multi_netdev}"),
            );
            add(
                "-device",
                format!(
                    "virtio-net-pci,netdev={netdev}{device_id}{multi_device}{mac}{mtu}{packed}\
                     {in_order}"
                ),
            );
        }
        Attach::Device => {
            for (given, option) in [(args.mac.is_some(), "mac"), (args.mtu.is_some(), "mtu")] {
                if given {
                    return Err(Failure::Usage(format!(
                        "--{option} is the backend's own with --attach device: give it to \
                         `ferronic serve --{option}`"
                    )));
                }
            }
            add("-chardev", format!("socket,id={chardev},path={path}"));
            add(
                "-device",
                format!(
                    "vhost-user-test-device-pci{device_id},chardev={chardev},virtio-id=1,\
                     num_vqs={},vq_size=256,config_size=64",
                    2 * args.queues + 1
                ),
            );
        }
    }
    Ok(words)
}

/// A path as the value of a QEMU option: a comma would end it, so it is doubled.
fn option_value(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().ok_or_else(|| {
        Failure::Usage("--socket-path is not UTF-8 text, which QEMU needs; rename it".into())
    })?;
    Ok(text.replace(',', ",,"))
}

/// QEMU's rule for names: a letter, then letters, digits and `-._`.
fn parse_id(text: &str) -> Result<String, String> {
    let mut letters = text.chars();
    let first = letters.next().is_some_and(|c| c.is_ascii_alphabetic());
    let rest = letters.all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    if first && rest {
        return Ok(text.into());
    }
    Err("QEMU wants a letter, then letters, digits, '-', '.' or '_'".into())
}

fn parse_memory(text: &str) -> Result<String, String> {
    let digits = text.strip_suffix(['M', 'G', 'T']).unwrap_or(text);
    match digits.parse::<u32>() {
        Ok(n) if n > 0 => Ok(text.into()),
        _ => Err("must be a number of MiB, or a number with M, G or T, such as 512M".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: QemuArgs,
    }

    fn line(arguments: &str) -> String {
        let given = shlex::split(&format!("x {arguments}")).unwrap();
        let args = Line::try_parse_from(given)
            .map_err(|e| e.to_string())
            .unwrap()
            .args;
        let words = words(&args).unwrap();
        let quoted: Vec<_> = words.iter().map(|word| quote(word).unwrap()).collect();
        let line = quoted.join(" ");
        // What a shell makes of it is what was meant.
        assert_eq!(shlex::split(&line).unwrap(), words);
        line
    }

    #[test]
    fn netdev_with_one_pair() {
        assert_eq!(
            line("--socket-path /tmp/s"),
            "-object memory-backend-memfd,id=mem0,size=512M,share=on \
             -machine q35,memory-backend=mem0 -m 512M \
             -chardev socket,id=c0,path=/tmp/s,reconnect-ms=100 \
             -netdev vhost-user,id=n0,chardev=c0 -device virtio-net-pci,netdev=n0"
        );
    }

    #[test]
    fn netdev_with_everything() {
        assert_eq!(
            line(
                "--socket-path /tmp/s --attach netdev --queues 4 --id net1 --no-memory \
                 --mac 52:54:00:12:34:56 --mtu 9000 --packed --in-order"
            ),
            "-chardev socket,id=net1-chardev,path=/tmp/s,reconnect-ms=100 \
             -netdev vhost-user,id=net1-netdev,chardev=net1-chardev,queues=4 \
             -device virtio-net-pci,netdev=net1-netdev,id=net1,mq=on,vectors=10,\
             mac=52:54:00:12:34:56,host_mtu=9000,packed=on,in_order=on"
        );
    }

    #[test]
    fn device_attachment() {
        assert_eq!(
            line("--socket-path s --attach device --queues 2 --memory 1G --packed --in-order"),
            "-object memory-backend-memfd,id=mem0,size=1G,share=on \
             -machine q35,memory-backend=mem0 -m 1G -chardev socket,id=c0,path=s \
             -device vhost-user-test-device-pci,chardev=c0,virtio-id=1,num_vqs=5,vq_size=256,\
             config_size=64"
        );
    }

    #[test]
    fn odd_paths_survive_qemu_and_the_shell() {
        assert_eq!(
            line("--socket-path '/tmp/a b,c' --attach device --no-memory"),
            "-chardev 'socket,id=c0,path=/tmp/a b,,c' \
             -device vhost-user-test-device-pci,chardev=c0,virtio-id=1,num_vqs=3,vq_size=256,\
             config_size=64"
        );
    }

    #[test]
    fn what_qemu_would_refuse_is_refused() {
        for bad in [
            "--queues 0",
            "--queues 32",
            "--id 0net",
            "--id a,b",
            "--memory lots",
            "--memory 0",
            "--mac 01:00:00:00:00:00",
            "--mtu 67",
            "--memory 1G --no-memory",
        ] {
            let given = shlex::split(&format!("x --socket-path s {bad}")).unwrap();
            assert!(Line::try_parse_from(given).is_err(), "{bad}");
        }
        let args = Line::try_parse_from("x --socket-path s --attach device --mtu 1500".split(' '));
        let Err(Failure::Usage(text)) = words(&args.map_err(|e| e.to_string()).unwrap().args)
        else {
            panic!("accepted");
        };
        assert!(text.contains("ferronic serve --mtu"), "{text}");
    }
}
