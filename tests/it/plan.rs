//! What a run would cost, before it is started.

use std::fs;
use std::path::Path;

use circuitlab_tests::{arg, circuitlab, json, stderr, succeed};
use serde_json::Value;

use crate::pipeline;

fn plan(out: &Path, extra: &[&str]) -> Value {
    let mut args = vec!["train", "--dry-run", "--out", arg(out)];
    args.extend(extra);
    let plan = json(&args);
    assert!(!out.exists(), "nothing is written");
    plan
}

fn number(of: &Value) -> f64 {
    of.as_f64().unwrap_or_else(|| panic!("{of} is no number"))
}

fn whole(of: &Value) -> u64 {
    of.as_u64().unwrap_or_else(|| panic!("{of} is no whole number"))
}

/// Llama-3.2-1B, with 32 features for each number of the residual stream.
const LLAMA: [&str; 4] = ["--shape", "16x2048", "--set", "size.expansion=32"];

#[test]
fn a_shape_is_enough_to_plan() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let single = plan(&out, &LLAMA);
    // Per layer: encoder, bias and threshold, output bias; decoders to 16, 15, .. 1 layers.
    let (features, width) = (65536, 2048);
    assert_eq!(whole(&single["parameters"]), 16 * (features * (width + 2) + width) + 136 * features * width);
    assert_eq!((&single["steps"], &single["rows"], &single["dense_flop"]), (&Value::Null, &Value::Null, &Value::Null));
    assert_eq!(whole(&single["memory"]["weights"]), 4 * whole(&single["parameters"]));
    // 2 B L d F for the encoder, B L d F (3 L + 7) for all, of 1024 rows.
    let encoder = (2 * 1024 * 16 * width * features) as f64;
    assert!((number(&single["step"]["encoder_flop"]) / encoder - 1.0).abs() < 1e-12);
    assert!((number(&single["step"]["dense_flop"]) / encoder - 55.0 / 2.0).abs() < 1e-12);
    let sparse = number(&single["step"]["sparse_flop"]) / encoder;
    assert!(sparse > 1.0 && sparse < 1.1, "{sparse}");
    assert!(number(&single["step"]["least_seconds"]) < number(&single["step"]["dense_seconds"]));
    assert!(number(&single["step"]["least_seconds"]) < number(&single["step"]["sparse_seconds"]));

    let steps = plan(&out, &[&LLAMA[..], &["--set", "schedule.steps=100"]].concat());
    assert_eq!(steps["rows"], 102_400);
}

#[test]
fn any_number_of_ranks_is_planned() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let of = |extra: &[&str]| plan(&out, &[&LLAMA[..], extra].concat());
    let (single, ddp, fsdp) = (of(&[]), of(&["--ranks", "8", "--strategy", "ddp"]), of(&["--ranks", "8", "--strategy", "fsdp"]));
    let split = of(&["--ranks", "8", "--strategy", "feature-sharded"]);
    let part = |plan: &Value, name: &str| whole(&plan["memory"][name]);
    assert_eq!(ddp["config"]["strategy"], "ddp", "the printed config is that of the run");
    for name in ["weights", "moments", "gradients"] {
        assert_eq!(part(&ddp, name), part(&single, name));
        for eighth in [&fsdp, &split] {
            let share = part(eighth, name) as f64 / part(&single, name) as f64;
            // Vectors are whole on ranks that share matrices.
            assert!((share - 0.125).abs() < 1e-3, "{name}: {share}");
        }
    }
    assert!(part(&fsdp, "gathered") > part(&split, "gathered"), "shards are gathered layer by layer");
    assert_eq!(part(&ddp, "batches"), part(&single, "batches") / 8);
    assert_eq!(part(&split, "batches"), part(&single, "batches"));
    for eighth in [&ddp, &fsdp, &split] {
        assert_eq!(eighth["ranks"], 8);
        let share = number(&eighth["step"]["encoder_flop"]) / number(&single["step"]["encoder_flop"]);
        assert!((share - 0.125).abs() < 1e-12, "{share}");
        assert_eq!(eighth["checkpoint_bytes"], single["checkpoint_bytes"], "a checkpoint is of all ranks");
    }
    let mesh = of(&["--mesh", "2x4,sharded"]);
    assert_eq!((&mesh["ranks"], &mesh["layout"]["data"], &mesh["layout"]["feature"]), (&8.into(), &2.into(), &4.into()));
}

#[test]
fn a_plan_of_a_cache_is_a_config_file_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let out = folder.path().join("run");
    let text = succeed(&["train", "--dry-run", "--cache", arg(&cache), "--out", arg(&out), "--set", "size.d_features=64"]);
    for word in ["memory of a rank", "moments", "windows of chunks", "time of a step, at least", "disk at most", "FLOP of the run"] {
        assert!(text.contains(word), "`{word}` is not in:\n{text}");
    }
    let config = folder.path().join("config.toml");
    fs::File::create(&config).and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes())).expect("writes");
    let plan = plan(&out, &["--cache", arg(&cache), "--config", arg(&config)]);
    assert_eq!(plan["config"]["size"]["d_features"], 64);
    assert!(number(&plan["rows"]) > 1000.0 && number(&plan["memory"]["windows"]) > 0.0);
    assert!(number(&plan["disk_bytes"]) > number(&plan["checkpoint_bytes"]));
}

