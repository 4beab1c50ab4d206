//! What is attributed: tokens, their texts, and which of them are special.

use circuitlab_core::ModelInfo;

use crate::text::Tokenizer;
use crate::{Error, Result};

/// How an instruction-tuned Gemma 3 begins each prompt. Its residual stream is far out of proportion on all four of them.
const GEMMA_3_TURN: [u32; 4] = [2, 105, 2364, 107];

/// A prompt in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The tokens, that of the beginning included.
    pub tokens: Vec<u32>,
    /// Each token's text alone.
    pub texts: Vec<String>,
    /// The text of all of them.
    pub text: String,
    /// Positions whose features and errors are taken for zero: the first one and the special tokens that follow it. Models put
    /// there what belongs nowhere, and transcoders are not trained on it.
    pub special: Vec<u32>,
}

impl Prompt {
    /// A text, with the model's BOS in front unless the text begins with a special token or `bos` is false.
    ///
    /// # Errors
    /// A text that is empty or that the tokenizer cannot encode.
    pub fn of_text(text: &str, bos: bool, tokenizer: &Tokenizer, model: &ModelInfo) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::Invalid("the prompt is empty".to_owned()));
        }
        let encoded = tokenizer.encode(text)?;
        let begun = encoded.first().is_some_and(|id| tokenizer.is_special(*id));
        let first = model.bos.filter(|_| bos && !begun);
        Self::of_tokens(first.into_iter().chain(encoded).collect(), Some(tokenizer), model)
    }

    /// Tokens as they are. Without a tokenizer their texts are their numbers.
    ///
    /// # Errors
    /// No token at all.
    pub fn of_tokens(tokens: Vec<u32>, tokenizer: Option<&Tokenizer>, model: &ModelInfo) -> Result<Self> {
        if tokens.is_empty() {
            return Err(Error::Invalid("the prompt has no tokens".to_owned()));
        }
        let text_of = |ids: &[u32]| match tokenizer {
            Some(tokenizer) => tokenizer.decode(ids),
            None => Ok(ids.iter().fold(String::new(), |text, id| text + &format!("<{id}>"))),
        };
        let texts = tokens.iter().map(|id| text_of(&[*id])).collect::<Result<Vec<_>>>()?;
        let text = text_of(&tokens)?;
        let is_special = |id: &u32| model.bos == Some(*id) || tokenizer.is_some_and(|tokenizer| tokenizer.is_special(*id));
        let leading = if model.family == "gemma3_text" && tokens.starts_with(&GEMMA_3_TURN) {
            GEMMA_3_TURN.len()
        } else {
            1 + tokens.iter().skip(1).take_while(|id| is_special(id)).count()
        };
        Ok(Self { special: (0..leading as u32).collect(), tokens, texts, text })
    }

    /// Checks that a model can read it.
    ///
    /// # Errors
    /// More tokens than the context, tokens that the model does not know, and nothing but special tokens.
    pub fn check(&self, model: &ModelInfo) -> Result<()> {
        let (count, name) = (self.tokens.len(), &model.name);
        if count > model.context {
            return Err(Error::Invalid(format!("the prompt has {count} tokens, and the model `{name}` reads {}", model.context)));
        }
        if let Some(id) = self.tokens.iter().find(|id| **id as usize >= model.vocabulary) {
            return Err(Error::Invalid(format!("token {id} is unknown to the model `{name}`; it knows 0 to {}", model.vocabulary - 1)));
        }
        if self.special.len() >= count {
            let message = "the prompt has nothing but special tokens and its first one, whose features are left out; expected a longer one";
            return Err(Error::Invalid(message.to_owned()));
        }
        Ok(())
    }
}

/// The prompts of a text, one in each line; empty lines are left out.
///
/// # Errors
/// A text without any, and a line that the tokenizer or the model cannot take, by its number.
pub fn prompts(text: &str, bos: bool, tokenizer: &Tokenizer, model: &ModelInfo) -> Result<Vec<Prompt>> {
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let prompts = lines.map(|(line, number)| {
        let prompt = Prompt::of_text(line, bos, tokenizer, model).and_then(|prompt| prompt.check(model).map(|()| prompt));
        prompt.map_err(|error| Error::Invalid(format!("line {number}: {error}")))
    });
    let prompts = prompts.collect::<Result<Vec<_>>>()?;
    if prompts.is_empty() {
        return Err(Error::Invalid("it holds no prompt; expected one in each line".to_owned()));
    }
    Ok(prompts)
}
