// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The tests in guests: plain functions on a [`Bed`], in tables, one file a subject.

mod basics;
mod churn;
mod coalescing;
mod ethtool;
mod filters;
mod flow_hash;
mod hash_report;
mod hostile;
mod interface;
mod itself;
mod kunit;
mod link;
mod rings;
mod survival;
mod switch;
mod trouble;
mod user;
mod variants;

use anyhow::Result;

use crate::artefacts::kernel::Flavour;
use crate::backend::Uplink;
use crate::driver::Driver;
use crate::machine::nic::Attach;
use crate::test::Form;
use crate::test::bed::Bed;
use crate::test::setup::Setup;

/// A test.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it runs on: once on each.
    pub setups: &'static [Setup],
    /// When it runs.
    pub runs: Runs,
    /// What becomes of the bed.
    pub after: After,
    /// Whether it is about the driver rather than about the NIC.
    pub about_driver: bool,
    /// The drivers that it fits.
    pub drivers: &'static [Driver],
    /// The kernels that it fits.
    pub kernels: &'static [Flavour],
    /// What the kernel may complain of meanwhile.
    pub forgiven: &'static [&'static str],
    /// The test itself.
    pub run: fn(&mut Bed, Form) -> Result<()>,
}

impl Scenario {
    const fn new(
        name: &'static str,
        setups: &'static [Setup],
        run: fn(&mut Bed, Form) -> Result<()>,
    ) -> Self {
        Scenario {
            name,
            setups,
            runs: Runs::Always,
            after: After::Keep,
            about_driver: false,
            drivers: &[Driver::C, Driver::Ferronic],
            kernels: &[Flavour::Base, Flavour::Debug],
            forgiven: &[],
            run,
        }
    }

    /// Only with `--full`.
    const fn full_only(mut self) -> Self {
        self.runs = Runs::FullOnly;
        self
    }

    /// Only with one driver.
    const fn only(mut self, drivers: &'static [Driver]) -> Self {
        self.drivers = drivers;
        self
    }

    /// Only on one kernel.
    const fn on(mut self, kernels: &'static [Flavour]) -> Self {
        self.kernels = kernels;
        self
    }

    /// The kernel may complain of what the scenario provokes.
    const fn forgiving(mut self, subjects: &'static [&'static str]) -> Self {
        self.forgiven = subjects;
        self
    }

    /// Leaves a bed that others should not use.
    const fn discard(mut self) -> Self {
        self.after = After::Discard;
        self
    }
}

/// When a scenario runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// Always.
    Always,
    /// With `--full`.
    FullOnly,
}

/// What becomes of the bed after a scenario that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Others use it.
    Keep,
    /// It is thrown away.
    Discard,
}

/// A scenario on one of its setups.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The scenario.
    pub scenario: Scenario,
    /// The setup.
    pub setup: Setup,
}

impl Case {
    /// Its name: `setup::scenario`.
    pub fn name(&self) -> String {
        format!("{}::{}", self.setup, self.scenario.name)
    }
}

/// The NIC in the netdev attachment, on a tap.
const NETDEV_TAP: Setup = Setup::new(Attach::Netdev, Uplink::Tap);
/// The NIC in the device attachment, on a tap.
const DEVICE_TAP: Setup = Setup::new(Attach::Device, Uplink::Tap);
/// The NIC on a tap in both attachments.
const BOTH: &[Setup] = &[NETDEV_TAP, DEVICE_TAP];
/// QEMU's own NIC on a tap.
const QEMU_TAP: Setup = Setup::qemu();
/// Every NIC on a tap.
const EVERY: &[Setup] = &[NETDEV_TAP, DEVICE_TAP, QEMU_TAP];
/// The NIC on passt.
const USER: Setup = Setup::new(Attach::Netdev, Uplink::User);
/// The NIC with its transmitter plugged into its receiver.
const LOOPBACK: Setup = Setup::new(Attach::Netdev, Uplink::Loopback);

/// The NIC at a switch with a tap as its way out.
const SWITCH: Setup = Setup::new(Attach::Netdev, Uplink::Switch);

/// The NIC at a switch with passt as its way out.
const SWITCH_USER: Setup = Setup::new(Attach::Netdev, Uplink::SwitchUser);

/// All cases with these drivers on these kernels, those with the same setup one after another, those
/// that spoil the bed at the end.
pub fn cases(combinations: &[(Driver, Flavour)]) -> Vec<Case> {
    let about_nic = [
        itself::TABLE,
        basics::TABLE,
        filters::TABLE,
        hash_report::TABLE,
        link::TABLE,
        rings::TABLE,
        survival::TABLE,
        switch::TABLE,
        user::TABLE,
        variants::TABLE,
    ];
    let about_driver = [
        interface::TABLE,
        ethtool::TABLE,
        coalescing::TABLE,
        churn::TABLE,
        trouble::TABLE,
        hostile::TABLE,
        flow_hash::TABLE,
        kunit::TABLE,
    ];
    let mut scenarios: Vec<Scenario> = about_nic.concat();
    scenarios.extend(about_driver.concat().into_iter().map(|scenario| Scenario {
        about_driver: true,
        ..scenario
    }));
    let mut setups: Vec<Setup> = Vec::new();
    for setup in scenarios.iter().flat_map(|s| s.setups) {
        if !setups.contains(setup) {
            setups.push(*setup);
        }
    }
    let mut cases = Vec::new();
    for &(driver, kernel) in combinations {
        for &setup in &setups {
            for after in [After::Keep, After::Discard] {
                let fits = |s: &&Scenario| {
                    s.after == after
                        && s.setups.contains(&setup)
                        && s.drivers.contains(&driver)
                        && s.kernels.contains(&kernel)
                };
                cases.extend(scenarios.iter().filter(fits).map(|s| Case {
                    scenario: *s,
                    setup: setup.driven(driver, kernel),
                }));
            }
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let all = [Driver::C, Driver::Ferronic]
            .map(|driver| [Flavour::Base, Flavour::Debug].map(|kernel| (driver, kernel)));
        let names: Vec<_> = cases(all.as_flattened()).iter().map(Case::name).collect();
        let set: HashSet<_> = names.iter().collect();
        assert_eq!(set.len(), names.len());
    }
}
