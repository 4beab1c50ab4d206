//! Ranks in threads that write one checkpoint, and others that read it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{
    Axis, Dims, Mesh, ParallelismStrategy, ParameterSpec, Parameters, Registry, Saving, Scales, SparsityActivation, Spec, Transcoder, files,
};
use tch::{Device, Kind, Tensor};

use super::{Checkpoint, FORMAT, SavedState, TrainTensor, commit};
use crate::Result;
use crate::cache::SamplerState;

const DIMS: Dims = Dims { layers: 2, d_model: 3, d_features: 7 };

/// What ranks put on the table, by rank.
type Table = Arc<(Mutex<BTreeMap<usize, Tensor>>, Barrier)>;

#[derive(Debug)]
struct InThreads {
    mesh: Mesh,
    table: Table,
}

impl InThreads {
    fn number(&self, data: usize, feature: usize) -> usize {
        data * self.mesh.feature.size + feature
    }
}

impl ParallelismStrategy for InThreads {
    fn mesh(&self) -> Mesh {
        self.mesh
    }

    fn sum(&self, axis: MeshAxis, tensor: &mut Tensor) -> circuitlab_core::Result<()> {
        let Mesh { data, feature, .. } = self.mesh;
        self.table.0.lock().expect("no panic").insert(self.number(data.rank, feature.rank), tensor.copy());
        self.table.1.wait();
        let members = (0..self.mesh.axis(axis).size).map(|at| match axis {
            MeshAxis::Data => self.number(at, feature.rank),
            MeshAxis::Feature => self.number(data.rank, at),
        });
        let total = {
            let table = self.table.0.lock().expect("no panic");
            members.map(|number| table[&number].copy()).reduce(|sum, one| sum + one).expect("at least this rank")
        };
        tensor.copy_(&total);
        self.table.1.wait();
        Ok(())
    }

    fn barrier(&self) -> circuitlab_core::Result<()> {
        self.table.1.wait();
        Ok(())
    }
}

fn meshes(data: usize, feature: usize, sharded: bool) -> Vec<Mesh> {
    let place =
        |rank| Mesh { data: Axis { rank: rank / feature, size: data }, feature: Axis { rank: rank % feature, size: feature }, sharded };
    (0..data * feature).map(place).collect()
}

/// The whole: parameters, and counters for each layer.
struct Whole {
    transcoder: Box<dyn Transcoder>,
    activation: Box<dyn SparsityActivation>,
    params: Parameters,
}

fn whole() -> Whole {
    circuitlab_plugins::link();
    let registry = Registry::linked().expect("no name twice");
    let transcoder = registry.build::<dyn Transcoder>(&Spec::named("clt")).expect("builds");
    let activation = registry.build::<dyn SparsityActivation>(&Spec::named("jumprelu")).expect("builds");
    let specs = transcoder.parameters(DIMS, &*activation).expect("small sizes");
    let params = Parameters::init(specs, 5, Kind::Float, Device::Cpu).expect("fits");
    Whole { transcoder, activation, params }
}

impl Whole {
    /// A tensor of `train/` as a rank has it.
    fn training(&self, mesh: &Mesh) -> Vec<TrainTensor> {
        let of = |(spec, value): (&ParameterSpec, &Tensor)| TrainTensor {
            layer: spec.layer,
            name: spec.name.clone(),
            tensor: spec.narrow(value, mesh).expect("all features"),
            owned: spec.owned(mesh),
            rows: spec.shape[0] as usize,
            per_feature: spec.per_feature,
        };
        let mut all: Vec<TrainTensor> = self.params.specs().iter().zip(self.params.values()).map(of).collect();
        let here = mesh.feature.share(DIMS.d_features);
        for layer in 0..DIMS.layers {
            let counters = silent(layer).narrow(0, here.start as i64, here.len() as i64);
            all.push(TrainTensor::silent_rows(layer, counters, here.clone(), DIMS.d_features));
        }
        all
    }
}

fn silent(layer: usize) -> Tensor {
    Tensor::arange(DIMS.d_features as i64, (Kind::Int64, Device::Cpu)) + 100 * layer as i64
}

