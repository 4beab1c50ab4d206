//! The suite of [`Transcoder`].

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::one_rank::OneRank;
use crate::random::Stream;
use crate::sparsity::{has_jump_form, has_thresholds};
use crate::tensors::FolderWriter;
use crate::{
    Activated, ActivationParameter, Axis, Batch, Dims, Init, JumpForm, Mesh, Parameters, PenaltyWeights, Result, Saving, Scales, Scope,
    SparsityActivation, StepContext, StepOutput, Transcoder, Update,
};

const DIMS: Dims = Dims { layers: 3, d_model: 5, d_features: 11 };
const ROWS: i64 = 6;
const PENALTY: PenaltyWeights = PenaltyWeights { lambda: 0.3, mu: 0.02, tanh_scale: 2.0 };

/// Asserts that a transcoder keeps its promises, in f64 and with a given activation: parameters are named once and grouped by
/// layer, the step's squared error is that of encoding and decoding, its gradients are the slopes of its losses, a saved folder
/// is read back as the same function of raw rows (by a JumpReLU, where the activation has a jump form), its files are the same however many
/// processes write them, and wrong shapes are errors. `scratch` is an empty folder.
///
/// Slopes are taken by central differences along a random direction of each parameter but the activation's own, which may have
/// stand-in gradients.
///
/// # Panics
/// When the transcoder breaks one of them.
pub fn conforms(transcoder: &mut dyn Transcoder, activation: &dyn SparsityActivation, scratch: &Path) {
    let mut case = Case::new(transcoder, activation);
    case.check_parameters();
    case.check_squared_error();
    case.check_slopes();
    case.check_micro_batches();
    case.check_folder(scratch);
    case.check_shapes();
}

/// The JumpReLU that a folder with thresholds holds.
#[derive(Debug)]
struct Jump;

impl SparsityActivation for Jump {
    fn parameters(&self) -> Vec<ActivationParameter> {
        vec![ActivationParameter { name: "threshold", init: Init::Constant(0.0), update: Update::Gradient }]
    }

    fn activate(&self, pre_acts: &Tensor, params: &[Tensor]) -> Result<Activated> {
        JumpForm::of_thresholds(params[0].shallow_clone()).activate(pre_acts)
    }

    fn thresholds(&self, params: &[Tensor]) -> Result<Option<Tensor>> {
        Ok(Some(params[0].shallow_clone()))
    }

    fn params_with_thresholds(&self, thresholds: Option<&Tensor>) -> Result<Vec<Tensor>> {
        Ok(thresholds.map(Tensor::copy).into_iter().collect())
    }
}

/// An activation by its jump form.
#[derive(Debug)]
struct JumpFormOf<'a>(&'a dyn SparsityActivation);

impl SparsityActivation for JumpFormOf<'_> {
    fn parameters(&self) -> Vec<ActivationParameter> {
        self.0.parameters()
    }

    fn activate(&self, pre_acts: &Tensor, params: &[Tensor]) -> Result<Activated> {
        self.0.jump_form(params)?.expect("a form depends on no value").activate(pre_acts)
    }

    fn thresholds(&self, params: &[Tensor]) -> Result<Option<Tensor>> {
        self.0.thresholds(params)
    }

    fn params_with_thresholds(&self, thresholds: Option<&Tensor>) -> Result<Vec<Tensor>> {
        self.0.params_with_thresholds(thresholds)
    }
}

fn noise(shape: &[i64], index: u64) -> Tensor {
    let mut stream = Stream::new(23, "transcoder suite", index);
    let numbers: Vec<f64> = (0..shape.iter().product()).map(|_| 2.0 * stream.uniform() - 1.0).collect();
    Tensor::from_slice(&numbers).view(shape)
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

struct Case<'a> {
    transcoder: &'a mut dyn Transcoder,
    activation: &'a dyn SparsityActivation,
    params: Parameters,
    batch: Batch,
}

impl<'a> Case<'a> {
    fn new(transcoder: &'a mut dyn Transcoder, activation: &'a dyn SparsityActivation) -> Self {
        let shape = [ROWS, DIMS.layers as i64, DIMS.d_model as i64];
        let batch = Batch { inputs: noise(&shape, 1), targets: noise(&shape, 2) };
        let specs = transcoder.parameters(DIMS, activation).expect("small sizes");
        let mut params = Parameters::init(specs, 4, Kind::Double, Device::Cpu).expect("its own specs");
        transcoder.calibrate(&mut params, activation, &batch.inputs, 0.5).expect("enough rows");
        Self { transcoder, activation, params, batch }
    }

    fn step(&mut self, params: &Parameters) -> StepOutput {
        let context = StepContext::whole(self.activation, &OneRank, PENALTY, ROWS);
        let output = self.transcoder.step(params, &self.batch, &context).expect("fitting shapes");
        // The next step may write over them.
        StepOutput { gradients: output.gradients.iter().map(Tensor::copy).collect(), ..output }
    }

    fn reconstruct(&self, params: &Parameters, inputs: &Tensor) -> Tensor {
        self.reconstruct_with(self.activation, params, inputs)
    }

