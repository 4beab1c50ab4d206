//! Other tools' transcoders: by their own numbers, and there and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use circuitlab::Silent;
use circuitlab::export::{ExportRequest, export};
use circuitlab::formats::{Format, ImportRequest, import};
use circuitlab::saved::{Card, SavedTranscoder, Scan, read_card, write};
use circuitlab_core::config::{DeviceName, FloatKind};
use circuitlab_core::random::Stream;
use circuitlab_core::tensors::TensorFile;
use circuitlab_core::{Dims, Mesh, Parameters, Registry, Saving, Scales, SparsityActivation, Spec, Transcoder};
use proptest::prelude::*;
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

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/formats").join(name)
}

fn request<'a>(registry: &'a Registry, from: &'a Path, out: &'a Path) -> ImportRequest<'a> {
    ImportRequest { registry, from, out, format: None, model: None, hooks: None, dtype: None, progress: &Silent }
}

/// What a transcoder makes of inputs, `[layer, rows, d_model]`.
fn reconstructions(saved: &SavedTranscoder, inputs: &Tensor) -> Tensor {
    let of = |layer: usize| inputs.get(layer as i64);
    let acts: Vec<Tensor> = (0..saved.dims.layers).map(|layer| saved.encode(layer, &of(layer)).expect("encodes")).collect();
    let decode = |layer: usize| saved.decode(&acts, &of(layer), layer).expect("decodes");
    Tensor::stack(&(0..saved.dims.layers).map(decode).collect::<Vec<_>>(), 0)
}

#[test]
fn every_tools_files_reconstruct_what_numpy_computes_from_them() {
    let ln2 = ["ln2.hook_normalized", "hook_mlp_out"];
    let mlp = ["mlp.hook_in", "hook_mlp_out"];
    for (name, format, kind, activation, skip, hooks) in [
        ("gemma_scope", Format::GemmaScope, "transcoder_set", "jumprelu", false, ln2),
        ("gemma_scope_2_plt", Format::GemmaScope2, "transcoder_set", "jumprelu", true, mlp),
        ("gemma_scope_2_clt", Format::GemmaScope2, "cross_layer_transcoder", "jumprelu", true, mlp),
        ("clt_forge", Format::CltForge, "cross_layer_transcoder", "jumprelu", false, ln2),
        ("clt_forge_ranks", Format::CltForge, "cross_layer_transcoder", "jumprelu", false, ln2),
        ("clt_forge_per_layer", Format::CltForge, "transcoder_set", "jumprelu", false, ln2),
        ("circuit_tracer_listed", Format::CircuitTracer, "transcoder_set", "jumprelu", true, mlp),
        ("circuit_tracer_topk", Format::CircuitTracer, "transcoder_set", "topk", false, ["mlp.hook_in", "mlp.hook_out"]),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let (registry, from, out) = (registry(), fixture(name), folder.path().join("out"));
        let imported = import(&ImportRequest { dtype: Some(FloatKind::F32), ..request(&registry, &from, &out) }).expect(name);
        assert_eq!((imported.format, imported.model_kind.as_str(), imported.skip), (format, kind, skip), "{name}");
        assert_eq!((imported.activation.name.as_str(), imported.hooks.each_ref().map(String::as_str)), (activation, hooks), "{name}");
        assert_eq!((imported.layers, imported.d_model, imported.d_features), (3, 6, 10), "{name}");
        let saved = opened(&out);
        let expected = TensorFile::open(&from.join("expected.safetensors")).expect("opens");
        let read = |name: &str| expected.tensor(name, Some(Kind::Float), Device::Cpu).expect("is there");
        let apart = (reconstructions(&saved, &read("inputs")) - read("outputs")).abs().max().double_value(&[]);
        assert!(apart < 2e-6, "{name}: {apart} apart");
    }
}

#[test]
fn what_a_card_says_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let (registry, from, out) = (registry(), fixture("circuit_tracer_listed"), folder.path().join("out"));
    import(&request(&registry, &from, &out)).expect("imports");
    let card = read_card(&out).expect("reads");
    assert_eq!((card.scan, card.transcoders), (Some(Scan::One("tiny/listed".to_owned())), None));
    assert_eq!(card.other["repo_id"], "tiny/repo");
    let from = fixture("gemma_scope_2_plt");
    let out = folder.path().join("second");
    import(&request(&registry, &from, &out)).expect("imports");
    assert_eq!(read_card(&out).expect("reads").model_name, "tiny/gemma-3");
}

