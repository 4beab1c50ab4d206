//! Prompts as tokens.

use circuitlab_core::ModelInfo;

use crate::text::Tokenizer;
use crate::{Error, Result};

/// A prompt that a model can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Its tokens, the BOS among them.
    pub tokens: Vec<u32>,
    /// How many positions at its beginning have no features: the first one, and those of the special tokens that it begins with.
    pub special: usize,
}

impl Prompt {
    /// Of a text, whose tokens come after the model's BOS, where it has one and it is wanted.
    ///
    /// # Errors
    /// A text that the tokenizer refuses or that makes no tokens, and a prompt that is longer than the model's context.
    pub fn of_text(text: &str, bos: bool, tokenizer: &Tokenizer, info: &ModelInfo) -> Result<Self> {
        let tokens = tokenizer.encode(text)?;
        if tokens.is_empty() {
            return Err(Error::Invalid("the prompt is empty; expected some text".to_owned()));
        }
        let tokens = info.bos.filter(|_| bos).into_iter().chain(tokens).collect();
        Self::of_tokens(tokens, Some(tokenizer), info)
    }

    /// Of tokens, taken as they are. Which of them are special is the tokenizer's to say, and without one the model's.
    ///
    /// # Errors
    /// No tokens, tokens that the model does not know, and more than its context takes.
    pub fn of_tokens(tokens: Vec<u32>, tokenizer: Option<&Tokenizer>, info: &ModelInfo) -> Result<Self> {
        if tokens.is_empty() {
            return Err(Error::Invalid("the prompt is empty; expected at least one token".to_owned()));
        }
        if let Some(token) = tokens.iter().find(|token| **token as usize >= info.vocabulary) {
            let last = info.vocabulary - 1;
            return Err(Error::Invalid(format!("token {token} is outside of the vocabulary of model `{}`, 0 to {last}", info.name)));
        }
        if tokens.len() > info.context {
            let (length, context) = (tokens.len(), info.context);
            return Err(Error::Invalid(format!("the prompt has {length} tokens, and the model `{}` reads {context} at most", info.name)));
        }
        let is_special = |token: &&u32| match tokenizer {
            Some(tokenizer) => tokenizer.is_special(**token),
            None => info.bos == Some(**token) || info.eos == Some(**token),
        };
        let special = tokens.iter().take_while(is_special).count().max(1);
        Ok(Self { tokens, special })
    }
}
