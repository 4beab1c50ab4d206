//! Predicted against measured effects of changed features.
//!
//! An attribution graph says what each feature adds to later pre-activations and to logits. Here sampled features are doubled and ablated, and
//! what that changes is measured, twice: with everything held but the direct effects, which the graph's edges state exactly; and with
//! attention patterns alone held, so that real MLPs answer, where the prediction is the sum over all paths of the graph: each feature on a
//! path changes in proportion, as long as it fires.

use circuitlab_core::LanguageModel;
use circuitlab_core::random::Permutation;
use tch::Kind;

use super::agreement::Sums;
use crate::graph::{Nodes, Prompt, Rows};
use crate::intervene::{Budget, Change, Intervention, Mode, Outcome, Site, Study, Variant, Want, intervene};
use crate::saved::SavedTranscoder;
use crate::{Error, Result};

/// What an activation is multiplied by in each perturbation, and by what share of itself it changes then.
const PERTURBATIONS: [(Change, f64); 2] = [(Change::Scale(2.0), 1.0), (Change::ABLATE, -1.0)];

/// Changes of one mode, by how many layers lie between cause and effect.
#[derive(Debug, Clone)]
pub(super) struct ByDistance {
    /// Of pre-activations, one layer further, two, ..
    pub(super) layers: Vec<Sums>,
    /// Of logits.
    pub(super) logits: Sums,
}

impl ByDistance {
    pub(super) fn new(layers: usize) -> Self {
        Self { layers: vec![Sums::default(); layers.saturating_sub(1)], logits: Sums::default() }
    }

    pub(super) fn join(&mut self, other: &Self) {
        for (sums, more) in self.layers.iter_mut().zip(&other.layers) {
            sums.join(more);
        }
        self.logits.join(&other.logits);
    }
}

/// What was found on a prompt.
#[derive(Debug)]
pub(super) struct Found {
    /// Direct effects.
    pub(super) direct: ByDistance,
    /// All effects that attention's patterns do not have a part in.
    pub(super) total: ByDistance,
    /// Features that were changed.
    pub(super) features: usize,
}

/// Changes up to `samples` features of a graph, chosen by `seed` and the prompt's `number`.
pub(super) fn measure(
    model: &dyn LanguageModel,
    saved: &SavedTranscoder,
    prompt: &Prompt,
    graph: &impl Rows,
    samples: usize,
    seed: u64,
    number: u64,
) -> Result<Found> {
    let nodes = graph.nodes();
    let order = Permutation::new(seed, "perturbation", number, nodes.selected.len() as u64);
    let sources: Vec<usize> = (0..order.len().min(samples as u64)).map(|place| order.at(place) as usize).collect();
    let [direct, total] = predictions(graph, &sources)?;
    let variants = variants(nodes, &sources, model);
    let study = intervene(model, saved, prompt, &variants, Budget { last_logits: true, ..Budget::default() })?;
    let active: Vec<Site> = nodes.active.iter().map(site).collect();
    if study.clean.features.sites != active {
        return Err(Error::Invalid("the graph's active features are not those of the prompt".to_owned()));
    }
    let cap = logits_cap(model);
    let cases = sources.len() * PERTURBATIONS.len();
    let compare = |predicted: &[Vec<f64>], outcomes: &[Outcome]| {
        let mut found = ByDistance::new(nodes.layers);
        for (case, outcome) in outcomes.iter().enumerate() {
            let (source, (_, share)) = (case / PERTURBATIONS.len(), PERTURBATIONS[case % PERTURBATIONS.len()]);
            let case = Case { nodes, study: &study, source: sources[source], predicted: &predicted[source], share, cap };
            case.compare(outcome, &mut found);
        }
        found
    };
    Ok(Found {
        direct: compare(&direct, &study.variants[..cases]),
        total: compare(&total, &study.variants[cases..]),
        features: sources.len(),
    })
}

/// Each perturbation of each source, with direct effects alone and then with all.
fn variants(nodes: &Nodes, sources: &[usize], model: &dyn LanguageModel) -> Vec<Variant> {
    let mut variants = Vec::new();
    for mode in [Mode::direct(model.info()), Mode::FrozenAttention] {
        for source in sources {
            let site = site(nodes.feature(*source));
            let one = |(change, _): (Change, f64)| Variant {
                interventions: vec![Intervention::at(site, change)],
                mode: mode.clone(),
                want: Want::PreActivations,
            };
            variants.extend(PERTURBATIONS.map(one));
        }
    }
    variants
}

fn site(feature: &crate::graph::ActiveFeature) -> Site {
    Site { layer: feature.layer as usize, position: feature.position as usize, feature: feature.feature as usize }
}

