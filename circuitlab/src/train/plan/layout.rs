//! How many ranks share a run, and how: as much of a strategy as its cost depends on.

use std::fmt;
use std::str::FromStr;

use circuitlab_core::{Mesh, ParameterSpec, Spec};
use serde::Serialize;
use serde_json::Value;

use crate::{Error, Result};

/// A mesh without a place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Ranks that read different rows.
    pub data: usize,
    /// Ranks that own different features.
    pub feature: usize,
    /// Whether what a rank owns is split further over the data axis.
    pub sharded: bool,
}

impl Layout {
    /// The layout of a strategy by its name and settings, whether it is there or not; nothing for names that say nothing of a mesh.
    /// Without a number of ranks, the least that it can have.
    ///
    /// # Errors
    /// A strategy that cannot have so many ranks.
    pub fn of_strategy(strategy: &Spec, ranks: Option<usize>) -> Result<Option<Self>> {
        let layout = |data, feature, sharded| Ok(Some(Self { data, feature, sharded }));
        let (given, ranks) = (ranks, ranks.unwrap_or(1));
        match strategy.name.as_str() {
            "single" if ranks != 1 => Err(Error::Invalid(format!(
                "strategy `single` is one rank, not {ranks}; name one of `ddp`, `fsdp`, `feature-sharded`, `hybrid`"
            ))),
            "hybrid" => Self::of_hybrid(strategy, given).map(Some),
            "single" => layout(1, 1, false),
            "ddp" => layout(ranks, 1, false),
            "fsdp" => layout(ranks, 1, true),
            "feature-sharded" => layout(1, ranks, false),
            _ => Ok(None),
        }
    }

    fn of_hybrid(strategy: &Spec, ranks: Option<usize>) -> Result<Self> {
        let wrong = |key: &str, expected: &str, got: &Value| {
            Error::Invalid(format!("strategy `hybrid`, key `{key}`: expected {expected}, got {got}"))
        };
        let given = |key: &str| strategy.settings.get(key).filter(|value| !value.is_null());
        let size = |key: &str| {
            let number = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
            given(key).map(|value| number(value).ok_or_else(|| wrong(key, "at least 1 part", value))).transpose()
        };
        let (data, feature) = (size("data")?, size("feature")?);
        let shard = given("shard").map(|value| value.as_bool().ok_or_else(|| wrong("shard", "true or false", value))).transpose()?;
        for (key, part) in [("data", data), ("feature", feature)] {
            if let (Some(part), Some(ranks)) = (part, ranks)
                && ranks % part != 0
            {
                return Err(Error::Invalid(format!(
                    "strategy `hybrid`, key `{key}`: {ranks} ranks cannot be divided into {part} equal parts"
                )));
            }
        }
        let rest = |part: usize| ranks.map_or(1, |ranks| ranks / part.max(1));
        let layout = Self {
            data: data.unwrap_or_else(|| rest(feature.unwrap_or(1))),
            feature: feature.unwrap_or_else(|| rest(data.unwrap_or(1))),
            sharded: shard.unwrap_or(false),
        };
        if (data, feature) == (None, None) {
            return Err(Error::Invalid(
                "strategy `hybrid`: expected `data`, `feature` or both, such as `--set strategy.feature=2`".to_owned(),
            ));
        }
        match ranks {
            Some(ranks) if layout.ranks() != ranks => {
                Err(Error::Invalid(format!("strategy `hybrid` with these settings is a mesh of {layout}, and there are {ranks} ranks")))
            }
            _ => Ok(layout),
        }
    }

    /// The layout of a mesh.
    pub fn of_mesh(mesh: Mesh) -> Self {
        Self { data: mesh.data.size, feature: mesh.feature.size, sharded: mesh.sharded }
    }

    /// All ranks.
    pub fn ranks(self) -> usize {
        self.data.saturating_mul(self.feature)
    }

    /// Numbers of a parameter that a rank works with: the largest share of its features.
    pub(super) fn used(self, spec: &ParameterSpec) -> u64 {
        rows_of(spec, if spec.per_feature { self.feature } else { 1 })
    }

    /// Whether a parameter is split over the data axis too: vectors are not worth the messages.
    pub(super) fn splits(self, spec: &ParameterSpec) -> bool {
        self.sharded && self.data > 1 && spec.per_feature && spec.shape.len() > 1
    }

    /// Numbers of a parameter that a rank keeps and steps.
    pub(super) fn owned(self, spec: &ParameterSpec) -> u64 {
        // As of two divisions that round up one after the other.
        if self.splits(spec) { rows_of(spec, self.feature.saturating_mul(self.data)) } else { self.used(spec) }
    }
}

