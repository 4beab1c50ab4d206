//! From a prompt to a graph's file.

use std::path::Path;

use circuitlab_core::{LanguageModel, ModelInfo};
use serde::Serialize;
use serde_json::json;
use tch::Tensor;

use super::nodes::{NodeKind, Nodes};
use super::pass::Pass;
use super::prompt::Prompt;
use super::select::Influences;
use super::store::{RowOf, RowStore};
use super::sweep::{Place, Sweep, Targets};
use super::targets::{Explained, TargetChoice};
use super::{GraphMeta, GraphWriter};
use crate::saved::{SavedTranscoder, Scan};
use crate::text::Tokenizer;
use crate::{Error, Progress, Result};

/// How a graph is computed.
#[derive(Debug)]
pub struct AttributeOptions {
    /// What is explained.
    pub targets: TargetChoice,
    /// No more features than so many get rows, those of most influence first; all of them where there is none.
    pub max_feature_nodes: Option<usize>,
    /// Features are chosen in batches of so many, times `update_interval`, between which influences are updated.
    pub batch_size: usize,
    /// See `batch_size`.
    pub update_interval: usize,
    /// Whether there are nodes for biases, positions and special positions, with which rows sum to what they explain.
    pub closing: bool,
    /// Bytes that the computation may take beside model and transcoder; rows are on disk.
    pub memory_bytes: usize,
}

impl Default for AttributeOptions {
    fn default() -> Self {
        Self {
            targets: TargetChoice::Likeliest { most: 10, share: 0.95 },
            max_feature_nodes: Some(7500),
            batch_size: 256,
            update_interval: 4,
            closing: false,
            memory_bytes: 1 << 30,
        }
    }
}

/// What was computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attributed {
    /// Features that are active at positions that are not special.
    pub active_features: usize,
    /// Those of them that are nodes.
    pub selected_features: usize,
    /// Errors, tokens and, where asked for, closing nodes.
    pub other_nodes: usize,
    /// What is explained, as labels with probabilities.
    pub logits: Vec<(String, f64)>,
}

/// A prompt's graph, before it is written.
#[derive(Debug)]
pub struct Attribution<'a> {
    pass: Pass<'a>,
    explained: Explained,
    options: &'a AttributeOptions,
    prompt: Prompt,
    meta: GraphMeta,
    /// Nodes of a graph with everything in it, whose sources are in the order of a row's columns.
    all_nodes: Nodes,
    pub(super) model: &'a dyn LanguageModel,
    pub(super) heads: usize,
    pub(super) d_head: usize,
}

impl<'a> Attribution<'a> {
    /// Runs the prompt and finds what is explained. With `patterns` attention patterns are kept for [`tensors`](Self::tensors).
    ///
    /// # Errors
    /// Options out of range, a transcoder of another model or of hooks that attribution does not know, tokens that the model refuses, targets
    /// that cannot be found, no active feature, and weights that are no numbers.
    pub fn new(
        model: &'a dyn LanguageModel,
        saved: &SavedTranscoder,
        prompt: &Prompt,
        tokenizer: Option<&Tokenizer>,
        options: &'a AttributeOptions,
        patterns: bool,
    ) -> Result<Self> {
        for (name, value) in [("batch size", options.batch_size), ("update interval", options.update_interval)] {
            if value == 0 {
                return Err(Error::Invalid(format!("the {name} is 0; expected at least 1")));
            }
        }
        if options.max_feature_nodes == Some(0) {
            return Err(Error::Invalid("the number of feature nodes is 0; expected at least 1".to_owned()));
        }
        tch::no_grad(|| {
            let pass = Pass::new(model, saved, prompt, patterns)?;
            let explained = options.targets.find(&pass, model, tokenizer)?;
            let all_nodes = Nodes {
                layers: pass.depth(),
                tokens: prompt.tokens.clone(),
                special: pass.special.clone(),
                active: pass.active.clone(),
                selected: (0..pass.active.len() as u32).collect(),
                logits: explained.nodes.clone(),
                closing: true,
            };
            let info = model.info();
            let meta = meta(info, saved, prompt, options);
            let prompt = prompt.clone();
            Ok(Self { pass, explained, options, prompt, meta, all_nodes, model, heads: info.heads, d_head: info.d_head })
        })
    }

