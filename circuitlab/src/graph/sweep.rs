//! Rows of a graph: gradients of targets, pulled down through the model layer by layer and multiplied with what sources write.

use std::ops::Range;

use circuitlab_core::{Passage, Span};
use tch::{Kind, Tensor};

use super::closing::Closing;
use super::pass::Pass;
use super::sources::Sources;
use crate::Result;

/// The columns of a row after those of features: errors, tokens, and those that close it.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    /// Layer times positions plus position.
    pub(super) errors: Range<i64>,
    pub(super) tokens: Range<i64>,
    /// As errors.
    pub(super) decoder_biases: Range<i64>,
    /// As errors.
    pub(super) attention_biases: Range<i64>,
    pub(super) positions: Range<i64>,
    /// Layer times special positions plus place among these.
    pub(super) special_outputs: Range<i64>,
    pub(super) own_bias: Range<i64>,
}

impl Columns {
    fn new(pass: &Pass<'_>, closing: bool) -> Self {
        let [depth, positions, special] = [pass.depth(), pass.positions, pass.special.len()].map(|count| count as i64);
        let mut end = pass.active.len() as i64;
        let mut next = |count: i64, there: bool| {
            let start = end;
            end += if there { count } else { 0 };
            start..end
        };
        Self {
            errors: next(depth * positions, true),
            tokens: next(positions, true),
            decoder_biases: next(depth * positions, closing),
            attention_biases: next(depth * positions, closing),
            positions: next(positions, closing),
            special_outputs: next(depth * special, closing),
            own_bias: next(1, closing),
        }
    }

    /// How many there are.
    pub(super) fn width(&self) -> i64 {
        self.own_bias.end
    }
}

/// Targets of one layer, each at one position; those with later positions come first.
#[derive(Debug)]
pub(super) struct Targets {
    /// The layer that reads; one past the last for logits.
    pub(super) layer: usize,
    /// Where the gradients are.
    pub(super) place: Place,
    /// `[targets, width]`.
    pub(super) gradient: Tensor,
    /// `[targets]`, descending.
    pub(super) positions: Vec<i64>,
    /// Biases of their own that are no part of the model, such as an encoder's: `[targets]`.
    pub(super) biases: Option<Tensor>,
}

/// What targets read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// What the transcoder's features read.
    Features,
    /// What the unembedding reads.
    Final,
    /// A head's query or key.
    Head(Passage),
}

/// Computes rows for a pass.
#[derive(Debug)]
pub(super) struct Sweep<'p> {
    pub(super) pass: &'p Pass<'p>,
    sources: Sources<'p>,
    closing: Option<Closing>,
    pub(super) columns: Columns,
}

/// A ragged batch of gradients of the residual stream, and the rows that are made of them.
#[derive(Debug)]
pub(super) struct Swept {
    /// `[rows of the spans, d_model]`.
    pub(super) gradient: Tensor,
    /// Descending in positions.
    pub(super) spans: Vec<Span>,
    /// `[targets, columns]`, features in the order of sources.
    pub(super) rows: Tensor,
}

impl Swept {
    /// The gradients at a position of all targets that have it, which are the first ones: `[targets, d_model]`.
    fn at(&self, gradient: &Tensor, position: i64) -> Result<Tensor> {
        let width = gradient.size()[1];
        let (mut parts, mut row) = (Vec::new(), 0);
        for span in self.spans.iter().take_while(|span| span.positions > position) {
            let own = gradient.f_narrow(0, row, span.rows())?.f_view([span.targets, span.positions, width])?;
            parts.push(own.f_select(1, position)?);
            row += span.rows();
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Tensor::f_cat(&parts, 0)? })
    }

    /// The position of every row of the gradient.
    pub(super) fn positions(&self) -> Result<Tensor> {
        let options = (Kind::Int64, self.gradient.device());
        let each = self.spans.iter().map(|span| Tensor::f_arange(span.positions, options)?.f_repeat([span.targets]));
        Ok(Tensor::f_cat(&each.collect::<Result<Vec<_>, _>>()?, 0)?)
    }

    fn most_positions(&self) -> i64 {
        self.spans.first().map_or(0, |span| span.positions)
    }

    /// Puts `gradient . vectors` into a column, for each position from the first: `vectors: [positions, d_model]`.
    fn put(&self, at_position: &Tensor, vector: &Tensor, column: i64) -> Result<()> {
        let targets = at_position.size()[0];
        let mut place = self.rows.f_narrow(0, 0, targets)?.f_select(1, column)?;
        let _ = place.f_add_(&at_position.f_mv(vector)?)?;
        Ok(())
    }
}

