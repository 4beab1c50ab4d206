//! Transcoders: the parameters of a dictionary and the training step over them.

use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::tensors::FileLayout;
use crate::{Error, ParallelismStrategy, ParameterSpec, Parameters, PenaltyWeights, Result, SparsityActivation};

/// The sizes of a transcoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dims {
    /// Layers of the language model.
    pub layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Features of each layer.
    pub d_features: usize,
}

/// Rows to train on, in normalised units: each layer's rows have a mean L2 norm of `sqrt(d_model)`.
#[derive(Debug)]
pub struct Batch {
    /// MLP inputs: `[rows, layer, d_model]`.
    pub inputs: Tensor,
    /// MLP outputs: `[rows, layer, d_model]`.
    pub targets: Tensor,
}

/// What a step needs beside parameters and rows.
#[derive(Debug)]
pub struct StepContext<'a> {
    /// Which features are active.
    pub activation: &'a dyn SparsityActivation,
    /// How ranks add up.
    pub strategy: &'a dyn ParallelismStrategy,
    /// Weights of the penalty terms at this step.
    pub penalty: PenaltyWeights,
    /// Rows that losses and gradients are a mean over: those of all ranks of the data axis, and of all micro-batches of the step.
    pub mean_rows: i64,
    /// Whether this is a later micro-batch of a step: its gradients are added to those that the call before gave. The parameters
    /// have not changed since then.
    pub accumulate: bool,
    /// Where parameters come from and gradients go; nothing where this rank has all rows of its features and nobody waits for gradients.
    pub exchange: Option<&'a dyn Exchange>,
}

impl<'a> StepContext<'a> {
    /// A step of one micro-batch with `rows` rows on each rank.
    pub fn whole(
        activation: &'a dyn SparsityActivation,
        strategy: &'a dyn ParallelismStrategy,
        penalty: PenaltyWeights,
        rows: i64,
    ) -> Self {
        Self { activation, strategy, penalty, mean_rows: rows * strategy.mesh().data.size as i64, accumulate: false, exchange: None }
    }

    /// All rows of the parameter at `position`, for this rank's features; see [`Exchange::lend`].
    ///
    /// # Errors
    /// As there, and a position that is not there.
    pub fn lend(&self, params: &Parameters, position: usize, next: Option<usize>) -> Result<Tensor> {
        match (self.exchange, params.values().get(position)) {
            (_, None) => Err(Error::Invalid(format!("there is no parameter at place {position}"))),
            (None, Some(value)) => Ok(value.shallow_clone()),
            (Some(exchange), _) => exchange.lend(position, next),
        }
    }

    /// Whether the gradient of a parameter goes away; see [`Exchange::takes`].
    pub fn takes(&self, position: usize) -> bool {
        self.exchange.is_some_and(|exchange| exchange.takes(position))
    }

    /// Says that a gradient is whole; see [`Exchange::ready`].
    ///
    /// # Errors
    /// As there.
    pub fn ready(&self, position: usize, gradient: &Tensor) -> Result<()> {
        self.exchange.map_or(Ok(()), |exchange| exchange.ready(position, gradient))
    }
}

/// How a step comes by parameters that ranks share out, and hands gradients on while it goes on. Parameters are named by their position.
pub trait Exchange: Debug + Sync {
    /// All rows of a parameter that this rank's features have. Where they have to be fetched from other ranks, those of `next` are fetched
    /// meanwhile. All ranks ask for the same parameters in the same order.
    ///
    /// # Errors
    /// A rank that does not answer.
    fn lend(&self, position: usize, next: Option<usize>) -> Result<Tensor>;

    /// Whether the gradient of a parameter goes away with [`ready`](Self::ready): the step neither keeps it nor adds to it, whatever
    /// [`StepContext::accumulate`] says, and gives an empty tensor in its place.
    fn takes(&self, position: usize) -> bool;

    /// Hears that the gradient of a parameter is whole, for this micro-batch: nothing writes to it until the step's end. Called once for each
    /// matrix, in the same order on all ranks; for vectors it need not be called.
    ///
    /// # Errors
    /// A rank that does not answer.
    fn ready(&self, position: usize, gradient: &Tensor) -> Result<()>;
}

