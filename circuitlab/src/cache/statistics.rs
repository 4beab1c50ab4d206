//! Statistics of a layer's rows, which add up over chunks and jobs.

use serde::{Deserialize, Serialize};

/// What is known of the inputs or outputs of one layer.
///
/// The pairwise form of Welford's update (Chan, Golub, and others, 1979): counts, means and sums of squared deviations add up without loss.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// Rows seen.
    pub rows: u64,
    /// Mean L2 norm of a row.
    pub mean_norm: f64,
    /// Sum over rows and dimensions of the squared deviation from the mean row.
    pub squared_deviation: f64,
    /// Mean row: `[d_model]`, empty before the first.
    pub mean: Vec<f64>,
}

impl Statistics {
    /// The statistics of some rows of `width` values.
    pub fn of_rows(values: &[f32], width: usize) -> Self {
        let count = values.len().checked_div(width).unwrap_or(0);
        if count == 0 {
            return Self::default();
        }
        let mut mean = vec![0.0; width];
        let mut norms = 0.0;
        for row in values.chunks_exact(width) {
            let mut squares = 0.0;
            for (sum, value) in mean.iter_mut().zip(row) {
                let value = f64::from(*value);
                *sum += value;
                squares += value * value;
            }
            norms += squares.sqrt();
        }
        for sum in &mut mean {
            *sum /= count as f64;
        }
        let deviation = |row: &[f32]| row.iter().zip(&mean).map(|(value, mean)| (f64::from(*value) - mean).powi(2)).sum::<f64>();
        let squared_deviation = values.chunks_exact(width).map(deviation).sum();
        Self { rows: count as u64, mean_norm: norms / count as f64, squared_deviation, mean }
    }

    /// Adds the statistics of other rows of the same layer.
    pub fn merge(&mut self, other: &Self) {
        if other.rows == 0 {
            return;
        }
        if self.rows == 0 {
            self.clone_from(other);
            return;
        }
        let rows = self.rows + other.rows;
        let share = other.rows as f64 / rows as f64;
        let mut distance = 0.0;
        for (mean, other) in self.mean.iter_mut().zip(&other.mean) {
            let delta = other - *mean;
            *mean += delta * share;
            distance += delta * delta;
        }
        self.squared_deviation += other.squared_deviation + distance * share * self.rows as f64;
        self.mean_norm += (other.mean_norm - self.mean_norm) * share;
        self.rows = rows;
    }

    /// Variance summed over dimensions: the mean squared distance of a row from the mean row.
    pub fn variance(&self) -> f64 {
        if self.rows == 0 { 0.0 } else { self.squared_deviation / self.rows as f64 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
    }

    proptest! {
        #[test]
        fn merged_parts_agree_with_the_whole(values in prop::collection::vec(-1e3_f32..1e3, 0..60), cuts in prop::collection::vec(0_usize..21, 0..4)) {
            let width = 3;
            let values = &values[..values.len() / width * width];
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| (cut * width).min(values.len())).collect();
            cuts.extend([0, values.len()]);
            cuts.sort_unstable();
            let mut merged = Statistics::default();
            for cut in cuts.windows(2) {
                merged.merge(&Statistics::of_rows(&values[cut[0]..cut[1]], width));
            }
            let rows: Vec<Vec<f64>> = values.chunks(width).map(|row| row.iter().map(|value| f64::from(*value)).collect()).collect();
            let count = rows.len().max(1) as f64;
            let mean: Vec<f64> = (0..width).map(|at| rows.iter().map(|row| row[at]).sum::<f64>() / count).collect();
            let variance = rows.iter().flat_map(|row| row.iter().zip(&mean)).map(|(value, mean)| (value - mean).powi(2)).sum::<f64>() / count;
            let norm = rows.iter().map(|row| row.iter().map(|value| value * value).sum::<f64>().sqrt()).sum::<f64>() / count;
            prop_assert_eq!(merged.rows, rows.len() as u64);
            prop_assert!(near(merged.variance(), variance) && near(merged.mean_norm, norm), "{:?}", merged);
            prop_assert!(merged.mean.iter().zip(&mean).all(|(a, b)| near(*a, *b)));
        }
    }
}
