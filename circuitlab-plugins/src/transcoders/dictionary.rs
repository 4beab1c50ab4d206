//! The parameters of a linear dictionary over layers, and what can be done with them but training.
//!
//! Per layer `l`, all axes in the order of the saved files:
//!
//! ```text
//! W_enc_{l}  [d_features, d_model]            b_enc_{l}  [d_features]
//! W_dec_{l}  [d_features, targets, d_model]   b_dec_{l}  [d_model]      and the activation's own, such as log_threshold_{l}
//! W_skip_{l} [d_model, d_model], which adds W_skip x to the layer's reconstruction; the last of a layer, where there is one
//! ```
//!
//! A feature's decoder rows to all its targets lie side by side, so that a source layer is decoded by one product.

use std::ops::Range;

use circuitlab_core::{
    ActivationParameter, Dictionary, Dims, Error, Init, ParameterSpec, Parameters, Precision, Result, SparsityActivation, Update, shape,
};
use tch::{Device, Kind, Tensor};

/// Which target layers a source layer writes to.
pub(super) type Reach = fn(layers: usize, source: usize) -> Range<usize>;

/// The specs of all layers' parameters.
pub(super) fn parameters(dims: Dims, reach: Reach, activation: &dyn SparsityActivation, skip: bool) -> Vec<ParameterSpec> {
    let (layers, features, d_model) = (dims.layers, dims.d_features as i64, dims.d_model as i64);
    let encoder = Init::Uniform { limit: 1.0 / (features.max(1) as f64).sqrt() };
    let decoder = Init::Uniform { limit: 1.0 / (layers as f64 * d_model as f64).max(1.0).sqrt() };
    let spec = |name: &str, layer: usize, shape: &[i64], init, per_feature| ParameterSpec {
        name: format!("{name}_{layer}"),
        layer,
        shape: shape.to_vec(),
        init,
        per_feature,
        update: Update::Gradient,
        precision: if shape.len() > 1 { Precision::Compute } else { Precision::Full },
    };
    let own = |own: &ActivationParameter, layer| ParameterSpec { update: own.update, ..spec(own.name, layer, &[features], own.init, true) };
    let mut specs = Vec::new();
    for layer in 0..layers {
        let targets = reach(layers, layer).len() as i64;
        specs.push(spec("W_enc", layer, &[features, d_model], encoder, true));
        specs.push(spec("b_enc", layer, &[features], Init::Constant(0.0), true));
        specs.push(spec("W_dec", layer, &[features, targets, d_model], decoder, true));
        specs.push(spec("b_dec", layer, &[d_model], Init::Constant(0.0), false));
        specs.extend(activation.parameters().iter().map(|parameter| own(parameter, layer)));
        specs.extend(skip.then(|| spec(SKIP, layer, &[d_model, d_model], Init::Constant(0.0), false)));
    }
    specs
}

/// What the matrices of linear skips are called.
const SKIP: &str = "W_skip";

/// One layer's parameters, borrowed.
#[derive(Debug)]
pub(super) struct Layer<'a> {
    pub(super) w_enc: Tensor,
    pub(super) b_enc: &'a Tensor,
    pub(super) w_dec: Tensor,
    pub(super) b_dec: &'a Tensor,
    /// The activation's own.
    pub(super) own: Vec<Tensor>,
    /// The linear skip, `[d_model, d_model]`.
    pub(super) skip: Option<&'a Tensor>,
    /// Where they stand among all parameters, in the order of the fields.
    pub(super) positions: Range<usize>,
}

impl<'a> Layer<'a> {
    /// The parameters of `layer`, which stand together.
    pub(super) fn of(params: &'a Parameters, layer: usize) -> Result<Self> {
        let start = params.position(&format!("W_enc_{layer}"))?;
        let end = start + params.specs()[start..].iter().take_while(|spec| spec.layer == layer).count();
        match &params.values()[start..end] {
            [w_enc, b_enc, w_dec, b_dec, rest @ ..] => {
                let (skip, own) = match rest.split_last() {
                    Some((last, own)) if params.specs()[end - 1].name.starts_with(SKIP) => (Some(last), own),
                    _ => (None, rest),
                };
                let [w_enc, w_dec] = [w_enc, w_dec].map(Tensor::shallow_clone);
                let own = own.iter().map(Tensor::shallow_clone).collect();
                Ok(Self { w_enc, b_enc, w_dec, b_dec, own, skip, positions: start..end })
            }
            _ => Err(Error::Invalid(format!("layer {layer} has too few parameters"))),
        }
    }

    /// Where the encoder matrix stands among all parameters.
    pub(super) fn encoder_position(&self) -> usize {
        self.positions.start
    }

    /// Where the decoder matrix stands among all parameters.
    pub(super) fn decoder_position(&self) -> usize {
        self.positions.start + 2
    }

