//! Graphs as viewers are given them: nodes with ids and links between them.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{NodeKind, Nodes, Pruned};

/// A feature's type, whatever transcoder it is of.
pub(super) const FEATURE: &str = "cross layer transcoder";
/// An error's type.
pub(super) const ERROR: &str = "mlp reconstruction error";
/// A token's type.
pub(super) const TOKEN: &str = "embedding";
/// A logit's type.
pub(super) const LOGIT: &str = "logit";
/// A closing node's type.
pub(super) const BIAS: &str = "bias";

/// A node as viewers know it, with the names that circuit-tracer and Neuronpedia gave its fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewNode {
    /// Tells it from all others of its graph.
    pub node_id: String,
    /// Of a feature its layer and index as one number, see [`paired`]; of a token its position; of a logit its id; -1 of an error.
    pub feature: Option<i64>,
    /// Its layer, `E` for what comes before the first one, the number of layers and one for logits.
    #[serde(deserialize_with = "text_or_number")]
    pub layer: String,
    /// Its position.
    pub ctx_idx: usize,
    /// What it is.
    pub feature_type: String,
    /// A logit's probability or weight.
    #[serde(default)]
    pub token_prob: Option<f64>,
    /// Whether it is the first of the logits.
    #[serde(default)]
    pub is_target_logit: bool,
    /// Always 0.
    #[serde(default)]
    pub run_idx: i64,
    /// Always 0.
    #[serde(default)]
    pub reverse_ctx_idx: i64,
    /// What viewers lay it out by.
    #[serde(rename = "jsNodeId", default)]
    pub js_node_id: String,
    /// Its label, which may be empty.
    #[serde(default)]
    pub clerp: String,
    /// The share of influence of the nodes that matter as much or more, see [`Influence::cumulative`](super::Influence::cumulative).
    #[serde(default)]
    pub influence: Option<f64>,
    /// A feature's activation.
    #[serde(default)]
    pub activation: Option<f64>,
    /// What attention looked for, and found, where it is a node that attention was explained for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_tracing_results: Option<Value>,
}

fn text_or_number<'de, D: Deserializer<'de>>(layer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a layer as a text or a whole number")]
    enum Layer {
        Text(String),
        Number(i64),
    }
    Ok(match Layer::deserialize(layer)? {
        Layer::Text(text) => text,
        Layer::Number(number) => number.to_string(),
    })
}

/// A layer and an index as one number, by Cantor: each pair has its own.
pub fn paired(layer: usize, feature: usize) -> i64 {
    let sum = layer as u128 + feature as u128;
    let pair = sum.checked_mul(sum + 1).and_then(|twice| i64::try_from(twice / 2 + feature as u128).ok());
    // What does not fit is no feature that a transcoder has.
    pair.unwrap_or(i64::MAX)
}

/// A node's id, which tells it from all others of its graph. Errors have `{layer}_-1_{position}`, as no feature has.
///
/// # Panics
/// At a node that there is not.
pub fn node_id(nodes: &Nodes, node: usize) -> String {
    match nodes.kind(node) {
        NodeKind::Feature { layer, position, feature, .. } => format!("{layer}_{feature}_{position}"),
        NodeKind::Error { layer, position } => format!("{layer}_-1_{position}"),
        NodeKind::Token { position } => format!("E_{}_{position}", nodes.tokens[position]),
        NodeKind::DecoderBias { layer, position } => format!("{layer}_bias_decoder_{position}"),
        NodeKind::AttentionBias { layer, position } => format!("{layer}_bias_attention_{position}"),
        NodeKind::Position { position } => format!("E_bias_position_{position}"),
        NodeKind::SpecialOutput { layer, position } => format!("{layer}_bias_mlp_{position}"),
        NodeKind::OwnBias => "E_bias_own_0".to_owned(),
        NodeKind::Unselected => "E_bias_features_0".to_owned(),
        NodeKind::Logit { logit } => format!("{}_{}_{}", nodes.layers + 1, nodes.logits[logit].id, nodes.tokens.len() - 1),
    }
}

