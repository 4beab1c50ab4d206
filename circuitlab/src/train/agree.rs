//! What all ranks of a run must have in common, compared before anything is written.

use circuitlab_core::ParallelismStrategy;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::TrainConfig;
use super::ranks;
use crate::run::Origin;
use crate::{Error, Result};

/// Settings that may differ from rank to rank: where it computes, and how it finds the others.
const OWN: [&str; 5] = ["compute.device", "compute.threads", "plugins.paths", "strategy.rank", "strategy.address"];

/// What one rank brings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Facts {
    /// The cache, the version of this crate and the plugins, of each transcoder.
    origins: Vec<Origin>,
    config: Value,
}

/// Refuses ranks that would not do the same work, and names what differs.
///
/// # Errors
/// The first difference to rank 0, on every rank; and a rank that does not answer.
pub(super) fn agree(strategy: &dyn ParallelismStrategy, config: &TrainConfig, origins: Vec<Origin>) -> Result<()> {
    let unreadable = |error: serde_json::Error| Error::Invalid(format!("the settings of the ranks cannot be compared: {error}"));
    let own = Facts { origins, config: serde_json::to_value(config).map_err(unreadable)? };
    let said = ranks::heard(strategy, &serde_json::to_string(&own).map_err(unreadable)?)?;
    let mut all = said.iter().enumerate().map(|(rank, said)| {
        let other = |_| Error::Invalid(format!("rank {rank} runs another version of CircuitLab than rank {}", ranks::number(strategy)));
        serde_json::from_str::<Facts>(said).map_err(other)
    });
    let Some(first) = all.next().transpose()? else { return Ok(()) };
    for (rank, other) in all.enumerate() {
        if let Some(difference) = first.difference(&other?) {
            return Err(Error::Invalid(format!("rank {} and rank 0 are not of one run: {difference}", rank + 1)));
        }
    }
    Ok(())
}

impl Facts {
    /// What differs in the other, in words.
    fn difference(&self, other: &Self) -> Option<String> {
        for (own, theirs) in self.origins.iter().zip(&other.origins) {
            if own.version != theirs.version {
                return Some(format!("it is version {} of CircuitLab, rank 0 is {}; install one", theirs.version, own.version));
            }
            if own.cache != theirs.cache {
                return Some(format!("its cache has the digest {}, that of rank 0 {}; give both the same one", theirs.cache, own.cache));
            }
        }
        // A setting that differs may be why plugins do.
        if let Some((key, own, theirs)) = differs("", &self.config, &other.config) {
            return Some(format!("`{key}` is {theirs} there and {own} on rank 0; give all ranks the same settings"));
        }
        for (own, theirs) in self.origins.iter().zip(&other.origins) {
            if own.providers != theirs.providers {
                let list = |origin: &Origin| {
                    origin
                        .providers
                        .iter()
                        .map(|provider| serde_json::to_string(provider).unwrap_or_default())
                        .collect::<Vec<_>>()
                        .join(", ")
                };
                return Some(format!("its plugins are {}, those of rank 0 {}", list(theirs), list(own)));
            }
        }
        None
    }
}

/// The first key whose values differ, with both.
fn differs<'a>(key: &str, own: &'a Value, other: &'a Value) -> Option<(String, &'a Value, &'a Value)> {
    if own == other || OWN.contains(&key) {
        return None;
    }
    let within = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match (own, other) {
        (Value::Object(a), Value::Object(b)) => {
            let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
            let value = |of: &'a serde_json::Map<String, Value>, name: &str| of.get(name).unwrap_or(&Value::Null);
            names.into_iter().find_map(|name| differs(&within(name), value(a, name), value(b, name)))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(place, (a, b))| differs(&within(&place.to_string()), a, b))
        }
        _ => Some((key.to_owned(), own, other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What it is, a change, and a piece of the message.
    type Case = (&'static str, fn(&mut Facts), &'static str);

    fn facts() -> Facts {
        let origin = Origin { cache: "ab12".to_owned(), version: "0.1.0".to_owned(), providers: Vec::new() };
        let config = json!({"sparsity": {"lambda": 2.0, "mu": 0.1}, "compute": {"threads": 2}, "strategy": {"type": "ddp", "rank": 0}, "list": [1, 2]});
        Facts { origins: vec![origin], config }
    }

    #[test]
    fn what_differs_is_named() {
        assert_eq!(facts().difference(&facts()), None);
        let mut own = facts();
        own.config["compute"]["threads"] = json!(7);
        own.config["strategy"]["rank"] = json!(1);
        assert_eq!(facts().difference(&own), None, "a rank's own affair");
        let cases: [Case; 6] = [
            ("settings", |facts| facts.config["sparsity"]["lambda"] = json!(3.0), "`sparsity.lambda` is 3.0 there and 2.0 on rank 0"),
            ("a list", |facts| facts.config["list"][1] = json!(5), "`list.1` is 5 there"),
            ("a missing key", |facts| facts.config["sparsity"] = json!({"lambda": 2.0}), "`sparsity.mu` is null there"),
            ("the strategy", |facts| facts.config["strategy"]["type"] = json!("hybrid"), "`strategy.type` is \"hybrid\" there"),
            ("caches", |facts| facts.origins[0].cache = "cd".to_owned(), "its cache has the digest cd"),
            ("versions", |facts| facts.origins[0].version = "0.2.0".to_owned(), "it is version 0.2.0"),
        ];
        for (what, change, message) in cases {
            let mut other = facts();
            change(&mut other);
            let found = facts().difference(&other).unwrap_or_default();
            assert!(found.contains(message), "{what}: {found}");
        }
    }
}