/// What a step gives back. Losses are means over `mean_rows` and sums over all layers and features, on every rank; those of the
/// micro-batches of a step add up.
#[derive(Debug)]
pub struct StepOutput {
    /// Squared error, summed over layers and `d_model`: scalar.
    pub mse: Tensor,
    /// Sparsity term, weighted: scalar.
    pub sparsity: Tensor,
    /// Pre-activation term, weighted: scalar.
    pub preact: Tensor,
    /// Gradients in the order of the parameters, of this rank's rows only; empty tensors in place of those that went away
    /// ([`Exchange::takes`]). At least of 32 bits. They may
    /// share memory with what the transcoder keeps: the next call may write over them.
    pub gradients: Vec<Tensor>,
    /// The sum of the squares of each gradient, in the same order, where the step found them on its way.
    pub gradient_squares: Option<Vec<f64>>,
    /// Squared error of each target layer, summed over this rank's rows: `[layer]`.
    pub squared_error: Tensor,
    /// How many of this rank's rows each feature fired on, float: `[layer, d_features]`.
    pub active_rows: Tensor,
    /// What its parts cost, where the transcoder measures them.
    pub stages: Vec<StageCost>,
}

/// What raw rows of each layer are multiplied by in training.
#[derive(Debug, Clone, Copy)]
pub struct Scales<'a> {
    /// Inputs.
    pub inputs: &'a [f64],
    /// Targets.
    pub targets: &'a [f64],
}

impl Scales<'_> {
    /// Checks that there is one for each layer.
    ///
    /// # Errors
    /// Another number of scales than layers.
    pub fn check(&self, layers: usize) -> Result<()> {
        let [inputs, targets] = [self.inputs.len(), self.targets.len()];
        if [inputs, targets] == [layers; 2] {
            return Ok(());
        }
        Err(Error::Invalid(format!("{layers} layers need as many scales, {inputs} and {targets} came")))
    }
}

/// What a file of a saved transcoder holds of some features.
#[derive(Debug)]
pub struct SavedRows {
    /// The file, as its layout has it.
    pub file: PathBuf,
    /// The tensor's name.
    pub tensor: String,
    /// Its rows, one for each of these features, or all of it.
    pub rows: Tensor,
    /// Whether its first axis runs over features. What does not is the same whatever the features.
    pub per_feature: bool,
}

/// One layer of a linear dictionary, in the units of what it takes and gives. The reconstruction of a layer is the sum of the decoder rows that
/// are written to it, each times its feature's activation, plus the layer's `b_dec` and its skip.
#[derive(Debug)]
pub struct Dictionary {
    /// Encoder rows: `[d_features, d_model]`. A pre-activation is `w_enc[f] . x + b_enc[f]`.
    pub w_enc: Tensor,
    /// Encoder biases: `[d_features]`.
    pub b_enc: Tensor,
    /// Decoder rows to each of the layer's targets: `[d_features, targets, d_model]`.
    pub w_dec: Tensor,
    /// Decoder bias of this layer: `[d_model]`.
    pub b_dec: Tensor,
    /// The linear skip, where there is one, which adds `skip x` to this layer's reconstruction: `[d_model, d_model]`.
    pub skip: Option<Tensor>,
}

/// What a part of a step cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageCost {
    /// Its name, such as `encode`.
    pub name: &'static str,
    /// How long it took.
    pub seconds: f64,
    /// Floating-point operations.
    pub flop: f64,
    /// Bytes of memory that it has to read and write, those that stay in caches not counted.
    pub bytes: f64,
}

/// A dictionary that reads the residual stream and writes to MLP outputs.
///
/// It holds no parameters of its own: it describes them, so that the engine can start, shard, step and save them. Methods
/// that read parameters work on any split of the features. Conformance is checked by
/// [`testing::transcoder`](crate::testing::transcoder).
pub trait Transcoder: Debug + Send {
    /// circuit-tracer's `model_kind` for a folder of it. Asked for once.
    fn model_kind(&self) -> &'static str;

    /// The target layers that a source layer writes to.
    ///
    /// # Errors
    /// A layer that is not there.
    fn targets(&self, dims: Dims, source: usize) -> Result<Range<usize>>;

