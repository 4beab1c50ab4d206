//! Writing a CLT folder, and what a run goes on from, by all ranks at once.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use circuitlab_core::tensors::{FileLayout, FolderWriter, TensorLayout, bytes};
use circuitlab_core::{Error as CoreError, ParallelismStrategy, Saving, files};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::state::Written;
use crate::train::ranks;
use crate::{Error, Result};

pub(super) const SILENT_ROWS: &str = "silent_rows";

/// The file of a layer's state.
pub(super) fn file_of(layer: usize) -> PathBuf {
    PathBuf::from(format!("train/layer-{layer:03}.safetensors"))
}

/// A tensor of `train/`, as a rank has it.
#[derive(Debug)]
pub(in crate::train) struct TrainTensor {
    pub(in crate::train) layer: usize,
    pub(in crate::train) name: String,
    /// This rank's rows.
    pub(in crate::train) tensor: Tensor,
    /// Which rows of all these are.
    pub(in crate::train) owned: Range<usize>,
    /// How many there are of all ranks.
    pub(in crate::train) rows: usize,
    /// Whether the rows are features.
    pub(in crate::train) per_feature: bool,
}

impl TrainTensor {
    /// The counters of a layer; `owned` are the features that this rank has of so many.
    pub(in crate::train) fn silent_rows(layer: usize, tensor: Tensor, owned: Range<usize>, features: usize) -> Self {
        Self { layer, name: SILENT_ROWS.to_owned(), tensor, owned, rows: features, per_feature: true }
    }

    fn layout(&self) -> TensorLayout {
        let mut shape = self.tensor.size();
        if let Some(rows) = shape.first_mut() {
            *rows = self.rows as i64;
        }
        TensorLayout::new(&self.name, &shape, self.tensor.kind())
    }

    /// Writes these features of it, or all where it has no features and this rank `leads`.
    fn write(&self, features: &Range<usize>, leads: bool, into: &mut FolderWriter) -> Result<(), CoreError> {
        let file = file_of(self.layer);
        if self.per_feature {
            let begin = features.start as i64 - self.owned.start as i64;
            return into.rows(&file, &self.name, features.start as i64, &self.tensor.f_narrow(0, begin, features.len() as i64)?);
        }
        if leads { into.rows(&file, &self.name, 0, &self.tensor) } else { Ok(()) }
    }
}

/// What a rank tells the others when it has written.
#[derive(Serialize, Deserialize)]
struct Done {
    written: Written,
    /// Checksums of what other ranks must have too, by name.
    shared: BTreeMap<String, u32>,
}

/// Writes a folder by all ranks, each its own rows: `place` is seen when all is there, and not before. `publish` completes the folder that it
/// is given with what the rank that leads writes alone, and lets it be seen, with what every rank wrote.
///
/// # Errors
/// What any rank meets, on all of them.
pub(in crate::train) fn commit(
    strategy: &dyn ParallelismStrategy,
    place: &Path,
    saving: &Saving<'_>,
    training: &[TrainTensor],
    publish: impl FnOnce(&Path, Vec<Written>) -> Result<()>,
) -> Result<()> {
    let part = files::part_path(place);
    let stages = || {
        let layouts = layouts(saving, training)?;
        ranks::told(strategy, || create(place, &part, &layouts).map(|()| String::new()))?;
        let own = write_own(&part, &layouts, saving, training);
        let own = own.and_then(|done| serde_json::to_string(&done).map_err(|error| Error::Invalid(error.to_string())));
        let said = ranks::said(strategy, own)?;
        let done = said.iter().map(|text| serde_json::from_str(text)).collect::<Result<Vec<Done>, _>>();
        let done = done.map_err(|error| Error::Invalid(format!("what a rank said of its checkpoint cannot be read: {error}")))?;
        check_together(&done, saving.mesh.feature.size)?;
        let written = done.into_iter().map(|done| done.written).collect();
        ranks::told(strategy, || publish(&part, written).map(|()| String::new()))?;
        Ok(())
    };
    let outcome = stages();
    if outcome.is_err() && saving.leads() {
        // A full disk is the likely cause: give its room back, and tell the first error.
        let _ = fs::remove_dir_all(&part);
    }
    outcome
}

