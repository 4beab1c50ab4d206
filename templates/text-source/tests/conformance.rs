//! The suite that every text source of CircuitLab goes through, and what is special to this one.

use circuitlab_core::{Registry, Result, Spec, TextSource, files, testing};
use circuitlab_text_source_json_lines as _; // or the linker drops it

fn source(field: &str) -> Box<dyn TextSource> {
    let registry = Registry::linked().expect("no name twice");
    registry.build(&Spec::named("json-lines").with("field", field)).expect("builds")
}

fn read(field: &str, content: &[u8]) -> Result<Vec<String>> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.jsonl");
    files::write_atomic(&path, |out| out.write_all(content)).expect("writes");
    source(field).documents(&path)?.collect()
}

fn refusal(field: &str, content: &str) -> String {
    read(field, content.as_bytes()).expect_err("wrong").to_string()
}

#[test]
fn json_lines_conform() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("good.jsonl");
    let content = "{\"text\": \"one\\ntwo\"}\n\n  \n{\"id\": 3, \"text\": \"\"}\r\n{\"text\": \"Käfer\", \"id\": 4}";
    files::write_atomic(&path, |out| out.write_all(content.as_bytes())).expect("writes");
    testing::text::conforms(&*source("text"), &path, &["one\ntwo", "Käfer"]);
}

#[test]
fn fields_of_fields_are_found() {
    assert_eq!(read("a.b", br#"{"a": {"b": "deep"}, "b": 1}"#).expect("good"), ["deep"]);
}

#[test]
fn mistakes_are_named_with_their_line() {
    let error = refusal("text", "{\"text\": \"a\"}\n\n{\"body\": \"b\", \"id\": 1}");
    assert!(error.ends_with("a.jsonl`: line 3 has no field `text` of `text`; there are: body, id"), "{error}");
    let error = refusal("a.b", r#"{"a": "flat"}"#);
    assert!(error.ends_with("line 1 holds text where an object with the field `b` was expected"), "{error}");
    let error = refusal("text", r#"{"text": null}"#);
    assert!(error.ends_with("line 1 holds null in the field `text`; expected text"), "{error}");
    let error = refusal("text", r#"{"text": "a"#);
    assert!(error.ends_with("line 1 is no JSON: EOF while parsing a string, column 11; expected one object a line"), "{error}");
    assert!(read("text", b"{\"text\": \"\xff\"}").expect_err("not UTF-8").to_string().contains("line 1 is no JSON"));
}

#[test]
fn a_file_without_line_ends_is_not_read_whole() {
    let error = read("text", &vec![b' '; (64 << 20) + 2]).expect_err("too long").to_string();
    assert!(error.contains("line 1 is longer than 67108864 bytes"), "{error}");
}

#[test]
fn settings_that_name_no_field_are_refused() {
    let registry = Registry::linked().expect("no name twice");
    let error = registry.build::<dyn TextSource>(&Spec::named("json-lines").with("field", "a..b")).expect_err("no name");
    assert!(error.to_string().starts_with("text-source `json-lines`, key `field`: expected a name"), "{error}");
}
