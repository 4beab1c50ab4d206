//! The loader: rows in the sampler's order, read ahead.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use circuitlab::cache::{Cache, Loader, LoaderOptions, Sampler, SamplerState, Side};
use circuitlab_core::codec::ChainSpec;
use circuitlab_core::{ActivationCodec, Axis, BlockShape, CodecInput, Construct, register};
use tch::Tensor;

use crate::fake::{FakeModel, LAYERS, WIDTH, World, write};

register!(codec "slow" => SlowConfig, "a codec of the tests that gives no single rows");

#[derive(Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct SlowConfig {}

impl Construct for SlowConfig {
    type Output = Slow;

    fn construct(&self) -> circuitlab_core::Result<Slow> {
        Ok(Slow)
    }
}

/// Big-endian values.
#[derive(Debug)]
struct Slow;

impl ActivationCodec for Slow {
    fn input(&self) -> CodecInput {
        CodecInput::Values
    }

    fn encode_values(&self, values: &[f32], _: BlockShape) -> circuitlab_core::Result<Vec<u8>> {
        Ok(values.iter().flat_map(|value| value.to_be_bytes()).collect())
    }

    fn decode_values(&self, bytes: &[u8], _: BlockShape) -> circuitlab_core::Result<Vec<f32>> {
        Ok(bytes.as_chunks::<4>().0.iter().map(|word| f32::from_be_bytes(*word)).collect())
    }
}

const SEED: u64 = 3;
const ROW: usize = LAYERS * WIDTH;

/// Each way to keep a window: encoded, and decoded where the codec gives no single rows.
const CODECS: [&str; 4] = ["int8+zstd", "int4", "none", "slow+zstd"];

fn cache(world: &World) -> Arc<Cache> {
    world.build(&FakeModel::new(), "cache", "1/1", false).expect("builds");
    Arc::new(world.open("cache").expect("whole"))
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.flatten(0, -1)).expect("floats")
}

/// The inputs and targets of some rows of the sequence, decoded one by one.
fn expected(cache: &Cache, options: &LoaderOptions, from: u64, rows: usize) -> (Vec<f32>, Vec<f32>) {
    let sampler = Sampler::new(cache.chunk_rows(), options.window_chunks).expect("rows");
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    for place in sampler.rows_from(SamplerState { seed: SEED, drawn_rows: from }).take(rows) {
        let chunk = cache.chunk(place.chunk).expect("opens");
        for layer in 0..LAYERS {
            let add = |all: &mut Vec<f32>, side, scale: f64| {
                let values = chunk.values(layer, side).expect("whole");
                all.extend(values[place.row * WIDTH..][..WIDTH].iter().map(|value| value * scale as f32));
            };
            add(&mut inputs, Side::Inputs, options.normalisation.input_scales[layer]);
            add(&mut targets, Side::Targets, options.normalisation.target_scales[layer]);
        }
    }
    (inputs, targets)
}

#[test]
fn batches_are_the_rows_of_the_sequence_from_any_state_on() {
    for codec in CODECS {
        let mut world = World::new();
        world.config.codec = ChainSpec::parse(codec);
        batches_are_the_rows(&cache(&world));
    }
}

fn batches_are_the_rows(cache: &Arc<Cache>) {
    let rows = cache.rows();
    for (batch_rows, window_chunks, from) in [(7, 2, 0), (64, 3, 10), (rows as usize * 2 + 3, 8, rows - 1), (16, 1, 5 * rows + 100)] {
        let options = LoaderOptions { window_chunks, ..LoaderOptions::new(cache, batch_rows) };
        let state = SamplerState { seed: SEED, drawn_rows: from };
        let mut loader = Loader::start(Arc::clone(cache), state, &options).expect("starts");
        let count = 2 * rows as usize / batch_rows + 2;
        let (inputs, targets) = expected(cache, &options, from, count * batch_rows);
        for number in 0..count {
            let loaded = loader.next().expect("reads");
            let stretch = number * batch_rows * ROW..(number + 1) * batch_rows * ROW;
            assert_eq!(loaded.batch.inputs.size(), [batch_rows as i64, LAYERS as i64, WIDTH as i64]);
            assert_eq!(numbers(&loaded.batch.inputs), inputs[stretch.clone()]);
            assert_eq!(numbers(&loaded.batch.targets), targets[stretch]);
            assert_eq!(loaded.state, SamplerState { seed: SEED, drawn_rows: from + ((number + 1) * batch_rows) as u64 });
            // Every other batch's memory is used again, for what must be as right.
            if number % 2 == 0 {
                loader.give_back(loaded.batch);
            }
        }
    }
}

