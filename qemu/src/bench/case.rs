// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A case: one figure of ours beside the same figure of its peers.

use std::fmt::Write;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::samples::Samples;

/// Which figures are the good ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// The large ones: throughput.
    More,
    /// The small ones: cost, delay.
    Less,
}

/// A figure of ours and of its peers.
#[derive(Debug, Clone)]
pub struct Case {
    /// What was measured.
    pub name: String,
    /// In what.
    pub unit: &'static str,
    /// Which way is up.
    pub better: Better,
    /// Ours.
    pub ours: Samples,
    /// The peers' by name, those that could be measured.
    pub peers: Vec<(String, Samples)>,
}

impl Case {
    /// How many times better ours is than a peer, by the medians: above 1 means that ours wins. Where
    /// both are nothing they are equal; where only the worse one is, that is infinitely much or nothing.
    pub fn ratio_to(&self, peer: &Samples) -> Option<f64> {
        self.better.ratio(self.ours.median()?, peer.median()?)
    }

    /// The same for the peer that does best.
    fn ratio_to_best(&self) -> Option<f64> {
        let ratios = self
            .peers
            .iter()
            .filter_map(|(_, peer)| self.ratio_to(peer));
        ratios.min_by(f64::total_cmp)
    }
}

impl Better {
    /// How many times better the one figure is than the other.
    pub fn ratio(self, one: f64, other: f64) -> Option<f64> {
        let (large, small) = match self {
            Better::More => (one, other),
            Better::Less => (other, one),
        };
        let ratio = if large == small { 1.0 } else { large / small };
        (!ratio.is_nan()).then_some(ratio)
    }
}

/// The medians, in the form that `--json` promises.
impl Serialize for Case {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let peers: std::collections::BTreeMap<_, _> = self
            .peers
            .iter()
            .map(|(name, samples)| (name, samples.median()))
            .collect();
        let mut map = serializer.serialize_map(Some(5))?;
        map.serialize_entry("case", &self.name)?;
        map.serialize_entry("unit", self.unit)?;
        map.serialize_entry("ours", &self.ours.median())?;
        map.serialize_entry("peers", &peers)?;
        // JSON has no infinity: null says it, too.
        let ratio = self.ratio_to_best().filter(|ratio| ratio.is_finite());
        map.serialize_entry("ratio_to_best", &ratio)?;
        map.end()
    }
}

/// All cases for people.
pub fn table(cases: &[Case]) -> String {
    let names = cases
        .iter()
        .flat_map(|c| c.peers.iter().map(|(name, _)| name.len()));
    let width = names.max().unwrap_or(0).max("ours".len());
    let mut text = String::new();
    for case in cases {
        let _ = writeln!(text, "{} [{}]", case.name, case.unit);
        let _ = writeln!(text, "  {:width$}  {}", "ours", figures(&case.ours));
        for (name, samples) in &case.peers {
            let ratio = case.ratio_to(samples).map_or("-".to_owned(), times);
            let _ = writeln!(text, "  {name:width$}  {}  {ratio:>6}", figures(samples));
        }
    }
    text
}

/// A ratio for people.
fn times(ratio: f64) -> String {
    if ratio.is_finite() {
        format!("x{ratio:.2}")
    } else {
        "x inf".to_owned()
    }
}

fn figures(samples: &Samples) -> String {
    match (samples.median(), samples.spread()) {
        (Some(median), Some((low, high))) => {
            let spread = format!("({}..{})", rounded(low), rounded(high));
            format!("{:>8}  {spread:>18}", rounded(median))
        }
        _ => format!("{:>8}  {:>18}", "none", ""),
    }
}

/// Three digits that mean something, never an exponent.
pub fn rounded(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        values.iter().copied().collect()
    }

    fn case(better: Better) -> Case {
        Case {
            name: "tap guest_to_host".into(),
            unit: "Gb/s",
            better,
            ours: samples(&[2.0, 3.0, 1.0]),
            peers: vec![
                ("qemu-tap".into(), samples(&[4.0])),
                ("qemu-user".into(), samples(&[1.0])),
            ],
        }
    }

    #[test]
    fn above_one_means_ours_is_better_whatever_the_unit() {
        assert_eq!(case(Better::More).ratio_to_best(), Some(0.5));
        // Of delays 4 and 1 the best is 1, and ours is twice that.
        assert_eq!(case(Better::Less).ratio_to_best(), Some(0.5));
        let mut slower_peers = case(Better::Less);
        slower_peers.peers.pop();
        assert_eq!(slower_peers.ratio_to_best(), Some(2.0));
    }

    #[test]
    fn nothing_at_all_can_be_compared() {
        // Wake-ups while idle: ours, a peer's, and how much better ours is.
        for (ours, peer, ratio, said, json) in [
            (0.0, 0.0, 1.0, "x1.00", "1.0"),
            (0.0, 1.5, f64::INFINITY, "x inf", "null"),
            (1.5, 0.0, 0.0, "x0.00", "0.0"),
        ] {
            let case = Case {
                ours: samples(&[ours]),
                peers: vec![("passt".into(), samples(&[peer]))],
                ..case(Better::Less)
            };
            assert_eq!(case.ratio_to_best(), Some(ratio));
            assert!(table(std::slice::from_ref(&case)).contains(said));
            let text = serde_json::to_string(&case).unwrap();
            assert!(
                text.ends_with(&format!(r#""ratio_to_best":{json}}}"#)),
                "{text}"
            );
        }
        assert_eq!(Better::More.ratio(1.0, 0.0), Some(f64::INFINITY));
        // Of several peers the one that also has nothing is the best.
        let mut two = case(Better::Less);
        two.ours = samples(&[0.0]);
        two.peers[0].1 = samples(&[0.0]);
        assert_eq!(two.ratio_to_best(), Some(1.0));
    }

    #[test]
    fn json_has_the_five_keys_and_null_for_what_is_not_known() {
        let json = serde_json::to_string(&case(Better::More)).unwrap();
        assert_eq!(
            json,
            r#"{"case":"tap guest_to_host","unit":"Gb/s","ours":2.0,"peers":{"qemu-tap":4.0,"qemu-user":1.0},"ratio_to_best":0.5}"#
        );
        let alone = Case {
            peers: Vec::new(),
            ..case(Better::More)
        };
        assert!(
            serde_json::to_string(&alone)
                .unwrap()
                .ends_with(r#""ratio_to_best":null}"#)
        );
    }

    #[test]
    fn the_table_shows_spread_and_ratios() {
        let text = table(&[case(Better::More)]);
        assert!(text.contains("(1.00..3.00)"), "{text}");
        assert!(text.contains("x0.50") && text.contains("x2.00"), "{text}");
    }
}