#[test]
fn layouts_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let cases: [(&[&str], &str); 8] = [
        (&["--ranks", "8"], "strategy `single` is one rank, not 8"),
        (&["--ranks", "0", "--strategy", "ddp"], "at least 1 rank"),
        (&["--ranks", "4", "--mesh", "2x4"], "the mesh 2x4 is 8 ranks, not 4"),
        (&["--mesh", "2"], "expected DATAxFEATURE"),
        (&["--ranks", "4", "--strategy", "mine"], "unknown strategy `mine`"),
        (&["--mesh", "2000x1"], "has none for some of 2000 ranks"),
        (&["--mesh", "1x2", "--activation", "topk"], "cannot be split over 2 ranks"),
        (&["--shape", "16by2048"], "LAYERSxD_MODEL"),
    ];
    for (extra, words) in cases {
        let shape: &[&str] = if extra[0] == "--shape" { &[] } else { &LLAMA };
        let args = [&["train", "--dry-run", "--out", arg(&out)], shape, extra].concat();
        let output = circuitlab(&args).output().expect("the program starts");
        let said = stderr(&output);
        assert!(!output.status.success() && said.contains(words), "{extra:?}: {said}");
    }
    let output = circuitlab(["train", "--out", arg(&out), "--cache", "nowhere", "--ranks", "2"]).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(2), "a plan's flags need `--dry-run`");
}

#[test]
fn moments_of_8_bits_and_micro_batches_take_less() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let of = |extra: &[&str]| plan(&out, &[&LLAMA[..], extra].concat());
    let part = |plan: &Value, name: &str| number(&plan["memory"][name]);
    let (full, eight, parts) = (of(&[]), of(&["--set", "optimiser.moments=int8"]), of(&["--set", "data.micro_batch_rows=128"]));
    let share = part(&eight, "moments") / part(&full, "moments");
    assert!((share - (1.0 + 4.0 / 256.0) / 4.0).abs() < 1e-3, "{share}");
    assert!(number(&eight["checkpoint_bytes"]) < 0.65 * number(&full["checkpoint_bytes"]));
    assert!((part(&parts, "activations") / part(&full, "activations") - 0.125).abs() < 1e-9);
    let several = of(&["--set", "clt=[{name='a'}, {name='b', size={expansion=16}}]"]);
    assert!((part(&several, "weights") / part(&full, "weights") - 1.5).abs() < 1e-3);
}

/// Eight GPUs of 80 GB, in 16 bits.
#[test]
fn the_largest_size_is_found_for_each_strategy() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let gpus = ["--shape", "16x2048", "--set", "compute.device=cuda", "--set", "compute.dtype=bf16"];
    let bytes = 80_000_000_000;
    let found = plan(&out, &[&gpus[..], &["--ranks", "8", "--strategy", "fsdp", "--memory", "80GB"]].concat());
    let ways = found["largest"].as_array().expect("a list");
    let names: Vec<&str> = ways.iter().filter_map(|way| way["strategy"].as_str()).collect();
    assert_eq!(names, ["single", "ddp", "fsdp", "feature-sharded", "hybrid", "hybrid", "hybrid", "hybrid"]);
    let expansion = |way: &Value| whole(&way["expansion"]);
    for way in ways {
        let layout = &way["layout"];
        let sharded = if layout["sharded"] == true { ",sharded" } else { "" };
        let mesh = format!("{}x{}{sharded}", whole(&layout["data"]), whole(&layout["feature"]));
        let memory = |expansion: u64| {
            let size = format!("size.expansion={expansion}");
            whole(&plan(&out, &[&gpus[..], &["--mesh", &mesh, "--set", &size]].concat())["memory_bytes"])
        };
        let largest = expansion(way);
        assert_eq!(memory(largest), whole(&way["memory_bytes"]), "{mesh}");
        assert!(memory(largest) <= bytes && memory(largest + 1) > bytes, "{mesh}: {largest}");
    }
    assert!(expansion(&ways[2]) > 4 * expansion(&ways[1]), "ranks that share hold more");

    let text = succeed(
        &[&["train", "--dry-run", "--out", arg(&out)], &gpus[..], &["--ranks", "8", "--strategy", "fsdp", "--memory", "80GB"]].concat(),
    );
    for words in [
        "largest `size.expansion` in 74.5 GiB a rank",
        "hybrid (4x2,sharded)",
        "communication of a step, sent by a rank",
        "over data, gather",
    ] {
        assert!(text.contains(words), "`{words}` is not in:\n{text}");
    }
    let small = plan(&out, &["--shape", "16x2048", "--memory", "1MB"]);
    assert_eq!((&small["largest"][0]["expansion"], small["largest"].as_array().map(Vec::len)), (&Value::Null, Some(1)));
    let topk = plan(&out, &[&gpus[..], &["--mesh", "2x1", "--activation", "topk", "--memory", "80GB"]].concat());
    assert!(topk["largest"][3]["refused"].as_str().is_some_and(|why| why.contains("cannot be split over 2 ranks")), "{}", topk["largest"]);
    let several = ["train", "--dry-run", "--out", arg(&out), "--memory", "1GB", "--set", "clt=[{name='a'}]"];
    let said = stderr(&circuitlab([&several[..], &LLAMA].concat()).output().expect("the program starts"));
    assert!(said.contains("leave the `[[clt]]` tables away"), "{said}");
}
