//! QK attribution: why a head looks from one position to another.
//!
//! With norms held a query and a key are each a sum over the sources below: features, errors, tokens, biases. Their product, the score before the
//! softmax, is then a sum over pairs of them. A source's marginal is what it makes with all of the other side together.

use circuitlab_core::{BlockHook, HookPoint, Passage};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::attribute::Attribution;
use super::node_id;
use super::sweep::{Place, Sweep, Targets};
use crate::model::Capture;
use crate::{Error, Result};

/// Sources of a side whose pairs are looked through: those of the longest vectors, where there are more.
const MOST_SOURCES: i64 = 4096;

/// A head's look from a query position to a key position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Look {
    /// The layer.
    pub layer: usize,
    /// The query head.
    pub head: usize,
    /// The position that looks.
    pub query: usize,
    /// The position that is looked at.
    pub key: usize,
}

/// The score of a look, split over its sources.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LookParts {
    /// What was looked at.
    #[serde(flatten)]
    pub look: Look,
    /// The score before softmax, cap and gate, as the model computes it.
    pub score: f64,
    /// The sum of all pairs.
    pub sum_of_pairs: f64,
    /// Pairs of sources, of query and key side, that make most of it, up or down.
    pub pairs: Vec<(String, String, f64)>,
    /// Sources of the query side that make most of it.
    pub query_marginals: Vec<(String, f64)>,
    /// Sources of the key side that make most of it.
    pub key_marginals: Vec<(String, f64)>,
}

impl Attribution<'_> {
    /// Splits scores; no more than `top` pairs and marginals of each side are given.
    ///
    /// # Errors
    /// A layer, head or position that there is not, a key after its query, and what libtorch returns.
    pub fn looks(&self, looks: &[Look], top: usize) -> Result<Vec<LookParts>> {
        looks.iter().try_for_each(|look| self.check_look(*look))?;
        if looks.is_empty() {
            return Ok(Vec::new());
        }
        tch::no_grad(|| {
            let sweep = self.sweep(true)?;
            looks.iter().map(|look| self.look(&sweep, *look, top)).collect()
        })
    }

    fn check_look(&self, look: Look) -> Result<()> {
        let Look { layer, head, query, key } = look;
        let positions = self.prompt().tokens.len();
        if layer >= self.depth() || head >= self.heads {
            let (layers, heads) = (self.depth(), self.heads);
            return Err(Error::Invalid(format!("there is no head {head} in layer {layer}: there are {layers} layers of {heads} heads")));
        }
        if query >= positions || key > query {
            let message = format!(
                "a head cannot look from position {query} to {key}: the prompt has {positions}, and keys come no later than queries"
            );
            return Err(Error::Invalid(message));
        }
        Ok(())
    }

    fn look(&self, sweep: &Sweep<'_>, look: Look, top: usize) -> Result<LookParts> {
        let Look { layer, head, query, key } = look;
        let scale = self.score_scale(layer)?;
        let queries = self.side(sweep, layer, Passage::Query { layer, head }, query)?;
        let keys = self.side(sweep, layer, Passage::Key { layer, head }, key)?;
        let total = |side: &Tensor| side.f_sum_dim_intlist(1, true, Kind::Double);
        let query_marginals = (&queries * total(&keys)?).f_sum_dim_intlist(0, false, Kind::Double)? * scale;
        let key_marginals = (&keys * total(&queries)?).f_sum_dim_intlist(0, false, Kind::Double)? * scale;
        Ok(LookParts {
            look,
            score: self.score(look)?,
            sum_of_pairs: query_marginals.f_sum(Kind::Double)?.f_double_value(&[])?,
            pairs: self.pairs(&queries, &keys, scale, top)?,
            query_marginals: self.largest(&query_marginals, top)?,
            key_marginals: self.largest(&key_marginals, top)?,
        })
    }

    /// What each source adds to a query or key: `[d_head, columns]`, f64 on the CPU.
    fn side(&self, sweep: &Sweep<'_>, layer: usize, passage: Passage, position: usize) -> Result<Tensor> {
        let (kind, device) = self.place();
        let targets = Targets {
            layer,
            place: Place::Head(passage),
            gradient: Tensor::f_eye(self.d_head as i64, (kind, device))?,
            positions: vec![position as i64; self.d_head],
            biases: None,
        };
        Ok(sweep.rows(&targets)?.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?)
    }

    /// The score as the model computes it.
    fn score(&self, look: Look) -> Result<f64> {
        let Look { layer, head, query, key } = look;
        let [of_query, of_key] = [BlockHook::Query, BlockHook::Key].map(|hook| HookPoint::block(layer, hook));
        let mut capture = Capture::new([of_query, of_key]).stopping();
        let ids: Vec<i64> = self.prompt().tokens.iter().map(|id| i64::from(*id)).collect();
        self.model.forward(&Tensor::from_slice(&ids).f_unsqueeze(0)?, &mut capture)?;
        let queries = capture.take(of_query)?;
        let keys = capture.take(of_key)?;
        let group = queries.size()[2] / keys.size()[2];
        let row = |of: &Tensor, position: usize, head: i64| of.f_get(0)?.f_get(position as i64)?.f_get(head)?.f_to_kind(Kind::Double);
        let product = row(&queries, query, head as i64)?.f_dot(&row(&keys, key, head as i64 / group)?)?;
        Ok(product.f_double_value(&[])? * self.score_scale(layer)?)
    }

    fn pairs(&self, queries: &Tensor, keys: &Tensor, scale: f64, top: usize) -> Result<Vec<(String, String, f64)>> {
        let longest = |side: &Tensor| {
            let norms = side.f_norm_scalaropt_dim(2.0, [0], false)?;
            Ok::<_, tch::TchError>(norms.f_topk(MOST_SOURCES.min(norms.size()[0]), 0, true, true)?.1)
        };
        let (of_query, of_key) = (longest(queries)?, longest(keys)?);
        let products = queries.f_index_select(1, &of_query)?.f_tr()?.f_matmul(&keys.f_index_select(1, &of_key)?)? * scale;
        let wide = products.size()[1];
        let flat = products.f_flatten(0, 1)?;
        let places: Vec<i64> = Vec::try_from(flat.f_abs()?.f_topk((top as i64).min(flat.size()[0]), 0, true, true)?.1)?;
        let found = places.into_iter().map(|place| {
            let id = |side: &Tensor, at: i64| self.source_id(side.f_int64_value(&[at])? as usize);
            Ok((id(&of_query, place / wide)?, id(&of_key, place % wide)?, flat.f_double_value(&[place])?))
        });
        let found = found.collect::<Result<Vec<_>>>()?;
        Ok(found.into_iter().filter(|(_, _, part)| *part != 0.0).collect())
    }

    fn largest(&self, marginals: &Tensor, top: usize) -> Result<Vec<(String, f64)>> {
        let places: Vec<i64> = Vec::try_from(marginals.f_abs()?.f_topk((top as i64).min(marginals.size()[0]), 0, true, true)?.1)?;
        let found = places.into_iter().map(|place| Ok((self.source_id(place as usize)?, marginals.f_double_value(&[place])?)));
        let found = found.collect::<Result<Vec<_>>>()?;
        Ok(found.into_iter().filter(|(_, part)| *part != 0.0).collect())
    }

    /// The id of a column's node.
    fn source_id(&self, column: usize) -> Result<String> {
        let all = self.all_nodes();
        if column >= all.logits().start {
            return Err(Error::Invalid(format!("there is no source {column}")));
        }
        Ok(node_id(all, column))
    }
}
