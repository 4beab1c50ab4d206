//! A tiny deterministic model, a tokenizer of words, and a folder with both and some text.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use circuitlab::cache::{Cache, CacheConfig, CacheJob, JobShare, Summary, build};
use circuitlab::{Result, Silent};
use circuitlab_core::codec::ChainSpec;
use circuitlab_core::random::Stream;
use circuitlab_core::{Action, BlockHook, Error, HookPoint, HookVisitor, LanguageModel, ModelInfo, Registry, Spec};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

pub(crate) const LAYERS: usize = 3;
pub(crate) const WIDTH: usize = 8;
const WORDS: usize = 30;

/// A model whose values are a function of a token, its position and all tokens before it, as a causal model's are.
#[derive(Debug)]
pub(crate) struct FakeModel {
    pub(crate) info: ModelInfo,
    /// Fails instead of running pass number `fail_at`.
    pub(crate) fail_at: Option<usize>,
    /// Gives NaN in layer 1's outputs for this token.
    pub(crate) nan_token: Option<i64>,
    /// Gives values a thousand times as large in layer 2's inputs for this token.
    pub(crate) loud_token: Option<i64>,
    passes: Cell<usize>,
}

impl FakeModel {
    pub(crate) fn new() -> Self {
        let info = ModelInfo {
            family: "fake".to_owned(),
            name: "fake-model".to_owned(),
            fingerprint: "f00d".to_owned(),
            layers: LAYERS,
            d_model: WIDTH,
            heads: 1,
            kv_heads: 1,
            d_head: WIDTH,
            d_mlp: WIDTH,
            vocabulary: WORDS,
            context: 64,
            parameters: 0,
            bos: Some(0),
            eos: None,
            stops: Vec::new(),
        };
        Self { info, fail_at: None, nan_token: None, loud_token: None, passes: Cell::new(0) }
    }

    pub(crate) fn failing_at(pass: usize) -> Self {
        Self { fail_at: Some(pass), ..Self::new() }
    }

    pub(crate) fn passes(&self) -> usize {
        self.passes.get()
    }

    /// One row of a layer's inputs or outputs, for the last of some tokens.
    pub(crate) fn row(&self, layer: usize, hook: BlockHook, tokens: &[i64]) -> Vec<f32> {
        let past = tokens.iter().enumerate().map(|(place, token)| (*token as f32 + 1.0) * (place as f32 + 2.0).sqrt()).sum::<f32>();
        let side = if hook == BlockHook::MlpIn { 1.0 } else { 2.0 };
        let nan = self.nan_token == tokens.last().copied() && layer == 1 && hook == BlockHook::MlpOut;
        let loud = self.loud_token == tokens.last().copied() && layer == 2 && hook == BlockHook::MlpIn;
        let size = (layer + 1) as f32 * if loud { 1000.0 } else { 1.0 };
        let value = |at: usize| ((past + layer as f32 * 3.0 + at as f32) * side).sin() * size;
        (0..WIDTH).map(|at| if nan && at == 5 { f32::NAN } else { value(at) }).collect()
    }
}

impl LanguageModel for FakeModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn placement(&self) -> (Device, Kind) {
        (Device::Cpu, Kind::Float)
    }

    fn hook_points(&self) -> Vec<HookPoint> {
        (0..LAYERS)
            .flat_map(|layer| [BlockHook::MlpIn, BlockHook::MlpRawOut, BlockHook::MlpOut].map(|hook| HookPoint::block(layer, hook)))
            .collect()
    }

    fn forward(&self, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> circuitlab_core::Result<Option<Tensor>> {
        let pass = self.passes.replace(self.passes.get() + 1);
        if self.fail_at == Some(pass) {
            return Err(Error::Invalid("the power is gone".to_owned()));
        }
        let (batch, positions) = tokens.size2()?;
        let contexts: Vec<Vec<i64>> = Vec::try_from(tokens)?;
        for point in self.hook_points() {
            let HookPoint::Block { layer, hook } = point else { continue };
            let rows = contexts.iter().flat_map(|ids| (1..=ids.len()).flat_map(|end| self.row(layer, hook, &ids[..end])));
            let value = Tensor::from_slice(&rows.collect::<Vec<f32>>()).view([batch, positions, WIDTH as i64]);
            if visitor.wants(point) && matches!(visitor.visit(point, &value)?, Action::Stop) {
                return Ok(None);
            }
        }
        Ok(Some(Tensor::zeros([batch, positions, WORDS as i64], (Kind::Float, Device::Cpu))))
    }
}

