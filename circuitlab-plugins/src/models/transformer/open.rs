//! Building a transformer from a folder.

use circuitlab_core::{Error, ModelInfo, ModelSource, Result};
use tch::{Device, Kind};

use super::attention::Attention;
use super::block::Block;
use super::description::{Description, Position};
use super::family::Family;
use super::fingerprint::fingerprint;
use super::forward::Transformer;
use super::mlp::Mlp;
use super::norm::Norm;
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
        let description = (family.describe)(&config)?;
        description.check().map_err(|error| config.wrong(error.to_string()))?;
        let shards = Shards::open(&source.path)?;
        let (device, kind) = (source.device.0, Kind::from(source.dtype));
        let mut loader = Loader { family, description: &description, shards: &shards, device, kind, parameters: 0 };
        let embedding = loader.module(Site::Embedding)?.weight;
        let positions = if Site::Positions.exists(&description) { Some(loader.module(Site::Positions)?.weight) } else { None };
        let blocks = (0..description.layers).map(|layer| block(&mut loader, layer)).collect::<Result<Vec<_>>>()?;
        let final_norm = norm(&mut loader, Site::FinalNorm)?;
        let unembedding =
            if description.tied { Linear { weight: embedding.shallow_clone(), bias: None } } else { loader.module(Site::Unembedding)? };
        loader.check_for_more()?;
        let info = info(source, &config, &description, fingerprint(&description, &shards)?, loader.parameters)?;
        let rotary = rotary(&description, device, kind);
        Ok(Self { info, embedding, positions, rotary, blocks, final_norm, unembedding })
    }
}

fn rotary(description: &Description, device: Device, kind: Kind) -> Option<Rotary> {
    match &description.position {
        Position::Learned => None,
        Position::Rotary(form) => Some(Rotary::new(form, device, kind)),
    }
}

fn block(loader: &mut Loader<'_>, layer: usize) -> Result<Block> {
    let description = loader.description;
    let attention = Attention {
        heads: description.heads as i64,
        kv_heads: description.kv_heads as i64,
        d_head: description.d_head as i64,
        scale: description.scale.of(layer),
        query: loader.module(Site::Query(layer))?,
        key: loader.module(Site::Key(layer))?,
        value: loader.module(Site::Value(layer))?,
        output: loader.module(Site::Output(layer))?,
    };
    let mlp = Mlp {
        activation: description.mlp.activation,
        gate: if description.mlp.gated { Some(loader.module(Site::Gate(layer))?) } else { None },
        up: loader.module(Site::Up(layer))?,
        down: loader.module(Site::Down(layer))?,
    };
    Ok(Block { norm1: norm(loader, Site::Norm1(layer))?, attention, norm2: norm(loader, Site::Norm2(layer))?, mlp })
}

fn norm(loader: &mut Loader<'_>, site: Site) -> Result<Norm> {
    let Linear { weight, bias } = loader.module(site)?;
    Ok(Norm { form: loader.description.norm, gain: weight, bias })
}

fn info(source: &ModelSource, config: &ConfigFile, description: &Description, fingerprint: String, parameters: u64) -> Result<ModelInfo> {
    let bos = config.token("bos_token_id")?;
    if let Some(token) = bos.filter(|token| *token as usize >= description.vocabulary) {
        let message = format!("`bos_token_id` is {token}, and the vocabulary has {} tokens", description.vocabulary);
        return Err(Error::format(source.path.join("config.json"), message));
    }
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
        bos,
        eos: config.token("eos_token_id")?,
    })
}