    /// Tensors of the pass by the names that graph files have for them.
    ///
    /// # Errors
    /// What libtorch returns.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let mut named: Vec<(String, Tensor)> = self.pass.tensors()?.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        named.push(("logit_vectors".to_owned(), self.explained.vectors.f_to_kind(tch::Kind::Float)?.f_to_device(tch::Device::Cpu)?));
        Ok(named)
    }

    /// Computes the rows and writes the graph's file; `slug` is the graph's name.
    ///
    /// # Errors
    /// What the file system returns.
    pub fn write(&self, path: &Path, slug: &str, progress: &dyn Progress) -> Result<Attributed> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        tch::no_grad(|| {
            let sweep = self.sweep(self.options.closing)?;
            let store = self.rows(&sweep, folder, progress)?;
            self.save(&sweep, &store, path, &GraphMeta { slug: slug.to_owned(), ..self.meta.clone() })
        })
    }

    /// A sweep over the pass.
    pub(super) fn sweep(&self, closing: bool) -> Result<Sweep<'_>> {
        Sweep::new(&self.pass, closing, self.options.memory_bytes / 2)
    }

    /// A node of the graph as a target.
    pub(super) fn target(&self, kind: NodeKind) -> Result<Targets> {
        match kind {
            NodeKind::Feature { active, layer, position, .. } => Ok(Targets {
                layer,
                place: Place::Features,
                gradient: self.pass.encoder_rows(layer, &[active])?,
                positions: vec![position as i64],
                biases: None,
            }),
            NodeKind::Logit { logit } => Ok(Targets {
                layer: self.pass.depth(),
                place: Place::Final,
                gradient: self.explained.vectors.f_narrow(0, logit as i64, 1)?,
                positions: vec![self.pass.positions as i64 - 1],
                biases: None,
            }),
            other => Err(Error::Invalid(format!("{other:?} is explained by nothing: only features and logits are"))),
        }
    }

    pub(super) fn depth(&self) -> usize {
        self.pass.depth()
    }

    pub(super) fn place(&self) -> (tch::Kind, tch::Device) {
        self.pass.place
    }

    pub(super) fn prompt(&self) -> &Prompt {
        &self.prompt
    }

    pub(super) fn all_nodes(&self) -> &Nodes {
        &self.all_nodes
    }

    /// What products of queries and keys of a layer are multiplied by.
    pub(super) fn score_scale(&self, layer: usize) -> Result<f64> {
        let missing = || Error::Invalid(format!("the model does not say how it scales the scores of layer {layer}"));
        self.pass.frozen.score_scales.get(layer).copied().ok_or_else(missing)
    }

    /// The rows of the targets and of the features that are chosen.
    fn rows(&self, sweep: &Sweep<'_>, folder: &Path, progress: &dyn Progress) -> Result<RowStore> {
        let active = &self.pass.active;
        let budget = self.options.max_feature_nodes.unwrap_or(usize::MAX).min(active.len());
        let targets = self.explained.nodes.len();
        let mut work = Work {
            pass: &self.pass,
            sweep,
            store: RowStore::new(folder, sweep.columns.width() as usize)?,
            memory: self.options.memory_bytes / 4,
        };
        progress.begin("attribute", (targets + budget) as u64, "rows");
        work.logits(&self.explained)?;
        progress.at(targets as u64, "");
        let mut left = vec![true; active.len()];
        let mut influences = Influences::new(active, &self.explained.nodes, sweep.columns.tokens.end as usize);
        let mut done = 0;
        while done < budget {
            let next: Vec<usize> = if budget == active.len() {
                (0..budget).collect()
            } else {
                influences.update(&work.store)?;
                influences.best(&left, (self.options.batch_size.saturating_mul(self.options.update_interval)).min(budget - done))
            };
            work.features(&next, |rows| progress.at((targets + done + rows) as u64, ""))?;
            for at in &next {
                left[*at] = false;
            }
            done += next.len();
        }
        progress.end();
        Ok(work.store)
    }

    fn save(&self, sweep: &Sweep<'_>, store: &RowStore, path: &Path, meta: &GraphMeta) -> Result<Attributed> {
        let mut selected: Vec<u32> =
            store.rows().iter().filter_map(|of| if let RowOf::Feature(active) = of { Some(*active as u32) } else { None }).collect();
        selected.sort_unstable();
        let nodes = Nodes { selected, closing: self.options.closing, ..self.all_nodes.clone() };
        let mut writer = GraphWriter::create(path, &nodes, meta, &[])?;
        let (mut stored, mut row) = (Vec::new(), vec![0.0; nodes.count()]);
        let others = sweep.columns.errors.start as usize..sweep.columns.width() as usize;
        for (place, of) in store.rows().iter().enumerate() {
            store.read(place, &mut stored)?;
            for (entry, active) in row.iter_mut().zip(&nodes.selected) {
                *entry = stored[*active as usize];
            }
            row[nodes.errors().start..][..others.len()].copy_from_slice(&stored[others.clone()]);
            if nodes.closing {
                let all: f64 = stored[..nodes.active.len()].iter().map(|entry| f64::from(*entry)).sum();
                let selected: f64 = row[nodes.features()].iter().map(|entry| f64::from(*entry)).sum();
                // Exactly nothing where all are selected, as both are added up in the same order.
                row[nodes.unselected().start] = (all - selected) as f32;
            }
            let node = match of {
                RowOf::Logit(logit) => nodes.logits().start + logit,
                RowOf::Feature(active) => nodes.selected.partition_point(|selected| (*selected as usize) < *active),
            };
            writer.row(node, &row)?;
        }
        writer.finish()?;
        Ok(Attributed {
            active_features: nodes.active.len(),
            selected_features: nodes.selected.len(),
            other_nodes: nodes.logits().start - nodes.selected.len(),
            logits: nodes.logits.iter().map(|logit| (logit.label.clone(), logit.probability)).collect(),
        })
    }
}