/// The largest of so many shares of a parameter's first axis, in numbers.
fn rows_of(spec: &ParameterSpec, shares: usize) -> u64 {
    let mut axes = spec.shape.iter().map(|size| size.unsigned_abs());
    let first = axes.next().unwrap_or(1);
    first.div_ceil(shares.max(1) as u64).saturating_mul(axes.product())
}

/// `2x4`, or `8x1,sharded`: data ranks, feature ranks.
impl FromStr for Layout {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (sizes, sharded) = text.strip_suffix(",sharded").map_or((text, false), |sizes| (sizes, true));
        let size = |text: &str| text.parse::<usize>().ok().filter(|size| *size > 0);
        match sizes.split_once('x').map(|(data, feature)| (size(data), size(feature))) {
            Some((Some(data), Some(feature))) => Ok(Self { data, feature, sharded }),
            _ => Err(Error::Invalid(format!("mesh `{text}`: expected DATAxFEATURE ranks, such as `2x4` or `8x1,sharded`"))),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}x{}{}", self.data, self.feature, if self.sharded { ",sharded" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use circuitlab_core::{Init, Precision, Update};
    use serde_json::json;

    use super::*;

    #[test]
    fn meshes_are_read_as_they_are_written() {
        for text in ["1x1", "2x4", "8x1,sharded"] {
            assert_eq!(text.parse::<Layout>().expect("a mesh").to_string(), text);
        }
        for text in ["", "2", "0x4", "2x", "2x4,split", "-1x2", "2x4x1"] {
            assert!(text.parse::<Layout>().expect_err("no mesh").to_string().contains("expected DATAxFEATURE"), "{text}");
        }
    }

    #[test]
    fn strategies_are_meshes() {
        let of_spec = |spec: &Spec, ranks| Layout::of_strategy(spec, ranks).map(|layout| layout.map(|layout| layout.to_string()));
        let of = |name, ranks| of_spec(&Spec::named(name), Some(ranks));
        let hybrid = Spec::named("hybrid").with("feature", 2);
        assert_eq!(of_spec(&hybrid, Some(8)).expect("fits").as_deref(), Some("4x2"));
        assert_eq!(of_spec(&hybrid, None).expect("fits").as_deref(), Some("1x2"));
        assert_eq!(of_spec(&hybrid.with("data", 3).with("shard", true), None).expect("fits").as_deref(), Some("3x2,sharded"));
        let odd = of_spec(&Spec::named("hybrid").with("feature", 2), Some(7)).expect_err("seven").to_string();
        assert!(odd.contains("key `feature`: 7 ranks cannot be divided into 2 equal parts"), "{odd}");
        let both = Spec::named("hybrid").with("feature", 2).with("data", 2);
        let both = of_spec(&both, Some(8)).expect_err("four").to_string();
        assert!(both.contains("a mesh of 2x2, and there are 8 ranks"), "{both}");
        for (key, value, message) in [
            ("feature", json!(0), "at least 1 part, got 0"),
            ("data", json!("two"), "got \"two\""),
            ("shard", json!("maybe"), "true or false"),
        ] {
            let error = of_spec(&Spec::named("hybrid").with(key, value), Some(8)).expect_err("no size").to_string();
            assert!(error.contains(&format!("key `{key}`")) && error.contains(message), "{error}");
        }
        assert!(of("hybrid", 4).expect_err("not said how").to_string().contains("expected `data`, `feature` or both"));
        assert_eq!(of("ddp", 8).expect("fits").as_deref(), Some("8x1"));
        assert_eq!(of("fsdp", 8).expect("fits").as_deref(), Some("8x1,sharded"));
        assert_eq!(of("feature-sharded", 8).expect("fits").as_deref(), Some("1x8"));
        assert_eq!(of("mine", 8).expect("says nothing"), None);
        assert!(of("single", 2).expect_err("one rank").to_string().contains("not 2"));
    }

    #[test]
    fn shares_are_the_largest() {
        let spec = |per_feature| ParameterSpec {
            name: "W".into(),
            layer: 0,
            shape: vec![10, 3, 4],
            init: Init::Constant(0.0),
            per_feature,
            update: Update::Gradient,
            precision: Precision::Compute,
        };
        let layout = |data, feature, sharded| Layout { data, feature, sharded };
        assert_eq!((layout(2, 4, false).used(&spec(true)), layout(2, 4, false).owned(&spec(true))), (36, 36));
        assert_eq!((layout(2, 4, true).used(&spec(true)), layout(2, 4, true).owned(&spec(true))), (36, 24));
        assert_eq!((layout(2, 4, true).used(&spec(false)), layout(2, 4, true).owned(&spec(false))), (120, 120));
        let vector = ParameterSpec { shape: vec![10], ..spec(true) };
        assert_eq!((layout(2, 4, true).used(&vector), layout(2, 4, true).owned(&vector)), (3, 3));
    }
}
