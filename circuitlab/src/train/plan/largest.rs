//! The largest transcoder that ranks of some memory can train.

use circuitlab_core::Dims;
use serde::Serialize;

use super::layout::Layout;
use super::{Subject, memory_of, placement};
use crate::train::config::TrainConfig;
use crate::train::state::check_sizes;
use crate::{Error, Result};

/// The largest expansion under one strategy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Largest {
    /// The strategy's name.
    pub strategy: &'static str,
    /// Its mesh.
    pub layout: Layout,
    /// The largest `size.expansion` that fits; nothing where not even 1 does.
    pub expansion: Option<usize>,
    /// The memory of a rank with that expansion.
    pub memory_bytes: Option<u64>,
    /// Why the strategy cannot train such a run at any size.
    pub refused: Option<String>,
}

/// The ways for so many ranks to share a run; `single` is always one of them, and takes one.
fn ways(ranks: usize) -> Vec<(&'static str, Layout)> {
    let layout = |data, feature, sharded| Layout { data, feature, sharded };
    let mut all = vec![("single", layout(1, 1, false))];
    if ranks > 1 {
        all.extend([("ddp", layout(ranks, 1, false)), ("fsdp", layout(ranks, 1, true)), ("feature-sharded", layout(1, ranks, false))]);
        let divisors = (2..ranks).filter(|data| ranks.is_multiple_of(*data));
        all.extend(divisors.flat_map(|data| [false, true].map(|sharded| ("hybrid", layout(data, ranks / data, sharded)))));
    }
    all
}

/// For each strategy the largest expansion with which a rank takes no more than `bytes` where it computes.
///
/// # Errors
/// A run of several transcoders, whose sizes are their own affairs.
pub(super) fn largest(subject: &Subject, config: &TrainConfig, ranks: usize, bytes: u64) -> Result<Vec<Largest>> {
    if !config.clt.is_empty() {
        return Err(Error::Invalid("the largest size that fits is that of one transcoder; leave the `[[clt]]` tables away".to_owned()));
    }
    let (_, device) = placement(config);
    let of_way = |(strategy, layout): (&'static str, Layout)| {
        // Beyond what any machine has room for nothing fits; no size makes up for a mesh that the activation forbids.
        let memory = |expansion: usize| -> Result<Option<u64>> {
            let Some(d_features) = expansion.checked_mul(subject.dims.d_model) else { return Ok(None) };
            let dims = Dims { d_features, ..subject.dims };
            if check_sizes(config, dims).is_err() {
                return Ok(None);
            }
            let specs = subject.transcoder.parameters(dims, &*subject.activation)?;
            Ok(Some(memory_of(subject, dims, &specs, config, layout)?.peak(device)).filter(|memory| *memory <= bytes))
        };
        let found = search(memory);
        Largest {
            strategy,
            layout,
            expansion: found.as_ref().ok().and_then(|found| found.map(|(expansion, _)| expansion)),
            memory_bytes: found.as_ref().ok().and_then(|found| found.map(|(_, memory)| memory)),
            refused: found.err().map(|error| error.to_string()),
        }
    };
    Ok(ways(ranks).into_iter().map(of_way).collect())
}

/// The largest number from 1 on that fits, with what it takes; each that is smaller fits too.
fn search(memory: impl Fn(usize) -> Result<Option<u64>>) -> Result<Option<(usize, u64)>> {
    let Some(taken) = memory(1)? else { return Ok(None) };
    let (mut fits, mut too_large) = ((1, taken), 2);
    while let Some(taken) = memory(too_large)? {
        fits = (too_large, taken);
        too_large = too_large.saturating_mul(2);
    }
    while too_large - fits.0 > 1 {
        let middle = usize::midpoint(fits.0, too_large);
        match memory(middle)? {
            Some(taken) => fits = (middle, taken),
            None => too_large = middle,
        }
    }
    Ok(Some(fits))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_largest_is_found(limit in 0_u64..10_000) {
            let found = search(|number| Ok(Some(3 * number as u64).filter(|taken| *taken <= limit))).expect("no error");
            let want = (limit / 3 > 0).then_some(((limit / 3) as usize, limit / 3 * 3));
            prop_assert_eq!(found, want);
        }
    }

    #[test]
    fn ranks_are_shared_out_in_every_way() {
        let texts: Vec<String> = ways(8).iter().map(|(name, layout)| format!("{name} {layout}")).collect();
        let want = [
            "single 1x1",
            "ddp 8x1",
            "fsdp 8x1,sharded",
            "feature-sharded 1x8",
            "hybrid 2x4",
            "hybrid 2x4,sharded",
            "hybrid 4x2",
            "hybrid 4x2,sharded",
        ];
        assert_eq!(texts, want);
        assert_eq!((ways(1).len(), ways(7).len()), (1, 4));
    }
}
