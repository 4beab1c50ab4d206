//! Interventions, compared with circuit-tracer's and with what they should be equal to.

use std::path::PathBuf;

use circuitlab::generate::Sampling;
use circuitlab::graph::Prompt;
use circuitlab::intervene::{
    Budget, Change, Intervention, Mode, Named, Outcome, Positions, Target, Variant, Want, generate, intervene, read_interventions,
};
use circuitlab::saved::{Card, SavedTranscoder};
use circuitlab::text::Tokenizer;
use circuitlab_core::config::{DeviceName, FloatKind};
use circuitlab_core::tch::{Device, Kind, Tensor};
use circuitlab_core::tensors::TensorFile;
use circuitlab_core::{
    BlockHook, Dims, HookPoint, HookVisitor, LanguageModel, ModelInfo, ModelSource, Parameters, Registry, SparsityActivation, Spec,
    Transcoder,
};

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

/// A transcoder of random weights between two places of a model's blocks.
fn random(model: &dyn LanguageModel, kind: &str, hooks: (BlockHook, BlockHook), seed: u64) -> SavedTranscoder {
    let registry = Registry::linked().expect("no name twice");
    let transcoder = registry.build::<dyn Transcoder>(&Spec::named(kind)).expect("a transcoder");
    let activation = registry.build::<dyn SparsityActivation>(&Spec::named("relu")).expect("an activation");
    let info = model.info();
    let dims = Dims { layers: info.layers, d_model: info.d_model, d_features: 24 };
    let specs = transcoder.parameters(dims, &*activation).expect("parameters");
    let params = Parameters::init(specs, seed, Kind::Float, Device::Cpu).expect("room");
    let card = Card {
        model_kind: transcoder.model_kind().to_owned(),
        feature_input_hook: hooks.0.to_string(),
        feature_output_hook: hooks.1.to_string(),
        ..serde_json::from_value(serde_json::json!({"model_kind": "", "feature_input_hook": "", "feature_output_hook": ""}))
            .expect("a card")
    };
    SavedTranscoder { folder: PathBuf::from("random"), card, dims, params, transcoder, activation }
}

fn families() -> Vec<(String, Box<dyn LanguageModel>)> {
    circuitlab_plugins::link();
    let registry = Registry::linked().expect("no name twice");
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.is_dir());
    paths.sort();
    let open = |path: PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let source = ModelSource { attention_gate: name.ends_with("-gate"), ..ModelSource::new(path) };
        (name, circuitlab::model::open(&registry, &source).expect("opens"))
    };
    paths.into_iter().map(open).collect()
}

#[test]
fn direct_effects_add_up_in_every_family() {
    let families = families();
    assert!(families.len() >= 18);
    for (place, (name, model)) in families.iter().enumerate() {
        let hooks =
            [(BlockHook::ResidMid, BlockHook::MlpOut), (BlockHook::MlpIn, BlockHook::MlpRawOut), (BlockHook::MlpIn, BlockHook::MlpOut)]
                [place % 3];
        let saved = random(&**model, ["clt", "plt"][place % 2], hooks, place as u64);
        let ids = (0..6).map(|at| ((at * at * 7 + at * 3 + 1) % model.info().vocabulary) as u32).collect();
        let prompt = Prompt::of_tokens(ids, None, model.info()).expect("a prompt");
        let change = |layer, position, feature, change| Intervention::feature(layer, position, feature, change);
        let first = || change(0, Positions::At(2), 3, Change::Add(1.5));
        let second = || change(0, Positions::Range(1..4), 5, Change::Add(-0.75));
        let third = || change(model.info().layers - 1, Positions::From(3), 7, Change::Set(2.0));
        let nothing = || change(0, Positions::ALL, 3, Change::Scale(1.0));
        let lists = [vec![first()], vec![second()], vec![third()], vec![first(), second(), third()], vec![nothing()]];
        let variant = |interventions| Variant { interventions, mode: Mode::direct(model.info()), want: Want::PreActivations };
        let variants: Vec<Variant> = lists.into_iter().map(variant).collect();
        let study = intervene(&**model, &saved, &prompt, &variants, Budget::default()).expect("runs");
        let before = Tensor::from_slice(&study.clean_pre_activations.values);
        let by = |outcome: &Outcome| Tensor::from_slice(&outcome.features.values) - &before;
        let [a, b, c, all, none] = [0, 1, 2, 3, 4].map(|at| by(&study.variants[at]));
        let size = all.abs().max().double_value(&[]);
        assert!(size > 1e-3, "{name}: something changes");
        near(&(a + b + c), &all, 1e-4 * size.max(1.0), name);
        near(&none, &all.zeros_like(), 1e-6, name);
        // The same of logits, where no soft cap bends them.
        if !name.starts_with("gemma2") {
            let by = |outcome: &Outcome| &outcome.logits - &study.clean.logits;
            let [a, b, c, all] = [0, 1, 2, 3].map(|at| by(&study.variants[at]));
            let size = all.abs().max().double_value(&[]);
            near(&(a + b + c), &all, 1e-4 * size.max(1.0), name);
        }
    }
}

