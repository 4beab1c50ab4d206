//! Named parameters of a transcoder, and how they start.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::random::Stream;
use crate::{Error, Mesh, Result};

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// One value everywhere.
    Constant(f64),
    /// Uniform in `-limit..limit`.
    Uniform {
        /// The bound.
        limit: f64,
    },
}

/// How a parameter changes in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Update {
    /// The optimiser steps it along its gradient.
    #[default]
    Gradient,
    /// It is followed, not trained: what a step gives in place of its gradient, added up over the data axis, is its new value.
    /// Clipping neither counts nor scales it, and its moments stay zero.
    Tracked,
}

/// What type a parameter is kept in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// At least 32 bits, whatever the run computes in: thresholds and biases, whose steps would vanish in fewer.
    #[default]
    Full,
    /// The type that the run computes in; where that has fewer than 32 bits the optimiser keeps a master copy.
    Compute,
}

impl Precision {
    /// The type of a parameter where a run computes in `kind`.
    pub fn kind(self, kind: Kind) -> Kind {
        match (self, kind) {
            (Self::Full, Kind::BFloat16 | Kind::Half) => Kind::Float,
            _ => kind,
        }
    }
}

/// One parameter: a tensor whose first axis, where `per_feature`, runs over the features.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterSpec {
    /// Its name, unique in a transcoder.
    pub name: String,
    /// The layer that it belongs to: all parameters of a layer form one block.
    pub layer: usize,
    /// Its shape.
    pub shape: Vec<i64>,
    /// How it starts.
    pub init: Init,
    /// Whether the first axis runs over features, so that feature sharding splits it.
    pub per_feature: bool,
    /// How it changes in a step.
    pub update: Update,
    /// What type it is kept in.
    pub precision: Precision,
}

impl ParameterSpec {
    /// The rows of the first axis that a rank owns: those of its features. Where the mesh is sharded, ranks of the data axis share the rows of
    /// a matrix out among them; vectors are so few numbers that each of these ranks keeps all of a vector.
    pub fn owned(&self, mesh: &Mesh) -> Range<usize> {
        let rows = self.shape.first().map_or(1, |rows| usize::try_from(*rows).unwrap_or(0));
        if !self.per_feature {
            return 0..rows;
        }
        if self.is_sharded(mesh) { mesh.share(rows) } else { mesh.feature.share(rows) }
    }

    /// Whether a rank owns less of it than its features.
    pub fn is_sharded(&self, mesh: &Mesh) -> bool {
        mesh.sharded && mesh.data.size > 1 && self.per_feature && self.shape.len() > 1
    }

    /// The same of the rows that a rank owns.
    #[must_use]
    pub fn part(&self, mesh: &Mesh) -> Self {
        let mut part = self.clone();
        if let Some(rows) = part.shape.first_mut() {
            *rows = self.owned(mesh).len() as i64;
        }
        part
    }

    /// What a rank owns of a tensor of this parameter: a view of `whole`.
    ///
    /// # Errors
    /// A tensor that has not the parameter's features.
    pub fn narrow(&self, whole: &Tensor, mesh: &Mesh) -> Result<Tensor> {
        if !self.per_feature {
            return Ok(whole.shallow_clone());
        }
        let rows = self.shape.first().copied();
        if whole.size().first().copied() != rows {
            let rows = rows.unwrap_or(1);
            return Err(Error::Invalid(format!("parameter `{}`: expected {rows} features, got shape {:?}", self.name, whole.size())));
        }
        let owned = self.owned(mesh);
        Ok(whole.f_narrow(0, owned.start as i64, owned.len() as i64)?)
    }
}

/// Parameters in a fixed order.
#[derive(Debug)]
pub struct Parameters {
    specs: Vec<ParameterSpec>,
    values: Vec<Tensor>,
    /// See [`row_squares`](Self::row_squares).
    row_squares: Vec<Option<Vec<f64>>>,
}

impl Parameters {
    /// Joins specs and values.
    ///
    /// # Errors
    /// A value whose shape is not its spec's, or another number of values than specs.
    pub fn new(specs: Vec<ParameterSpec>, values: Vec<Tensor>) -> Result<Self> {
        if specs.len() != values.len() {
            return Err(Error::Invalid(format!("{} parameters are needed, {} came", specs.len(), values.len())));
        }
        for (spec, value) in specs.iter().zip(&values) {
            if value.size() != spec.shape {
                return Err(Error::Invalid(format!("parameter `{}`: expected shape {:?}, got {:?}", spec.name, spec.shape, value.size())));
            }
        }
        let row_squares = vec![None; values.len()];
        Ok(Self { specs, values, row_squares })
    }

