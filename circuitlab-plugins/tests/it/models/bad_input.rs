//! Folders and tokens that are wrong are answered with an error that says how.

use std::fs;

use circuitlab_core::config::FloatKind;
use circuitlab_core::hooks::NoHooks;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::folder::{Folder, fixture, open, refusal};

/// What the error says after a change of the recorded model's config.
fn configured(name: &str, family: &str, changes: &serde_json::Value) -> String {
    let folder = Folder::copy_of(name);
    folder.configure(changes);
    refusal(family, folder.path())
}

fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

#[test]
fn damaged_weights_are_named() {
    let folder = Folder::copy_of("llama");
    let path = folder.join("model.safetensors");
    let whole = fs::read(&path).expect("reads");
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        folder.write("model.safetensors", &whole[..length]);
        assert_says(&refusal("llama", folder.path()), &["model.safetensors", "not a whole safetensors file"]);
    }
    fs::remove_file(path).expect("is there");
    assert_says(&refusal("llama", folder.path()), &["it holds no weights", "model.safetensors.index.json"]);
}

#[test]
fn tensors_that_do_not_fit_the_config_are_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let missing = Folder::copy_of("llama");
    missing.edit(|named| named.retain(|(of, _)| of != name));
    assert_says(
        &refusal("llama", missing.path()),
        &["model.safetensors", "it has no tensor `model.layers.1.mlp.up_proj.weight`", "nearest"],
    );

    let shape = Folder::copy_of("llama");
    shape.edit(|named| named.iter_mut().filter(|(of, _)| of == name).for_each(|(_, tensor)| *tensor = tensor.tr().contiguous()));
    assert_says(&refusal("llama", shape.path()), &[name, "[48, 80]", "[80, 48]"]);

    let kind = Folder::copy_of("llama");
    kind.edit(|named| named.iter_mut().filter(|(of, _)| of == name).for_each(|(_, tensor)| *tensor = tensor.to_kind(Kind::Int64)));
    assert_says(&refusal("llama", kind.path()), &[name, "stored as I64", "BF16"]);

    assert_says(&configured("gpt2", "gpt2", &json!({"vocab_size": 130})), &["transformer.wte.weight", "[131, 48]", "[130, 48]"]);
    assert_says(&configured("gpt2", "gpt2", &json!({"n_layer": 4})), &["it has no tensor `transformer.h.3.attn.c_attn.weight`"]);
    assert_says(
        &configured("llama", "llama", &json!({"attention_bias": true})),
        &["it has no tensor `model.layers.0.self_attn.q_proj.bias`"],
    );
    assert_says(&configured("llama", "llama", &json!({"tie_word_embeddings": false})), &["it has no tensor `lm_head.weight`"]);
}

#[test]
fn tensors_that_the_config_leaves_out_are_named() {
    assert_says(
        &configured("llama", "llama", &json!({"num_hidden_layers": 2})),
        &["model.layers.2.input_layernorm.weight", "does not fit"],
    );
    let biased = Folder::copy_of("llama");
    let bias = Tensor::ones([80], (Kind::Float, Device::Cpu));
    biased.edit(|named| named.push(("model.layers.0.mlp.up_proj.bias".into(), bias)));
    assert_says(&refusal("llama", biased.path()), &["model.layers.0.mlp.up_proj.bias", "does not fit"]);
}

#[test]
fn options_that_are_not_supported_are_named() {
    let llama = |changes| configured("llama", "llama", &changes);
    assert_says(&llama(json!({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}})), &["unknown rope type `dynamic`", "llama3"]);
    assert_says(&llama(json!({"rope_parameters": {"rope_type": "llama3"}})), &["`llama3` needs `factor`"]);
    assert_says(&llama(json!({"rope_parameters": {"rope_type": "linear", "factor": 0.0}})), &["factor is 0"]);
    assert_says(&llama(json!({"rope_parameters": {"rope_tipe": "linear"}})), &["rope_tipe"]);
    assert_says(&llama(json!({"rope_scaling": {"type": "linear", "factor": 2.0}})), &["`rope_parameters` and `rope_scaling` differ"]);
    assert_says(&llama(json!({"hidden_act": "mish"})), &["unknown `hidden_act` `mish`", "silu"]);
    assert_says(&llama(json!({"partial_rotary_factor": 0.25})), &["`partial_rotary_factor`", "0.25"]);
    assert_says(&llama(json!({"quantization_config": {"bits": 4}})), &["`quantization_config`"]);
    assert_says(&llama(json!({"num_key_value_heads": 3})), &["3 key and value heads do not divide 4"]);
    assert_says(&llama(json!({"head_dim": 13})), &["13 rotary dimensions"]);
    assert_says(&llama(json!({"num_attention_heads": 0})), &["heads is 0"]);
    assert_says(&llama(json!({"num_hidden_layers": 1 << 28})), &["it has no tensor `model.layers.3.self_attn.q_proj.weight`"]);
    assert_says(&llama(json!({"hidden_size": u64::MAX})), &["d_model is"]);
    assert_says(&llama(json!({"hidden_size": "wide"})), &["config.json", "hidden_size"]);
    assert_says(&llama(json!({"hidden_size": null})), &["config.json", "hidden_size"]);
    assert_says(&llama(json!({"bos_token_id": -1})), &["`bos_token_id`", "-1"]);
    assert_says(&llama(json!({"eos_token_id": [1, 131]})), &["`eos_token_id` is 131, and the vocabulary has 131 tokens"]);
    assert_says(&llama(json!({"model_type": "gpt2"})), &["it is of model family `gpt2`, not `llama`"]);
    assert_says(&configured("gpt2", "gpt2", &json!({"add_cross_attention": true})), &["`add_cross_attention` of `true`"]);
    assert_says(&configured("gpt2", "gpt2", &json!({"n_head": 5})), &["5 heads do not divide the width 48"]);
    assert_says(&configured("gpt2", "gpt2", &json!({"n_inner": 191})), &["[48, 192]", "[48, 191]"]);
}

