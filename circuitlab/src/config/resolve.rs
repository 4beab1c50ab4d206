//! Defaults, file and overrides, laid over each other.

use std::path::Path;

use circuitlab_core::config::read;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::merge::merge;
use super::overrides::{overrides, overrides_name};
use super::toml_text::load;
use crate::Result;

/// Reads a config: `presets`, over them `file`, over both `sets` (`a.b=c`, in order; the last one counts).
///
/// `presets` should hold every key that a user may set a part of, as `serde_json::to_value(T::default())` does: only
/// over `activation = "jumprelu"` can `--set activation.threshold=0.1` know which activation is meant.
///
/// # Errors
/// When the file cannot be read or is no TOML, a `--set` is malformed, or a key is unknown or has the wrong type. The
/// message names the file or the `--set`, the key's path, and the nearest known key.
pub fn resolve<T: DeserializeOwned>(file: Option<&Path>, sets: &[String], presets: Value) -> Result<T> {
    let mut base = presets;
    if let Some(file) = file {
        merge(&mut base, load(file)?);
    }
    let place = file.map_or_else(|| "config".to_owned(), |file| file.display().to_string());
    if sets.is_empty() {
        return Ok(read(&place, base)?);
    }
    let mut merged = base.clone();
    merge(&mut merged, overrides(sets)?);
    match read::<T>(&place, merged.clone()) {
        Ok(config) => Ok(config),
        // The fault is the file's where the file alone has the same.
        Err(error) if read::<T>(&place, base).is_err_and(|alone| alone.to_string() == error.to_string()) => Err(error.into()),
        Err(_) => Ok(read(&overrides_name(sets), merged)?),
    }
}

#[cfg(test)]
mod tests {
    use circuitlab_core::Spec;
    use circuitlab_core::files::write_atomic;
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::super::to_toml;
    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Run {
        seed: u32,
        name: Option<String>,
        activation: Spec,
        texts: Vec<String>,
        sparsity: Sparsity,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sparsity {
        lambda: f64,
        warm: bool,
    }

    impl Default for Run {
        fn default() -> Self {
            Self { seed: 0, name: None, activation: Spec::named("jumprelu"), texts: Vec::new(), sparsity: Sparsity::default() }
        }
    }

    impl Default for Sparsity {
        fn default() -> Self {
            Self { lambda: 1.0, warm: true }
        }
    }

    fn with(sets: &[&str]) -> Result<Run> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        resolve(None, &sets, serde_json::to_value(Run::default()).expect("plain data"))
    }

    fn in_file(text: &str, sets: &[&str]) -> Result<Run> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.toml");
        write_atomic(&path, |out| out.write_all(text.as_bytes())).expect("writes");
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        resolve(Some(&path), &sets, serde_json::to_value(Run::default()).expect("plain data"))
    }

    #[test]
    fn a_plugins_settings_are_changed_by_themselves() {
        assert_eq!(with(&["activation.threshold=0.1"]).expect("valid").activation, Spec::named("jumprelu").with("threshold", 0.1));
        assert_eq!(with(&["activation=topk", "activation.k=8"]).expect("valid").activation, Spec::named("topk").with("k", 8));
        assert_eq!(with(&["activation.k=8", "activation.type=topk"]).expect("valid").activation, Spec::named("topk").with("k", 8));
    }

    #[test]
    fn another_plugin_does_not_inherit_settings() {
        let text = "[activation]\ntype = \"jumprelu\"\nthreshold = 0.1\n";
        assert_eq!(in_file(text, &[]).expect("valid").activation, Spec::named("jumprelu").with("threshold", 0.1));
        assert_eq!(in_file(text, &["activation=relu"]).expect("valid").activation, Spec::named("relu"));
        let same = Spec::named("jumprelu").with("threshold", 0.1);
        assert_eq!(in_file(text, &["activation=jumprelu"]).expect("valid").activation, same);
        assert_eq!(in_file(text, &["activation.type=relu"]).expect("valid").activation, Spec::named("relu"));
        let both = in_file(text, &["activation.eps=2"]).expect("valid").activation;
        assert_eq!(both, Spec::named("jumprelu").with("threshold", 0.1).with("eps", 2));
    }

    #[test]
    fn overrides_stand_over_the_file_and_the_file_over_defaults() {
        let run = in_file("seed = 3\nsparsity.lambda = 2.5", &["seed=4", "name=first run", "texts=[\"a\", 'b']"]).expect("valid");
        assert_eq!((run.seed, run.sparsity.lambda.to_string(), run.sparsity.warm), (4, "2.5".to_owned(), true));
        assert_eq!((run.name.as_deref(), run.texts), (Some("first run"), vec!["a".to_owned(), "b".to_owned()]));
    }

    #[test]
    fn an_error_names_the_file_or_the_override() {
        let error = in_file("[sparsity]\nlamda = 1", &["seed=1"]).expect_err("misspelt").to_string();
        assert!(error.ends_with("run.toml: unknown key `sparsity.lamda`, did you mean `lambda`?; known: lambda, warm"), "{error}");
        let error = in_file("seed = 1", &["sparsity.lamda=1"]).expect_err("misspelt").to_string();
        assert_eq!(error, "--set sparsity.lamda=1: unknown key `sparsity.lamda`, did you mean `lambda`?; known: lambda, warm");
        let error = with(&["seed=1", "sparsity.warm=3"]).expect_err("no bool").to_string();
        assert!(error.starts_with("--set, key `sparsity.warm`: invalid type"), "{error}");
    }

    #[test]
    fn merging_replaces_what_is_no_table() {
        for (base, over, expected) in [
            (json!({"a": [1, 2]}), json!({"a": [3]}), json!({"a": [3]})),
            (json!({"a": 1}), json!({"a": {"b": 2}}), json!({"a": {"b": 2}})),
            (json!({"a": null}), json!({"a": {"b": 2}}), json!({"a": {"b": 2}})),
            (json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": 3}}), json!({"a": {"b": 3, "c": 2}})),
        ] {
            let mut merged = base;
            merge(&mut merged, over);
            assert_eq!(merged, expected);
        }
    }

    proptest! {
        #[test]
        fn a_resolved_config_is_written_and_read_back(
            seed: u32, name: Option<String>, texts: Vec<String>, lambda in -1e300..1e300_f64, warm: bool, threshold in 0..1000_i64, text: String,
        ) {
            let activation = Spec::named("topk").with("k", threshold).with("note", text);
            let run = Run { seed, name, activation, texts, sparsity: Sparsity { lambda, warm } };
            let text = to_toml(&run).expect("plain data");
            prop_assert_eq!(in_file(&text, &[]).expect("its own output"), run);
        }

        #[test]
        fn any_override_is_taken_or_refused_in_one_line(set: String, value: String) {
            for set in [set, format!("name={value}"), format!("activation.x={value}"), format!("{value}=1")] {
                if let Err(error) = with(&[&set]) {
                    prop_assert!(!error.to_string().contains('\n'), "{}", error);
                }
            }
        }
    }
}