    /// Draws initial values. A number depends on the seed, the parameter's name and its place alone, so that every split
    /// into ranks starts from the same weights.
    ///
    /// # Errors
    /// libtorch's, when the device has no room.
    pub fn init(specs: Vec<ParameterSpec>, seed: u64, kind: Kind, device: Device) -> Result<Self> {
        let values = draw_all(&specs, &Mesh::SINGLE, seed, kind, device)?;
        Self::new(specs, values)
    }

    /// The same of what a rank of the mesh owns; `specs` are those of all features.
    ///
    /// # Errors
    /// As [`Parameters::init`].
    pub fn init_part(specs: &[ParameterSpec], mesh: &Mesh, seed: u64, kind: Kind, device: Device) -> Result<Self> {
        let values = draw_all(specs, mesh, seed, kind, device)?;
        Self::new(specs.iter().map(|spec| spec.part(mesh)).collect(), values)
    }

    /// The specs, in order.
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// The values, in the order of the specs.
    pub fn values(&self) -> &[Tensor] {
        &self.values
    }

    /// Specs with their values and what is known of their rows, for an optimiser to step: it brings the latter up to date, or empties
    /// it.
    pub fn entries_mut(&mut self) -> impl Iterator<Item = (&ParameterSpec, &mut Tensor, &mut Option<Vec<f64>>)> {
        self.specs.iter().zip(&mut self.values).zip(&mut self.row_squares).map(|((spec, value), squares)| (spec, value, squares))
    }

    /// The sum of squares over each row of a parameter, where whoever changed the parameter last has left them: the optimiser has every
    /// row at hand, and a step that needs the norms of rows need not read the parameter for them. They hold as long as values are changed
    /// by [`entries_mut`](Self::entries_mut) and [`set`](Self::set) alone, not through another handle to a tensor's memory.
    pub fn row_squares(&self, position: usize) -> Option<&[f64]> {
        self.row_squares.get(position)?.as_deref()
    }

    /// Where a parameter stands.
    ///
    /// # Errors
    /// [`Error::Invalid`] when no parameter has that name.
    pub fn position(&self, name: &str) -> Result<usize> {
        self.specs.iter().position(|spec| spec.name == name).ok_or_else(|| Error::Invalid(format!("there is no parameter `{name}`")))
    }

    /// A parameter's value.
    ///
    /// # Errors
    /// [`Error::Invalid`] when no parameter has that name.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        Ok(&self.values[self.position(name)?])
    }

    /// Replaces a value by one of the same shape.
    ///
    /// # Errors
    /// [`Error::Invalid`] when no parameter has that name and shape.
    pub fn set(&mut self, name: &str, value: Tensor) -> Result<()> {
        let position = self.position(name)?;
        let spec = &self.specs[position];
        if value.size() != spec.shape {
            return Err(Error::Invalid(format!("parameter `{name}`: expected shape {:?}, got {:?}", spec.shape, value.size())));
        }
        self.values[position] = value;
        self.row_squares[position] = None;
        Ok(())
    }

    /// How many numbers they are.
    pub fn count(&self) -> u64 {
        self.specs.iter().map(|spec| spec.shape.iter().product::<i64>().unsigned_abs()).sum()
    }

    /// An independent copy.
    #[must_use]
    pub fn copy(&self) -> Self {
        let values = self.values.iter().map(Tensor::copy).collect();
        Self { specs: self.specs.clone(), values, row_squares: self.row_squares.clone() }
    }
}

/// The initial values of what a rank owns.
fn draw_all(specs: &[ParameterSpec], mesh: &Mesh, seed: u64, kind: Kind, device: Device) -> Result<Vec<Tensor>> {
    let drawn = |spec: &ParameterSpec| draw(&spec.part(mesh), spec.owned(mesh).start as u64, seed, spec.precision.kind(kind), device);
    specs.iter().map(drawn).collect()
}

