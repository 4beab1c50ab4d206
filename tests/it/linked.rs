//! A program of somebody else's: `circuitlab` with a plugin of their own linked in.

use std::path::Path;
use std::process::Command;

use circuitlab_tests::plugins::{fixture, program};
use circuitlab_tests::{arg, bare, json, model, stderr, text};

fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("starts");
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).expect("text")
}

fn plugins(program: &Path) -> serde_json::Value {
    serde_json::from_str(&succeed(&mut bare(program, ["plugins", "list", "--json"]))).expect("JSON")
}

#[test]
fn a_codec_that_is_linked_in_is_there_and_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = program(&fixture("host"), folder.path());
    let listed = plugins(&host);
    let listed = listed.as_array().expect("a list");
    let own = listed.iter().find(|plugin| plugin["name"] == "half").expect("is listed");
    let facts = ["kind", "origin", "package", "version"].map(|key| own[key].as_str().expect("text"));
    assert_eq!(facts, ["codec", "linked", "host", "0.3.1"]);
    assert_eq!(listed.len(), json(&["plugins", "list"]).as_array().expect("a list").len() + 1, "beside all of ours");

    let (cache, model, text) = (folder.path().join("cache"), model(), text());
    let args = ["cache", "--model", arg(&model), "--text", arg(&text), "--range", "0..0.01", "--out", arg(&cache), "--codec", "half+zstd"];
    succeed(&mut bare(&host, args));
    let status = json(&["cache", "status", arg(&cache)]);
    assert_eq!((status["identity"]["codec"][0].as_str(), status["complete"].as_bool()), (Some("half"), Some(true)));
    // Whoever has not linked it in is told what is missing.
    let run = folder.path().join("run");
    let output = circuitlab_tests::circuitlab(["train", "--cache", arg(&cache), "--out", arg(&run)]).output().expect("starts");
    assert!(stderr(&output).contains("was made with codec `half` of the package host 0.3.1, which is not here"), "{}", stderr(&output));
}
