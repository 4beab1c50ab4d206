//! Caches: written, broken off, gone on with, joined, damaged.

use std::collections::BTreeMap;

use circuitlab::Silent;
use circuitlab::cache::{Cache, Side, Statistics, status, verify};
use circuitlab_core::codec::ChainSpec;
use circuitlab_core::{ActivationCodec, BlockHook, BlockShape, CodecInput, Construct, register};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use crate::fake::{FakeModel, LAYERS, WIDTH, World, write};

/// Every row of a cache by document, position and token: the values of all layers and sides, as bits.
pub(crate) fn rows(cache: &Cache) -> BTreeMap<(u32, u32, u32), Vec<u32>> {
    let mut rows = BTreeMap::new();
    for chunk in 0..cache.chunk_rows().len() {
        let reader = cache.chunk(chunk).expect("opens");
        let index = reader.index().expect("whole");
        let mut values = vec![Vec::new(); reader.rows()];
        for (layer, side) in (0..LAYERS).flat_map(|layer| [(layer, Side::Inputs), (layer, Side::Targets)]) {
            let decoded = reader.values(layer, side).expect("whole");
            values.iter_mut().zip(decoded.chunks(WIDTH)).for_each(|(all, row)| all.extend(row.iter().map(|value| value.to_bits())));
        }
        for (row, values) in values.into_iter().enumerate() {
            let key = (index.documents[row], index.positions[row], index.tokens[row]);
            assert!(rows.insert(key, values).is_none(), "{key:?} is there twice");
        }
    }
    rows
}

#[test]
fn rows_are_what_the_model_gives_without_padding() {
    let mut world = World::new();
    world.config.codec = ChainSpec::parse("none");
    let model = FakeModel::new();
    let summary = world.build(&model, "cache", "1/1", false).expect("builds");
    let cache = world.open("cache").expect("whole");
    let text = std::fs::read_to_string(world.path("text.txt")).expect("reads");
    let mut expected = BTreeMap::new();
    for (document, words) in text.split("\n\n").enumerate() {
        let ids: Vec<i64> = words.split(' ').map(|word| word[1..].parse().expect("a word")).collect();
        for (piece, context) in ids.chunks(8).enumerate() {
            let ids: Vec<i64> = [0].into_iter().chain(context.iter().copied()).collect();
            for end in 2..=ids.len() {
                let values = (0..LAYERS).flat_map(|layer| [(layer, BlockHook::MlpIn), (layer, BlockHook::MlpOut)]);
                let values = values.flat_map(|(layer, hook)| model.row(layer, hook, &ids[..end])).map(f32::to_bits).collect::<Vec<_>>();
                expected.insert((document as u32, (piece * 8 + end - 2) as u32, ids[end - 1] as u32), values);
            }
        }
    }
    assert_eq!(rows(&cache), expected);
    assert_eq!((cache.rows(), summary.rows), (expected.len() as u64, expected.len() as u64));
    assert!(summary.chunks >= 5 && summary.written_chunks == summary.chunks, "{summary:?}");
    assert_eq!(summary.raw_bytes, cache.rows() * (LAYERS * WIDTH * 8) as u64);
}

#[test]
fn bos_rows_are_kept_when_asked_for() {
    let mut world = World::new();
    world.config.drop_special_rows = false;
    world.build(&FakeModel::new(), "cache", "1/1", false).expect("builds");
    let cache = world.open("cache").expect("whole");
    let bos_rows = rows(&cache).keys().filter(|(.., token)| *token == 0).count();
    let text = std::fs::read_to_string(world.path("text.txt")).expect("reads");
    let contexts: usize = text.split("\n\n").map(|words| words.split(' ').count().div_ceil(8)).sum();
    assert_eq!(bos_rows, contexts);
}

