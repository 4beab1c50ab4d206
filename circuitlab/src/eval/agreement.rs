//! How well predicted numbers agree with measured ones.

use serde::Serialize;

/// Sums over pairs of a predicted and a measured number.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Sums {
    pairs: u64,
    predicted: f64,
    measured: f64,
    predicted_squared: f64,
    measured_squared: f64,
    product: f64,
    error_squared: f64,
}

/// How well changes are predicted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Agreement {
    /// Pairs of a predicted and a measured change.
    pub pairs: u64,
    /// Pearson's correlation; none where either hardly varies.
    pub correlation: Option<f64>,
    /// The slope of the line through the origin that fits measured changes to predicted ones best; none where nothing was predicted.
    pub slope: Option<f64>,
    /// The squared error of predictions over the squared measured changes, its root; none where nothing changed.
    pub relative_error: Option<f64>,
}

impl Sums {
    pub(super) fn add(&mut self, predicted: f64, measured: f64) {
        self.pairs += 1;
        self.predicted += predicted;
        self.measured += measured;
        self.predicted_squared += predicted * predicted;
        self.measured_squared += measured * measured;
        self.product += predicted * measured;
        self.error_squared += (predicted - measured) * (predicted - measured);
    }

    pub(super) fn join(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.predicted += other.predicted;
        self.measured += other.measured;
        self.predicted_squared += other.predicted_squared;
        self.measured_squared += other.measured_squared;
        self.product += other.product;
        self.error_squared += other.error_squared;
    }

    pub(super) fn agreement(&self) -> Agreement {
        let count = self.pairs as f64;
        let covariance = self.product - self.predicted * self.measured / count;
        let spread = |squared: f64, sum: f64| squared - sum * sum / count;
        let spreads = [spread(self.predicted_squared, self.predicted), spread(self.measured_squared, self.measured)];
        // What is left of a difference of equal numbers is rounding.
        let varies = spreads[0] > 1e-12 * self.predicted_squared && spreads[1] > 1e-12 * self.measured_squared;
        Agreement {
            pairs: self.pairs,
            correlation: (self.pairs > 1 && varies).then(|| (covariance / (spreads[0] * spreads[1]).sqrt()).clamp(-1.0, 1.0)),
            slope: (self.predicted_squared > 0.0).then(|| self.product / self.predicted_squared),
            relative_error: (self.measured_squared > 0.0).then(|| (self.error_squared / self.measured_squared).sqrt()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found() {
        let mut sums = Sums::default();
        let mut other = Sums::default();
        for (place, predicted) in [-2.0, -1.0, 0.5, 3.0].into_iter().enumerate() {
            if place % 2 == 0 { &mut sums } else { &mut other }.add(predicted, 0.5 * predicted);
        }
        sums.join(&other);
        let found = sums.agreement();
        assert_eq!((found.pairs, found.slope), (4, Some(0.5)));
        assert!((found.correlation.expect("varies") - 1.0).abs() < 1e-12);
        assert!((found.relative_error.expect("changes") - 1.0).abs() < 1e-12, "twice the measured change was predicted");
    }

    #[test]
    fn where_nothing_varies_nothing_is_said() {
        let none = Sums::default().agreement();
        assert_eq!((none.pairs, none.correlation, none.slope, none.relative_error), (0, None, None, None));
        let mut same = Sums::default();
        (0..5).for_each(|_| same.add(0.1, 0.3));
        assert_eq!(same.agreement().correlation, None);
        assert!((same.agreement().slope.expect("a line") - 3.0).abs() < 1e-12);
    }
}
