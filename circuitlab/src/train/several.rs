//! Several transcoders on one stream of rows: the tables `[[clt]]` of a config.

use circuitlab_core::config::read;
use circuitlab_core::error::nearest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::TrainConfig;
use crate::config::merge;
use crate::{Error, Result};

/// One of several transcoders: a name, and those of the run's settings that are its own.
///
/// ```toml
/// [[clt]]
/// name = "sparse"
/// sparsity.lambda = 8
///
/// [[clt]]
/// name = "wide"
/// size.expansion = 32
/// activation = { type = "topk", k = 32 }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct CltConfig {
    /// The name of its run folder in the run's: letters, digits, `_` and `-`.
    pub name: String,
    /// Tables of [`TrainConfig`], laid over the run's key by key: `transcoder`, `activation`, `size`, `sparsity`, `optimiser` and `init`.
    pub settings: Map<String, Value>,
}

/// What may differ between transcoders that see the same rows at the same steps.
const OWN: [&str; 6] = ["transcoder", "activation", "size", "sparsity", "optimiser", "init"];

/// What a run folder holds already.
const TAKEN: [&str; 3] = ["checkpoints", "final", "plots"];

const LONGEST_NAME: usize = 64;

impl TryFrom<Map<String, Value>> for CltConfig {
    type Error = String;

    fn try_from(mut settings: Map<String, Value>) -> Result<Self, String> {
        let Some(Value::String(name)) = settings.shift_remove("name") else {
            return Err("expected a `name` that is a text, such as `name = \"sparse\"`".to_owned());
        };
        if let Some(key) = settings.keys().find(|key| !OWN.contains(&key.as_str())) {
            let hint = nearest(key, OWN).map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
            let known = OWN.join(", ");
            return Err(format!("`{key}` is not a CLT's own{hint}; it may have: name, {known}; all else is the run's"));
        }
        Ok(Self { name, settings })
    }
}

impl From<CltConfig> for Map<String, Value> {
    fn from(config: CltConfig) -> Self {
        let mut table = Self::from_iter([("name".to_owned(), Value::String(config.name))]);
        table.extend(config.settings);
        table
    }
}

impl TrainConfig {
    /// The config of each transcoder, as if it were trained alone, with its name where the run has several.
    ///
    /// # Errors
    /// Settings of a `[[clt]]` table that are unknown or of the wrong type.
    pub(super) fn members(&self) -> Result<Vec<(Option<String>, Self)>> {
        if self.clt.is_empty() {
            return Ok(vec![(None, self.clone())]);
        }
        let shared = Self { clt: Vec::new(), ..self.clone() };
        let shared = serde_json::to_value(shared).map_err(|error| Error::Invalid(error.to_string()))?;
        let member = |clt: &CltConfig| {
            let mut own = shared.clone();
            merge(&mut own, Value::Object(clt.settings.clone()));
            Ok((Some(clt.name.clone()), read(&place(&clt.name), own)?))
        };
        self.clt.iter().map(member).collect()
    }
}

fn place(name: &str) -> String {
    format!("config, CLT `{name}`")
}

/// Checks names, and each transcoder's settings.
pub(super) fn check(config: &TrainConfig) -> Result<()> {
    for (at, CltConfig { name, .. }) in config.clt.iter().enumerate() {
        let word = !name.is_empty() && name.len() <= LONGEST_NAME && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        // Some file systems do not tell `A` from `a`.
        let same = |other: &str| other.eq_ignore_ascii_case(name);
        let message = if !word {
            format!("expected at most {LONGEST_NAME} letters, digits, `_` and `-`, since it names a folder")
        } else if TAKEN.iter().any(|taken| same(taken)) {
            "a run folder holds something of that name already; choose another".to_owned()
        } else if config.clt[..at].iter().any(|other| same(&other.name)) {
            "another CLT has that name; expected each name once".to_owned()
        } else {
            continue;
        };
        return Err(Error::Invalid(format!("config, key `clt.name`, `{}`: {message}", name.escape_debug())));
    }
    if config.clt.is_empty() {
        return Ok(());
    }
    let each = |(name, member): (Option<String>, TrainConfig)| match name {
        Some(name) => member.check().map_err(|error| Error::Invalid(format!("CLT `{name}`: {error}"))),
        None => Ok(()),
    };
    config.members()?.into_iter().try_for_each(each)
}

#[cfg(test)]
mod tests {
    use circuitlab_core::Spec;
    use circuitlab_core::files::write_atomic;

    use super::*;
    use crate::config::{resolve, to_toml};

    fn config(text: &str) -> Result<TrainConfig> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.toml");
        write_atomic(&path, |out| out.write_all(text.as_bytes())).expect("writes");
        let config: TrainConfig = resolve(Some(&path), &[], serde_json::to_value(TrainConfig::default()).expect("plain data"))?;
        config.check()?;
        Ok(config)
    }

    const TWO: &str = "seed = 4\n[sparsity]\nlambda = 3\nmu = 0.5\n[[clt]]\nname = \"a\"\nsparsity.lambda = 8\n[[clt]]\nname = \"b\"\nactivation = { type = \"topk\", k = 4 }\ninit.seed = 9\n";

    #[test]
    fn a_table_changes_its_own_settings_and_no_others() {
        let config = config(TWO).expect("valid");
        let members = config.members().expect("valid");
        let [(Some(one), a), (Some(other), b)] = &members[..] else { panic!("{members:?}") };
        assert_eq!((one.as_str(), other.as_str()), ("a", "b"));
        assert_eq!((a.sparsity.lambda, a.sparsity.mu, b.sparsity.lambda), (8.0, 0.5, 3.0));
        assert_eq!((&a.activation, &b.activation), (&Spec::named("jumprelu"), &Spec::named("topk").with("k", 4)));
        assert_eq!((a.seed, a.init.seed, b.seed, b.init.seed), (4, None, 4, Some(9)));
        assert!(a.clt.is_empty());
        let alone = TrainConfig::default();
        assert_eq!(alone.members().expect("valid"), [(None, alone.clone())]);
    }

    #[test]
    fn tables_are_written_and_read_back() {
        let want = config(TWO).expect("valid");
        assert_eq!(config(&to_toml(&want).expect("plain data")).expect("its own output"), want);
    }

    #[test]
    fn mistakes_in_tables_are_named() {
        let error = |text: &str| config(text).expect_err(text).to_string();
        assert!(error("[[clt]]\nsize.expansion = 4").contains("expected a `name`"));
        let unknown = error("[[clt]]\nname = \"a\"\nsparsty.lambda = 4");
        assert!(unknown.contains("clt[0]") && unknown.contains("did you mean `sparsity`?"), "{unknown}");
        assert!(error("[[clt]]\nname = \"a\"\nschedule.steps = 4").contains("all else is the run's"));
        let inner = error("[[clt]]\nname = \"a\"\nsparsity.lamda = 4");
        assert!(inner.starts_with("config, CLT `a`: unknown key `sparsity.lamda`, did you mean `lambda`?"), "{inner}");
        assert!(error("[[clt]]\nname = \"a\"\noptimiser.beta2 = 1.0").starts_with("CLT `a`: config, key `optimiser.beta2`"));
        for name in ["", "a/b", "..", "a b", "final", "Plots", "ä"] {
            assert!(error(&format!("[[clt]]\nname = \"{name}\"")).contains("key `clt.name`"), "{name}");
        }
        assert!(error("[[clt]]\nname = \"a\"\n[[clt]]\nname = \"A\"").contains("each name once"));
    }
}
