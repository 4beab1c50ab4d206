//! What a job will do: the text in contexts, and how contexts make chunks.

use std::ops::Range;
use std::path::{Path, PathBuf};

use circuitlab_core::random::Permutation;
use circuitlab_core::{CodecChain, HookPoint, LanguageModel, Registry};
use tch::Kind;

use super::config::{CacheConfig, JobShare};
use super::identity::{Identity, PathWeight};
use crate::progress::Progress;
use crate::saved::check_hooks;
use crate::text::{BosPolicy, Context, PackedText, SourceFile, Tokenizer, check_weights, pack, resolve, sources_with};
use crate::{Error, Result};

/// About how much memory the rows of a chunk take before they are encoded.
const CHUNK_BYTES: usize = 64 << 20;

/// What a cache is built from.
#[derive(Debug, Clone, Copy)]
pub struct CacheJob<'a> {
    /// Where codecs and text sources are found.
    pub registry: &'a Registry,
    /// The model.
    pub model: &'a dyn LanguageModel,
    /// `tokenizer.json`, or the folder that holds it.
    pub tokenizer: &'a Path,
    /// Files, folders, patterns and hub repositories of text.
    pub text: &'a [PathBuf],
    /// The cache's folder.
    pub out: &'a Path,
    /// The settings.
    pub config: &'a CacheConfig,
    /// Which share of the cache.
    pub share: JobShare,
    /// Whether to go on with what is there.
    pub resume: bool,
}

/// A job's text in contexts, its order and its chunks.
#[derive(Debug)]
pub struct Plan {
    identity: Identity,
    share: JobShare,
    codec: CodecChain,
    text: PackedText,
    order: Permutation,
    /// Where each chunk begins in the order, and the end of the last.
    bounds: Vec<usize>,
    rows: u64,
}

impl Plan {
    /// Checks the settings, reads and tokenises the job's share of the text, and lays out its chunks. Runs no model and writes nothing
    /// but temporary files.
    ///
    /// # Errors
    /// Settings that do not fit the model, and text or a tokenizer that cannot be used.
    pub fn new(job: &CacheJob<'_>, progress: &dyn Progress) -> Result<Self> {
        let CacheJob { config, share, .. } = *job;
        let info = job.model.info();
        check(job)?;
        let codec = CodecChain::build(job.registry, &config.codec)?;
        let sources = sources_with(job.registry, &config.sources, config.text_field.as_deref(), config.skip_bad_lines)?;
        let files = resolve(job.registry, &sources, job.text, progress)?;
        let tokenizer = Tokenizer::load_if_there(job.tokenizer, info)?;
        let identity = identity(job, &codec, &files, &tokenizer)?;
        let text = pack(&files, &tokenizer, info, &config.pack_options(share), progress)?;
        let order = Permutation::new(config.seed, "contexts", share.job() as u64, text.len() as u64);
        let mut plan = Self { identity, share, codec, text, order, bounds: vec![0], rows: 0 };
        plan.lay_out();
        if plan.rows == 0 && share.jobs() == 1 {
            return Err(Error::Invalid("the text has no row to keep: all its tokens are special".to_owned()));
        }
        Ok(plan)
    }

    /// Cuts the order into chunks of about the same number of rows, none much larger than asked for.
    fn lay_out(&mut self) {
        self.rows = self.text.iter().map(|context| self.kept_rows(&context)).sum();
        let chunks = self.rows.div_ceil(self.identity.chunk_rows as u64);
        let mut rows = 0;
        for place in 0..self.text.len() {
            let kept = self.kept_rows(&self.context(place));
            rows += kept;
            let next = self.bounds.len() as u128;
            if next <= u128::from(chunks) && u128::from(rows) * u128::from(chunks) >= next * u128::from(self.rows) && kept > 0 {
                self.bounds.push(place + 1);
            }
        }
        // Contexts without a row to keep may follow the last with one.
        if let Some(end) = self.bounds.last_mut().filter(|end| **end > 0) {
            *end = self.text.len();
        }
    }

    /// What all parts of the cache share.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Which share of the cache.
    pub fn share(&self) -> JobShare {
        self.share
    }

    /// How many chunks this job writes.
    pub fn chunks(&self) -> usize {
        self.bounds.len() - 1
    }

    /// How many rows this job writes.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Documents that were left out because they could not be read.
    pub fn skipped(&self) -> u64 {
        self.text.skipped()
    }

    /// What so many rows would take as 32-bit floats.
    pub fn raw_bytes(&self, rows: u64) -> u64 {
        rows * (self.identity.layers * self.identity.d_model * 2 * 4) as u64
    }

    /// The chain that encodes them.
    pub(super) fn codec(&self) -> &CodecChain {
        &self.codec
    }