#[test]
fn statistics_are_those_of_all_rows() {
    let mut world = World::new();
    world.config.codec = ChainSpec::parse("none+zstd");
    for share in ["1/2", "2/2"] {
        world.build(&FakeModel::new(), "cache", share, false).expect("builds");
    }
    let cache = world.open("cache").expect("whole");
    let normalisation = cache.normalisation();
    for layer in 0..LAYERS {
        for (side, statistics) in [(Side::Inputs, &cache.inputs()[layer]), (Side::Targets, &cache.targets()[layer])] {
            let chunks = 0..cache.chunk_rows().len();
            let all: Vec<f32> =
                chunks.flat_map(|chunk| cache.chunk(chunk).and_then(|chunk| chunk.values(layer, side)).expect("whole")).collect();
            let expected = Statistics::of_rows(&all, WIDTH);
            assert_eq!(statistics.rows, expected.rows);
            assert!((statistics.variance() - expected.variance()).abs() < 1e-9);
            assert!((statistics.mean_norm - expected.mean_norm).abs() < 1e-9);
            assert!(statistics.mean.iter().zip(&expected.mean).all(|(a, b)| (a - b).abs() < 1e-9));
            let scale = if side == Side::Inputs { normalisation.input_scales[layer] } else { normalisation.target_scales[layer] };
            assert!((scale * expected.mean_norm - (WIDTH as f64).sqrt()).abs() < 1e-9);
        }
    }
}

#[test]
fn a_job_broken_off_anywhere_goes_on_to_the_same_bytes() {
    let world = World::new();
    let model = FakeModel::new();
    world.build(&model, "whole", "1/1", false).expect("builds");
    let whole = world.files("whole");
    for pass in 0..model.passes() {
        let out = format!("broken-{pass}");
        let error = world.build(&FakeModel::failing_at(pass), &out, "1/1", false).expect_err("fails on purpose");
        assert!(error.to_string().contains("the power is gone"), "{error}");
        // What a kill in the middle of a write leaves: half a chunk, half a manifest, and a chunk the manifest lacks.
        let part = world.path(&out).join("part-001-of-001");
        let next = status(&world.path(&out)).expect("a status").parts[0].chunks;
        write(&part.join("manifest.json.part"), "{\"sche");
        write(&part.join("chunk-000099.clab.part"), "CLAB");
        write(&part.join(format!("chunk-{next:06}.clab")), "CLABACT");
        let error = world.open(&out).expect_err("unfinished").to_string();
        assert!(
            error.contains(&format!("{next} of {} chunks are written; run the job 1/1 again with `--resume`", whole.len() - 1)),
            "{error}"
        );
        let summary = world.build(&FakeModel::new(), &out, "1/1", true).expect("goes on");
        assert_eq!(summary.written_chunks, summary.chunks - next);
        assert_eq!(world.files(&out), whole, "pass {pass}");
    }
}

#[test]
fn a_finished_cache_is_left_alone() {
    let world = World::new();
    world.build(&FakeModel::new(), "cache", "1/1", false).expect("builds");
    let before = world.files("cache");
    let error = world.build(&FakeModel::new(), "cache", "1/1", false).expect_err("it is there").to_string();
    assert!(error.contains("exists already; go on with it by `--resume`"), "{error}");
    let model = FakeModel::new();
    let summary = world.build(&model, "cache", "1/1", true).expect("nothing to do");
    assert!(summary.was_complete() && model.passes() == 0);
    assert_eq!(world.files("cache"), before);
    std::fs::create_dir(world.path("full")).expect("a folder");
    write(&world.path("full/letter.txt"), "dear");
    for resume in [false, true] {
        let error = world.build(&FakeModel::new(), "full", "1/1", resume).expect_err("no cache").to_string();
        assert!(error.contains("it is no cache"), "{error}");
    }
}

#[test]
fn any_number_of_jobs_writes_the_rows_of_one() {
    let mut world = World::new();
    world.config.codec = ChainSpec::parse("int8");
    // Beside the short documents a long one, whose contexts are dealt out.
    let long: Vec<String> = (0..90_000).map(|word| format!("w{}", 2 + word * 7 % 28)).collect();
    let text = std::fs::read_to_string(world.path("text.txt")).expect("reads");
    write(&world.path("text.txt"), format!("{text}\n\n{}", long.join(" ")));
    world.config.chunk_rows = Some(20_000);
    world.build(&FakeModel::new(), "one", "1/1", false).expect("builds");
    let one = world.open("one").expect("whole");
    for jobs in [2, 3, 7] {
        let out = format!("of-{jobs}");
        let mut least = u64::MAX;
        for job in 1..=jobs {
            let summary = world.build(&FakeModel::new(), &out, &format!("{job}/{jobs}"), false).expect("builds");
            least = least.min(summary.rows);
        }
        assert!(least > 60_000 / jobs, "the long document gives every job work, not {least} rows");
        assert_eq!(rows(&world.open(&out).expect("whole")), rows(&one), "{jobs} jobs");
    }
}

