//! A small model with random weights, in a temporary folder.

use std::collections::BTreeMap;
use std::path::Path;

use circuitlab_core::random::Stream;
use circuitlab_core::tch::{Kind, Tensor};
use circuitlab_core::{files, tensors};
use serde_json::{Value, json};

use crate::reference::{Sizes, Weights};

/// What a config may switch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Switches {
    pub(crate) biased: bool,
    pub(crate) tied: bool,
}

/// The folder, which is removed when this is dropped.
pub(crate) struct Folder {
    place: tempfile::TempDir,
    config: Value,
    named: Vec<(String, Tensor)>,
}

impl Folder {
    pub(crate) fn new(sizes: Sizes, switches: Switches) -> Self {
        let config = json!({
            "model_type": "starcoder2", "hidden_size": sizes.width, "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads, "intermediate_size": sizes.hidden,
            "vocab_size": sizes.vocabulary, "max_position_embeddings": 32, "sliding_window": null, "norm_epsilon": sizes.eps,
            "hidden_act": "gelu_pytorch_tanh", "rope_theta": sizes.theta, "use_bias": switches.biased,
            "tie_word_embeddings": switches.tied,
        });
        let shapes = shapes(&sizes, switches);
        let named: Vec<(String, Tensor)> = shapes.into_iter().map(|(name, shape)| (name.clone(), random(&name, &shape))).collect();
        let folder = Self { place: tempfile::tempdir().expect("a temporary folder"), config, named };
        tensors::write(&folder.path().join("model.safetensors"), &folder.named).expect("writes");
        folder.configure(&json!({}));
        folder
    }

    pub(crate) fn path(&self) -> &Path {
        self.place.path()
    }

    /// Writes `config.json` with some keys changed.
    pub(crate) fn configure(&self, changes: &Value) {
        let mut config = self.config.clone();
        for (key, value) in changes.as_object().expect("a table") {
            config[key] = value.clone();
        }
        let text = config.to_string();
        files::write_atomic(&self.path().join("config.json"), |out| out.write_all(text.as_bytes())).expect("writes");
    }

    /// The numbers of every tensor, row after row.
    pub(crate) fn weights(&self) -> Weights {
        let numbers = |tensor: &Tensor| Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).expect("a list of f64");
        self.named.iter().map(|(name, tensor)| (name.clone(), numbers(tensor))).collect::<BTreeMap<_, _>>()
    }
}

/// The tensors of a Starcoder2 file.
fn shapes(sizes: &Sizes, switches: Switches) -> Vec<(String, Vec<usize>)> {
    let (width, keys) = (sizes.width, sizes.width / sizes.heads * sizes.kv_heads);
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![sizes.vocabulary, width])];
    let mut module = |name: String, shape: &[usize], biased: bool| {
        shapes.push((format!("{name}.weight"), shape.to_vec()));
        if biased {
            shapes.push((format!("{name}.bias"), shape[..1].to_vec()));
        }
    };
    for layer in 0..sizes.layers {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        module(at("input_layernorm"), &[width], true);
        module(at("self_attn.q_proj"), &[width, width], switches.biased);
        module(at("self_attn.k_proj"), &[keys, width], switches.biased);
        module(at("self_attn.v_proj"), &[keys, width], switches.biased);
        module(at("self_attn.o_proj"), &[width, width], switches.biased);
        module(at("post_attention_layernorm"), &[width], true);
        module(at("mlp.c_fc"), &[sizes.hidden, width], switches.biased);
        module(at("mlp.c_proj"), &[width, sizes.hidden], switches.biased);
    }
    module("model.norm".to_owned(), &[width], true);
    if !switches.tied {
        module("lm_head".to_owned(), &[sizes.vocabulary, width], false);
    }
    shapes
}

/// Numbers between -1 and 1 that 32-bit floats hold exactly.
fn random(name: &str, shape: &[usize]) -> Tensor {
    let mut stream = Stream::new(5, name, 0);
    let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| (2.0 * stream.uniform() - 1.0) as f32).collect();
    Tensor::from_slice(&numbers).view(shape.iter().map(|size| *size as i64).collect::<Vec<_>>().as_slice())
}
