//! Several processes at the edges of what can be divided, and at inputs that are at fault on some of them.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use circuitlab_tests::{arg, circuitlab, model, stderr, succeed, text};
use safetensors::tensor::{SafeTensors, TensorView};

use crate::pipeline;
use crate::ranks::{apart, as_rank, figures, free_port, refusal, run, started, weights};

#[allow(clippy::disallowed_methods, reason = "test files need no atomic writer")]
fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("writes");
}

/// The bundled model without its upper layers.
fn model_of_one_layer(folder: &Path) -> PathBuf {
    let copy = folder.join("model");
    fs::create_dir(&copy).expect("a folder");
    fs::copy(model().join("tokenizer.json"), copy.join("tokenizer.json")).expect("copies");
    let config = fs::read_to_string(model().join("config.json")).expect("a config");
    put(&copy.join("config.json"), config.replace("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 1").as_bytes());
    let bytes = fs::read(model().join("model.safetensors")).expect("weights");
    let whole = SafeTensors::deserialize(&bytes).expect("safetensors");
    let is_upper = |name: &str| name.starts_with("model.layers.") && !name.starts_with("model.layers.0.");
    let kept: BTreeMap<String, TensorView<'_>> = whole.tensors().into_iter().filter(|(name, _)| !is_upper(name)).collect();
    put(&copy.join("model.safetensors"), &safetensors::serialize(&kept, None).expect("serializes"));
    copy
}

/// Asserts that runs under strategies end as that of one process, with the same figures.
fn end_as_one(cache: &Path, folder: &Path, common: &[&str], strategies: &[(&[&str], usize)], bound: f64) {
    let single = run(cache, folder, "single", common, 1);
    let (want, want_figures) = (weights(&single), figures(&single));
    for (strategy, ranks) in strategies {
        let several = run(cache, folder, "several", &[common, strategy].concat(), *ranks);
        for ((file, one), (_, other)) in weights(&several).iter().zip(&want) {
            let apart = apart(one, other);
            assert!(apart < bound, "{strategy:?}, {ranks} ranks, {file}: {apart:e} apart from one process");
        }
        let got = figures(&several);
        assert_eq!(got.len(), want_figures.len());
        for ((figure, got), (_, want)) in got.iter().zip(&want_figures) {
            let fits = (got - want).abs() <= bound * want.abs().max(1e-3) || (got.is_nan() && want.is_nan());
            assert!(fits, "{strategy:?}, {ranks} ranks, {figure}: {got} and {want} of one process");
        }
        fs::remove_dir_all(&several).expect("removes");
    }
    fs::remove_dir_all(&single).expect("removes");
}

const DDP: &[&str] = &["--strategy", "ddp"];
const FEATURES: &[&str] = &["--strategy", "feature-sharded"];
const HYBRID: &[&str] = &["--strategy", "hybrid", "--set", "strategy.feature=2"];

#[test]
fn one_layer_whose_features_do_not_divide() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, text, cache) = (model_of_one_layer(folder.path()), text(), folder.path().join("cache"));
    succeed(&["cache", "--model", arg(&model), "--text", arg(&text), "--range", "0..0.02", "--out", arg(&cache)]);
    let common = ["--set", "size.d_features=7", "--set", "compute.dtype=f64", "--set", "metrics.every_steps=1"];
    end_as_one(&cache, folder.path(), &common, &[(DDP, 2), (FEATURES, 4), (HYBRID, 4)], 1e-8);
}

#[test]
fn micro_batches_with_no_rows_on_some_ranks() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let common =
        ["--set", "data.batch_rows=5", "--set", "size.d_features=3", "--set", "compute.dtype=f64", "--set", "metrics.every_steps=1"];
    for form in ["dense", "kernels", "operations"] {
        let form = format!("transcoder.step={form}");
        let common = [&common[..], &["--set", "data.micro_batch_rows=1", "--set", &form]].concat();
        end_as_one(&cache, folder.path(), &common, &[(DDP, 2), (HYBRID, 4)], 1e-8);
    }
}

