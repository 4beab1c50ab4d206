//! The dialects in which `config.json` tells of rotary embedding: a table `rope_parameters`, perhaps one for each type of layer, or
//! `rope_theta` beside a table `rope_scaling`.

use circuitlab_core::{Result, config as typed};
use serde::Deserialize;
use serde_json::Value;

use super::hugging_face::ConfigFile;
use super::transformer::{RotaryForm, RotaryScaling};

/// The keys of all dialects, read beside a family's own.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RopeKeys {
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
    rope_theta: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

/// What the rotary embedding belongs to.
#[derive(Debug, Clone, Copy)]
pub struct RopeOf {
    /// Width of a head.
    pub d_head: usize,
    /// The model's context, in tokens.
    pub context: usize,
    /// The base where the file names none.
    pub default_theta: f64,
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
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
}

impl RopeKeys {
    /// The rotary embedding of a family whose heads are rotated whole.
    ///
    /// # Errors
    /// As for [`partial`](Self::partial), and a share of rotated entries other than all of them.
    pub fn form(&self, config: &ConfigFile, of: RopeOf) -> Result<RotaryForm> {
        let table = self.table(config, None)?;
        let shares = [table.partial_rotary_factor, self.partial_rotary_factor];
        if let Some(share) = shares.into_iter().flatten().find(|share| (share - 1.0).abs() > 1e-9) {
            let family = config.family;
            return Err(config.wrong(format!("`partial_rotary_factor` of {share} is not supported by model family `{family}`; expected 1")));
        }
        self.of_table(config, &table, of)
    }

    /// The rotary embedding of a family of whose heads a share of the entries is rotated: `partial_rotary_factor`, or `default_share`
    /// where the file names none.
    ///
    /// # Errors
    /// Unknown types, two tables that differ, and settings that the type needs and the table has not.
    pub fn partial(&self, config: &ConfigFile, of: RopeOf, default_share: f64) -> Result<RotaryForm> {
        let table = self.table(config, None)?;
        let share = table.partial_rotary_factor.or(self.partial_rotary_factor).unwrap_or(default_share);
        if !(share > 0.0 && share <= 1.0) {
            return Err(config.wrong(format!("`partial_rotary_factor` is {share}; expected more than 0 and at most 1")));
        }
        let form = self.of_table(config, &table, of)?;
        Ok(RotaryForm { dims: (of.d_head as f64 * share) as usize, ..form })
    }

    /// The rotary embedding of one type of layer, such as `full_attention`, in a file that may hold a table for each.
    ///
    /// # Errors
    /// As for [`partial`](Self::partial).
    pub fn of_layers(&self, config: &ConfigFile, layers: &str, of: RopeOf) -> Result<RotaryForm> {
        self.of_table(config, &self.table(config, Some(layers))?, of)
    }

    /// Whether the file holds a table for each type of layer.
    pub fn is_by_layers(&self) -> bool {
        self.rope_parameters.as_ref().is_some_and(|table| table.get("full_attention").is_some())
    }

    fn table(&self, config: &ConfigFile, layers: Option<&str>) -> Result<RopeTable> {
        let read = |value: &Value| typed::read::<RopeTable>(&config.what(), value.clone());
        let new = match (&self.rope_parameters, layers) {
            (Some(Value::Object(tables)), Some(layers)) if self.is_by_layers() => tables.get(layers),
            (table, _) => table.as_ref(),
        };
        match (new, &self.rope_scaling) {
            (Some(new), Some(old)) if new != old => Err(config.wrong("`rope_parameters` and `rope_scaling` differ; expected one")),
            (Some(table), _) | (None, Some(table)) => read(table),
            (None, None) => Ok(RopeTable::default()),
        }
    }

    fn of_table(&self, config: &ConfigFile, table: &RopeTable, of: RopeOf) -> Result<RotaryForm> {
        let theta = table.rope_theta.or(self.rope_theta).unwrap_or(of.default_theta);
        let (scaling, amplitude) = self.scaling(config, table, of.context as f64)?;
        Ok(RotaryForm { theta, dims: of.d_head, scaling, amplitude })
    }

    /// How frequencies are stretched, and what cosines and sines are multiplied by.
    fn scaling(&self, config: &ConfigFile, table: &RopeTable, context: f64) -> Result<(RotaryScaling, f64)> {
        let name = table.rope_type.as_deref().or(table.r#type.as_deref()).unwrap_or("default");
        let lacks = |key: &str| config.wrong(format!("rope type `{name}` needs `{key}`"));
        let need = |key: &str, value: Option<f64>| value.ok_or_else(|| lacks(key));
        let original = self.original_max_position_embeddings.or(table.original_max_position_embeddings).unwrap_or(context);
        let plain = |scaling| Ok((scaling, 1.0));
        match name {
            "default" => plain(RotaryScaling::None),
            "linear" => plain(RotaryScaling::Linear { factor: need("factor", table.factor)? }),
            "llama3" => plain(RotaryScaling::Llama3 {
                factor: need("factor", table.factor)?,
                low: need("low_freq_factor", table.low_freq_factor)?,
                high: need("high_freq_factor", table.high_freq_factor)?,
                original,
            }),
            "yarn" => {
                let factor = table.factor.unwrap_or(context / original);
                let (fast, slow) = (table.beta_fast.unwrap_or(32.0), table.beta_slow.unwrap_or(1.0));
                let scaling = RotaryScaling::Yarn { factor, fast, slow, original, truncate: table.truncate.unwrap_or(true) };
                Ok((scaling, table.attention_factor.unwrap_or_else(|| table.yarn_amplitude(factor))))
            }
            "longrope" | "su" => {
                let factor = table.factor.unwrap_or(context / original);
                let short = table.short_factor.clone().ok_or_else(|| lacks("short_factor"))?;
                let long = table.long_factor.clone().ok_or_else(|| lacks("long_factor"))?;
                let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
                Ok((RotaryScaling::Long { short, long, original }, table.attention_factor.unwrap_or(usual)))
            }
            _ => Err(config.wrong(format!("unknown rope type `{name}`; known: default, linear, llama3, longrope, yarn"))),
        }
    }
}

impl RopeTable {
    /// The factor that keeps the entropy of softmax patterns over longer contexts, `0.1 ln(factor) + 1`.
    fn yarn_amplitude(&self, factor: f64) -> f64 {
        let of = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        match (self.mscale, self.mscale_all_dim) {
            (Some(one), Some(all)) if one != 0.0 && all != 0.0 => of(one) / of(all),
            _ => of(1.0),
        }
    }
}