#[test]
fn ranks_read_the_rows_of_one_batch_between_them() {
    let world = World::new();
    let cache = cache(&world);
    let options = LoaderOptions { window_chunks: 2, ..LoaderOptions::new(&cache, 50) };
    let (inputs, _) = expected(&cache, &options, 0, 400);
    let mut ranks: Vec<Loader> = (0..3)
        .map(|rank| {
            let options = options.clone().with_share(Axis { rank, size: 3 });
            Loader::start(Arc::clone(&cache), SamplerState { seed: SEED, drawn_rows: 0 }, &options).expect("starts")
        })
        .collect();
    for batch in 0..8 {
        let all: Vec<f32> = ranks.iter_mut().flat_map(|rank| numbers(&rank.next().expect("reads").batch.inputs)).collect();
        assert_eq!(all, inputs[batch * 50 * ROW..(batch + 1) * 50 * ROW]);
    }
}

#[test]
fn parts_of_a_share_are_the_share() {
    let world = World::new();
    let cache = cache(&world);
    let options = LoaderOptions { window_chunks: 2, ..LoaderOptions::new(&cache, 50) };
    let (inputs, targets) = expected(&cache, &options, 0, 400);
    let places = (0..3).flat_map(|share| (0..2).map(move |part| (share, part)));
    let mut ranks: Vec<Loader> = places
        .map(|(share, part)| {
            let options = options.clone().with_share(Axis { rank: share, size: 3 }).with_part(Axis { rank: part, size: 2 });
            Loader::start(Arc::clone(&cache), SamplerState { seed: SEED, drawn_rows: 0 }, &options).expect("starts")
        })
        .collect();
    for batch in 0..8 {
        let parts: Vec<_> = ranks.iter_mut().map(|rank| rank.next().expect("reads").batch).collect();
        let stretch = batch * 50 * ROW..(batch + 1) * 50 * ROW;
        assert_eq!(parts.iter().flat_map(|part| numbers(&part.inputs)).collect::<Vec<_>>(), inputs[stretch.clone()]);
        assert_eq!(parts.iter().flat_map(|part| numbers(&part.targets)).collect::<Vec<_>>(), targets[stretch]);
    }
}

/// Where rows of a batch may come from: document, position and token. The model's values tell, but for contexts that begin alike.
fn origins(cache: &Cache, options: &LoaderOptions) -> BTreeMap<Vec<u32>, BTreeSet<(u32, u32, u32)>> {
    let mut origins: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for chunk in 0..cache.chunk_rows().len() {
        let chunk = cache.chunk(chunk).expect("opens");
        let index = chunk.index().expect("whole");
        let layers: Vec<Vec<f32>> = (0..LAYERS).map(|layer| chunk.values(layer, Side::Inputs).expect("whole")).collect();
        for row in 0..chunk.rows() {
            let scaled = layers
                .iter()
                .zip(&options.normalisation.input_scales)
                .flat_map(|(values, scale)| values[row * WIDTH..][..WIDTH].iter().map(move |value| (value * *scale as f32).to_bits()));
            let place = (index.documents[row], index.positions[row], index.tokens[row]);
            assert!(origins.entry(scaled.collect()).or_default().insert(place), "{place:?} is there twice");
        }
    }
    origins
}

