//! CircuitLab inside a program of your own, with a sparsity activation of your own: a cache, a tiny CLT, two figures.
//!
//!     cargo run -p circuitlab --example embed [FOLDER]

use std::path::{Path, PathBuf};

use circuitlab::cache::{CacheConfig, CacheJob, JobShare, build};
use circuitlab::sink::names::{EXPLAINED_VARIANCE, L0};
use circuitlab::train::{TrainConfig, TrainRequest, train};
use circuitlab::{Result, Silent, model};
use circuitlab_core::sparsity::{Activated, ActivationGradients, ActivationParameter, BackwardInput};
use circuitlab_core::tch::{Kind, Tensor};
use circuitlab_core::{Construct, ModelSource, Registry, SparsityActivation, Spec, register};
use serde_json::json;

register!(activation "soft-threshold" => SoftThresholdConfig, "a = max(h - shift, 0)");

/// Its fields are the activation's settings.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct SoftThresholdConfig {
    /// What is taken off every pre-activation. Default: 0.
    shift: f64,
}

impl Construct for SoftThresholdConfig {
    type Output = SoftThreshold;

    fn construct(&self) -> circuitlab_core::Result<SoftThreshold> {
        Ok(SoftThreshold { shift: self.shift })
    }
}

#[derive(Debug)]
struct SoftThreshold {
    shift: f64,
}

impl SparsityActivation for SoftThreshold {
    fn parameters(&self) -> Vec<ActivationParameter> {
        Vec::new()
    }

    fn activate(&self, pre_acts: &Tensor, _: &[Tensor]) -> circuitlab_core::Result<Activated> {
        let acts = (pre_acts - self.shift).relu();
        Ok(Activated { active: acts.gt(0.0), acts })
    }

    /// With `t = tanh(C a n)`: the sparsity term is `lambda t`, the other one `mu n relu(-h)`, both summed over features and
    /// divided by the rows.
    fn backward(&self, input: BackwardInput<'_>) -> circuitlab_core::Result<ActivationGradients> {
        let (acts, norms, weights) = (&input.activated.acts, input.decoder_norms, input.penalty);
        let (lambda, mu) = (weights.lambda / input.mean_rows as f64, weights.mu / input.mean_rows as f64);
        let tanh = (acts * norms * weights.tanh_scale).tanh();
        let slope = (1.0 - tanh.square()) * (lambda * weights.tanh_scale);
        let gap = input.pre_acts.neg().relu();
        let over_rows = |values: Tensor| values.sum_dim_intlist(0, false, None::<Kind>);
        Ok(ActivationGradients {
            sparsity: tanh.sum(None::<Kind>) * lambda,
            preact: (&gap * norms).sum(None::<Kind>) * mu,
            pre_acts: (input.grad_acts + &slope * norms) * &input.activated.active - gap.gt(0.0) * norms * mu,
            params: Vec::new(),
            decoder_norms: over_rows(slope * acts) + over_rows(gap) * mu,
        })
    }

    fn thresholds(&self, _: &[Tensor]) -> circuitlab_core::Result<Option<Tensor>> {
        Ok(None)
    }

    fn params_with_thresholds(&self, _: Option<&Tensor>) -> circuitlab_core::Result<Vec<Tensor>> {
        Ok(Vec::new())
    }
}

/// Caches a little text, trains on it, and gives explained variance and active features a row.
fn run(out: &Path) -> Result<[Option<f64>; 2]> {
    circuitlab_plugins::link();
    let registry = Registry::linked()?;
    let (cache, bundled) = (out.join("cache"), Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shakespeare"));
    let model = model::open(&registry, &ModelSource::new(bundled.join("model")))?;
    build(
        &CacheJob {
            registry: &registry,
            model: &*model,
            tokenizer: &bundled.join("model"),
            text: &[bundled.join("shakespeare.txt")],
            out: &cache,
            config: &CacheConfig { range: "0.98..1".parse()?, ..CacheConfig::default() },
            share: JobShare::WHOLE,
            resume: false,
        },
        &Silent,
    )?;
    let mut config = TrainConfig { activation: Spec::named("soft-threshold").with("shift", 0.03), ..TrainConfig::default() };
    config.size.d_features = Some(256);
    config.schedule.steps = Some(30);
    config.optimiser.learning_rate = 6e-3;
    config.sparsity.lambda = 0.25;
    let (out, config) = (&out.join("run"), Some(config));
    let done =
        train(&TrainRequest { registry: &registry, cache: Some(&cache), out, config, resume: false, progress: &Silent, stop: None })?;
    Ok([EXPLAINED_VARIANCE, L0].map(|name| done.clts[0].last.as_ref().and_then(|record| record.get(name))))
}

fn main() -> Result<()> {
    let scratch = tempfile::tempdir().map_err(circuitlab_core::Error::io("create", std::env::temp_dir()))?;
    let [explained_variance, l0] = run(&std::env::args_os().nth(1).map_or(scratch.path().to_owned(), PathBuf::from))?;
    #[allow(clippy::print_stdout, reason = "a program's result")]
    {
        println!("{}", json!({"explained_variance": explained_variance, "l0": l0}));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_steps_explain_something() {
        let folder = tempfile::tempdir().expect("a folder");
        let [explained_variance, l0] = run(folder.path()).expect("trains").map(|figure| figure.expect("was recorded"));
        assert!(explained_variance > 0.2 && l0 > 1.0, "explained variance {explained_variance}, L0 {l0}");
    }
}
