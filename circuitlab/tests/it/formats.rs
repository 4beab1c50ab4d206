//! Transcoders of circuit-tracer, as its own numbers have them.

use std::path::{Path, PathBuf};

use circuitlab::saved::SavedTranscoder;
use circuitlab_core::Registry;
use circuitlab_core::config::{DeviceName, FloatKind};
use circuitlab_core::tensors::TensorFile;
use tch::{Device, Kind, Tensor};

fn registry() -> Registry {
    circuitlab_plugins::link();
    Registry::linked().expect("no name twice")
}

fn graphs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/graphs")
}

fn opened(folder: &Path) -> SavedTranscoder {
    SavedTranscoder::open(&registry(), folder, DeviceName::default(), FloatKind::F32).expect("opens")
}

/// Activations and reconstructions of circuit-tracer's own inputs are circuit-tracer's.
fn is_the_oracles(transcoder: &str, case: &str) {
    let saved = opened(&graphs().join(transcoder));
    let oracle = TensorFile::open(&graphs().join("cases").join(case).join("oracle.safetensors")).expect("opens");
    let read = |name: &str| oracle.tensor(name, None, Device::Cpu).expect("is there");
    let (inputs, outputs, errors) = (read("feature_in"), read("feature_out"), read("error_vectors"));
    let mut acts = Vec::new();
    for layer in 0..saved.dims.layers {
        let of_layer = inputs.get(layer as i64);
        acts.push(saved.encode(layer, &of_layer).expect("encodes"));
        let error = outputs.get(layer as i64) - saved.decode(&acts, &of_layer, layer).expect("decodes");
        let _ = error.get(0).zero_();
        let apart = (error - errors.get(layer as i64)).abs().max().double_value(&[]);
        assert!(apart < 5e-5, "{case}, layer {layer}: {apart} apart");
    }
    let acts = Tensor::stack(&acts, 0);
    let _ = acts.select(1, 0).zero_();
    let active = acts.nonzero();
    assert_eq!(active, read("active_features"), "{case}: active features");
    let values = acts.masked_select(&acts.not_equal(0.0));
    let apart = (values - read("activation_values")).abs().max().double_value(&[]);
    assert!(apart < 5e-5, "{case}: activations {apart} apart");
}

#[test]
fn reconstructions_are_those_of_circuit_tracer() {
    is_the_oracles("gpt2_clt", "gpt2_clt_full");
    is_the_oracles("llama_clt", "llama_clt_full");
    is_the_oracles("llama_plt_topk", "llama_plt_topk");
    is_the_oracles("llama_plt_relu_skip", "llama_plt_relu_skip");
}

#[test]
fn a_skip_of_a_folder_is_in_the_dictionary() {
    let saved = opened(&graphs().join("llama_plt_relu_skip"));
    let dictionary = saved.transcoder.dictionary(&saved.params, 2).expect("linear");
    let file = TensorFile::open(&saved.folder.join("layer_2.safetensors")).expect("opens");
    let skip = file.tensor("W_skip", Some(Kind::Float), Device::Cpu).expect("is there");
    assert_eq!(dictionary.skip.expect("has one"), skip);
    let none = opened(&graphs().join("llama_plt_topk"));
    assert!(none.transcoder.dictionary(&none.params, 0).expect("linear").skip.is_none());
}
