//! The forward pass.

use circuitlab_core::{BlockHook, Error, HookPoint, HookVisitor, LanguageModel, ModelInfo, Result, shape};
use tch::{Device, Kind, Tensor};

use super::block::Block;
use super::norm::{Norm, NormHooks};
use super::rotary::Rotary;
use super::walk::{Halt, Walk};
use super::weights::Linear;

/// A transformer with its weights.
#[derive(Debug)]
pub struct Transformer {
    pub(super) info: ModelInfo,
    pub(super) embedding: Tensor,
    pub(super) positions: Option<Tensor>,
    pub(super) rotary: Option<Rotary>,
    pub(super) blocks: Vec<Block>,
    pub(super) final_norm: Norm,
    pub(super) unembedding: Linear,
}

impl LanguageModel for Transformer {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn placement(&self) -> (Device, Kind) {
        (self.embedding.device(), self.embedding.kind())
    }

    fn hook_points(&self) -> Vec<HookPoint> {
        let blocks = (0..self.blocks.len()).flat_map(|layer| BlockHook::ALL.map(|hook| HookPoint::block(layer, hook)));
        [HookPoint::Embed].into_iter().chain(blocks).chain([HookPoint::FinalScale, HookPoint::Logits]).collect()
    }

    fn forward(&self, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> Result<Option<Tensor>> {
        self.check(tokens)?;
        let tokens = tokens.f_to_device(self.embedding.device())?;
        match self.run(&tokens, &mut Walk::new(visitor)) {
            Ok(logits) => Ok(Some(logits)),
            Err(Halt::Stopped) => Ok(None),
            Err(Halt::Failed(error)) => Err(error),
        }
    }
}

impl Transformer {
    fn run(&self, tokens: &Tensor, walk: &mut Walk<'_>) -> Result<Tensor, Halt> {
        let count = tokens.size()[1];
        let mut x = walk.show(HookPoint::Embed, Tensor::embedding(&self.embedding, tokens, -1, false, false))?;
        if let Some(positions) = &self.positions {
            // Not `+=`, which would write into the value that a visitor may have kept.
            x = positions.narrow(0, 0, count) + x;
        }
        let angles = self.rotary.as_ref().map(|rotary| rotary.angles(count));
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.apply(x, angles.as_ref(), &mut walk.block(layer))?;
        }
        let hooks = NormHooks { scale: HookPoint::FinalScale, normalized: None };
        let normed = self.final_norm.apply(&x, hooks, walk)?;
        walk.show(HookPoint::Logits, self.unembedding.apply(&normed))
    }

    /// Checks what libtorch would only notice, or not notice, deep inside.
    fn check(&self, tokens: &Tensor) -> Result<()> {
        shape::expect("forward, tokens", tokens, &[("batch", -1), ("position", -1)])?;
        if tokens.kind() != Kind::Int64 {
            return Err(Error::Invalid(format!("forward, tokens: expected int64, got {:?}", tokens.kind())));
        }
        if tokens.numel() == 0 {
            return Err(Error::Invalid(format!("forward, tokens: expected one token or more, got shape {:?}", tokens.size())));
        }
        let positions = tokens.size()[1];
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
