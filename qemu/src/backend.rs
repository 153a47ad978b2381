// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The process `ferronic serve`, and the commands that steer it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::host::tail;
use crate::lab::{Lab, quote};
use crate::machine::nic::{Attach, Nic};
use crate::net;

/// How long the backend may take to listen. It is meant to take under 50 ms.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to end when asked to.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Where the cable goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Uplink {
    /// A tap of the run's own network namespace
    Tap,
    /// passt: the host's network without privileges
    User,
    /// What goes out comes back
    Loopback,
    /// A switch, for more guests, with the tap as its way out
    Switch,
    /// The same with passt as its way out
    SwitchUser,
}

impl Uplink {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Uplink::Tap => "tap",
            Uplink::User => "user",
            Uplink::Loopback => "loopback",
            Uplink::Switch => "switch",
            Uplink::SwitchUser => "switch-user",
        }
    }

    /// Whether it is a switch.
    pub fn is_switch(self) -> bool {
        matches!(self, Uplink::Switch | Uplink::SwitchUser)
    }

    /// Whether the tap is its far end.
    pub fn needs_tap(self) -> bool {
        matches!(self, Uplink::Tap | Uplink::Switch)
    }
}

/// What the NIC is to be like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the cable goes.
    pub uplink: Uplink,
    /// Pairs of queues.
    pub queues: usize,
    /// More options of `ferronic serve`.
    pub extra: Vec<String>,
}

impl Options {
    /// A NIC with one pair of queues on this uplink.
    pub fn new(uplink: Uplink) -> Self {
        Options {
            uplink,
            queues: 1,
            extra: Vec::new(),
        }
    }
}

/// How a backend is started.
#[derive(Debug)]
pub struct Launch {
    /// The program.
    pub binary: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where frontends plug in, or the first of them.
    pub socket: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// Where it logs to.
    pub log: PathBuf,
    /// The NIC's port, if it is at a switch.
    pub port: Option<&'static str>,
}

impl Launch {
    /// A NIC that is like this.
    pub fn new(lab: &Lab, options: &Options) -> Result<Self> {
        let id = lab.unique("nic");
        let (socket, control) = (
            lab.run.dir.join(format!("{id}.sock")),
            lab.run.dir.join(format!("{id}.ctl")),
        );
        let mut arguments = vec!["serve".to_owned()];
        let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        add("--socket-path", socket.display().to_string());
        add("--control", control.display().to_string());
        match options.uplink {
            Uplink::Tap => add("--uplink", format!("tap:{}", net::TAP)),
            Uplink::Loopback => add("--uplink", "loopback".into()),
            Uplink::Switch => add("--uplink", format!("switch:tap:{}", net::TAP)),
            Uplink::User | Uplink::SwitchUser => {
                let passt = lab.run.dir.join("passt");
                // passt tells the guest the host's name servers. In the run's namespace there is
                // none but what a test starts there.
                let resolver = lab.run.dir.join("resolv.conf");
                fs::write(&resolver, "nameserver 127.0.0.1\n")
                    .with_context(|| format!("cannot write {}", resolver.display()))?;
                let binds = [(resolver.as_path(), Path::new("/etc/resolv.conf"))];
                lab.tools.write_wrapper(&passt, &binds, "passt")?;
                let switch = if options.uplink.is_switch() {
                    "switch:"
                } else {
                    ""
                };
                add("--uplink", format!("{switch}user"));
                add("--passt", passt.display().to_string());
            }
        }
        if options.queues > 1 {
            add("--queues", options.queues.to_string());
        }
        arguments.extend(options.extra.iter().cloned());

        Ok(Launch {
            binary: lab.ferronic.clone(),
            arguments,
            log: lab.run.logs.join(format!("{id}.backend.log")),
            socket,
            control,
            // What the switch calls its first port.
            port: options.uplink.is_switch().then_some("p0"),
        })
    }
}

/// The backend. It is killed when dropped.
#[derive(Debug)]
pub struct Backend {
    /// Where QEMU plugs in.
    pub socket: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// What the backend logs, over all its lives.
    pub log: PathBuf,
    /// The NIC's port, if it is at a switch.
    port: Option<&'static str>,
    binary: PathBuf,
    arguments: Vec<String>,
    process: Mutex<Child>,
}

impl Backend {
    /// Starts a backend and waits until it listens.
    pub fn start(lab: &Lab, options: &Options) -> Result<Self> {
        Backend::launch(Launch::new(lab, options)?)
    }

