//! Models of a hub: fetched, found again, gone on with, refused.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use circuitlab_tests::hub::{COMMIT, Fault, Hub, Request, TOKEN, sha256};
use circuitlab_tests::{arg, circuitlab, json, model, repository, stderr, text};
use safetensors::tensor::{SafeTensors, TensorView};
use tempfile::TempDir;

const MODEL: &str = "hf:org/tiny";

fn fixture(file: &str) -> Vec<u8> {
    fs::read(repository().join("tests/fixtures/models/llama").join(file)).expect("a fixture")
}

/// A hub with a model, which has files that nobody needs too, and a home for downloads.
fn tiny() -> (Hub, TempDir) {
    let hub = Hub::start();
    for file in ["config.json", "model.safetensors"] {
        hub.put("org/tiny", file, fixture(file));
    }
    for file in ["README.md", "pytorch_model.bin", "onnx/model.onnx"] {
        hub.put("org/tiny", file, "not to be fetched");
    }
    (hub, tempfile::tempdir().expect("a folder"))
}

fn run(hub: &Hub, home: &TempDir, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = circuitlab(args);
    command.env("HF_ENDPOINT", hub.endpoint()).env("HF_HOME", home.path()).envs(variables.iter().copied());
    command.output().expect("starts")
}

/// What `model show` says, and its words on stderr.
fn show(hub: &Hub, home: &TempDir, model: &str, variables: &[(&str, &str)]) -> Result<(serde_json::Value, String), String> {
    let output = run(hub, home, &["model", "show", model, "--json"], variables);
    let words = stderr(&output);
    if !output.status.success() {
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{words}");
        return Err(words);
    }
    Ok((serde_json::from_slice(&output.stdout).expect("JSON"), words))
}

fn folder(home: &TempDir) -> PathBuf {
    home.path().join("hub/models--org--tiny")
}

/// Names of what is in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn of<'a>(requests: &'a [Request], method: &str, path: &str) -> Vec<&'a Request> {
    requests.iter().filter(|request| request.method == method && request.path.contains(path)).collect()
}

#[test]
fn a_model_is_fetched_once_into_the_layout_of_huggingface_hub() {
    let (hub, home) = tiny();
    let (shown, words) = show(&hub, &home, MODEL, &[("HF_TOKEN", TOKEN)]).expect("fetches");
    assert_eq!((shown["model"]["name"].as_str(), words.as_str()), (Some("org/tiny"), ""));
    let plain = json(&["model", "show", arg(&repository().join("tests/fixtures/models/llama"))]);
    assert_eq!(shown["model"]["fingerprint"], plain["model"]["fingerprint"]);

    let (snapshot, weights) = (folder(&home).join("snapshots").join(COMMIT), fixture("model.safetensors"));
    assert_eq!(names(&snapshot), ["config.json", "model.safetensors"], "and nothing else");
    assert_eq!(fs::read_to_string(folder(&home).join("refs/main")).expect("a reference"), COMMIT);
    assert_eq!(fs::read_link(snapshot.join("model.safetensors")).expect("a link"), Path::new("../../blobs").join(sha256(&weights)));
    assert_eq!(names(&folder(&home).join("blobs")).len(), 2, "no part is left");
    let requests = hub.requests();
    assert_eq!(requests.len(), 6, "a listing, two heads, two files, one of them by a redirect: {requests:?}");
    let (own, others) = (of(&requests, "GET", "/org/tiny/resolve/"), of(&requests, "GET", "/cdn/"));
    assert!(own.iter().all(|request| request.headers["authorization"] == format!("Bearer {TOKEN}")));
    assert!(others.len() == 1 && !others[0].headers.contains_key("authorization"), "a token is for the hub alone");

    // Once more: the branch may have moved, so the hub is asked where it is, and for nothing else.
    show(&hub, &home, MODEL, &[]).expect("is there");
    assert_eq!(hub.requests().iter().map(|request| request.path.as_str()).collect::<Vec<_>>(), ["/api/models/org/tiny/revision/main"]);
    // A commit cannot move.
    show(&hub, &home, &format!("{MODEL}@{COMMIT}"), &[]).expect("is there");
    show(&hub, &home, MODEL, &[("HF_HUB_OFFLINE", "1")]).expect("is there");
    assert!(hub.requests().is_empty());
    // A hub that is gone or busy.
    hub.fail("", usize::MAX, Fault::Status(503));
    let (_, words) = show(&hub, &home, MODEL, &[]).expect("is there");
    assert!(words.contains("503") && words.contains("going on with what the cache has of `hf:org/tiny`"), "{words}");
    let (_, words) = show(&hub, &home, MODEL, &[("HF_ENDPOINT", "http://127.0.0.1:9")]).expect("is there");
    assert!(words.contains("going on with what the cache has"), "{words}");
}