    fn reconstruct_with(&self, activation: &dyn SparsityActivation, params: &Parameters, inputs: &Tensor) -> Tensor {
        let encode = |s: usize| self.transcoder.encode(params, activation, s, &inputs.select(1, s as i64)).expect("fitting shapes");
        let acts: Vec<Tensor> = (0..DIMS.layers).map(encode).collect();
        let all: Vec<Tensor> = (0..DIMS.layers)
            .map(|t| self.transcoder.decode(params, &acts, &inputs.select(1, t as i64), t).expect("fitting shapes"))
            .collect();
        Tensor::stack(&all, 1)
    }

    fn check_parameters(&self) {
        let specs = self.params.specs();
        let mut names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), specs.len(), "every parameter has a name of its own");
        assert!(specs.is_sorted_by_key(|spec| spec.layer), "parameters are grouped by layer");
        assert!(specs.iter().filter(|spec| spec.per_feature).all(|spec| spec.shape[0] == DIMS.d_features as i64), "features come first");
        for source in 0..DIMS.layers {
            let targets = self.transcoder.targets(DIMS, source).expect("a layer that is there");
            assert!(targets.start >= source && targets.end <= DIMS.layers && !targets.is_empty(), "layer {source} writes to {targets:?}");
        }
    }

    fn check_squared_error(&mut self) {
        let params = self.params.copy();
        let output = self.step(&params);
        let error = (self.reconstruct(&params, &self.batch.inputs) - &self.batch.targets).square();
        let want = error.sum(Kind::Double).double_value(&[]) / ROWS as f64;
        assert!((output.mse.double_value(&[]) - want).abs() < 1e-9 * (1.0 + want), "the step's squared error is that of encode and decode");
        let per_layer = error.sum_dim_intlist([0, 2].as_slice(), false, Kind::Double);
        assert!(largest(&(per_layer - output.squared_error)) < 1e-9 * (1.0 + want), "squared errors of each layer");
        assert_eq!(output.active_rows.size(), [DIMS.layers as i64, DIMS.d_features as i64], "active rows of each feature");
        for (spec, gradient) in params.specs().iter().zip(&output.gradients) {
            assert_eq!(gradient.size(), spec.shape, "the gradient of `{}` has its shape", spec.name);
        }
        for (after, before) in params.values().iter().zip(self.params.values()) {
            assert_eq!(after, before, "a step leaves the parameters alone");
        }
    }

    fn check_slopes(&mut self) {
        const STEP: f64 = 1e-6;
        let params = self.params.copy();
        let gradients = self.step(&params).gradients;
        let own: Vec<&str> = self.activation.parameters().iter().map(|own| own.name).collect();
        for (place, spec) in params.specs().iter().enumerate() {
            if own.iter().any(|own| spec.name == format!("{own}_{}", spec.layer)) {
                continue;
            }
            let direction = noise(&spec.shape, 100 + place as u64);
            let mut loss_at = |by: f64| {
                let mut moved = params.copy();
                moved.set(&spec.name, &params.values()[place] + &direction * by).expect("same shape");
                let output = self.step(&moved);
                [output.mse, output.sparsity, output.preact].iter().map(|term| term.double_value(&[])).sum::<f64>()
            };
            let slope = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP);
            let got = (&gradients[place] * &direction).sum(Kind::Double).double_value(&[]);
            assert!(
                (slope - got).abs() < 1e-5 * (1.0 + slope.abs()),
                "the gradient of `{}`: slope {got}, by differences {slope}",
                spec.name
            );
        }
    }

    fn check_micro_batches(&mut self) {
        // What compares the rows of a batch sees others in a part of it.
        if self.activation.scope() == Scope::Batch {
            return;
        }
        let params = self.params.copy();
        let whole = self.step(&params);
        let (mut losses, mut last) = (0.0, None);
        for (first, rows, accumulate) in [(0, 2, false), (2, ROWS - 2, true)] {
            let part = |of: &Tensor| of.narrow(0, first, rows);
            let batch = Batch { inputs: part(&self.batch.inputs), targets: part(&self.batch.targets) };
            let context = StepContext { accumulate, ..StepContext::whole(self.activation, &OneRank, PENALTY, ROWS) };
            let output = self.transcoder.step(&params, &batch, &context).expect("fitting shapes");
            losses += output.mse.double_value(&[]) + output.sparsity.double_value(&[]) + output.preact.double_value(&[]);
            last = Some(output);
        }
        let want = [&whole.mse, &whole.sparsity, &whole.preact].map(|term| term.double_value(&[])).iter().sum::<f64>();
        assert!((losses - want).abs() < 1e-9 * (1.0 + want), "the losses of micro-batches add up");
        let last = last.expect("two micro-batches");
        for (spec, (got, want)) in params.specs().iter().zip(last.gradients.iter().zip(&whole.gradients)) {
            assert!(largest(&(got - want)) < 1e-9 * (1.0 + largest(want)), "the gradients of micro-batches to `{}` add up", spec.name);
        }
        for output in [&whole, &last] {
            for (spec, (square, gradient)) in params.specs().iter().zip(output.gradient_squares.iter().flatten().zip(&output.gradients)) {
                let want = gradient.square().sum(Kind::Double).double_value(&[]);
                assert!((square - want).abs() < 1e-9 * (1.0 + want), "the squares of the gradient of `{}` add up", spec.name);
            }
        }
    }

    /// Saves into a folder as every rank of a mesh, each with what it owns alone.
    fn save(&self, folder: &Path, scales: Scales<'_>, meshes: &[Mesh]) {
        std::fs::create_dir_all(folder).expect("a folder that can be written");
        let files = self.transcoder.files(DIMS, self.activation, Kind::Double).expect("small sizes");
        for file in &files {
            file.create(folder).expect("a folder that can be written");
        }
        let specs = self.params.specs();
        for mesh in meshes {
            let own = specs.iter().zip(self.params.values()).map(|(spec, value)| spec.narrow(value, mesh).expect("its own features"));
            let params = Parameters::new(specs.iter().map(|spec| spec.part(mesh)).collect(), own.collect()).expect("fits");
            let saving = Saving {
                transcoder: &*self.transcoder,
                activation: self.activation,
                dims: DIMS,
                scales,
                specs,
                params: &params,
                mesh: *mesh,
            };
            let mut writer = FolderWriter::open(folder, &files).expect("files that were made");
            saving.write(&mut writer).expect("its own layout");
            writer.finish().expect("a folder that can be written");
        }
    }

    fn check_folder(&self, scratch: &Path) {
        let scales = |index| Vec::<f64>::try_from(noise(&[DIMS.layers as i64], index).abs() + 0.5).expect("one axis");
        let (inputs, targets) = (scales(5), scales(6));
        let scales = Scales { inputs: &inputs, targets: &targets };
        self.save(scratch, scales, &[Mesh::SINGLE]);
        let jumps = has_jump_form(self.activation).expect("a form or none");
        assert_eq!(
            self.transcoder.has_thresholds(scratch).expect("its own files"),
            has_thresholds(self.activation).expect("thresholds or none")
        );
        // What is saved of an activation with a jump form is that form.
        let form = JumpFormOf(self.activation);
        let (before, after): (&dyn SparsityActivation, &dyn SparsityActivation) =
            if jumps { (&form, &Jump) } else { (self.activation, self.activation) };
        let (dims, params) = self.transcoder.load(scratch, after, Kind::Double, Device::Cpu).expect("its own files");
        assert_eq!(dims, DIMS);
        let by_layer = |scales: &[f64]| Tensor::from_slice(scales).view([1, -1, 1]);
        let of_raw = self.reconstruct_with(after, &params, &(&self.batch.inputs / by_layer(&inputs)));
        let apart = largest(&(of_raw * by_layer(&targets) - self.reconstruct_with(before, &self.params, &self.batch.inputs)));
        assert!(apart < 1e-9, "a folder is read back, and takes and gives raw rows; {apart} apart");
        let too_few = Scales { inputs: &[1.0], targets: &[1.0] };
        assert!(self.transcoder.saved(DIMS, 0, &self.params, self.activation, too_few).is_err(), "one scale is not enough");
        self.check_ranks(scratch, scales);
    }

    /// However the features are shared out among those who save, the files are the same.
    fn check_ranks(&self, scratch: &Path, scales: Scales<'_>) {
        let files = self.transcoder.files(DIMS, self.activation, Kind::Double).expect("small sizes");
        for (data, feature, sharded) in
            [(3, 1, false), (1, 3, false), (2, 2, false), (3, 1, true), (2, 2, true), (DIMS.d_features + 2, 1, true)]
        {
            let place = |rank| Mesh {
                data: Axis { rank: rank / feature, size: data },
                feature: Axis { rank: rank % feature, size: feature },
                sharded,
            };
            let meshes: Vec<Mesh> = (0..data * feature).map(place).collect();
            let shared = scratch.join(format!("{data}x{feature}-{sharded}"));
            self.save(&shared, scales, &meshes);
            for layout in &files {
                let [one, many] = [scratch, &shared].map(|folder| std::fs::read(folder.join(&layout.file)).expect("its own files"));
                assert!(one == many, "`{}` depends on the ranks that write it: {data} x {feature}", layout.file.display());
            }
        }
    }

    fn check_shapes(&mut self) {
        let wide = DIMS.d_model as i64 + 1;
        let context = StepContext::whole(self.activation, &OneRank, PENALTY, ROWS);
        let shape = [ROWS, DIMS.layers as i64, wide];
        let batch = Batch { inputs: noise(&shape, 7), targets: noise(&shape, 8) };
        assert!(self.transcoder.step(&self.params, &batch, &context).is_err(), "rows that are too wide");
        assert!(self.transcoder.encode(&self.params, self.activation, 0, &noise(&[ROWS, wide], 9)).is_err(), "rows that are too wide");
        assert!(
            self.transcoder.encode(&self.params, self.activation, DIMS.layers, &noise(&[ROWS, DIMS.d_model as i64], 9)).is_err(),
            "no such layer"
        );
        assert!(self.transcoder.decode(&self.params, &[], &noise(&[ROWS, DIMS.d_model as i64], 9), 0).is_err(), "no source layer");
    }
}
