//! Random small architectures against the second implementation.

use std::collections::BTreeMap;

use circuitlab_core::config::FloatKind;
use circuitlab_core::hooks::NoHooks;
use circuitlab_core::random::Stream;
use circuitlab_core::testing::model::conforms;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::json;
use tch::{Kind, Tensor};

use super::folder::{Folder, open};
use super::reference::{Model, Stretch};

/// What a case draws; the rest follows.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "these are the switches of the configs")]
struct Plan {
    model: Model,
    d_model: usize,
    d_mlp: usize,
    attention_bias: bool,
    mlp_bias: bool,
    tied: bool,
    old_dialect: bool,
    seed: u64,
}

fn stretches() -> impl Strategy<Value = Stretch> {
    prop_oneof![
        Just(Stretch::None),
        (1.5..8.0).prop_map(|factor| Stretch::Linear { factor }),
        (1.5..32.0, 0.5..2.0, 1.0..4.0, 8.0..64.0_f64).prop_map(|(factor, low, more, original)| Stretch::Llama3 {
            factor,
            low,
            high: low + more,
            original: original.floor()
        }),
    ]
}

fn plans() -> impl Strategy<Value = Plan> {
    let sizes = (1..3_usize, 1..3_usize, 1..4_usize, 1..5_usize, 1..9_usize, 1..12_usize);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let rest = (stretches(), prop::sample::select(vec!["silu", "relu", "gelu_new", "gelu"]), 10.0..100_000.0, any::<u64>());
    (sizes, flags, rest).prop_map(|(sizes, flags, (stretch, activation, theta, seed))| {
        let (layers, kv_heads, group, half, d_model, d_mlp) = sizes;
        let (gpt2, attention_bias, mlp_bias, tied, old_dialect, scaled, scaled_by_layer) = flags;
        // GPT-2's heads share its width and may be odd; rotary ones may not.
        let (kv_heads, group, d_head) = if gpt2 { (kv_heads * group, 1, half) } else { (kv_heads, group, 2 * half) };
        let heads = kv_heads * group;
        let d_model = if gpt2 { heads * d_head } else { d_model };
        let model = Model {
            layers,
            heads,
            kv_heads,
            d_head,
            vocabulary: 11,
            gpt2,
            eps: 1e-3,
            theta: f64::floor(theta),
            stretch,
            activation,
            scaled: scaled || !gpt2,
            scaled_by_layer: scaled_by_layer && gpt2,
            weights: BTreeMap::new(),
        };
        Plan { model, d_model, d_mlp, attention_bias, mlp_bias, tied, old_dialect, seed }
    })
}

/// Makes weights, gives each to the reference and to a file.
struct Maker {
    stream: Stream,
    reference: BTreeMap<String, Vec<Vec<f64>>>,
    file: Vec<(String, Tensor)>,
}

impl Maker {
    fn rows(&mut self, name: &str, rows: usize, columns: usize) -> Tensor {
        let make = |stream: &mut Stream| f64::from((stream.uniform() * 2.0 - 1.0) as f32);
        let rows: Vec<Vec<f64>> = (0..rows).map(|_| (0..columns).map(|_| make(&mut self.stream)).collect()).collect();
        let tensor = Tensor::from_slice(&rows.concat()).view([rows.len() as i64, columns as i64]).to_kind(Kind::Float);
        self.reference.insert(name.to_owned(), rows);
        tensor
    }

    fn table(&mut self, name: &str, stored: &str, rows: usize, columns: usize) {
        let tensor = self.rows(name, rows, columns);
        self.file.push((stored.to_owned(), tensor));
    }

    fn vector(&mut self, name: &str, stored: &str, size: usize) {
        let tensor = self.rows(name, 1, size).squeeze_dim(0);
        self.file.push((stored.to_owned(), tensor));
    }