#[test]
fn a_job_without_a_document_writes_a_complete_part() {
    let world = World::new();
    write(&world.path("text.txt"), "w2 w3\n\nw4 w5 w6");
    let mut empty = 0;
    for job in 1..=7 {
        let summary = world.build(&FakeModel::new(), "cache", &format!("{job}/7"), false).expect("builds");
        empty += usize::from(summary.chunks == 0 && summary.rows == 0);
    }
    assert!((5..7).contains(&empty), "{empty}");
    let cache = world.open("cache").expect("whole");
    assert_eq!((cache.rows(), status(&world.path("cache")).expect("a status").planned_rows), (5, 5));
    assert!(verify(&world.path("cache"), &Silent).expect("readable").is_empty());
}

#[test]
fn three_jobs_write_the_rows_of_one() {
    let mut world = World::new();
    // Quantised rows depend on nothing but the row, so the codec may stay.
    world.config.codec = ChainSpec::parse("int8");
    world.build(&FakeModel::new(), "one", "1/1", false).expect("builds");
    for share in ["3/3", "1/3"] {
        world.build(&FakeModel::new(), "three", share, false).expect("builds");
    }
    let error = world.open("three").expect_err("a part is missing").to_string();
    assert!(error.contains("1 of 3 parts are missing; run the jobs `2/3`"), "{error}");
    assert_eq!(status(&world.path("three")).expect("a status").missing_jobs, [2]);
    let error = world.build(&FakeModel::new(), "three", "2/4", false).expect_err("another number").to_string();
    assert!(error.contains("begun by another number of jobs: expected 3, got 4"), "{error}");
    world.build(&FakeModel::new(), "three", "2/3", false).expect("builds");
    let (one, three) = (world.open("one").expect("whole"), world.open("three").expect("whole"));
    assert_eq!(rows(&one), rows(&three));
    assert!(status(&world.path("three")).expect("a status").complete);
}