fn layouts(saving: &Saving<'_>, training: &[TrainTensor]) -> Result<Vec<FileLayout>> {
    let mut layers: BTreeMap<usize, Vec<TensorLayout>> = BTreeMap::new();
    for tensor in training {
        layers.entry(tensor.layer).or_default().push(tensor.layout());
    }
    let mut all = saving.files()?;
    all.extend(layers.into_iter().map(|(layer, tensors)| FileLayout::new(file_of(layer), tensors)));
    Ok(all)
}

/// Makes the folder with all files in it, as long as they will be.
fn create(place: &Path, part: &Path, layouts: &[FileLayout]) -> Result<()> {
    files::remove_folder(place)?;
    files::remove_folder(part)?;
    for layout in layouts {
        let path = part.join(&layout.file);
        let folder = path.parent().unwrap_or(part);
        fs::create_dir_all(folder).map_err(CoreError::io("create", folder))?;
        layout.create(part)?;
    }
    Ok(())
}

fn write_own(part: &Path, layouts: &[FileLayout], saving: &Saving<'_>, training: &[TrainTensor]) -> Result<Done> {
    let mut writer = FolderWriter::open(part, layouts)?;
    saving.write(&mut writer)?;
    let features = saving.features();
    training.iter().try_for_each(|tensor| tensor.write(&features, saving.leads(), &mut writer))?;
    Ok(Done { written: writer.finish()?, shared: shared(saving)? })
}

/// Checksums of the vectors, which all ranks with the same features have, and of what belongs to no feature, which all have.
fn shared(saving: &Saving<'_>) -> Result<BTreeMap<String, u32>> {
    let vectors = saving.specs.iter().zip(saving.params.values()).filter(|(spec, _)| spec.shape.len() < 2 || !spec.per_feature);
    let checksum = |of: &Tensor| bytes(of).map(|data| crc32c::crc32c(&data));
    let named = vectors.map(|(spec, value)| Ok((shared_name(&spec.name, spec.per_feature), checksum(value)?)));
    Ok(named.collect::<Result<_, CoreError>>()?)
}

/// Names of what belongs to no feature begin with a star.
fn shared_name(name: &str, per_feature: bool) -> String {
    if per_feature { name.to_owned() } else { format!("*{name}") }
}

/// Checks that what several ranks have is the same on all of them; `feature` is how many the feature axis has.
fn check_together(done: &[Done], feature: usize) -> Result<()> {
    for (number, own) in done.iter().enumerate() {
        for (name, checksum) in &own.shared {
            let with = if name.starts_with('*') { 0 } else { number % feature.max(1) };
            if done[with].shared.get(name) != Some(checksum) {
                return Err(Error::Invalid(format!(
                    "ranks have drifted apart: `{}` of rank {number} is not that of rank {with}; no checkpoint is written of it, go on from the last one",
                    name.trim_start_matches('*')
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(shared: &[(&str, u32)]) -> Done {
        Done { written: Written::new(), shared: shared.iter().map(|(name, checksum)| ((*name).to_owned(), *checksum)).collect() }
    }

    #[test]
    fn ranks_that_have_drifted_apart_are_named() {
        // Two ranks of the data axis and two of the feature axis.
        let together = || [done(&[("*b_dec_0", 1), ("b_enc_0", 2)]), done(&[("*b_dec_0", 1), ("b_enc_0", 3)])];
        let all: Vec<Done> = together().into_iter().chain(together()).collect();
        check_together(&all, 2).expect("each is what its twin has");
        for (rank, name, with) in [(2, "b_enc_0", 0), (3, "b_enc_0", 1), (1, "*b_dec_0", 0), (3, "*b_dec_0", 0)] {
            let mut all: Vec<Done> = together().into_iter().chain(together()).collect();
            all[rank].shared.insert(name.to_owned(), 9);
            let error = check_together(&all, 2).expect_err("one differs").to_string();
            let want = format!("`{}` of rank {rank} is not that of rank {with}", name.trim_start_matches('*'));
            assert!(error.contains(&want), "{error}");
        }
    }
}
