//! Recorded training steps: parameters, batches and penalty weights in one safetensors file, as reference implementations
//! write them for comparison.
//!
//! Keys: `init.W_enc [layer, d_model, d_features]`, `init.b_enc`, `init.log_threshold [layer, d_features]`, `init.b_dec [layer, d_model]`,
//! `init.W_dec.{s} [targets, d_features, d_model]`; `x.{i}`, `y.{i}` `[rows, layer, d_model]`; scalars such as `lambda`.

use std::path::Path;
use std::time::{Duration, Instant};

use circuitlab_core::tensors::TensorFile;
use circuitlab_core::{
    Batch, Dims, Error as CoreError, ParallelismStrategy, Parameters, PenaltyWeights, Registry, SparsityActivation, Spec, StageCost,
    StepContext, Transcoder,
};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::train::step::gradient;
use crate::train::{Adam, OptimiserConfig, clip_scale, global_norm};

/// A recording and the plugins that can replay it.
#[derive(Debug)]
pub struct Recording {
    file: TensorFile,
    kind: Kind,
    dims: Dims,
    transcoder: Box<dyn Transcoder>,
    activation: Box<dyn SparsityActivation>,
    strategy: Box<dyn ParallelismStrategy>,
    names: [String; 2],
    micro_batches: usize,
}

/// What one replayed step gave.
#[derive(Debug)]
pub struct ReplayedStep {
    /// Mean squared error, summed over layers and `d_model`.
    pub mse: f64,
    /// Sparsity term.
    pub sparsity: f64,
    /// Pre-activation term.
    pub preact: f64,
    /// Active features per row, all layers together.
    pub l0: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// How long it took, optimiser included.
    pub elapsed: Duration,
    /// Gradients before clipping, in the order of the parameters, where they were asked for.
    pub gradients: Vec<Tensor>,
    /// What its parts cost: those that the transcoder measures, and `optimiser`.
    pub stages: Vec<StageCost>,
}