#[test]
fn features_that_never_fire() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let mut common = vec!["--set", "size.d_features=5", "--set", "init.rate=1e-9", "--set", "compute.dtype=f64"];
    common.extend(["--set", "metrics.every_steps=1", "--set", "metrics.dead_rows=1000"]);
    end_as_one(&cache, folder.path(), &common, &[(DDP, 2), (FEATURES, 4), (HYBRID, 4)], 1e-8);
    let silent = run(&cache, folder.path(), "silent", &common, 1);
    let found: Vec<f64> = figures(&silent).into_iter().filter(|(name, _)| name.starts_with("l0/layer_")).map(|(_, value)| value).collect();
    assert!(found.contains(&0.0), "in some layers no feature fires: {found:?}");
}

#[test]
fn what_has_fewer_parts_than_ranks_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    for (extra, words) in [
        ([DDP, &["--set", "data.batch_rows=3"]].concat(), "`data.batch_rows` is 3, too few for 4 data ranks"),
        ([FEATURES, &["--set", "size.d_features=3"]].concat(), "3 features are too few for 4 feature ranks"),
    ] {
        let (out, port) = (folder.path().join("refused"), free_port());
        let ranks: Vec<_> = (0..4).map(|rank| started(&cache, &out, &extra, [rank, 4], port)).collect();
        for rank in ranks {
            let output = rank.wait_with_output().expect("ends");
            let said = stderr(&output);
            assert!(output.status.code() == Some(1) && said.lines().count() == 1 && said.contains(words), "{said}");
        }
        assert!(!out.exists(), "nothing is left behind");
    }
}

#[test]
fn weights_of_16_bits_are_trained_by_two() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    end_as_one(&cache, folder.path(), &["--set", "compute.dtype=bf16"], &[(DDP, 2), (FEATURES, 2)], 2e-2);
}

#[test]
fn several_transcoders_are_trained_by_two() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let tables = folder.path().join("two.toml");
    put(&tables, b"[[clt]]\nname = \"few\"\nsparsity.lambda = 6\n\n[[clt]]\nname = \"many\"\nsize.d_features = 97\n");
    let common = ["--config", arg(&tables), "--set", "compute.dtype=f64"];
    let single = run(&cache, folder.path(), "single", &common, 1);
    for strategy in [DDP, FEATURES] {
        let several = run(&cache, folder.path(), "several", &[&common[..], strategy].concat(), 2);
        for name in ["few", "many"] {
            for ((file, one), (_, other)) in weights(&several.join(name)).iter().zip(&weights(&single.join(name))) {
                let apart = apart(one, other);
                assert!(apart < 1e-8, "{strategy:?}, {name}, {file}: {apart:e} apart from one process");
            }
        }
        fs::remove_dir_all(&several).expect("removes");
    }
}

/// Puts NaN into one number of a row of a chunk of 32-bit floats, and the block's new checksum into its header.
fn spoil(chunk: &Path, row: usize) {
    let mut bytes = fs::read(chunk).expect("a chunk");
    let header_bytes = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes")) as usize;
    let text = String::from_utf8(bytes[12..12 + header_bytes].to_vec()).expect("text");
    let header: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let (width, block) = (header["d_model"].as_u64().expect("a width") as usize, &header["blocks"][0]);
    let (start, length) = (12 + header_bytes, block["bytes"].as_u64().expect("a length") as usize);
    if row as u64 >= header["rows"].as_u64().expect("a count") {
        return;
    }
    let known = block["crc32c"].as_u64().expect("a checksum").to_string();
    // One of many numbers that are none, so that the checksum has as many digits and the header's length stays.
    for payload in 1_u32.. {
        let at = start + 4 * row * width;
        bytes[at..at + 4].copy_from_slice(&(0x7fc0_0000 | payload).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[start..start + length]).to_string();
        if crc.len() == known.len() {
            bytes[12..12 + header_bytes].copy_from_slice(text.replacen(&known, &crc, 1).as_bytes());
            break;
        }
    }
    put(chunk, &bytes);
}

