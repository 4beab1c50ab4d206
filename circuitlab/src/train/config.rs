//! The config of a training run. Every field has a default; `config.toml` in a run folder holds all
//! that are set, those of the plugins included.

use std::path::PathBuf;

use circuitlab_core::config::{DeviceName, FloatKind};
use circuitlab_core::{Kind, PenaltyWeights, Spec};
use serde::{Deserialize, Serialize};
use tch::Device;

use super::several::{self, CltConfig};
use super::sharing::Sharing;
use crate::cache::CacheConfig;
use crate::plugins::PluginsConfig;
use crate::{Error, Result};

/// A training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of the order of rows, and of initial weights where `init.seed` is not set. Default 0.
    pub seed: u64,
    /// The transcoder, by name. Default `clt`.
    pub transcoder: Spec,
    /// The sparsity activation, by name. Default `jumprelu`.
    pub activation: Spec,
    /// The parallelism strategy, by name. Default `single`.
    pub strategy: Spec,
    /// How many features.
    pub size: SizeConfig,
    /// Weights of the penalty terms.
    pub sparsity: SparsityConfig,
    /// Adam and clipping.
    pub optimiser: OptimiserConfig,
    /// How long, and how the learning rate moves.
    pub schedule: ScheduleConfig,
    /// Batches.
    pub data: DataConfig,
    /// A model and text that make rows as they are needed, for runs without a cache. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activations: Option<ActivationsConfig>,
    /// The start.
    pub init: InitConfig,
    /// What is written down, and when.
    pub metrics: MetricsConfig,
    /// When the run can be resumed from.
    pub checkpoint: CheckpointConfig,
    /// Where and in what type.
    pub compute: ComputeConfig,
    /// Plugin libraries; a run's own config holds those that it needs.
    pub plugins: PluginsConfig,
    /// Several transcoders on one stream of rows, each a table with a `name` and whatever settings of its own. Default: none, one
    /// transcoder with the settings of the run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clt: Vec<CltConfig>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            transcoder: Spec::named("clt"),
            activation: Spec::named("jumprelu"),
            strategy: Spec::named("single"),
            size: SizeConfig::default(),
            sparsity: SparsityConfig::default(),
            optimiser: OptimiserConfig::default(),
            schedule: ScheduleConfig::default(),
            data: DataConfig::default(),
            activations: None,
            init: InitConfig::default(),
            metrics: MetricsConfig::default(),
            checkpoint: CheckpointConfig::default(),
            compute: ComputeConfig::default(),
            plugins: PluginsConfig::default(),
            clt: Vec::new(),
        }
    }
}

/// Activations that are made as they are needed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationsConfig {
    /// Folder of a Hugging Face model, or `hf:ORG/NAME[@REVISION]`.
    pub model: String,
    /// Text files, folders of them, patterns, or data sets of the hub.
    pub text: Vec<PathBuf>,
    /// Where the model runs. Default: `cpu`.
    #[serde(default)]
    pub device: DeviceName,
    /// What the model computes in. Default: `f32`.
    #[serde(default)]
    pub dtype: FloatKind,
    /// Whether the model's attention is sparse. Default: no.
    #[serde(default)]
    pub attention_gate: bool,
    /// Everything that a cache's config says, but for its codec, which is not used.
    #[serde(default)]
    pub settings: CacheConfig,
}

/// How many features a layer has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SizeConfig {
    /// Features of a layer as a multiple of `d_model`. Default 8.
    pub expansion: usize,
    /// Features of a layer; takes the place of `expansion`. Default: not set.
    pub d_features: Option<usize>,
}

impl Default for SizeConfig {
    fn default() -> Self {
        Self { expansion: 8, d_features: None }
    }
}

impl SizeConfig {
    /// Features of a layer.
    ///
    /// # Errors
    /// No feature at all.
    pub fn features(&self, d_model: usize) -> Result<usize> {
        match self.d_features.or_else(|| self.expansion.checked_mul(d_model)) {
            Some(features) if features > 0 => Ok(features),
            _ => Err(Error::Invalid("size: a layer needs at least 1 feature; set `size.expansion` or `size.d_features`".to_owned())),
        }
    }
}

/// The penalty terms of the loss, in normalised units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparsityConfig {
    /// Weight of the sparsity term at the end of its ramp. Default 2.
    pub lambda: f64,
    /// Weight of the pre-activation term, which keeps silent features reachable. Default 1e-5.
    pub mu: f64,
    /// Steepness of the tanh in the sparsity term. Default 4.
    pub tanh_scale: f64,
    /// Share of the run over which `lambda` rises linearly from 0. Default 1, the whole run.
    pub ramp: f64,
}

impl Default for SparsityConfig {
    fn default() -> Self {
        Self { lambda: 2.0, mu: 1e-5, tanh_scale: 4.0, ramp: 1.0 }
    }
}

impl SparsityConfig {
    /// The weights where the ramp stands at `share` of its height.
    pub fn at(&self, share: f64) -> PenaltyWeights {
        PenaltyWeights { lambda: self.lambda * share, mu: self.mu, tanh_scale: self.tanh_scale }
    }
}

