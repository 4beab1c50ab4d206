//! Orders and figures of repeated measurements.

use anyhow::Context as _;
use serde_json::Value;

/// The order of `count` things in a round: each round begins with the next.
pub(super) fn rotated(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |place| (place + round) % count)
}

/// Numbers in order.
#[derive(Debug, Clone)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    pub(super) fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The one in the middle; of an even number, the upper one. NaN where there is none.
    pub(super) fn median(&self) -> f64 {
        self.at(2, 4)
    }

    /// The upper quartile less the lower one.
    pub(super) fn interquartile_range(&self) -> f64 {
        self.at(3, 4) - self.at(1, 4)
    }

    fn at(&self, part: usize, parts: usize) -> f64 {
        self.0.get(self.0.len() * part / parts).copied().unwrap_or(f64::NAN)
    }
}

/// What stands behind a flag: a name, or a TOML table or list.
pub(in crate::commands) fn spec<T: TryFrom<Value, Error = String>>(flag: &str, text: &str) -> anyhow::Result<T> {
    let mut table = circuitlab::config::overrides(&[format!("{flag}={text}")])?;
    T::try_from(table[flag].take()).map_err(anyhow::Error::msg).with_context(|| format!("{flag} `{text}`"))
}

#[cfg(test)]
mod tests {
    use circuitlab_core::Spec;
    use circuitlab_core::codec::ChainSpec;

    use super::*;

    #[test]
    fn quartiles_are_values_that_were_measured() {
        let samples = Samples::new([5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!((samples.median(), samples.interquartile_range()), (3.0, 2.0));
        assert!(Samples::new([]).median().is_nan());
    }

    #[test]
    fn every_thing_is_first_in_turn() {
        assert_eq!(rotated(3, 4).collect::<Vec<_>>(), [1, 2, 0]);
    }

    #[test]
    fn specs_are_names_tables_or_lists() {
        assert_eq!(spec::<Spec>("activation", "relu").expect("a name"), Spec::named("relu"));
        let table: ChainSpec = spec("codec", r#"{type = "int8", block = 7}"#).expect("a table");
        assert_eq!(table, ChainSpec(vec![Spec::named("int8").with("block", 7)]));
        let list: ChainSpec = spec("codec", r#"[{type = "int4", block = 7}, "zstd"]"#).expect("a list");
        assert_eq!(list.to_string(), "int4+zstd");
        assert!(spec::<Spec>("activation", "3").expect_err("a number").to_string().contains("activation `3`"));
    }
}