#[test]
fn what_python_fetched_is_found() {
    let (hub, home) = tiny();
    let snapshot = home.path().join("elsewhere/models--org--tiny/snapshots").join(COMMIT);
    let refs = home.path().join("elsewhere/models--org--tiny/refs");
    for folder in [&snapshot, &refs] {
        fs::create_dir_all(folder).expect("a folder");
    }
    put(&refs.join("main"), COMMIT.as_bytes());
    for file in ["config.json", "model.safetensors"] {
        put(&snapshot.join(file), &fixture(file));
    }
    let cache = home.path().join("elsewhere");
    let variables = [("HF_HUB_CACHE", arg(&cache)), ("HF_HUB_OFFLINE", "1")];
    let (shown, words) = show(&hub, &home, MODEL, &variables).expect("is there");
    assert_eq!((shown["model"]["name"].as_str(), words.as_str()), (Some("org/tiny"), ""));
    show(&hub, &home, &format!("{MODEL}@{COMMIT}"), &variables).expect("is there");
    assert!(hub.requests().is_empty());
    fs::rename(snapshot.join("model.safetensors"), snapshot.join("kept")).expect("was there");
    let words = show(&hub, &home, MODEL, &variables).expect_err("weights are missing");
    assert!(words.contains("HF_HUB_OFFLINE is set, and its weights cannot be had from the cache"), "{words}");
    fs::rename(snapshot.join("kept"), snapshot.join("model.safetensors")).expect("was there");
    show(&hub, &home, MODEL, &variables[..1]).expect("is there");
    assert_eq!(hub.requests().len(), 1, "no file is fetched again");
    let words = show(&hub, &home, "hf:org/other", &variables).expect_err("nothing is there");
    assert!(words.contains("HF_HUB_OFFLINE is set") && words.contains("models--org--other"), "{words}");
}

