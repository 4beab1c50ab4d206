//! `plugins new`: a plugin crate out of a template.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use circuitlab_core::error::nearest;
use circuitlab_core::{Error as CoreError, files};
use serde_json::json;

use super::template::{TEMPLATES, Template};
use crate::args::PluginsNewArgs;
use crate::commands::Context;
use crate::output::WithHint;

/// The clone that this program was built from, and the libtorch that it was built with.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const LIBTORCH: &str = env!("CIRCUITLAB_LIBTORCH");

/// The dependencies' versions of this program: they are known to build together.
const LOCK: &str = include_str!("../../../../Cargo.lock");

/// Names that cargo refuses as packages, or that its own commands use.
const RESERVED: [&str; 12] = [
    "test",
    "core",
    "std",
    "alloc",
    "proc-macro",
    "circuitlab",
    "circuitlab-core",
    "circuitlab-plugins",
    "circuitlab-cli",
    "serde",
    "schemars",
    "tch",
];

pub(super) fn run(args: &PluginsNewArgs, context: &Context) -> anyhow::Result<()> {
    let template = template(&args.kind)?;
    check_name(&args.name)?;
    ensure!(!context.registry.knows(template.kind, &args.name), "{} `{}` is there already; choose another name", template.kind, args.name);
    if let Some(taken) = template.clash(&args.name) {
        bail!(
            "the name `{}` would make a type `{taken}`, which is another's in that crate; expected one such as `my-{}`",
            args.name,
            args.name
        );
    }
    let source = source(args)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    if out.symlink_metadata().is_ok() {
        bail!("`{}` exists already; choose another --out", out.display());
    }
    if let Some(above) = out.parent().filter(|above| !above.as_os_str().is_empty()) {
        fs::create_dir_all(above).map_err(CoreError::io("create", above))?;
    }
    files::write_folder(&out, |folder| write(folder, template, &args.name, &source))?;
    context.print(&json!({"folder": out.display().to_string(), "kind": template.kind.name(), "name": args.name}), || {
        next(args, template, &out)
    })
}

fn template(kind: &str) -> anyhow::Result<&'static Template> {
    let names = || TEMPLATES.iter().map(|template| template.kind.name());
    // As `register!` writes it.
    let wanted = kind.replace('_', "-");
    if let Some(template) = TEMPLATES.iter().find(|template| template.kind.name() == wanted) {
        return Ok(template);
    }
    let hint = nearest(&wanted, names()).map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
    bail!("there is no template of kind `{kind}`{hint}; known: {}", names().collect::<Vec<_>>().join(", "))
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let kebab = name.len() <= 64 && name.split('-').all(word) && name.starts_with(|first: char| first.is_ascii_lowercase());
    ensure!(kebab, "the name `{name}` is not in kebab case; expected one such as `my-codec`");
    ensure!(!RESERVED.contains(&name), "the name `{name}` is taken by another package; expected one such as `my-{name}`");
    Ok(())
}

/// The clone to build against, as an absolute path.
fn source(args: &PluginsNewArgs) -> anyhow::Result<String> {
    let place = args.source.clone().unwrap_or_else(|| PathBuf::from(SOURCE));
    if !place.join("circuitlab-core/Cargo.toml").is_file() {
        return Err(anyhow::anyhow!("`{}` is no clone of CircuitLab: it holds no circuitlab-core/Cargo.toml", place.display()))
            .hint("name the clone that this program was built from with --source");
    }
    let place = place.canonicalize().map_err(CoreError::io("read", &place))?;
    place.to_str().map(str::to_owned).with_context(|| format!("the path `{}` is no UTF-8", place.display()))
}

fn write(folder: &Path, template: &Template, name: &str, source: &str) -> Result<(), CoreError> {
    let put = |place: &str, content: &str| {
        let path = folder.join(place);
        let above = path.parent().unwrap_or(folder);
        fs::create_dir_all(above).map_err(CoreError::io("create", above))?;
        files::write_atomic(&path, |out| out.write_all(content.as_bytes()))
    };
    for (place, content) in template.instantiate(name, source) {
        put(place, &content)?;
    }
    put("Cargo.lock", LOCK)?;
    put(".gitignore", "/target\n/.cargo/config.toml\n")?;
    // Where libtorch is differs from machine to machine, so it is not for the repository.
    let escaped = LIBTORCH.replace('\\', "\\\\").replace('"', "\\\"");
    put(".cargo/config.toml", &format!("[env]\nLIBTORCH = \"{escaped}\"\n"))
}

fn next(args: &PluginsNewArgs, template: &Template, out: &Path) -> String {
    let (kind, name) = (template.kind, &args.name);
    let library = format!("target/release/{}{}{}", std::env::consts::DLL_PREFIX, name.replace('-', "_"), std::env::consts::DLL_SUFFIX);
    format!(
        "{kind} `{name}` is in {out}; README.md there says what to change\n\n  \
         cd {out}\n  \
         cargo test\n  \
         cargo rustc --release --lib --crate-type cdylib --features dynamic\n  \
         circuitlab --plugin {library} plugins show {name}",
        out = out.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kebab_case() {
        for name in ["a", "my-codec", "fp8-e4m3"] {
            check_name(name).expect(name);
        }
        for name in ["", "-", "a-", "-a", "a--b", "8bit", "My", "a_b", "a b", "../x", "test", "serde", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn kinds_are_words_and_mistakes_are_named() {
        assert!(template("codec").is_ok());
        let error = template("codex").err().expect("misspelt").to_string();
        assert!(error.starts_with("there is no template of kind `codex`, did you mean `codec`?; known: "), "{error}");
    }
}
