// SPDX-License-Identifier: Apache-2.0 OR MIT
//! QEMU machines.
//!
//! Every machine is a q35 with shared memory, one NVMe disk (thrown away changes) that may have our
//! driver behind the root file system (see [`disk`]), a console that goes to a log file or the
//! terminal, and a second serial port for the guest agent. Only the NIC differs: see [`nic`].

mod disk;
pub mod memory;
pub mod nic;
pub mod qmp;
pub mod wire;

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use qapi::qmp as commands;
use rustix::process::{Pid, Signal, kill_process};

use crate::accel::Accel;
use crate::artefacts::guest::INIT_PATH;
use crate::artefacts::kernel::Flavour;
use crate::driver::Driver;
use crate::guest::Guest;
use crate::lab::Lab;
use disk::Disk;
use memory::GuestMemory;
use nic::Nic;
use qmp::Qmp;

/// How long a guest may take from QEMU's start to its agent's first answer.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// A machine to start.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name in log files.
    pub name: String,
    /// The NIC.
    pub nic: Nic,
    /// What drives the NIC, loaded at boot.
    pub driver: Option<Driver>,
    /// The kernel.
    pub kernel: Flavour,
    /// What it runs on, if not on what the run has chosen.
    pub accel: Option<Accel>,
    /// CPUs of the guest.
    pub cpus: usize,
    /// Whether there is an IOMMU before devices that want one.
    pub iommu: bool,
    /// Properties of QEMU's virtio-net-pci.
    properties: Vec<String>,
    /// Whether the terminal is the guest's console, with a shell.
    pub shell: bool,
    /// More words for the guest's init, on the kernel's command line.
    pub init: Vec<String>,
}

impl Spec {
    /// A machine with this NIC and the stock driver.
    pub fn new(name: impl Into<String>, nic: Nic) -> Self {
        Spec {
            name: name.into(),
            nic,
            driver: Some(Driver::C),
            kernel: Flavour::Base,
            accel: None,
            cpus: 2,
            iommu: false,
            properties: Vec::new(),
            shell: false,
            init: Vec::new(),
        }
    }

    /// Sets a property of QEMU's virtio-net-pci, if the NIC is one.
    pub fn nic_property(&mut self, property: &str) {
        self.properties.push(property.to_owned());
    }

    /// Memory of the guest. Beside its shadow, the debug kernel keeps what was freed for a while.
    fn memory_mib(&self) -> u32 {
        match self.kernel {
            Flavour::Base => 512,
            Flavour::Debug => 1024,
        }
    }
}

/// A running machine. It is killed when dropped.
#[derive(Debug)]
pub struct Machine {
    /// The guest in it.
    pub guest: Guest,
    /// QEMU's command line, for people.
    pub command_line: String,
    /// Where the guest's console output goes.
    pub console_log: PathBuf,
    /// What QEMU itself said.
    pub qemu_log: PathBuf,
    /// From QEMU's start to the agent's first answer.
    pub boot_time: Duration,
    process: Mutex<Child>,
    qmp: Mutex<Qmp>,
}

impl Machine {
    /// Starts QEMU and waits for the guest's agent.
    pub fn boot(lab: &Lab, spec: &Spec) -> Result<Self> {
        Self::boot_within(lab, spec, spec.accel.unwrap_or(lab.accel), BOOT_LIMIT)
    }

