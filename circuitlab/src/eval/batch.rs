//! Contexts in batches, with what counts in them.

use std::collections::HashSet;

use tch::{Device, Kind, Tensor};

use crate::text::{PackedText, Tokenizer};
use crate::{Error, Result};

/// Text to evaluate on: token contexts, each at most as long as the model's.
#[derive(Debug, Clone, Default)]
pub struct EvalText {
    /// Tokens of each context, its BOS first where the model has one.
    pub contexts: Vec<Vec<u32>>,
    /// Tokens whose rows a transcoder is not trained on.
    pub special: HashSet<u32>,
    /// Contexts in a batch.
    pub batch_contexts: usize,
}

/// Some contexts, padded on the right. What a causal model computes at a position does not depend on what follows.
#[derive(Debug)]
pub(super) struct EvalBatch {
    /// `[batch, position]`, int64.
    pub(super) tokens: Tensor,
    /// Flat indices into `[batch * position]` of the rows that a transcoder is trained on.
    pub(super) rows: Tensor,
    /// Flat indices of the positions that predict a token.
    pub(super) predicting: Tensor,
    /// The tokens that they should predict.
    pub(super) expected: Tensor,
}

impl EvalText {
    /// The first contexts of a packed text, at most `max_contexts`.
    pub fn new(text: &PackedText, tokenizer: &Tokenizer, max_contexts: Option<usize>, batch_contexts: usize) -> Self {
        let contexts = text.iter().take(max_contexts.unwrap_or(usize::MAX)).map(|context| context.ids().collect()).collect();
        Self { contexts, special: tokenizer.special().collect(), batch_contexts }
    }

    /// The batches, in order.
    pub(super) fn batches(&self, device: Device) -> Result<Vec<EvalBatch>> {
        if self.contexts.iter().all(|context| context.len() < 2) {
            return Err(Error::Invalid("the text holds no token to predict; expected a context of at least 2 tokens".to_owned()));
        }
        Ok(self.contexts.chunks(self.batch_contexts.max(1)).map(|contexts| self.batch(contexts, device)).collect())
    }

    fn batch(&self, contexts: &[Vec<u32>], device: Device) -> EvalBatch {
        let width = contexts.iter().map(Vec::len).max().unwrap_or(0);
        let mut tokens = vec![0_i64; contexts.len() * width];
        let (mut rows, mut predicting, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for (index, context) in contexts.iter().enumerate() {
            for (position, token) in context.iter().enumerate() {
                let flat = index * width + position;
                tokens[flat] = i64::from(*token);
                if !self.special.contains(token) {
                    rows.push(flat as i64);
                }
                if let Some(next) = context.get(position + 1) {
                    predicting.push(flat as i64);
                    expected.push(i64::from(*next));
                }
            }
        }
        let put = |values: &[i64]| Tensor::from_slice(values).to_kind(Kind::Int64).to_device(device);
        EvalBatch {
            tokens: put(&tokens).view([contexts.len() as i64, width as i64]),
            rows: put(&rows),
            predicting: put(&predicting),
            expected: put(&expected),
        }
    }
}

/// `[batch, position, width]` to the chosen rows, `[rows, width]`.
pub(super) fn pick(values: &Tensor, rows: &Tensor) -> Tensor {
    values.flatten(0, 1).index_select(0, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_and_special_tokens_do_not_count() {
        let text = EvalText { contexts: vec![vec![0, 5, 6], vec![0, 7]], special: HashSet::from([0]), batch_contexts: 4 };
        let batches = text.batches(Device::Cpu).expect("tokens to predict");
        let list = |tensor: &Tensor| Vec::<i64>::try_from(tensor).expect("one axis");
        assert_eq!(batches.len(), 1);
        assert_eq!(list(&batches[0].tokens.view([-1])), [0, 5, 6, 0, 7, 0]);
        assert_eq!(list(&batches[0].rows), [1, 2, 4]);
        assert_eq!(list(&batches[0].predicting), [0, 1, 3]);
        assert_eq!(list(&batches[0].expected), [5, 6, 7]);
        let none = EvalText { contexts: vec![vec![0]], ..EvalText::default() };
        assert!(none.batches(Device::Cpu).is_err());
    }
}
