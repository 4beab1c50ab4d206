//! The files of a folder that has one for each layer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::Error as CoreError;

use crate::Result;
use crate::saved::{CARD, read_card};

/// Folders within each other that are looked through: `layer_0/width_16k/average_l0_76/params.npz` lies in three.
const DEPTH: usize = 5;

/// The files that a folder's `config.yaml` lists, in the order of the layers.
pub(super) fn listed(folder: &Path) -> Result<Option<Vec<PathBuf>>> {
    if !folder.join(CARD).is_file() {
        return Ok(None);
    }
    let Some(names) = read_card(folder)?.transcoders else { return Ok(None) };
    let path = |name: String| -> Result<PathBuf> {
        if name.contains("://") {
            let message = format!("`transcoders` names `{name}`, which is not on this machine; download it, and name the file");
            return Err(CoreError::format(folder.join(CARD), message).into());
        }
        let path = folder.join(&name);
        if !path.is_file() {
            return Err(CoreError::format(folder.join(CARD), format!("`transcoders` names `{name}`, and there is no such file")).into());
        }
        Ok(path)
    };
    if names.is_empty() {
        return Err(CoreError::format(folder.join(CARD), "`transcoders` names no file").into());
    }
    names.into_iter().map(path).collect::<Result<_>>().map(Some)
}

/// All safetensors files and numpy archives below a folder, in order.
pub(super) fn tensor_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    look(folder, DEPTH, &mut found)?;
    found.sort();
    Ok(found)
}

fn look(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(CoreError::io("read", folder))? {
        let path = entry.map_err(CoreError::io("read", folder))?.path();
        let is_tensors = path.extension().is_some_and(|extension| extension == "safetensors" || extension == "npz");
        if path.is_dir() && depth > 0 {
            look(&path, depth - 1, found)?;
        } else if is_tensors && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// One file for each layer: those that are listed, else those below the folder whose path says which layer they are of.
pub(super) fn by_layer(folder: &Path, is_one: impl Fn(&Path) -> Result<bool>) -> Result<Vec<PathBuf>> {
    if let Some(files) = listed(folder)? {
        return Ok(files);
    }
    let mut layers: BTreeMap<usize, PathBuf> = BTreeMap::new();
    for path in tensor_files(folder)? {
        let Some(layer) = layer_of(path.strip_prefix(folder).unwrap_or(&path)) else { continue };
        if !is_one(&path)? {
            continue;
        }
        if let Some(other) = layers.insert(layer, path.clone()) {
            let below = |path: &Path| path.strip_prefix(folder).unwrap_or(path).display().to_string();
            let message = format!(
                "layer {layer} is in `{}` and in `{}`; keep one of them, or list those to take under `transcoders` in a `{CARD}`",
                below(&other),
                below(&path)
            );
            return Err(CoreError::format(folder, message).into());
        }
    }
    without_gaps(folder, layers)
}

/// The files of layers 0, 1, ..
pub(super) fn without_gaps(folder: &Path, layers: BTreeMap<usize, PathBuf>) -> Result<Vec<PathBuf>> {
    let missing = layers.keys().enumerate().find(|(expected, layer)| expected != *layer).map(|(expected, _)| expected);
    match missing {
        Some(missing) => Err(CoreError::format(folder, format!("it holds no layer {missing}, though it holds later ones")).into()),
        None if layers.is_empty() => Err(CoreError::format(folder, "it holds no file of a layer 0").into()),
        None => Ok(layers.into_values().collect()),
    }
}

/// The number after the last `layer_` in a path.
fn layer_of(path: &Path) -> Option<usize> {
    let text = path.to_str()?;
    let digits = |rest: &str| rest.split(|end: char| !end.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    text.rmatch_indices("layer_").find_map(|(at, word)| digits(&text[at + word.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_which_layer_they_are_of() {
        for (path, layer) in [
            ("layer_0/width_16k/average_l0_76/params.npz", Some(0)),
            ("transcoder_all/layer_12_width_16k_l0_small_affine/params.safetensors", Some(12)),
            ("clt/params_layer_7.safetensors", Some(7)),
            ("player_/x.npz", None),
            ("layer_99999999999999999999999/x.npz", None),
            ("x.npz", None),
        ] {
            assert_eq!(layer_of(Path::new(path)), layer, "{path}");
        }
    }
}
