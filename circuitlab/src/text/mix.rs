//! Weighted mixes of the user's paths.

use circuitlab_core::random::Permutation;

use super::deal::Deal;
use super::layout::PackOptions;
use super::packed::{PackedText, Window};
use super::spool::SpoolWriter;
use crate::{Error, Result};

/// Checks the weights of so many paths.
///
/// # Errors
/// Another number of weights than of paths, and weights that are not above 0.
pub(crate) fn check_weights(weights: &[f64], paths: usize) -> Result<()> {
    if weights.len() != paths {
        return Err(Error::mismatch("`weights` has not one for each path of text", paths, weights.len()));
    }
    let wrong = weights.iter().find(|weight| !weight.is_finite() || **weight <= 0.0);
    wrong.map_or(Ok(()), |wrong| Err(Error::Invalid(format!("`weights` holds {wrong}; expected numbers above 0, such as 0.7,0.3"))))
}

/// Keeps as many contexts of each path as its weight allows, and as many in all as there are without repeating any.
///
/// `groups` says how many contexts there were at the end of each path.
pub(super) fn mix(packed: PackedText, groups: &[usize], options: &PackOptions) -> Result<PackedText> {
    let Some(weights) = &options.weights else { return Ok(packed) };
    check_weights(weights, groups.len())?;
    let windows = packed.windows.as_slice();
    let length = |window: usize| u64::from(Window::of(windows[window]).length);
    let begins: Vec<usize> = std::iter::once(0).chain(groups.iter().copied()).collect();
    let ranges = || begins.windows(2).map(|pair| pair[0]..pair[1].max(pair[0]));
    let tokens: Vec<u64> = ranges().map(|range| range.map(length).sum()).collect();
    let total = tokens.iter().zip(weights).map(|(tokens, weight)| *tokens as f64 / weight).fold(f64::INFINITY, f64::min);
    let mut kept = SpoolWriter::new();
    for (group, (range, weight)) in ranges().zip(weights).enumerate() {
        let wanted = (total * weight).round() as u64;
        let order = Permutation::new(options.deal.seed, "mix", group as u64, range.len() as u64);
        let mut have = 0;
        for place in 0..order.len() {
            if have >= wanted {
                break;
            }
            let window = range.start + order.at(place) as usize;
            have += length(window);
            kept.extend(&[windows[window]])?;
        }
        tracing::info!(path = group, tokens = have, of = tokens[group], "mixed");
    }
    let windows = kept.finish()?;
    Ok(PackedText { windows, ..packed })
}

/// Every `parts`-th context of a mix: shares of tokens are those of the whole text, so a part has to see all of it first.
pub(super) fn part_of_mix(packed: PackedText, deal: Deal) -> Result<PackedText> {
    let mut kept = SpoolWriter::new();
    let own = packed.windows.as_slice().iter().skip(deal.part as usize).step_by(deal.parts.max(1) as usize);
    own.copied().try_for_each(|window| kept.extend(&[window]))?;
    let windows = kept.finish()?;
    Ok(PackedText { windows, ..packed })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::model;
    use super::super::packer::Packer;
    use super::*;
    use crate::text::Deal;

    fn mixed(sizes: &[usize], weights: &[f64]) -> Vec<u64> {
        let options = PackOptions { weights: Some(weights.to_vec()), deal: Deal { seed: 4, ..Deal::WHOLE }, ..PackOptions::new(11) };
        let mut packer = Packer::new(&options, &model(), []).expect("fits");
        let mut groups = Vec::new();
        for (number, size) in sizes.iter().enumerate() {
            packer.begin(number as u32, false).expect("begins");
            packer.add(&vec![number as u32; *size]).expect("adds");
            packer.end().expect("ends");
            groups.push(packer.contexts());
        }
        let packed = mix(packer.finish().expect("maps"), &groups, &options).expect("mixes");
        let mut tokens = vec![0; sizes.len()];
        for context in packed.iter() {
            tokens[context.tokens[0] as usize] += context.tokens.len() as u64;
        }
        tokens
    }

    #[test]
    fn shares_are_exact_to_a_context_and_the_scarcest_path_is_used_up() {
        assert_eq!(mixed(&[1000, 1000], &[0.7, 0.3]), [1000, 430]);
        assert_eq!(mixed(&[1000, 100], &[1.0, 1.0]), [100, 100]);
        assert_eq!(mixed(&[500, 300, 2000], &[1.0, 1.0, 2.0]), [300, 300, 600]);
    }

    #[test]
    fn weights_that_do_not_fit_are_refused() {
        assert!(check_weights(&[1.0], 2).expect_err("too few").to_string().contains("expected 2, got 1"));
        assert!(check_weights(&[1.0, 0.0], 2).expect_err("nothing").to_string().contains("above 0"));
        assert!(check_weights(&[1.0, f64::NAN], 2).is_err());
    }
}
