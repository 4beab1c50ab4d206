//! Interventions, compared with circuit-tracer's and with what they should be equal to.

use std::path::PathBuf;

use circuitlab::generate::Sampling;
use circuitlab::intervene::{Budget, Named, Outcome, Prompt, Variant, Want, generate, intervene, read_interventions};
use circuitlab::saved::SavedTranscoder;
use circuitlab::text::Tokenizer;
use circuitlab_core::config::{DeviceName, FloatKind};
use circuitlab_core::tch::{Device, Kind, Tensor};
use circuitlab_core::tensors::TensorFile;
use circuitlab_core::{LanguageModel, ModelSource, Registry};

/// The order of sums is another one than circuit-tracer's; its own two back ends differ by 1e-4 and 5e-4.
const LOGITS: f64 = 2e-4;
const VALUES: f64 = 5e-5;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/graphs")
}

struct Case {
    model: Box<dyn LanguageModel>,
    saved: SavedTranscoder,
    prompt: Prompt,
    oracle: TensorFile,
    interventions: Vec<Named>,
}

impl Case {
    fn open(name: &str) -> Self {
        circuitlab_plugins::link();
        let registry = Registry::linked().expect("no name twice");
        let folder = fixtures().join("cases").join(name);
        let meta: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("meta.json")).expect("a fixture")).expect("JSON");
        let place = |key: &str| fixtures().join(meta[key].as_str().expect("a name"));
        let model = circuitlab::model::open(&registry, &ModelSource::new(place("model"))).expect("opens");
        let saved = SavedTranscoder::open(&registry, &place("transcoder"), DeviceName::default(), FloatKind::F32).expect("opens");
        let oracle = TensorFile::open(&folder.join("oracle.safetensors")).expect("a fixture");
        let ids: Vec<i64> = Vec::try_from(oracle.tensor("input_ids", None, Device::Cpu).expect("recorded")).expect("one axis");
        let ids = ids.iter().map(|id| *id as u32).collect();
        let prompt = Prompt::of_tokens(ids, None, model.info()).expect("a prompt");
        let interventions = read_interventions(&folder.join("meta.json"), &[]).expect("reads");
        Self { model, saved, prompt, oracle, interventions }
    }

    fn recorded(&self, name: &str) -> Tensor {
        self.oracle.tensor(name, None, Device::Cpu).expect("recorded")
    }

    fn compare(&self, prefix: &str, logits: &Tensor, outcome: &Outcome, want: Want) {
        let (index, values) = outcome.features.tensors().expect("tensors");
        near(logits, &self.recorded(&format!("{prefix}_logits")), LOGITS, &format!("{prefix}, logits"));
        if want == Want::PreActivations {
            assert_eq!(index, self.recorded("active_features").to_kind(Kind::Int), "{prefix}");
            near(&values, &self.recorded(&format!("{prefix}_pre_of_active")), VALUES, &format!("{prefix}, pre-activations"));
        } else {
            assert_eq!(index, self.recorded(&format!("{prefix}_act_idx")), "{prefix}");
            near(&values, &self.recorded(&format!("{prefix}_act_val")), VALUES, &format!("{prefix}, activations"));
        }
    }
}

fn near(got: &Tensor, want: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(got.size(), want.size(), "{what}");
    let apart = (got - want).abs().max().double_value(&[]);
    assert!(apart <= tolerance, "{what}: {apart:e} apart");
}

fn variants(named: Vec<Named>) -> Vec<(String, Variant)> {
    let on_the_prompt = named.into_iter().filter(|one| one.new_tokens.is_none());
    on_the_prompt.map(|one| (one.name, Variant { interventions: one.interventions, mode: one.mode, want: one.want })).collect()
}

fn as_recorded(name: &str) {
    let mut case = Case::open(name);
    let (names, variants): (Vec<_>, Vec<_>) = variants(std::mem::take(&mut case.interventions)).into_iter().unzip();
    assert!(names.len() >= 6, "{name}: {names:?}");
    let study = intervene(&*case.model, &case.saved, &case.prompt, &variants, Budget::default()).expect("runs");
    near(&study.clean.logits, &case.recorded("logits"), 1e-4, "logits");
    let (index, values) = study.clean.features.tensors().expect("tensors");
    assert_eq!(index, case.recorded("active_features").to_kind(Kind::Int), "active features");
    near(&values, &case.recorded("activation_values"), VALUES, "activations");
    for ((intervention, variant), outcome) in names.iter().zip(&variants).zip(&study.variants) {
        case.compare(&format!("iv_{intervention}"), &outcome.logits, outcome, variant.want);
        let alone = intervene(&*case.model, &case.saved, &case.prompt, std::slice::from_ref(variant), Budget::default()).expect("runs");
        near(&alone.variants[0].logits, &outcome.logits, 1e-5, "alone as in a batch");
        assert_eq!(alone.variants[0].features.sites, outcome.features.sites, "alone as in a batch");
    }
    // So little memory that each variant runs by itself.
    let bounded = Budget { memory_bytes: 1, ..Budget::default() };
    let parts = intervene(&*case.model, &case.saved, &case.prompt, &variants, bounded).expect("runs");
    for (part, whole) in parts.variants.iter().zip(&study.variants) {
        near(&part.logits, &whole.logits, 1e-5, "in parts as in a batch");
    }
}

#[test]
fn llama_with_a_clt_is_changed_as_recorded() {
    as_recorded("llama_clt_full");
}

#[test]
fn gpt2_with_a_clt_is_changed_as_recorded() {
    as_recorded("gpt2_clt_full");
}

#[test]
fn llama_with_skips_is_changed_as_recorded() {
    as_recorded("llama_plt_relu_skip");
}

#[test]
fn a_text_is_continued_as_recorded() {
    let mut case = Case::open("llama_clt_full");
    let named = std::mem::take(&mut case.interventions).into_iter().find(|one| one.new_tokens.is_some()).expect("recorded");
    let most = named.new_tokens.expect("a number");
    let frozen = named.mode.freezes_attention();
    let tokenizer = Tokenizer::load(&fixtures().join("tokenizer"), case.model.info()).expect("a fixture");
    let text = |tokens: &[u32]| tokenizer.decode(&[&case.prompt.tokens[1..], tokens].concat()).expect("text");
    let run = |interventions: &[_]| {
        generate(&*case.model, &case.saved, &case.prompt, interventions, frozen, most, &Sampling::GREEDY).expect("generates")
    };
    let generated = run(&named.interventions);
    assert_eq!(text(&generated.tokens), "the cat sat on the matke anrte|\u{fffd}");
    let outcome = Outcome { logits: generated.logits.shallow_clone(), features: generated.features };
    case.compare("gen", &generated.logits, &outcome, Want::Activations);
    let plain = circuitlab::generate::generate(&*case.model, &case.prompt.tokens, most, &Sampling::GREEDY).expect("generates");
    assert_eq!(text(&plain), "the cat sat on the matke an or3=E");
    assert_eq!(run(&[]).tokens, plain, "nothing changed is nothing changed");
}
