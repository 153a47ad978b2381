// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The options of `ferronic serve`: as given, and checked.

use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Failure;
use super::frontend_socket::FrontendAddress;
use crate::nic::offload::Offloads;
use crate::nic::{MacAddress, NicConfig};
use crate::uplink::UplinkSpec;

/// VIRTIO 1.3, 5.1.4.1: not below 68; a `le16` on the wire.
const MTU: RangeInclusive<u16> = 68..=65535;
/// What one mask of vhost-user-backend (64 queues) holds besides the control queue.
const QUEUE_PAIRS: RangeInclusive<u16> = 1..=31;
/// VIRTIO 1.3, 5.1.4: 0 to 2^31-1 Mbit/s; 0 would be a NIC that cannot send.
const SPEED: RangeInclusive<u32> = 1..=0x7fff_ffff;

const AFTER_HELP: &str = "\
Serve one guest, its cable in passt, steered over /tmp/nic.ctl:
  ferronic serve --socket-path /tmp/nic.sock --control /tmp/nic.ctl --uplink user

SIGTERM, SIGINT and `ferronic quit` end it and remove its sockets. A socket left by a process
that was killed is replaced; one that somebody listens on is not.

Exit codes: 0 ended as asked, 1 something failed, 2 the command line is wrong.";

/// Options of `ferronic serve`, as given.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ServeArgs {
    /// Listen here for the frontend (QEMU's -chardev socket,path=...).
    #[arg(long, value_name = "PATH", required_unless_present_any = ["fd", "print_capabilities"])]
    socket_path: Option<PathBuf>,

    /// Take the frontend's socket, listening or connected, from this inherited file descriptor.
    #[arg(long, value_name = "FD", conflicts_with = "socket_path",
          value_parser = clap::value_parser!(RawFd).range(3..))]
    fd: Option<RawFd>,

    /// Print what this backend is, in JSON, and exit; all else is ignored.
    #[arg(long)]
    print_capabilities: bool,

    /// Make the control socket here, open to you alone. Without it the other subcommands cannot
    /// reach this backend.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Where the cable goes: loopback (what the guest sends comes back to it), tap:NAME (a tap
    /// interface of the host), user (the host's network through passt, without privileges).
    #[arg(long, value_name = "UPLINK", default_value = "loopback")]
    uplink: UplinkSpec,

    /// Pairs of receive and transmit queues, 1 to 31.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_queue_pairs)]
    queues: u16,

    /// Offer no packed virtqueues, so that every driver uses split ones.
    #[arg(long)]
    no_packed: bool,

    /// The NIC's own address [default: a random one, said in the log].
    #[arg(long, value_name = "MAC")]
    mac: Option<MacAddress>,

    /// Largest payload of a frame, 68 to 65535 octets [default: 1500; 65520 with --uplink user,
    /// which has no other way to carry much at a time].
    #[arg(long, value_name = "N", value_parser = parse_mtu)]
    mtu: Option<u16>,

    /// Link speed told to the guest.
    #[arg(long, value_name = "MBPS", default_value_t = 10_000, value_parser = parse_speed)]
    speed: u32,

    /// The link at start. With `follow` it goes up and down with the uplink's own carrier; `ferronic
    /// link` then holds until the uplink changes next.
    #[arg(long, value_enum, default_value_t = LinkMode::Up)]
    link: LinkMode,

    /// What to log on standard error: off, error, warn, info, debug or trace, also by module
    /// (info,ferronic::control=debug).
    #[arg(long, value_name = "FILTERS", default_value = "info", value_parser = parse_log)]
    log: String,

    /// The passt program for --uplink user [default: searched in PATH].
    #[arg(long, value_name = "PATH")]
    passt: Option<PathBuf>,
}

/// The link at start, and whether it follows the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LinkMode {
    /// The cable is in.
    Up,
    /// The cable is out.
    Down,
    /// The cable is in while the uplink's carrier is there.
    Follow,
}

/// Options of `ferronic serve`, checked.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Where the frontend comes from.
    pub frontend: FrontendAddress,
    /// The control socket, if there is to be one.
    pub control: Option<PathBuf>,
    /// Where the cable goes.
    pub uplink: UplinkSpec,
    /// Pairs of queues.
    pub queue_pairs: u16,
    /// Packed virtqueues are offered.
    pub packed: bool,
    /// The permanent address.
    pub mac: MacAddress,
    /// Whether that address was made up.
    pub mac_is_random: bool,
    /// The MTU.
    pub mtu: u16,
    /// Mbit/s.
    pub speed: u32,
    /// The link at start.
    pub link: LinkMode,
    /// What to log.
    pub log: String,
    /// The passt program; `None` searches `PATH`.
    pub passt: Option<PathBuf>,
}

