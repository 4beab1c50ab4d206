//! The gradient of one step, in as many micro-batches as the config asks for.

use circuitlab_core::transcoder::Exchange;
use circuitlab_core::{Axis, Batch, Parameters, StageCost, StepContext, StepOutput, Transcoder};

use super::config::DataConfig;
use super::exchange::Shares;
use crate::Result;

/// Losses and gradients of one step over this rank's rows of its batch, walked in so many micro-batches of like size, each of which takes
/// parameters from `shares` and brings gradients there.
pub(crate) fn gradient(
    transcoder: &mut dyn Transcoder,
    params: &Parameters,
    batch: &Batch,
    context: &StepContext<'_>,
    shares: Option<&Shares<'_>>,
    pieces: usize,
) -> Result<StepOutput> {
    let mut context = StepContext { exchange: shares.map(|shares| shares as &dyn Exchange), ..*context };
    if pieces <= 1 {
        return Ok(transcoder.step(params, batch, &context)?);
    }
    let rows = batch.inputs.size()[0];
    let mut sum: Option<StepOutput> = None;
    for rank in 0..pieces {
        let part = Axis { rank, size: pieces }.share(rows as usize);
        let narrow = |tensor: &tch::Tensor| tensor.narrow(0, part.start as i64, part.len() as i64);
        let part = Batch { inputs: narrow(&batch.inputs), targets: narrow(&batch.targets) };
        if let Some(shares) = shares {
            shares.begin(rank + 1 == pieces);
        }
        let output = transcoder.step(params, &part, &context)?;
        context.accumulate = true;
        sum = Some(match sum {
            None => output,
            // Gradients are sums already; all else is of the part alone.
            Some(sum) => StepOutput {
                mse: sum.mse + output.mse,
                sparsity: sum.sparsity + output.sparsity,
                preact: sum.preact + output.preact,
                squared_error: sum.squared_error + output.squared_error,
                active_rows: sum.active_rows + output.active_rows,
                gradients: output.gradients,
                gradient_squares: output.gradient_squares,
                stages: together(sum.stages, output.stages),
            },
        });
    }
    sum.ok_or_else(|| crate::Error::Invalid("a step without rows".to_owned()))
}

/// Stages of the same name as one.
fn together(mut sums: Vec<StageCost>, more: Vec<StageCost>) -> Vec<StageCost> {
    for stage in more {
        match sums.iter_mut().find(|sum| sum.name == stage.name) {
            Some(sum) => {
                sum.seconds += stage.seconds;
                sum.flop += stage.flop;
                sum.bytes += stage.bytes;
            }
            None => sums.push(stage),
        }
    }
    sums
}

/// How many micro-batches a step is walked in: as many on every rank, since ranks wait for each other in each of them.
pub(super) fn pieces(data: &DataConfig, ranks: Axis) -> usize {
    let most = data.batch_rows.div_ceil(ranks.size.max(1));
    data.micro_batch_rows.map_or(1, |rows| most.div_ceil(rows.max(1))).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_are_no_larger_than_asked_and_as_many_on_every_rank() {
        for (batch_rows, micro, ranks, want) in
            [(64, None, 1, 1), (64, Some(64), 1, 1), (64, Some(63), 1, 2), (65, Some(16), 2, 3), (5, Some(1), 1, 5)]
        {
            let data = DataConfig { batch_rows, micro_batch_rows: micro, ..DataConfig::default() };
            for rank in 0..ranks {
                let axis = Axis { rank, size: ranks };
                let pieces = pieces(&data, axis);
                assert_eq!(pieces, want);
                let rows = axis.share(batch_rows).len();
                let largest = (0..pieces).map(|rank| Axis { rank, size: pieces }.share(rows).len()).max();
                assert!(largest.is_some_and(|largest| largest <= micro.unwrap_or(batch_rows)));
            }
        }
    }
}
