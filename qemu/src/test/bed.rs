// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a scenario runs on: a backend, a machine with it as NIC, and addresses on the cable.

use std::cell::Cell;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use qapi::qmp;

use super::Form;
use super::setup::{Port, Setup};
use crate::artefacts::kernel::Flavour;
use crate::backend::{Backend, Options};
use crate::cable::Cable;
use crate::guest::Guest;
use crate::host::tail;
use crate::kernel_log::complaints;
use crate::lab::Lab;
use crate::machine::nic::{Attach, Nic};
use crate::machine::{Machine, Spec};
use crate::net;

/// How long kmemleak may take to look through all memory, twice.
const LEAK_SCAN_LIMIT: Duration = Duration::from_secs(120);

/// A bed.
#[derive(Debug)]
pub struct Bed<'a> {
    /// The lab it is in.
    pub lab: &'a Lab,
    /// How it was made.
    pub setup: Setup,
    /// The NIC, if it is ours.
    backend: Option<Backend>,
    /// The machine it is in.
    pub machine: Machine,
    /// Its cable.
    pub cable: Cable,
    /// How often the kernel's log was marked, and where a check of it starts.
    marks: Cell<u32>,
    /// Tests within a scenario that are reported on their own.
    pub parts: Vec<(String, Result<()>)>,
}

impl<'a> Bed<'a> {
    /// Makes a bed.
    pub fn make(lab: &'a Lab, setup: Setup) -> Result<Self> {
        if setup.uplink.needs_tap() {
            net::make_tap(lab, setup.queues > 1)?;
            if let Some(mtu) = setup.mtu {
                net::ip(lab, &format!("link set {} mtu {mtu}\n", net::TAP))?;
            }
        }
        let backend = match setup.port {
            Port::Ours(_) => Some(Self::start_backend(lab, setup)?),
            Port::Qemu => None,
        };
        let machine = Self::boot(lab, setup, backend.as_ref())?;
        let cable = Cable::lay(lab, &machine.guest, setup.uplink)?;
        Ok(Bed {
            lab,
            setup,
            backend,
            machine,
            cable,
            marks: Cell::new(0),
            parts: Vec::new(),
        })
    }

    fn start_backend(lab: &Lab, setup: Setup) -> Result<Backend> {
        let mut options = Options {
            queues: setup.queues,
            ..Options::new(setup.uplink)
        };
        // Chosen, so that it is the same after a restart and in every log.
        if !setup.uplink.is_switch() {
            options.extra.extend(["--mac".into(), GUEST_MAC.into()]);
        }
        options.extra.extend(["--log".into(), "debug".into()]);
        if let Some(mtu) = setup.mtu {
            options.extra.extend(["--mtu".into(), mtu.to_string()]);
        }
        options.extra.extend(setup.serve.iter().map(|&o| o.into()));
        Backend::start(lab, &options)
    }

    fn boot(lab: &Lab, setup: Setup, backend: Option<&Backend>) -> Result<Machine> {
        let nic = match (setup.port, backend) {
            (Port::Ours(attach), Some(backend)) => backend.nic(attach, setup.queues)?,
            _ => Nic::Tap {
                name: net::TAP.into(),
                queues: setup.queues,
            },
        };
        let mut spec = Spec::new(setup.to_string(), nic);
        (spec.driver, spec.kernel) = (Some(setup.driver), setup.kernel);
        (spec.cpus, spec.iommu) = (setup.cpus, setup.iommu);
        if setup.port != Port::Ours(Attach::Device) {
            spec.nic_property(&format!("mac={GUEST_MAC}"));
            if let Some(mtu) = setup.mtu {
                spec.nic_property(&format!("host_mtu={mtu}"));
            }
            setup.properties.iter().for_each(|p| spec.nic_property(p));
        }
        Machine::boot(lab, &spec)
    }

    /// Our NIC. Scenarios that need it do not run on other NICs.
    pub fn backend(&self) -> Result<&Backend> {
        self.backend
            .as_ref()
            .context("the NIC of this bed is QEMU's own: there is no backend")
    }

    /// How many rounds of something to do: half on the debug kernel, where each takes much longer,
    /// and its checks see in one what elsewhere may take many.
    pub fn rounds(&self, form: Form, short: u32, full: u32) -> u32 {
        let rounds = form.pick(short, full);
        match self.setup.kernel {
            Flavour::Base => rounds,
            Flavour::Debug => rounds.div_ceil(2),
        }
    }

    /// Pulls the cable or puts it back.
    pub fn set_link(&self, up: bool) -> Result<()> {
        match &self.backend {
            Some(backend) => backend.set_link(up),
            None => self.machine.qmp(|q| {
                let name = "net0".to_owned();
                q.execute(&qmp::set_link { name, up }).map(|_| ())
            }),
        }
    }

