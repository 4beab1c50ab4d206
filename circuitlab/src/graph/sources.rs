//! The vectors that active features write, in the order in which a sweep goes over them.

use std::ops::Range;

use tch::Tensor;

use super::nodes::ActiveFeature;
use super::pass::{Pass, Places};
use crate::Result;

/// Bytes of decoder rows that are gathered at a time where not all of them are kept.
const BLOCK_BYTES: usize = 64 << 20;

/// What active features write.
///
/// A sweep goes layer by layer and there position by position, and the features that write to a layer at a position must lie side by side, so
/// that all of them are one product: columns are in order of position, layer and feature.
#[derive(Debug)]
pub(super) struct Sources<'p> {
    pass: &'p Pass<'p>,
    /// The first column of a position and layer: `[position][layer]`, and the end of the position's last layer.
    starts: Vec<Vec<i64>>,
    /// The column of each active feature: `[active]`, int64.
    columns: Tensor,
    /// Vectors written to each layer, where they are kept.
    kept: Option<Vec<Block>>,
}

/// Vectors that features write to a layer at some positions.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) positions: Range<usize>,
    /// `[features, d_model]`, in order of position, layer and feature.
    vectors: Tensor,
    /// Of each position: where its vectors begin, how many they are, and the column of the first.
    places: Vec<(i64, i64, i64)>,
}

impl Block {
    /// The vectors at a position, `[features, d_model]`, and the column of the first; nothing where there are none.
    pub(super) fn at(&self, position: usize) -> Result<Option<(Tensor, i64)>> {
        let (start, count, column) = self.places[position - self.positions.start];
        if count == 0 {
            return Ok(None);
        }
        Ok(Some((self.vectors.f_narrow(0, start, count)?, column)))
    }
}

impl<'p> Sources<'p> {
    /// Orders the pass's features, and keeps what they write if that takes at most so many bytes.
    pub(super) fn new(pass: &'p Pass<'p>, keep_bytes: usize) -> Result<Self> {
        let depth = pass.depth();
        let mut counts = vec![vec![0_i64; depth]; pass.positions];
        for feature in &pass.active {
            counts[feature.position as usize][feature.layer as usize] += 1;
        }
        let mut next = 0;
        let mut starts: Vec<Vec<i64>> = Vec::with_capacity(pass.positions);
        for of_position in &counts {
            let mut of_layers = Vec::with_capacity(depth + 1);
            for count in of_position {
                of_layers.push(next);
                next += count;
            }
            of_layers.push(next);
            starts.push(of_layers);
        }
        let mut cursor = starts.clone();
        let column = |feature: &ActiveFeature| {
            // Active features are in order of layer, position and feature, so those of one place come in order.
            let next = &mut cursor[feature.position as usize][feature.layer as usize];
            *next += 1;
            *next - 1
        };
        let columns: Vec<i64> = pass.active.iter().map(column).collect();
        let columns = Tensor::from_slice(&columns).f_to_device(pass.place.1)?;
        let mut sources = Self { pass, starts, columns, kept: None };
        let width = pass.tokens.size()[1] as usize * pass.place.0.elt_size_in_bytes();
        let vectors: usize = pass.layers.iter().map(|layer| layer.active.len() * layer.targets.len()).sum();
        if vectors * width <= keep_bytes {
            let all = (0..depth).map(|target| sources.block(target, 0..pass.positions)).collect::<Result<_>>()?;
            sources.kept = Some(all);
        }
        Ok(sources)
    }

    /// How many there are.
    pub(super) fn count(&self) -> i64 {
        self.pass.active.len() as i64
    }

    /// Puts columns in the order of active features.
    ///
    /// # Shapes
    /// `rows: [targets, active]`, and the same back.
    pub(super) fn in_order(&self, rows: &Tensor) -> Result<Tensor> {
        Ok(rows.f_index_select(1, &self.columns)?)
    }

    /// Calls `each` with what is written to a layer at the first `positions` positions.
    pub(super) fn each_block(&self, target: usize, positions: usize, mut each: impl FnMut(&Block) -> Result<()>) -> Result<()> {
        if let Some(kept) = &self.kept {
            return each(&kept[target]);
        }
        let sources = self.pass.sources_of(target)?;
        let width = self.pass.tokens.size()[1] as usize * self.pass.place.0.elt_size_in_bytes();
        let most = (BLOCK_BYTES / width).max(1) as i64;
        let mut first = 0;
        while first < positions {
            let mut end = first;
            let mut vectors = 0;
            while end < positions && (end == first || vectors < most) {
                vectors += self.starts[end][sources.end] - self.starts[end][sources.start];
                end += 1;
            }
            each(&self.block(target, first..end)?)?;
            first = end;
        }
        Ok(())
    }

    /// What is written to a layer at some positions.
    fn block(&self, target: usize, positions: Range<usize>) -> Result<Block> {
        let sources = self.pass.sources_of(target)?;
        let mut parts = Vec::new();
        let mut order: Vec<(u32, u32, i64)> = Vec::new();
        for source in sources.clone() {
            let own = &self.pass.active[self.pass.layers[source].active.clone()];
            let below = |position: usize| own.partition_point(|feature| (feature.position as usize) < position);
            let own = &own[below(positions.start)..below(positions.end)];
            if own.is_empty() {
                continue;
            }
            order.extend(
                own.iter().map(|feature| (feature.position, feature.layer)).zip(order.len() as i64..).map(|((p, l), at)| (p, l, at)),
            );
            parts.push(self.pass.written(source, target, &Places::of(own, self.pass.place)?)?);
        }
        // Within a position and layer features are in order already.
        order.sort_by_key(|(position, layer, at)| (*position, *layer, *at));
        let order: Vec<i64> = order.into_iter().map(|(_, _, at)| at).collect();
        let vectors = if parts.is_empty() {
            Tensor::f_zeros([0, self.pass.tokens.size()[1]], self.pass.place)?
        } else {
            Tensor::f_cat(&parts, 0)?.f_index_select(0, &Tensor::from_slice(&order).f_to_device(self.pass.place.1)?)?
        };
        let mut places = Vec::with_capacity(positions.len());
        let mut start = 0;
        for position in positions.clone() {
            let [column, end] = [sources.start, sources.end].map(|layer| self.starts[position][layer]);
            places.push((start, end - column, column));
            start += end - column;
        }
        Ok(Block { positions, vectors, places })
    }
}
