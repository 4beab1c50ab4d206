//! Runs the contexts of a chunk through the model and collects their rows.

use circuitlab_core::{BlockShape, HookPoint, LanguageModel};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::chunk::RowIndex;
use super::kept::check_kept;
use super::mask;
use super::plan::Plan;
use super::statistics::Statistics;
use crate::model::Capture;
use crate::text::Context;
use crate::{Error, Result};

/// The rows of a chunk, in their order.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) shape: BlockShape,
    /// Inputs and outputs of layer 0, of layer 1, ...: `[rows, d_model]` each.
    values: Vec<Vec<f32>>,
    pub(super) index: RowIndex,
    /// Rows that were left out because their norms stand out.
    pub(super) masked: u64,
    /// For messages.
    chunk: usize,
}

/// Some contexts on their way through the model together.
struct Lot<'a> {
    contexts: &'a [Context<'a>],
    positions: usize,
    /// The place of each kept row among `contexts * positions`.
    kept: Vec<i64>,
    /// Where each kept row goes in the chunk.
    places: &'a [usize],
}

/// Collects one chunk. What comes out depends on the plan, the model and the chunk's number only.
pub(super) fn collect(plan: &Plan, model: &dyn LanguageModel, chunk: usize) -> Result<Rows> {
    collect_contexts(plan, model, plan.chunk(chunk).collect(), chunk)
}

/// Collects some contexts as if they were a chunk.
pub(super) fn collect_contexts(plan: &Plan, model: &dyn LanguageModel, mut contexts: Vec<Context<'_>>, chunk: usize) -> Result<Rows> {
    let identity = plan.identity();
    // Contexts of like length side by side need the least padding. The sort is stable, so the order is fixed.
    contexts.sort_by_key(|context| std::cmp::Reverse(context.positions()));
    let rows = contexts.iter().map(|context| plan.kept(context).count()).sum();
    let order = plan.row_order(chunk, rows);
    let mut places = vec![0; rows];
    (0..rows).for_each(|place| places[order.at(place as u64) as usize] = place);

    let shape = BlockShape { rows, width: identity.d_model };
    let empty = vec![0; rows];
    let mut collected = Rows {
        shape,
        values: vec![vec![0.0; shape.values()?]; 2 * identity.layers],
        index: RowIndex { tokens: empty.clone(), documents: empty.clone(), positions: empty },
        masked: 0,
        chunk,
    };
    let mut done = 0;
    for contexts in contexts.chunks(identity.batch_contexts) {
        let positions = contexts.iter().map(Context::positions).max().unwrap_or(0);
        let kept: Vec<i64> = (0..contexts.len())
            .flat_map(|number| plan.kept(&contexts[number]).map(move |position| (number * positions + position) as i64))
            .collect();
        let lot = Lot { contexts, positions, places: &places[done..done + kept.len()], kept };
        done += lot.kept.len();
        if !lot.kept.is_empty() {
            collected.index(&lot);
            collected.forward(&lot, plan, model)?;
        }
    }
    if let Some(ratio) = identity.max_norm {
        collected.mask(ratio);
    }
    Ok(collected)
}

impl Rows {
    /// Leaves rows of outstanding norm out.
    fn mask(&mut self, ratio: f64) {
        let keep = mask::keep(&self.values, self.shape.width, ratio);
        let kept = keep.iter().filter(|keep| **keep).count();
        self.masked = (self.shape.rows - kept) as u64;
        self.shape.rows = kept;
        self.values.par_iter_mut().for_each(|values| mask::retain(values, self.shape.width, &keep));
        for list in [&mut self.index.tokens, &mut self.index.documents, &mut self.index.positions] {
            mask::retain(list, 1, &keep);
        }
    }

    /// The values of a layer's inputs (`2 * layer`) or outputs (`2 * layer + 1`) as bytes, and their statistics.
    ///
    /// # Errors
    /// Values that are not finite, and what the codec refuses; both name layer, hook and chunk.
    pub(super) fn encode(&self, plan: &Plan) -> Result<Vec<(Vec<u8>, Statistics)>> {
        let blocks = self.values.par_iter().enumerate().map(|(block, values)| {
            let point = self.point(plan, block);
            self.check(plan, block)?;
            let encoded = plan.codec().encode(values, self.shape);
            let encoded = encoded.map_err(|error| Error::Invalid(format!("chunk {}, `{point}`: {error}", self.chunk)))?;
            if block == 0 {
                let kept = check_kept(plan.codec(), values, &encoded, self.shape);
                kept.map_err(|error| Error::Invalid(format!("chunk {}, `{point}`: {error}", self.chunk)))?;
            }
            Ok((encoded, Statistics::of_rows(values, self.shape.width)))
        });
        blocks.collect()
    }

