//! What the two layouts of saved folders share.

use std::fs;
use std::path::Path;

use circuitlab_core::{Dims, Error, Parameters, Result, SparsityActivation, Transcoder};
use tch::Tensor;

/// How many files `{prefix}{layer}.safetensors` a folder holds, which must be numbered from 0 without a gap.
pub(super) fn layers_in(folder: &Path, prefix: &str) -> Result<usize> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let name = entry.map_err(Error::io("read", folder))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_suffix(".safetensors")?.parse::<usize>().ok());
        found.extend(number);
    }
    found.sort_unstable();
    match found.iter().enumerate().find(|(expected, number)| expected != *number) {
        Some((missing, _)) => {
            Err(Error::format(folder, format!("it holds no `{prefix}{missing}.safetensors`, though it holds later layers")))
        }
        None if found.is_empty() => Err(Error::format(folder, format!("it holds no `{prefix}0.safetensors`"))),
        None => Ok(found.len()),
    }
}

/// Checks what was read against the sizes of the first encoder.
pub(super) fn assemble(
    folder: &Path,
    transcoder: &dyn Transcoder,
    activation: &dyn SparsityActivation,
    layers: usize,
    values: Vec<Tensor>,
) -> Result<(Dims, Parameters)> {
    let size = values.first().map(Tensor::size).unwrap_or_default();
    let [d_features, d_model] = size[..] else {
        return Err(Error::format(folder, format!("the encoder of layer 0 has shape {size:?}, expected [d_features, d_model]")));
    };
    let dims = Dims { layers, d_model: d_model as usize, d_features: d_features as usize };
    let specs = transcoder.parameters(dims, activation)?;
    let params = Parameters::new(specs, values).map_err(|error| Error::format(folder, error.to_string()))?;
    Ok((dims, params))
}
