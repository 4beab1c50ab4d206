//! Text of every kind: the same documents are the same rows, and what is wrong with a file is said in one line.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use circuitlab_tests::hub::{Fault, Hub};
use circuitlab_tests::{arg, circuitlab, json, model, stderr, text};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::Value;

fn documents() -> Vec<String> {
    let whole = fs::read_to_string(text()).expect("the bundled text");
    whole[..20_000].split("\n\n").map(str::to_owned).collect()
}

fn put(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    File::create(path).and_then(|mut file| file.write_all(content.as_ref())).expect("writes");
}

fn lines(documents: &[String]) -> String {
    documents.iter().map(|text| serde_json::json!({"meta": {"body": text}}).to_string() + "\n").collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("packs")
}

fn put_parquet(path: &Path, documents: &[String]) {
    let schema = Arc::new(parse_message_type("message m { required group meta { required binary body (UTF8); } }").expect("a schema"));
    let mut writer = SerializedFileWriter::new(File::create(path).expect("creates"), schema, Arc::default()).expect("begins");
    for rows in documents.chunks(30) {
        let mut group = writer.next_row_group().expect("a group");
        let mut column = group.next_column().expect("good").expect("a column");
        let values: Vec<ByteArray> = rows.iter().map(|text| ByteArray::from(text.clone().into_bytes())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).expect("writes");
        column.close().expect("closes");
        group.close().expect("closes");
    }
    writer.close().expect("closes");
}

fn cache<'a>(model: &'a Path, text: &'a [&'a str], out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["cache", "--model", arg(model), "--out", arg(out), "--codec", "int8", "--text"];
    args.extend(text);
    args.extend(more);
    args
}