/// A folder with a tokenizer and a text of documents between empty lines.
pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) registry: Registry,
    pub(crate) config: CacheConfig,
}

impl World {
    pub(crate) fn new() -> Self {
        circuitlab_plugins::link();
        let world = Self {
            folder: tempfile::tempdir().expect("a folder"),
            registry: Registry::linked().expect("no name twice"),
            config: CacheConfig {
                context: 9,
                chunk_rows: Some(40),
                batch_contexts: 3,
                seed: 5,
                codec: ChainSpec::parse("int8+zstd"),
                sources: vec![Spec::named("txt").with("separator", "\n\n")],
                ..CacheConfig::default()
            },
        };
        write(&world.path("tokenizer.json"), tokenizer(WORDS));
        let mut stream = Stream::new(1, "text", 0);
        let documents: Vec<String> = (0..25)
            .map(|_| {
                let words = 1 + stream.next_u64() as usize % 20;
                (0..words).map(|_| format!("w{}", 2 + stream.next_u64() as usize % (WORDS - 2))).collect::<Vec<_>>().join(" ")
            })
            .collect();
        write(&world.path("text.txt"), documents.join("\n\n"));
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn build(&self, model: &FakeModel, out: &str, share: &str, resume: bool) -> Result<Summary> {
        self.with_job(model, &["text.txt"], out, share, |job| build(&CacheJob { resume, ..*job }, &Silent))
    }

    /// Does something with a job over some paths of text.
    pub(crate) fn with_job<T>(
        &self,
        model: &FakeModel,
        text: &[&str],
        out: &str,
        share: &str,
        work: impl FnOnce(&CacheJob<'_>) -> Result<T>,
    ) -> Result<T> {
        let text: Vec<PathBuf> = text.iter().map(|name| self.path(name)).collect();
        work(&CacheJob {
            registry: &self.registry,
            model,
            tokenizer: self.folder.path(),
            text: &text,
            out: &self.path(out),
            config: &self.config,
            share: share.parse::<JobShare>().expect("a job"),
            resume: false,
        })
    }

    pub(crate) fn open(&self, name: &str) -> Result<Cache> {
        Cache::open(&self.path(name), &self.registry)
    }

    /// All files below a folder and what they hold.
    pub(crate) fn files(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        for part in std::fs::read_dir(self.path(name)).expect("a folder").map(|entry| entry.expect("an entry")) {
            for file in std::fs::read_dir(part.path()).expect("a folder").map(|entry| entry.expect("an entry")) {
                let key = format!("{}/{}", part.file_name().display(), file.file_name().display());
                files.push((key, std::fs::read(file.path()).expect("reads")));
            }
        }
        files.sort();
        files
    }
}

#[allow(clippy::disallowed_methods, reason = "test files need no atomic writer")]
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) {
    std::fs::write(path, content).expect("writes");
}

/// A tokenizer of the words `w2`, `w3`, .. that would cut texts after four tokens if it were not told otherwise.
pub(crate) fn tokenizer(words: usize) -> String {
    let vocabulary: serde_json::Map<_, _> = (0..words)
        .map(|id| {
            let word = match id {
                0 => "<s>".to_owned(),
                1 => "<unk>".to_owned(),
                _ => format!("w{id}"),
            };
            (word, id.into())
        })
        .collect();
    serde_json::json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [{
            "id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true
        }],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    })
    .to_string()
}
