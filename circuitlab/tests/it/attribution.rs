//! Attribution graphs beside the interventions that they foretell, in every kind of block and of transcoder. Everything here is measured by
//! running the model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use circuitlab::Silent;
use circuitlab::graph::{
    AttributeOptions, Attribution, Graph, HeadLoadings, Look, NodeKind, Nodes, Prompt, PruneOptions, Pruned, Rows, TargetChoice,
};
use circuitlab::intervene::{Budget, Change, Intervention, Mode, Site, Variant, Want, intervene};
use circuitlab::model::Capture;
use circuitlab::saved::{Card, SavedTranscoder};
use circuitlab_core::hooks::NoHooks;
use circuitlab_core::tch::{Device, Kind, Tensor};
use circuitlab_core::{
    Action, BlockHook, Dims, HookPoint, HookVisitor, Init, LanguageModel, ModelSource, Parameters, Registry, Result, SparsityActivation,
    Spec, Transcoder,
};

const MODELS: [&str; 8] = ["llama", "gpt2", "gemma2", "qwen3", "gpt2-gate", "gpt_neox", "phi3", "olmo2"];
const HOOKS: [(BlockHook, BlockHook); 3] =
    [(BlockHook::ResidMid, BlockHook::MlpOut), (BlockHook::MlpIn, BlockHook::MlpRawOut), (BlockHook::Ln2Normalized, BlockHook::MlpOut)];
/// Transcoders, whether they skip, and their activations.
const TRANSCODERS: [(&str, bool, &str); 5] =
    [("clt", false, "jumprelu"), ("plt", false, "relu"), ("plt", true, "jumprelu"), ("clt", true, "topk"), ("plt", true, "relu")];
/// Windows of 7 and 8 positions end within so many.
const POSITIONS: usize = 12;

struct Subject {
    name: String,
    model: Box<dyn LanguageModel>,
    saved: SavedTranscoder,
    prompt: Prompt,
    /// Of the logits, where the model has one.
    cap: Option<f64>,
}