    /// The same with an accelerator and a time limit of the caller's choice.
    pub fn boot_within(lab: &Lab, spec: &Spec, accel: Accel, limit: Duration) -> Result<Self> {
        let id = lab.unique(&spec.name);
        let files = Files {
            qmp: lab.run.dir.join(format!("{id}.qmp")),
            agent: lab.run.dir.join(format!("{id}.agent")),
            console: lab.run.logs.join(format!("{id}.console.log")),
            qemu: lab.run.logs.join(format!("{id}.qemu.log")),
            disk: lab.run.dir.join(format!("{id}.vmdk")),
        };
        let arguments = arguments(lab, spec, accel, &files)?;
        let mut command = lab.qemu();
        command.args(&arguments);
        let log = File::create(&files.qemu)
            .with_context(|| format!("cannot create {}", files.qemu.display()))?;
        command.stderr(log.try_clone()?);
        if !spec.shell {
            command.stdin(Stdio::null()).stdout(log);
        }
        let command_line = lab.qemu_command_line(&arguments);
        log::debug!("{command_line}");
        let start = Instant::now();
        let mut process = command.spawn().context("cannot start QEMU")?;
        let deadline = start + limit;
        let connected = connect(&mut process, &files, spec.kernel.patience(), deadline);
        let (qmp, guest) =
            connected.with_context(|| failure(&mut process, spec, &files, &command_line))?;
        Ok(Machine {
            guest,
            command_line,
            console_log: files.console,
            qemu_log: files.qemu,
            boot_time: start.elapsed(),
            process: Mutex::new(process),
            qmp: Mutex::new(qmp),
        })
    }

    /// Does something with QEMU's control socket.
    pub fn qmp<T>(&self, f: impl FnOnce(&mut Qmp) -> Result<T>) -> Result<T> {
        f(&mut self.qmp.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The guest's memory.
    pub fn memory(&self) -> Result<GuestMemory> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        GuestMemory::of(process.id())
    }

    /// How QEMU ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .try_wait()
            .ok()
            .flatten()
    }

    /// Resets the machine and waits for the guest to be up again.
    pub fn reset(&self) -> Result<()> {
        self.qmp(|q| q.execute(&commands::system_reset {}))?;
        self.wait_reset()
    }

    /// Waits until the machine has been reset, by whoever it is, and the guest is up again.
    pub fn wait_reset(&self) -> Result<()> {
        // Not just for the agent: the old one goes on answering until the reset takes effect.
        self.qmp(|q| q.wait_event("RESET", Duration::from_secs(20)))?;
        self.guest
            .wait_ready(Instant::now() + BOOT_LIMIT, || self.ended().is_none())
    }

    /// Waits for QEMU to end by itself.
    pub fn wait(&self) -> Result<ExitStatus> {
        self.process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .wait()
            .context("cannot wait for QEMU")
    }

