//! The forward pass.

use circuitlab_core::{BlockHook, Error, FrozenPass, HookPoint, HookVisitor, LanguageModel, ModelInfo, Past, Result, shape};
use tch::{Device, Kind, Tensor};

use super::attention::{Surroundings, capped};
use super::block::Block;
use super::frozen::freeze;
use super::mask::Masks;
use super::norm::{Norm, NormHooks};
use super::rotary::{Angles, Rotary};
use super::walk::{Halt, Walk};
use super::weights::Linear;

/// A transformer with its weights.
#[derive(Debug)]
pub struct Transformer {
    pub(super) info: ModelInfo,
    /// The description, as JSON.
    pub(super) description: String,
    pub(super) placement: (Device, Kind),
    /// Whether the weights were left in their files.
    pub(super) without_weights: bool,
    /// What embeddings are multiplied by.
    pub(super) embedding_scale: Option<f64>,
    /// Soft cap of logits.
    pub(super) logits_cap: Option<f64>,
    pub(super) embedding: Tensor,
    pub(super) positions: Option<Tensor>,
    /// The rotary embeddings among which each block has its own.
    pub(super) rotaries: Vec<Rotary>,
    pub(super) blocks: Vec<Block>,
    pub(super) final_norm: Norm,
    pub(super) unembedding: Linear,
}

impl LanguageModel for Transformer {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn placement(&self) -> (Device, Kind) {
        self.placement
    }

    fn hook_points(&self) -> Vec<HookPoint> {
        let of_block = |(layer, block): (usize, &Block)| {
            BlockHook::ALL.into_iter().filter(|hook| block.has(*hook)).map(|hook| HookPoint::block(layer, hook)).collect::<Vec<_>>()
        };
        let blocks = self.blocks.iter().enumerate().flat_map(of_block);
        [HookPoint::Embed].into_iter().chain(blocks).chain([HookPoint::FinalScale, HookPoint::Logits]).collect()
    }

    fn forward(&self, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> Result<Option<Tensor>> {
        self.check(tokens, 0)?;
        let tokens = tokens.f_to_device(self.placement.0)?;
        let mut walk = Walk::new(visitor);
        match self.run(&tokens, 0, &mut walk, &mut []).and_then(|x| self.unembed(&x, &mut walk)) {
            Ok(logits) => Ok(Some(logits)),
            Err(Halt::Stopped) => Ok(None),
            Err(Halt::Failed(error)) => Err(error),
        }
    }

    fn extend(&self, tokens: &Tensor, past: &mut Past, visitor: &mut dyn HookVisitor) -> Result<Option<Tensor>> {
        let before = past.positions();
        self.check(tokens, before)?;
        past.push(tokens)?;
        let tokens = tokens.f_to_device(self.placement.0)?;
        past.layers.resize_with(self.blocks.len(), || (Tensor::new(), Tensor::new()));
        let mut walk = Walk::new(visitor);
        let stream = self.run(&tokens, before, &mut walk, &mut past.layers);
        // Only the last position is asked for, and the unembedding is the dearest product of all.
        let last = stream.and_then(|x| self.unembed(&x.narrow(1, tokens.size()[1] - 1, 1), &mut walk));
        match last {
            Ok(logits) => Ok(Some(logits.f_squeeze_dim(1)?)),
            Err(Halt::Stopped) => Ok(None),
            Err(Halt::Failed(error)) => Err(error),
        }
    }

    fn freeze<'a>(&'a self, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> Result<Option<FrozenPass<'a>>> {
        freeze(self, tokens, visitor).map(Some)
    }

    fn description(&self) -> String {
        self.description.clone()
    }
}

impl Transformer {
    /// All blocks, for tokens whose first one has the position `first`.
    ///
    /// # Shapes
    /// `tokens: [batch, position]`; gives the residual stream, `[batch, position, d_model]`. `past` has an entry for each layer, or none.
    fn run(&self, tokens: &Tensor, first: i64, walk: &mut Walk<'_>, past: &mut [(Tensor, Tensor)]) -> Result<Tensor, Halt> {
        let count = tokens.size()[1];
        let embedded = Tensor::embedding(&self.embedding, tokens, -1, false, false);
        let embedded = match self.embedding_scale {
            // Rounded to the type of the embedding first, as the families that scale do.
            Some(scale) => embedded * Tensor::from(scale).to_kind(self.placement.1),
            None => embedded,
        };
        let mut x = walk.show(HookPoint::Embed, embedded)?;
        if let Some(positions) = &self.positions {
            // Not `+=`, which would write into the value that a visitor may have kept.
            x = positions.narrow(0, first, count) + x;
        }
        let angles: Vec<Angles> = self.rotaries.iter().map(|rotary| rotary.angles(first, count)).collect();
        let mut masks = Masks::new(count, first + count, self.placement.0);
        for (layer, block) in self.blocks.iter().enumerate() {
            let angles = block.rotary.and_then(|rotary| angles.get(rotary));
            let mut around = Surroundings { angles, masks: &mut masks, past: past.get_mut(layer) };
            x = block.apply(x, &mut around, &mut walk.block(layer))?;
        }
        Ok(x)
    }

    /// Logits of a residual stream.
    fn unembed(&self, x: &Tensor, walk: &mut Walk<'_>) -> Result<Tensor, Halt> {
        let hooks = NormHooks { scale: HookPoint::FinalScale, normalized: None };
        let logits = self.unembedding.apply(&self.final_norm.apply(x, hooks, walk)?);
        let logits = self.logits_cap.map_or(logits.shallow_clone(), |cap| capped(&logits, cap));
        walk.show(HookPoint::Logits, logits)
    }

    /// Checks what libtorch would only notice, or not notice, deep inside.
    fn check(&self, tokens: &Tensor, before: i64) -> Result<()> {
        if self.without_weights {
            return Err(Error::Invalid(format!(
                "model `{}` was opened without its weights, to be looked at and not to be run",
                self.info.name
            )));
        }
        shape::expect("forward, tokens", tokens, &[("batch", -1), ("position", -1)])?;
        if tokens.kind() != Kind::Int64 {
            return Err(Error::Invalid(format!("forward, tokens: expected int64, got {:?}", tokens.kind())));
        }
        if tokens.numel() == 0 {
            return Err(Error::Invalid(format!("forward, tokens: expected one token or more, got shape {:?}", tokens.size())));
        }
        let positions = before + tokens.size()[1];
        if positions > self.info.context as i64 {
            return Err(Error::Invalid(format!(
                "forward: {positions} positions do not fit the context of model `{}`, {} tokens",
                self.info.name, self.info.context
            )));
        }
        let (least, most) = (tokens.f_min()?.f_int64_value(&[])?, tokens.f_max()?.f_int64_value(&[])?);
        match [least, most].into_iter().find(|token| !(0..self.info.vocabulary as i64).contains(token)) {
            None => Ok(()),
            Some(token) => Err(Error::Invalid(format!(
                "forward: token {token} is outside of the vocabulary of model `{}`, 0 to {}",
                self.info.name,
                self.info.vocabulary - 1
            ))),
        }
    }
}
