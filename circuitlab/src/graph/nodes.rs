//! What the rows and columns of a graph stand for.

use std::collections::HashSet;
use std::ops::Range;

use crate::{Error, Result};

/// A feature that is active at a position of the prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActiveFeature {
    /// Its layer.
    pub layer: u32,
    /// Where it is active.
    pub position: u32,
    /// Its index among the features of its layer.
    pub feature: u32,
    /// How active it is.
    pub activation: f32,
    /// Its input before the activation function.
    pub pre_activation: f32,
}

impl ActiveFeature {
    /// What active features are sorted by.
    pub fn key(&self) -> (u32, u32, u32) {
        (self.layer, self.position, self.feature)
    }
}

/// Something that the graph explains: a logit, or a direction in the place of one.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitNode {
    /// The token's text, or the direction's name.
    pub label: String,
    /// The token; a direction has the size of the vocabulary plus its place among the targets.
    pub id: usize,
    /// The token's probability, or the direction's weight: how much the node counts in influences.
    pub probability: f64,
}

/// The nodes of a graph, in the order of the rows and columns of its matrix:
///
/// | nodes | how many | which comes where |
/// | --- | --- | --- |
/// | features | S | as in `selected` |
/// | errors | L * T | layer * T + position |
/// | tokens | T | position |
/// | decoder biases | L * T, if closing | layer * T + position |
/// | attention biases | L * T, if closing | layer * T + position |
/// | positions | T, if closing | position |
/// | MLP outputs at special positions | L * Z, if closing | layer * Z + place in `special` |
/// | the target's own biases | 1, if closing | |
/// | all active features that are not selected | 1, if closing | |
/// | logits | K | as in `logits` |
///
/// Only rows of features and logits have numbers: row `t`, column `s` is what node `s` adds to the pre-activation of feature `t`, or to the
/// logit `t` less the mean logit. With closing nodes such a row sums to that pre-activation or logit; without, a graph is that of
/// circuit-tracer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Nodes {
    /// Layers of the model, L.
    pub layers: usize,
    /// The prompt's tokens, T of them.
    pub tokens: Vec<u32>,
    /// Positions whose features and errors are taken for zero, ascending, Z of them: those of the special tokens at the beginning.
    pub special: Vec<u32>,
    /// All active features, by layer, position and feature.
    pub active: Vec<ActiveFeature>,
    /// Which of them are nodes, S indices into `active`, ascending.
    pub selected: Vec<u32>,
    /// What is explained, K of them.
    pub logits: Vec<LogitNode>,
    /// Whether there are nodes for all that is neither feature nor error nor token.
    pub closing: bool,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// An active feature.
    Feature {
        /// Its place in [`Nodes::active`].
        active: usize,
        /// Its layer.
        layer: usize,
        /// Its position.
        position: usize,
        /// Its index in its layer.
        feature: usize,
    },
    /// What the transcoder's output of a layer misses at a position.
    Error {
        /// The layer.
        layer: usize,
        /// The position.
        position: usize,
    },
    /// A token's embedding.
    Token {
        /// Its position.
        position: usize,
    },
    /// The decoder's bias of a layer at a position.
    DecoderBias {
        /// The layer.
        layer: usize,
        /// The position.
        position: usize,
    },
    /// The biases of a layer's attention, and of the norm before it, at a position.
    AttentionBias {
        /// The layer.
        layer: usize,
        /// The position.
        position: usize,
    },
    /// The embedding of a position.
    Position {
        /// The position.
        position: usize,
    },
    /// What the MLP of a layer adds at a position whose features and errors are taken for zero.
    SpecialOutput {
        /// The layer.
        layer: usize,
        /// The position.
        position: usize,
    },
    /// The target's own biases: the encoder's, and that of the norm that it reads through.
    OwnBias,
    /// All active features that are not nodes of their own.
    Unselected,
    /// Something that is explained.
    Logit {
        /// Its place in [`Nodes::logits`].
        logit: usize,
    },
}

impl Nodes {
    /// How many there are, N.
    pub fn count(&self) -> usize {
        self.logits().end
    }

    /// Features that are nodes.
    pub fn features(&self) -> Range<usize> {
        0..self.selected.len()
    }

    /// Errors, by layer and position.
    pub fn errors(&self) -> Range<usize> {
        after(&self.features(), self.layers * self.tokens.len())
    }

    /// Embeddings of tokens, by position.
    pub fn tokens(&self) -> Range<usize> {
        after(&self.errors(), self.tokens.len())
    }

    /// All closing nodes; empty where there are none.
    pub fn closing(&self) -> Range<usize> {
        self.tokens().end..self.unselected().end
    }

    /// Decoder biases, by layer and position.
    pub fn decoder_biases(&self) -> Range<usize> {
        self.closing_after(&self.tokens(), self.layers * self.tokens.len())
    }

