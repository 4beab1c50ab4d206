//! The suite that every text source of CircuitLab goes through, and what is special to this one.

use circuitlab_core::{Content, Registry, Result, Spec, TextSource, files, testing};
use circuitlab_text_source_md_sections as _; // or the linker drops it

fn source(level: usize) -> Box<dyn TextSource> {
    let registry = Registry::linked().expect("no name twice");
    registry.build(&Spec::named("md-sections").with("level", level)).expect("builds")
}

fn read(level: usize, content: &[u8]) -> Result<Vec<Content>> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.md");
    files::write_atomic(&path, |out| out.write_all(content)).expect("writes");
    testing::text::documents(&*source(level), &path)
}

fn texts(documents: &[&str]) -> Vec<Content> {
    documents.iter().map(|text| Content::from(*text)).collect()
}

const GUIDE: &str = "Before.\n# One\nKäfer\n## Half\nmore\n\n#hashtag\n```sh\n# a comment\n```\n#\n \n# Two\nend";

#[test]
fn sections_conform() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("good.md");
    files::write_atomic(&path, |out| out.write_all(GUIDE.as_bytes())).expect("writes");
    let one = "# One\nKäfer\n## Half\nmore\n\n#hashtag\n```sh\n# a comment\n```\n";
    testing::text::conforms(&*source(1), &path, &["Before.\n", one, "#\n \n", "# Two\nend"]);
}

#[test]
fn the_level_says_which_headings_cut() {
    assert_eq!(read(0, GUIDE.as_bytes()).expect("good"), texts(&[GUIDE]));
    assert_eq!(read(2, b"\n# a\n## b\n### c\n").expect("good"), texts(&["# a\n", "## b\n### c\n"]));
    assert!(read(1, b" \n\n").expect("good").is_empty());
}

#[test]
fn long_sections_stay_one_document() {
    let long = format!("# long\n{}", "a line of text\n".repeat(400_000));
    assert_eq!(read(1, long.as_bytes()).expect("good"), texts(&[&long]));
}

#[test]
fn mistakes_are_named_with_their_line() {
    let error = read(1, b"# a\nb\n\xff\n").expect_err("not UTF-8").to_string();
    assert!(error.ends_with("a.md`: line 3 is not UTF-8"), "{error}");
    let error = read(1, &vec![b' '; (1 << 20) + 2]).expect_err("too long").to_string();
    assert!(error.contains("line 1 is longer than 1048576 bytes"), "{error}");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let registry = Registry::linked().expect("no name twice");
    let error = registry.build::<dyn TextSource>(&Spec::named("md-sections").with("level", 7)).expect_err("too deep");
    assert!(error.to_string().starts_with("text-source `md-sections`, key `level`: expected 0 to 6"), "{error}");
}
