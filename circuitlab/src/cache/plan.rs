//! What a job will do: the text in contexts, and how contexts make chunks.

use std::ops::Range;
use std::path::{Path, PathBuf};

use circuitlab_core::random::Permutation;
use circuitlab_core::{CodecChain, HookPoint, LanguageModel, Registry};
use tch::Kind;

use super::config::{CacheConfig, JobShare};
use super::identity::Identity;
use crate::progress::Progress;
use crate::saved::check_hooks;
use crate::text::{Context, PackedText, Tokenizer, pack, resolve};
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
    /// Files and folders of text.
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
}

impl Plan {
    /// Checks the settings, reads and tokenises the text, and lays out the chunks. Runs no model and writes nothing.
    ///
    /// # Errors
    /// Settings that do not fit the model, and text or a tokenizer that cannot be used.
    pub fn new(job: &CacheJob<'_>, progress: &dyn Progress) -> Result<Self> {
        let CacheJob { config, .. } = job;
        let info = job.model.info();
        check(job)?;
        let codec = CodecChain::build(job.registry, &config.codec)?;
        let files = resolve(job.registry, &config.sources, job.text)?;
        let tokenizer = Tokenizer::load(job.tokenizer, info)?;
        let records = files.iter().map(crate::text::SourceFile::record).collect::<Result<Vec<_>>>()?;
        let text = pack(&files, &tokenizer, info, &config.pack_options(), progress)?;
        let mut identity = Identity {
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
            bos: info.bos,
            drop_special_rows: config.drop_special_rows,
            special_tokens: tokenizer.special().collect(),
            tokenizer: tokenizer.sha256().to_owned(),
            text: records,
            range: config.range,
            seed: config.seed,
            jobs: job.share.jobs(),
            contexts: text.len(),
            rows: 0,
            chunk_contexts: 1,
            batch_contexts: config.batch_contexts,
            providers: job.registry.providers(codec.plugins())?,
        };
        identity.rows = text.iter().map(|context| kept(&identity, &context).count() as u64).sum();
        if identity.rows == 0 {
            return Err(Error::Invalid("the text has no row to keep: all its tokens are special".to_owned()));
        }
        identity.chunk_contexts = chunk_contexts(&identity, config.chunk_rows);
        let order = Permutation::new(config.seed, "contexts", 0, text.len() as u64);
        Ok(Self { identity, share: job.share, codec, text, order })
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
        self.share.places(self.text.len()).div_ceil(self.identity.chunk_contexts)
    }

    /// How many rows this job writes.
    pub fn rows(&self) -> u64 {
        self.contexts(0..self.share.places(self.text.len())).map(|context| self.kept(&context).count() as u64).sum()
    }

    /// What the rows of this job would take as 32-bit floats.
    pub fn raw_bytes(&self) -> u64 {
        self.rows() * (self.identity.layers * self.identity.d_model * 2 * 4) as u64
    }

    /// The chain that encodes them.
    pub(super) fn codec(&self) -> &CodecChain {
        &self.codec
    }

    /// The contexts of one chunk.
    pub(super) fn chunk(&self, chunk: usize) -> impl Iterator<Item = Context<'_>> {
        let first = chunk * self.identity.chunk_contexts;
        self.contexts(first..(first + self.identity.chunk_contexts).min(self.share.places(self.text.len())))
    }

    /// The order of the rows of a chunk.
    pub(super) fn row_order(&self, chunk: usize, rows: usize) -> Permutation {
        Permutation::new(self.identity.seed, "rows", self.share.place(chunk) as u64, rows as u64)
    }

    /// The positions of a context whose rows are kept.
    pub(super) fn kept(&self, context: &Context<'_>) -> impl Iterator<Item = usize> {
        kept(&self.identity, context)
    }

    fn contexts(&self, indices: Range<usize>) -> impl Iterator<Item = Context<'_>> {
        indices.map(|index| self.text.context(self.order.at(self.share.place(index) as u64) as usize))
    }
}

fn kept(identity: &Identity, context: &Context<'_>) -> impl Iterator<Item = usize> {
    let drop = identity.drop_special_rows;
    context.ids().enumerate().filter(move |(_, id)| !drop || identity.special_tokens.binary_search(id).is_err()).map(|(place, _)| place)
}

fn check(job: &CacheJob<'_>) -> Result<()> {
    let CacheJob { config, .. } = job;
    for (key, value) in [("batch_contexts", Some(config.batch_contexts)), ("chunk_rows", config.chunk_rows)] {
        if value == Some(0) {
            return Err(circuitlab_core::Error::config(format!("cache, key `{key}`"), "expected at least 1, got 0").into());
        }
    }
    let points = job.model.hook_points();
    for hook in [config.input_hook, config.output_hook] {
        if let Some(layer) = (0..job.model.info().layers).find(|layer| !points.contains(&HookPoint::block(*layer, hook))) {
            let family = &job.model.info().family;
            return Err(Error::Invalid(format!("models of the family `{family}` have no `{}`", HookPoint::block(layer, hook))));
        }
    }
    check_hooks(config.input_hook, config.output_hook)?;
    config.pack_options().check(job.model.info())
}

fn chunk_contexts(identity: &Identity, chunk_rows: Option<usize>) -> usize {
    let row_bytes = identity.layers * identity.d_model * 2 * 4;
    let rows = chunk_rows.unwrap_or_else(|| CHUNK_BYTES / row_bytes.max(1)) as u128;
    let contexts = rows * identity.contexts as u128 / u128::from(identity.rows);
    (contexts as usize).clamp(1, identity.contexts)
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