    /// Attention biases, by layer and position.
    pub fn attention_biases(&self) -> Range<usize> {
        self.closing_after(&self.decoder_biases(), self.layers * self.tokens.len())
    }

    /// Embeddings of positions.
    pub fn positions(&self) -> Range<usize> {
        self.closing_after(&self.attention_biases(), self.tokens.len())
    }

    /// MLP outputs of special positions, by layer and place in [`special`](Self::special).
    pub fn special_outputs(&self) -> Range<usize> {
        self.closing_after(&self.positions(), self.layers * self.special.len())
    }

    /// The one node of the target's own biases.
    pub fn own_bias(&self) -> Range<usize> {
        self.closing_after(&self.special_outputs(), 1)
    }

    /// The one node of all active features that are not selected.
    pub fn unselected(&self) -> Range<usize> {
        self.closing_after(&self.own_bias(), 1)
    }

    /// What is explained.
    pub fn logits(&self) -> Range<usize> {
        after(&self.unselected(), self.logits.len())
    }

    /// The nodes that have rows: features and logits.
    pub fn targets(&self) -> impl DoubleEndedIterator<Item = usize> + use<> {
        self.features().chain(self.logits())
    }

    /// Whether a node has a row.
    pub fn is_target(&self, node: usize) -> bool {
        self.features().contains(&node) || self.logits().contains(&node)
    }

    /// The feature that a node of [`features`](Self::features) stands for.
    ///
    /// # Panics
    /// At a node that is no feature.
    pub fn feature(&self, node: usize) -> &ActiveFeature {
        &self.active[self.selected[node] as usize]
    }

    /// The features among the nodes whose layer is below `layer`; they are the first ones.
    pub fn features_below(&self, layer: usize) -> Range<usize> {
        0..self.selected.partition_point(|active| (self.active[*active as usize].layer as usize) < layer)
    }

    /// What a node is.
    ///
    /// # Panics
    /// At `count()` and above.
    pub fn kind(&self, node: usize) -> NodeKind {
        let seq = self.tokens.len();
        let within = |range: Range<usize>| range.contains(&node).then(|| node - range.start);
        if let Some(rank) = within(self.features()) {
            let active = self.selected[rank] as usize;
            let ActiveFeature { layer, position, feature, .. } = self.active[active];
            return NodeKind::Feature { active, layer: layer as usize, position: position as usize, feature: feature as usize };
        }
        if let Some(at) = within(self.errors()) {
            return NodeKind::Error { layer: at / seq, position: at % seq };
        }
        if let Some(position) = within(self.tokens()) {
            return NodeKind::Token { position };
        }
        if let Some(at) = within(self.decoder_biases()) {
            return NodeKind::DecoderBias { layer: at / seq, position: at % seq };
        }
        if let Some(at) = within(self.attention_biases()) {
            return NodeKind::AttentionBias { layer: at / seq, position: at % seq };
        }
        if let Some(position) = within(self.positions()) {
            return NodeKind::Position { position };
        }
        if let Some(at) = within(self.special_outputs()) {
            let special = self.special.len();
            return NodeKind::SpecialOutput { layer: at / special, position: self.special[at % special] as usize };
        }
        if self.own_bias().contains(&node) {
            return NodeKind::OwnBias;
        }
        if self.unselected().contains(&node) {
            return NodeKind::Unselected;
        }
        assert!(self.logits().contains(&node), "node {node} of {}", self.count());
        NodeKind::Logit { logit: node - self.logits().start }
    }

    /// Checks that they are in order, each there once, and within their bounds.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first thing that is wrong.
    pub fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::Invalid(message));
        let (layers, seq) = (self.layers, self.tokens.len());
        if layers == 0 || seq == 0 || self.logits.is_empty() {
            return invalid(format!("a graph needs layers, tokens and logits; there are {layers}, {seq} and {}", self.logits.len()));
        }
        // Rows and columns are 32-bit numbers wherever there are many of them.
        let wide = (layers as u128) * (3 * seq + self.special.len()) as u128 + (self.selected.len() + self.logits.len() + 2 * seq) as u128;
        if wide >= u128::from(u32::MAX) {
            return invalid(format!("a graph of {layers} layers, {seq} tokens and {} features is too large", self.selected.len()));
        }
        for (at, feature) in self.active.iter().enumerate() {
            let (layer, position, _) = feature.key();
            if layer as usize >= layers || position as usize >= seq {
                return invalid(format!(
                    "active feature {at} is at layer {layer}, position {position} of {layers} layers, {seq} positions"
                ));
            }
            if !feature.activation.is_finite() || !feature.pre_activation.is_finite() {
                let values = (feature.activation, feature.pre_activation);
                return invalid(format!("active feature {at} has the activation and pre-activation {values:?}, which must be finite"));
            }
        }
        if let Some(at) = self.active.windows(2).position(|pair| pair[0].key() >= pair[1].key()) {
            let next = at + 1;
            return invalid(format!("active feature {next} is there twice or not in the order of layer, position and feature"));
        }
        let past = self.selected.last().is_some_and(|last| *last as usize >= self.active.len());
        if past || self.selected.windows(2).any(|pair| pair[0] >= pair[1]) {
            let active = self.active.len();
            return invalid(format!("the selected features are not ascending indices of the {active} active ones, each at most once"));
        }
        if self.special.iter().any(|position| *position as usize >= seq) || self.special.windows(2).any(|pair| pair[0] >= pair[1]) {
            return invalid(format!("the special positions {:?} are not ascending positions of {seq}", self.special));
        }
        self.check_logits()
    }

    fn check_logits(&self) -> Result<()> {
        let mut seen = HashSet::new();
        for LogitNode { label, id, probability } in &self.logits {
            if !probability.is_finite() || *probability < 0.0 {
                return Err(Error::Invalid(format!("logit `{label}` has the weight {probability}, which must be finite and not below 0")));
            }
            if !seen.insert(id) {
                return Err(Error::Invalid(format!("logit `{label}` ({id}) is there twice")));
            }
        }
        Ok(())
    }
}

