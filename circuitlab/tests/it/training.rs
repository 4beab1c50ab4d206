//! Runs on a small cache: several transcoders on one stream, micro-batches, and rows that are not finite.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use circuitlab::cache::{Sampler, SamplerState, Side};
use circuitlab::train::{TrainConfig, TrainRequest, TrainSummary, train};
use circuitlab::{Progress, Result, Silent};
use circuitlab_core::codec::ChainSpec;
use circuitlab_core::config::FloatKind;
use circuitlab_core::tensors::TensorFile;
use circuitlab_core::{ActivationCodec, BlockShape, CodecInput, Construct, Spec, register};
use tch::{Device, Kind};

use crate::fake::{FakeModel, WIDTH, World};

register!(codec "rotting" => RottingConfig, "a codec of the tests that gives NaN in place of a number once it is told to");

#[derive(Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct RottingConfig {}

impl Construct for RottingConfig {
    type Output = Rotting;

    fn construct(&self) -> circuitlab_core::Result<Rotting> {
        Ok(Rotting)
    }
}

/// Plain values, but for one.
#[derive(Debug)]
struct Rotting;

/// The bits of the number that has become NaN.
static ROTTEN: Mutex<Option<u32>> = Mutex::new(None);

impl ActivationCodec for Rotting {
    fn input(&self) -> CodecInput {
        CodecInput::Values
    }

    fn encode_values(&self, values: &[f32], _: BlockShape) -> circuitlab_core::Result<Vec<u8>> {
        Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn decode_values(&self, bytes: &[u8], _: BlockShape) -> circuitlab_core::Result<Vec<f32>> {
        let rotten = *ROTTEN.lock().expect("no panic");
        let value = |word: &[u8; 4]| f32::from_le_bytes(*word);
        let kept = |value: f32| if Some(value.to_bits()) == rotten { f32::NAN } else { value };
        Ok(bytes.as_chunks::<4>().0.iter().map(|word| kept(value(word))).collect())
    }
}

fn world(codec: &str) -> World {
    let mut world = World::new();
    world.config.codec = ChainSpec::parse(codec);
    world.build(&FakeModel::new(), "cache", "1/1", false).expect("builds");
    world
}

fn config() -> TrainConfig {
    let mut config = TrainConfig { seed: 3, ..TrainConfig::default() };
    config.size.d_features = Some(16);
    config.schedule.steps = Some(12);
    config.optimiser.learning_rate = 5e-3;
    config.data.batch_rows = 21;
    config.data.window_chunks = 2;
    config.init.rows = 40;
    config.metrics.every_steps = 4;
    config.metrics.sinks = vec![Spec::named("jsonl")];
    config.checkpoint.every_steps = Some(5);
    config.compute.threads = Some(1);
    config
}

fn run(world: &World, out: &str, config: Option<TrainConfig>) -> Result<TrainSummary> {
    let (cache, out, resume) = (world.path("cache"), world.path(out), config.is_none());
    train(&TrainRequest { registry: &world.registry, cache: Some(&cache), out: &out, config, resume, progress: &Silent, stop: None })
}

fn two() -> TrainConfig {
    let table = |value: serde_json::Value| serde_json::from_value(value).expect("a table");
    let mut config = config();
    config.clt = vec![
        table(serde_json::json!({"name": "sparse", "sparsity": {"lambda": 9.0}, "init": {"seed": 8}})),
        table(serde_json::json!({
            "name": "wide", "transcoder": "plt", "activation": {"type": "topk", "k": 3}, "size": {"d_features": 24},
            "optimiser": {"learning_rate": 1e-3, "beta1": 0.0}, "init": {"rows": 30},
        })),
    ];
    config
}

/// The same settings, alone.
fn alone() -> [(&'static str, TrainConfig); 2] {
    let (mut sparse, mut wide) = (config(), config());
    sparse.sparsity.lambda = 9.0;
    sparse.init.seed = Some(8);
    (wide.transcoder, wide.activation) = (Spec::named("plt"), Spec::named("topk").with("k", 3));
    wide.size.d_features = Some(24);
    (wide.optimiser.learning_rate, wide.optimiser.beta1, wide.init.rows) = (1e-3, 0.0, 30);
    [("sparse", sparse), ("wide", wide)]
}

/// Every file of a run folder but those that tell the time, and its metrics without their pace.
fn left_behind(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![run.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let name = entry.strip_prefix(run).expect("below").display().to_string();
            if entry.is_dir() {
                folders.push(entry);
            } else if name == "metrics.jsonl" {
                let text = std::fs::read_to_string(&entry).expect("text");
                let lines = text.lines().map(|line| {
                    let mut record: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).expect("a record");
                    record.retain(|name, _| !name.starts_with("throughput/"));
                    serde_json::to_string(&record).expect("plain data")
                });
                files.push((name, lines.collect::<Vec<_>>().join("\n").into_bytes()));
            } else if name != "log.txt" && !name.starts_with("plots") {
                files.push((name, std::fs::read(&entry).expect("a file")));
            }
        }
    }
    files.sort();
    files
}

