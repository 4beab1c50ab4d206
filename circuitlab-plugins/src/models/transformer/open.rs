//! Building a transformer from a folder.

use circuitlab_core::{ModelInfo, ModelSource, Result};
use serde::Deserialize;
use tch::Kind;

use super::attention::{Attention, QueryKeyNorms};
use super::block::Block;
use super::description::{BlockForm, Description, NormKind, QueryKeyNorm, RotaryForm};
use super::family::Family;
use super::fingerprint::fingerprint;
use super::forward::Transformer;
use super::mlp::Mlp;
use super::norm::{Norm, widened};
use super::rotary::Rotary;
use super::shards::Shards;
use super::sites::Site;
use super::weights::{Linear, Loader};
use crate::models::hugging_face::ConfigFile;

impl Transformer {
    /// Reads a Hugging Face folder of a family.
    ///
    /// # Errors
    /// Files that are missing or damaged, options that the family does not support, and tensors that are missing, of
    /// another shape than the config says, or of a type that is no float.
    pub fn open(source: &ModelSource, family: &Family) -> Result<Self> {
        let config = ConfigFile::read(&source.path, family.name)?;
        let mut description = (family.describe)(&config)?;
        description.attention_gate |= source.attention_gate || config.keys::<Gate>()?.attention_gate;
        description.check().map_err(|error| config.wrong(error.to_string()))?;
        let shards = Shards::open(&source.path)?;
        let (device, kind) = (source.device.0, Kind::from(source.dtype));
        let without_weights = source.without_weights;
        let mut loader = Loader { family, description: &description, shards: &shards, device, kind, without_weights, parameters: 0 };
        let embedding = loader.module(Site::Embedding)?.weight;
        let positions = if Site::Positions.exists(&description) { Some(loader.module(Site::Positions)?.weight) } else { None };
        let mut rotaries = Rotaries::default();
        let blocks = (0..description.layers).map(|layer| block(&mut loader, layer, &mut rotaries)).collect::<Result<Vec<_>>>()?;
        let final_norm = norm(&mut loader, Site::FinalNorm)?;
        let unembedding =
            if description.tied { Linear { weight: embedding.shallow_clone(), bias: None } } else { loader.module(Site::Unembedding)? };
        loader.check_for_more()?;
        let info = info(source, &config, &description, fingerprint(&description, &shards)?, loader.parameters)?;
        let described = serde_json::to_string(&description).map_err(|error| config.wrong(error.to_string()))?;
        Ok(Self {
            info,
            description: described,
            placement: (device, kind),
            without_weights,
            embedding_scale: description.embedding_scale,
            logits_cap: description.caps.logits,
            embedding,
            positions,
            rotaries: rotaries.0.iter().map(|form| Rotary::new(form, device, kind)).collect(),
            blocks,
            final_norm,
            unembedding,
        })
    }
}

/// A key of `config.json` that is ours, for models of any family that were post-trained for sparse attention.
#[derive(Deserialize)]
struct Gate {
    #[serde(default)]
    attention_gate: bool,
}

/// The different rotary embeddings of a model's layers.
#[derive(Default)]
struct Rotaries(Vec<RotaryForm>);

impl Rotaries {
    fn place_of(&mut self, form: &RotaryForm) -> usize {
        self.0.iter().position(|known| known == form).unwrap_or_else(|| {
            self.0.push(form.clone());
            self.0.len() - 1
        })
    }
}

fn block(loader: &mut Loader<'_>, layer: usize, rotaries: &mut Rotaries) -> Result<Block> {
    let description = loader.description;
    Ok(Block {
        parallel: description.block == BlockForm::Parallel,
        attention: attention(loader, layer)?,
        norm1: optional_norm(loader, Site::Norm1(layer))?,
        post_norm1: optional_norm(loader, Site::PostNorm1(layer))?,
        norm2: optional_norm(loader, Site::Norm2(layer))?,
        mlp: Mlp {
            activation: description.mlp.activation,
            gate: if description.mlp.gated { Some(loader.module(Site::Gate(layer))?) } else { None },
            up: loader.module(Site::Up(layer))?,
            down: loader.module(Site::Down(layer))?,
        },
        post_norm2: optional_norm(loader, Site::PostNorm2(layer))?,
        rotary: description.rotary_of(layer).map(|form| rotaries.place_of(form)),
    })
}

fn attention(loader: &mut Loader<'_>, layer: usize) -> Result<Attention> {
    let description = loader.description;
    let norms = match description.query_key_norm {
        None => None,
        Some(spans) => Some(QueryKeyNorms {
            all_heads: spans == QueryKeyNorm::AllHeads,
            query: norm(loader, Site::QueryNorm(layer))?,
            key: norm(loader, Site::KeyNorm(layer))?,
        }),
    };
    Ok(Attention {
        heads: description.heads as i64,
        kv_heads: description.kv_heads as i64,
        d_head: description.d_head as i64,
        scale: description.scale.of(layer),
        cap: description.caps.scores,
        window: description.layer_form(layer).window.map(|window| i64::try_from(window).unwrap_or(i64::MAX)),
        gated: description.attention_gate,
        query: loader.module(Site::Query(layer))?,
        key: loader.module(Site::Key(layer))?,
        value: loader.module(Site::Value(layer))?,
        norms,
        output: loader.module(Site::Output(layer))?,
    })
}

fn optional_norm(loader: &mut Loader<'_>, site: Site) -> Result<Option<Norm>> {
    if site.exists(loader.description) { norm(loader, site).map(Some) } else { Ok(None) }
}

fn norm(loader: &mut Loader<'_>, site: Site) -> Result<Norm> {
    let form = loader.description.norm;
    let Linear { weight, bias } = loader.module(site)?;
    let gain = if form.kind == NormKind::RmsPlusOne { weight.to_kind(widened(weight.kind())) + 1.0 } else { weight };
    Ok(Norm { form, gain, bias })
}

fn info(source: &ModelSource, config: &ConfigFile, description: &Description, fingerprint: String, parameters: u64) -> Result<ModelInfo> {
    let stops = config.tokens("eos_token_id", description.vocabulary)?;
    Ok(ModelInfo {
        family: config.family.to_owned(),
        name: source.display_name(),
        fingerprint,
        layers: description.layers,
        d_model: description.d_model,
        heads: description.heads,
        kv_heads: description.kv_heads,
        d_head: description.d_head,
        d_mlp: description.d_mlp,
        vocabulary: description.vocabulary,
        context: description.context,
        parameters,
        bos: config.tokens("bos_token_id", description.vocabulary)?.first().copied(),
        eos: stops.first().copied(),
        stops,
    })
}