/// Writes a checkpoint as every rank; `change` may change what one has.
fn write(place: &Path, meshes: &[Mesh], change: impl Fn(usize, &mut Parameters, &mut Vec<TrainTensor>) + Sync) -> Vec<Result<()>> {
    let table: Table = Arc::new((Mutex::default(), Barrier::new(meshes.len())));
    let rank = |number: usize, mesh: Mesh| {
        let strategy = InThreads { mesh, table: Arc::clone(&table) };
        let whole = whole();
        let specs = whole.params.specs();
        let own = specs.iter().zip(whole.params.values()).map(|(spec, value)| spec.narrow(value, &mesh).expect("all features").copy());
        let mut params = Parameters::new(specs.iter().map(|spec| spec.part(&mesh)).collect(), own.collect()).expect("fits");
        let mut training = whole.training(&mesh);
        change(number, &mut params, &mut training);
        let saving = Saving {
            transcoder: &*whole.transcoder,
            activation: &*whole.activation,
            dims: DIMS,
            scales: Scales { inputs: &[0.5, 3.0], targets: &[2.0, 0.7] },
            specs,
            params: &params,
            mesh,
        };
        commit(&strategy, place, &saving, &training, |part, written| {
            let sampler = SamplerState { seed: 1, drawn_rows: 30 };
            SavedState { format: FORMAT, step: 3, sampler, ranks: mesh.into(), written }.write(part)?;
            Ok(files::publish_folder(place)?)
        })
    };
    thread::scope(|scope| {
        let ranks: Vec<_> = meshes.iter().enumerate().map(|(number, mesh)| scope.spawn(move || rank(number, *mesh))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

fn tensor_files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for folder in [folder.to_path_buf(), folder.join("train")] {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                all.push((path.file_name().expect("a name").into(), fs::read(&path).expect("reads")));
            }
        }
    }
    all.sort();
    all
}

/// Ranks and whether they are sharded. Seven features do not divide by any of them, and nine ranks have more members than features.
const MESHES: [(usize, usize, bool); 7] =
    [(1, 1, false), (3, 1, false), (1, 3, false), (2, 2, false), (3, 1, true), (2, 2, true), (9, 1, true)];

#[test]
fn any_ranks_write_what_one_does_and_any_others_read_their_rows() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = |mesh: (usize, usize, bool)| folder.path().join(format!("{mesh:?}"));
    for mesh in MESHES {
        let (data, feature, sharded) = mesh;
        for outcome in write(&place(mesh), &meshes(data, feature, sharded), |_, _, _| ()) {
            outcome.expect("writes");
        }
        assert!(tensor_files(&place(mesh)) == tensor_files(&place(MESHES[0])), "{mesh:?} writes something else");
    }
    let whole = whole();
    let specs = whole.params.specs();
    for (written, read) in MESHES.into_iter().zip(MESHES.into_iter().rev()) {
        let (data, feature, sharded) = read;
        for (number, mesh) in meshes(data, feature, sharded).into_iter().enumerate() {
            let saved = Checkpoint::open(&place(written), DIMS.layers).expect("opens");
            assert_eq!((saved.state.step, saved.state.ranks), (3, meshes(written.0, written.1, written.2)[0].into()));
            saved.check(number, data * feature).expect("as it was written");
            let params = saved.parameters(specs, &mesh, Kind::Float, Device::Cpu).expect("its rows");
            for ((spec, value), read) in specs.iter().zip(whole.params.values()).zip(params.values()) {
                assert_eq!(read, &spec.narrow(value, &mesh).expect("all features"), "{} of {mesh:?}", spec.name);
            }
            let here: Range<usize> = mesh.feature.share(DIMS.d_features);
            let counters = saved.silent_rows(here.clone(), Device::Cpu).expect("its features");
            assert_eq!(counters.get(1), silent(1).narrow(0, here.start as i64, here.len() as i64));
        }
    }
}

#[test]
fn what_one_rank_fails_at_all_are_told_and_nothing_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("step-00000003");
    let drifted = |number: usize, params: &mut Parameters, _: &mut Vec<TrainTensor>| {
        if number == 3 {
            let moved = params.get("b_dec_1").expect("is there") + 1e-7;
            params.set("b_dec_1", moved).expect("same shape");
        }
    };
    for outcome in write(&place, &meshes(2, 2, false), drifted) {
        let error = outcome.expect_err("one has drifted").to_string();
        assert!(error.contains("ranks have drifted apart: `b_dec_1` of rank 3 is not that of rank 0"), "{error}");
    }
    let unfit = |number: usize, _: &mut Parameters, training: &mut Vec<TrainTensor>| {
        if number == 1 {
            training[0].tensor = training[0].tensor.to_kind(Kind::Half);
            training[0].name = "W_enc_0".to_owned();
        }
    };
    for (number, outcome) in write(&place, &meshes(2, 1, false), unfit).into_iter().enumerate() {
        let error = outcome.expect_err("one cannot write").to_string();
        assert_eq!(error.contains("rank 1 failed: "), number != 1, "{error}");
        assert!(error.contains("layer-000.safetensors"), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0);
}