#[test]
fn another_model_or_text_or_setting_is_refused() {
    let mut world = World::new();
    world.build(&FakeModel::failing_at(4), "cache", "1/1", false).expect_err("fails on purpose");
    let refused = |world: &World, model: &FakeModel| world.build(model, "cache", "1/1", true).expect_err("differs").to_string();
    let mut other = FakeModel::new();
    other.info.fingerprint = "beef".to_owned();
    assert!(refused(&world, &other).ends_with(r#"`fingerprint`: expected "f00d", got "beef""#));
    let config = world.config.clone();
    world.config.output_hook = BlockHook::MlpRawOut;
    let text = refused(&world, &FakeModel::new());
    assert!(text.contains("`output_hook`: expected \"hook_mlp_out\""), "{text}");
    world.config = config.clone();
    world.config.context = 8;
    assert!(refused(&world, &FakeModel::new()).contains("`context`: expected 9, got 8"));
    world.config = config.clone();
    world.config.codec = ChainSpec::parse("int8");
    assert!(refused(&world, &FakeModel::new()).contains("`codec`"));
    world.config = config;
    let mut renamed = FakeModel::new();
    renamed.info.name = "renamed".to_owned();
    world.build(&renamed, "cache", "1/1", true).expect("a name may change");
    write(&world.path("text.txt"), "w2 w3");
    assert!(refused(&world, &FakeModel::new()).contains("`text`"));
    let cache = world.open("cache").expect("whole");
    assert!(cache.identity().check_model(&renamed.info).is_ok());
    assert!(cache.identity().check_model(&other.info).expect_err("another").to_string().contains("fingerprint: expected f00d, got beef"));
}

#[test]
fn damaged_chunks_are_found_by_name_and_made_anew() {
    let world = World::new();
    world.build(&FakeModel::new(), "cache", "1/1", false).expect("builds");
    let before = world.files("cache");
    assert!(verify(&world.path("cache"), &Silent).expect("readable").is_empty());
    let part = world.path("cache/part-001-of-001");
    let mut flipped = std::fs::read(part.join("chunk-000001.clab")).expect("reads");
    let middle = flipped.len() * 3 / 4;
    flipped[middle] ^= 1;
    write(&part.join("chunk-000001.clab"), &flipped);
    write(&part.join("chunk-000002.clab"), &flipped[..100]);
    std::fs::remove_file(part.join("chunk-000003.clab")).expect("removes");
    let damages = verify(&world.path("cache"), &Silent).expect("readable");
    let found: Vec<String> =
        damages.iter().map(|damage| format!("{} {}", damage.file.file_name().expect("a name").display(), damage.what)).collect();
    assert_eq!(found[0], "chunk-000001.clab has a wrong checksum");
    assert!(found[1].starts_with("chunk-000002.clab has 100 bytes, expected"), "{}", found[1]);
    assert!(found[2].starts_with("chunk-000003.clab cannot be read"), "{}", found[2]);
    assert_eq!(found.len(), 3);
    std::fs::remove_file(part.join("chunk-000001.clab")).expect("removes");
    let summary = world.build(&FakeModel::new(), "cache", "1/1", true).expect("mends");
    assert_eq!(summary.written_chunks, 3);
    assert_eq!(world.files("cache"), before);
}

#[test]
fn any_flipped_bit_of_any_file_is_found_and_its_file_named() {
    let world = World::new();
    for job in ["1/2", "2/2"] {
        world.build(&FakeModel::new(), "cache", job, false).expect("builds");
    }
    let files = world.files("cache");
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(200) });
    let which = (any::<Index>(), any::<Index>(), 0_u8..8);
    let checked = runner.run(&which, |(file, byte, bit)| {
        let (name, whole) = &files[file.index(files.len())];
        let mut flipped = whole.clone();
        flipped[byte.index(whole.len())] ^= 1 << bit;
        let path = world.path("cache").join(name);
        write(&path, &flipped);
        let damages = verify(&world.path("cache"), &Silent).expect("a cache");
        write(&path, whole);
        prop_assert!(damages.iter().any(|damage| damage.file == path), "{name}: {damages:?}");
        Ok(())
    });
    checked.expect("each is found");
    assert!(verify(&world.path("cache"), &Silent).expect("a cache").is_empty());
}

#[test]
fn parts_of_another_model_and_rows_that_are_there_twice_are_named() {
    let world = World::new();
    let mut other = FakeModel::new();
    other.info.fingerprint = "beef".to_owned();
    for (job, model) in [("1/3", &FakeModel::new()), ("2/3", &FakeModel::new()), ("3/3", &FakeModel::new())] {
        world.build(model, "cache", job, false).expect("builds");
    }
    world.build(&other, "others", "2/3", false).expect("builds");
    let (own, theirs) = (world.path("cache/part-002-of-003"), world.path("others/part-002-of-003"));
    std::fs::rename(&own, world.path("own")).and_then(|()| std::fs::rename(&theirs, &own)).expect("swaps");
    let damages = verify(&world.path("cache"), &Silent).expect("a cache");
    let [stranger] = &damages[..] else { panic!("{damages:?}") };
    assert_eq!(stranger.file, own.join("manifest.json"));
    assert!(stranger.what.contains("`fingerprint`") && stranger.what.contains("beef"), "{}", stranger.what);
    let error = status(&world.path("cache")).expect_err("two caches").to_string();
    assert!(error.contains("part-002-of-003") && error.contains("`fingerprint`"), "{error}");

    // The part of job 1 once more, as that of job 2.
    std::fs::remove_dir_all(&own).expect("removes");
    std::fs::create_dir(&own).expect("a folder");
    for (name, bytes) in world.files("cache").iter().filter_map(|(name, bytes)| Some((name.strip_prefix("part-001-of-003/")?, bytes))) {
        let text = String::from_utf8(bytes.clone()).ok().filter(|_| name == "manifest.json");
        write(&own.join(name), text.map_or_else(|| bytes.clone(), |text| resealed(&text, "\"job\":1,", "\"job\":2,").into_bytes()));
    }
    let damages = verify(&world.path("cache"), &Silent).expect("a cache");
    assert!(!damages.is_empty() && damages.len() <= 16, "{}", damages.len());
    for damage in &damages {
        assert!(damage.file.starts_with(&own) && damage.what.contains("part-001-of-003"), "{damage:?}");
        assert!(damage.what.starts_with("holds document "), "{damage:?}");
    }
}

