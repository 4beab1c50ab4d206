//! What users may choose of how text becomes the rows of a cache.

use circuitlab::cache::{Cache, Manifest, build, estimate, verify};
use circuitlab::text::BosPolicy;
use circuitlab::{Result, Silent};
use circuitlab_core::codec::ChainSpec;

use crate::cache::rows;
use crate::fake::{FakeModel, LAYERS, WIDTH, World, write};

fn cached(world: &World, model: &FakeModel, text: &[&str], out: &str) -> Result<Cache> {
    world.with_job(model, text, out, "1/1", |job| build(job, &Silent))?;
    world.open(out)
}

/// Tokens of a cache's rows.
fn tokens(cache: &Cache) -> Vec<u32> {
    rows(cache).keys().map(|(.., token)| *token).collect()
}

#[test]
fn rows_of_outstanding_norm_are_left_out_and_counted_however_often_a_job_is_broken_off() {
    let mut world = World::new();
    world.config.codec = ChainSpec::parse("none");
    let whole = cached(&world, &FakeModel::new(), &["text.txt"], "whole").expect("builds");
    world.config.max_norm = Some(20.0);
    let loud = |fail_at: Option<usize>| {
        let mut model = FakeModel::new();
        (model.loud_token, model.fail_at) = (Some(7), fail_at);
        model
    };
    let masked = cached(&world, &loud(None), &["text.txt"], "masked").expect("builds");
    let mut expected = rows(&whole);
    expected.retain(|(.., token), _| *token != 7);
    assert!(expected.len() < whole.rows() as usize);
    assert_eq!(rows(&masked), expected);
    let manifest = Manifest::read(&world.path("masked/part-001-of-001")).expect("a manifest");
    assert_eq!((manifest.masked_rows, manifest.planned_rows), (whole.rows() - masked.rows(), whole.rows()));
    assert!(verify(&world.path("masked"), &Silent).expect("readable").is_empty());
    world.build(&loud(Some(9)), "broken", "1/1", false).expect_err("fails on purpose");
    world.build(&loud(None), "broken", "1/1", true).expect("goes on");
    assert_eq!(world.files("broken"), world.files("masked"));
    world.config.max_norm = Some(0.5);
    let error = world.build(&loud(None), "none", "1/1", false).expect_err("too small").to_string();
    assert!(error.contains("key `max_norm`: expected at least 1"), "{error}");
}

#[test]
fn a_dry_run_says_what_building_would_give_and_writes_nothing() {
    let mut world = World::new();
    world.config.codec = ChainSpec::parse("none");
    let model = FakeModel::new();
    let told = world.with_job(&model, &["text.txt"], "cache", "1/1", |job| estimate(job, &Silent)).expect("measures");
    assert!(!world.path("cache").exists());
    let summary = world.build(&model, "cache", "1/1", false).expect("builds");
    assert_eq!((told.this_job.rows, told.this_job.raw_bytes), (summary.rows, summary.raw_bytes));
    assert_eq!(told.this_job.bytes, summary.rows * ((LAYERS * WIDTH * 8) as u64 + 12), "without a codec, bytes are exact but for headers");
    assert!(told.this_job == told.all_jobs && told.rows_per_second > 0.0 && told.sample_rows > 50, "{told:?}");
    let told = world.with_job(&model, &["text.txt"], "cache", "2/3", |job| estimate(job, &Silent)).expect("measures");
    assert!(told.this_job.rows < summary.rows && told.all_jobs.rows == 3 * told.this_job.rows);
}

