//! CLT-Forge's checkpoints: one file, or one for each rank with its features.
//!
//! Blocks of `W_dec` and `b_dec` are pairs of a source and a target layer, in the order (0, 0), (0, 1), .., (1, 1), ..; a target's bias is
//! the sum over its blocks. The weights take and give normalised rows: `estimated_norm_scaling_factor_in` and `.._out` are what raw rows
//! are multiplied by.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use circuitlab_core::tensors::TensorFile;
use circuitlab_core::{BlockHook, Dims, Error as CoreError};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::array::{Array, Parts, joined};
use super::source::{CROSS_LAYER, Facts, LayerParts, PER_LAYER, Source, finite, thresholds};
use crate::saved::Card;
use crate::{Error, Result};

/// What the tool calls its files.
pub(super) const WEIGHTS: &str = "clt_weights.safetensors";
/// The tool's settings.
pub(super) const CONFIG: &str = "clt_cfg.json";
/// What raw inputs are multiplied by.
pub(super) const FACTORS_IN: &str = "estimated_norm_scaling_factor_in";
/// What raw outputs are multiplied by.
pub(super) const FACTORS_OUT: &str = "estimated_norm_scaling_factor_out";

/// The settings that say what the weights are; others are the training's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    cross_layer_decoders: Option<bool>,
    n_layers: Option<usize>,
    d_in: Option<usize>,
    d_latent: Option<usize>,
    model_name: Option<String>,
}

#[derive(Debug)]
struct Checkpoint {
    facts: Facts,
    /// One for each rank, with its features.
    files: Vec<Arc<TensorFile>>,
}

/// The block of a source and a target layer.
pub(super) fn block(layers: usize, source: usize, target: usize) -> usize {
    (0..source).map(|earlier| layers - earlier).sum::<usize>() + target - source
}

/// Whether a folder is such a checkpoint.
pub(super) fn is(folder: &Path) -> Result<bool> {
    Ok(folder.join(CONFIG).is_file() || !files(folder)?.is_empty())
}