    /// The contexts of one chunk.
    pub(super) fn chunk(&self, chunk: usize) -> impl Iterator<Item = Context<'_>> {
        let bound = |number: usize| self.bounds.get(number).copied().unwrap_or(self.text.len());
        (bound(chunk)..bound(chunk + 1)).map(|place| self.context(place))
    }

    /// Contexts of all chunks.
    pub(super) fn contexts(&self) -> usize {
        self.text.len()
    }

    /// The contexts at some places of the order, as far as there are any: a random sample.
    pub(super) fn sample(&self, places: Range<usize>) -> impl Iterator<Item = Context<'_>> {
        (places.start..places.end.min(self.text.len())).map(|place| self.context(place))
    }

    /// How many rows a chunk has.
    pub(super) fn chunk_rows(&self, chunk: usize) -> u64 {
        self.chunk(chunk).map(|context| self.kept_rows(&context)).sum()
    }

    /// The order of the rows of a chunk.
    pub(super) fn row_order(&self, chunk: usize, rows: usize) -> Permutation {
        let number = (self.share.job() as u64) << 32 | chunk as u64;
        Permutation::new(self.identity.seed, "rows", number, rows as u64)
    }

    /// The positions of a context whose rows are kept.
    pub(super) fn kept(&self, context: &Context<'_>) -> impl Iterator<Item = usize> {
        kept(&self.identity, context)
    }

    fn kept_rows(&self, context: &Context<'_>) -> u64 {
        (if self.identity.drop_special_rows { context.plain_tokens } else { context.positions() }) as u64
    }

    /// The context at a place of the order.
    fn context(&self, place: usize) -> Context<'_> {
        self.text.context(self.order.at(place as u64) as usize)
    }
}

fn kept(identity: &Identity, context: &Context<'_>) -> impl Iterator<Item = usize> {
    let drop = identity.drop_special_rows;
    context.ids().enumerate().filter(move |(_, id)| !drop || identity.special_tokens.binary_search(id).is_err()).map(|(place, _)| place)
}

fn identity(job: &CacheJob<'_>, codec: &CodecChain, files: &[SourceFile], tokenizer: &Tokenizer) -> Result<Identity> {
    let CacheJob { config, .. } = job;
    let info = job.model.info();
    let row_bytes = info.layers * info.d_model * 2 * 4;
    let files_of = |path: usize| files.iter().filter(|file| file.group() == path).count();
    let weights = config.weights.iter().flatten().enumerate();
    Ok(Identity {
        model: info.name.clone(),
        family: info.family.clone(),
        fingerprint: info.fingerprint.clone(),
        dtype: dtype_name(job.model.placement().1),
        layers: info.layers,
        d_model: info.d_model,
        input_hook: config.input_hook,
        output_hook: config.output_hook,
        codec: codec.spec().clone(),
        context: config.context,
        min_tokens: config.min_tokens,
        bos: info.bos.filter(|_| config.bos != BosPolicy::Never),
        eos: info.eos.filter(|_| config.eos),
        cross_documents: config.cross_documents,
        weights: weights.map(|(path, weight)| PathWeight { weight: *weight, files: files_of(path) }).collect(),
        drop_special_rows: config.drop_special_rows,
        max_norm: config.max_norm,
        special_tokens: tokenizer.special().collect(),
        tokenizer: tokenizer.sha256().map(str::to_owned),
        text: files.iter().map(SourceFile::record).collect::<Result<Vec<_>>>()?,
        range: config.range,
        seed: config.seed,
        jobs: job.share.jobs(),
        chunk_rows: config.chunk_rows.unwrap_or_else(|| CHUNK_BYTES / row_bytes.max(1)).max(1),
        batch_contexts: config.batch_contexts,
        providers: job.registry.providers(codec.plugins())?,
    })
}

fn check(job: &CacheJob<'_>) -> Result<()> {
    let CacheJob { config, .. } = job;
    for (key, value) in [("batch_contexts", Some(config.batch_contexts)), ("chunk_rows", config.chunk_rows)] {
        if value == Some(0) {
            return Err(circuitlab_core::Error::config(format!("cache, key `{key}`"), "expected at least 1, got 0").into());
        }
    }
    if let Some(ratio) = config.max_norm.filter(|ratio| !ratio.is_finite() || *ratio < 1.0) {
        let message = format!("expected at least 1, such as 10: how often the median norm; got {ratio}");
        return Err(circuitlab_core::Error::config("cache, key `max_norm`", message).into());
    }
    let points = job.model.hook_points();
    for hook in [config.input_hook, config.output_hook] {
        if let Some(layer) = (0..job.model.info().layers).find(|layer| !points.contains(&HookPoint::block(*layer, hook))) {
            let family = &job.model.info().family;
            return Err(Error::Invalid(format!("models of the family `{family}` have no `{}`", HookPoint::block(layer, hook))));
        }
    }
    check_hooks(config.input_hook, config.output_hook)?;
    if let Some(weights) = &config.weights {
        check_weights(weights, job.text.len())?;
    }
    config.pack_options(job.share).check(job.model.info())
}

fn dtype_name(kind: Kind) -> String {
    match kind {
        Kind::Float => "f32".to_owned(),
        Kind::Double => "f64".to_owned(),
        Kind::BFloat16 => "bf16".to_owned(),
        Kind::Half => "f16".to_owned(),
        other => format!("{other:?}"),
    }
}
