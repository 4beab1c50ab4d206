//! What a cache is built with.

use std::fmt;
use std::str::FromStr;

use circuitlab_core::codec::ChainSpec;
use circuitlab_core::{BlockHook, Spec};
use serde::{Deserialize, Serialize};

use crate::plugins::PluginsConfig;
use crate::text::{BosPolicy, Deal, PackOptions, TextRange};
use crate::{Error, Result};

/// Config of a cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct CacheConfig {
    /// Positions of a context, BOS included. Default: 128.
    pub context: usize,
    /// Contexts with fewer tokens, BOS excluded, are left out. Default: 1.
    pub min_tokens: usize,
    /// How activations become bytes. Default: `int8+zstd`.
    pub codec: ChainSpec,
    /// The place in each block whose value is the transcoder's input. Default: `mlp.hook_in`.
    #[serde(with = "hook_name")]
    pub input_hook: BlockHook,
    /// The place in each block whose value the transcoder reconstructs. Default: `hook_mlp_out`.
    #[serde(with = "hook_name")]
    pub output_hook: BlockHook,
    /// About how many rows a chunk holds. Default: what gives 64 MiB of 32-bit floats over all layers, inputs and outputs.
    pub chunk_rows: Option<usize>,
    /// How many contexts go through the model at once. Default: 32.
    pub batch_contexts: usize,
    /// Seed of the order of contexts and rows. Default: 0.
    pub seed: u64,
    /// The part of each text file, as fractions of its bytes. Default: `0..1`.
    pub range: TextRange,
    /// Whether the rows of special tokens (BOS, EOS, ..) are left out. Default: yes.
    pub drop_special_rows: bool,
    /// Rows whose input or output norm in any layer is above this many times the median of that layer and side, over the chunk, are left out:
    /// attention sinks and the like. Default: none, all rows are kept.
    pub max_norm: Option<f64>,
    /// Whether contexts begin with BOS: `auto` (where the model has one), true or false. Default: `auto`.
    pub bos: BosPolicy,
    /// Whether the model's EOS is appended to each document. Default: no.
    pub eos: bool,
    /// Whether the documents of a job are joined one after another, with EOS (or BOS, for models without) between them, so that all contexts are
    /// full. Default: no, contexts do not cross from one document into the next.
    pub cross_documents: bool,
    /// Shares of the `--text` paths in the tokens of the cache, one for each. As much is used as there is without repeating any, exact to a
    /// context; every job tokenises the whole text then, to know the shares. Default: none, everything is used.
    pub weights: Option<Vec<f64>>,
    /// The field or column that holds the text, or the ids of documents that are tokens already, in files that have such.
    /// Default: `text`.
    pub text_field: Option<String>,
    /// Whether lines that cannot be read are left out and counted. Default: no, they are errors.
    pub skip_bad_lines: bool,
    /// Text sources whose settings differ from the defaults. Default: none.
    pub sources: Vec<Spec>,
    /// Plugin libraries.
    pub plugins: PluginsConfig,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            context: 128,
            min_tokens: 1,
            codec: ChainSpec::parse("int8+zstd"),
            input_hook: BlockHook::MlpIn,
            output_hook: BlockHook::MlpOut,
            chunk_rows: None,
            batch_contexts: 32,
            seed: 0,
            range: TextRange::ALL,
            drop_special_rows: true,
            max_norm: None,
            bos: BosPolicy::Auto,
            eos: false,
            cross_documents: false,
            weights: None,
            text_field: None,
            skip_bad_lines: false,
            sources: Vec::new(),
            plugins: PluginsConfig::default(),
        }
    }
}

impl CacheConfig {
    /// How its documents are cut, and which of them are a job's.
    pub fn pack_options(&self, share: JobShare) -> PackOptions {
        PackOptions {
            context: self.context,
            min_tokens: self.min_tokens,
            range: self.range,
            bos: self.bos,
            eos: self.eos,
            cross_documents: self.cross_documents,
            weights: self.weights.clone(),
            deal: Deal { seed: self.seed, part: share.job as u64 - 1, parts: share.jobs as u64 },
        }
    }
}

/// Hooks by their names.
pub(super) mod hook_name {
    use circuitlab_core::BlockHook;
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
    pub(in crate::cache) fn serialize<S: Serializer>(hook: &BlockHook, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(hook.name())
    }