/// Adam (Kingma and Ba 2015) with clipping of the gradient's global norm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimiserConfig {
    /// Learning rate between warm-up and decay. Default 4e-4.
    pub learning_rate: f64,
    /// Decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment. Default 1e-8.
    pub epsilon: f64,
    /// The gradient is scaled down to this norm where it is longer. Default 1.
    pub clip_norm: f64,
    /// What both moments of weights are kept in: `f32`, or `int8`, which takes a quarter of the memory. Biases and thresholds have
    /// moments of 32 bits in either. A run in `f64` has them in `f64`. Default `f32`.
    pub moments: MomentKind,
}

/// What Adam keeps moments in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MomentKind {
    /// At least 32 bits.
    #[default]
    F32,
    /// 8 bits, and two scales for 256 numbers.
    Int8,
}

impl Default for OptimiserConfig {
    fn default() -> Self {
        Self { learning_rate: 4e-4, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, clip_norm: 1.0, moments: MomentKind::F32 }
    }
}

/// The length of the run and the shape of the learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Steps; takes the place of `epochs`. Default: not set.
    pub steps: Option<u64>,
    /// Passes over the cache. Default 1.
    pub epochs: f64,
    /// Steps over which the learning rate rises linearly. Default: 1000, or a tenth of the run where that is less.
    pub warmup_steps: Option<u64>,
    /// Share of the run at its end over which the learning rate falls linearly to 0. Default 0.2.
    pub decay: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { steps: None, epochs: 1.0, warmup_steps: None, decay: 0.2 }
    }
}

/// How rows are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Rows of a step, over all ranks. Default 1024.
    pub batch_rows: usize,
    /// At most so many of a rank's rows go through the transcoder at a time; gradients of a step are added up, so that the result is the
    /// same to rounding, for less memory. Default: not set, all at once.
    pub micro_batch_rows: Option<usize>,
    /// Chunks whose rows are mixed with each other; as many are held in memory, twice. Default 8.
    pub window_chunks: usize,
    /// How ranks that train on the same rows come by them: `each` decodes all of them, or in `parts`, which they send to each other.
    /// Default `auto`: in parts on GPUs and without a cache, else each.
    pub sharing: Sharing,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self { batch_rows: 1024, micro_batch_rows: None, window_chunks: 8, sharing: Sharing::Auto }
    }
}

/// How weights start, and how encoder biases are set from data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InitConfig {
    /// Share of rows on which each feature fires at the start. Default: min(10000, F / 4) / F for F features.
    pub rate: Option<f64>,
    /// Rows that the biases are set from. Default 8192.
    pub rows: usize,
    /// Seed of initial weights. Default: the run's.
    pub seed: Option<u64>,
}

impl Default for InitConfig {
    fn default() -> Self {
        Self { rate: None, rows: 8192, seed: None }
    }
}

impl InitConfig {
    /// The share of rows on which each of `features` fires at the start.
    pub fn share(&self, features: f64) -> f64 {
        self.rate.unwrap_or(f64::min(10_000.0, features / 4.0) / features)
    }
}

/// What is written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Steps between two records; a record covers all steps since the one before. Default 10.
    pub every_steps: u64,
    /// A feature that was silent on this many rows in a row is dead. Default 250000.
    pub dead_rows: u64,
    /// Where the figures go, by name, each once; plots are drawn from what `jsonl` writes. Default `["jsonl", "tensorboard"]`.
    pub sinks: Vec<Spec>,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { every_steps: 10, dead_rows: 250_000, sinks: ["jsonl", "tensorboard"].map(Spec::named).into() }
    }
}

/// When the run can be resumed from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between two checkpoints. Default: a tenth of the run.
    pub every_steps: Option<u64>,
    /// How many of the newest are kept. Default 2.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: None, keep: 2 }
    }
}

/// Where and in what type.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeConfig {
    /// `cpu`, `cuda` or `cuda:N`. Default `cpu`.
    pub device: DeviceName,
    /// `f32`, `f64` or `bf16`. In `bf16` weights are computed with in 16 bits; the optimiser has master copies of them in 32, and biases,
    /// thresholds, moments and losses are of 32 bits throughout. Default `f32`.
    pub dtype: FloatKind,
    /// Threads of CPU products. Default: libtorch's choice, the number of cores.
    pub threads: Option<i32>,
}

impl TrainConfig {
    /// All plugins that the run names.
    pub(super) fn plugin_names(&self) -> impl Iterator<Item = (Kind, &str)> {
        let specs = [(Kind::Transcoder, &self.transcoder), (Kind::Activation, &self.activation), (Kind::Strategy, &self.strategy)];
        let sinks = self.metrics.sinks.iter().map(|spec| (Kind::MetricSink, spec));
        specs.into_iter().chain(sinks).map(|(kind, spec)| (kind, spec.name.as_str()))
    }

