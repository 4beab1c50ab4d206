//! `circuitlab attribute`.

mod attention;
mod targets;
mod written;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use circuitlab::graph::{AttributeOptions, Attributed, Attribution, Graph, JsonOptions, Prompt, PruneOptions, Pruned, Scores, check_slug};
use circuitlab::saved::SavedTranscoder;
use circuitlab::text::Tokenizer;
use circuitlab_core::LanguageModel;
use circuitlab_core::config::FloatKind;
use serde::Serialize;
use serde_json::json;

use super::{Context, graph, model};
use crate::args::AttributeArgs;
use crate::output::human;

/// Targets that are named for people.
const NAMED_LOGITS: usize = 20;

/// A graph that was written.
#[derive(Serialize)]
struct Written {
    /// For viewers.
    file: PathBuf,
    /// The whole of it.
    matrix: PathBuf,
    prompt: String,
    #[serde(flatten)]
    attributed: Attributed,
    nodes_kept: usize,
    edges_kept: u64,
    #[serde(flatten)]
    scores: Scores,
    #[serde(flatten)]
    attention: attention::Attention,
}

/// What all prompts share.
struct Job<'a> {
    args: &'a AttributeArgs,
    context: &'a Context,
    model: Box<dyn LanguageModel>,
    tokenizer: Option<Tokenizer>,
    saved: SavedTranscoder,
    options: AttributeOptions,
    thresholds: PruneOptions,
}

pub(super) fn run(args: &AttributeArgs, context: &Context) -> anyhow::Result<()> {
    circuitlab::device::set_threads(args.threads)?;
    let thresholds = graph::options(&args.thresholds)?;
    args.slug.as_deref().map(check_slug).transpose()?;
    let options = AttributeOptions {
        targets: targets::choice(&args.explained)?,
        max_feature_nodes: Some(args.max_feature_nodes),
        batch_size: args.batch_size,
        update_interval: args.update_interval,
        closing: args.closing,
        memory_bytes: usize::try_from(args.memory).unwrap_or(usize::MAX),
    };
    let (model, folder) = model::open(&args.place, context)?;
    let dtype: FloatKind = circuitlab_core::config::read("--dtype", json!(args.place.dtype))?;
    if matches!(dtype, FloatKind::Bf16 | FloatKind::F16) {
        tracing::warn!("graphs computed in {} have edges that are right to two or three digits; f32 is the default", args.place.dtype);
    }
    let tokenizer = match Tokenizer::load(&folder, model.info()) {
        Err(_) if !args.tokens.is_empty() => None,
        loaded => Some(loaded?),
    };
    // Features fire at thresholds, which have 32 bits at least whatever the model computes in.
    let at_least = if dtype == FloatKind::F64 { dtype } else { FloatKind::F32 };
    let saved = SavedTranscoder::open(&context.registry, &args.clt, args.place.device.parse()?, at_least)?;
    saved.check_model(model.info())?;
    let job = Job { args, context, model, tokenizer, saved, options, thresholds };
    if let Some(file) = &args.prompts {
        return job.all(file);
    }
    let written = job.one(&job.prompt()?, &args.out, args.slug.as_deref().unwrap_or("prompt"))?;
    context.print(&written, || text(&written))
}

