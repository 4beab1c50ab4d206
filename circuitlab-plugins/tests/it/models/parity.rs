//! Against what Hugging Face transformers computed in f32 with eager attention.

use circuitlab_core::config::FloatKind;
use circuitlab_core::hooks::NoHooks;
use circuitlab_core::tensors::TensorFile;
use circuitlab_core::testing::model::conforms;
use circuitlab_core::{Action, BlockHook, HookPoint, HookVisitor, LanguageModel, ModelSource, Result};
use tch::{Device, Kind, Tensor};

use super::folder::{Folder, fixture, open, open_source, repository};

/// Of the largest value of a tensor, or of 1. The largest error measured is 2.1e-6, as much as the recorded f32 values themselves
/// differ from f64.
const TOLERANCE: f64 = 4e-6;

const MODELS: [(&str, &str); 18] = [
    ("llama", "llama"),
    ("llama", "llama3-rope"),
    ("gpt2", "gpt2"),
    ("gpt2", "gpt2-gate"),
    ("mistral", "mistral"),
    ("qwen2", "qwen2"),
    ("qwen2", "qwen2-window"),
    ("qwen2", "qwen2-yarn"),
    ("qwen3", "qwen3"),
    ("qwen3", "qwen3-window"),
    ("gemma2", "gemma2"),
    ("gemma3_text", "gemma3"),
    ("gpt_neox", "gpt_neox"),
    ("gpt_neox", "gpt_neox-serial"),
    ("olmo2", "olmo2"),
    ("phi3", "phi3"),
    ("phi3", "phi3-long"),
    ("smollm3", "smollm3"),
];

/// Those that have every hook point between them.
const CONFORMING: [(&str, &str); 7] = [
    ("llama", "llama"),
    ("gpt2", "gpt2"),
    ("gpt2", "gpt2-gate"),
    ("gemma3_text", "gemma3"),
    ("gpt_neox", "gpt_neox"),
    ("olmo2", "olmo2"),
    ("phi3", "phi3"),
];

/// Compares the values at some places with a file's.
struct Compare<'a> {
    expected: &'a TensorFile,
    keys: Vec<(HookPoint, String)>,
}

impl Compare<'_> {
    fn with<'a>(expected: &'a TensorFile, layers: usize, hooks: &[(&str, BlockHook)]) -> Compare<'a> {
        let block = |layer| hooks.iter().map(move |(key, hook)| (HookPoint::block(layer, *hook), format!("{key}.{layer}")));
        Compare { expected, keys: (0..layers).flat_map(block).collect() }
    }

    fn compare(&mut self, key: &str, got: &Tensor) {
        let want = self.expected.tensor(key, None, Device::Cpu).expect("recorded");
        assert_eq!(want.size(), got.size(), "{key}");
        let error = (&want - got).abs().max().double_value(&[]);
        let largest = want.abs().max().double_value(&[]);
        assert!(error <= TOLERANCE * largest.max(1.0), "{key}: off by {error:e} of {largest}");
    }
}

impl HookVisitor for Compare<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        self.keys.iter().any(|(wanted, _)| *wanted == point)
    }

    fn visit(&mut self, point: HookPoint, value: &Tensor) -> Result<Action> {
        let key = self.keys.iter().find(|(wanted, _)| *wanted == point).map(|(_, key)| key.clone()).expect("it is wanted");
        self.compare(&key, value);
        Ok(Action::Continue)
    }
}

const ADDED: [(&str, BlockHook); 4] = [
    ("resid_mid", BlockHook::ResidMid),
    ("mlp_in", BlockHook::MlpIn),
    ("mlp_out", BlockHook::MlpOut),
    ("resid_post", BlockHook::ResidPost),
];

/// A recorded model; those whose name ends so have gated attention.
fn recorded(family: &str, name: &str, dtype: FloatKind) -> Box<dyn LanguageModel> {
    let source = ModelSource { dtype, attention_gate: name.ends_with("-gate"), ..ModelSource::new(fixture(name)) };
    open_source(family, source).expect("opens")
}

#[test]
fn every_recorded_value_is_met() {
    for (family, name) in MODELS {
        let model = recorded(family, name, FloatKind::F32);
        let expected = TensorFile::open(&fixture(name).join("expected.safetensors")).expect("recorded");
        let tokens = expected.tensor("tokens", None, Device::Cpu).expect("recorded");
        let hooked = [ADDED.as_slice(), &[("attn_pattern", BlockHook::Pattern)]].concat();
        // With patterns wanted attention runs step by step, without them fused; with the norm's inside wanted so does the norm.
        let inside = [ADDED.as_slice(), &[("mlp_in", BlockHook::Ln2Normalized)]].concat();
        let cases = [hooked.as_slice(), &ADDED, if family == "gpt2" { &inside } else { &ADDED }];
        for hooks in cases {
            let mut compare = Compare::with(&expected, model.info().layers, hooks);
            let logits = model.forward(&tokens, &mut compare).expect("runs").expect("is not stopped");
            compare.compare("logits", &logits);
        }
    }
}

#[test]
fn recorded_models_conform() {
    tch::set_num_threads(1);
    for (family, name) in CONFORMING {
        conforms(&*recorded(family, name, FloatKind::F32));
    }
}

#[test]
fn recorded_models_conform_in_other_types() {
    tch::set_num_threads(1);
    for (family, name) in [("llama", "llama"), ("gpt2", "gpt2"), ("gemma2", "gemma2")] {
        for dtype in [FloatKind::F64, FloatKind::Bf16] {
            conforms(&*recorded(family, name, dtype));
        }
    }
}