#[test]
fn a_manifest_that_is_gone_is_missed() {
    let world = World::new();
    world.build(&FakeModel::new(), "cache", "1/1", false).expect("builds");
    let manifest = world.path("cache/part-001-of-001/manifest.json");
    std::fs::remove_file(&manifest).expect("removes");
    let damages = verify(&world.path("cache"), &Silent).expect("a cache");
    assert_eq!(
        damages.iter().map(|damage| (&damage.file, damage.what.as_str())).collect::<Vec<_>>(),
        [(&manifest, "is missing, though there are chunks")]
    );
}

register!(codec "liar" => LiarConfig, "a codec of the tests that keeps less than it states");

#[derive(Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct LiarConfig {}

impl Construct for LiarConfig {
    type Output = Liar;

    fn construct(&self) -> circuitlab_core::Result<Liar> {
        Ok(Liar)
    }
}

/// Keeps whole numbers, and states no error.
#[derive(Debug)]
struct Liar;

impl ActivationCodec for Liar {
    fn input(&self) -> CodecInput {
        CodecInput::Values
    }

    fn encode_values(&self, values: &[f32], _: BlockShape) -> circuitlab_core::Result<Vec<u8>> {
        Ok(values.iter().flat_map(|value| value.round().to_le_bytes()).collect())
    }

