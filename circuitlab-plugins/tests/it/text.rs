//! Text sources.

use std::path::Path;

use circuitlab_core::testing::text::conforms;
use circuitlab_core::{Registry, Spec, TextSource};

fn check(folder: &Path, spec: &Spec, content: &str, expected: &[&str]) {
    circuitlab_plugins::link();
    let source = Registry::linked().and_then(|registry| registry.build::<dyn TextSource>(spec)).expect("known");
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
