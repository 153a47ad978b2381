// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The tests that our driver has in itself. The debug kernel has what it takes to run them.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use super::{DEVICE_TAP, Scenario};
use crate::artefacts::kernel::Flavour;
use crate::driver::Driver;
use crate::ktap::outcomes;
use crate::test::Form;
use crate::test::bed::Bed;

pub const TABLE: &[Scenario] = &[Scenario::new("kunit", &[DEVICE_TAP], kunit)
    .only(&[Driver::Ferronic])
    .on(&[Flavour::Debug])];

/// Reports each of them as a test.
fn kunit(bed: &mut Bed, _: Form) -> Result<()> {
    // The module's suites come and go with it. They run when they are told to.
    let report = bed.guest().sh_within(
        "set -e; cd /sys/kernel/debug/kunit; driver unload ferronic; before=\" $(echo *) \"; driver load ferronic; \
         for suite in *; do \
             case \"$before\" in *\" $suite \"*) ;; *) echo run > $suite/run; cat $suite/results ;; esac; \
         done",
        Duration::from_secs(300),
    )?;
    let found = outcomes(&report);
    ensure!(!found.is_empty(), "the module has no tests: {report}");
    for outcome in found {
        let result = outcome.failure.map_or(Ok(()), |why| Err(anyhow!(why)));
        bed.parts.push((outcome.name, result));
    }
    bed.lay_cable()
}