#[test]
fn every_token_comes_once_an_epoch_whatever_the_ranks_and_sizes() {
    let mut world = World::new();
    world.config.codec = ChainSpec::parse("none");
    for (chunk_rows, jobs) in [(40, 1), (13, 3)] {
        world.config.chunk_rows = Some(chunk_rows);
        let name = format!("cache-{jobs}");
        for job in 1..=jobs {
            world.build(&FakeModel::new(), &name, &format!("{job}/{jobs}"), false).expect("builds");
        }
        let cache = Arc::new(world.open(&name).expect("whole"));
        let rows = cache.rows();
        for (ranks, batch_rows, window_chunks) in [(1, 7, 1), (2, 64, 3), (3, 50, 2), (3, rows as usize, 8), (2, 31, 100)] {
            let options = LoaderOptions { window_chunks, ..LoaderOptions::new(&cache, batch_rows) };
            let origins = origins(&cache, &options);
            // Two epochs, the last batch cut: batches need not divide an epoch.
            let counts = count(&cache, &options, ranks, 2 * rows);
            assert_eq!(origins.values().map(BTreeSet::len).sum::<usize>() as u64, rows);
            assert!(origins.len() as u64 > rows * 3 / 4, "most rows are told apart");
            assert!(counts.keys().eq(origins.keys()), "the rows of the cache and no others");
            let twice = counts.iter().zip(origins.values()).all(|((_, count), origins)| *count == 2 * origins.len() as u64);
            assert!(twice, "{ranks} ranks, batches of {batch_rows}");
        }
    }
    // All that a checkpoint keeps of it.
    let state = serde_json::to_value(SamplerState { seed: SEED, drawn_rows: 12 }).expect("plain data");
    assert_eq!(state, serde_json::json!({"seed": SEED, "drawn_rows": 12}));
}

/// How often each row comes among the first so many, over all ranks.
fn count(cache: &Arc<Cache>, options: &LoaderOptions, ranks: usize, rows: u64) -> BTreeMap<Vec<u32>, u64> {
    let start = |rank| {
        let options = options.clone().with_share(Axis { rank, size: ranks });
        Loader::start(Arc::clone(cache), SamplerState { seed: SEED, drawn_rows: 0 }, &options).expect("starts")
    };
    let mut loaders: Vec<Loader> = (0..ranks).map(start).collect();
    let mut counts = BTreeMap::new();
    let mut drawn = 0;
    while drawn < rows {
        for loader in &mut loaders {
            let loaded = loader.next().expect("reads");
            for row in numbers(&loaded.batch.inputs).chunks(ROW).take((rows - drawn) as usize) {
                *counts.entry(row.iter().map(|value| value.to_bits()).collect()).or_insert(0) += 1;
                drawn += 1;
            }
            loader.give_back(loaded.batch);
        }
    }
    counts
}

#[test]
fn a_damaged_chunk_reaches_the_trainer_as_an_error() {
    let world = World::new();
    let cache = cache(&world);
    let path = world.path("cache/part-001-of-001/chunk-000002.clab");
    let mut bytes = std::fs::read(&path).expect("reads");
    let last = bytes.len() - 700;
    bytes[last] ^= 4;
    write(&path, bytes);
    let mut loader = Loader::start(Arc::clone(&cache), SamplerState::default(), &LoaderOptions::new(&cache, 1000)).expect("starts");
    let error = loader.next().expect_err("damaged").to_string();
    assert!(error.contains("chunk-000002.clab"), "{error}");
    assert!(loader.next().expect_err("it is over").to_string().contains("has stopped after an error"));
}

#[test]
fn a_dropped_loader_ends_at_once() {
    let world = World::new();
    let cache = cache(&world);
    let begin = Instant::now();
    for batches in 0..20 {
        let mut loader = Loader::start(Arc::clone(&cache), SamplerState::default(), &LoaderOptions::new(&cache, 10)).expect("starts");
        (0..batches).for_each(|_| drop(loader.next().expect("reads")));
    }
    assert_eq!(Arc::strong_count(&cache), 1, "no thread holds on to the cache");
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let world = World::new();
    let cache = cache(&world);
    let start =
        |options: LoaderOptions| Loader::start(Arc::clone(&cache), SamplerState::default(), &options).expect_err("refused").to_string();
    let options = LoaderOptions::new(&cache, 2);
    assert!(start(options.clone().with_share(Axis { rank: 0, size: 3 })).contains("a batch of 2 rows has none for rank 0 of 3"));
    let part = options.clone().with_share(Axis { rank: 0, size: 2 }).with_part(Axis { rank: 1, size: 3 });
    assert!(start(part).contains("a share of 1 rows has none for part 1 of 3"));
    assert!(start(LoaderOptions { batch_rows: 0, ..options.clone() }).contains("a batch of 0 rows"));
    assert!(start(LoaderOptions { window_chunks: 0, ..options.clone() }).contains("`window_chunks` is 0"));
    let mut short = options;
    short.normalisation.input_scales.pop();
    assert!(start(short).contains("is not of the cache's 3 layers"));
}