impl ServeOptions {
    /// Checks the options against each other and fills in what was left open.
    pub fn new(args: ServeArgs) -> Result<Self, Failure> {
        let frontend = match (args.socket_path, args.fd) {
            (Some(path), None) => FrontendAddress::Path(path),
            (None, Some(fd)) => FrontendAddress::Descriptor(fd),
            _ => {
                return Err(Failure::Usage(
                    "give either --socket-path or --fd, so that a frontend can come".into(),
                ));
            }
        };
        if let (FrontendAddress::Path(path), Some(control)) = (&frontend, &args.control)
            && path == control
        {
            return Err(Failure::Usage(
                "--socket-path and --control are the same; they need a socket each".into(),
            ));
        }
        if args.passt.is_some() && args.uplink != UplinkSpec::User {
            return Err(Failure::Usage(
                "--passt only makes sense with --uplink user".into(),
            ));
        }
        let mac = match args.mac {
            Some(mac) => mac,
            None => random_mac()?,
        };
        let mtu = args.mtu.unwrap_or(args.uplink.default_mtu());
        Ok(ServeOptions {
            frontend,
            control: args.control,
            uplink: args.uplink,
            queue_pairs: args.queues,
            packed: !args.no_packed,
            mac,
            mac_is_random: args.mac.is_none(),
            mtu,
            speed: args.speed,
            link: args.link,
            log: args.log,
            passt: args.passt,
        })
    }

    /// The NIC to make, given what the opened uplink can do.
    pub fn nic_config(&self, offloads: Offloads) -> NicConfig {
        NicConfig {
            mac: self.mac,
            mtu: self.mtu,
            speed: self.speed,
            queue_pairs: self.queue_pairs,
            packed: self.packed,
            offloads,
            uplink: self.uplink.to_string(),
        }
    }
}

/// A random address: individual, locally administered (IEEE 802c: `x2` in the first octet).
fn random_mac() -> Result<MacAddress, Failure> {
    let mut octets = [0u8; 6];
    let got = rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty());
    if got != Ok(octets.len()) {
        return Err(Failure::Operation(
            "the system gives no random numbers for an address; choose one with --mac".into(),
        ));
    }
    octets[0] = (octets[0] & 0xf0) | 0x02;
    Ok(MacAddress(octets))
}

fn parse_in<T>(text: &str, range: &RangeInclusive<T>) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    match text.parse::<T>() {
        Ok(n) if range.contains(&n) => Ok(n),
        _ => Err(format!(
            "must be a whole number from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

/// Reads an MTU.
pub fn parse_mtu(text: &str) -> Result<u16, String> {
    parse_in(text, &MTU)
}

/// Reads a number of queue pairs.
pub fn parse_queue_pairs(text: &str) -> Result<u16, String> {
    parse_in(text, &QUEUE_PAIRS)
}

fn parse_speed(text: &str) -> Result<u32, String> {
    parse_in(text, &SPEED)
}

fn parse_log(text: &str) -> Result<String, String> {
    match env_filter::Builder::new().try_parse(text) {
        Ok(_) => Ok(text.into()),
        Err(e) => Err(format!(
            "{e}; such as info, or info,ferronic::control=debug"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ServeArgs,
    }

    fn options(arguments: &str) -> Result<ServeOptions, String> {
        let line = format!("x {arguments}");
        let line = Line::try_parse_from(line.split_whitespace()).map_err(|e| e.to_string())?;
        ServeOptions::new(line.args).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_those_the_help_promises() {
        let user = options("--socket-path s --uplink user").unwrap();
        assert_eq!(user.mtu, 65520);
        let options = options("--socket-path s").unwrap();
        assert_eq!(options.frontend, FrontendAddress::Path("s".into()));
        assert_eq!(options.control, None);
        assert_eq!(options.uplink, UplinkSpec::Loopback);
        assert_eq!((options.queue_pairs, options.mtu), (1, 1500));
        assert_eq!((options.speed, options.link), (10_000, LinkMode::Up));
        assert!(options.packed);
        assert!(options.mac_is_random);
        assert!(!options.mac.is_multicast());
        assert_eq!(options.mac.0[0] & 0x0f, 2);
    }

    #[test]
    fn everything_can_be_said() {
        let options = options(
            "--fd 5 --control c --uplink user --passt p --queues 31 --mac 52:54:00:12:34:56 --mtu 65535 \
             --speed 25000 --no-packed --link follow --log warn,ferronic::control=trace",
        )
        .unwrap();
        assert_eq!(options.frontend, FrontendAddress::Descriptor(5));
        assert_eq!(options.mac.to_string(), "52:54:00:12:34:56");
        assert_eq!(options.link, LinkMode::Follow);
        assert!(!options.packed);
        assert!(!options.mac_is_random);
    }

    #[test]
    fn wrong_values_are_refused_with_what_would_be_right() {
        for (bad, hint) in [
            ("", "--socket-path"),
            ("--socket-path s --fd 4", "--fd"),
            ("--fd 1", "3"),
            ("--socket-path s --control s", "same"),
            ("--socket-path s --queues 0", "1 to 31"),
            ("--socket-path s --queues 32", "1 to 31"),
            ("--socket-path s --mtu 67", "68 to 65535"),
            ("--socket-path s --mtu 65536", "68 to 65535"),
            ("--socket-path s --speed 0", "1 to"),
            ("--socket-path s --mac 01:00:5e:00:00:01", "group address"),
            ("--socket-path s --uplink carrier-pigeon", "tap:NAME"),
            ("--socket-path s --uplink tap:", "tap:fer0"),
            ("--socket-path s --link sideways", "follow"),
            ("--socket-path s --log ferronic=loud", "info"),
            ("--socket-path s --passt p", "--uplink user"),
        ] {
            let error = options(bad).unwrap_err();
            assert!(error.contains(hint), "{bad}: {error}");
        }
    }
}
