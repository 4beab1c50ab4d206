//! Saving a transcoder: its files laid out, and filled with features by as many processes as hold them.

use std::ops::Range;
use std::path::Path;

use tch::Kind;

use crate::tensors::{FileLayout, FolderWriter, PIECE_BYTES};
use crate::transcoder::{SavedRows, Scales};
use crate::{Dims, Mesh, ParameterSpec, Parameters, Result, SparsityActivation, Transcoder};

/// A transcoder that is saved, as one of the processes that train it has it. Nobody needs to have all of it.
#[derive(Debug, Clone, Copy)]
pub struct Saving<'a> {
    /// What it is.
    pub transcoder: &'a dyn Transcoder,
    /// Which features are active.
    pub activation: &'a dyn SparsityActivation,
    /// Its sizes.
    pub dims: Dims,
    /// What goes into its numbers, so that they take and give raw rows.
    pub scales: Scales<'a>,
    /// The parameters of all features.
    pub specs: &'a [ParameterSpec],
    /// What this process owns of them, in the types that they are saved in.
    pub params: &'a Parameters,
    /// This process's place among all.
    pub mesh: Mesh,
}

impl Saving<'_> {
    /// The files of the folder, as they are whatever the processes.
    ///
    /// # Errors
    /// Sizes that the transcoder cannot have.
    pub fn files(&self) -> Result<Vec<FileLayout>> {
        let kind = self.params.values().first().map_or(Kind::Float, tch::Tensor::kind);
        self.transcoder.files(self.dims, self.activation, kind)
    }

    /// The features that this process writes. Those of a rank of the feature axis are shared out along the data axis, so that all write.
    pub fn features(&self) -> Range<usize> {
        self.mesh.share(self.dims.d_features)
    }

    /// Whether this process writes what belongs to no feature.
    pub fn leads(&self) -> bool {
        self.mesh.leads()
    }

    /// Writes this process's features of all layers, a block of them at a time.
    ///
    /// # Errors
    /// What the transcoder and the file system return.
    pub fn write(&self, into: &mut FolderWriter) -> Result<()> {
        (0..self.dims.layers).try_for_each(|layer| self.write_layer(layer, into))
    }

    fn write_layer(&self, layer: usize, into: &mut FolderWriter) -> Result<()> {
        let features = self.features();
        let mut first = features.start;
        let mut shared = self.leads();
        while first < features.end || shared {
            let block = self.rows(layer, first..features.end)?;
            let bytes: usize = block.values().iter().map(|value| value.numel() * value.kind().elt_size_in_bytes()).sum();
            let at_a_time = (features.end - first).min((features.end - first) * PIECE_BYTES / bytes.max(1)).max(1);
            let end = (first + at_a_time).min(features.end);
            let block = self.rows(layer, first..end)?;
            for saved in self.transcoder.saved(self.dims, layer, &block, self.activation, self.scales)? {
                let SavedRows { file, tensor, rows, per_feature } = saved;
                if per_feature {
                    into.rows(&file, &tensor, first as i64, &rows)?;
                } else if shared {
                    into.rows(&file, &tensor, 0, &rows)?;
                }
            }
            (first, shared) = (end, false);
        }
        Ok(())
    }

    /// The parameters of a layer's features, which this process must own: views of what it has.
    ///
    /// # Errors
    /// None but those of features that are not this process's.
    pub fn rows(&self, layer: usize, features: Range<usize>) -> Result<Parameters> {
        let (mut specs, mut values) = (Vec::new(), Vec::new());
        for (spec, value) in self.specs.iter().zip(self.params.values()).filter(|(spec, _)| spec.layer == layer) {
            let mut spec = spec.clone();
            let mut value = value.shallow_clone();
            if spec.per_feature {
                let begin = features.start as i64 - spec.owned(&self.mesh).start as i64;
                value = value.f_narrow(0, begin, features.len() as i64)?;
                spec.shape = value.size();
            }
            specs.push(spec);
            values.push(value);
        }
        Parameters::new(specs, values)
    }

    /// Saves all of it into a folder that is there, where this process is the only one.
    ///
    /// # Errors
    /// What the transcoder and the file system return.
    pub fn into_folder(&self, folder: &Path) -> Result<()> {
        let files = self.files()?;
        files.iter().try_for_each(|file| file.create(folder))?;
        let mut writer = FolderWriter::open(folder, &files)?;
        self.write(&mut writer)?;
        writer.finish()?;
        Ok(())
    }
}
