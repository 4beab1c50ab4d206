//! How documents become contexts: the user's options, and what they mean for a model.

use std::fmt;
use std::str::FromStr;

use circuitlab_core::ModelInfo;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::deal::Deal;
use super::range::TextRange;
use crate::{Error, Result};

/// Whether contexts begin with the model's BOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BosPolicy {
    /// Where the model has one.
    #[default]
    Auto,
    /// Yes; a model without BOS is refused.
    Always,
    /// No.
    Never,
}

/// How documents are cut into contexts.
#[derive(Debug, Clone, PartialEq)]
pub struct PackOptions {
    /// Positions of a context, BOS included.
    pub context: usize,
    /// Contexts with fewer tokens, BOS excluded, are left out: only the last of a document can be so short.
    pub min_tokens: usize,
    /// The part of each file.
    pub range: TextRange,
    /// Whether contexts begin with BOS.
    pub bos: BosPolicy,
    /// Whether each document ends with the model's EOS.
    pub eos: bool,
    /// Whether documents are joined, so that contexts are full; else none crosses from one document into the next.
    pub cross_documents: bool,
    /// Shares of the paths in the tokens of the result; none: everything is taken.
    pub weights: Option<Vec<f64>>,
    /// Which documents.
    pub deal: Deal,
}

impl PackOptions {
    /// Contexts of so many positions, of all text, and the defaults.
    pub fn new(context: usize) -> Self {
        Self {
            context,
            min_tokens: 1,
            range: TextRange::ALL,
            bos: BosPolicy::Auto,
            eos: false,
            cross_documents: false,
            weights: None,
            deal: Deal::WHOLE,
        }
    }

    /// Checks them against a model.
    ///
    /// # Errors
    /// A context that is longer than the model's or holds no token, a least number of tokens that no context reaches, and special
    /// tokens that the model lacks.
    pub fn check(&self, model: &ModelInfo) -> Result<()> {
        self.layout(model).map(drop)
    }

    pub(super) fn layout(&self, model: &ModelInfo) -> Result<Layout> {
        let invalid = |message| Err(Error::Invalid(message));
        let bos = match self.bos {
            BosPolicy::Always if model.bos.is_none() => {
                return invalid(format!("`bos` is true and the model `{}` has no BOS; expected `auto` or false", model.name));
            }
            BosPolicy::Auto | BosPolicy::Always => model.bos,
            BosPolicy::Never => None,
        };
        if self.eos && model.eos.is_none() {
            return invalid(format!("`eos` is true and the model `{}` has no EOS; expected false", model.name));
        }
        let separator = model.eos.or(model.bos);
        if self.cross_documents && separator.is_none() {
            let message = "`cross_documents` is true and the model `{}` has neither EOS nor BOS to stand between documents; expected false";
            return invalid(message.replace("{}", &model.name));
        }
        let least = 1 + usize::from(bos.is_some());
        if self.context < least || self.context > model.context {
            let longest = model.context;
            return invalid(format!("`context` is {}; the model `{}` takes {least} to {longest}", self.context, model.name));
        }
        let room = self.context + 1 - least;
        if self.min_tokens == 0 || self.min_tokens > room {
            return invalid(format!("`min_tokens` is {}; with a context of {} expected 1 to {room}", self.min_tokens, self.context));
        }
        let joined = self.cross_documents.then_some(separator).flatten();
        Ok(Layout { bos, eos: model.eos.filter(|_| self.eos), joined, room, min_tokens: self.min_tokens })
    }
}

/// The same for one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// What begins each context.
    pub(super) bos: Option<u32>,
    /// What ends each document.
    pub(super) eos: Option<u32>,
    /// What stands between documents that share a context; none where none do.
    pub(super) joined: Option<u32>,
    /// Tokens of a context, BOS excluded.
    pub(super) room: usize,
    pub(super) min_tokens: usize,
}

impl fmt::Display for BosPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Always => "true",
            Self::Never => "false",
        })
    }
}

impl FromStr for BosPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "true" => Ok(Self::Always),
            "false" => Ok(Self::Never),
            other => Err(Error::Invalid(format!("bos `{other}`: expected `auto`, true or false"))),
        }
    }
}

impl Serialize for BosPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Always => serializer.serialize_bool(true),
            Self::Never => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for BosPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Flag(bool),
            Word(String),
        }
        let text = match Written::deserialize(deserializer).map_err(|_| serde::de::Error::custom("expected `auto`, true or false"))? {
            Written::Flag(flag) => flag.to_string(),
            Written::Word(word) => word,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}
