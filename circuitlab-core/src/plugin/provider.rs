//! Who provided the plugins that made a file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Kind, Registry};
use crate::{Error, Result};

/// What a file keeps of a plugin that it was made with, so that the plugin can be named where it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// The kind's name, such as `codec`.
    pub kind: String,
    /// The plugin's name.
    pub name: String,
    /// The package that registered it.
    pub package: String,
    /// That package's version.
    pub version: String,
}

impl Registry {
    /// Who provides these plugins.
    ///
    /// # Errors
    /// An unknown name.
    pub fn providers<'a>(&self, plugins: impl IntoIterator<Item = (Kind, &'a str)>) -> Result<Vec<Provider>> {
        let provider = |(kind, name): (Kind, &str)| {
            let plugin = self.find(kind, name)?;
            let [kind, name, package, version] = [kind.name(), plugin.name(), plugin.package(), plugin.version()].map(str::to_owned);
            Ok(Provider { kind, name, package, version })
        };
        plugins.into_iter().map(provider).collect()
    }

    /// Checks that the plugins that `what` was made with are here, be it by another package or version.
    ///
    /// # Errors
    /// [`Error::Missing`] with the first that is not.
    pub fn require(&self, what: &str, providers: &[Provider]) -> Result<()> {
        let known = |provider: &Provider| self.list().any(|plugin| plugin.kind().name() == provider.kind && plugin.name() == provider.name);
        match providers.iter().find(|provider| !known(provider)) {
            None => Ok(()),
            Some(provider) => {
                let Provider { kind, name, package, version } = provider.clone();
                Err(Error::Missing { what: what.to_owned(), kind, name, package, version })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_plugin_is_named_with_its_package() {
        let [kind, name, package, version] = ["codec", "fp3", "tiny-codecs", "0.2.0"].map(str::to_owned);
        let error = Registry::default().require("cache `c`", &[Provider { kind, name, package, version }]).expect_err("not here");
        let words = "cache `c` was made with codec `fp3` of the package tiny-codecs 0.2.0, which is not here; load its library with `--plugin FILE`";
        assert!(error.to_string().starts_with(words), "{error}");
        assert!(Registry::default().require("cache `c`", &[]).is_ok());
    }
}