    /// A linear map of block `layer`; the reference keeps `[in][out]`.
    fn linear(&mut self, name: &str, layer: usize, stored: &str, sizes: [usize; 2], bias: bool, transpose: bool) {
        let weight = self.rows(&format!("w{name}.{layer}"), sizes[0], sizes[1]);
        let weight = if transpose { weight.tr().contiguous() } else { weight };
        self.file.push((format!("{stored}.weight"), weight));
        if bias {
            self.vector(&format!("b{name}.{layer}"), &format!("{stored}.bias"), sizes[1]);
        }
    }
}

impl Plan {
    fn weights(&mut self) -> Vec<(String, Tensor)> {
        let mut maker = Maker { stream: Stream::new(self.seed, "weights", 0), reference: BTreeMap::new(), file: Vec::new() };
        let (vocabulary, d_model) = (self.model.vocabulary, self.d_model);
        let (embed, unembed) =
            if self.model.gpt2 { ("transformer.wte.weight", "lm_head.weight") } else { ("model.embed_tokens.weight", "lm_head.weight") };
        maker.table("embed", embed, vocabulary, d_model);
        if self.tied {
            let same = maker.reference["embed"].clone();
            maker.reference.insert("unembed".into(), same);
        } else {
            maker.table("unembed", unembed, vocabulary, d_model);
        }
        if self.model.gpt2 {
            self.gpt2(&mut maker);
        } else {
            self.llama(&mut maker);
        }
        self.model.weights = maker.reference;
        maker.file
    }

    fn llama(&self, maker: &mut Maker) {
        let (queries, keys) = (self.model.heads * self.model.d_head, self.model.kv_heads * self.model.d_head);
        for layer in 0..self.model.layers {
            let at = |name: &str| format!("model.layers.{layer}.{name}");
            let (d, bias) = (self.d_model, self.attention_bias);
            maker.vector(&format!("norm1.{layer}.gain"), &at("input_layernorm.weight"), d);
            maker.vector(&format!("norm2.{layer}.gain"), &at("post_attention_layernorm.weight"), d);
            maker.linear("q", layer, &at("self_attn.q_proj"), [d, queries], bias, true);
            maker.linear("k", layer, &at("self_attn.k_proj"), [d, keys], bias, true);
            maker.linear("v", layer, &at("self_attn.v_proj"), [d, keys], bias, true);
            maker.linear("o", layer, &at("self_attn.o_proj"), [queries, d], bias, true);
            maker.linear("gate", layer, &at("mlp.gate_proj"), [d, self.d_mlp], self.mlp_bias, true);
            maker.linear("up", layer, &at("mlp.up_proj"), [d, self.d_mlp], self.mlp_bias, true);
            maker.linear("down", layer, &at("mlp.down_proj"), [self.d_mlp, d], self.mlp_bias, true);
        }
        maker.vector("norm_final.gain", "model.norm.weight", self.d_model);
    }

    fn gpt2(&self, maker: &mut Maker) {
        let d = self.d_model;
        maker.table("positions", "transformer.wpe.weight", 16, d);
        for layer in 0..self.model.layers {
            let at = |name: &str| format!("transformer.h.{layer}.{name}");
            for (norm, stored) in [("norm1", "ln_1"), ("norm2", "ln_2")] {
                maker.vector(&format!("{norm}.{layer}.gain"), &at(&format!("{stored}.weight")), d);
                maker.vector(&format!("{norm}.{layer}.bias"), &at(&format!("{stored}.bias")), d);
            }
            let first = maker.file.len();
            for part in ["q", "k", "v"] {
                maker.linear(part, layer, part, [d, d], true, false);
            }
            let parts: Vec<Tensor> = maker.file.drain(first..).map(|(_, tensor)| tensor).collect();
            let fused = |from: usize| Tensor::cat(&[&parts[from], &parts[from + 2], &parts[from + 4]], -1);
            maker.file.extend([(at("attn.c_attn.weight"), fused(0)), (at("attn.c_attn.bias"), fused(1))]);
            maker.linear("o", layer, &at("attn.c_proj"), [d, d], true, false);
            maker.linear("up", layer, &at("mlp.c_fc"), [d, self.d_mlp], true, false);
            maker.linear("down", layer, &at("mlp.c_proj"), [self.d_mlp, d], true, false);
        }
        maker.vector("norm_final.gain", "transformer.ln_f.weight", d);
        maker.vector("norm_final.bias", "transformer.ln_f.bias", d);
    }