impl Job<'_> {
    fn prompt(&self) -> anyhow::Result<Prompt> {
        let info = self.model.info();
        Ok(match (&self.args.prompt, &self.tokenizer) {
            (Some(text), Some(tokenizer)) => Prompt::of_text(text, !self.args.no_bos, tokenizer, info)?,
            _ => Prompt::of_tokens(self.args.tokens.clone(), self.tokenizer.as_ref(), info)?,
        })
    }

    /// A graph for each line of a file, all of which are read before the first is computed.
    fn all(&self, file: &Path) -> anyhow::Result<()> {
        let Some(tokenizer) = &self.tokenizer else { bail!("a file of prompts needs the model's tokenizer") };
        let lines = fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
        let prompts = circuitlab::graph::prompts(&lines, !self.args.no_bos, tokenizer, self.model.info())
            .with_context(|| format!("`{}`", file.display()))?;
        if self.args.out.is_file() {
            bail!("--out: `{}` is a file; the graphs of a file of prompts go into a folder", self.args.out.display());
        }
        fs::create_dir_all(&self.args.out).with_context(|| format!("cannot create `{}`", self.args.out.display()))?;
        let name = self.args.slug.as_deref().unwrap_or("prompt");
        let digits = prompts.len().to_string().len();
        let written = prompts
            .iter()
            .zip(1..)
            .map(|(prompt, number)| {
                let slug = format!("{name}-{number:0digits$}");
                self.one(prompt, &self.args.out, &slug).with_context(|| format!("prompt {number} (`{}`)", prompt.text))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        self.context.print(&written, || written.iter().map(text).collect::<Vec<_>>().join("\n\n"))
    }

    fn one(&self, prompt: &Prompt, out: &Path, slug: &str) -> anyhow::Result<Written> {
        // In a folder a graph is called after its slug, as a file after the file.
        let (file, slug) = if out.is_dir() {
            (out.join(format!("{slug}.json")), slug.to_owned())
        } else {
            let stem = out.file_stem().with_context(|| format!("--out: `{}` is no file's name", out.display()))?;
            (out.to_path_buf(), self.args.slug.clone().unwrap_or_else(|| stem.to_string_lossy().into_owned()))
        };
        check_slug(&slug)?;
        let matrix = file.with_extension("safetensors");
        if matrix == file {
            bail!(
                "--out: `{}` is where the whole graph goes; the graph for viewers needs another name, such as `graph.json`",
                file.display()
            );
        }
        self.check_files(&file)?;
        let patterns = self.args.tensors.is_some();
        let tokenizer = self.tokenizer.as_ref();
        let attribution = Attribution::new(self.model.as_ref(), &self.saved, prompt, tokenizer, &self.options, patterns)?;
        let attributed = attribution.write(&matrix, &slug, &self.context.bars)?;
        let graph = Graph::open(&matrix)?;
        let pruned = Pruned::of(&graph, self.thresholds)?;
        let mut json = JsonOptions { slug: Some(slug), closing: self.args.closing, ..JsonOptions::default() };
        let attention = attention::traced(self.args, &attribution, &graph, &pruned, &file, &mut json, &self.context.bars)?;
        let file = graph::write_view(out, &graph, &pruned, json)?;
        if let Some(path) = &self.args.tensors {
            written::all(path, &graph, &pruned, attribution.tensors()?)?;
        }
        Ok(Written {
            file,
            matrix,
            prompt: prompt.text.clone(),
            attributed,
            nodes_kept: pruned.kept.iter().filter(|kept| **kept).count(),
            edges_kept: pruned.edges,
            scores: pruned.scores,
            attention,
        })
    }
}

impl Job<'_> {
    /// Makes the folder of the graph, and checks that no file would be written over another.
    fn check_files(&self, file: &Path) -> anyhow::Result<()> {
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        }
        let matrix = file.with_extension("safetensors");
        if matrix.exists() && Graph::open(&matrix).is_err() {
            bail!("--out: the whole graph goes to `{}`, which is there and is no graph; expected another name", matrix.display());
        }
        let mut taken = vec![file.to_path_buf(), matrix];
        taken.extend(self.args.heads.then(|| file.with_extension("heads.safetensors")));
        let same = |tensors: &&PathBuf| taken.iter().any(|path| graph::is_same_file(path, tensors));
        if let Some(tensors) = self.args.tensors.as_ref().filter(same) {
            bail!("--tensors: `{}` is where a part of the graph goes; expected another file", tensors.display());
        }
        Ok(())
    }
}

fn text(written: &Written) -> String {
    let Written { attributed, scores, .. } = written;
    let named = |(label, chance): &(String, f64)| format!("`{}` {chance:.3}", label.escape_debug());
    let mut logits: Vec<String> = attributed.logits.iter().take(NAMED_LOGITS).map(named).collect();
    if attributed.logits.len() > NAMED_LOGITS {
        logits.push(format!("and {} more", attributed.logits.len() - NAMED_LOGITS));
    }
    let [active, selected, kept] =
        [attributed.active_features, attributed.selected_features, written.nodes_kept].map(|count| human::whole(count as u64));
    let shown = format!(
        "{:?}: {}\n{active} active features, {selected} of them nodes; {kept} nodes and {} edges are kept in `{}`, all in `{}`\nreplacement {:.4}, completeness {:.4}",
        written.prompt,
        logits.join(", "),
        human::whole(written.edges_kept),
        written.file.display(),
        written.matrix.display(),
        scores.replacement,
        scores.completeness
    );
    written.attention.text().into_iter().fold(shown, |shown, more| format!("{shown}\n\n{more}"))
}