/// Attributes in all models, each with one transcoder of every kind, between each two places in turn.
fn each(closing: bool, budget: Option<usize>, test: impl Fn(&Subject, &Attribution<'_>, &Graph)) {
    for (row, model) in MODELS.iter().enumerate() {
        for (column, transcoder) in TRANSCODERS.iter().enumerate() {
            let seed = (row * TRANSCODERS.len() + column) as u64;
            let subject = Subject::new(model, *transcoder, HOOKS[(row + column) % HOOKS.len()], seed);
            subject.attributed(closing, budget, |attribution, graph| test(&subject, attribution, graph));
        }
    }
}

impl Subject {
    fn new(name: &str, (kind, skip, activation): (&str, bool, &str), hooks: (BlockHook, BlockHook), seed: u64) -> Self {
        circuitlab_plugins::link();
        let registry = Registry::linked().expect("no name twice");
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name);
        let source = ModelSource { attention_gate: name.ends_with("-gate"), ..ModelSource::new(folder) };
        let model = circuitlab::model::open(&registry, &source).expect("opens");
        let ids = (0..POSITIONS).map(|at| ((at * at * 7 + at * 3 + 1 + seed as usize) % model.info().vocabulary) as u32).collect();
        let prompt = Prompt::of_tokens(ids, None, model.info()).expect("a prompt");
        // A family without a norm before its MLPs has no such place.
        let hooks = if model.hook_points().contains(&HookPoint::block(0, hooks.0)) { hooks } else { HOOKS[1] };
        let transcoder = registry.build::<dyn Transcoder>(&Spec::named(kind).with("skip", skip)).expect("a transcoder");
        let spec = match activation {
            "jumprelu" => Spec::named("jumprelu").with("parameterisation", "direct"),
            "topk" => Spec::named("topk").with("k", 4).with("positive", false), // with activations below 0
            name => Spec::named(name),
        };
        let card = Card { feature_input_hook: hooks.0.to_string(), feature_output_hook: hooks.1.to_string(), ..Card::default() };
        // Enough for some dozens of active ones.
        let d_features = if activation == "relu" { 12 } else { 40 };
        let dims = Dims { layers: model.info().layers, d_model: model.info().d_model, d_features };
        let activation_of = registry.build::<dyn SparsityActivation>(&spec).expect("an activation");
        let mut specs = transcoder.parameters(dims, &*activation_of).expect("parameters");
        for spec in &mut specs {
            spec.init = Init::Uniform { limit: if spec.name.contains("b_enc") { 0.5 } else { 0.25 } };
        }
        let params = Parameters::init(specs, seed, Kind::Float, Device::Cpu).expect("room");
        let mut saved = SavedTranscoder { folder: PathBuf::from("random"), card, dims, params, transcoder, activation: activation_of };
        if activation == "jumprelu" {
            set_thresholds(&mut saved, &*model, &prompt, hooks.0);
        }
        let cap = (name == "gemma2").then_some(30.0);
        let name = format!("{name}, {kind}, skip {skip}, {activation}, {} to {}", hooks.0, hooks.1);
        Self { name, model, saved, prompt, cap }
    }

    /// Logits of one position before their cap, less their mean: `[vocabulary]`.
    fn demeaned(&self, logits: &Tensor) -> Tensor {
        let logits = logits.to_kind(Kind::Double);
        let free = self.cap.map_or(logits.shallow_clone(), |cap| (logits / cap).atanh() * cap);
        &free - free.mean(None)
    }

    fn attributed(&self, closing: bool, max_feature_nodes: Option<usize>, look: impl FnOnce(&Attribution<'_>, &Graph)) {
        let targets = TargetChoice::Likeliest { most: 4, share: 1.0 };
        let options =
            AttributeOptions { targets, max_feature_nodes, batch_size: 4, update_interval: 2, closing, ..AttributeOptions::default() };
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("graph.safetensors");
        let attribution = Attribution::new(&*self.model, &self.saved, &self.prompt, None, &options, false).expect(&self.name);
        attribution.write(&file, "slug", &Silent).expect(&self.name);
        look(&attribution, &Graph::open(&file).expect(&self.name));
    }
}

/// Sets thresholds that a tenth of a layer's pre-activations pass.
fn set_thresholds(saved: &mut SavedTranscoder, model: &dyn LanguageModel, prompt: &Prompt, hook: BlockHook) {
    let mut capture = Capture::new((0..saved.dims.layers).map(|layer| HookPoint::block(layer, hook)));
    model.forward(&tokens(prompt), &mut capture).expect("runs");
    let specs = saved.params.specs().to_vec();
    for spec in specs.into_iter().filter(|spec| spec.name.contains("threshold")) {
        let own = saved.transcoder.dictionary(&saved.params, spec.layer).expect("a dictionary");
        let read = capture.take(HookPoint::block(spec.layer, hook)).expect("shown").get(0).narrow(0, 1, POSITIONS as i64 - 1);
        let pre_acts = read.matmul(&own.w_enc.tr()) + own.b_enc;
        let threshold = pre_acts.flatten(0, 1).quantile_scalar(0.9, 0, false, "linear").clamp_min(0.0);
        saved.params.set(&spec.name, threshold.expand(&spec.shape, false).contiguous()).expect("fits");
    }
}

fn tokens(prompt: &Prompt) -> Tensor {
    Tensor::from_slice(&prompt.tokens.iter().map(|id| i64::from(*id)).collect::<Vec<_>>()).unsqueeze(0)
}

/// A target's row of a graph.
fn row(graph: &Graph, node: usize) -> Vec<f64> {
    let mut row = vec![0.0; graph.nodes().count()];
    graph.read(node, &mut row).expect("reads");
    row.into_iter().map(f64::from).collect()
}

fn site(nodes: &Nodes, node: usize) -> Site {
    let feature = nodes.feature(node);
    Site { layer: feature.layer as usize, position: feature.position as usize, feature: feature.feature as usize }
}

/// A logit of a node.
fn logit(nodes: &Nodes, node: usize, logits: &Tensor) -> f64 {
    logits.double_value(&[nodes.logits[node - nodes.logits().start].id as i64])
}

/// After which layer's attention a target reads, as that layer plus one, and at which position.
fn end(nodes: &Nodes, target: usize) -> (usize, usize) {
    match nodes.kind(target) {
        NodeKind::Feature { layer, position, .. } => (layer + 1, position),
        _ => (nodes.layers, POSITIONS - 1),
    }
}

#[test]
fn columns_are_what_doubled_features_do() {
    each(false, None, |subject, _, graph| {
        let (name, nodes) = (&subject.name, graph.nodes());
        let rows: Vec<(usize, Vec<f64>)> = nodes.targets().map(|node| (node, row(graph, node))).collect();
        let features: Vec<usize> = nodes.features().collect();
        let sources: Vec<usize> = features.iter().copied().step_by(features.len().div_ceil(10)).collect();
        let double = |source: &usize| Variant {
            interventions: vec![Intervention::at(site(nodes, *source), Change::Scale(2.0))],
            mode: Mode::direct(subject.model.info()),
            want: Want::PreActivations,
        };
        let variants: Vec<Variant> = sources.iter().map(double).collect();
        let study = intervene(&*subject.model, &subject.saved, &subject.prompt, &variants, Budget::default()).expect(name);
        assert!(features.iter().all(|node| study.clean.features.sites[*node] == site(nodes, *node)), "{name}");
        let clean = subject.demeaned(&study.clean.logits.get(-1));
        let mut largest = 0.0_f64;
        for (source, outcome) in sources.iter().zip(&study.variants) {
            let after = subject.demeaned(&outcome.logits.get(-1));
            for (target, row) in &rows {
                let change = if nodes.features().contains(target) {
                    f64::from(outcome.features.values[*target]) - f64::from(study.clean_pre_activations.values[*target])
                } else {
                    logit(nodes, *target, &after) - logit(nodes, *target, &clean)
                };
                let column = row[*source];
                largest = largest.max(column.abs());
                let near = (change - column).abs() <= 5e-4 + 1e-3 * column.abs();
                assert!(near, "{name}: {source} to {target}: {change} in place of {column}");
            }
        }
        assert!(largest > 0.05, "{name}: {largest}");
    });
}

#[test]
fn closed_rows_sum_to_what_they_explain() {
    for budget in [None, Some(17)] {
        each(true, budget, |subject, _, graph| {
            let (name, nodes) = (&subject.name, graph.nodes());
            let logits = subject.model.forward(&tokens(&subject.prompt), &mut NoHooks).expect(name).expect(name);
            let demeaned = subject.demeaned(&logits.get(0).get(-1));
            assert_eq!(nodes.selected.len(), budget.unwrap_or(nodes.active.len()), "{name}");
            let expected = |node| match nodes.kind(node) {
                NodeKind::Feature { .. } => f64::from(nodes.feature(node).pre_activation),
                _ => logit(nodes, node, &demeaned),
            };
            let pairs: Vec<(f64, f64)> = nodes.targets().map(|node| (row(graph, node).iter().sum(), expected(node))).collect();
            let size = pairs.iter().fold(0.0_f64, |most, (_, expected)| most.max(expected.abs()));
            assert!((0.1..1e3).contains(&size), "{name}: {size}");
            assert!(pairs.iter().all(|(sum, expected)| (sum - expected).abs() <= 1e-4 * size), "{name}: {pairs:?}");
        });
    }
}

/// The loadings of all edges between positions.
fn loadings(attribution: &Attribution<'_>, graph: &Graph) -> HeadLoadings {
    let pruned = Pruned::of(graph, PruneOptions { node_threshold: 1.0, edge_threshold: 1.0 }).expect("prunes");
    attribution.head_loadings(graph, &pruned, &Silent).expect("splits")
}

#[test]
fn heads_sum_to_edges_and_parts_to_scores() {
    each(false, Some(25), |subject, attribution, graph| {
        let (name, found) = (&subject.name, loadings(attribution, graph));
        assert!(found.edges.len() > 50, "{name}: {} edges cross positions", found.edges.len());
        let edges = Tensor::from_slice(&found.weights).to_kind(Kind::Double);
        let sums = found.loadings.sum_dim_intlist([1, 2].as_slice(), false, Kind::Double);
        let apart = (sums - &edges).abs().max().double_value(&[]) / edges.abs().max().double_value(&[]);
        assert!(apart <= 1e-5, "{name}: {apart:e} of the largest");
        let (layers, heads, last) = (subject.model.info().layers, subject.model.info().heads, POSITIONS - 1);
        for (layer, head, query, key) in [(0, 0, 3, 1), (1, heads - 1, last, 0), (layers - 1, 1, last, last), (layers - 1, 0, 5, 2)] {
            let parts = attribution.looks(&[Look { layer, head, query, key }], 3).expect(name).remove(0);
            let apart = (parts.score - parts.sum_of_pairs).abs() / parts.score.abs().max(1.0);
            assert!(apart <= 1e-4, "{name}: {parts:?}");
        }
    });
}

/// Runs rows in pairs, the second of each with a feature's contribution once more, all but the first pair without a head at a position.
/// Patterns, denominators of norms and MLP outputs, but for a skip's part, are those of the first row.
struct Ablation<'a> {
    saved: &'a SavedTranscoder,
    /// Of the contribution, what it adds to each layer that it reaches, and its position.
    written: BTreeMap<usize, Tensor>,
    from: i64,
    /// Layers and heads.
    heads: &'a [(usize, usize)],
    position: i64,
    skipped: Option<Tensor>,
    /// By layer, what features read: `[row, position, d_model]`.
    read: BTreeMap<usize, Tensor>,
    hooks: (BlockHook, BlockHook),
}