/// What the graph is made of.
fn meta(model: &ModelInfo, saved: &SavedTranscoder, prompt: &Prompt, options: &AttributeOptions) -> GraphMeta {
    // Viewers take a scan that begins with a slash for features on this machine.
    let folder = || saved.folder.canonicalize().unwrap_or_else(|_| saved.folder.clone()).display().to_string();
    let (scan, transcoder_list) = match &saved.card.scan {
        Some(Scan::One(scan)) => (scan.clone(), Vec::new()),
        Some(Scan::Many(scans)) => (format!("custom-{}", scans.join("+")), scans.clone()),
        None => (folder(), Vec::new()),
    };
    GraphMeta {
        slug: String::new(),
        scan,
        transcoder_list,
        prompt: prompt.text.clone(),
        prompt_tokens: prompt.texts.clone(),
        model_name: model.name.clone(),
        model_fingerprint: model.fingerprint.clone(),
        vocabulary: model.vocabulary,
        generation_settings: options.generation_settings(),
    }
}

impl AttributeOptions {
    /// The settings as Neuronpedia's graphs have them.
    pub fn generation_settings(&self) -> serde_json::Value {
        let (most, share) = match &self.targets {
            TargetChoice::Likeliest { most, share } => (Some(*most), Some(*share)),
            TargetChoice::Named(_) => (None, None),
        };
        json!({
            "max_n_logits": most,
            "desired_logit_prob": share,
            "batch_size": self.batch_size,
            "update_interval": self.update_interval,
            "max_feature_nodes": self.max_feature_nodes,
        })
    }
}

/// Rows being computed.
struct Work<'w> {
    pass: &'w Pass<'w>,
    sweep: &'w Sweep<'w>,
    store: RowStore,
    /// Bytes that a batch of rows and its gradients may take.
    memory: usize,
}

impl Work<'_> {
    fn logits(&mut self, explained: &Explained) -> Result<()> {
        let last = self.pass.positions as i64 - 1;
        let most = self.most(last);
        for first in (0..explained.nodes.len()).step_by(most) {
            let count = most.min(explained.nodes.len() - first);
            let targets = Targets {
                layer: self.pass.depth(),
                place: Place::Final,
                gradient: explained.vectors.f_narrow(0, first as i64, count as i64)?,
                positions: vec![last; count],
                biases: None,
            };
            let of: Vec<RowOf> = (first..first + count).map(RowOf::Logit).collect();
            self.store.push(&of, &self.sweep.rows(&targets)?)?;
        }
        Ok(())
    }

    /// Computes the rows of some features, those of a layer together.
    fn features(&mut self, active: &[usize], told: impl Fn(usize)) -> Result<()> {
        let mut order = active.to_vec();
        let of = |at: &usize| &self.pass.active[*at];
        order.sort_by_key(|at| (of(at).layer, std::cmp::Reverse(of(at).position), *at));
        let mut done = 0;
        while done < order.len() {
            let (layer, position) = (of(&order[done]).layer, i64::from(of(&order[done]).position));
            let alike = order[done..].iter().take_while(|at| of(at).layer == layer).count();
            // The first one has the latest position, and so the most rows.
            let batch = &order[done..done + alike.min(self.most(position))];
            self.batch(layer as usize, batch)?;
            done += batch.len();
            told(done);
        }
        Ok(())
    }

    fn batch(&mut self, layer: usize, active: &[usize]) -> Result<()> {
        let features: Vec<i64> = active.iter().map(|at| i64::from(self.pass.active[*at].feature)).collect();
        let features = Tensor::from_slice(&features).f_to_device(self.pass.place.1)?;
        let biases = self.pass.layers[layer].dictionary.b_enc.f_index_select(0, &features)?.f_to_kind(self.pass.place.0)?;
        let targets = Targets {
            layer,
            place: Place::Features,
            gradient: self.pass.encoder_rows(layer, active)?,
            positions: active.iter().map(|at| i64::from(self.pass.active[*at].position)).collect(),
            biases: Some(biases),
        };
        let of: Vec<RowOf> = active.iter().map(|at| RowOf::Feature(*at)).collect();
        self.store.push(&of, &self.sweep.rows(&targets)?)
    }

    /// How many targets at a position are computed together.
    fn most(&self, position: i64) -> usize {
        // The gradient, what attention makes of it on its way, and the row with its copies.
        let width = self.pass.tokens.size()[1] as usize;
        let bytes = (8 * width * (position as usize + 1) + 4 * self.sweep.columns.width() as usize) * self.pass.place.0.elt_size_in_bytes();
        (self.memory / bytes).clamp(1, (MOST_ROWS / (position as usize + 1)).max(1))
    }
}

/// Rows of a gradient that are pulled down together, of all positions: beyond so many products are no faster, and caches are small.
const MOST_ROWS: usize = 4096;
