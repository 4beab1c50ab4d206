//! The family against the suite of models, against loops in f64, and on bad folders.

mod folder;
mod reference;

use circuitlab_core::config::FloatKind;
use circuitlab_core::hooks::NoHooks;
use circuitlab_core::tch::{Kind, Tensor};
use circuitlab_core::{LanguageModel, ModelSource, Registry, Result, Spec, testing};
use circuitlab_model_starcoder2 as _;
use serde_json::{Value, json};

use folder::{Folder, Switches};
use reference::Sizes;

const SIZES: Sizes = Sizes { layers: 2, width: 12, heads: 3, kv_heads: 1, hidden: 10, vocabulary: 17, theta: 500.0, eps: 1e-5 };
const PLAIN: Switches = Switches { biased: true, tied: true };

fn open(folder: &Folder, dtype: FloatKind) -> Result<Box<dyn LanguageModel>> {
    let source = ModelSource { dtype, ..ModelSource::new(folder.path()) };
    let Ok(Value::Object(settings)) = serde_json::to_value(source) else { panic!("a source is a table") };
    Registry::linked()?.build::<dyn LanguageModel>(&Spec { name: "starcoder2".to_owned(), settings })
}

#[test]
fn starcoder2_conforms() {
    for switches in [PLAIN, Switches { biased: false, tied: false }] {
        let folder = Folder::new(SIZES, switches);
        for dtype in [FloatKind::F32, FloatKind::F64] {
            testing::model::conforms(&*open(&folder, dtype).expect("opens"));
        }
    }
}

#[test]
fn logits_are_those_of_loops_in_f64() {
    let ids = [3_usize, 16, 0, 7, 7, 12, 1, 9];
    let tokens = Tensor::from_slice(&ids.map(|id| id as i64)).unsqueeze(0);
    for (biased, tied) in [(true, true), (false, true), (true, false)] {
        let folder = Folder::new(SIZES, Switches { biased, tied });
        let want = Tensor::from_slice(&reference::logits(&SIZES, &folder.weights(), &ids).concat()).view([1, ids.len() as i64, 17]);
        // In f64 both sides round at 1e-16, in f32 the model does at 6e-8; norms and softmaxes cost some digits.
        for (dtype, tolerance) in [(FloatKind::F64, 1e-11), (FloatKind::F32, 1e-4)] {
            let model = open(&folder, dtype).expect("opens");
            let logits = model.forward(&tokens, &mut NoHooks).expect("runs").expect("is not stopped").to_kind(Kind::Double);
            let error = (&logits - &want).abs().max().double_value(&[]) / want.abs().max().double_value(&[]);
            assert!(error < tolerance, "biased {biased}, tied {tied}, {dtype:?}: {error:e}");
        }
    }
}

#[test]
fn both_dialects_of_rotary_embedding_are_one() {
    let logits = |changes: &Value| {
        let folder = Folder::new(SIZES, PLAIN);
        folder.configure(changes);
        let model = open(&folder, FloatKind::F64).expect("opens");
        model.forward(&Tensor::from_slice(&[1_i64, 2, 3]).unsqueeze(0), &mut NoHooks).expect("runs").expect("is not stopped")
    };
    let old = logits(&json!({}));
    assert!(old == logits(&json!({"rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": SIZES.theta}})));
    assert!(old != logits(&json!({"rope_theta": 400.0})));
}

#[test]
fn a_window_matters_from_where_it_ends() {
    let tokens = Tensor::from_slice(&[3_i64, 16, 0, 7, 7, 12]).unsqueeze(0);
    let logits = |window: Value| {
        let folder = Folder::new(SIZES, PLAIN);
        folder.configure(&json!({"sliding_window": window}));
        let model = open(&folder, FloatKind::F64).expect("opens");
        model.forward(&tokens, &mut NoHooks).expect("runs").expect("is not stopped").get(0)
    };
    let apart = |window: i64, position: i64| (logits(json!(null)) - logits(json!(window))).get(position).abs().max().double_value(&[]);
    assert!((0..6).all(|position| apart(6, position) < 1e-12));
    assert!((0..4).all(|position| apart(4, position) < 1e-12) && apart(4, 4) > 1e-6 && apart(4, 5) > 1e-6);
}

#[test]
fn bad_folders_are_refused() {
    for (changes, message) in [
        (json!({"model_type": "llama"}), "it is of model family `llama`, not `starcoder2`"),
        (json!({"sliding_window": 0}), "the attention window is 0; expected 1 or more"),
        (json!({"sliding_window": -1}), "sliding_window"),
        (json!({"num_attention_heads": 5}), "5 heads do not divide the width 12"),
        (json!({"hidden_act": "mish"}), "unknown `hidden_act` `mish`"),
        (json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` of 0.5 is not supported"),
        (json!({"num_hidden_layers": 3}), "it has no tensor `model.layers.2.self_attn.q_proj.weight`"),
        (json!({"num_hidden_layers": 1}), "`model.layers.1.input_layernorm.weight`, which does not fit"),
        (json!({"tie_word_embeddings": false}), "it has no tensor `lm_head.weight`"),
        (json!({"use_bias": false}), "bias`, which does not fit `config.json`"),
        (json!({"num_key_value_heads": 3}), "has shape [4, 12], and `config.json` asks for [12, 12]"),
    ] {
        let folder = Folder::new(SIZES, PLAIN);
        folder.configure(&changes);
        let error = open(&folder, FloatKind::F32).expect_err("a bad folder").to_string();
        assert!(error.contains(message), "{changes}: {error}");
    }
}
