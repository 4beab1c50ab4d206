//! What Hugging Face's `config.json` files have in common.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::{Error, Result, config};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::transformer::Activation;

/// A folder's `config.json`.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// The family whose plugin reads it.
    pub family: &'static str,
    path: PathBuf,
    /// All that are not null.
    keys: Map<String, Value>,
    nulls: BTreeSet<String>,
}

impl ConfigFile {
    /// Reads the file.
    ///
    /// # Errors
    /// A file that is not there or holds no JSON table, another family's config, and weights that are quantized.
    pub fn read(folder: &Path, family: &'static str) -> Result<Self> {
        let path = folder.join("config.json");
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| Error::format(&path, format!("not valid JSON: {error}")))?;
        let Value::Object(mut keys) = value else {
            return Err(Error::format(&path, "expected a table of settings"));
        };
        // Null means the default of most keys, so most need not tell it from a key that is not there.
        let nulls = keys.iter().filter(|(_, value)| value.is_null()).map(|(key, _)| key.clone()).collect();
        keys.retain(|_, value| !value.is_null());
        let config = Self { family, path, keys, nulls };
        match config.keys.get("model_type") {
            Some(Value::String(name)) if name == family => {}
            Some(other) => return Err(config.wrong(format!("it is of model family `{}`, not `{family}`", bare(other)))),
            None => return Err(config.wrong(format!("expected a `model_type` of `{family}`"))),
        }
        config.refuse("quantization_config", &[])?;
        Ok(config)
    }

    /// Reads the keys that a family knows, all others aside.
    ///
    /// # Errors
    /// A key of the wrong type, or one without a default that is not there.
    pub fn keys<T: DeserializeOwned>(&self) -> Result<T> {
        config::read(&self.what(), Value::Object(self.keys.clone()))
    }

    /// What errors call this file.
    pub(super) fn what(&self) -> String {
        format!("`{}`", self.path.display())
    }

    /// The value that was read under `key`; where the file leaves the key out the family's default, and nothing where it says null.
    pub fn or_unless_null<T>(&self, key: &str, read: Option<T>, default: T) -> Option<T> {
        read.or_else(|| (!self.nulls.contains(key)).then_some(default))
    }

    /// An error about this file.
    pub fn wrong(&self, message: impl Into<String>) -> Error {
        Error::format(&self.path, message)
    }

    /// Refuses a setting that would change what the model computes, unless its value is one of those that would not.
    ///
    /// # Errors
    /// Names the key and its value.
    pub fn refuse(&self, key: &str, harmless: &[Value]) -> Result<()> {
        match self.keys.get(key) {
            Some(value) if !harmless.contains(value) => {
                let expected = if harmless.is_empty() { "it must be left out".to_owned() } else { format!("expected `{}`", harmless[0]) };
                Err(self.wrong(format!("`{key}` of `{}` is not supported by model family `{}`; {expected}", bare(value), self.family)))
            }
            _ => Ok(()),
        }
    }

    /// The token ids under `key`, of which there may be none, one or a list.
    ///
    /// # Errors
    /// A value that is no token id, or none of a vocabulary of this size.
    pub fn tokens(&self, key: &str, vocabulary: usize) -> Result<Vec<u32>> {
        let values = match self.keys.get(key) {
            None => &[],
            Some(Value::Array(several)) => several.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| self.wrong(format!("`{key}` is `{value}`; expected a token id")))?;
            if (id as usize) < vocabulary {
                return Ok(id);
            }
            Err(self.wrong(format!("`{key}` is {id}, and the vocabulary has {vocabulary} tokens")))
        };
        values.iter().map(id).collect()
    }

    /// The activation function of that name.
    ///
    /// # Errors
    /// A name that is not known.
    pub fn activation(&self, key: &str, name: &str) -> Result<Activation> {
        match name {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" | "gelu_python" => Ok(Activation::GeluExact),
            // Three spellings of one formula.
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            _ => Err(self.wrong(format!(
                "unknown `{key}` `{name}`; known: gelu, gelu_fast, gelu_new, gelu_python, gelu_pytorch_tanh, relu, silu, swish"
            ))),
        }
    }
}

/// A value as its author would say it: texts without their quotes.
fn bare(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
