//! What a graph explains: logits, differences of logits, and directions.

use circuitlab_core::LanguageModel;
use tch::{Device, Kind, Tensor};

use super::nodes::LogitNode;
use super::pass::Pass;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// What to explain.
#[derive(Debug)]
pub enum TargetChoice {
    /// The likeliest tokens that just reach a share of the probability together.
    Likeliest {
        /// No more than so many.
        most: usize,
        /// The share, above 0 and at most 1.
        share: f64,
    },
    /// What the user names.
    Named(Vec<NamedTarget>),
}

/// A target of the user's.
#[derive(Debug)]
pub enum NamedTarget {
    /// A token by its id.
    Token(u32),
    /// A token by its text, which must be one token.
    Text(String),
    /// The logit of the first less that of the second.
    Difference(Box<NamedTarget>, Box<NamedTarget>),
    /// A direction in what the unembedding reads.
    Direction {
        /// Its name.
        label: String,
        /// How much it counts beside other targets.
        weight: f64,
        /// `[d_model]`.
        vector: Tensor,
    },
}

/// Targets as the sweep takes them.
#[derive(Debug)]
pub(super) struct Explained {
    pub(super) nodes: Vec<LogitNode>,
    /// Directions in what the unembedding reads: `[targets, d_model]`.
    pub(super) vectors: Tensor,
}

impl TargetChoice {
    /// Finds the targets of a prompt's last position. The directions of tokens are their rows of the unembedding less the mean row.
    ///
    /// # Errors
    /// Shares and numbers out of range, tokens that the model does not know, texts that are not one token, the same target twice, and
    /// directions of another width or with entries that are no numbers.
    pub(super) fn find(&self, pass: &Pass<'_>, model: &dyn LanguageModel, tokenizer: Option<&Tokenizer>) -> Result<Explained> {
        let last = pass.frozen.logits.f_get(pass.positions as i64 - 1)?;
        let chances = last.f_softmax(-1, Kind::Double)?.f_to_device(Device::Cpu)?;
        let mean_row = pass.frozen.unembedding.f_mean_dim(0, false, None::<Kind>)?;
        let finder = Finder { pass, chances, mean_row, vocabulary: model.info().vocabulary, tokenizer, name: &model.info().name };
        let found = match self {
            Self::Likeliest { most, share } => finder.likeliest(*most, *share)?,
            Self::Named(named) if named.is_empty() => return Err(Error::Invalid("there is no target to attribute to".to_owned())),
            Self::Named(named) => named.iter().enumerate().map(|(place, target)| finder.named(target, place)).collect::<Result<_>>()?,
        };
        let (nodes, vectors): (Vec<LogitNode>, Vec<Tensor>) = found.into_iter().unzip();
        let mut seen = std::collections::HashSet::new();
        if let Some(node) = nodes.iter().find(|node| !seen.insert(node.id)) {
            return Err(Error::Invalid(format!("the target `{}` is there twice", node.label)));
        }
        Ok(Explained { nodes, vectors: Tensor::f_stack(&vectors, 0)? })
    }
}

struct Finder<'a> {
    pass: &'a Pass<'a>,
    /// `[vocabulary]`.
    chances: Tensor,
    /// Of the unembedding: `[d_model]`.
    mean_row: Tensor,
    vocabulary: usize,
    tokenizer: Option<&'a Tokenizer>,
    name: &'a str,
}

impl Finder<'_> {
    fn likeliest(&self, most: usize, share: f64) -> Result<Vec<(LogitNode, Tensor)>> {
        if most == 0 {
            return Err(Error::Invalid("the number of logits is 0; expected at least 1".to_owned()));
        }
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::Invalid(format!("the share of the probability is {share}; expected more than 0 and at most 1")));
        }
        let (chances, ids) = self.chances.f_topk(most.min(self.vocabulary) as i64, 0, true, true)?;
        let (chances, ids): (Vec<f64>, Vec<i64>) = (Vec::try_from(chances)?, Vec::try_from(ids)?);
        let mut reached = 0.0;
        let below = |chance: &&f64| {
            reached += **chance;
            reached < share
        };
        let count = (chances.iter().take_while(below).count() + 1).min(ids.len());
        ids[..count].iter().map(|id| self.token(*id as u32)).collect()
    }

    fn named(&self, target: &NamedTarget, place: usize) -> Result<(LogitNode, Tensor)> {
        match target {
            NamedTarget::Token(id) => self.token(*id),
            NamedTarget::Text(text) => self.token(self.id_of(text)?),
            NamedTarget::Difference(first, second) => {
                let (first, second) = (self.named(first, place)?, self.named(second, place)?);
                if first.0.id == second.0.id {
                    return Err(Error::Invalid(format!("the difference of `{}` and itself is nothing to explain", first.0.label)));
                }
                let label = format!("logit({})-logit({})", first.0.label, second.0.label);
                Ok((LogitNode { label, id: self.vocabulary + place, probability: 1.0 }, first.1 - second.1))
            }
            NamedTarget::Direction { label, weight, vector } => {
                let width = self.pass.tokens.size()[1];
                if vector.size() != [width] {
                    return Err(Error::Invalid(format!(
                        "the direction `{label}` has shape {:?}; expected [{width}], d_model",
                        vector.size()
                    )));
                }
                let vector = vector.f_to_device(self.pass.place.1)?.f_to_kind(self.pass.place.0)?;
                let finite = vector.f_sum(Kind::Double)?.f_double_value(&[])?.is_finite() && weight.is_finite();
                if !finite || *weight < 0.0 {
                    return Err(Error::Invalid(format!("the direction `{label}` or its weight is no number, or the weight is below 0")));
                }
                if vector.f_count_nonzero(None)?.f_int64_value(&[])? == 0 {
                    return Err(Error::Invalid(format!("the direction `{label}` is zero: there is nothing to explain")));
                }
                Ok((LogitNode { label: label.clone(), id: self.vocabulary + place, probability: *weight }, vector))
            }
        }
    }

    fn id_of(&self, text: &str) -> Result<u32> {
        let tokenizer = self.tokenizer.ok_or_else(|| {
            Error::Invalid(format!("the target `{text}` is a text, and there is no tokenizer to read it with; name its token id"))
        })?;
        match tokenizer.encode(text)?[..] {
            [id] => Ok(id),
            ref ids => {
                let parts: Vec<String> =
                    ids.iter().map(|id| tokenizer.decode(&[*id]).map(|part| format!("`{part}`"))).collect::<Result<_>>()?;
                Err(Error::Invalid(format!(
                    "the target `{text}` is {} tokens ({}); expected one, such as a word with the blank before it",
                    ids.len(),
                    parts.join(", ")
                )))
            }
        }
    }

    fn token(&self, id: u32) -> Result<(LogitNode, Tensor)> {
        if id as usize >= self.vocabulary {
            let (name, last) = (self.name, self.vocabulary - 1);
            return Err(Error::Invalid(format!("the target token {id} is unknown to the model `{name}`; it knows 0 to {last}")));
        }
        let label = self.tokenizer.map_or_else(|| Ok(format!("<{id}>")), |tokenizer| tokenizer.decode(&[id]))?;
        let probability = self.chances.f_double_value(&[i64::from(id)])?;
        Ok((LogitNode { label, id: id as usize, probability }, self.pass.frozen.unembedding.f_get(i64::from(id))? - &self.mean_row))
    }
}
