//! What a step and other ranks give each other on the way: matrices, gradients, and sums of reconstructions.

use std::ops::Range;

use circuitlab_core::parallel::{MeshAxis, Pending};
use circuitlab_core::{Parameters, Result, StepContext};
use tch::{Device, Kind, Tensor};

use crate::transcoders::dictionary::{Layer, Reach, layers};

/// What will be asked for after a matrix, and is fetched meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) enum Next {
    /// The encoder of a layer.
    Encoder(usize),
    /// The decoder of a layer.
    Decoder(usize),
}

impl Next {
    /// Its position; nothing beyond the last layer.
    fn position(self, params: &Parameters) -> Result<Option<usize>> {
        let (Self::Encoder(index) | Self::Decoder(index)) = self;
        if index >= layers(params) {
            return Ok(None);
        }
        let layer = Layer::of(params, index)?;
        Ok(Some(match self {
            Self::Encoder(_) => layer.encoder_position(),
            Self::Decoder(_) => layer.decoder_position(),
        }))
    }
}

impl Layer<'_> {
    /// Fetches all rows of the encoder.
    pub(super) fn lend_encoder(&mut self, params: &Parameters, context: &StepContext<'_>, next: Next) -> Result<()> {
        self.w_enc = context.lend(params, self.encoder_position(), next.position(params)?)?;
        Ok(())
    }

    /// Fetches all rows of the decoder.
    pub(super) fn lend_decoder(&mut self, params: &Parameters, context: &StepContext<'_>, next: Next) -> Result<()> {
        self.w_dec = context.lend(params, self.decoder_position(), next.position(params)?)?;
        Ok(())
    }
}

/// What stands in the place of a gradient that has gone away.
pub(super) fn gone(kind: Kind, device: Device) -> Result<Tensor> {
    Ok(Tensor::f_empty([0], (kind, device))?)
}

/// Hands a layer's gradients on, keeps them, or adds them to those of the micro-batches before.
pub(super) fn take_in(
    context: &StepContext<'_>,
    before: &mut Vec<Tensor>,
    positions: Range<usize>,
    gradients: impl IntoIterator<Item = Tensor>,
) -> Result<()> {
    debug_assert!(context.accumulate || positions.start == before.len(), "gradients stand in the order of the parameters");
    for (position, gradient) in positions.zip(gradients) {
        let goes = context.takes(position);
        match (goes, context.accumulate) {
            (true, true) => {}
            (true, false) => before.push(gone(gradient.kind(), gradient.device())?),
            (false, true) => drop(before[position].f_add_(&gradient)?),
            (false, false) => before.push(gradient.shallow_clone()),
        }
        if gradient.dim() > 1 {
            context.ready(position, if goes { &gradient } else { &before[position] })?;
        }
    }
    Ok(())
}

/// The sums of reconstructions over the ranks of the feature axis. That of a target begins when its last source is decoded, and goes on while
/// later sources are encoded.
#[derive(Debug)]
pub(super) struct FeatureSums<'a> {
    context: &'a StepContext<'a>,
    reach: Reach,
    layers: usize,
    under_way: Vec<Pending>,
}

impl<'a> FeatureSums<'a> {
    pub(super) fn new(context: &'a StepContext<'a>, reach: Reach, layers: usize) -> Self {
        Self { context, reach, layers, under_way: Vec::new() }
    }

    /// Hears that a source is decoded; `target` gives the reconstruction of a target layer, which is summed in its own memory.
    pub(super) fn decoded(&mut self, source: usize, target: impl Fn(usize) -> Tensor) -> Result<()> {
        if self.context.strategy.mesh().feature.size == 1 {
            return Ok(());
        }
        for complete in (self.reach)(self.layers, source)
            .filter(|of| !(source + 1..self.layers).any(|later| (self.reach)(self.layers, later).contains(of)))
        {
            self.under_way.push(self.context.strategy.begin_sum(MeshAxis::Feature, target(complete))?);
        }
        Ok(())
    }

    /// Waits for all of them.
    pub(super) fn wait(self) -> Result<()> {
        self.under_way.into_iter().try_for_each(|sum| sum.wait().map(drop))
    }
}