/// A random transcoder of our own: its folder holds f32.
fn random(folder: &Path, name: &str, activation: &Spec, skip: bool, dims: Dims, seed: u64) {
    let registry = registry();
    let transcoder = registry.build::<dyn Transcoder>(&Spec::named(name).with("skip", skip)).expect("builds");
    let activation = registry.build::<dyn SparsityActivation>(activation).expect("builds");
    let specs = transcoder.parameters(dims, &*activation).expect("small");
    let mut params = Parameters::init(specs.clone(), seed, Kind::Float, Device::Cpu).expect("fits");
    for (place, spec) in specs.iter().enumerate() {
        let mut stream = Stream::new(seed, "formats", place as u64);
        let count = spec.shape.iter().product::<i64>();
        let numbers: Vec<f32> = (0..count).map(|_| (2.0 * stream.uniform() - 1.0) as f32).collect();
        let numbers = Tensor::from_slice(&numbers).view(spec.shape.as_slice());
        let value = if spec.name.contains("threshold") { numbers.abs() * 0.3 } else { numbers };
        params.set(&spec.name, value).expect("same shape");
    }
    let ones = vec![1.0; dims.layers];
    let saving = Saving {
        transcoder: &*transcoder,
        activation: &*activation,
        dims,
        scales: Scales { inputs: &ones, targets: &ones },
        specs: &specs,
        params: &params,
        mesh: Mesh::SINGLE,
    };
    std::fs::create_dir_all(folder).expect("a folder");
    let card = Card {
        model_kind: transcoder.model_kind().to_owned(),
        model_name: "tiny".to_owned(),
        feature_input_hook: "ln2.hook_normalized".to_owned(),
        feature_output_hook: "hook_mlp_out".to_owned(),
        ..Card::default()
    };
    write(folder, &card, &saving).expect("saves");
}

/// The tensor files of a folder.
fn tensor_files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let tensors = entries.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    tensors.map(|path| (path.file_name().expect("a name").into(), std::fs::read(&path).expect("reads"))).collect()
}

fn export_to(from: &Path, out: &Path, format: Format) -> circuitlab::Result<()> {
    export(&ExportRequest { from, out, dtype: None, format: Some(format), progress: &Silent }).map(drop)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_goes_out_comes_back_to_the_bit(
        crosses: bool,
        jumps: bool,
        skip: bool,
        (layers, d_model, d_features) in (1_usize..5, 1_usize..8, 1_usize..12),
        seed: u64,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let ours = folder.path().join("ours");
        let name = if crosses { "clt" } else { "plt" };
        let activation = if jumps { Spec::named("jumprelu").with("parameterisation", "direct") } else { Spec::named("relu") };
        random(&ours, name, &activation, skip, Dims { layers, d_model, d_features }, seed);
        let registry = registry();
        for format in Format::ALL {
            let (out, back) = (folder.path().join(format.name()), folder.path().join(format!("{format}-back")));
            let exported = export_to(&ours, &out, format);
            let held = match format {
                Format::CircuitTracer => true,
                Format::GemmaScope => !crosses && !skip,
                Format::GemmaScope2 => true,
                Format::CltForge => !skip,
            };
            if !held {
                let error = exported.expect_err("cannot be held").to_string();
                prop_assert!(error.contains(&format!("which `--format {format}` cannot hold")) && error.lines().count() == 1, "{}", error);
                prop_assert!(!out.exists());
                continue;
            }
            exported.expect("can be held");
            let imported = import(&request(&registry, &out, &back)).expect("was written");
            prop_assert_eq!(imported.format, format);
            prop_assert_eq!(imported.activation.name, if jumps { "jumprelu" } else { "relu" });
            let (before, after) = (tensor_files(&ours), tensor_files(&back));
            prop_assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
            for (file, bytes) in &before {
                prop_assert!(bytes == &after[file], "{}: {} differs", format, file.display());
            }
            let card = read_card(&back).expect("reads");
            prop_assert_eq!(card, Card { transcoders: None, ..read_card(&ours).expect("reads") });
        }
    }
}
