//! Both dialects in which `config.json` tells of rotary embedding: a table `rope_parameters`, or `rope_theta` beside a table
//! `rope_scaling`.

use circuitlab_core::Result;
use serde::Deserialize;

use super::hugging_face::ConfigFile;
use super::transformer::{RotaryForm, RotaryScaling};

/// The keys of both dialects, read beside a family's own.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RopeKeys {
    rope_parameters: Option<RopeTable>,
    rope_scaling: Option<RopeTable>,
    rope_theta: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// The table of either dialect.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RopeTable {
    rope_type: Option<String>,
    /// The oldest files say `type`.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

impl RopeKeys {
    /// The rotary embedding of heads of width `d_head` in a model of that context length.
    ///
    /// # Errors
    /// Unknown types, two tables that differ, and settings that the type needs and the table has not.
    pub fn form(&self, config: &ConfigFile, d_head: usize, context: usize) -> Result<RotaryForm> {
        let table = match (&self.rope_parameters, &self.rope_scaling) {
            (Some(new), Some(old)) if new != old => return Err(config.wrong("`rope_parameters` and `rope_scaling` differ; expected one")),
            (Some(table), _) | (None, Some(table)) => table.clone(),
            (None, None) => RopeTable::default(),
        };
        if let Some(factor) = table.partial_rotary_factor.filter(|factor| (factor - 1.0).abs() > 1e-9) {
            return Err(config.wrong(format!("`partial_rotary_factor` of {factor} is not supported; expected 1")));
        }
        let theta = table.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        Ok(RotaryForm { theta, dims: d_head, scaling: self.scaling(config, &table, context)? })
    }

    fn scaling(&self, config: &ConfigFile, table: &RopeTable, context: usize) -> Result<RotaryScaling> {
        let name = table.rope_type.as_deref().or(table.r#type.as_deref()).unwrap_or("default");
        let need = |key: &str, value: Option<f64>| value.ok_or_else(|| config.wrong(format!("rope type `{name}` needs `{key}`")));
        match name {
            "default" => Ok(RotaryScaling::None),
            "linear" => Ok(RotaryScaling::Linear { factor: need("factor", table.factor)? }),
            "llama3" => Ok(RotaryScaling::Llama3 {
                factor: need("factor", table.factor)?,
                low: need("low_freq_factor", table.low_freq_factor)?,
                high: need("high_freq_factor", table.high_freq_factor)?,
                original: table.original_max_position_embeddings.or(self.original_max_position_embeddings).unwrap_or(context as f64),
            }),
            _ => Err(config.wrong(format!("unknown rope type `{name}`; known: default, linear, llama3"))),
        }
    }
}