impl<'p> Sweep<'p> {
    /// Prepares a pass; what features write is kept if it takes at most so many bytes.
    pub(super) fn new(pass: &'p Pass<'p>, closing: bool, keep_bytes: usize) -> Result<Self> {
        let sources = Sources::new(pass, keep_bytes)?;
        let closing = if closing { Some(Closing::of(pass)?) } else { None };
        let columns = Columns::new(pass, closing.is_some());
        Ok(Self { pass, sources, closing, columns })
    }

    /// The rows of targets: what each source adds to what they read.
    ///
    /// # Shapes
    /// Gives `[targets, columns]`, features in the order of [`Pass::active`].
    pub(super) fn rows(&self, targets: &Targets) -> Result<Tensor> {
        let swept = self.start(targets)?;
        let swept = self.down(swept, targets.layer)?;
        self.finish(&swept)
    }

    /// Puts features into the order of [`Pass::active`].
    pub(super) fn finish(&self, swept: &Swept) -> Result<Tensor> {
        let features = self.sources.in_order(&swept.rows.f_narrow(1, 0, self.sources.count())?)?;
        let rest = swept.rows.f_narrow(1, self.sources.count(), self.columns.width() - self.sources.count())?;
        Ok(Tensor::f_cat(&[features, rest], 1)?)
    }

    /// Rows of zeros for so many targets.
    pub(super) fn blank(&self, targets: i64) -> Result<Tensor> {
        Ok(Tensor::f_zeros([targets, self.columns.width()], self.pass.place)?)
    }

    /// The way from the stream to what targets read.
    pub(super) fn passage(&self, targets: &Targets) -> Passage {
        match targets.place {
            Place::Features => Passage::MlpInput { layer: targets.layer, hook: self.pass.hooks.0 },
            Place::Final => Passage::Final,
            Place::Head(passage) => passage,
        }
    }

    /// The gradients of targets at the stream that enters their layer.
    fn start(&self, targets: &Targets) -> Result<Swept> {
        let count = targets.gradient.size()[0];
        let positions = Tensor::from_slice(&targets.positions).f_to_device(self.pass.place.1)?;
        let passage = self.passage(targets);
        let adjoint = &self.pass.frozen.adjoint;
        let at_stream = adjoint.pull(passage, &targets.gradient, &positions)?;
        let mut swept =
            Swept { gradient: spread(&at_stream, &targets.positions)?, spans: spans(&targets.positions), rows: self.blank(count)? };
        if self.closing.is_some() {
            let own = (&targets.gradient * adjoint.constant(passage, &positions)?).f_sum_dim_intlist(-1, false, None::<Kind>)?;
            let own = targets.biases.iter().fold(own, |sum, biases| sum + biases);
            swept.rows.f_select(1, self.columns.own_bias.start)?.f_copy_(&own)?;
        }
        // A serial block's MLP reads what its attention has added to.
        if targets.place == Place::Features && !self.pass.frozen.parallel {
            self.through_attention(&mut swept, targets.layer)?;
        }
        Ok(swept)
    }

    /// From the stream that enters `layer` to the embeddings.
    pub(super) fn down(&self, mut swept: Swept, layer: usize) -> Result<Swept> {
        for below in (0..layer).rev() {
            let from_skip = self.at_outputs(&swept, below)?;
            if self.pass.frozen.parallel {
                self.through_attention(&mut swept, below)?;
                swept.gradient = from_skip.into_iter().fold(swept.gradient, |sum, skip| sum + skip);
            } else {
                swept.gradient = from_skip.into_iter().fold(swept.gradient, |sum, skip| sum + skip);
                self.through_attention(&mut swept, below)?;
            }
        }
        self.at_embeddings(&swept)?;
        Ok(swept)
    }