#[test]
fn a_change_of_nothing_changes_nothing_in_any_mode() {
    for (place, (name, model)) in families().iter().enumerate() {
        let saved = random(&**model, "clt", (BlockHook::ResidMid, BlockHook::MlpOut), place as u64);
        let prompt = Prompt::of_tokens(vec![1, 5, 9, 13, 2], None, model.info()).expect("a prompt");
        let same = |mode| Variant {
            interventions: vec![
                Intervention::feature(0, Positions::ALL, 3, Change::Scale(1.0)),
                Intervention { layer: 1, positions: Positions::ALL, target: Target::Decoder { feature: 2, times: 0.0 } },
            ],
            mode,
            want: Want::Activations,
        };
        let modes = [Mode::Free, Mode::FrozenAttention, Mode::Constrained(0..1), Mode::direct(model.info())];
        let variants: Vec<Variant> = modes.into_iter().map(same).collect();
        let study = intervene(&**model, &saved, &prompt, &variants, Budget::default()).expect("runs");
        let size = study.clean.logits.abs().max().double_value(&[]);
        for outcome in &study.variants {
            near(&outcome.logits, &study.clean.logits, 1e-5 * size.max(1.0), name);
        }
    }
}

#[test]
fn a_vector_is_steered_along_as_a_decoder_is() {
    let case = Case::open("llama_clt_full");
    let last = case.saved.dims.layers - 1;
    let dictionary = case.saved.transcoder.dictionary(&case.saved.params, last).expect("a dictionary");
    let row = dictionary.w_dec.select(0, 11).select(0, 0);
    let with = |target| Variant {
        interventions: vec![Intervention { layer: last, positions: Positions::Range(2..5), target }],
        mode: Mode::FrozenAttention,
        want: Want::Logits,
    };
    let variants = [with(Target::Decoder { feature: 11, times: 3.0 }), with(Target::Direction(row * 3.0))];
    let study = intervene(&*case.model, &case.saved, &case.prompt, &variants, Budget::default()).expect("runs");
    near(&study.variants[0].logits, &study.variants[1].logits, 1e-6, "a decoder as a vector");
    assert!((&study.variants[0].logits - &study.clean.logits).abs().max().double_value(&[]) > 0.1, "it is felt");
    let short = [with(Target::Direction(Tensor::from_slice(&[1.0_f32; 3])))];
    let error = intervene(&*case.model, &case.saved, &case.prompt, &short, Budget::default()).expect_err("too short").to_string();
    assert!(error.contains("shape of the vector for layer 3: expected [64], got [3]"), "{error}");
}

/// A model that keeps nothing of earlier tokens, and so runs them again.
#[derive(Debug)]
struct Forgetful(Box<dyn LanguageModel>);

