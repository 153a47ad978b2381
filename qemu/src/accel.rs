// SPDX-License-Identifier: Apache-2.0 OR MIT
//! KVM or TCG.
//!
//! That `/dev/kvm` can be opened says little: there are hosts on which a guest then
//! never boots. So a guest is booted, with a time limit, and the answer is kept in the
//! cache until the host boots again.

use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::KVM_WORKS;
use crate::lab::Lab;
use crate::machine::nic::Nic;
use crate::machine::{Machine, Spec};
use crate::progress::{Step, say};

/// How long a guest may take to boot on KVM. A second or two is usual.
const KVM_BOOT_LIMIT: Duration = Duration::from_secs(20);

/// What QEMU runs guests with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor itself.
    Kvm,
    /// QEMU's translator.
    Tcg,
    /// The translator, on one thread, with a clock that goes by the guest's instructions: one a
    /// nanosecond. For counting them.
    Counting,
}

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// KVM if a guest boots on it, else TCG
    Auto,
    /// KVM, whatever happens
    Kvm,
    /// QEMU's translator
    Tcg,
}

impl Accel {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG",
            Accel::Counting => "TCG, counting",
        }
    }

    /// QEMU's arguments for it.
    pub fn qemu_args(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Accel::Kvm => &[("-accel", "kvm"), ("-cpu", "host")],
            Accel::Tcg => &[("-accel", "tcg,thread=multi"), ("-cpu", "max")],
            Accel::Counting => &[
                ("-accel", "tcg,thread=single"),
                ("-icount", "shift=0"),
                ("-cpu", "max"),
            ],
        }
    }
}

/// Finds the accelerator to use. `lab.accel` has no meaning before this.
pub fn choose(lab: &Lab, choice: Choice) -> Result<Accel> {
    match choice {
        Choice::Kvm => return Ok(Accel::Kvm),
        Choice::Tcg => return Ok(Accel::Tcg),
        Choice::Auto => {}
    }
    if let Err(e) = File::options().read(true).write(true).open("/dev/kvm") {
        log::info!("no KVM: /dev/kvm cannot be opened: {e}");
        return Ok(Accel::Tcg);
    }
    let host = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("cannot read the host's boot id")?;
    let known = lab.cache.root().join(KVM_WORKS);
    let key = format!("{} {}", host.trim(), lab.base.kernel.image.display());
    match fs::read_to_string(&known)
        .unwrap_or_default()
        .strip_prefix(&key)
    {
        Some(" yes") => return Ok(Accel::Kvm),
        Some(" no") => return Ok(Accel::Tcg),
        _ => {}
    }
    let step = Step::start("trying to boot a guest on KVM");
    let mut spec = Spec::new("kvm-trial", Nic::None);
    spec.driver = None;
    let tried = Machine::boot_within(lab, &spec, Accel::Kvm, KVM_BOOT_LIMIT);
    step.done();
    let accel = match tried {
        Ok(_) => Accel::Kvm,
        Err(e) => {
            log::debug!("no guest boots on KVM: {e:#}");
            say(format!(
                "no guest boots on this host's KVM within {} s: using TCG, which is slower",
                KVM_BOOT_LIMIT.as_secs()
            ));
            Accel::Tcg
        }
    };
    let answer = if accel == Accel::Kvm { "yes" } else { "no" };
    fs::write(&known, format!("{key} {answer}"))
        .with_context(|| format!("cannot write {}", known.display()))?;
    Ok(accel)
}