    /// Stops QEMU's process where it is, or lets it go on: unlike QMP's `stop`, of which a
    /// vhost-user backend is told, this is a guest that does nothing any more.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&process), signal).context("cannot signal QEMU")
    }

    /// Kills QEMU at once, as kill -9 does.
    pub fn kill(&self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        // Fails only if the process has ended.
        let _ = process.kill();
        let _ = process.wait();
    }

    /// Asks QEMU to end, and checks that it does so in good order.
    pub fn quit(self) -> Result<()> {
        self.qmp(|q| q.execute(&commands::quit {}))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(status) = self.ended() {
                if !status.success() {
                    bail!("QEMU ended with {status}; see {}", self.qemu_log.display());
                }
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!(
            "QEMU did not end within 10 s of being asked to; see {}",
            self.qemu_log.display()
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The files that connect the lab with one QEMU.
struct Files {
    qmp: PathBuf,
    agent: PathBuf,
    console: PathBuf,
    qemu: PathBuf,
    disk: PathBuf,
}

fn connect(
    process: &mut Child,
    files: &Files,
    patience: u32,
    deadline: Instant,
) -> Result<(Qmp, Guest)> {
    let mut alive = || matches!(process.try_wait(), Ok(None));
    let qmp = Qmp::connect(&files.qmp, deadline, &mut alive)
        .context("QEMU's control socket does not answer")?;
    let guest = Guest::connect(&files.agent, patience, deadline, alive)?;
    Ok((qmp, guest))
}

/// Ends a machine that did not come up, and says what is known about it.
fn failure(process: &mut Child, spec: &Spec, files: &Files, command_line: &str) -> String {
    let ended = match process.try_wait() {
        Ok(Some(status)) => match status.signal() {
            Some(signal) => format!("QEMU died of signal {signal}"),
            None => format!("QEMU ended with {status}"),
        },
        _ => "the guest did not come up in time".to_owned(),
    };
    let _ = process.kill();
    let _ = process.wait();
    let tail = |path| crate::host::tail(&std::fs::read(path).unwrap_or_default());
    format!(
        "machine {}: {ended}\n--- QEMU said ({})\n{}\n--- the console's end ({})\n{}\n--- command line\n{command_line}\n",
        spec.name,
        files.qemu.display(),
        tail(&files.qemu),
        files.console.display(),
        tail(&files.console),
    )
}

fn arguments(lab: &Lab, spec: &Spec, accel: Accel, files: &Files) -> Result<Vec<String>> {
    let system = lab.system(spec.kernel)?;
    let disk = Disk::make(system, &files.disk)?;
    let mut args: Vec<String> = Vec::new();
    let mut add = |flag: &str, value: String| {
        args.push(flag.to_owned());
        args.push(value);
    };
    add("-name", spec.name.clone());
    add(
        "-object",
        format!(
            "memory-backend-memfd,id=mem,size={}M,share=on",
            spec.memory_mib()
        ),
    );
    add(
        "-machine",
        "q35,memory-backend=mem,usb=off,smbus=off,sata=off,vmport=off".into(),
    );
    add("-m", format!("{}M", spec.memory_mib()));
    add("-smp", spec.cpus.to_string());
    for (flag, value) in accel.qemu_args() {
        add(flag, (*value).into());
    }
    add("-display", "none".into());
    if spec.iommu {
        // Before every other device: those that come first would have none.
        add("-device", "intel-iommu".into());
    }
    add("-kernel", system.kernel.image.display().to_string());
    add("-append", kernel_command_line(spec, &disk));
    add("-drive", disk.drive());
    add("-device", "nvme,drive=root,serial=root".into());
    if spec.shell {
        add("-chardev", "stdio,id=console,mux=on,signal=off".into());
    } else {
        add(
            "-chardev",
            format!("file,id=console,path={}", files.console.display()),
        );
    }
    add("-serial", "chardev:console".into());
    add(
        "-chardev",
        format!(
            "socket,id=agent,path={},server=on,wait=off",
            files.agent.display()
        ),
    );
    add("-device", "isa-serial,chardev=agent".into());
    add(
        "-qmp",
        format!("unix:{},server=on,wait=off", files.qmp.display()),
    );
    args.push("-nodefaults".into());
    args.push("-no-user-config".into());
    args.extend(spec.nic.qemu_args());
    for property in &spec.properties {
        args.extend(["-global".into(), format!("virtio-net-pci.{property}")]);
    }
    Ok(args)
}

fn kernel_command_line(spec: &Spec, disk: &Disk) -> String {
    let mut line = format!(
        "console=ttyS0 root=/dev/nvme0n1 rootfstype=ext4 rootwait rw init={INIT_PATH} panic=-1 random.trust_cpu=on dummy.numdummies=0"
    );
    // A slow serial line is written to synchronously; the log is read through dmesg.
    line += if spec.shell {
        " quiet lab.shell"
    } else {
        " loglevel=5"
    };
    if spec.kernel == Flavour::Debug {
        // With five levels of page tables, an interrupt early in boot, when the kernel has forgotten
        // its CPU's features for a moment, makes KASAN look for its shadow in the wrong place.
        line += " log_buf_len=4M kmemleak=on kunit.enable=1 no5lvl";
    }
    if let Some(mib) = disk.module_at_mib {
        line += &format!(" lab.module={mib}");
    }
    if let Some(driver) = spec.driver {
        line += " lab.driver=";
        line += driver.name();
    }
    for word in &spec.init {
        line += " ";
        line += word;
    }
    line
}