    /// Starts a backend with arguments that say what `launch` says, and waits until it listens.
    pub fn launch(launch: Launch) -> Result<Self> {
        let Launch {
            binary,
            arguments,
            socket,
            control,
            log,
            port,
        } = launch;
        let process = spawn(&binary, &arguments, &log)?;
        let backend = Backend {
            socket,
            control,
            log,
            port,
            binary,
            arguments,
            process: Mutex::new(process),
        };
        backend.wait_ready()?;
        Ok(backend)
    }

    /// Its command line, for people.
    pub fn command_line(&self) -> String {
        format!("ferronic {}", quote(&self.arguments))
    }

    /// QEMU's arguments that plug the NIC in.
    pub fn nic(&self, attach: Attach, queues: usize) -> Result<Nic> {
        self.nic_at(&self.socket, attach, queues)
    }

    /// QEMU's arguments that plug in the NIC at this socket.
    pub fn nic_at(&self, socket: &Path, attach: Attach, queues: usize) -> Result<Nic> {
        let socket = socket.display().to_string();
        let queues = queues.to_string();
        let line = self.run(&[
            "qemu-args",
            "--no-memory",
            "--socket-path",
            &socket,
            "--attach",
            attach.name(),
            "--queues",
            &queues,
        ])?;
        let Some(mut arguments) = shlex::split(&line) else {
            bail!("`ferronic qemu-args` printed what no shell can read: {line}");
        };
        // The guest never boots from the network: spare the firmware the look at the NIC's option ROM.
        arguments.extend(["-global".into(), "virtio-net-pci.romfile=".into()]);
        Ok(Nic::Backend(arguments))
    }

    /// Runs `ferronic SUBCOMMAND --control C ...` and returns what it prints.
    pub fn control(&self, subcommand: &[&str]) -> Result<String> {
        let control = self.control.display().to_string();
        let mut arguments = subcommand.to_vec();
        arguments.extend(["--control", &control]);
        self.run(&arguments)
    }

    /// The same for subcommands that print JSON.
    pub fn query(&self, subcommand: &[&str]) -> Result<Value> {
        let mut arguments = subcommand.to_vec();
        arguments.push("--json");
        let text = self.control(&arguments)?;
        serde_json::from_str(&text).with_context(|| {
            format!(
                "`ferronic {}` printed no JSON: {text}",
                subcommand.join(" ")
            )
        })
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.binary)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.binary.display()))?;
        if !output.status.success() {
            bail!(
                "`ferronic {}` ended with {}: {}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Pulls the cable or puts it back.
    pub fn set_link(&self, up: bool) -> Result<()> {
        let mut arguments = vec!["link", if up { "up" } else { "down" }];
        arguments.extend(self.port.iter().flat_map(|port| ["--port", port]));
        self.control(&arguments).map(|_| ())
    }

    fn process(&self) -> MutexGuard<'_, Child> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.process().id()
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.process().try_wait().ok().flatten()
    }

    /// kill -9.
    pub fn kill(&self) -> Result<()> {
        let mut process = self.process();
        process.kill().context("cannot kill the backend")?;
        process.wait().context("cannot wait for the backend")?;
        Ok(())
    }

    /// Starts it again with the same options, after it has ended.
    pub fn start_again(&self) -> Result<()> {
        *self.process() = spawn(&self.binary, &self.arguments, &self.log)?;
        self.wait_ready()
    }

    /// Ends it with SIGTERM, and checks that it does so in good order.
    pub fn terminate(&self) -> Result<()> {
        let mut process = self.process();
        kill_process(Pid::from_child(&process), Signal::TERM)
            .context("cannot signal the backend")?;
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = process.try_wait()? {
                if !status.success() {
                    bail!(
                        "the backend ended with {status} upon SIGTERM; see {}",
                        self.log.display()
                    );
                }
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!(
            "the backend did not end within {} s of SIGTERM; see {}",
            STOP_LIMIT.as_secs(),
            self.log.display()
        )
    }

    fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if UnixStream::connect(&self.control).is_ok() {
                return Ok(());
            }
            let ended = self.ended();
            if ended.is_some() || Instant::now() > deadline {
                let how = ended.map_or("does not listen".to_owned(), |status| {
                    format!("ended with {status}")
                });
                bail!(
                    "the backend {how}: {}\n{}",
                    self.command_line(),
                    tail(&std::fs::read(&self.log).unwrap_or_default())
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.kill();
    }
}

fn spawn(binary: &Path, arguments: &[String], log: &Path) -> Result<Child> {
    let file: File = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    Command::new(binary)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot run {}", binary.display()))
}