/// The `length` nodes after others.
fn after(others: &Range<usize>, length: usize) -> Range<usize> {
    others.end..others.end + length
}

impl Nodes {
    fn closing_after(&self, others: &Range<usize>, length: usize) -> Range<usize> {
        after(others, if self.closing { length } else { 0 })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::graph) fn nodes(closing: bool) -> Nodes {
        let feature = |layer, position, feature| ActiveFeature { layer, position, feature, activation: 2.0, pre_activation: 1.5 };
        let logit = |id, probability| LogitNode { label: format!("t{id}"), id, probability };
        Nodes {
            layers: 3,
            tokens: vec![1, 7, 7, 9],
            special: vec![0, 1],
            active: vec![feature(0, 1, 4), feature(0, 2, 0), feature(1, 1, 4), feature(2, 3, 9)],
            selected: vec![0, 2, 3],
            logits: vec![logit(5, 0.5), logit(8, 0.25)],
            closing,
        }
    }

    #[test]
    fn every_node_is_one_thing() {
        let open = nodes(false);
        assert_eq!((open.count(), open.closing(), open.logits()), (3 + 12 + 4 + 2, 19..19, 19..21));
        let closed = nodes(true);
        assert_eq!(closed.closing().len(), 12 + 12 + 4 + 6 + 2);
        for nodes in [open, closed] {
            nodes.check().expect("all in order");
            let kinds: HashSet<NodeKind> = (0..nodes.count()).map(|node| nodes.kind(node)).collect();
            assert_eq!(kinds.len(), nodes.count());
            assert_eq!(nodes.kind(1), NodeKind::Feature { active: 2, layer: 1, position: 1, feature: 4 });
            assert_eq!(nodes.kind(nodes.errors().start + 6), NodeKind::Error { layer: 1, position: 2 });
            assert_eq!(nodes.kind(nodes.count() - 1), NodeKind::Logit { logit: 1 });
            assert_eq!((nodes.features_below(0), nodes.features_below(1), nodes.features_below(3)), (0..0, 0..1, 0..3));
            if nodes.closing {
                assert_eq!(nodes.kind(nodes.special_outputs().start + 3), NodeKind::SpecialOutput { layer: 1, position: 1 });
                assert_eq!(nodes.kind(nodes.attention_biases().start + 5), NodeKind::AttentionBias { layer: 1, position: 1 });
                assert_eq!(nodes.kind(nodes.own_bias().start), NodeKind::OwnBias);
            }
        }
    }

    #[test]
    fn nodes_that_cannot_be_are_refused() {
        let wrong = |change: fn(&mut Nodes), words: &str| {
            let mut nodes = nodes(true);
            change(&mut nodes);
            let error = nodes.check().expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        };
        wrong(|nodes| nodes.tokens.clear(), "needs layers, tokens and logits");
        wrong(|nodes| nodes.layers = usize::MAX, "is too large");
        wrong(|nodes| nodes.active[3].layer = 3, "active feature 3 is at layer 3");
        wrong(|nodes| nodes.active[1].position = 4, "position 4 of 3 layers, 4 positions");
        wrong(|nodes| nodes.active[1].activation = f32::NAN, "must be finite");
        wrong(|nodes| nodes.active[1] = nodes.active[0], "active feature 1 is there twice");
        wrong(|nodes| nodes.selected = vec![0, 4], "the 4 active ones");
        wrong(|nodes| nodes.selected = vec![1, 1], "each at most once");
        wrong(|nodes| nodes.special = vec![4], "special positions [4]");
        wrong(|nodes| nodes.logits[1].id = 5, "is there twice");
        wrong(|nodes| nodes.logits[1].probability = f64::INFINITY, "the weight inf");
        wrong(|nodes| nodes.logits[1].probability = -0.1, "not below 0");
    }
}
