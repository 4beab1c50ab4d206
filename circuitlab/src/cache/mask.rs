//! Rows whose norms stand out, such as attention sinks: one of them can outweigh thousands of others in the loss.

use rayon::prelude::*;

/// Which rows to keep: those whose norm in every block is at most `ratio` times the block's median norm.
///
/// # Shapes
/// `blocks: [blocks][rows * width]`
pub(super) fn keep(blocks: &[Vec<f32>], width: usize, ratio: f64) -> Vec<bool> {
    let rows = blocks.first().map_or(0, |values| values.len().checked_div(width).unwrap_or(0));
    let outliers = blocks.par_iter().map(|values| outliers(values, width, ratio));
    outliers.reduce(
        || vec![true; rows],
        |mut all, new| {
            all.iter_mut().zip(new).for_each(|(all, new)| *all &= new);
            all
        },
    )
}

fn outliers(values: &[f32], width: usize, ratio: f64) -> Vec<bool> {
    let norms: Vec<f64> =
        values.chunks_exact(width.max(1)).map(|row| row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()).collect();
    let mut sorted = norms.clone();
    let middle = sorted.len() / 2;
    if sorted.is_empty() {
        return Vec::new();
    }
    let limit = *sorted.select_nth_unstable_by(middle, f64::total_cmp).1 * ratio;
    // Values that are not finite stay, since they are an error that must be told.
    norms.iter().map(|norm| !norm.is_finite() || *norm <= limit).collect()
}

/// The kept rows of `width` values each, in their order.
pub(super) fn retain<T: Copy>(values: &mut Vec<T>, width: usize, keep: &[bool]) {
    let mut to = 0;
    for (row, _) in keep.iter().enumerate().filter(|(_, keep)| **keep) {
        values.copy_within(row * width..(row + 1) * width, to);
        to += width;
    }
    values.truncate(to);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_stands_out_in_one_block_goes() {
        let even = vec![1.0; 10];
        let mut odd = even.clone();
        odd[4] = 20.0;
        assert_eq!(keep(&[even.clone(), odd.clone()], 2, 10.0), [true, true, false, true, true]);
        assert_eq!(keep(&[even.clone(), odd.clone()], 2, 20.0), [true; 5]);
        odd[9] = f32::NAN;
        assert_eq!(keep(&[even, odd], 2, 10.0), [true, true, false, true, true]);
        assert!(keep(&[vec![], vec![]], 2, 10.0).is_empty());
        let mut values = vec![1, 2, 3, 4, 5, 6];
        retain(&mut values, 2, &[true, false, true]);
        assert_eq!(values, [1, 2, 5, 6]);
    }
}