    /// The parameters, grouped by layer.
    ///
    /// # Errors
    /// Sizes that the transcoder cannot have.
    fn parameters(&self, dims: Dims, activation: &dyn SparsityActivation) -> Result<Vec<ParameterSpec>>;

    /// Sets the encoder biases so that every feature fires on a share `rate` of these rows.
    ///
    /// # Shapes
    /// `inputs: [rows, layer, d_model]`, normalised.
    ///
    /// # Errors
    /// Shapes that do not fit, or a rate outside 0..1.
    fn calibrate(&self, params: &mut Parameters, activation: &dyn SparsityActivation, inputs: &Tensor, rate: f64) -> Result<()>;

    /// Whether its steps take matrices from [`StepContext::exchange`], so that ranks can share them out.
    fn takes_shards(&self) -> bool {
        false
    }

    /// Losses and gradients of one batch, or micro-batch. It changes no parameter; what it keeps from call to call is memory, and the
    /// gradients that later micro-batches are added to.
    ///
    /// # Errors
    /// Shapes that do not fit, and what the strategy returns.
    fn step(&mut self, params: &Parameters, batch: &Batch, context: &StepContext<'_>) -> Result<StepOutput>;

    /// The activations of one source layer.
    ///
    /// # Shapes
    /// `inputs: [rows, d_model]`; gives `[rows, d_features]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn encode(&self, params: &Parameters, activation: &dyn SparsityActivation, source: usize, inputs: &Tensor) -> Result<Tensor>;

    /// The reconstruction of one target layer, decoder bias and, where there is one, linear skip included.
    ///
    /// # Shapes
    /// `acts[s]: [rows, d_features]` for every source layer `s` up to `target`; `inputs: [rows, d_model]`, which layer `target` itself reads
    /// and a skip is taken of; gives `[rows, d_model]`.
    ///
    /// # Errors
    /// Shapes that do not fit, or too few source layers.
    fn decode(&self, params: &Parameters, acts: &[Tensor], inputs: &Tensor, target: usize) -> Result<Tensor>;

    /// A layer as what it is, for attribution and interventions.
    ///
    /// # Errors
    /// A layer that is not there, and a transcoder that is no linear dictionary.
    fn dictionary(&self, params: &Parameters, layer: usize) -> Result<Dictionary> {
        let _ = params;
        Err(Error::Invalid(format!("layer {layer}: a `{}` does not say what it is as a linear dictionary", self.model_kind())))
    }

    /// The files of a folder in circuit-tracer's layout, with all features and numbers of type `kind`. An activation that has a
    /// [`jump_form`](SparsityActivation::jump_form) is saved as that JumpReLU: its scale and shift go into the encoder.
    ///
    /// # Errors
    /// Sizes that the transcoder cannot have.
    fn files(&self, dims: Dims, activation: &dyn SparsityActivation, kind: Kind) -> Result<Vec<FileLayout>>;

    /// What these files hold of some features of a layer, with the scales folded in, so that they take and give raw rows. `params` are that
    /// layer's, of these features alone; however features are cut, the numbers are the same to the bit.
    ///
    /// # Errors
    /// Another number of scales than layers, and shapes that do not fit.
    fn saved(
        &self,
        dims: Dims,
        layer: usize,
        params: &Parameters,
        activation: &dyn SparsityActivation,
        scales: Scales<'_>,
    ) -> Result<Vec<SavedRows>>;

    /// Whether the files of a folder hold thresholds: such a folder is a JumpReLU one, others are ReLU.
    ///
    /// # Errors
    /// Files that are missing or damaged.
    fn has_thresholds(&self, folder: &Path) -> Result<bool>;

    /// Whether the files of a folder hold a linear skip. Such a folder is read by the transcoder of the same name whose setting `skip` is
    /// `true`.
    ///
    /// # Errors
    /// Files that are missing or damaged.
    fn has_skip(&self, folder: &Path) -> Result<bool> {
        let _ = folder;
        Ok(false)
    }

    /// Reads such files back.
    ///
    /// # Errors
    /// Files that are missing, damaged, or do not fit together.
    fn load(&self, folder: &Path, activation: &dyn SparsityActivation, kind: Kind, device: Device) -> Result<(Dims, Parameters)>;
}