    /// Multiplies with what is written to a layer, and gives what the layer's skip pulls down to what its MLP reads.
    fn at_outputs(&self, swept: &Swept, layer: usize) -> Result<Option<Tensor>> {
        let adjoint = &self.pass.frozen.adjoint;
        let all = swept.positions()?;
        let passage = Passage::MlpOutput { layer, hook: self.pass.hooks.1 };
        let gradient = adjoint.pull(passage, &swept.gradient, &all)?;
        let positions = swept.most_positions() as usize;
        self.sources.each_block(layer, positions, |block| {
            for position in block.positions.start..block.positions.end.min(positions) {
                let here = swept.at(&gradient, position as i64)?;
                if let Some((vectors, column)) = block.at(position)? {
                    let mut place = swept.rows.f_narrow(0, 0, here.size()[0])?.f_narrow(1, column, vectors.size()[0])?;
                    let _ = place.f_addmm_(&here, &vectors.f_tr()?)?;
                }
                self.put_rest(swept, &here, layer, position as i64)?;
            }
            Ok(())
        })?;
        if let Some(closing) = self.closing.as_ref().filter(|_| self.pass.hooks.1 != circuitlab_core::BlockHook::MlpOut) {
            for position in 0..positions as i64 {
                let column = self.columns.decoder_biases.start + (layer * self.pass.positions) as i64 + position;
                swept.put(&swept.at(&swept.gradient, position)?, &closing.after[layer].f_get(position)?, column)?;
            }
        }
        let Some(skip) = &self.pass.layers[layer].dictionary.skip else { return Ok(None) };
        let read = gradient.f_matmul(&skip.f_to_kind(self.pass.place.0)?)?;
        Ok(Some(adjoint.pull(Passage::MlpInput { layer, hook: self.pass.hooks.0 }, &read, &all)?))
    }

    /// The columns of a layer's error and biases at a position.
    fn put_rest(&self, swept: &Swept, here: &Tensor, layer: usize, position: i64) -> Result<()> {
        let at = (layer * self.pass.positions) as i64 + position;
        swept.put(here, &self.pass.layers[layer].errors.f_get(position)?, self.columns.errors.start + at)?;
        if let Some(closing) = &self.closing {
            swept.put(here, &closing.decoder[layer].f_get(position)?, self.columns.decoder_biases.start + at)?;
            if let Some(place) = self.pass.special.iter().position(|special| i64::from(*special) == position) {
                let column = self.columns.special_outputs.start + (layer * self.pass.special.len() + place) as i64;
                swept.put(here, &closing.special[layer].f_get(place as i64)?, column)?;
            }
        }
        Ok(())
    }

    /// From what a block's attention adds to the stream that enters the block, beside which it goes on.
    fn through_attention(&self, swept: &mut Swept, layer: usize) -> Result<()> {
        if let Some(closing) = &self.closing {
            for position in 0..swept.most_positions() {
                let column = self.columns.attention_biases.start + (layer * self.pass.positions) as i64 + position;
                swept.put(&swept.at(&swept.gradient, position)?, &closing.attention[layer].f_get(position)?, column)?;
            }
        }
        let through = self.pass.frozen.adjoint.attention(layer, &swept.gradient, &swept.spans)?;
        let _ = swept.gradient.f_add_(&through)?;
        Ok(())
    }

    fn at_embeddings(&self, swept: &Swept) -> Result<()> {
        let learned = self.closing.as_ref().and_then(|closing| closing.positions.as_ref());
        for position in 0..swept.most_positions() {
            let here = swept.at(&swept.gradient, position)?;
            swept.put(&here, &self.pass.tokens.f_get(position)?, self.columns.tokens.start + position)?;
            if let Some(learned) = learned {
                swept.put(&here, &learned.f_get(position)?, self.columns.positions.start + position)?;
            }
        }
        Ok(())
    }
}

/// Spans of targets at single positions, with all positions up to theirs.
fn spans(positions: &[i64]) -> Vec<Span> {
    positions.chunk_by(|a, b| a == b).map(|run| Span { targets: run.len() as i64, positions: run[0] + 1 }).collect()
}

/// Gradients at single positions as spans, zero at earlier positions.
fn spread(gradient: &Tensor, positions: &[i64]) -> Result<Tensor> {
    let mut end = -1;
    let last: Vec<i64> = positions
        .iter()
        .map(|position| {
            end += position + 1;
            end
        })
        .collect();
    let rows = Tensor::f_zeros([end + 1, gradient.size()[1]], (gradient.kind(), gradient.device()))?;
    Ok(rows.f_index_copy(0, &Tensor::from_slice(&last).f_to_device(gradient.device())?, gradient)?)
}
