//! Reading the `train/` of a checkpoint: each rank its own rows.

use std::ops::Range;
use std::path::{Path, PathBuf};

use circuitlab_core::tensors::TensorFile;
use circuitlab_core::{Error as CoreError, Mesh, ParameterSpec, Parameters};
use tch::{Device, Kind, Tensor};

use super::state::SavedState;
use super::write::{SILENT_ROWS, file_of};
use crate::Result;

/// The `train/` of a checkpoint, opened.
#[derive(Debug)]
pub(in crate::train) struct Checkpoint {
    folder: PathBuf,
    pub(in crate::train) state: SavedState,
    layers: Vec<TensorFile>,
}

impl Checkpoint {
    pub(in crate::train) fn open(folder: &Path, layers: usize) -> Result<Self> {
        let state = SavedState::read(folder)?;
        let layers = (0..layers).map(|layer| TensorFile::open(&folder.join(file_of(layer)))).collect::<Result<_, CoreError>>()?;
        Ok(Self { folder: folder.to_path_buf(), state, layers })
    }

    /// Compares what ranks wrote into `train/` with their checksums: of `ranks` that read it now, rank `number` looks at its share.
    pub(in crate::train) fn check(&self, number: usize, ranks: usize) -> Result<()> {
        for (file, rows) in self.state.written.iter().skip(number).step_by(ranks).flatten() {
            if let Some(layer) = (0..self.layers.len()).find(|layer| file_of(*layer) == *file) {
                rows.iter().try_for_each(|rows| self.layers[layer].check(rows))?;
            }
        }
        Ok(())
    }

    /// Some rows of what was saved of a parameter, or by its side under another name.
    pub(in crate::train) fn rows(
        &self,
        spec: &ParameterSpec,
        name: &str,
        rows: Range<usize>,
        kind: Kind,
        device: Device,
    ) -> Result<Tensor> {
        let missing = || CoreError::format(&self.folder, format!("it has no layer {}", spec.layer));
        let file = self.layers.get(spec.layer).ok_or_else(missing)?;
        let (expected, found) = (spec.shape.first().copied().unwrap_or(1), file.layout(name)?.rows());
        if expected != found {
            return Err(CoreError::format(file.path(), format!("tensor `{name}`: expected {expected} rows, it has {found}")).into());
        }
        Ok(file.rows(name, rows.start as i64..rows.end as i64, Some(kind), device)?)
    }

    /// The parameters that a rank of the mesh owns; `specs` are those of all features.
    pub(in crate::train) fn parameters(&self, specs: &[ParameterSpec], mesh: &Mesh, kind: Kind, device: Device) -> Result<Parameters> {
        let values = specs.iter().map(|spec| self.rows(spec, &spec.name, spec.owned(mesh), kind, device)).collect::<Result<_>>()?;
        Ok(Parameters::new(specs.iter().map(|spec| spec.part(mesh)).collect(), values)?)
    }

    /// The counters of some features: `[layer, features]`.
    pub(in crate::train) fn silent_rows(&self, features: Range<usize>, device: Device) -> Result<Tensor> {
        let rows = features.start as i64..features.end as i64;
        let read = |file: &TensorFile| file.rows(SILENT_ROWS, rows.clone(), Some(Kind::Int64), device);
        let layers = self.layers.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::f_stack(&layers, 0).map_err(CoreError::from)?)
    }
}