/// By how much every target changes as a source changes by the whole of itself: for each source a number for each feature and then for
/// each logit, first of direct effects and then along all paths. One pass over the rows, from the first layer up.
fn predictions(graph: &impl Rows, sources: &[usize]) -> Result<[Vec<Vec<f64>>; 2]> {
    let nodes = graph.nodes();
    let targets: Vec<usize> = nodes.targets().collect();
    let mut direct = vec![vec![0.0; targets.len()]; sources.len()];
    let mut total = direct.clone();
    // The share of itself that each feature changes by.
    let mut shares = vec![vec![0.0; nodes.selected.len()]; sources.len()];
    let mut row = Vec::new();
    for (place, target) in targets.iter().enumerate() {
        graph.read(*target, &mut row)?;
        let activation = nodes.features().contains(target).then(|| f64::from(nodes.feature(*target).activation));
        for (case, source) in sources.iter().enumerate() {
            direct[case][place] = f64::from(row[*source]);
            let along: f64 = row[nodes.features()].iter().zip(&shares[case]).map(|(edge, share)| f64::from(*edge) * share).sum();
            total[case][place] = along;
            if let Some(activation) = activation {
                shares[case][*target] = if target == source { 1.0 } else { along / activation };
            }
        }
    }
    Ok([direct, total])
}

/// A source that was changed by a share of itself.
struct Case<'a> {
    nodes: &'a Nodes,
    study: &'a Study,
    source: usize,
    predicted: &'a [f64],
    share: f64,
    /// The soft cap of the model's logits.
    cap: Option<f64>,
}

impl Case<'_> {
    fn compare(&self, outcome: &Outcome, found: &mut ByDistance) {
        let source = self.nodes.feature(self.source);
        let before = &self.study.clean_pre_activations.values;
        for (rank, active) in self.nodes.selected.iter().enumerate() {
            let target = &self.nodes.active[*active as usize];
            // Nothing reaches back, nor within a layer.
            if target.layer > source.layer && target.position >= source.position {
                let place = *active as usize;
                let measured = f64::from(outcome.features.values[place]) - f64::from(before[place]);
                found.layers[(target.layer - source.layer) as usize - 1].add(self.predicted[rank] * self.share, measured);
            }
        }
        let [before, after] = [&self.study.clean, outcome].map(|of| demeaned(of, self.cap));
        let vocabulary = before.len();
        for (place, logit) in self.nodes.logits.iter().enumerate().filter(|(_, logit)| logit.id < vocabulary) {
            let predicted = self.predicted[self.nodes.selected.len() + place] * self.share;
            found.logits.add(predicted, after[logit.id] - before[logit.id]);
        }
    }
}

/// The soft cap of a model's logits, which its description names.
fn logits_cap(model: &dyn LanguageModel) -> Option<f64> {
    let description: serde_json::Value = serde_json::from_str(&model.description()).ok()?;
    description.pointer("/caps/logits")?.as_f64()
}

/// The last position's logits before any soft cap less their mean, which is what graphs explain.
fn demeaned(outcome: &Outcome, cap: Option<f64>) -> Vec<f64> {
    let last = outcome.logits.select(0, outcome.logits.size()[0] - 1).to_kind(Kind::Double);
    let last = cap.map_or_else(|| last.shallow_clone(), |cap| (&last / cap).atanh() * cap);
    let less = &last - last.mean(Kind::Double);
    Vec::try_from(&less).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{ActiveFeature, LogitNode};

    struct Matrix {
        nodes: Nodes,
        edges: Vec<(usize, usize, f32)>,
    }

    impl Rows for Matrix {
        fn nodes(&self) -> &Nodes {
            &self.nodes
        }

        fn read(&self, node: usize, row: &mut Vec<f32>) -> Result<()> {
            row.clear();
            row.resize(self.nodes.count(), 0.0);
            for (_, source, weight) in self.edges.iter().filter(|(target, ..)| *target == node) {
                row[*source] = *weight;
            }
            Ok(())
        }
    }

    #[test]
    fn changes_go_along_all_paths() {
        let feature = |layer, activation| ActiveFeature { layer, position: 1, feature: 0, activation, pre_activation: activation };
        let nodes = Nodes {
            layers: 3,
            tokens: vec![1, 2],
            special: vec![0],
            // The second one is no node, so that nothing is predicted of what goes through it.
            active: vec![feature(0, 4.0), ActiveFeature { feature: 1, ..feature(0, 9.0) }, feature(1, 2.0), feature(2, 0.5)],
            selected: vec![0, 2, 3],
            logits: vec![LogitNode { label: "a".into(), id: 0, probability: 1.0 }],
            closing: false,
        };
        let logit = nodes.logits().start;
        let edges = vec![(1, 0, 1.0), (2, 0, 0.25), (2, 1, -0.5), (logit, 0, 3.0), (logit, 1, 1.0), (logit, 2, 2.0)];
        let [direct, total] = predictions(&Matrix { nodes, edges }, &[0, 1]).expect("reads");
        assert_eq!(direct, [vec![0.0, 1.0, 0.25, 3.0], vec![0.0, 0.0, -0.5, 1.0]]);
        // Feature 1 grows by half of itself, which takes 0.25 from feature 2's 0.25 more: it stays.
        assert_eq!(total[0], [0.0, 1.0, 0.0, 3.0 + 0.5]);
        // Feature 2 falls by the whole of itself.
        assert_eq!(total[1], [0.0, 0.0, -0.5, 1.0 - 2.0]);
    }
}
