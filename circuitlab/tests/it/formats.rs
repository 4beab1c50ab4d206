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
use circuitlab_core::{Dims, Mesh, ModelSource, Parameters, Registry, Saving, Scales, SparsityActivation, Spec, Transcoder};
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
                Format::CircuitTracer | Format::GemmaScope2 => true,
                Format::GemmaScope => !crosses && !skip,
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

/// A copy of a fixture, to spoil.
fn copied(name: &str, to: &Path) -> PathBuf {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).expect("a folder");
        for entry in std::fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let place = to.join(entry.file_name().expect("a name"));
            if entry.is_dir() {
                copy(&entry, &place);
            } else {
                std::fs::copy(&entry, place).expect("copies");
            }
        }
    }
    let folder = to.join(name);
    copy(&fixture(name), &folder);
    folder
}

/// What is said of a fixture after this was done to it: one line.
fn said(name: &str, spoil: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let (registry, from, out) = (registry(), copied(name, folder.path()), folder.path().join("out"));
    spoil(&from);
    let error = import(&request(&registry, &from, &out)).expect_err(name).to_string();
    assert_eq!(error.lines().count(), 1, "{name}: {error}");
    assert!(!out.exists() && !folder.path().join("out.part").exists(), "{name}: nothing is left");
    error
}

/// Rewrites a safetensors file with one tensor changed.
fn change(file: &Path, name: &str, to: impl Fn(&Tensor) -> Tensor) {
    let opened = TensorFile::open(file).expect("opens");
    let of = |known: String| {
        let tensor = opened.tensor(&known, None, Device::Cpu).expect("is there");
        let tensor = if known == name { to(&tensor) } else { tensor };
        (known, tensor.contiguous())
    };
    let all: Vec<(String, Tensor)> = opened.names().expect("names").into_iter().map(of).collect();
    circuitlab_core::tensors::write(file, &all).expect("writes");
}

fn spoilt(tensor: &Tensor) -> Tensor {
    let copy = tensor.copy();
    let _ = copy.view([-1]).get(3).fill_(f64::NAN);
    copy
}

fn has(error: &str, words: &[&str]) {
    assert!(words.iter().all(|word| error.contains(word)), "{words:?} are not all in: {error}");
}

#[test]
fn layers_and_ranks_that_are_not_there_are_named() {
    let gone = |file: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(file)).expect("removes");
    has(&said("gemma_scope_2_clt", gone("params_layer_1.safetensors")), &["no layer 1, though it holds later ones"]);
    has(&said("gemma_scope", gone("layer_0/width_10/average_l0_7/params.npz")), &["no layer 0, though"]);
    has(&said("circuit_tracer_topk", gone("layer_1.safetensors")), &["no layer 1, though"]);
    has(&said("circuit_tracer_listed", gone("second.safetensors")), &["`transcoders` names `second.safetensors`", "no such file"]);
    has(&said("clt_forge_ranks", gone("rank0_clt_weights.safetensors")), &["no `rank0_clt_weights.safetensors`, though"]);
    has(
        &said("clt_forge_ranks", gone("rank2_clt_weights.safetensors")),
        &["`d_latent` is 10, and the weights have 7", "a rank may be missing"],
    );
    has(&said("clt_forge", gone("clt_weights.safetensors")), &["no `clt_weights.safetensors`"]);
    has(&said("clt_forge", gone("clt_cfg.json")), &["no `clt_cfg.json`"]);
    let fewer = said("gemma_scope_2_clt", gone("params_layer_2.safetensors"));
    has(&fewer, &["w_dec", "writes to 3 layers, and there are files of 2"]);
}

