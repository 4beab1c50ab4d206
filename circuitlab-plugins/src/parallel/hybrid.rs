//! `hybrid`: a mesh of `data` by `feature` ranks.

use circuitlab_c10d::Environment;
use circuitlab_core::{Construct, Error, Result};

use super::distributed::{Distributed, Waiting, settings, wrong};

register!(strategy "hybrid" => HybridConfig, "a mesh: ranks along `data` read different rows, ranks along `feature` own different features");

settings! {
    /// Settings of `hybrid`; the launcher's environment says how many ranks there are. One of the two sizes may be left to it.
    HybridConfig {
        /// Into how many parts the rows are divided. Default: as many as there are ranks for each of the `feature` parts.
        data: Option<usize>,
        /// Into how many parts the features are divided. Default: as many as there are ranks for each of the `data` parts.
        feature: Option<usize>,
        /// Whether ranks along `data` divide what they own among them too, as `fsdp` does. Default: false.
        shard: bool,
    }
}

const NAME: &str = "hybrid";

impl HybridConfig {
    /// Sizes of the axes for so many ranks.
    fn sizes(&self, ranks: usize) -> Result<[usize; 2]> {
        let [data, feature] = [self.data, self.feature];
        if let Some((key, _)) = [("data", data), ("feature", feature)].into_iter().find(|(_, size)| *size == Some(0)) {
            return Err(wrong(NAME, key, "expected at least 1 part, got 0"));
        }
        let rest = |key: &str, size: usize| {
            let parts = ranks / size;
            if parts * size == ranks {
                Ok(parts)
            } else {
                Err(wrong(NAME, key, &format!("{ranks} ranks cannot be divided into {size} equal parts")))
            }
        };
        match (data, feature) {
            (Some(data), Some(feature)) => Ok([data, feature]),
            (Some(data), None) => Ok([data, rest("data", data)?]),
            (None, Some(feature)) => Ok([rest("feature", feature)?, feature]),
            (None, None) => Err(Error::Invalid(
                "strategy `hybrid`: it is not said how; expected `data`, `feature` or both, such as `--set strategy.feature=2`".to_owned(),
            )),
        }
    }
}

impl Construct for HybridConfig {
    type Output = Distributed;

    /// Returns when all ranks are there.
    fn construct(&self) -> Result<Distributed> {
        let environment = Environment::read()?;
        Distributed::join(NAME, &environment, self.sizes(environment.ranks)?, self.shard, &self.waiting())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_given_or_follow() {
        let of = |data, feature, ranks| HybridConfig { data, feature, ..HybridConfig::default() }.sizes(ranks);
        for (data, feature, want) in [(Some(2), None, [2, 4]), (None, Some(2), [4, 2]), (Some(3), Some(5), [3, 5]), (None, Some(8), [1, 8])]
        {
            assert_eq!(of(data, feature, 8).expect("fits"), want);
        }
        for (data, feature, message) in [
            (Some(3), None, "key `data`: 8 ranks cannot be divided into 3 equal parts"),
            (None, Some(0), "key `feature`: expected at least 1 part, got 0"),
            (None, None, "it is not said how"),
        ] {
            let error = of(data, feature, 8).expect_err("refused").to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