    /// Where the activation's own stand among all parameters.
    pub(super) fn own_positions(&self) -> Range<usize> {
        let start = self.positions.start + 4;
        start..start + self.own.len()
    }

    /// Where the skip stands among all parameters.
    pub(super) fn skip_position(&self) -> Option<usize> {
        self.skip.map(|_| self.positions.end - 1)
    }

    /// Adds what the skip makes of `inputs: [rows, d_model]`, if there is one, to `reconstruction`, of the same shape.
    pub(super) fn with_skip(&self, reconstruction: Tensor, inputs: &Tensor) -> Tensor {
        match self.skip {
            Some(skip) => add_product(&reconstruction, inputs, &skip.tr(), skip.kind()),
            None => reconstruction,
        }
    }

    /// The gradient of the skip: that of the reconstruction, `error: [rows, d_model]`, by the inputs.
    pub(super) fn skip_gradient(&self, error: &Tensor, inputs: &Tensor) -> Option<Tensor> {
        self.skip.map(|skip| product(&error.tr(), inputs, skip.kind()))
    }

    /// `h = x W_enc^T + b_enc`, for `inputs: [rows, d_model]`.
    pub(super) fn pre_acts(&self, inputs: &Tensor) -> Tensor {
        add_product(self.b_enc, inputs, &self.w_enc.tr(), self.compute_kind())
    }

    /// The type that products with its weights are computed in.
    pub(super) fn compute_kind(&self) -> Kind {
        self.w_enc.kind()
    }

    /// The decoder as one matrix, `[d_features, targets * d_model]`.
    pub(super) fn flat_decoder(&self) -> Tensor {
        self.w_dec.flatten(1, 2)
    }

    /// The flat decoder in at least 32 bits, by columns: whole where it is of such, else target by target, so that no more than one
    /// target's is widened at a time.
    pub(super) fn decoder_parts(&self) -> impl Iterator<Item = (Range<i64>, Tensor)> {
        let [targets, d_model] = [1, 2].map(|axis| self.w_dec.size()[axis]);
        let narrow = matches!(self.w_dec.kind(), Kind::BFloat16 | Kind::Half);
        let parts = if narrow { targets } else { 1 };
        (0..parts).map(move |part| {
            if narrow {
                (part * d_model..(part + 1) * d_model, wide(&self.w_dec.select(1, part)))
            } else {
                (0..targets * d_model, self.flat_decoder())
            }
        })
    }

    /// The norm of all decoder rows of each feature: `[d_features]`.
    pub(super) fn decoder_norms(&self) -> Tensor {
        wide(&self.flat_decoder()).square().sum_dim_intlist(1, false, None::<Kind>).sqrt_()
    }
}

/// Values of fewer than 32 bits as f32, others as they are.
pub(super) fn wide(values: &Tensor) -> Tensor {
    match values.kind() {
        Kind::BFloat16 | Kind::Half => values.to_kind(Kind::Float),
        _ => values.shallow_clone(),
    }
}

/// `a b` of matrices, in 32 bits or more. Where `kind` has fewer, a GPU takes the operands in these and adds up in f32. A CPU widens
/// them: its bf16 products were 50 times slower than those in f32.
pub(super) fn product(a: &Tensor, b: &Tensor, kind: Kind) -> Tensor {
    match (kind, a.device()) {
        (Kind::BFloat16 | Kind::Half, Device::Cuda(_)) => a.to_kind(kind).mm_dtype(&b.to_kind(kind), Kind::Float),
        _ => wide(a).matmul(&wide(b)),
    }
}

/// `base + a b`, as [`product`].
pub(super) fn add_product(base: &Tensor, a: &Tensor, b: &Tensor, kind: Kind) -> Tensor {
    match (kind, a.device()) {
        (Kind::BFloat16 | Kind::Half, Device::Cuda(_)) => product(a, b, kind).g_add_(base),
        _ => base.addmm(&wide(a), &wide(b)),
    }
}

/// How many layers the parameters have.
pub(super) fn layers(params: &Parameters) -> usize {
    params.specs().iter().map(|spec| spec.layer + 1).max().unwrap_or(0)
}

/// Sets each `b_enc` so that every feature fires on a share `rate` of the rows: the threshold less the quantile of the
/// pre-activations without bias, half way between two rows.
pub(super) fn calibrate(params: &mut Parameters, activation: &dyn SparsityActivation, inputs: &Tensor, rate: f64) -> Result<()> {
    if !(rate > 0.0 && rate < 1.0) {
        return Err(Error::Invalid(format!("a feature fires on a share of rows between 0 and 1, not {rate}")));
    }
    for index in 0..layers(params) {
        let layer = Layer::of(params, index)?;
        shape::expect("calibrate", inputs, &[("rows", -1), ("layer", layers(params) as i64), ("d_model", layer.w_enc.size()[1])])?;
        let rows = inputs.size()[0];
        if rows < 2 {
            return Err(Error::Invalid(format!("the encoder biases are set from at least 2 rows, {rows} came")));
        }
        let silent = ((rows as f64 * (1.0 - rate)).round() as i64).clamp(1, rows - 1);
        let edge = edge(&layer, &inputs.select(1, index as i64), silent);
        let bias = match activation.thresholds(&layer.own)? {
            Some(theta) => theta - edge,
            None => -edge,
        };
        params.set(&format!("b_enc_{index}"), bias)?;
    }
    Ok(())
}