#[test]
fn a_normalized_value_is_replaced_before_the_gain() {
    struct Zero(HookPoint, Option<f64>);
    impl HookVisitor for Zero {
        fn wants(&self, point: HookPoint) -> bool {
            point == self.0 || point == HookPoint::block(0, BlockHook::MlpIn)
        }
        fn visit(&mut self, point: HookPoint, value: &Tensor) -> Result<Action> {
            if point == self.0 {
                return Ok(Action::Replace(value.ones_like()));
            }
            self.1 = Some(value.std(false).double_value(&[]));
            Ok(Action::Stop)
        }
    }
    let tokens = Tensor::zeros([1, 2], (Kind::Int64, Device::Cpu));
    for (family, name, gained) in [("llama", "llama", true), ("gpt2", "gpt2", false)] {
        let model = open(family, &fixture(name), FloatKind::F32).expect("opens");
        let mut zero = Zero(HookPoint::block(0, BlockHook::Ln2Normalized), None);
        assert!(model.forward(&tokens, &mut zero).expect("runs").is_none());
        // Ones through a gain that differs from entry to entry; LayerNorm's normalized value is past its gain.
        assert_eq!(zero.1.expect("the MLP's input was seen") > 1e-6, gained, "{name}");
    }
}

#[test]
fn the_bundled_model_goes_on_as_it_was_trained_to() {
    let folder = repository("examples/shakespeare/model");
    let model = open("llama", &folder, FloatKind::F32).expect("opens");
    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).expect("reads");
    let ids: Vec<i64> = tokenizer.encode("I pray you, good my", true).expect("encodes").get_ids().iter().map(|id| i64::from(*id)).collect();
    assert_eq!(ids.first(), Some(&0), "the tokenizer adds the token that begins a text");
    let logits = model.forward(&Tensor::from_slice(&ids).unsqueeze(0), &mut NoHooks).expect("runs").expect("is not stopped");
    let chances = logits.get(0).get(-1).softmax(-1, Kind::Float);
    let lord = tokenizer.encode(" lord", false).expect("encodes");
    assert_eq!(lord.get_ids().len(), 1);
    let chance = chances.double_value(&[i64::from(lord.get_ids()[0])]);
    assert!((chance - 0.80).abs() < 0.01, "{chance}");
}

#[test]
fn shards_prefixes_and_stored_types_make_no_difference() {
    let plain = open("gpt2", &fixture("gpt2"), FloatKind::F32).expect("opens");
    let tokens = Tensor::arange(12, (Kind::Int64, Device::Cpu)).view([2, 6]);
    let run = |model: &dyn LanguageModel| model.forward(&tokens, &mut NoHooks).expect("runs").expect("is not stopped");
    let want = run(&*plain);

    let bare = Folder::copy_of("gpt2");
    bare.edit(|named| named.iter_mut().for_each(|(name, _)| *name = name.trim_start_matches("transformer.").to_owned()));
    assert_eq!(run(&*open("gpt2", bare.path(), FloatKind::F32).expect("opens")), want);

    let sharded = Folder::copy_of("gpt2");
    let named = sharded.tensors();
    let shard = |name: &str| format!("model-0000{}-of-00002.safetensors", 1 + name.len() % 2);
    let map: serde_json::Map<_, _> = named.iter().map(|(name, _)| (name.clone(), shard(name).into())).collect();
    for number in 1..=2 {
        let file = format!("model-0000{number}-of-00002.safetensors");
        let part: Vec<_> =
            named.iter().filter(|(name, _)| shard(name) == file).map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        sharded.write_tensors(&file, &part);
    }
    sharded.write("model.safetensors.index.json", serde_json::json!({ "weight_map": map }).to_string().as_bytes());
    std::fs::remove_file(sharded.join("model.safetensors")).expect("is there");
    let whole = open("gpt2", sharded.path(), FloatKind::F32).expect("opens");
    assert_eq!(run(&*whole), want);
    assert_eq!(whole.info().fingerprint, plain.info().fingerprint);
    assert_eq!(whole.info().parameters, named.iter().map(|(_, tensor)| tensor.numel() as u64).sum::<u64>());

    for (kind, tolerance) in [(Kind::Half, 2e-3), (Kind::BFloat16, 2e-2), (Kind::Double, 0.0)] {
        let folder = Folder::copy_of("gpt2");
        folder.edit(|named| named.iter_mut().for_each(|(_, tensor)| *tensor = tensor.to_kind(kind)));
        let model = open("gpt2", folder.path(), FloatKind::F32).expect("opens");
        let error = (run(&*model) - &want).abs().max().double_value(&[]);
        assert!(error <= tolerance, "{kind:?}: {error}");
        assert_ne!(model.info().fingerprint, plain.info().fingerprint);
    }
}

#[test]
fn gradients_reach_what_a_visitor_puts_in() {
    struct Leaf(Tensor);
    impl HookVisitor for Leaf {
        fn wants(&self, point: HookPoint) -> bool {
            point == HookPoint::Embed
        }
        fn visit(&mut self, _: HookPoint, value: &Tensor) -> Result<Action> {
            assert!(!value.requires_grad(), "weights ask for no gradient");
            self.0 = value.copy().set_requires_grad(true);
            Ok(Action::Replace(self.0.shallow_clone()))
        }
    }
    for (family, name) in MODELS {
        let model = recorded(family, name, FloatKind::F32);
        let mut leaf = Leaf(Tensor::new());
        let tokens = Tensor::arange(5, (Kind::Int64, Device::Cpu)).unsqueeze(0);
        let logits = model.forward(&tokens, &mut leaf).expect("runs").expect("is not stopped");
        logits.square().sum(Kind::Float).backward();
        assert!(leaf.0.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0, "{name}");
    }
}