#[test]
fn bad_indices_are_named() {
    let folder = Folder::copy_of("llama");
    fs::rename(folder.join("model.safetensors"), folder.join("part.safetensors")).expect("is there");
    let index = |value: serde_json::Value| {
        folder.write("model.safetensors.index.json", value.to_string().as_bytes());
        refusal("llama", folder.path())
    };
    assert_says(&index(json!({"weights": {}})), &["model.safetensors.index.json", "weight_map"]);
    assert_says(&index(json!({"weight_map": {"model.norm.weight": "../part.safetensors"}})), &["no plain file name"]);
    assert_says(&index(json!({"weight_map": {"model.norm.weight": "other.safetensors"}})), &["cannot read", "other.safetensors"]);
    assert_says(&index(json!({"weight_map": {"model.norm.wait": "part.safetensors"}})), &["it has no tensor `model.norm.wait`"]);
    assert_says(
        &index(json!({"weight_map": {"model.norm.weight": "part.safetensors"}})),
        &["index.json", "no tensor `model.embed_tokens.weight`"],
    );
}

#[test]
fn bad_tokens_are_named() {
    let model = open("llama", &fixture("llama"), FloatKind::F32).expect("opens");
    let refused = |tokens: &Tensor| model.forward(tokens, &mut NoHooks).expect_err("bad tokens").to_string();
    assert_says(&refused(&Tensor::from_slice(&[3_i64, 131]).unsqueeze(0)), &["token 131 is outside of the vocabulary", "0 to 130"]);
    assert_says(&refused(&Tensor::from_slice(&[3_i64, -5]).unsqueeze(0)), &["token -5"]);
    assert_says(&refused(&Tensor::zeros([1, 129], (Kind::Int64, Device::Cpu))), &["129 positions", "128 tokens"]);
    assert_says(&refused(&Tensor::zeros([4], (Kind::Int64, Device::Cpu))), &["[batch=any, position=any]", "[4]"]);
    assert_says(&refused(&Tensor::zeros([1, 4], (Kind::Int, Device::Cpu))), &["expected int64"]);
    assert_says(&refused(&Tensor::zeros([0, 4], (Kind::Int64, Device::Cpu))), &["[0, 4]"]);
}

#[test]
fn a_fine_tune_changes_the_fingerprint_and_a_rename_does_not() {
    let print = |folder: &Folder| open("llama", folder.path(), FloatKind::F32).expect("opens").info().fingerprint.clone();
    let (first, second, tuned) = (Folder::copy_of("llama"), Folder::copy_of("llama"), Folder::copy_of("llama"));
    tuned.edit(|named| named.iter_mut().for_each(|(_, tensor)| *tensor = &*tensor * 1.001));
    assert_eq!(print(&first).len(), 64);
    assert_eq!(print(&first), print(&second));
    assert_ne!(print(&first), print(&tuned));
    let one_weight = Folder::copy_of("llama");
    one_weight.edit(|named| {
        let (_, weight) = named.iter_mut().find(|(name, _)| name == "model.layers.1.mlp.down_proj.weight").expect("is there");
        let _ = weight.get(24).get(40).fill_(0.125);
    });
    assert_ne!(print(&first), print(&one_weight));
    second.configure(&json!({"rms_norm_eps": 1e-5}));
    assert_ne!(print(&first), print(&second));
    first.configure(&json!({"transformers_version": "6"}));
    second.configure(&json!({"rms_norm_eps": 1e-6}));
    assert_eq!(print(&first), print(&second));
}
