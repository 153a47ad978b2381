// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The options of `ferronic serve`: as given, and checked.

use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Failure;
use super::frontend_socket::FrontendAddress;
use crate::control::ports::{PortDefaults, PortSpec, random_mac};
use crate::datapath::workers::{CpuList, Workers};
use crate::nic::offload::Offloads;
use crate::nic::{MacAddress, NicConfig};
use crate::switch::vlan::VlanMode;
use crate::uplink::UplinkSpec;

/// VIRTIO 1.3, 5.1.4.1: not below 68; a `le16` on the wire.
const MTU: RangeInclusive<u16> = 68..=65535;
/// What one mask of vhost-user-backend (64 queues) holds besides the control queue.
const QUEUE_PAIRS: RangeInclusive<u16> = 1..=31;
/// VIRTIO 1.3, 5.1.4: 0 to 2^31-1 Mbit/s; 0 would be a NIC that cannot send.
const SPEED: RangeInclusive<u32> = 1..=0x7fff_ffff;
/// Microseconds; a second is as good as for ever.
const POLL: RangeInclusive<u32> = 0..=1_000_000;

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
    /// Listen here for the frontend (QEMU's -chardev socket,path=...). With --uplink switch it may
    /// be given several times: each is a port with a NIC of its own.
    #[arg(long, value_name = "PATH")]
    socket_path: Vec<PathBuf>,

    /// A port of the switch, as key=value pairs with commas between them: socket=PATH, name=NAME
    /// [default: p0, p1, ...], mac=MAC, and its VLANs: vlan=N for a port of one VLAN without tags, or
    /// trunk=all or trunk=10+20-29 for one with tags, and native=N for the VLAN that has none there
    /// [default: trunk=all,native=1].
    #[arg(long, value_name = "SPEC")]
    port: Vec<PortSpec>,

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
    /// interface of the host), user (the host's network through passt, without privileges), switch
    /// (a switch between several guests), or switch:tap:NAME or switch:user (the same with such a
    /// way out).
    #[arg(long, value_name = "UPLINK", default_value = "loopback")]
    uplink: Uplink,

    /// VLANs of the switch's way out, as in --port [default: trunk=all,native=1].
    #[arg(long, value_name = "SPEC")]
    uplink_vlans: Option<PortSpec>,

    /// Pairs of receive and transmit queues, 1 to 31.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_queue_pairs)]
    queues: u16,

    /// Offer no packed virtqueues, so that every driver uses split ones.
    #[arg(long)]
    no_packed: bool,

    /// Offer no receive-side scaling: which queue gets a packet is not the driver's choice then, but
    /// that of the host's tap, which needs no copy for it.
    #[arg(long)]
    no_rss: bool,

    /// Report no hashes of received packets. Linux has them made for every packet as soon as they are
    /// offered, and looks at them after 'ethtool -K eth0 rxhash on'.
    #[arg(long)]
    no_hash_report: bool,

    /// Pin the workers, of which each queue pair has one, to these CPUs in turn: numbers and ranges,
    /// such as 2,4-7 [default: the scheduler places them].
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,

    /// How long a worker goes on looking for packets after the last one before it sleeps, 0 to
    /// 1000000 microseconds. It answers sooner and is notified less, and uses its CPU up meanwhile;
    /// a NIC without traffic still uses none.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_poll)]
    poll_us: u32,

    /// The NIC's own address [default: a random one, said in the log].
    #[arg(long, value_name = "MAC")]
    mac: Option<MacAddress>,

    /// Largest payload of a frame, 68 to 65535 octets [default: 1500; 65520 with --uplink user or
    /// switch:user, which have no other way to carry much at a time].
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

    /// The passt program for --uplink user or switch:user [default: searched in PATH].
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
    /// Where the frontends come from, and what is between them and the cable.
    pub plan: Plan,
    /// The control socket, if there is to be one.
    pub control: Option<PathBuf>,
    /// Pairs of queues, of each NIC.
    pub queue_pairs: u16,
    /// Packed virtqueues are offered.
    pub packed: bool,
    /// Receive-side scaling is offered.
    pub rss: bool,
    /// To report hashes is offered.
    pub hash_report: bool,
    /// The MTU.
    pub mtu: u16,
    /// Mbit/s.
    pub speed: u32,
    /// How workers run.
    pub workers: Workers,
    /// The link at start.
    pub link: LinkMode,
    /// What to log.
    pub log: String,
    /// The passt program; `None` searches `PATH`.
    pub passt: Option<PathBuf>,
}

