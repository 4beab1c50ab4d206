//! A random language model and a random transcoder of it.

use std::path::{Path, PathBuf};

use circuitlab::graph::Prompt;
use circuitlab::saved::{Card, SavedTranscoder};
use circuitlab_core::files::write_atomic;
use circuitlab_core::random::Stream;
use circuitlab_core::{
    BlockHook, Dims, HookPoint, Init, LanguageModel, ModelSource, ParameterSpec, Parameters, Precision, Registry, SparsityActivation, Spec,
    Transcoder, Update, tensors,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::args::BenchAttributeArgs;

/// Width of a head.
const D_HEAD: usize = 64;
const VOCABULARY: usize = 1024;
const SEED: u64 = 0;

/// What is attributed.
pub(super) struct Subject {
    pub(super) model: Box<dyn LanguageModel>,
    pub(super) saved: SavedTranscoder,
    pub(super) prompt: Prompt,
}

impl Subject {
    /// A Llama, and a cross-layer transcoder with thresholds at which about as many features are active as asked for.
    pub(super) fn new(args: &BenchAttributeArgs, folder: &Path, registry: &Registry) -> anyhow::Result<Self> {
        let model = model(args, folder, registry)?;
        let mut stream = Stream::new(SEED, "tokens", 0);
        let tokens = (0..args.tokens).map(|_| (stream.uniform() * VOCABULARY as f64) as u32).collect();
        let prompt = Prompt::of_tokens(tokens, None, model.info())?;
        let saved = transcoder(args, registry, model.as_ref(), &prompt)?;
        Ok(Self { model, saved, prompt })
    }
}

fn spec(name: String, shape: &[usize], init: Init) -> ParameterSpec {
    let shape = shape.iter().map(|size| *size as i64).collect();
    ParameterSpec { name, layer: 0, shape, init, per_feature: false, update: Update::Gradient, precision: Precision::Full }
}

/// Numbers whose squares have the mean `1 / width`.
fn uniform(width: usize) -> Init {
    Init::Uniform { limit: (3.0 / width as f64).sqrt() }
}

fn model(args: &BenchAttributeArgs, folder: &Path, registry: &Registry) -> anyhow::Result<Box<dyn LanguageModel>> {
    let d_model = args.d_model;
    anyhow::ensure!(d_model.is_multiple_of(D_HEAD), "--d-model: expected a multiple of {D_HEAD}, the width of a head");
    let (heads, d_mlp) = (d_model / D_HEAD, 2 * d_model);
    let mut specs = Vec::new();
    let one = Init::Constant(1.0);
    for layer in 0..args.layers {
        let name = |module: &str| format!("model.layers.{layer}.{module}.weight");
        for module in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            specs.push(spec(name(&format!("self_attn.{module}")), &[d_model, d_model], uniform(d_model)));
        }
        specs.push(spec(name("mlp.gate_proj"), &[d_mlp, d_model], uniform(d_model)));
        specs.push(spec(name("mlp.up_proj"), &[d_mlp, d_model], uniform(d_model)));
        specs.push(spec(name("mlp.down_proj"), &[d_model, d_mlp], uniform(d_mlp)));
        specs.push(spec(name("input_layernorm"), &[d_model], one));
        specs.push(spec(name("post_attention_layernorm"), &[d_model], one));
    }
    specs.push(spec("model.embed_tokens.weight".to_owned(), &[VOCABULARY, d_model], uniform(1)));
    specs.push(spec("lm_head.weight".to_owned(), &[VOCABULARY, d_model], uniform(d_model)));
    specs.push(spec("model.norm.weight".to_owned(), &[d_model], one));
    let drawn = Parameters::init(specs, SEED, Kind::Float, Device::Cpu)?;
    let named: Vec<(String, Tensor)> =
        drawn.specs().iter().map(|spec| spec.name.clone()).zip(drawn.values().iter().map(Tensor::shallow_clone)).collect();
    let config = json!({
        "model_type": "llama", "hidden_size": d_model, "intermediate_size": d_mlp, "num_hidden_layers": args.layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": args.tokens, "hidden_act": "silu", "tie_word_embeddings": false,
    });
    tensors::write(&folder.join("model.safetensors"), &named)?;
    write_atomic(&folder.join("config.json"), |out| out.write_all(config.to_string().as_bytes()))?;
    Ok(circuitlab::model::open(registry, &ModelSource::new(folder))?)
}

fn transcoder(
    args: &BenchAttributeArgs,
    registry: &Registry,
    model: &dyn LanguageModel,
    prompt: &Prompt,
) -> anyhow::Result<SavedTranscoder> {
    let dims = Dims { layers: args.layers, d_model: args.d_model, d_features: args.features };
    let transcoder = registry.build::<dyn Transcoder>(&Spec::named("clt"))?;
    let activation = registry.build::<dyn SparsityActivation>(&Spec::named("jumprelu").with("parameterisation", "direct"))?;
    let params = Parameters::init(transcoder.parameters(dims, &*activation)?, SEED, Kind::Float, Device::Cpu)?;
    let card = Card {
        feature_input_hook: BlockHook::ResidMid.name().to_owned(),
        feature_output_hook: BlockHook::MlpOut.name().to_owned(),
        ..Card::default()
    };
    let mut saved = SavedTranscoder { folder: PathBuf::from("random"), card, dims, params, transcoder, activation };
    let ids: Vec<i64> = prompt.tokens.iter().map(|id| i64::from(*id)).collect();
    let points = (0..args.layers).map(|layer| HookPoint::block(layer, BlockHook::ResidMid));
    let mut capture = circuitlab::model::Capture::new(points);
    tch::no_grad(|| model.forward(&Tensor::from_slice(&ids).unsqueeze(0), &mut capture))?;
    // Each layer's threshold is passed by an equal share of its pre-activations.
    let each = (args.active / args.layers).max(1) as i64;
    for layer in 0..args.layers {
        let read = capture.take(HookPoint::block(layer, BlockHook::ResidMid))?.f_squeeze_dim(0)?.f_narrow(0, 1, args.tokens as i64 - 1)?;
        let own = saved.transcoder.dictionary(&saved.params, layer)?;
        let pre_acts = read.f_matmul(&own.w_enc.f_tr()?)?.f_flatten(0, 1)?;
        let place = each.min(pre_acts.size()[0] - 1);
        let (largest, _) = pre_acts.f_topk(place + 1, 0, true, true)?;
        let threshold = largest.f_get(place)?.f_clamp_min(0.0)?;
        let thresholds = threshold.f_expand([args.features as i64], false)?.f_contiguous()?;
        let names: Vec<String> = saved.params.specs().iter().filter(|spec| spec.layer == layer).map(|spec| spec.name.clone()).collect();
        for (name, value) in
            names.into_iter().filter(|name| name.contains("threshold")).zip(saved.activation.params_with_thresholds(Some(&thresholds))?)
        {
            saved.params.set(&name, value)?;
        }
    }
    Ok(saved)
}
