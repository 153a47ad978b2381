// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Rounds: every set-up is measured once in each, in an order that starts one further every time. A host
//! that gets slower or faster does so for all, and nobody always comes after the same neighbour.

use anyhow::Result;

use crate::progress::{Step, say};

/// What is measured, ours or a peer's.
pub trait Subject: Copy + PartialEq {
    /// Its name in reports.
    fn name(self) -> String;
    /// Whether it is ours.
    fn is_ours(self) -> bool;
}

/// Measures all subjects in so many rounds. A peer that fails is left out from then on, so that ours can
/// still be compared with the others; ours may not fail.
pub fn take<S: Subject, M>(
    bench: &str,
    rounds: u32,
    mut subjects: Vec<S>,
    summary: impl Fn(&[M]) -> String,
    mut measure: impl FnMut(S) -> Result<Vec<M>>,
) -> Result<Vec<M>> {
    let mut measured = Vec::new();
    for round in 1..=rounds {
        for subject in subjects.clone() {
            let what = format!("{bench} round {round} of {rounds}: {}", subject.name());
            let step = Step::start(&what);
            match measure(subject) {
                Ok(all) => {
                    step.done();
                    say(format!("{what}: {}", summary(&all)));
                    measured.extend(all);
                }
                Err(e) if subject.is_ours() => return Err(e.context(what)),
                Err(e) => {
                    drop(step);
                    say(format!("{what}: left out from here on: {e:#}"));
                    subjects.retain(|s| *s != subject);
                }
            }
        }
        if !subjects.is_empty() {
            subjects.rotate_left(1);
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    impl Subject for char {
        fn name(self) -> String {
            self.to_string()
        }

        fn is_ours(self) -> bool {
            self.is_uppercase()
        }
    }

    #[test]
    fn everybody_comes_first_once_and_who_fails_is_left_out() {
        let measure = |subject| match subject {
            'x' => bail!("not here"),
            subject => Ok(vec![subject]),
        };
        let all = take("test", 3, vec!['A', 'b', 'x'], |_| String::new(), measure).unwrap();
        assert_eq!(all, ['A', 'b', 'b', 'A', 'A', 'b']);
    }

    #[test]
    fn ours_may_not_fail() {
        let result = take(
            "test",
            1,
            vec!['A'],
            |_: &[char]| String::new(),
            |_| bail!("broken"),
        );
        let error = format!("{:#}", result.unwrap_err());
        assert_eq!(error, "test round 1 of 1: A: broken");
    }
}
