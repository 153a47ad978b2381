// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The same figure, measured several times.

/// What was measured, one value a round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// The middle one, or the mean of the middle two; `None` of nothing.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some((lower + upper) / 2.0)
    }

    /// The smallest and the largest.
    pub fn spread(&self) -> Option<(f64, f64)> {
        let smallest = self.0.iter().copied().min_by(f64::total_cmp)?;
        let largest = self.0.iter().copied().max_by(f64::total_cmp)?;
        Some((smallest, largest))
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        // What could not be computed (nothing moved, so no cost per gigabyte) is no measurement.
        Samples(values.into_iter().filter(|v| v.is_finite()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_spread() {
        let samples: Samples = [3.0, 1.0, 2.0].into_iter().collect();
        assert_eq!(samples.median(), Some(2.0));
        assert_eq!(samples.spread(), Some((1.0, 3.0)));
        let even: Samples = [4.0, 1.0, 2.0, 3.0].into_iter().collect();
        assert_eq!(even.median(), Some(2.5));
    }

    #[test]
    fn nothing_measured_has_no_median() {
        let none: Samples = [f64::NAN, f64::INFINITY].into_iter().collect();
        assert_eq!(none, Samples::default());
        assert_eq!((none.median(), none.spread()), (None, None));
    }
}