impl HookVisitor for Ablation<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        use BlockHook::{Ln1PostScale, Ln1Scale, Ln2PostScale, Ln2Scale, Pattern};
        match point {
            HookPoint::Block { hook: Ln1PostScale | Ln1Scale | Ln2PostScale | Ln2Scale | Pattern, .. } | HookPoint::FinalScale => true,
            HookPoint::Block { hook, .. } => hook == self.hooks.0 || hook == self.hooks.1,
            _ => false,
        }
    }

    fn visit(&mut self, point: HookPoint, value: &Tensor) -> Result<Action> {
        let held = value.narrow(0, 0, 1).expand(value.size(), false).contiguous();
        let HookPoint::Block { layer, hook } = point else { return Ok(Action::Replace(held)) };
        if hook == BlockHook::Pattern {
            for (place, (_, head)) in self.heads.iter().enumerate().filter(|(_, head)| head.0 == layer) {
                let pair = held.narrow(0, 2 * place as i64 + 2, 2).select(1, *head as i64);
                let _ = pair.select(1, self.position).narrow(1, 0, self.position).zero_();
            }
        } else if hook == self.hooks.0 {
            let own = self.saved.transcoder.dictionary(&self.saved.params, layer)?;
            self.skipped = own.skip.map(|skip| (value - value.narrow(0, 0, 1)).matmul(&skip.tr()));
            self.read.insert(layer, value.shallow_clone());
            return Ok(Action::Continue);
        } else if hook == self.hooks.1 {
            let output = self.skipped.take().map_or(held.shallow_clone(), |skipped| &held + skipped);
            for pair in 0..=self.heads.len() as i64 {
                let _ = self.written.get(&layer).map(|written| output.get(2 * pair + 1).get(self.from).g_add_(written));
            }
            return Ok(Action::Replace(output));
        }
        Ok(Action::Replace(held))
    }
}