#[test]
fn documents_that_are_tokens_already_need_no_tokenizer() {
    let mut world = World::new();
    world.config.text_field = Some("ids".to_owned());
    std::fs::remove_file(world.path("tokenizer.json")).expect("removes");
    write(&world.path("a.jsonl"), "{\"ids\": [5, 6, 7]}\n{\"ids\": [0, 29]}\n");
    let cache = cached(&world, &FakeModel::new(), &["a.jsonl"], "cache").expect("builds");
    assert_eq!(tokens(&cache), [5, 6, 7, 29], "and BOS is special all the same");
    assert_eq!(cache.identity().tokenizer, None);
    write(&world.path("b.jsonl"), "{\"ids\": [5, 30]}\n");
    let error = cached(&world, &FakeModel::new(), &["b.jsonl"], "b").expect_err("outside").to_string();
    assert!(error.contains("b.jsonl`: it has the token 30; the model `fake-model` knows 30 tokens"), "{error}");
    let error = cached(&world, &FakeModel::new(), &["text.txt"], "c").expect_err("no tokenizer").to_string();
    assert!(error.starts_with("cannot read `") && error.contains("tokenizer.json"), "{error}");
}

#[test]
fn a_field_that_no_source_has_is_refused_and_lines_are_counted() {
    let mut world = World::new();
    write(&world.path("a.jsonl"), "{\"text\": \"w5 w6\"}\nnonsense\n{\"body\": \"w7\"}\n{\"text\": \"w8\"}");
    let error = cached(&world, &FakeModel::new(), &["a.jsonl"], "cache").expect_err("line 2").to_string();
    assert!(error.contains("a.jsonl`: line 2 is no JSON"), "{error}");
    world.config.skip_bad_lines = true;
    let summary = world.with_job(&FakeModel::new(), &["a.jsonl"], "cache", "1/1", |job| build(job, &Silent)).expect("builds");
    assert_eq!((summary.skipped_documents, summary.rows), (2, 3));
    world.config.text_field = Some("a..b".to_owned());
    let error = cached(&world, &FakeModel::new(), &["a.jsonl"], "b").expect_err("no name").to_string();
    assert!(error.contains("key `field`"), "{error}");
}

#[test]
fn weights_share_the_tokens_among_the_paths() {
    let mut world = World::new();
    let words = |word: &str, count: usize| vec![word; count].join(" ");
    write(&world.path("a.txt"), words("w5", 800));
    write(&world.path("b.txt"), words("w6", 400));
    world.config.weights = Some(vec![1.0, 3.0]);
    let share = |cache: &Cache| {
        let tokens = tokens(cache);
        [5, 6].map(|word| tokens.iter().filter(|token| **token == word).count())
    };
    let one = cached(&world, &FakeModel::new(), &["a.txt", "b.txt"], "one").expect("builds");
    assert_eq!(share(&one), [136, 400]);
    // Jobs share what one job would have mixed, whoever's documents they are.
    for job in ["1/3", "2/3", "3/3"] {
        world.with_job(&FakeModel::new(), &["a.txt", "b.txt"], "three", job, |job| build(job, &Silent)).expect("builds");
    }
    assert_eq!(rows(&world.open("three").expect("whole")), rows(&one));
    world.config.weights = Some(vec![1.0]);
    let error = cached(&world, &FakeModel::new(), &["a.txt", "b.txt"], "two").expect_err("too few").to_string();
    assert!(error.contains("`weights` has not one for each path of text: expected 2, got 1"), "{error}");
}

#[test]
fn joined_documents_fill_every_context_and_keep_their_rows() {
    let mut world = World::new();
    let whole = rows(&cached(&world, &FakeModel::new(), &["text.txt"], "cut").expect("builds"));
    world.config.cross_documents = true;
    let joined = cached(&world, &FakeModel::new(), &["text.txt"], "joined").expect("builds");
    assert!(rows(&joined).keys().eq(whole.keys()), "separators are special, so the rows are the same");
    // Contexts of 8 tokens, BOS excluded, and one BOS between documents.
    world.config.drop_special_rows = false;
    world.config.bos = BosPolicy::Never;
    let kept = cached(&world, &FakeModel::new(), &["text.txt"], "kept").expect("builds");
    assert!(kept.rows() > joined.rows() && kept.rows() < joined.rows() + 25);
    world.config.eos = true;
    let error = cached(&world, &FakeModel::new(), &["text.txt"], "eos").expect_err("no EOS").to_string();
    assert_eq!(error, "`eos` is true and the model `fake-model` has no EOS; expected false");
}