/// Checksums of a cache's chunks.
fn chunks(cache: &Path) -> Vec<String> {
    let manifest = fs::read(cache.join("part-001-of-001/manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let chunks = manifest["chunks"].as_array().expect("a list");
    chunks.iter().map(|chunk| chunk["sha256"].as_str().expect("text").to_owned()).collect()
}

/// Runs the program, which must fail with one line that holds all these words.
fn fails(args: &[&str], variables: &[(&str, &str)], words: &[&str]) {
    let output = circuitlab(args).envs(variables.iter().copied()).output().expect("starts");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "circuitlab {}\n{said}", args.join(" "));
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one line, not:\n{said}");
    for word in words {
        assert!(errors[0].contains(word), "`{word}` is not in: {said}");
    }
}

#[test]
fn every_kind_of_file_gives_the_same_rows() {
    let (folder, model, documents) = (tempfile::tempdir().expect("a folder"), model(), documents());
    let at = |name: &str| folder.path().join(name);
    put(&at("a.txt"), documents.join("\n\n"));
    let separator = "sources=[{type = \"txt\", separator = \"\\n\\n\"}]";
    json(&cache(&model, &[arg(&at("a.txt"))], &at("txt"), &["--set", separator]));
    let expected = chunks(&at("txt"));
    assert!(!expected.is_empty());

    let half = documents.len() / 2;
    put(&at("lines.jsonl"), lines(&documents));
    put(&at("packed/below/a.jsonl.gz"), gzip(lines(&documents[..half]).as_bytes()));
    put(&at("packed/below/b.jsonl.zst"), zstd::stream::encode_all(lines(&documents[half..]).as_bytes(), 3).expect("packs"));
    put(&at("packed/notes.pdf"), "nothing");
    put_parquet(&at("table.parquet"), &documents);
    let pattern = format!("{}/*/*/*.jsonl.*", arg(folder.path()));
    for (number, text) in [arg(&at("lines.jsonl")), arg(&at("packed")), &pattern, arg(&at("table.parquet"))].into_iter().enumerate() {
        let out = at(&format!("out-{number}"));
        json(&cache(&model, &[text], &out, &["--text-field", "meta.body"]));
        assert_eq!(chunks(&out), expected, "{text}");
    }
    // A dry run says the same rows, and writes nothing.
    let dry = json(&cache(&model, &[arg(&at("table.parquet"))], &at("dry"), &["--text-field", "meta.body", "--dry-run"]));
    let status = json(&["cache", "status", arg(&at("out-0"))]);
    assert_eq!(dry["this_job"]["rows"], status["rows"]);
    assert!(dry["all_jobs"]["hours"].as_f64().expect("a number") > 0.0 && !at("dry").exists());
}

#[test]
fn files_that_cannot_be_read_are_named_with_the_place() {
    let (folder, model, documents) = (tempfile::tempdir().expect("a folder"), model(), documents());
    let at = |name: &str| folder.path().join(name);
    let out = at("out");
    let refused = |text: &Path, more: &[&str], words: &[&str]| fails(&cache(&model, &[arg(text)], &out, more), &[], words);
    let packed = gzip(lines(&documents).as_bytes());
    put(&at("cut.jsonl.gz"), &packed[..packed.len() / 2]);
    refused(&at("cut.jsonl.gz"), &["--text-field", "meta.body"], &["cut.jsonl.gz", "gzip data is cut short"]);
    put(&at("cut.txt.zst"), &zstd::stream::encode_all(documents.join("\n").as_bytes(), 3).expect("packs")[..2000]);
    refused(&at("cut.txt.zst"), &[], &["cut.txt.zst", "zstd data is cut short"]);
    put(
        &at("bad.jsonl"),
        "{\"text\": \"Now is the winter of our discontent\"}\n{\"text\": \"made\n{\"text\": \"glorious summer by this sun\"}\n",
    );
    refused(&at("bad.jsonl"), &[], &["bad.jsonl", "line 2 is no JSON", "skip_bad_lines"]);
    refused(&at("bad.jsonl"), &["--text-field", "body"], &["line 1 has no field `body`; there are: text"]);
    put_parquet(&at("table.parquet"), &documents);
    refused(&at("table.parquet"), &[], &["table.parquet", "has no column `text`", "`meta.body` (text)"]);
    put(&at("short.parquet"), &fs::read(at("table.parquet")).expect("reads")[100..]);
    refused(&at("short.parquet"), &["--text-field", "meta.body"], &["short.parquet"]);
    put(&at("ids.jsonl"), "{\"ids\": [1, 2, 70000]}");
    refused(&at("ids.jsonl"), &["--text-field", "ids"], &["ids.jsonl", "token 70000"]);
    refused(&at("*.docx"), &[], &["*.docx", "as a pattern it fits none"]);
    refused(&at("bad.jsonl"), &["--weights", "1,x"], &["--weights", "0.7,0.3"]);
    refused(&at("bad.jsonl"), &["--weights", "1,2"], &["weights", "expected 1, got 2"]);
    assert!(!out.exists(), "nothing is left behind");

    let summary = json(&cache(&model, &[arg(&at("bad.jsonl"))], &out, &["--skip-bad-lines"]));
    assert_eq!(summary["skipped_documents"], 1);
    let said = circuitlab(cache(&model, &[arg(&at("bad.jsonl"))], &at("again"), &["--skip-bad-lines"])).output().expect("starts");
    assert!(stderr(&said).contains("line 2 is no JSON") && String::from_utf8_lossy(&said.stdout).contains("1 bad lines were left out"));
}

#[test]
fn data_sets_of_the_hub_are_fetched_and_read() {
    let (folder, model, documents) = (tempfile::tempdir().expect("a folder"), model(), documents());
    let at = |name: &str| folder.path().join(name);
    put(&at("lines.jsonl"), lines(&documents));
    json(&cache(&model, &[arg(&at("lines.jsonl"))], &at("expected"), &["--text-field", "meta.body"]));
    let hub = Hub::start();
    let half = documents.len() / 2;
    hub.put("datasets/org/text", "data/a.jsonl.gz", gzip(lines(&documents[..half]).as_bytes()));
    hub.put("datasets/org/text", "data/b.jsonl", lines(&documents[half..]));
    hub.put("datasets/org/text", "README.md", "not to be fetched");
    hub.put("datasets/org/text", "test/c.jsonl", "not this either");
    let home: PathBuf = at("home");
    let endpoint = hub.endpoint();
    let variables = [("HF_ENDPOINT", endpoint.as_str()), ("HF_HOME", arg(&home))];
    let out = at("out");
    let args = cache(&model, &["hf:org/text/data/*"], &out, &["--text-field", "meta.body"]);
    let output = circuitlab(&args).envs(variables).output().expect("starts");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(chunks(&out), chunks(&at("expected")));
    assert!(!hub.requests().iter().any(|request| request.path.contains("README") || request.path.contains("c.jsonl")));

    let other = at("other");
    fails(&cache(&model, &["hf:org/text/data/*.parquet"], &other, &[]), &variables, &["`org/text`", "none of its 4 files"]);
    fails(&cache(&model, &["hf:org/nowhere"], &other, &[]), &variables, &["org/nowhere"]);
    hub.fail("/datasets/org/text", 100, Fault::Status(500));
    fails(&cache(&model, &["hf:org/text@v2/test/*"], &other, &[]), &variables, &["500"]);
    assert!(!other.exists());
}