#[test]
fn a_row_that_is_not_finite_on_one_rank_is_named_on_both() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &["--codec", "none", "--set", "chunk_rows=1000"]);
    let other = folder.path().join("other");
    fs::create_dir_all(other.join("part-001-of-001")).expect("a folder");
    let part = cache.join("part-001-of-001");
    for file in fs::read_dir(&part).expect("a part").map(|entry| entry.expect("an entry").file_name()) {
        let copy = other.join("part-001-of-001").join(&file);
        fs::copy(part.join(&file), &copy).expect("copies");
        if file.to_string_lossy().starts_with("chunk-") {
            for row in [100, 300, 500, 700, 900] {
                spoil(&copy, row);
            }
        }
    }
    let (out, port) = (folder.path().join("run"), free_port());
    let more = [DDP, &["--set", "init.rows=2", "--set", "init.rate=0.3"]].concat();
    let ranks = [started(&cache, &out, &more, [0, 2], port), started(&other, &out, &more, [1, 2], port)];
    let outputs = ranks.map(|rank| rank.wait_with_output().expect("ends"));
    let said = outputs.each_ref().map(stderr);
    for (output, own) in outputs.iter().zip(&said) {
        assert!(output.status.code() == Some(1) && own.contains(" has rows that are not finite: `"), "{said:?}");
        assert!(own.contains("/other/part-001-of-001/chunk-") && own.contains("00 holds NaN"), "{said:?}");
    }
}

#[test]
fn ports_and_masters_that_cannot_be_had_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let out = folder.path().join("run");
    let more = [DDP, &["--set", "strategy.join_seconds=2"]].concat();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let ranks = [0, 1].map(|rank| started(&cache, &out, &more, [rank, 2], port).wait_with_output().expect("ends"));
    let said = ranks.each_ref().map(stderr);
    assert!(said[0].contains(&format!("cannot host the store at 127.0.0.1:{port}: the port is in use; choose another")), "{said:?}");
    assert!(said[1].contains(&format!("cannot reach the store at 127.0.0.1:{port}: nobody answers there within 2 s")), "{said:?}");

    let args = [&["train", "--cache", arg(&cache), "--out", arg(&out)], &more[..]].concat();
    let mut command = as_rank(circuitlab(args), [1, 2], port);
    let output = command.env("MASTER_ADDR", "no-such-host.invalid").output().expect("starts");
    let said = [said, [stderr(&output), refusal(&cache, folder.path(), &[&more[..], &["--set", "compute.device=cuda:7"]].concat(), 1)]];
    assert!(said[1][0].contains(&format!("at no-such-host.invalid:{port}: ")), "{said:?}");
    assert!(said[1][1].contains("cuda:7"), "{said:?}");
    assert!(said.as_flattened().iter().all(|said| said.lines().count() == 1) && !out.exists(), "{said:?}");
}

#[test]
fn ranks_that_would_not_be_one_run_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let both = |outs: [&str; 2], more: [&[&str]; 2]| {
        let port = free_port();
        let ranks = [0, 1].map(|rank| started(&cache, &folder.path().join(outs[rank]), more[rank], [rank, 2], port));
        ranks.map(|rank| rank.wait_with_output().expect("ends")).map(|output| (output.status.code(), stderr(&output)))
    };
    let single: &[&str] = &["--strategy", "single"];
    for (code, said) in both(["run", "run"], [single, single]) {
        assert!(code == Some(1) && said.contains("2 ranks were started, and the strategy is `single`"), "{said}");
    }
    for (code, said) in both(["here", "there"], [DDP, DDP]) {
        assert!(code == Some(1) && said.contains("does not see the run folder") && said.contains("/there`"), "{said}");
    }
    for (code, said) in both(["run", "run"], [DDP, &["--strategy", "fsdp"]]) {
        assert!(code == Some(1) && said.contains("`strategy.type` is \"fsdp\" there and \"ddp\" on rank 0"), "{said}");
    }
    assert!(!folder.path().join("here").exists() && !folder.path().join("run").exists(), "nothing is left behind");
}