/// The files of the weights, in the order of the ranks.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let whole = folder.join(WEIGHTS);
    if whole.is_file() {
        return Ok(vec![whole]);
    }
    let mut ranks = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(CoreError::io("read", folder))? {
        let path = entry.map_err(CoreError::io("read", folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let rank = name.strip_prefix("rank").and_then(|name| name.strip_suffix(WEIGHTS)?.strip_suffix('_')?.parse::<usize>().ok());
        ranks.extend(rank.map(|rank| (rank, path)));
    }
    match ranks.keys().enumerate().find(|(expected, rank)| expected != *rank) {
        Some((missing, _)) => {
            Err(CoreError::format(folder, format!("it holds no `rank{missing}_{WEIGHTS}`, though it holds those of later ranks")).into())
        }
        None => Ok(ranks.into_values().collect()),
    }
}

/// Opens a checkpoint.
pub(super) fn open(folder: &Path) -> Result<Box<dyn Source>> {
    let paths = files(folder)?;
    if paths.is_empty() {
        return Err(CoreError::format(folder, format!("it holds no `{WEIGHTS}` and no `rank0_{WEIGHTS}`")).into());
    }
    let config = config(folder)?;
    let files = paths.iter().map(|path| TensorFile::open(path).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
    let w_enc = Array::of(&files[0], "W_enc")?;
    let [layers, d_model, _] = w_enc.sizes(["layers", "d_model", "d_features"])?;
    let blocks = Array::of(&files[0], "W_dec")?.sizes(["blocks", "d_features", "d_model"])?[0];
    let crosses = is_crossing(&config, folder, layers, blocks)?;
    let card = Card {
        model_kind: if crosses { CROSS_LAYER } else { PER_LAYER }.to_owned(),
        model_name: config.model_name.clone().unwrap_or_default(),
        feature_input_hook: BlockHook::Ln2Normalized.to_string(),
        feature_output_hook: BlockHook::MlpOut.to_string(),
        ..Card::default()
    };
    let dims = Dims { layers: layers as usize, d_model: d_model as usize, d_features: 0 };
    let mut opened = Checkpoint { facts: Facts::plain(dims, w_enc.kind(), card, [true, false]), files };
    opened.check(blocks)?;
    let dims = opened.facts.dims;
    for (key, found, said) in
        [("n_layers", dims.layers, config.n_layers), ("d_in", dims.d_model, config.d_in), ("d_latent", dims.d_features, config.d_latent)]
    {
        if let Some(said) = said.filter(|said| *said != found) {
            let message = format!("`{key}` is {said}, and the weights have {found}; a file of a rank may be missing");
            return Err(CoreError::format(folder.join(CONFIG), message).into());
        }
    }
    opened.facts.scales = [opened.factors(FACTORS_IN)?, opened.factors(FACTORS_OUT)?];
    // A threshold of exp(-inf) = 0 in all features is a ReLU.
    let lowest = opened.vectors("log_threshold")?.f_max().map_err(CoreError::from)?.double_value(&[]);
    opened.facts.thresholds = lowest != f64::NEG_INFINITY;
    Ok(Box::new(opened))
}

fn config(folder: &Path) -> Result<Config> {
    let path = folder.join(CONFIG);
    if !path.is_file() {
        return Err(CoreError::format(folder, format!("it holds no `{CONFIG}`, which says whether features write to later layers")).into());
    }
    let text = std::fs::read(&path).map_err(CoreError::io("read", &path))?;
    serde_json::from_slice(&text).map_err(|error| CoreError::format(&path, format!("cannot be read: {error}")).into())
}

/// Whether features write to later layers too.
fn is_crossing(config: &Config, folder: &Path, layers: i64, blocks: i64) -> Result<bool> {
    let pairs = layers.checked_mul(layers + 1).map(|twice| twice / 2);
    let crosses = config.cross_layer_decoders.unwrap_or(true);
    let wanted = if crosses { pairs } else { Some(layers) };
    if wanted == Some(blocks) {
        return Ok(crosses);
    }
    let message = format!(
        "`cross_layer_decoders` is {crosses}, and `W_dec` has {blocks} blocks; expected {} of {layers} layers",
        wanted.unwrap_or(i64::MAX)
    );
    Err(CoreError::format(folder.join(CONFIG), message).into())
}

impl Checkpoint {
    /// Checks the shapes of all files, and counts their features.
    fn check(&mut self, blocks: i64) -> Result<()> {
        let (layers, d_model) = (("layers", self.facts.dims.layers as i64), ("d_model", self.facts.dims.d_model as i64));
        let mut features = 0;
        for file in &self.files {
            let of = |name: &str| Array::of(file, name);
            let own = ("d_features", of("W_enc")?.sizes(["layers", "d_model", "d_features"])?[2]);
            of("W_enc")?.has_shape(&[layers, d_model, own])?;
            of("W_dec")?.has_shape(&[("blocks", blocks), own, d_model])?;
            of("b_enc")?.has_shape(&[layers, own])?;
            of("log_threshold")?.has_shape(&[layers, own])?;
            of("b_dec")?.has_shape(&[("blocks", blocks), d_model])?;
            features += own.1 as usize;
        }
        for name in [FACTORS_IN, FACTORS_OUT] {
            Array::of(&self.files[0], name)?.has_shape(&[layers])?;
        }
        self.facts.dims.d_features = features;
        Ok(())
    }

    /// What raw rows of each layer are multiplied by.
    fn factors(&self, name: &str) -> Result<Vec<f64>> {
        let array = Array::of(&self.files[0], name)?;
        let factors = array.read()?.f_to_kind(Kind::Double).and_then(|factors| Vec::<f64>::try_from(&factors)).map_err(CoreError::from)?;
        match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
            Some(wrong) => Err(array.wrong(&format!("a factor is {wrong}; expected numbers above 0"))),
            None => Ok(factors),
        }
    }

    /// Numbers of all features of all layers, `[layers, d_features]`.
    fn vectors(&self, name: &str) -> Result<Tensor> {
        let of_ranks = self.files.iter().map(|file| Array::of(file, name)?.permuted(&[1, 0]).read()).collect::<Result<Vec<_>>>()?;
        Ok(joined(&of_ranks)?.f_tr().map_err(CoreError::from)?)
    }

    /// The sum of the biases of all blocks that write to a layer.
    fn bias(&self, layer: usize) -> Result<Tensor> {
        let array = Array::of(&self.files[0], "b_dec")?;
        let layers = self.facts.dims.layers;
        let blocks = if self.facts.crosses() { (0..=layer).map(|source| block(layers, source, layer)).collect() } else { vec![layer] };
        let mut sum: Option<Tensor> = None;
        for of_block in blocks {
            let bias =
                finite(layer, "b_dec", array.select(0, of_block as i64)?.read()?)?.f_to_kind(Kind::Double).map_err(CoreError::from)?;
            sum = Some(match sum {
                Some(sum) => sum.f_add(&bias).map_err(CoreError::from)?,
                None => bias,
            });
        }
        sum.ok_or_else(|| Error::Invalid(format!("layer {layer} has no decoder bias")))
    }
}

impl Source for Checkpoint {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn facts_mut(&mut self) -> &mut Facts {
        &mut self.facts
    }

    fn layer(&self, layer: usize) -> Result<LayerParts> {
        let targets = self.facts.targets(layer);
        let layers = self.facts.dims.layers;
        let first = if self.facts.crosses() { block(layers, layer, layer) } else { layer } as i64;
        let part = |array: Array| array.select(0, layer as i64);
        let each = |of: &dyn Fn(&Arc<TensorFile>) -> Result<Array>| self.files.iter().map(of).collect::<Result<Vec<_>>>();
        let vector = |name: &str| -> Result<Tensor> {
            joined(&each(&|file| part(Array::of(file, name)?))?.iter().map(Array::read).collect::<Result<Vec<_>>>()?)
        };
        let logarithms = thresholds(layer, vector("log_threshold")?)?;
        let theta = logarithms.f_to_kind(Kind::Double).and_then(|logarithms| logarithms.f_exp()).map_err(CoreError::from)?;
        Ok(LayerParts {
            w_enc: Parts(each(&|file| Ok(part(Array::of(file, "W_enc")?)?.permuted(&[1, 0])))?),
            b_enc: finite(layer, "b_enc", vector("b_enc")?)?,
            w_dec: Parts(each(&|file| Ok(Array::of(file, "W_dec")?.narrow(0, first..first + targets.len() as i64)?.permuted(&[1, 0, 2])))?),
            b_dec: self.bias(layer)?,
            thresholds: self.facts.thresholds.then(|| theta.to_device(Device::Cpu)),
            skip: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_the_upper_triangle_row_by_row() {
        let all: Vec<usize> = (0..4).flat_map(|source| (source..4).map(move |target| block(4, source, target))).collect();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }
}