fn same(one: &Path, other: &Path) {
    let (one, other) = (left_behind(one), left_behind(other));
    assert!(one.len() > 15, "{} files", one.len());
    assert!(one.iter().map(|(name, _)| name).eq(other.iter().map(|(name, _)| name)));
    for ((name, one), (_, other)) in one.iter().zip(&other) {
        assert!(one == other, "{name} differs");
    }
}

#[test]
fn each_of_several_is_what_it_would_be_alone() {
    let world = world("int8+zstd");
    let done = run(&world, "both", Some(two())).expect("trains");
    assert_eq!(done.clts.iter().map(|clt| clt.name.as_deref()).collect::<Vec<_>>(), [Some("sparse"), Some("wide")]);
    assert!(world.path("both/config.toml").is_file() && !world.path("both/final").exists());
    for (name, config) in alone() {
        run(&world, name, Some(config)).expect("trains");
        same(&world.path("both").join(name), &world.path(name));
    }
}

#[test]
fn several_go_on_together_wherever_each_of_them_was() {
    let world = world("none");
    run(&world, "whole", Some(two())).expect("trains");
    let folder = |run: &str, name: &str| world.path(run).join(name);
    // As a process leaves it that was killed between one's checkpoint and the other's, one's end and the other's, or a folder and the
    // next.
    for (name, gone) in
        [("sparse", vec!["final", "checkpoints/step-00000010"]), ("wide", vec!["final"]), ("wide", vec!["final", "checkpoints"])]
    {
        run(&world, "broken", Some(two())).expect("trains");
        for gone in gone {
            std::fs::remove_dir_all(folder("broken", name).join(gone)).expect("removes");
        }
        run(&world, "broken", None).expect("goes on");
        for name in ["sparse", "wide"] {
            same(&folder("broken", name), &folder("whole", name));
        }
        std::fs::remove_dir_all(world.path("broken")).expect("removes");
    }
    run(&world, "begun", Some(two())).expect("trains");
    std::fs::remove_dir_all(folder("begun", "wide")).expect("removes");
    run(&world, "begun", None).expect("goes on");
    same(&folder("begun", "wide"), &folder("whole", "wide"));
    assert!(run(&world, "begun", None).expect("there is nothing to do").was_finished);
    let error = run(&world, "begun", Some(two())).expect_err("taken").to_string();
    assert!(error.contains("exists already"), "{error}");
}

/// Asks the run to stop once so many rows were told of.
#[derive(Debug)]
struct Asks {
    at_rows: u64,
    stop: AtomicBool,
}

