// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Running scenarios: those with the same setup one after another on the same bed.
//!
//! A boot costs more than most scenarios. But a bed is thrown away after a failure, and
//! after a scenario that says that it leaves one behind that others should not use; so
//! what fails does not fail because of what ran before.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::bed::Bed;
use super::{Counts, Form};
use crate::lab::Lab;
use crate::scenarios::{After, Case};

/// Runs scenarios and counts.
#[derive(Debug)]
pub struct Runner<'a> {
    lab: &'a Lab,
    form: Form,
    bed: Option<Bed<'a>>,
    counts: Counts,
}

impl<'a> Runner<'a> {
    /// A runner without a bed.
    pub fn new(lab: &'a Lab, form: Form) -> Self {
        Runner {
            lab,
            form,
            bed: None,
            counts: Counts::default(),
        }
    }

    /// Runs scenarios.
    pub fn run(mut self, cases: &[Case]) -> Counts {
        println!(
            "\nrunning {} tests in guests ({})",
            cases.len(),
            self.lab.accel.name()
        );
        for case in cases {
            self.run_case(case);
        }
        self.close();
        self.counts
    }

    fn run_case(&mut self, case: &Case) {
        if self.bed.as_ref().is_some_and(|bed| bed.setup != case.setup) {
            self.close();
        }
        let start = Instant::now();
        let result = self.attempt(case);
        let took = start.elapsed().as_secs_f64();
        let parts = self.bed.as_mut().map(|bed| std::mem::take(&mut bed.parts));
        for (part, result) in parts.unwrap_or_default() {
            match result {
                Ok(()) => {
                    println!("test {}::{part} ... ok", case.name());
                    self.counts.passed += 1;
                }
                Err(e) => {
                    println!("test {}::{part} ... FAILED\n{e:#}", case.name());
                    self.counts.failed += 1;
                }
            }
        }
        match result {
            Ok(()) => {
                println!("test {} ... ok ({took:.1} s)", case.name());
                self.counts.passed += 1;
                if case.scenario.after == After::Discard {
                    self.bed = None;
                }
            }
            Err(e) => {
                println!("test {} ... FAILED ({took:.1} s)\n{e:#}", case.name());
                if let Some(bed) = self.bed.take() {
                    println!("{}", bed.diagnosis());
                }
                self.counts.failed += 1;
            }
        }
    }

    fn attempt(&mut self, case: &Case) -> Result<()> {
        if self.bed.is_none() {
            let bed = Bed::make(self.lab, case.setup)?;
            // What the kernel said of the driver at boot counts too.
            bed.check_log(&[])?;
            self.bed = Some(bed);
        }
        let Some(bed) = self.bed.as_mut() else {
            return Err(anyhow!("there is no bed"));
        };
        let (run, form) = (case.scenario.run, self.form);
        bed.mark_log(case.scenario.name)?;
        // A scenario that panics is a failed one; the bed is not used again.
        catch_unwind(AssertUnwindSafe(|| run(bed, form)))
            .unwrap_or_else(|_| Err(anyhow!("the scenario panicked")))?;
        bed.check_log(case.scenario.forgiven)
    }

    /// Ends the bed in good order; what goes wrong then counts as a failure of its own.
    fn close(&mut self) {
        let Some(bed) = self.bed.take() else {
            return;
        };
        let name = format!("{}::end", bed.setup);
        match bed.close() {
            Ok(()) => {
                println!("test {name} ... ok");
                self.counts.passed += 1;
            }
            Err(e) => {
                println!("test {name} ... FAILED\n{e:#}");
                self.counts.failed += 1;
            }
        }
    }
}