/// `first` is the number of the first row in the whole parameter.
fn draw(spec: &ParameterSpec, first: u64, seed: u64, kind: Kind, device: Device) -> Result<Tensor> {
    match spec.init {
        Init::Constant(value) => Ok(Tensor::f_full(&spec.shape, value, (kind, device))?),
        Init::Uniform { limit } => {
            let rows = spec.shape.first().copied().unwrap_or(1);
            let width = spec.shape.iter().skip(1).product::<i64>();
            let mut numbers = Vec::new();
            let count = usize::try_from(i128::from(rows) * i128::from(width)).unwrap_or(usize::MAX);
            let none = |_| Error::Invalid(format!("there is no memory for parameter `{}` of shape {:?}", spec.name, spec.shape));
            numbers.try_reserve_exact(count).map_err(none)?;
            for row in 0..rows {
                let mut stream = Stream::new(seed, &spec.name, first + row as u64);
                numbers.extend((0..width).map(|_| ((2.0 * stream.uniform() - 1.0) * limit) as f32));
            }
            Ok(Tensor::from_slice(&numbers).f_view(spec.shape.as_slice())?.f_to_kind(kind)?.f_to_device(device)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Axis;

    fn spec(rows: i64) -> ParameterSpec {
        let init = Init::Uniform { limit: 0.5 };
        ParameterSpec {
            name: "W_enc_0".into(),
            layer: 0,
            shape: vec![rows, 3],
            init,
            per_feature: true,
            update: Update::Gradient,
            precision: Precision::Compute,
        }
    }

    #[test]
    fn a_row_starts_the_same_whatever_the_number_of_rows() {
        let init = |rows| Parameters::init(vec![spec(rows)], 7, Kind::Float, Device::Cpu).expect("fits");
        let (few, many) = (init(2), init(5));
        assert_eq!(few.values()[0], many.values()[0].narrow(0, 0, 2));
        assert!(many.values()[0].abs().max().double_value(&[]) <= 0.5);
        assert_eq!(many.count(), 15);
    }

    /// All ranks of a mesh.
    fn ranks(data: usize, feature: usize, sharded: bool) -> impl Iterator<Item = Mesh> {
        let axes = move |rank| [Axis { rank: rank / feature, size: data }, Axis { rank: rank % feature, size: feature }];
        (0..data * feature).map(axes).map(move |[data, feature]| Mesh { data, feature, sharded })
    }

    #[test]
    fn ranks_start_as_their_shares_of_the_whole() {
        let whole = Parameters::init(vec![spec(7)], 7, Kind::Float, Device::Cpu).expect("fits");
        for mesh in ranks(1, 3, false).chain(ranks(2, 2, true)) {
            let part = Parameters::init_part(&[spec(7)], &mesh, 7, Kind::Float, Device::Cpu).expect("fits");
            assert_eq!(part.values()[0], spec(7).narrow(&whole.values()[0], &mesh).expect("all features"));
            assert_eq!(part.specs()[0].shape, [spec(7).owned(&mesh).len() as i64, 3]);
        }
        let shared = ParameterSpec { per_feature: false, ..spec(7) };
        assert!(ranks(1, 2, false).all(|mesh| shared.part(&mesh) == shared));
        assert!(spec(7).narrow(&Tensor::zeros([6, 3], (Kind::Float, Device::Cpu)), &Mesh::SINGLE).is_err());
    }

    #[test]
    fn shards_cover_a_matrix_once_and_vectors_are_whole() {
        let vector = ParameterSpec { shape: vec![7], ..spec(7) };
        for (data, feature) in [(1, 1), (2, 1), (3, 2), (8, 1)] {
            let mut rows: Vec<usize> = ranks(data, feature, true).flat_map(|mesh| spec(7).owned(&mesh)).collect();
            rows.sort_unstable();
            assert_eq!(rows, (0..7).collect::<Vec<_>>());
            assert!(ranks(data, feature, true).all(|mesh| vector.owned(&mesh) == mesh.feature.share(7)));
            assert!(ranks(data, feature, false).all(|mesh| spec(7).owned(&mesh) == mesh.feature.share(7)));
        }
    }

    #[test]
    fn wrong_shapes_and_names_are_refused() {
        let mut params = Parameters::init(vec![spec(2)], 7, Kind::Float, Device::Cpu).expect("fits");
        assert!(params.get("W_enc_1").is_err());
        let error = params.set("W_enc_0", Tensor::zeros([3, 2], (Kind::Float, Device::Cpu))).expect_err("turned");
        assert_eq!(error.to_string(), "parameter `W_enc_0`: expected shape [2, 3], got [3, 2]");
    }
}