/// Where the cable goes, as the command line says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// From one NIC to this.
    Nic(UplinkSpec),
    /// From several NICs to a switch, and from there to this, if to anything.
    Switch(Option<UplinkSpec>),
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uplink::Nic(spec) => spec.fmt(f),
            Uplink::Switch(None) => f.write_str("switch"),
            Uplink::Switch(Some(spec)) => write!(f, "switch:{spec}"),
        }
    }
}

impl FromStr for Uplink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let spec = |text: &str| {
            let spec = text.parse::<UplinkSpec>();
            spec.map_err(|e| format!("{e}; and switch, switch:tap:NAME and switch:user"))
        };
        match text.strip_prefix("switch") {
            Some("") => Ok(Uplink::Switch(None)),
            Some(rest) if rest.starts_with(':') => match spec(rest.trim_start_matches(':'))? {
                UplinkSpec::Loopback => Err(
                    "a switch cannot lead to a loopback: each guest would be behind it, too".into(),
                ),
                spec => Ok(Uplink::Switch(Some(spec))),
            },
            _ => Ok(Uplink::Nic(spec(text)?)),
        }
    }
}

impl Uplink {
    fn spec(&self) -> Option<&UplinkSpec> {
        match self {
            Uplink::Nic(spec) => Some(spec),
            Uplink::Switch(spec) => spec.as_ref(),
        }
    }
}

/// What is to be served.
#[derive(Clone, Debug)]
pub enum Plan {
    /// One NIC.
    Nic {
        /// Where the frontend comes from.
        frontend: FrontendAddress,
        /// Where the cable goes.
        uplink: UplinkSpec,
        /// The permanent address.
        mac: MacAddress,
        /// Whether that address was made up.
        mac_is_random: bool,
    },
    /// A switch.
    Switch {
        /// The ports that it has at once.
        ports: Vec<PortSpec>,
        /// The way out.
        uplink: Option<UplinkSpec>,
        /// Its VLANs.
        uplink_vlans: VlanMode,
    },
}

impl Plan {
    fn new(args: &ServeArgs) -> Result<Self, Failure> {
        match &args.uplink {
            Uplink::Nic(uplink) => Plan::nic(args, uplink),
            Uplink::Switch(uplink) => Plan::switch(args, uplink.as_ref()),
        }
    }

    fn nic(args: &ServeArgs, uplink: &UplinkSpec) -> Result<Self, Failure> {
        if !args.port.is_empty() || args.uplink_vlans.is_some() || args.socket_path.len() > 1 {
            return Err(usage(
                "several --socket-path, --port and --uplink-vlans need --uplink switch",
            ));
        }
        let frontend = match (args.socket_path.first(), args.fd) {
            (Some(path), None) => FrontendAddress::Path(path.clone()),
            (None, Some(fd)) => FrontendAddress::Descriptor(fd),
            _ => {
                return Err(usage(
                    "give either --socket-path or --fd, so that a frontend can come",
                ));
            }
        };
        let mac = match args.mac {
            Some(mac) => mac,
            None => random_mac().map_err(|e| Failure::Operation(e.to_string()))?,
        };
        Ok(Plan::Nic {
            frontend,
            uplink: uplink.clone(),
            mac,
            mac_is_random: args.mac.is_none(),
        })
    }