impl ViewNode {
    /// A node of a graph that was pruned.
    ///
    /// # Panics
    /// At a node that there is not.
    pub fn new(nodes: &Nodes, pruned: &Pruned, node: usize) -> Self {
        let kind = nodes.kind(node);
        let id = node_id(nodes, node);
        let influence = Some(pruned.cumulative[node]);
        let plain = |layer: String, position: usize, feature_type: &str, feature: Option<i64>| Self {
            js_node_id: id.clone(),
            node_id: id.clone(),
            feature,
            layer,
            ctx_idx: position,
            feature_type: feature_type.to_owned(),
            token_prob: Some(0.0),
            is_target_logit: false,
            run_idx: 0,
            reverse_ctx_idx: 0,
            clerp: String::new(),
            influence,
            activation: None,
            qk_tracing_results: None,
        };
        let bias = |layer: String, position: usize, label: &str| Self {
            clerp: label.to_owned(),
            influence: None,
            ..plain(layer, position, BIAS, None)
        };
        match kind {
            NodeKind::Feature { active, layer, position, feature } => Self {
                js_node_id: format!("{layer}_{feature}-0"),
                activation: Some(f64::from(nodes.active[active].activation)),
                ..plain(layer.to_string(), position, FEATURE, Some(paired(layer, feature)))
            },
            NodeKind::Error { layer, position } => {
                Self { js_node_id: format!("{layer}_-1-{position}"), ..plain(layer.to_string(), position, ERROR, Some(-1)) }
            }
            NodeKind::Token { position } => Self {
                js_node_id: format!("E_{}-{position}", nodes.tokens[position]),
                ..plain("E".to_owned(), position, TOKEN, Some(position as i64))
            },
            NodeKind::DecoderBias { layer, position } => bias(layer.to_string(), position, "decoder bias"),
            NodeKind::AttentionBias { layer, position } => bias(layer.to_string(), position, "attention bias"),
            NodeKind::Position { position } => bias("E".to_owned(), position, "position"),
            NodeKind::SpecialOutput { layer, position } => bias(layer.to_string(), position, "MLP at a special position"),
            NodeKind::OwnBias => bias("E".to_owned(), 0, "own bias"),
            NodeKind::Unselected => bias("E".to_owned(), 0, "features that are no nodes"),
            NodeKind::Logit { logit } => {
                let (last, target) = (nodes.tokens.len() - 1, &nodes.logits[logit]);
                Self {
                    js_node_id: format!("L_{}-{last}", target.id),
                    token_prob: Some(target.probability),
                    is_target_logit: logit == 0,
                    clerp: format!("Output \"{}\" (p={:.3})", target.label, target.probability),
                    influence: None,
                    ..plain((nodes.layers + 1).to_string(), last, LOGIT, Some(target.id as i64))
                }
            }
        }
    }

    /// Whether it is an active feature.
    pub fn is_feature(&self) -> bool {
        !self.is_token() && !self.is_logit() && !self.is_error() && self.feature_type != BIAS
    }

    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        self.feature_type == ERROR
    }

    /// Whether it is a token's embedding.
    pub fn is_token(&self) -> bool {
        self.feature_type == TOKEN
    }

    /// Whether it is a logit.
    pub fn is_logit(&self) -> bool {
        self.feature_type == LOGIT
    }
}

/// An edge of a [`View`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ViewLink {
    /// The node that adds, a place in [`View::nodes`].
    pub source: u32,
    /// The node that is added to, a place in [`View::nodes`].
    pub target: u32,
    /// What it adds.
    pub weight: f32,
}

/// What was kept of a graph, in memory, whatever file it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The fields of `metadata` of the graph's file for viewers.
    pub metadata: serde_json::Map<String, Value>,
    /// The nodes. Errors have ids of the form `{layer}_-1_{position}`, whatever they have in the file.
    pub nodes: Vec<ViewNode>,
    /// The edges.
    pub links: Vec<ViewLink>,
}

impl View {
    /// The prompt's tokens, as far as they are known.
    pub fn token(&self, position: usize) -> Option<&str> {
        self.metadata.get("prompt_tokens")?.get(position)?.as_str()
    }

    /// A score of the whole graph, `replacement_score` or `completeness_score`, where the file has it.
    pub fn score(&self, name: &str) -> Option<f64> {
        self.metadata.get(name)?.as_f64()
    }

    /// A node in a few words.
    pub fn name(&self, node: usize) -> String {
        let node = &self.nodes[node];
        let (layer, position) = (&node.layer, node.ctx_idx);
        let token = self.token(position).map_or_else(String::new, |text| format!(" {text:?}"));
        if node.is_logit() {
            return node.clerp.clone();
        }
        if node.is_token() {
            return format!("token{token}@{position}");
        }
        if node.is_error() {
            return format!("error L{layer}@{position}");
        }
        if node.feature_type == BIAS {
            return if layer == "E" { format!("{}@{position}", node.clerp) } else { format!("{} L{layer}@{position}", node.clerp) };
        }
        let index = node.node_id.split('_').nth(1).unwrap_or("?");
        let label = if node.clerp.is_empty() { String::new() } else { format!(" ({})", node.clerp) };
        format!("L{layer}/{index}@{position}{label}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::nodes::tests::nodes;
    use super::*;

    #[test]
    fn pairs_are_those_of_cantor() {
        // The first feature of circuit-tracer's graph of its tests, and corners.
        assert_eq!([paired(0, 6), paired(0, 0), paired(2, 1), paired(25, 16_383)], [27, 0, 7, 134_635_819]);
        assert_eq!(paired(usize::MAX, usize::MAX), i64::MAX);
    }

    #[test]
    fn every_node_has_its_own_id() {
        let nodes = nodes(true);
        let ids: HashSet<String> = (0..nodes.count()).map(|node| node_id(&nodes, node)).collect();
        assert_eq!(ids.len(), nodes.count());
    }
}
