//! What is changed, where, and what stays as it was.

use std::fmt;
use std::ops::Range;

use circuitlab_core::ModelInfo;
use tch::{Kind, Tensor};

use crate::saved::SavedTranscoder;
use crate::{Error, Result};

/// A feature at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// The layer that the feature reads.
    pub layer: usize,
    /// The position, from 0.
    pub position: usize,
    /// The feature of that layer.
    pub feature: usize,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.layer, self.position, self.feature)
    }
}

/// At which positions something is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Positions {
    /// At one.
    At(usize),
    /// At this one and all later ones, those of tokens that are generated included.
    From(usize),
    /// At these.
    Range(Range<usize>),
}

impl Positions {
    /// At all positions, those of tokens that are generated included.
    pub const ALL: Self = Self::From(0);

    /// Those among `all`.
    pub fn within(&self, all: Range<usize>) -> Range<usize> {
        let own = match self {
            Self::At(position) => *position..position.saturating_add(1),
            Self::From(first) => *first..usize::MAX,
            Self::Range(range) => range.clone(),
        };
        own.start.max(all.start)..own.end.min(all.end).max(own.start.max(all.start))
    }

    /// Whether they reach tokens that are generated.
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::From(_))
    }

    /// Checks that they are positions of a prompt; open ones may begin after it where further tokens come.
    ///
    /// # Errors
    /// Positions that there are not, and none at all.
    pub fn check(&self, prompt: usize, further: bool) -> Result<()> {
        let beyond = match self {
            Self::At(position) => *position >= prompt,
            Self::From(first) => *first >= prompt && !further,
            Self::Range(range) => range.end > prompt,
        };
        if beyond {
            return Err(Error::Invalid(format!("position `{self}` is outside of the prompt, which has positions 0 to {}", prompt - 1)));
        }
        match self {
            Self::Range(range) if range.is_empty() => Err(Error::Invalid(format!("`{self}` is no position at all"))),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(position) => write!(f, "{position}"),
            Self::From(0) => f.write_str(":"),
            Self::From(first) => write!(f, "{first}:"),
            Self::Range(range) => write!(f, "{}:{}", range.start, range.end),
        }
    }
}

/// What becomes of an activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// It is this, whatever it was.
    Set(f64),
    /// It is multiplied.
    Scale(f64),
    /// This is added to it, whatever it is.
    Add(f64),
}

impl Change {
    /// It is zero.
    pub const ABLATE: Self = Self::Set(0.0);

    /// The difference that it makes to an activation `a`, as `(c, m)` of `c + m a`.
    pub(super) const fn difference(self) -> (f64, f64) {
        match self {
            Self::Set(value) => (value, -1.0),
            Self::Scale(factor) => (0.0, factor - 1.0),
            Self::Add(value) => (value, 0.0),
        }
    }

    /// The number in it.
    pub const fn number(self) -> f64 {
        match self {
            Self::Set(number) | Self::Scale(number) | Self::Add(number) => number,
        }
    }
}

/// What is acted on.
#[derive(Debug)]
pub enum Target {
    /// A feature. Of several changes of one feature at one position the last counts.
    Feature {
        /// The feature of the layer.
        feature: usize,
        /// What becomes of its activation.
        change: Change,
    },
    /// A feature's decoder rows, times a number, are added where it writes, whatever its activation is and whatever else is changed.
    Decoder {
        /// The feature of the layer.
        feature: usize,
        /// What its rows are multiplied by.
        times: f64,
    },
    /// A vector, `[d_model]`, is added to the layer's output.
    Direction(Tensor),
}

/// Something that is changed in a layer at some positions.
#[derive(Debug)]
pub struct Intervention {
    /// The layer.
    pub layer: usize,
    /// The positions.
    pub positions: Positions,
    /// What is acted on, and how.
    pub target: Target,
}

impl Intervention {
    /// A change of a feature.
    pub const fn feature(layer: usize, positions: Positions, feature: usize, change: Change) -> Self {
        Self { layer, positions, target: Target::Feature { feature, change } }
    }

    /// A change of a feature at one position.
    pub const fn at(site: Site, change: Change) -> Self {
        Self::feature(site.layer, Positions::At(site.position), site.feature, change)
    }