    fn switch(args: &ServeArgs, uplink: Option<&UplinkSpec>) -> Result<Self, Failure> {
        if args.fd.is_some() {
            return Err(usage(
                "a switch takes its frontends at --socket-path, not --fd",
            ));
        }
        if args.mac.is_some() {
            return Err(usage(
                "a switch has no address; give its ports theirs with --port socket=PATH,mac=MAC",
            ));
        }
        if args.link == LinkMode::Follow {
            return Err(usage(
                "the links of a switch's ports cannot follow its uplink",
            ));
        }
        let given = args.socket_path.iter().cloned().map(PortSpec::at);
        let ports: Vec<_> = args.port.iter().cloned().chain(given).collect();
        if ports.iter().any(|port| port.socket.is_none()) {
            return Err(usage("a --port needs socket=PATH"));
        }
        if ports.is_empty() && args.control.is_none() {
            return Err(usage(
                "a switch without ports needs --control, so that ports can be added; or give \
                 --socket-path",
            ));
        }
        let uplink_vlans = match (&args.uplink_vlans, uplink) {
            (None, _) => VlanMode::default(),
            (Some(spec), Some(_)) if *spec == PortSpec::of(&spec.vlans) => spec.vlans.clone(),
            (Some(_), Some(_)) => {
                return Err(usage("--uplink-vlans has only vlan, trunk and native"));
            }
            (Some(_), None) => {
                return Err(usage(
                    "--uplink-vlans needs a way out: --uplink switch:tap:NAME or switch:user",
                ));
            }
        };
        Ok(Plan::Switch {
            ports,
            uplink: uplink.cloned(),
            uplink_vlans,
        })
    }

    /// Paths at which frontends are waited for.
    fn sockets(&self) -> Vec<&Path> {
        match self {
            Plan::Nic { frontend, .. } => match frontend {
                FrontendAddress::Path(path) => vec![path],
                FrontendAddress::Descriptor(_) => Vec::new(),
            },
            Plan::Switch { ports, .. } => {
                let sockets = ports.iter().filter_map(|port| port.socket.as_deref());
                sockets.collect()
            }
        }
    }
}

fn usage(text: &str) -> Failure {
    Failure::Usage(text.into())
}

impl ServeOptions {
    /// Checks the options against each other and fills in what was left open.
    pub fn new(args: ServeArgs) -> Result<Self, Failure> {
        let plan = Plan::new(&args)?;
        let control = args.control.as_deref();
        if plan.sockets().into_iter().any(|path| Some(path) == control) {
            return Err(usage(
                "--socket-path and --control are the same; they need a socket each",
            ));
        }
        let uplink = args.uplink.spec();
        if args.passt.is_some() && uplink != Some(&UplinkSpec::User) {
            return Err(usage("--passt only makes sense with --uplink user"));
        }
        if let Some(cpus) = &args.cpus
            && let Some(cpu) = (cpus.forbidden())
                .map_err(|e| Failure::Operation(format!("cannot tell which CPUs there are: {e}")))?
        {
            return Err(Failure::Usage(format!(
                "--cpus: CPU {cpu} is not there, or not for this process (taskset -cp $$ tells)"
            )));
        }
        let poll = Duration::from_micros(args.poll_us.into());
        let mtu = args
            .mtu
            .unwrap_or_else(|| uplink.map_or(1500, UplinkSpec::default_mtu));
        Ok(ServeOptions {
            plan,
            control: args.control,
            queue_pairs: args.queues,
            packed: !args.no_packed,
            rss: !args.no_rss,
            hash_report: !args.no_hash_report,
            mtu,
            speed: args.speed,
            workers: Workers::new(args.cpus, poll),
            link: args.link,
            log: args.log,
            passt: args.passt,
        })
    }

    /// The NIC to make, given what the opened uplink can do.
    pub fn nic_config(&self, mac: MacAddress, uplink: String, offloads: Offloads) -> NicConfig {
        NicConfig {
            mac,
            mtu: self.mtu,
            speed: self.speed,
            queue_pairs: self.queue_pairs,
            packed: self.packed,
            rss: self.rss,
            hash_report: self.hash_report,
            offloads,
            uplink,
        }
    }

    /// What the NICs at a switch have in common.
    pub fn port_defaults(&self) -> PortDefaults {
        PortDefaults {
            mtu: self.mtu,
            speed: self.speed,
            queue_pairs: self.queue_pairs,
            packed: self.packed,
            rss: self.rss,
            hash_report: self.hash_report,
            link_up: self.link != LinkMode::Down,
            workers: self.workers.clone(),
        }
    }
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

fn parse_poll(text: &str) -> Result<u32, String> {
    parse_in(text, &POLL)
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
        let Plan::Nic {
            frontend,
            uplink,
            mac,
            mac_is_random,
        } = options.plan
        else {
            panic!("{:?}", options.plan);
        };
        assert_eq!(frontend, FrontendAddress::Path("s".into()));
        assert_eq!(options.control, None);
        assert_eq!(uplink, UplinkSpec::Loopback);
        assert_eq!((options.queue_pairs, options.mtu), (1, 1500));
        assert_eq!((options.speed, options.link), (10_000, LinkMode::Up));
        assert!(options.packed);
        assert_eq!(
            (options.workers.cpus, options.workers.poll),
            (None, Duration::ZERO)
        );
        assert!(mac_is_random);
        assert!(!mac.is_multicast());
        assert_eq!(mac.0[0] & 0x0f, 2);
    }