    pub(in crate::cache) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BlockHook, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Job `job` of `jobs` that build one cache together, counted from 1: `1/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobShare {
    job: usize,
    jobs: usize,
}

/// So that part folders sort by name.
const MOST_JOBS: usize = 999;

impl JobShare {
    /// One job that does everything.
    pub const WHOLE: Self = Self { job: 1, jobs: 1 };

    /// Job `job` of `jobs`.
    ///
    /// # Errors
    /// Anything but `1 <= job <= jobs <= 999`.
    pub fn new(job: usize, jobs: usize) -> Result<Self> {
        if 1 <= job && job <= jobs && jobs <= MOST_JOBS {
            return Ok(Self { job, jobs });
        }
        Err(Error::Invalid(format!("job `{job}/{jobs}`: expected a job from `1/N` to `N/N`, N at most {MOST_JOBS}")))
    }

    /// The job's number, from 1.
    pub fn job(self) -> usize {
        self.job
    }

    /// How many jobs.
    pub fn jobs(self) -> usize {
        self.jobs
    }

    /// The name of the job's folder.
    pub(super) fn folder(self) -> String {
        format!("part-{:03}-of-{:03}", self.job, self.jobs)
    }

    /// Reads such a name.
    pub(super) fn of_folder(name: &str) -> Option<Self> {
        let (job, jobs) = name.strip_prefix("part-")?.split_once("-of-")?;
        let share = Self::new(job.parse().ok()?, jobs.parse().ok()?).ok()?;
        (share.folder() == name).then_some(share)
    }
}

impl fmt::Display for JobShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.jobs)
    }
}

impl FromStr for JobShare {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').and_then(|(job, jobs)| Some((job.parse().ok()?, jobs.parse().ok()?)));
        let (job, jobs) = numbers.ok_or_else(|| Error::Invalid(format!("job `{text}`: expected a job such as `1/8`")))?;
        Self::new(job, jobs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_is_read_with_defaults_and_written_whole() {
        let config: CacheConfig =
            circuitlab_core::config::read("cache", serde_json::json!({"context": 64, "codec": "none"})).expect("a config");
        assert_eq!(config, CacheConfig { context: 64, codec: ChainSpec::parse("none"), ..CacheConfig::default() });
        let text = serde_json::to_string(&config).expect("plain data");
        assert_eq!(serde_json::from_str::<CacheConfig>(&text).expect("its own words"), config);
        let error = circuitlab_core::config::read::<CacheConfig>("cache", serde_json::json!({"contxt": 64})).expect_err("misspelt");
        assert!(error.to_string().contains("did you mean `context`"), "{error}");
        let error = circuitlab_core::config::read::<CacheConfig>("cache", serde_json::json!({"input_hook": "mlp.hook_on"}));
        assert!(error.expect_err("misspelt").to_string().contains("did you mean `mlp.hook_in`"));
    }

    #[test]
    fn bos_is_a_word_or_a_flag() {
        for (written, policy) in
            [(serde_json::json!("auto"), BosPolicy::Auto), (true.into(), BosPolicy::Always), (false.into(), BosPolicy::Never)]
        {
            let config: CacheConfig = circuitlab_core::config::read("cache", serde_json::json!({"bos": written})).expect("a policy");
            assert_eq!(config.bos, policy);
            assert_eq!(serde_json::to_value(&config).expect("plain data")["bos"], written);
        }
        let error = circuitlab_core::config::read::<CacheConfig>("cache", serde_json::json!({"bos": 3})).expect_err("a number");
        assert!(error.to_string().contains("expected `auto`, true or false"), "{error}");
    }

    #[test]
    fn jobs_are_read_and_written() {
        let share: JobShare = "3/12".parse().expect("a job");
        assert_eq!((share.to_string().as_str(), share.folder().as_str()), ("3/12", "part-003-of-012"));
        assert_eq!(JobShare::of_folder("part-003-of-012"), Some(share));
        assert_eq!(JobShare::of_folder("part-3-of-12"), None);
        for wrong in ["", "0/3", "4/3", "1", "1/1000", "a/b"] {
            assert!(wrong.parse::<JobShare>().is_err(), "{wrong}");
        }
    }
}