    /// Notes a place in the kernel's log, so that [`Bed::check_log`] looks at what comes after.
    pub fn mark_log(&self, what: &str) -> Result<()> {
        self.marks.set(self.marks.get() + 1);
        let line = format!("{} {what}", self.mark());
        self.guest().sh(&format!("echo '{line}' > /dev/kmsg"))?;
        Ok(())
    }

    fn mark(&self) -> String {
        format!("lab: mark {}:", self.marks.get())
    }

    /// Fails when the kernel has complained since the last mark of anything but these subjects. A
    /// guest that has booted since then has no such mark: its whole log counts.
    pub fn check_log(&self, forgiven: &[&str]) -> Result<()> {
        let mark = self.mark();
        let log = self.guest().sh(&format!(
            "dmesg --raw > /run/dmesg; \
             if grep -q '{mark}' /run/dmesg; then sed '1,/{mark}/d' /run/dmesg; else cat /run/dmesg; fi"
        ))?;
        let found: Vec<String> = complaints(&log)
            .iter()
            .filter(|complaint| !complaint.is_any_of(forgiven))
            .map(ToString::to_string)
            .collect();
        if !found.is_empty() {
            bail!(
                "the guest's kernel complains of {} things:\n{}",
                found.len(),
                found.join("\n")
            );
        }
        Ok(())
    }

    /// Takes the driver away and lets the debug kernel look for memory that it has left behind.
    fn check_leaks(&self) -> Result<()> {
        self.mark_log("end of the bed")?;
        // The first scan finds suspects, the second, when they are old enough, believes them.
        let leaks = self.guest().sh_within(
            &format!(
                "driver unload {} && cd /sys/kernel/debug && \
                 echo scan > kmemleak && sleep 6 && echo scan > kmemleak && cat kmemleak",
                self.setup.driver.name()
            ),
            LEAK_SCAN_LIMIT,
        )?;
        if !leaks.trim().is_empty() {
            bail!("memory was lost:\n{leaks}");
        }
        self.check_log(&[])
    }

    /// Kills QEMU, starts another on the same backend, and sets up the guest again.
    pub fn replace_machine(&mut self) -> Result<()> {
        self.boot_another()?;
        self.lay_cable()
    }

    /// Kills QEMU and starts another on the same backend.
    pub fn boot_another(&mut self) -> Result<()> {
        self.machine.kill();
        self.machine = Self::boot(self.lab, self.setup, self.backend.as_ref())?;
        Ok(())
    }

    /// Sets up the guest's addresses again, after the guest has booted.
    pub fn lay_cable(&mut self) -> Result<()> {
        self.cable
            .lay_again(self.lab, &self.machine.guest, self.setup.uplink)
    }

    /// The guest.
    pub fn guest(&self) -> &Guest {
        &self.machine.guest
    }

    /// Ends everything in good order.
    pub fn close(self) -> Result<()> {
        if self.setup.kernel == Flavour::Debug {
            self.check_leaks()?;
        }
        self.machine.quit()?;
        match &self.backend {
            Some(backend) => backend.terminate(),
            None => Ok(()),
        }
    }

    /// All that may help to find out why a scenario failed.
    pub fn diagnosis(&self) -> String {
        let mut text = String::new();
        let guest = match self.machine.ended() {
            Some(status) => format!("QEMU has ended with {status}"),
            None => match self
                .guest()
                .try_sh("dmesg | tail -n 25; ip -s addr", Duration::from_secs(10))
            {
                Ok(output) => output.stdout,
                Err(e) => {
                    let console = std::fs::read(&self.machine.console_log).unwrap_or_default();
                    format!("{e:#}; its console's end:\n{}", tail(&console))
                }
            },
        };
        let qemu = std::fs::read(&self.machine.qemu_log).unwrap_or_default();
        let _ = writeln!(text, "--- guest\n{}", guest.trim_end());
        if let Some(backend) = &self.backend {
            let log = std::fs::read(&backend.log).unwrap_or_default();
            let _ = writeln!(text, "--- backend ({})", backend.log.display());
            if let Some(status) = backend.ended() {
                let _ = writeln!(text, "it has ended with {status}");
            }
            let _ = writeln!(text, "{}", tail(&log));
            if let Ok(stats) = backend.control(&["stats"]) {
                let _ = writeln!(text, "{}", stats.trim_end());
            }
        }
        let _ = writeln!(
            text,
            "--- QEMU ({})\n{}",
            self.machine.qemu_log.display(),
            tail(&qemu)
        );
        let backend = self.backend.as_ref().map(Backend::command_line);
        let _ = writeln!(
            text,
            "--- command lines\n{}\n{}",
            backend.unwrap_or_default(),
            self.machine.command_line
        );
        text
    }
}

/// The guest's address on every bed.
pub const GUEST_MAC: &str = "52:54:00:fe:00:01";