/// By how much less a target changes without each head: `[head]`.
fn lost(subject: &Subject, nodes: &Nodes, heads: &[(usize, usize)], source: usize, target: usize) -> Vec<f64> {
    let ((_, position), from) = (end(nodes, target), site(nodes, source));
    let dictionary = |layer| subject.saved.transcoder.dictionary(&subject.saved.params, layer).expect("a dictionary");
    let rows = dictionary(from.layer).w_dec.get(from.feature as i64) * f64::from(nodes.feature(source).activation);
    let mut ablation = Ablation {
        saved: &subject.saved,
        written: (from.layer..).zip(rows.unbind(0)).collect(),
        from: from.position as i64,
        heads,
        position: position as i64,
        skipped: None,
        read: BTreeMap::new(),
        hooks: subject.saved.hooks().expect("hooks"),
    };
    let rows = 2 * heads.len() as i64 + 2;
    let logits = subject.model.forward(&tokens(&subject.prompt).repeat([rows, 1]), &mut ablation).expect("runs").expect("logits");
    let value = |row: i64| match nodes.kind(target) {
        NodeKind::Feature { layer, feature, .. } => {
            let read = ablation.read[&layer].get(row).get(position as i64).to_kind(Kind::Double);
            read.dot(&dictionary(layer).w_enc.get(feature as i64).to_kind(Kind::Double)).double_value(&[])
        }
        _ => logit(nodes, target, &subject.demeaned(&logits.get(row).get(-1))),
    };
    let changes: Vec<f64> = (0..rows / 2).map(|pair| value(2 * pair + 1) - value(2 * pair)).collect();
    changes[1..].iter().map(|change| changes[0] - change).collect()
}