    /// Checks that there are such a layer, feature and positions, and that its numbers are numbers.
    ///
    /// # Errors
    /// What there is not.
    pub(super) fn check(&self, saved: &SavedTranscoder, prompt: usize, further: bool) -> Result<()> {
        let dims = saved.dims;
        if self.layer >= dims.layers {
            return Err(Error::Invalid(format!("there is no layer {}; the model has layers 0 to {}", self.layer, dims.layers - 1)));
        }
        self.positions.check(prompt, further)?;
        let (feature, number) = match &self.target {
            Target::Feature { feature, change } => (*feature, change.number()),
            Target::Decoder { feature, times } => (*feature, *times),
            Target::Direction(vector) => {
                let d_model = dims.d_model as i64;
                if vector.size() != [d_model] {
                    let layer = self.layer;
                    return Err(Error::mismatch(format!("shape of the vector for layer {layer}"), format!("[{d_model}]"), {
                        format!("{:?}", vector.size())
                    }));
                }
                (0, vector.f_to_kind(Kind::Double)?.f_sum(Kind::Double)?.f_double_value(&[])?)
            }
        };
        if feature >= dims.d_features {
            return Err(Error::Invalid(format!(
                "there is no feature {feature} in layer {}; the transcoder has features 0 to {}",
                self.layer,
                dims.d_features - 1
            )));
        }
        if !number.is_finite() {
            return Err(Error::Invalid(format!(
                "layer {}, position `{}`: {number} is no number to intervene with",
                self.layer, self.positions
            )));
        }
        Ok(())
    }
}

/// What is held as it is in the run without changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Attention patterns. A feature's change starts from its activation in the changed run.
    FrozenAttention,
    /// Nothing. A feature's change starts from its activation in the changed run.
    Free,
    /// Attention patterns, the MLP outputs of these layers but for a linear skip's part, and, where these are all layers, the denominators of
    /// norms. A feature's change starts from its activation in the run without changes, and reaches these layers only.
    Constrained(Range<usize>),
}

impl Mode {
    /// Direct effects only, which are what an attribution graph's edges say: all layers held.
    pub fn direct(info: &ModelInfo) -> Self {
        Self::Constrained(0..info.layers)
    }

    /// Whether attention patterns are held.
    pub fn freezes_attention(&self) -> bool {
        !matches!(self, Self::Free)
    }

    /// The layers whose MLP outputs are held.
    pub(super) fn held(&self) -> Range<usize> {
        match self {
            Self::Constrained(layers) => layers.clone(),
            Self::FrozenAttention | Self::Free => 0..0,
        }
    }

    pub(super) fn is_constrained(&self) -> bool {
        matches!(self, Self::Constrained(_))
    }

    /// Checks the layers.
    ///
    /// # Errors
    /// Layers that there are not, and none.
    pub(super) fn check(&self, layers: usize) -> Result<()> {
        match self {
            Self::Constrained(range) if range.is_empty() || range.end > layers => Err(Error::Invalid(format!(
                "layers {}:{} to be held: expected some of the model's layers, 0:{layers}",
                range.start, range.end
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_cut_to_those_that_there_are() {
        assert_eq!(Positions::ALL.within(3..8), 3..8);
        assert_eq!(Positions::From(5).within(0..8), 5..8);
        assert!(Positions::From(9).within(0..8).is_empty());
        assert_eq!(Positions::At(7).within(7..8), 7..8);
        assert!(Positions::At(2).within(7..8).is_empty());
        assert!(Positions::Range(1..4).within(6..9).is_empty());
        assert_eq!(Positions::Range(1..7).within(6..9), 6..7);
    }

    #[test]
    fn positions_outside_of_the_prompt_are_refused() {
        for (positions, further, fine) in [
            (Positions::At(7), false, true),
            (Positions::At(8), true, false),
            (Positions::From(8), false, false),
            (Positions::From(8), true, true),
            (Positions::Range(2..8), false, true),
            (Positions::Range(2..9), true, false),
            (Positions::Range(2..2), false, false),
            (Positions::ALL, false, true),
        ] {
            assert_eq!(positions.check(8, further).is_ok(), fine, "{positions}, {further}");
        }
    }
}