#[test]
#[allow(clippy::disallowed_methods, reason = "files of somebody else's")]
fn files_that_do_not_fit_together_are_named() {
    let cut =
        |file: &'static str, name: &'static str| move |folder: &Path| change(&folder.join(file), name, |tensor| tensor.narrow(0, 0, 5));
    has(&said("gemma_scope_2_clt", cut("params_layer_1.safetensors", "w_enc")), &["params_layer_1", "d_model=5"]);
    has(&said("gemma_scope_2_clt", cut("params_layer_1.safetensors", "threshold")), &["tensor `threshold`", "[5]", "[d_features=10]"]);
    has(&said("circuit_tracer_topk", cut("layer_2.safetensors", "b_dec")), &["layer_2", "tensor `b_dec`", "[d_model=6]"]);
    has(
        &said("clt_forge", cut("clt_weights.safetensors", "W_dec")),
        &["`cross_layer_decoders` is true, and `W_dec` has 5 blocks; expected 6"],
    );
    has(&said("clt_forge", cut("clt_weights.safetensors", "b_dec")), &["tensor `b_dec`", "[blocks=6, d_model=6]"]);
    let negative =
        |folder: &Path| change(&folder.join("clt_weights.safetensors"), "estimated_norm_scaling_factor_out", |tensor| tensor * -1.0);
    has(&said("clt_forge", negative), &["estimated_norm_scaling_factor_out", "expected numbers above 0"]);
    let integers = |folder: &Path| change(&folder.join("layer_0.safetensors"), "b_enc", |tensor| tensor.to_kind(Kind::Int64));
    has(&said("circuit_tracer_topk", integers), &["tensor `b_enc`", "Int64, expected floats"]);
    let twice = |folder: &Path| {
        std::fs::copy(folder.join("params_layer_0.safetensors"), folder.join("old_layer_0.safetensors")).expect("copies");
    };
    has(&said("gemma_scope_2_clt", twice), &["layer 0 is in `old_layer_0.safetensors` and in `params_layer_0.safetensors`"]);
    let remote = |folder: &Path| {
        std::fs::write(folder.join("config.yaml"), "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\ntranscoders: ['hf://a/b/c.npz']\n").expect("writes");
    };
    has(&said("circuit_tracer_listed", remote), &["`hf://a/b/c.npz`", "not on this machine"]);
    let bare = |folder: &Path| std::fs::remove_file(folder.join("config.yaml")).expect("removes");
    has(&said("circuit_tracer_topk", bare), &["does not say where it reads and writes", "--hooks mlp.hook_in,hook_mlp_out"]);
    let backwards = |folder: &Path| {
        std::fs::write(
            folder.join("config.yaml"),
            "model_kind: transcoder_set\nfeature_input_hook: hook_mlp_out\nfeature_output_hook: mlp.hook_in\n",
        )
        .expect("writes");
    };
    has(&said("circuit_tracer_topk", backwards), &["`hook_mlp_out` does not come before `mlp.hook_in`"]);
    let second = |folder: &Path| std::fs::write(folder.join("layer_1/params.npz"), "PK").expect("writes");
    has(&said("gemma_scope", second), &["layer 1 is in"]);
    let no_zip = |folder: &Path| std::fs::write(folder.join("layer_1/width_10/average_l0_8/params.npz"), "PK").expect("writes");
    has(&said("gemma_scope", no_zip), &["average_l0_8/params.npz", "not a whole archive of numpy arrays"]);
    let nothing = |folder: &Path| {
        std::fs::remove_dir_all(folder).expect("removes");
        std::fs::create_dir(folder).expect("a folder");
    };
    has(&said("gemma_scope", nothing), &["no transcoder: it holds no `config.yaml`"]);
    has(&said("gemma_scope", |folder| std::fs::remove_dir_all(folder).expect("removes")), &["there is no such folder"]);
}

#[test]
fn numbers_that_are_none_are_refused() {
    for (name, file, tensors) in [
        (
            "gemma_scope_2_plt",
            "transcoder_all/layer_1_width_10_l0_small_affine/params.safetensors",
            &["w_enc", "w_dec", "b_enc", "b_dec", "threshold", "affine_skip_connection"][..],
        ),
        ("clt_forge", "clt_weights.safetensors", &["W_enc", "W_dec", "b_enc", "b_dec", "log_threshold"][..]),
        ("circuit_tracer_listed", "third.safetensors", &["W_enc", "W_dec", "b_enc", "b_dec", "W_skip"][..]),
    ] {
        for tensor in tensors {
            let error = said(name, |folder| change(&folder.join(file), tensor, spoilt));
            has(&error, &["layer ", "NaN"]);
        }
    }
}