    fn config(&self) -> serde_json::Value {
        let model = &self.model;
        if model.gpt2 {
            return json!({
                "model_type": "gpt2", "n_embd": self.d_model, "n_layer": model.layers, "n_head": model.heads, "n_inner": self.d_mlp,
                "n_positions": 16, "vocab_size": model.vocabulary, "activation_function": model.activation,
                "layer_norm_epsilon": model.eps, "scale_attn_weights": model.scaled,
                "scale_attn_by_inverse_layer_idx": model.scaled_by_layer, "tie_word_embeddings": self.tied,
            });
        }
        let mut config = json!({
            "model_type": "llama", "hidden_size": self.d_model, "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads, "num_key_value_heads": model.kv_heads, "head_dim": model.d_head,
            "intermediate_size": self.d_mlp, "vocab_size": model.vocabulary, "max_position_embeddings": 16,
            "hidden_act": model.activation, "rms_norm_eps": model.eps, "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias, "tie_word_embeddings": self.tied,
        });
        let mut table = match model.stretch {
            Stretch::None => json!({ "rope_type": "default" }),
            Stretch::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            Stretch::Llama3 { factor, low, high, original } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }),
        };
        if self.old_dialect {
            config["rope_theta"] = model.theta.into();
            config["rope_scaling"] = if matches!(model.stretch, Stretch::None) { json!(null) } else { table };
        } else {
            table["rope_theta"] = model.theta.into();
            config["rope_parameters"] = table;
        }
        config
    }

    fn folder(&mut self) -> Folder {
        let folder = Folder::empty();
        let weights = self.weights();
        folder.write_tensors("model.safetensors", &weights);
        folder.write("config.json", self.config().to_string().as_bytes());
        folder
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn random_architectures_match_the_second_implementation(mut plan in plans(), ids in prop::collection::vec(0..11_usize, 1..=12)) {
        let folder = plan.folder();
        let family = if plan.model.gpt2 { "gpt2" } else { "llama" };
        let want: Vec<f64> = plan.model.logits(&ids).concat();
        let want = Tensor::from_slice(&want).view([1, ids.len() as i64, 11]);
        let tokens = Tensor::from_slice(&ids.iter().map(|id| *id as i64).collect::<Vec<_>>()).unsqueeze(0);
        // In f64 both sides round at 1e-16; the norms of narrow streams and sharp softmaxes cost some digits. In f32 it is 6e-8.
        for (dtype, tolerance) in [(FloatKind::F64, 1e-10), (FloatKind::F32, 1e-3)] {
            let model = open(family, folder.path(), dtype).expect("opens");
            let logits = model.forward(&tokens, &mut NoHooks).expect("runs").expect("is not stopped").to_kind(Kind::Double);
            let error = (&logits - &want).abs().max().double_value(&[]) / want.abs().max().double_value(&[]).max(1.0);
            prop_assert!(error <= tolerance, "{dtype:?}: off by {error:e}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn random_architectures_conform(mut plan in plans().prop_filter("a change can be seen", |plan| plan.d_model > 3 && plan.d_mlp > 3)) {
        // A ReLU that is off everywhere would hide a change.
        plan.model.activation = "silu";
        let folder = plan.folder();
        conforms(&*open(if plan.model.gpt2 { "gpt2" } else { "llama" }, folder.path(), FloatKind::F64).expect("opens"));
    }
}