    /// The values of layer 0's inputs and outputs, of layer 1's, ...: `[rows * d_model]` each.
    ///
    /// # Errors
    /// Values that are not finite.
    pub(super) fn into_blocks(self, plan: &Plan) -> Result<Vec<Vec<f32>>> {
        (0..self.values.len()).try_for_each(|block| self.check(plan, block))?;
        Ok(self.values)
    }

    /// Names the first value of a block that is not finite.
    fn check(&self, plan: &Plan, block: usize) -> Result<()> {
        let values = &self.values[block];
        let Some(wrong) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
        let row = wrong / self.shape.width;
        let (document, position) = (self.index.documents[row], self.index.positions[row]);
        let point = self.point(plan, block);
        Err(Error::Invalid(format!(
            "chunk {}: the model gave {} at `{point}`, document {document}, position {position}, dimension {}",
            self.chunk,
            values[wrong],
            wrong % self.shape.width
        )))
    }

    fn point(&self, plan: &Plan, block: usize) -> HookPoint {
        let identity = plan.identity();
        debug_assert!(block < self.values.len(), "there is no block {block}");
        HookPoint::block(block / 2, if block.is_multiple_of(2) { identity.input_hook } else { identity.output_hook })
    }

    fn index(&mut self, lot: &Lot<'_>) {
        for (kept, place) in lot.kept.iter().zip(lot.places) {
            let context = lot.contexts[*kept as usize / lot.positions];
            let bos = usize::from(context.bos.is_some());
            let position = *kept as usize % lot.positions;
            let token = if position < bos { context.bos.unwrap_or(0) } else { context.tokens[position - bos] };
            let origin = context.origin(position.saturating_sub(bos));
            self.index.tokens[*place] = token;
            self.index.documents[*place] = origin.document;
            self.index.positions[*place] = origin.position;
        }
    }

    fn forward(&mut self, lot: &Lot<'_>, plan: &Plan, model: &dyn LanguageModel) -> Result<()> {
        // Attention is causal, so what stands to the right of a context's end cannot reach it.
        let mut ids = vec![0_i64; lot.contexts.len() * lot.positions];
        for (row, context) in ids.chunks_mut(lot.positions).zip(lot.contexts) {
            row.iter_mut().zip(context.ids()).for_each(|(place, id)| *place = i64::from(id));
        }
        let (device, _) = model.placement();
        let tokens = Tensor::from_slice(&ids).f_view([lot.contexts.len() as i64, lot.positions as i64])?.f_to_device(device)?;
        let kept = Tensor::from_slice(&lot.kept).f_to_device(device)?;
        let points: Vec<HookPoint> = (0..self.values.len()).map(|block| self.point(plan, block)).collect();
        let mut capture = Capture::new(points.iter().copied()).stopping();
        tch::no_grad(|| model.forward(&tokens, &mut capture))?;
        // One hook may serve as both input and output; it is captured once.
        let same = plan.identity().input_hook == plan.identity().output_hook;
        let mut last: Option<Vec<f32>> = None;
        for (block, point) in points.into_iter().enumerate() {
            let rows = match last.take() {
                Some(rows) if same && block % 2 == 1 => rows,
                _ => self.rows_of(&capture.take(point)?, point, &kept, lot)?,
            };
            let width = self.shape.width;
            for (row, place) in rows.chunks_exact(width).zip(lot.places) {
                self.values[block][place * width..(place + 1) * width].copy_from_slice(row);
            }
            last = Some(rows);
        }
        Ok(())
    }

    /// The kept rows of a captured value.
    fn rows_of(&self, value: &Tensor, point: HookPoint, kept: &Tensor, lot: &Lot<'_>) -> Result<Vec<f32>> {
        let width = self.shape.width as i64;
        let expected = [lot.contexts.len() as i64, lot.positions as i64, width];
        if value.size() != expected {
            return Err(Error::Invalid(format!("`{point}` has the shape {:?}; rows of a cache need {expected:?}", value.size())));
        }
        let rows =
            value.f_reshape([-1, width])?.f_index_select(0, kept)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let mut values = vec![0.0; lot.kept.len() * self.shape.width];
        rows.f_copy_data(&mut values, lot.kept.len() * self.shape.width)?;
        Ok(values)
    }
}