/// Numbers that the quantiles are found of at a time: finding them takes 16 bytes for each.
const QUANTILE_NUMBERS: i64 = 1 << 22;

/// For each feature the middle between its `silent`-th smallest pre-activation without bias and the next: `[d_features]`.
fn edge(layer: &Layer<'_>, inputs: &Tensor, silent: i64) -> Tensor {
    let block = (QUANTILE_NUMBERS / inputs.size()[0]).max(64);
    let of_block = |w_enc: &Tensor| {
        let pre_acts = product(w_enc, &inputs.tr(), layer.compute_kind());
        let (below, _) = pre_acts.kthvalue(silent, 1, false);
        let (above, _) = pre_acts.kthvalue(silent + 1, 1, false);
        (below + above) / 2.0
    };
    Tensor::cat(&layer.w_enc.split(block, 0).iter().map(of_block).collect::<Vec<_>>(), 0)
}

/// A layer as a linear dictionary.
pub(super) fn layer(params: &Parameters, index: usize) -> Result<Dictionary> {
    let layer = Layer::of(params, index)?;
    let [b_enc, b_dec] = [layer.b_enc, layer.b_dec].map(Tensor::shallow_clone);
    Ok(Dictionary { w_enc: layer.w_enc, b_enc, w_dec: layer.w_dec, b_dec, skip: layer.skip.map(Tensor::shallow_clone) })
}

/// The activations of one source layer: `[rows, d_features]`.
pub(super) fn encode(params: &Parameters, activation: &dyn SparsityActivation, source: usize, inputs: &Tensor) -> Result<Tensor> {
    let layer = Layer::of(params, source)?;
    shape::expect("encode", inputs, &[("rows", -1), ("d_model", layer.w_enc.size()[1])])?;
    Ok(activation.activate(&layer.pre_acts(inputs), &layer.own)?.acts)
}

/// The reconstruction of one target layer: `[rows, d_model]`.
pub(super) fn decode(params: &Parameters, reach: Reach, acts: &[Tensor], inputs: &Tensor, target: usize) -> Result<Tensor> {
    let layers = layers(params);
    if acts.len() <= target {
        return Err(Error::Invalid(format!("layer {target} is decoded from source layers 0 to {target}, {} came", acts.len())));
    }
    let own = Layer::of(params, target)?;
    let biases = own.b_dec.unsqueeze(0).expand([acts[target].size()[0], -1], false).copy();
    shape::expect("decode, inputs", inputs, &[("rows", biases.size()[0]), ("d_model", own.b_dec.size()[0])])?;
    let mut reconstruction = own.with_skip(biases, inputs);
    for (source, acts) in acts.iter().enumerate().take(target + 1) {
        let targets = reach(layers, source);
        if targets.contains(&target) {
            let layer = Layer::of(params, source)?;
            shape::expect("decode", acts, &[("rows", reconstruction.size()[0]), ("d_features", layer.w_dec.size()[0])])?;
            let decoder = layer.w_dec.select(1, (target - targets.start) as i64);
            reconstruction = add_product(&reconstruction, acts, &decoder, layer.compute_kind());
        }
    }
    Ok(reconstruction)
}

/// One layer with scales folded in: `x' = input_scale * x` and `y' = target_scale * y` become `x` and `y`. `targets` are the scales of the
/// layers that it writes to, `own` that of its own. Gives encoder, decoder, decoder bias and skip.
pub(super) fn folded(layer: &Layer<'_>, input: f64, targets: &[f64], own: f64) -> Result<([Tensor; 3], Option<Tensor>)> {
    shape::expect("fold, w_dec", &layer.w_dec, &[("d_features", -1), ("targets", targets.len() as i64), ("d_model", -1)])?;
    let options = (layer.w_dec.kind(), layer.w_dec.device());
    let inverse: Vec<f64> = targets.iter().map(|scale| 1.0 / scale).collect();
    let inverse = Tensor::from_slice(&inverse).to_kind(options.0).to_device(options.1);
    let skip = layer.skip.map(|skip| skip * (input / own));
    Ok(([&layer.w_enc * input, &layer.w_dec * inverse.view([1, -1, 1]), layer.b_dec / own], skip))
}