impl Recording {
    /// Opens a recording, to be replayed by the plugins named. Default: JumpReLU, and a CLT, or a PLT where each layer
    /// decodes to itself only.
    ///
    /// A recorded `bandwidth` goes to an activation that has such a setting, unless the spec sets it.
    ///
    /// # Errors
    /// Files that are no such recording, and plugins that are not known or refuse their settings.
    pub fn open(registry: &Registry, path: &Path, kind: Kind, transcoder: Option<&Spec>, activation: Option<&Spec>) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let (encoder, _) = file.raw("init.W_enc")?;
        let [layers, d_model, d_features] = encoder[..] else {
            return Err(
                CoreError::format(path, format!("`init.W_enc` has shape {encoder:?}, expected [layer, d_model, d_features]")).into()
            );
        };
        let dims = Dims { layers: layers as usize, d_model: d_model as usize, d_features: d_features as usize };
        let transcoder = transcoder.map_or_else(|| Self::transcoder(path), |given| Ok(given.clone()))?;
        let activation = activation.cloned().unwrap_or_else(|| Spec::named("jumprelu"));
        let names = [&transcoder, &activation].map(label);
        let activation = with_bandwidth(registry, &file, activation)?;
        Ok(Self {
            file,
            kind,
            dims,
            names,
            transcoder: registry.build::<dyn Transcoder>(&transcoder)?,
            activation: registry.build::<dyn SparsityActivation>(&activation)?,
            strategy: registry.build::<dyn ParallelismStrategy>(&Spec::named("single"))?,
            micro_batches: 1,
        })
    }

    /// The transcoder that a recording is of: a CLT, or a PLT where each layer decodes to itself only.
    ///
    /// # Errors
    /// Files that are no such recording.
    pub fn transcoder(path: &Path) -> Result<Spec> {
        let file = TensorFile::open(path)?;
        let layers = file.raw("init.W_enc")?.0.first().copied().unwrap_or(0);
        let targets = file.raw("init.W_dec.0")?.0.first().copied().unwrap_or(0);
        Ok(Spec::named(if targets == 1 && layers > 1 { "plt" } else { "clt" }))
    }

    /// The same, each step walked in so many micro-batches.
    #[must_use]
    pub fn with_micro_batches(self, micro_batches: usize) -> Self {
        Self { micro_batches, ..self }
    }

    /// The names of its transcoder and its activation, with the settings that were given.
    pub fn names(&self) -> &[String; 2] {
        &self.names
    }

    /// A tensor, in the recording's type.
    ///
    /// # Errors
    /// A name that is not there.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.file.tensor(name, Some(self.kind), Device::Cpu)?)
    }

    /// A number.
    ///
    /// # Errors
    /// A name that is not there, or a tensor with more than one value.
    pub fn scalar(&self, name: &str) -> Result<f64> {
        number(&self.file, name, self.kind)
    }

    /// The parameters recorded under a prefix, such as `init` or `final`.
    ///
    /// # Errors
    /// Tensors that are missing or do not fit.
    pub fn parameters(&self, prefix: &str) -> Result<Parameters> {
        let specs = self.transcoder.parameters(self.dims, &*self.activation)?;
        let values = specs
            .iter()
            .map(|spec| {
                let layer = spec.layer as i64;
                let name = spec.name.trim_end_matches(|end: char| end.is_ascii_digit()).trim_end_matches('_');
                // The recording has features last in encoders and second in decoders.
                Ok(match name {
                    "W_dec" => self.tensor(&format!("{prefix}.W_dec.{layer}"))?.f_transpose(0, 1)?.contiguous(),
                    "W_enc" => self.tensor(&format!("{prefix}.W_enc"))?.f_select(0, layer)?.tr().contiguous(),
                    _ => self.tensor(&format!("{prefix}.{name}"))?.f_select(0, layer)?.copy(),
                })
            })
            .collect::<Result<_>>()?;
        Parameters::new(specs, values).map_err(|error| CoreError::format(self.file.path(), error.to_string()).into())
    }

    /// The batch recorded under a number.
    ///
    /// # Errors
    /// A number that is not there.
    pub fn batch(&self, index: usize) -> Result<Batch> {
        Ok(Batch { inputs: self.tensor(&format!("x.{index}"))?, targets: self.tensor(&format!("y.{index}"))? })
    }

    /// Takes one step: losses and gradients, clipping, Adam.
    ///
    /// # Errors
    /// Batches that do not fit the parameters.
    pub fn replay(
        &mut self,
        params: &mut Parameters,
        adam: &mut Adam,
        batch: &Batch,
        penalty: PenaltyWeights,
        learning_rate: f64,
        keep_gradients: bool,
    ) -> Result<ReplayedStep> {
        let started = Instant::now();
        let context = StepContext::whole(&*self.activation, &*self.strategy, penalty, batch.inputs.size()[0]);
        let output = gradient(&mut *self.transcoder, params, batch, &context, None, self.micro_batches)?;
        let gradients = if keep_gradients { output.gradients.iter().map(Tensor::copy).collect() } else { Vec::new() };
        let gradient_norm = global_norm(&output.gradients, output.gradient_squares.as_deref(), params, &*self.strategy)?;
        if !gradient_norm.is_finite() {
            let what = format!("the gradient is {gradient_norm}: a parameter, a row or a scalar is not finite, or too large");
            return Err(CoreError::format(self.file.path(), what).into());
        }
        let stepped = Instant::now();
        adam.step(params, &output.gradients, learning_rate, clip_scale(gradient_norm, 1.0))?;
        let mut stages = output.stages;
        let numbers = params.count() as f64;
        // A gradient is read; the parameter and both moments are read and written.
        let bytes = numbers * 7.0 * self.kind.elt_size_in_bytes() as f64;
        stages.push(StageCost { name: "optimiser", seconds: stepped.elapsed().as_secs_f64(), flop: 0.0, bytes });
        let value = |tensor: &Tensor| tensor.double_value(&[]);
        Ok(ReplayedStep {
            mse: value(&output.mse),
            sparsity: value(&output.sparsity),
            preact: value(&output.preact),
            l0: output.active_rows.sum(Kind::Double).double_value(&[]) / batch.inputs.size()[0].max(1) as f64,
            gradient_norm,
            elapsed: started.elapsed(),
            gradients,
            stages,
        })
    }
}

/// What a component is called among others: its name, with the settings that keep it apart from one of the same name.
fn label(spec: &Spec) -> String {
    let settings: Vec<String> = spec.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if settings.is_empty() { spec.name.clone() } else { format!("{} {}", spec.name, settings.join(" ")) }
}

fn number(file: &TensorFile, name: &str, kind: Kind) -> Result<f64> {
    let tensor = file.tensor(name, Some(kind), Device::Cpu)?;
    if tensor.numel() != 1 {
        return Err(CoreError::format(file.path(), format!("`{name}` holds {} values, expected 1", tensor.numel())).into());
    }
    Ok(tensor.view([]).double_value(&[]))
}

/// Adds the recorded bandwidth where the activation has that setting and the spec leaves it open.
fn with_bandwidth(registry: &Registry, file: &TensorFile, spec: Spec) -> Result<Spec> {
    let known = registry.complete::<dyn SparsityActivation>(&spec)?.settings.contains_key("bandwidth");
    if !known || spec.settings.contains_key("bandwidth") || !file.contains("bandwidth")? {
        return Ok(spec);
    }
    // In double precision, whatever the steps are in: the setting is a 64-bit float.
    Ok(spec.with("bandwidth", number(file, "bandwidth", Kind::Double)?))
}

/// The optimiser that recordings are made with.
pub fn optimiser(params: &Parameters) -> Adam {
    Adam::new(OptimiserConfig { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, ..OptimiserConfig::default() }, params)
}