impl LanguageModel for Forgetful {
    fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    fn placement(&self) -> (Device, Kind) {
        self.0.placement()
    }

    fn hook_points(&self) -> Vec<HookPoint> {
        self.0.hook_points()
    }

    fn forward(&self, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> circuitlab_core::Result<Option<Tensor>> {
        self.0.forward(tokens, visitor)
    }
}

#[test]
fn a_model_that_keeps_nothing_goes_on_as_one_that_does() {
    let mut case = Case::open("llama_clt_full");
    let interventions = [
        Intervention::feature(1, Positions::From(2), 0, Change::Set(4.0)),
        Intervention::feature(0, Positions::At(3), 7, Change::Add(2.0)),
        Intervention::feature(2, Positions::From(9), 5, Change::Add(3.0)),
    ];
    for frozen in [true, false] {
        let run = |model: &dyn LanguageModel| {
            generate(model, &case.saved, &case.prompt, &interventions, frozen, 6, &Sampling::GREEDY).expect("generates")
        };
        let kept = run(&*case.model);
        let forgetful = Forgetful(case.model);
        let again = run(&forgetful);
        case.model = forgetful.0;
        assert_eq!(kept.tokens, again.tokens);
        near(&kept.logits, &again.logits, 1e-4, "logits");
        assert_eq!(kept.features.sites, again.features.sites);
    }
}

#[test]
fn what_there_is_not_is_refused() {
    let case = Case::open("llama_clt_full");
    let refuse = |intervention: Intervention, mode: Mode, says: &str| {
        let variants = [Variant { interventions: vec![intervention], mode, want: Want::Logits }];
        let error = intervene(&*case.model, &case.saved, &case.prompt, &variants, Budget::default()).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    };
    let set = |layer, positions, feature, value| Intervention::feature(layer, positions, feature, Change::Set(value));
    refuse(set(4, Positions::At(1), 0, 1.0), Mode::Free, "no layer 4; the model has layers 0 to 3");
    refuse(set(0, Positions::At(8), 0, 1.0), Mode::Free, "position `8`");
    refuse(set(0, Positions::From(8), 0, 1.0), Mode::Free, "position `8:`");
    refuse(set(0, Positions::At(1), 256, 1.0), Mode::Free, "no feature 256 in layer 0; the transcoder has features 0 to 255");
    refuse(set(0, Positions::At(1), 0, f64::NAN), Mode::Free, "NaN is no number");
    refuse(set(0, Positions::At(1), 0, 1.0), Mode::Constrained(3..5), "layers 3:5 to be held");
    refuse(set(0, Positions::At(1), 0, 1.0), Mode::Constrained(2..2), "layers 2:2 to be held");
    let other = Case::open("gpt2_clt_full");
    let error = intervene(&*case.model, &other.saved, &case.prompt, &[], Budget::default()).expect_err("another model's").to_string();
    assert!(error.contains("differ in layers: expected 3, got 4"), "{error}");
}

#[test]
fn numbers_that_are_none_are_told() {
    let case = Case::open("gpt2_clt_full");
    let nan = |name: &str| {
        let mut saved = random(&*case.model, "clt", (BlockHook::ResidMid, BlockHook::MlpOut), 3);
        let value = saved.params.get(name).expect("a parameter").copy();
        saved.params.set(name, value * f64::NAN).expect("fits");
        saved
    };
    let says = |saved: &SavedTranscoder, want: Want, words: &str| {
        let interventions = vec![Intervention::feature(0, Positions::At(2), 1, Change::Add(1.0))];
        let variants = [Variant { interventions, mode: Mode::FrozenAttention, want }];
        let error = intervene(&*case.model, saved, &case.prompt, &variants, Budget::default()).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    says(&nan("W_enc_1"), Want::Activations, "transcoder `random`: the activation of feature 1/1/0 is no number");
    says(&nan("W_dec_0"), Want::Logits, "intervention 1 leads to logits that are no numbers");
}
