//! Plugin crates of others: made, built outside of the workspace, loaded, used, and missed.

use std::fs;
use std::path::Path;

use circuitlab_tests::plugins::{cargo, library, made};
use circuitlab_tests::{arg, circuitlab, json, model, stderr, succeed, text};

use crate::pipeline;

/// Makes a crate of a kind, runs its tests, builds it as a library and asks the program about it.
fn builds_and_is_taken(kind: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let name = format!("my-{kind}");
    let made = made(kind, &name);
    cargo(&made, &["test", "--quiet"]);
    let library = library(&made, "", folder.path());
    let checked = json(&["plugins", "check", arg(&library)]);
    assert_eq!((checked[0]["usable"].as_bool(), checked[0]["package"].as_str()), (Some(true), Some(name.as_str())));
    assert_eq!(checked[0]["plugins"][0]["kind"], kind);
    let listed = json(&["--plugin", arg(&library), "plugins", "list"]);
    let own = listed.as_array().expect("a list").iter().find(|plugin| plugin["name"] == name.as_str()).expect("is listed");
    assert_eq!((own["kind"].as_str(), own["origin"].as_str(), own["version"].as_str()), (Some(kind), Some("loaded"), Some("0.1.0")));
    assert_eq!(own["file"], arg(&library.canonicalize().expect("is there")));
    assert!(succeed(&["--plugin", arg(&library), "plugins", "show", &name]).contains(&format!("{kind} `{name}`: ")));
}

macro_rules! builds_and_is_taken {
    ($($test:ident: $kind:literal),* $(,)?) => {$(
        #[test]
        fn $test() {
            builds_and_is_taken($kind);
        }
    )*};
}

builds_and_is_taken! {
    the_codec_template_builds_and_is_taken: "codec",
    the_activation_template_builds_and_is_taken: "activation",
    the_model_template_builds_and_is_taken: "model",
    the_strategy_template_builds_and_is_taken: "strategy",
    the_text_source_template_builds_and_is_taken: "text-source",
    the_metric_sink_template_builds_and_is_taken: "metric-sink",
}

#[test]
fn a_cache_is_written_and_trained_on_with_a_loaded_codec_and_misses_it_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = library(&made("codec", "my-codec"), "", folder.path());
    let cache = pipeline::cache(folder.path(), "0..0.03", &["--plugin", arg(&plugin), "--codec", "my-codec+zstd"]);
    assert_eq!(json(&["cache", "status", arg(&cache)])["identity"]["codec"][0]["type"], "my-codec");

    let run = folder.path().join("without");
    let output = circuitlab(["train", "--cache", arg(&cache), "--out", arg(&run)]).output().expect("starts");
    let words = stderr(&output);
    assert_eq!((output.status.code(), words.lines().count()), (Some(1), 1), "{words}");
    assert!(
        words.contains(
            "was made with codec `my-codec` of the package my-codec 0.1.0, which is not here; load its library with `--plugin FILE`"
        ),
        "{words}"
    );
    assert!(!run.exists());

    let run = pipeline::train(folder.path(), &cache, &["--plugin", arg(&plugin)]);
    let config = fs::read_to_string(run.join("config.toml")).expect("a config");
    assert!(config.contains(arg(&plugin.canonicalize().expect("is there"))), "{config}");
    let last = |run: &Path| fs::read_to_string(run.join("metrics.jsonl")).expect("metrics").lines().count();
    assert_eq!(last(&run), 3);
    // The run knows which library it needs.
    fs::remove_dir_all(run.join("final")).expect("was written");
    succeed(&["train", "--cache", arg(&cache), "--out", arg(&run), "--resume"]);
    assert!(run.join("final/config.yaml").is_file());
    // Nor does a library that moved since stand in the way of a copy that is named.
    fs::remove_dir_all(run.join("final")).expect("was written");
    let moved = plugin.with_file_name("moved.so");
    fs::rename(&plugin, &moved).expect("moves");
    succeed(&["train", "--cache", arg(&cache), "--out", arg(&run), "--resume", "--plugin", arg(&moved)]);
    assert!(run.join("final/config.yaml").is_file());
}

#[test]
fn loaded_activation_text_source_sink_and_strategy_do_their_part() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for (kind, name) in
        [("activation", "my-activation"), ("text-source", "my-text-source"), ("metric-sink", "my-metric-sink"), ("strategy", "my-strategy")]
    {
        library(&made(kind, name), "", folder.path());
    }
    let whole = fs::read_to_string(text()).expect("the text");
    put(&at("speeches.md"), &whole[..60_000].replace("\n\n", "\n\n# speech\n"));
    // A folder of plugins on the search path; what is no plugin in it is left out.
    put(&at("readme.so"), "not a library");
    let run = |args: &[&str]| {
        let output = circuitlab(args).env("CIRCUITLAB_PLUGIN_PATH", folder.path()).output().expect("starts");
        let words = stderr(&output);
        assert!(output.status.success(), "{words}");
        words
    };
    let (cache, out, model) = (at("cache"), at("run"), model());
    let words = run(&["cache", "--model", arg(&model), "--text", arg(&at("speeches.md")), "--out", arg(&cache)]);
    assert!(words.contains("left out: plugin") && words.contains("readme.so"), "{words}");
    let mut args = vec!["train", "--cache", arg(&cache), "--out", arg(&out), "--activation", "my-activation", "--strategy", "my-strategy"];
    args.extend(pipeline::SMALL);
    args.extend(["--sink", "jsonl", "--sink", "my-metric-sink", "--set", "strategy.ranks=1"]);
    run(&args);
    assert!(fs::read_to_string(out.join("metrics-tidy.csv")).expect("the sink's file").lines().count() > 30);
    // A gated dictionary is saved as the JumpReLU that it is, which needs no plugin.
    let (last, held_out) = (out.join("final"), text());
    let report = json(&["eval", "--clt", arg(&last), "--model", arg(&model), "--text", arg(&held_out), "--range", "0.99..1"]);
    assert!(report["l0"].as_f64().expect("a number") > 0.0);
}

#[allow(clippy::disallowed_methods, reason = "test files need no atomic writer")]
fn put(path: &Path, text: &str) {
    fs::write(path, text).expect("writes");
}