#[test]
fn a_transcoder_belongs_to_the_model_that_it_is_compared_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let (registry, from, out) = (registry(), graphs().join("llama_plt_relu_skip"), folder.path().join("out"));
    let [llama, gpt2] = ["llama", "gpt2"].map(|name| graphs().join(name));
    let other = import(&ImportRequest { model: Some(&gpt2), ..request(&registry, &from, &out) }).expect_err("another model").to_string();
    has(&other, &["differ in layers", "4", "3"]);
    let imported = import(&ImportRequest { model: Some(&llama), ..request(&registry, &from, &out) }).expect("its model");
    assert_eq!(imported.model.as_deref(), Some("llama"));
    let saved = opened(&out);
    let model = |path: &Path| circuitlab::model::open(&registry, &ModelSource::new(path)).expect("opens");
    saved.check_model(model(&llama).info()).expect("its model");
    let mut changed = model(&llama).info().clone();
    changed.fingerprint = "other".to_owned();
    has(&saved.check_model(&changed).expect_err("other weights").to_string(), &["fingerprint"]);
    assert_eq!(saved.card.scan, Some(Scan::One("oracle/llama_plt_relu_skip".to_owned())));
    assert!(tensor_files(&out) == tensor_files(&from), "circuit-tracer's own files come through as they are");
    let taken = import(&request(&registry, &from, &out)).expect_err("taken").to_string();
    has(&taken, &["exists already", "choose another --out"]);
}

#[test]
fn a_bias_of_many_blocks_and_a_type_are_what_was_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let (registry, from, out) = (registry(), fixture("clt_forge_ranks"), folder.path().join("out"));
    import(&request(&registry, &from, &out)).expect("imports");
    let file = TensorFile::open(&out.join("W_enc_0.safetensors")).expect("opens");
    assert_eq!(file.layout("W_enc_0").expect("is there").kind, Kind::BFloat16, "as it is");
    let refused = export_to(&out, &folder.path().join("npz"), Format::GemmaScope).expect_err("a CLT").to_string();
    has(&refused, &["its features write to several layers, which `--format gemma-scope` cannot hold"]);
}

#[test]
fn what_a_format_cannot_hold_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |from: &Path, format| export_to(from, &folder.path().join("out"), format).expect_err("cannot be held").to_string();
    let topk = graphs().join("llama_plt_topk");
    for format in [Format::GemmaScope, Format::GemmaScope2, Format::CltForge] {
        has(&refused(&topk, format), &["its activation is `topk`, which"]);
    }
    has(&refused(&graphs().join("llama_clt"), Format::CltForge), &["it reads `hook_resid_mid` and writes `hook_mlp_out`, and not"]);
    assert!(!folder.path().join("out").exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    #[allow(clippy::disallowed_methods, reason = "damaged files are what this test is about")]
    fn damaged_files_are_read_or_refused_in_a_line(which in 0_usize..5, at in 0.0..1.0, early: bool, byte: u8, cut in 0_usize..4) {
        let (name, file) = [
            ("gemma_scope", "layer_1/width_10/average_l0_8/params.npz"),
            ("gemma_scope", "layer_2/width_10/average_l0_9/params.npz"),
            ("gemma_scope_2_clt", "params_layer_0.safetensors"),
            ("clt_forge", "clt_weights.safetensors"),
            ("clt_forge_ranks", "clt_cfg.json"),
        ][which];
        let folder = tempfile::tempdir().expect("a folder");
        let (registry, from, out) = (registry(), copied(name, folder.path()), folder.path().join("out"));
        let mut bytes = std::fs::read(from.join(file)).expect("reads");
        // Headers come first, or last in an archive.
        let reach = if early { bytes.len().min(300) } else { bytes.len() };
        let place = (at * reach as f64) as usize;
        if cut == 0 { bytes.truncate(place) } else { bytes[place] = byte }
        std::fs::write(from.join(file), &bytes).expect("writes");
        if let Err(error) = import(&request(&registry, &from, &out)) {
            prop_assert_eq!(error.to_string().lines().count(), 1, "{}", error);
            prop_assert!(!out.exists());
        }
        if which < 2 {
            let _ = circuitlab::formats::check_npz(&from.join(file));
        }
    }
}