#[test]
fn loadings_are_what_ablated_heads_lose() {
    each(false, Some(25), |subject, attribution, graph| {
        let (name, info) = (&subject.name, subject.model.info());
        let heads: Vec<(usize, usize)> = (0..info.layers).flat_map(|layer| (0..info.heads).map(move |head| (layer, head))).collect();
        let (nodes, found) = (graph.nodes(), loadings(attribution, graph));
        let mut tested = 0.0_f64;
        for logits in [false, true] {
            let wanted = |edge: (usize, usize)| nodes.features().contains(&edge.1) && nodes.logits().contains(&edge.0) == logits;
            let mut edges: Vec<usize> = (0..found.edges.len()).filter(|edge| wanted(found.edges[*edge])).collect();
            edges.sort_by(|a, b| found.weights[*b].abs().total_cmp(&found.weights[*a].abs()));
            for edge in edges.iter().step_by(edges.len().div_ceil(3)) {
                let (target, source) = found.edges[*edge];
                let lost = lost(subject, nodes, &heads, source, target);
                let loadings = Vec::<f64>::try_from(found.loadings.get(*edge as i64).flatten(0, 1).to_kind(Kind::Double)).expect("numbers");
                let most = loadings.iter().fold(0.0_f64, |most, loading| most.max(loading.abs()));
                tested = tested.max(most);
                for ((head, lost), loading) in heads.iter().zip(lost).zip(loadings) {
                    let near = (lost - loading).abs() <= 1e-4 * most.clamp(0.1, 1.0);
                    assert!(near, "{name}: {source} to {target} by {head:?}: {lost} in place of {loading}");
                }
            }
        }
        assert!(tested > 1e-3, "{name}: {tested}");
    });
}

/// Gates of a layer's heads: `[head][query][key]`.
type Gates = Vec<Vec<Vec<f64>>>;

/// The positions that a vector at `position` may have come to, once it has passed the attention of some layers.
fn reached(gates: &[Gates], layers: std::ops::Range<usize>, position: usize) -> Vec<bool> {
    let mut reached = vec![false; POSITIONS];
    reached[position] = true;
    for gate in &gates[layers] {
        let before = reached.clone();
        for (query, there) in reached.iter_mut().enumerate() {
            *there |= (0..=query).any(|key| before[key] && gate.iter().any(|head| head[query][key] > 0.0));
        }
    }
    reached
}

#[test]
fn nothing_passes_closed_gates() {
    for (place, transcoder) in TRANSCODERS.iter().enumerate() {
        let subject = Subject::new("gpt2-gate", *transcoder, HOOKS[place % 3], place as u64);
        let (name, layers) = (&subject.name, subject.model.info().layers);
        let mut capture = Capture::new((0..layers).map(|layer| HookPoint::block(layer, BlockHook::AttnGate)));
        subject.model.forward(&tokens(&subject.prompt), &mut capture).expect(name);
        let gates = |layer| {
            let shown = capture.take(HookPoint::block(layer, BlockHook::AttnGate)).expect("shown").get(0);
            (0..shown.size()[0]).map(|head| Vec::try_from(shown.get(head).to_kind(Kind::Double)).expect("numbers")).collect()
        };
        let gates: Vec<Gates> = (0..layers).map(gates).collect();
        subject.attributed(false, None, |attribution, graph| {
            let nodes = graph.nodes();
            // The first layer whose attention reads what a source writes.
            let begin = |source: usize| match nodes.kind(source) {
                NodeKind::Feature { layer, position, .. } | NodeKind::Error { layer, position } => (layer + 1, position),
                NodeKind::Token { position } => (0, position),
                other => panic!("{name}: {other:?} is no source"),
            };
            let (mut shut, mut open) = (0, 0);
            for target in nodes.targets() {
                let (end, position) = end(nodes, target);
                for (source, weight) in row(graph, target).into_iter().enumerate().take(nodes.tokens().end) {
                    let (first, from) = begin(source);
                    if first < end && from < position {
                        let there = reached(&gates, first..end, from)[position];
                        assert!(there || weight == 0.0, "{name}: {source} to {target}: {weight} through closed gates");
                        *(if there { &mut open } else { &mut shut }) += usize::from(there == (weight != 0.0));
                    }
                }
            }
            // By each head: what reached a position that the head looks at.
            let found = loadings(attribution, graph);
            let (mut closed, mut carried) = (0, 0);
            for (place, (target, source)) in found.edges.iter().enumerate() {
                let ((end, position), (first, from)) = (end(nodes, *target), begin(*source));
                let loadings = found.loadings.get(place as i64);
                for layer in first..end {
                    let there = reached(&gates, first..layer, from);
                    for (head, looks) in gates[layer].iter().enumerate() {
                        let passes = (0..position).any(|key| there[key] && looks[position][key] > 0.0);
                        let loading = loadings.double_value(&[layer as i64, head as i64]);
                        assert!(passes || loading == 0.0, "{name}: {source} to {target} by {layer}/{head}: {loading} through closed gates");
                        *(if passes { &mut carried } else { &mut closed }) += usize::from(passes == (loading != 0.0));
                    }
                }
            }
            assert!([shut, open, closed, carried].into_iter().all(|count| count > 10), "{name}: {shut}, {open}, {closed}, {carried}");
        });
    }
}