    #[test]
    fn everything_can_be_said() {
        let options = options(
            "--fd 5 --control c --uplink user --passt p --queues 31 --mac 52:54:00:12:34:56 --mtu 65535 \
             --speed 25000 --poll-us 50 --no-packed --no-rss --no-hash-report --link follow --log warn,ferronic::control=trace",
        )
        .unwrap();
        let Plan::Nic {
            frontend,
            mac,
            mac_is_random,
            ..
        } = options.plan
        else {
            panic!("{:?}", options.plan);
        };
        assert_eq!(frontend, FrontendAddress::Descriptor(5));
        assert_eq!(mac.to_string(), "52:54:00:12:34:56");
        assert_eq!(options.link, LinkMode::Follow);
        assert_eq!(options.workers.poll, Duration::from_micros(50));
        assert!(!options.packed && !options.rss && !options.hash_report);
        assert!(!mac_is_random);
    }

    #[test]
    fn a_switch_has_ports_and_perhaps_a_way_out() {
        let options = options(
            "--uplink switch:user --socket-path a --port socket=b,name=web,vlan=10 --socket-path c \
             --uplink-vlans trunk=10+20 --link down",
        )
        .unwrap();
        assert_eq!(options.mtu, 65520);
        assert!(!options.port_defaults().link_up);
        let Plan::Switch {
            ports,
            uplink,
            uplink_vlans,
        } = options.plan
        else {
            panic!("{:?}", options.plan);
        };
        let sockets: Vec<_> = ports
            .iter()
            .map(|port| port.socket.clone().unwrap())
            .collect();
        assert_eq!(sockets, ["b", "a", "c"].map(PathBuf::from));
        assert_eq!(ports[0].vlans.to_string(), "vlan 10");
        assert_eq!(uplink, Some(UplinkSpec::User));
        assert_eq!(uplink_vlans.to_string(), "trunk 10,20");
        for text in [
            "loopback",
            "switch",
            "switch:tap:fer0",
            "switch:user",
            "user",
        ] {
            assert_eq!(text.parse::<Uplink>().unwrap().to_string(), text);
        }
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
            ("--socket-path s --poll-us 1000001", "0 to 1000000"),
            ("--socket-path s --cpus 0-", "such as 0,2-3"),
            ("--socket-path s --cpus 1023", "CPU 1023 is not"),
            ("--socket-path s --mac 01:00:5e:00:00:01", "group address"),
            ("--socket-path s --uplink carrier-pigeon", "tap:NAME"),
            ("--socket-path s --uplink tap:", "tap:fer0"),
            ("--socket-path s --link sideways", "follow"),
            ("--socket-path s --log ferronic=loud", "info"),
            ("--socket-path s --passt p", "--uplink user"),
            ("--socket-path s --socket-path t", "--uplink switch"),
            ("--port socket=s", "--uplink switch"),
            ("--uplink switch", "--control"),
            ("--uplink switch --fd 5", "not --fd"),
            ("--uplink switch --port name=x", "socket=PATH"),
            ("--uplink switch --port colour=x", "known are"),
            ("--uplink switch --socket-path s --mac 2:0:0:0:0:1", "form"),
            (
                "--uplink switch --socket-path s --mac 02:00:00:00:00:01",
                "ports",
            ),
            ("--uplink switch --socket-path s --control s", "same"),
            ("--uplink switch --socket-path s --link follow", "follow"),
            (
                "--uplink switch --socket-path s --uplink-vlans vlan=1",
                "way out",
            ),
            (
                "--uplink switch:user --socket-path s --uplink-vlans name=a",
                "only",
            ),
            ("--uplink switch:loopback --socket-path s", "loopback"),
            ("--uplink switch:switch --socket-path s", "switch:tap"),
            ("--uplink switch --socket-path s --passt p", "--uplink user"),
        ] {
            let error = options(bad).unwrap_err();
            assert!(error.contains(hint), "{bad}: {error}");
        }
    }
}
