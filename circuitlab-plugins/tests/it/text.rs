//! Text sources.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use circuitlab_core::testing::text::conforms;
use circuitlab_core::{Content, Registry, Spec, TextSource};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

fn source(spec: &Spec) -> Box<dyn TextSource> {
    circuitlab_plugins::link();
    Registry::linked().and_then(|registry| registry.build::<dyn TextSource>(spec)).expect("known")
}

fn check(folder: &Path, spec: &Spec, content: &str, expected: &[impl Into<Content> + Clone]) {
    let source = source(spec);
    let path = folder.join(format!("good.{}", source.extensions()[0]));
    circuitlab_core::files::write_atomic(&path, |out| out.write_all(content.as_bytes())).expect("writes");
    conforms(source.as_ref(), &path, expected);
}

#[test]
fn txt_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    check(folder.path(), &Spec::named("txt"), "Käfer\n\nund Wespen", &["Käfer\n\nund Wespen"]);
    check(folder.path(), &Spec::named("txt").with("separator", "\n\n"), "Käfer\n\nund Wespen\n\n", &["Käfer", "und Wespen"]);
}

#[test]
fn jsonl_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let content = "{\"text\": \"one\\ntwo\"}\n\n  \n{\"id\": 3, \"text\": \"\"}\r\n{\"text\": \"Käfer\", \"id\": 4}";
    check(folder.path(), &Spec::named("jsonl"), content, &["one\ntwo", "Käfer"]);
    let content = "{\"a\": {\"ids\": [3, 4]}}\n{\"a\": {\"ids\": [5]}}\n";
    check(folder.path(), &Spec::named("jsonl").with("field", "a.ids"), content, &[Content::Tokens(vec![3, 4]), Content::Tokens(vec![5])]);
}

#[test]
fn long_lines_come_in_pieces() {
    let folder = tempfile::tempdir().expect("a folder");
    let long = "a line of text\n".repeat(700_000);
    check(folder.path(), &Spec::named("jsonl"), &serde_json::json!({"text": long}).to_string(), &[long.as_str()]);
}

#[test]
fn parquet_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("good.parquet");
    let schema = Arc::new(parse_message_type("message m { optional binary text (UTF8); }").expect("a schema"));
    let mut writer = SerializedFileWriter::new(File::create(&path).expect("creates"), schema, Arc::default()).expect("begins");
    let texts: Vec<String> = (0..300).map(|row| format!("row {row}")).collect();
    for rows in texts.chunks(100) {
        let mut group = writer.next_row_group().expect("a group");
        let mut column = group.next_column().expect("good").expect("a column");
        let values: Vec<ByteArray> = rows.iter().map(|text| ByteArray::from(text.clone().into_bytes())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&[1; 100]), None).expect("writes");
        column.close().expect("closes");
        group.close().expect("closes");
    }
    writer.close().expect("closes");
    conforms(&*source(&Spec::named("parquet")), &path, &texts.iter().map(String::as_str).collect::<Vec<_>>());
}