    /// Checks what no type can.
    ///
    /// # Errors
    /// The first value that is out of range, with the range.
    pub fn check(&self) -> Result<()> {
        let positive = |key: &str, value: f64| check(value > 0.0 && value.is_finite(), key, "a positive number", value);
        let share = |key: &str, value: f64| check((0.0..=1.0).contains(&value), key, "a number between 0 and 1", value);
        let not_negative = |key: &str, value: f64| check(value >= 0.0 && value.is_finite(), key, "a number not below 0", value);
        not_negative("sparsity.lambda", self.sparsity.lambda)?;
        not_negative("sparsity.mu", self.sparsity.mu)?;
        positive("sparsity.tanh_scale", self.sparsity.tanh_scale)?;
        positive("optimiser.epsilon", self.optimiser.epsilon)?;
        positive("optimiser.clip_norm", self.optimiser.clip_norm)?;
        check((0.0..1.0).contains(&self.optimiser.beta1), "optimiser.beta1", "a number from 0 to below 1", self.optimiser.beta1)?;
        check((0.0..1.0).contains(&self.optimiser.beta2), "optimiser.beta2", "a number from 0 to below 1", self.optimiser.beta2)?;
        share("schedule.decay", self.schedule.decay)?;
        if let Some(rate) = self.init.rate {
            check(rate > 0.0 && rate < 1.0, "init.rate", "a number between 0 and 1, both excluded", rate)?;
        }
        for (key, value) in [
            ("data.batch_rows", self.data.batch_rows as u64),
            ("data.micro_batch_rows", self.data.micro_batch_rows.unwrap_or(1) as u64),
            ("data.window_chunks", self.data.window_chunks as u64),
            ("metrics.every_steps", self.metrics.every_steps),
            ("checkpoint.every_steps", self.checkpoint.every_steps.unwrap_or(1)),
            ("checkpoint.keep", self.checkpoint.keep as u64),
        ] {
            check(value > 0, key, "a whole number above 0", value)?;
        }
        let sinks = &self.metrics.sinks;
        if let Some((_, twin)) = (1..).zip(sinks).find(|(next, sink)| sinks[*next..].iter().any(|other| other.name == sink.name)) {
            return check(false, "metrics.sinks", "each sink once", format!("`{}` twice", twin.name));
        }
        check(self.init.rows >= 2, "init.rows", "at least 2", self.init.rows)?;
        check(
            self.compute.dtype != FloatKind::F16,
            "compute.dtype",
            "`f32`, `f64` or `bf16`",
            format!("{:?}", self.compute.dtype).to_lowercase(),
        )?;
        if self.optimiser.moments == MomentKind::Int8 {
            let dtype = self.compute.dtype;
            check(dtype != FloatKind::F64, "optimiser.moments", "`f32` where `compute.dtype` is `f64`", "int8")?;
            check(self.compute.device.0 == Device::Cpu, "optimiser.moments", "`f32` on this device; `int8` is for CPUs", "int8")?;
        }
        several::check(self)
    }
}

fn check(holds: bool, key: &str, expected: &str, got: impl std::fmt::Display) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::Invalid(format!("config, key `{key}`: expected {expected}, got {got}")))
}

#[cfg(test)]
mod tests {
    use circuitlab_core::files::write_atomic;

    use super::*;
    use crate::config::{resolve, to_toml};

    #[test]
    fn defaults_are_in_range_and_mistakes_are_named() {
        TrainConfig::default().check().expect("defaults");
        let mut config = TrainConfig::default();
        config.optimiser.beta2 = 1.0;
        let error = config.check().expect_err("1 never forgets");
        assert_eq!(error.to_string(), "config, key `optimiser.beta2`: expected a number from 0 to below 1, got 1");
        let mut config = TrainConfig::default();
        config.metrics.sinks = ["csv", "jsonl", "csv"].map(Spec::named).into();
        let error = config.check().expect_err("two would write one file");
        assert_eq!(error.to_string(), "config, key `metrics.sinks`: expected each sink once, got `csv` twice");
        let mut config = TrainConfig::default();
        config.compute.dtype = FloatKind::F16;
        assert!(config.check().expect_err("too narrow").to_string().contains("expected `f32`, `f64` or `bf16`, got f16"));
    }

    #[test]
    fn sinks_are_written_and_read_back() {
        let tidy = || Spec::named("tidy").with("prefix", "loss/");
        for sinks in [vec![], vec![Spec::named("csv")], vec![Spec::named("jsonl"), tidy()], vec![tidy(), Spec::named("csv").with("a", 1)]] {
            let mut config = TrainConfig::default();
            config.metrics.sinks = sinks;
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("config.toml");
            let text = to_toml(&config).expect("plain data");
            write_atomic(&path, |out| out.write_all(text.as_bytes())).expect("writes");
            let presets = serde_json::to_value(TrainConfig::default()).expect("plain data");
            assert_eq!(resolve::<TrainConfig>(Some(&path), &[], presets).expect("its own output"), config, "{text}");
        }
        let sets = [r#"metrics.sinks=["jsonl", {type="csv"}]"#.to_owned()];
        let config: TrainConfig = resolve(None, &sets, serde_json::Value::Null).expect("names and tables");
        assert_eq!(config.metrics.sinks, ["jsonl", "csv"].map(Spec::named));
    }
}
