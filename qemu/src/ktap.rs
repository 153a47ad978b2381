// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What KUnit reports, in its format KTAP (Documentation/dev-tools/ktap.rst): results of tests, a
//! line each, those of a suite indented and followed by the suite's own.

/// A test and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `suite::test`.
    pub name: String,
    /// Nothing, or why it failed.
    pub failure: Option<String>,
}

/// Reads a report. Tests that were skipped are left out; a suite that did not run all tests that it
/// announced has failed.
pub fn outcomes(report: &str) -> Vec<Outcome> {
    let mut found = Vec::new();
    // Suites that are not closed yet: their names are told at the start, or never.
    let mut suites: Vec<Suite> = Vec::new();
    let mut notes: Vec<&str> = Vec::new();
    for line in report.lines() {
        let text = line.trim_start();
        let depth = (line.len() - text.len()) / 4;
        if text.starts_with("KTAP version") {
            suites.truncate(depth);
            suites.resize_with(depth + 1, Suite::default);
            notes.clear();
        } else if let Some(name) = text.strip_prefix("# Subtest: ") {
            if let Some(suite) = suites.last_mut() {
                suite.name = name.trim().to_owned();
            }
        } else if let Some(count) = text.strip_prefix("1..") {
            if let Some(suite) = suites.last_mut() {
                suite.announced = count.trim().parse().unwrap_or(0);
            }
        } else if let Some(result) = Line::parse(text) {
            let closes_suite = suites.len() > depth + 1;
            let inner = if closes_suite { suites.pop() } else { None };
            let Some(suite) = suites.get_mut(depth) else {
                continue;
            };
            suite.seen += 1;
            let missing = inner.filter(|inner| inner.seen != inner.announced);
            let why = match &missing {
                Some(inner) => Some(format!("{} of {} tests ran", inner.seen, inner.announced)),
                None => (!result.ok).then(|| notes.join("\n")),
            };
            // A suite that ran fails because a test in it failed, which has been told.
            if !result.skipped && (!closes_suite || missing.is_some()) {
                let name = match suite.name.as_str() {
                    "" => result.name.to_owned(),
                    suite => format!("{suite}::{}", result.name),
                };
                found.push(Outcome { name, failure: why });
            }
            notes.clear();
        } else if !text.is_empty() {
            notes.push(text);
        }
    }
    found
}

#[derive(Debug, Default)]
struct Suite {
    name: String,
    announced: usize,
    seen: usize,
}

struct Line<'a> {
    ok: bool,
    skipped: bool,
    name: &'a str,
}

impl<'a> Line<'a> {
    /// `ok 3 name # SKIP why`.
    fn parse(text: &'a str) -> Option<Self> {
        let (ok, rest) = match text.strip_prefix("not ok ") {
            Some(rest) => (false, rest),
            None => (true, text.strip_prefix("ok ")?),
        };
        let (number, rest) = rest.split_once(' ')?;
        number.parse::<u32>().ok()?;
        let rest = rest.trim_start_matches("- ");
        let (name, directive) = rest.split_once(" # ").unwrap_or((rest, ""));
        Some(Line {
            ok,
            skipped: directive.starts_with("SKIP"),
            name: name.trim(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `/sys/kernel/debug/kunit/SUITE/results` has it.
    const SUITE: &str = "\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: ferronic_ring
    # module: ferronic
    1..3
    ok 1 wraps
    # counts: EXPECTATION FAILED at ring.rs:10
    Expected a == b, but
        a == 1
    not ok 2 counts
    ok 3 later # SKIP not here
# ferronic_ring: pass:1 fail:1 skip:1 total:3
# Totals: pass:1 fail:1 skip:1 total:3
not ok 1 ferronic_ring
";

    #[test]
    fn tests_of_a_suite() {
        let found = outcomes(SUITE);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].name, "ferronic_ring::wraps");
        assert_eq!(found[0].failure, None);
        assert_eq!(found[1].name, "ferronic_ring::counts");
        assert!(
            found[1]
                .failure
                .as_ref()
                .unwrap()
                .contains("Expected a == b")
        );
    }

    #[test]
    fn a_suite_that_ends_early_has_failed() {
        let report = SUITE.replace("1..3", "1..5");
        let last = outcomes(&report).pop().unwrap();
        assert_eq!(last.name, "ferronic_ring");
        assert_eq!(last.failure.as_deref(), Some("3 of 5 tests ran"));
    }

    #[test]
    fn several_reports_one_after_another() {
        assert_eq!(outcomes(&format!("{SUITE}{SUITE}")).len(), 4);
        assert!(outcomes("").is_empty());
        assert!(outcomes("no KTAP at all\nok\nok x y\n").is_empty());
    }
}