impl Progress for Asks {
    fn begin(&self, _: &str, _: u64, _: &'static str) {}

    fn at(&self, done: u64, _: &str) {
        self.stop.fetch_or(done >= self.at_rows, Ordering::Relaxed);
    }

    fn end(&self) {}
}

#[test]
fn a_run_that_is_asked_to_stop_goes_on_to_the_bit() {
    let world = world("none");
    run(&world, "whole", Some(two())).expect("trains");
    // Rows are told of at steps 0, 4, 8, ..; a run that is asked at step 12 has taken its last step.
    for (at_step, stops_at) in [(0, Some(1)), (1, Some(5)), (8, Some(9)), (12, None)] {
        let asks = Asks { at_rows: at_step * 21, stop: AtomicBool::new(false) };
        let (cache, out, stop) = (world.path("cache"), world.path("stopped"), Some(&asks.stop));
        let (registry, config) = (&world.registry, Some(two()));
        let request = TrainRequest { registry, cache: Some(&cache), out: &out, config, resume: false, progress: &asks, stop };
        let summary = train(&request).expect("stops");
        assert_eq!(summary.stopped_at, stops_at);
        for clt in &summary.clts {
            assert_eq!((clt.steps, clt.result.exists()), (stops_at.unwrap_or(12), stops_at.is_none()));
        }
        let again = run(&world, "stopped", None).expect("goes on");
        assert_eq!((again.stopped_at, again.was_finished), (None, stops_at.is_none()));
        for name in ["sparse", "wide"] {
            let weights = |run: &str| {
                let mut files = left_behind(&world.path(run).join(name).join("final"));
                files.retain(|(name, _)| name.ends_with(".safetensors"));
                files
            };
            assert!(weights("stopped") == weights("whole"), "{name}, asked at step {at_step}");
        }
        std::fs::remove_dir_all(&out).expect("removes");
    }
}

#[test]
fn micro_batches_change_nothing_but_the_order_of_sums() {
    let world = world("none");
    let with = |micro: Option<usize>| {
        let mut config = config();
        config.compute.dtype = FloatKind::F64;
        config.schedule.steps = Some(4);
        config.data.micro_batch_rows = micro;
        let name = format!("run-{}", micro.unwrap_or(0));
        run(&world, &name, Some(config)).expect("trains").clts[0].clone()
    };
    let whole = with(None);
    for micro in [20, 5, 1] {
        let parts = with(Some(micro));
        for name in ["loss/total", "loss/sparsity", "metrics/explained_variance", "metrics/l0", "metrics/gradient_norm"] {
            let of = |clt: &circuitlab::train::TrainedClt| clt.last.as_ref().and_then(|record| record.get(name)).expect("a figure");
            let (got, want) = (of(&parts), of(&whole));
            assert!((got - want).abs() <= 1e-12 * want.abs(), "{name} in parts of {micro}: {got} is not {want}");
        }
        for file in ["W_enc_0", "W_dec_1"] {
            let read = |clt: &circuitlab::train::TrainedClt| {
                let file_name = format!("{file}.safetensors");
                TensorFile::open(&clt.result.join(file_name))
                    .and_then(|tensors| tensors.tensor(file, Some(Kind::Double), Device::Cpu))
                    .expect("a tensor")
            };
            let (got, want) = (read(&parts), read(&whole));
            let apart = (got - &want).abs().max().double_value(&[]) / want.abs().max().double_value(&[]);
            assert!(apart < 1e-12, "{file} in parts of {micro}: {apart} apart");
        }
    }
    let mut batch = config();
    (batch.activation, batch.data.micro_batch_rows) = (Spec::named("batchtopk"), Some(5));
    let error = run(&world, "batchtopk", Some(batch)).expect_err("it compares rows").to_string();
    assert!(error.contains("compares all rows of a batch") && !world.path("batchtopk").exists(), "{error}");
}

#[test]
fn a_row_that_is_not_finite_is_named_with_its_chunk() {
    let world = world("rotting");
    let cache = world.open("cache").expect("whole");
    let config = config();
    // A row that is drawn at the fourth step.
    let sampler = Sampler::new(cache.chunk_rows(), config.data.window_chunks).expect("rows");
    let at = 3 * config.data.batch_rows + 4;
    let place = sampler.rows_from(SamplerState { seed: config.seed, drawn_rows: 0 }).nth(at).expect("endless");
    let chunk = cache.chunk(place.chunk).expect("opens");
    for (side, layer, says) in [(Side::Targets, 1, "outputs of layer 1"), (Side::Inputs, 2, "inputs of layer 2")] {
        let value = chunk.values(layer, side).expect("whole")[place.row * WIDTH + 5];
        *ROTTEN.lock().expect("no panic") = Some(value.to_bits());
        let error = run(&world, layer.to_string().as_str(), Some(config.clone())).expect_err("NaN").to_string();
        *ROTTEN.lock().expect("no panic") = None;
        let file = format!("chunk-{:06}.clab`: {says}: row {} holds NaN", place.chunk, place.row);
        assert!(error.starts_with("step 3 has rows that are not finite: `") && error.contains(&file), "{error}\n{file}");
    }
}