#[test]
fn a_cache_is_made_from_a_repository_and_records_its_name() {
    let (hub, home) = (Hub::start(), tempfile::tempdir().expect("a folder"));
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        hub.put("org/tiny", file, fs::read(model().join(file)).expect("bundled"));
    }
    let (text, out) = (text(), home.path().join("cache"));
    let args = ["cache", "--model", MODEL, "--text", arg(&text), "--range", "0..0.02", "--out", arg(&out)];
    let output = run(&hub, &home, &args, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let status = json(&["cache", "status", arg(&out)]);
    assert_eq!((status["identity"]["model"].as_str(), status["complete"].as_bool()), (Some("org/tiny"), Some(true)));
    // The next without a network, as jobs on a cluster are.
    drop(hub);
    let (hub, again) = (Hub::start(), home.path().join("again"));
    let args = ["cache", "--model", MODEL, "--text", arg(&text), "--range", "0..0.02", "--out", arg(&again)];
    let output = run(&hub, &home, &args, &[("HF_HUB_OFFLINE", "1")]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(hub.requests().is_empty());
}

#[test]
fn a_broken_download_is_gone_on_with() {
    let (hub, home) = tiny();
    hub.fail("GET /cdn/", 1, Fault::Cut(1000));
    let (_, words) = show(&hub, &home, MODEL, &[]).expect("goes on");
    assert!(words.contains("trying again"), "{words}");
    let requests = hub.requests();
    let ranges: Vec<_> =
        of(&requests, "GET", "/cdn/").into_iter().map(|request| request.headers.get("range").map(String::as_str)).collect();
    assert_eq!(ranges, [None, Some("bytes=1000-")]);

    // What one process left, the next takes up; and a server that knows no ranges sends everything.
    for (fault, last) in [(None, "bytes=4000-"), (Some(Fault::NoRanges), "bytes=4000-")] {
        let home = tempfile::tempdir().expect("a folder");
        hub.fail("GET /cdn/", 4, Fault::Cut(1000));
        let words = show(&hub, &home, MODEL, &[]).expect_err("tried enough");
        let line = words.lines().last().expect("a line");
        assert!(line.starts_with("error: hub repository `org/tiny` at revision `main`: file `model.safetensors`: "), "{words}");
        assert!(line.contains("tried 4 times") && line.contains("what has come is kept"), "{words}");
        assert!(names(&folder(&home).join("blobs")).iter().any(|name| name.ends_with(".incomplete")));
        assert!(!folder(&home).join("snapshots").join(COMMIT).join("model.safetensors").exists());
        hub.requests();
        if let Some(fault) = fault {
            hub.fail("GET /cdn/", 1, fault);
        }
        let (_, words) = show(&hub, &home, MODEL, &[]).expect("goes on");
        assert_eq!(words, "");
        assert_eq!(of(&hub.requests(), "GET", "/cdn/")[0].headers["range"], last);
    }
}

#[test]
fn what_others_left_is_checked_before_it_counts() {
    let (hub, home) = tiny();
    let blob = folder(&home).join("blobs").join(sha256(&fixture("model.safetensors")));
    fs::create_dir_all(blob.parent().expect("below")).expect("a folder");
    put(&blob.with_extension("incomplete"), &[7; 5000]);
    let (_, words) = show(&hub, &home, MODEL, &[]).expect("fetches it whole");
    assert!(words.contains("SHA-256") && words.contains("from the start"), "{words}");
    assert_eq!(fs::read(&blob).expect("there"), fixture("model.safetensors"));
}

#[test]
fn mirrors_that_answer_no_heads_serve_too() {
    let (hub, home) = tiny();
    hub.fail("HEAD /", usize::MAX, Fault::Status(501));
    let (shown, words) = show(&hub, &home, MODEL, &[]).expect("asks for a byte");
    assert_eq!((shown["model"]["name"].as_str(), words.as_str()), (Some("org/tiny"), ""));
    assert_eq!(fs::read(folder(&home).join("snapshots").join(COMMIT).join("config.json")).expect("there"), fixture("config.json"));
}

#[test]
fn sharded_weights_are_fetched_by_their_index() {
    let (hub, home) = (Hub::start(), tempfile::tempdir().expect("a folder"));
    let whole = fixture("model.safetensors");
    let tensors = SafeTensors::deserialize(&whole).expect("safetensors");
    let mut names: Vec<&str> = tensors.names();
    names.sort_unstable();
    let mut index: HashMap<&str, String> = HashMap::new();
    for (number, names) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let shard = format!("model-0000{}-of-00002.safetensors", number + 1);
        let views: Vec<(&str, TensorView<'_>)> = names.iter().map(|name| (*name, tensors.tensor(name).expect("listed"))).collect();
        hub.put("org/tiny", &shard, safetensors::serialize(views, None).expect("lays out"));
        index.extend(names.iter().map(|name| (*name, shard.clone())));
    }
    hub.put("org/tiny", "model.safetensors.index.json", serde_json::json!({"weight_map": index}).to_string());
    hub.put("org/tiny", "config.json", fixture("config.json"));
    hub.put("org/tiny", "consolidated.safetensors", "not to be fetched");
    let (shown, _) = show(&hub, &home, MODEL, &[]).expect("fetches");
    assert_eq!(
        shown["model"]["parameters"],
        json(&["model", "show", arg(&repository().join("tests/fixtures/models/llama"))])["model"]["parameters"]
    );
    assert_eq!(self::names(&folder(&home).join("snapshots").join(COMMIT)).len(), 4);
    show(&hub, &home, MODEL, &[("HF_HUB_OFFLINE", "1")]).expect("is whole");

    // A shard that is gone is missed by name without a network, and fetched with one.
    let shard = folder(&home).join("snapshots").join(COMMIT).join("model-00002-of-00002.safetensors");
    fs::remove_file(&shard).expect("was there");
    let words = show(&hub, &home, MODEL, &[("HF_HUB_OFFLINE", "1")]).expect_err("it is missing");
    assert!(words.contains("file `model-00002-of-00002.safetensors`: HF_HUB_OFFLINE is set"), "{words}");
    hub.requests();
    show(&hub, &home, &format!("{MODEL}@{COMMIT}"), &[]).expect("fetches");
    assert_eq!(of(&hub.requests(), "GET", "").len(), 0, "its bytes were there still");
    assert!(shard.is_file());
}

#[test]
fn refusals_are_one_line_that_says_what_to_do() {
    let (hub, home) = tiny();
    let refused = |model: &str, variables: &[(&str, &str)], words: &[&str]| {
        let said = show(&hub, &home, model, variables).expect_err("is refused");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said} lacks one of {words:?}");
        hub.mend();
    };
    refused("hf:org/tiny@v2", &[], &["`org/tiny` at revision `v2`", "404", "no such revision", "a branch, a tag or a full commit"]);
    refused("hf:org/none", &[], &["`org/none`", "404", "no such repository", "HF_TOKEN"]);
    refused("hf:org/a/b", &[], &["`hf:org/a/b`", "expected hf:ORG/NAME"]);
    for (status, word) in [(403, "accept the terms"), (401, "no token is set; set HF_TOKEN"), (418, "not expected")] {
        hub.fail("GET /api/", 1, Fault::Status(status));
        refused(MODEL, &[], &["`org/tiny`", &status.to_string(), word]);
    }
    hub.fail("HEAD /org/tiny/", 1, Fault::Status(404));
    refused(MODEL, &[], &["file `config.json`", "404"]);
    hub.fail("GET /api/", 1, Fault::Body("<html>sign in</html>"));
    refused(MODEL, &[], &["something else than a repository", "HF_ENDPOINT"]);
    hub.fail("GET /api/", 1, Fault::Body(r#"{"sha": "../../x", "siblings": []}"#));
    refused(MODEL, &[], &["the commit `../../x`"]);
    hub.fail("GET /api/", 1, Fault::Body(r#"{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "../../x"}]}"#));
    refused(MODEL, &[], &["`../../x`, which is no name of a file"]);
    hub.fail("GET /api/", usize::MAX, Fault::Redirect("/api/round"));
    refused(MODEL, &[], &["redirects more than"]);
    for (name, word) in [("ETag", "ETag"), ("Content-Length", "X-Linked-Size or Content-Length")] {
        hub.fail("HEAD /org/tiny/", 1, Fault::Without(name));
        refused(MODEL, &[], &["file `config.json`", "no usable", word]);
    }
    refused(MODEL, &[("HF_ENDPOINT", "hub")], &["HF_ENDPOINT is `hub`"]);
    refused(MODEL, &[("HF_HUB_DOWNLOAD_TIMEOUT", "soon")], &["HF_HUB_DOWNLOAD_TIMEOUT is `soon`"]);
    refused(MODEL, &[("HF_HUB_OFFLINE", "1")], &["HF_HUB_OFFLINE is set", "models--org--tiny"]);
    hub.put("org/pickle", "config.json", fixture("config.json"));
    hub.put("org/pickle", "pytorch_model.bin", "pickled");
    refused("hf:org/pickle", &[], &["neither model.safetensors nor", "`pytorch_model.bin`"]);
    hub.put("org/data", "train.csv", "a,b");
    refused("hf:org/data", &[], &["no config.json", "`train.csv`"]);

    hub.close();
    refused(MODEL, &[], &["401", "no token is set"]);
    refused(MODEL, &[("HF_TOKEN", "hf_wrong")], &["401", "the token in use may not read it"]);
    put(&home.path().join("token"), TOKEN.as_bytes());
    show(&hub, &home, MODEL, &[]).expect("the token's file is read");
}

#[test]
fn a_hub_that_fails_for_a_while_is_asked_again() {
    let (hub, home) = tiny();
    hub.fail("GET /api/", 2, Fault::Status(500));
    hub.fail("HEAD /", 1, Fault::Status(502));
    hub.fail("GET /cdn/", 1, Fault::Status(503));
    let (_, words) = show(&hub, &home, MODEL, &[]).expect("in the end");
    assert!(["500", "502", "503"].iter().all(|status| words.contains(status)), "{words}");
    assert_eq!(words.matches("trying again").count(), 4, "{words}");

    let home = tempfile::tempdir().expect("a folder");
    hub.fail("GET /api/", 4, Fault::Status(500));
    let words = show(&hub, &home, MODEL, &[]).expect_err("tried enough");
    let line = words.lines().last().expect("a line");
    assert!(line.contains("`org/tiny`") && line.contains("500") && line.contains("tried 4 times, try again later"), "{words}");
}

#[test]
fn a_hub_that_falls_silent_is_not_waited_for() {
    let (hub, home) = tiny();
    let short = [("HF_HUB_DOWNLOAD_TIMEOUT", "0.3")];
    hub.fail("GET /cdn/", 1, Fault::Stall(1000));
    let (_, words) = show(&hub, &home, MODEL, &short).expect("goes on");
    assert!(words.contains("sent nothing for 0.3 s"), "{words}");
    let requests = hub.requests();
    assert_eq!(of(&requests, "GET", "/cdn/")[1].headers["range"], "bytes=1000-");

    let home = tempfile::tempdir().expect("a folder");
    hub.fail("GET /api/", usize::MAX, Fault::Silence);
    let words = show(&hub, &home, MODEL, &short).expect_err("nothing comes");
    assert!(
        words.lines().last().expect("a line").contains("sent nothing for 0.3 s (HF_HUB_DOWNLOAD_TIMEOUT sets how long to wait)"),
        "{words}"
    );
}

#[test]
fn wrong_bytes_never_get_the_files_name() {
    let (hub, home) = tiny();
    hub.fail("GET /cdn/", 1, Fault::WrongByte);
    let words = show(&hub, &home, MODEL, &[]).expect_err("it is not the file");
    assert!(words.contains("file `model.safetensors`: what came is not the file: its SHA-256 is"), "{words}");
    assert_eq!(names(&folder(&home).join("blobs")).len(), 1, "the config alone");
    hub.fail("GET /cdn/", 1, Fault::Body("short"));
    hub.requests();
    let (_, words) = show(&hub, &home, MODEL, &[]).expect("once more from the start");
    assert!(words.contains("ended after 5 of") && words.contains("SHA-256") && words.contains("from the start"), "{words}");
}

#[allow(clippy::disallowed_methods, reason = "test files need no atomic writer")]
fn put(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("writes");
}