    fn decode_values(&self, bytes: &[u8], _: BlockShape) -> circuitlab_core::Result<Vec<f32>> {
        Ok(bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }
}

#[test]
fn a_codec_that_encodes_nonsense_is_found_when_the_cache_is_written() {
    let mut world = World::new();
    world.config.codec = ChainSpec::parse("liar+zstd");
    let error = world.build(&FakeModel::new(), "cache", "1/1", false).expect_err("it lies").to_string();
    assert!(error.starts_with("chunk 0, `blocks.0.mlp.hook_in`: codec `liar+zstd` made "), "{error}");
    assert!(error.contains("at row 0, column 0; it states an error of at most 0e0"), "{error}");
}

#[test]
fn any_flipped_byte_of_a_chunk_is_an_error_and_no_panic() {
    let world = World::new();
    world.build(&FakeModel::new(), "cache", "1/1", false).expect("builds");
    let path = world.path("cache/part-001-of-001/chunk-000000.clab");
    let whole = std::fs::read(&path).expect("reads");
    for place in (0..whole.len()).step_by(7) {
        let mut flipped = whole.clone();
        flipped[place] ^= 0x20;
        write(&path, &flipped);
        let cache = world.open("cache").expect("the manifest is whole");
        let read = cache.chunk(0).and_then(|chunk| {
            chunk.index()?;
            (0..LAYERS).try_for_each(|layer| [Side::Inputs, Side::Targets].iter().try_for_each(|side| chunk.values(layer, *side).map(drop)))
        });
        let error = read.expect_err("it is damaged").to_string();
        assert!(error.contains("chunk-000000.clab") && !error.contains("panicked"), "byte {place}: {error}");
    }
}

/// A manifest with another content and the checksum that goes with it.
fn resealed(text: &str, from: &str, to: &str) -> String {
    let (content, _) = text.rsplit_once(",\"checksum\":\"").expect("a checksum");
    let content = content.replacen(from, to, 1);
    format!("{content},\"checksum\":\"{}\"}}\n", circuitlab::text::sha256(content.as_bytes()))
}

#[test]
fn a_damaged_manifest_is_refused() {
    let world = World::new();
    world.build(&FakeModel::new(), "cache", "1/1", false).expect("builds");
    let path = world.path("cache/part-001-of-001/manifest.json");
    let whole = std::fs::read_to_string(&path).expect("reads");
    for (from, to, expected) in [
        ("\"schema\":2", "\"schema\":1", "expected the cache format version 2, got 1; make the cache again with this program"),
        ("\"planned_chunks\"", "\"planed_chunks\"", "did you mean `planned_chunks`?"),
        ("chunk-000001.clab", "../../../secret", "expected `chunk-000001.clab`"),
        ("\"job\":1,", "\"job\":2,", "there is no job 2 of 1"),
        ("\"d_model\":8", "\"d_model\":9", "statistics"),
        ("{", "", "its checksum is wrong"),
    ] {
        write(&path, resealed(&whole, from, to));
        let error = world.open("cache").expect_err("damaged").to_string();
        assert!(error.contains("manifest.json") && error.contains(expected), "{error}");
    }
    // As caches were before manifests had a checksum.
    write(&path, "{\"schema\":1,\"rows\":5}\n");
    let error = world.open("cache").expect_err("old").to_string();
    assert!(error.contains("expected the cache format version 2, got 1; make the cache again with this program"), "{error}");
}

#[test]
fn chunks_of_the_first_version_are_refused() {
    let world = World::new();
    world.build(&FakeModel::new(), "cache", "1/1", false).expect("builds");
    let path = world.path("cache/part-001-of-001/chunk-000000.clab");
    let mut old = std::fs::read(&path).expect("reads");
    old[7] = 1;
    write(&path, &old);
    let error = world.open("cache").expect("the manifest is whole").chunk(0).expect_err("old").to_string();
    assert!(error.ends_with("chunk-000000.clab`: expected a chunk of version 2, got 1; make the cache again with this program"), "{error}");
}

#[test]
fn values_that_are_not_finite_are_named_and_leave_a_part_to_go_on_with() {
    for codec in ["int8", "none"] {
        let mut world = World::new();
        world.config.codec = ChainSpec::parse(codec);
        let mut sick = FakeModel::new();
        sick.nan_token = Some(7);
        let error = world.build(&sick, "cache", "1/1", false).expect_err("NaN").to_string();
        assert!(error.starts_with("chunk ") && error.contains("the model gave NaN at `blocks.1.hook_mlp_out`, document "), "{error}");
        assert!(error.ends_with("dimension 5"), "{error}");
        world.build(&FakeModel::new(), "cache", "1/1", true).expect("goes on");
        assert!(verify(&world.path("cache"), &Silent).expect("readable").is_empty());
    }
}

#[test]
fn a_place_that_cannot_be_written_leaves_no_half_file() {
    let world = World::new();
    let part = world.path("cache/part-001-of-001");
    std::fs::create_dir_all(part.join("chunk-000001.clab")).expect("a folder where a file should be");
    let error = world.build(&FakeModel::new(), "cache", "1/1", true).expect_err("no file can be put there").to_string();
    assert!(error.starts_with("cannot write `") && error.contains("chunk-000001.clab"), "{error}");
    let left: Vec<String> =
        std::fs::read_dir(&part).expect("a folder").map(|entry| entry.expect("an entry").file_name().display().to_string()).collect();
    assert!(!left.iter().any(|name| name.contains(".part")), "{left:?}");
    std::fs::remove_dir(part.join("chunk-000001.clab")).expect("removes");
    world.build(&FakeModel::new(), "cache", "1/1", true).expect("goes on");
    world.open("cache").expect("whole");
}

#[test]
fn settings_that_do_not_fit_the_model_are_refused() {
    let mut world = World::new();
    let config = world.config.clone();
    let mut refused = |change: &dyn Fn(&mut circuitlab::cache::CacheConfig)| {
        world.config = config.clone();
        change(&mut world.config);
        world.build(&FakeModel::new(), "cache", "1/1", false).expect_err("refused").to_string()
    };
    assert_eq!(refused(&|config| config.context = 65), "`context` is 65; the model `fake-model` takes 2 to 64");
    assert_eq!(refused(&|config| config.min_tokens = 9), "`min_tokens` is 9; with a context of 9 expected 1 to 8");
    assert!(refused(&|config| config.batch_contexts = 0).contains("key `batch_contexts`: expected at least 1, got 0"));
    assert!(refused(&|config| config.input_hook = BlockHook::Ln2Scale).contains("have no `blocks.0.ln2.hook_scale`"));
    assert!(refused(&|config| config.codec = ChainSpec::parse("int88")).contains("did you mean `int8`?"));
    assert!(!world.path("cache").exists(), "a refused job leaves nothing");
}
