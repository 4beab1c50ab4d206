//! The saved folder, read with nothing of ours: the safetensors crate and loops.

use std::fs;
use std::path::Path;

use circuitlab_tests::{arg, model, succeed};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::pipeline;

struct Folder {
    files: Vec<(String, Vec<u8>)>,
}

impl Folder {
    fn read(path: &Path) -> Self {
        let files = fs::read_dir(path)
            .expect("a folder")
            .filter_map(Result::ok)
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "safetensors"))
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file")))
            .collect();
        Self { files }
    }

    /// Shape and values of a tensor in a file.
    fn tensor(&self, file: &str, name: &str) -> (Vec<usize>, Vec<f64>) {
        let (_, bytes) = self.files.iter().find(|(known, _)| known == file).unwrap_or_else(|| panic!("no file {file}"));
        let whole = SafeTensors::deserialize(bytes).expect("safetensors");
        values(&whole.tensor(name).unwrap_or_else(|_| panic!("no tensor {name}")))
    }
}

fn values(view: &TensorView<'_>) -> (Vec<usize>, Vec<f64>) {
    assert_eq!(view.dtype(), Dtype::F32);
    let numbers = view.data().chunks_exact(4).map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().expect("four bytes"))));
    (view.shape().to_vec(), numbers.collect())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Active features of one row: a = h where h > threshold.
fn encode(folder: &Folder, layer: usize, x: &[f64]) -> Vec<f64> {
    let file = format!("W_enc_{layer}.safetensors");
    let (shape, w_enc) = folder.tensor(&file, &format!("W_enc_{layer}"));
    let (_, b_enc) = folder.tensor(&file, &format!("b_enc_{layer}"));
    let (_, threshold) = folder.tensor(&file, &format!("threshold_{layer}"));
    let pre_act = |feature: usize| dot(&w_enc[feature * shape[1]..(feature + 1) * shape[1]], x) + b_enc[feature];
    (0..shape[0]).map(|feature| Some(pre_act(feature)).filter(|h| *h > threshold[feature]).unwrap_or(0.0)).collect()
}

#[test]
fn a_checkpoint_reproduces_its_own_reconstruction_from_raw_activations() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &["--codec", "none"]);
    let run = pipeline::train(folder.path(), &cache, &[]);
    let checkpoint = run.join("checkpoints/step-00000020");
    let saved = Folder::read(&checkpoint);
    let normalised = Folder::read(&checkpoint.join("train"));
    let card = fs::read_to_string(checkpoint.join("config.yaml")).expect("a card");
    for line in
        ["model_kind: cross_layer_transcoder", "feature_input_hook: mlp.hook_in", "feature_output_hook: hook_mlp_out", "model_name: model"]
    {
        assert!(card.lines().any(|have| have == line), "`{line}` is not in\n{card}");
    }
    let scales = |key: &str| -> Vec<f64> {
        let rest = card.split(&format!("{key}:")).nth(1).expect("in the card");
        rest.split(|end: char| end == '-' || end.is_whitespace())
            .filter_map(|word| word.trim_matches(['[', ']', ',']).parse().ok())
            .take(4)
            .collect()
    };
    let (input_scales, target_scales) = (scales("input_scales"), scales("target_scales"));
    assert_eq!((input_scales.len(), target_scales.len()), (4, 4), "{card}");

    let tokens = repeatable_tokens(folder.path());
    let out = folder.path().join("activations.safetensors");
    succeed(&["model", "activations", "--model", arg(&model()), "--tokens", arg(&tokens), "--out", arg(&out)]);
    let bytes = fs::read(&out).expect("activations");
    let activations = SafeTensors::deserialize(&bytes).expect("safetensors");
    let rows: Vec<Vec<f64>> = (0..4).map(|layer| values(&activations.tensor(&format!("mlp_in.{layer}")).expect("captured")).1).collect();

    let mut checked = 0;
    for row in 1..20 {
        let x: Vec<&[f64]> = rows.iter().map(|layer| &layer[row * 128..(row + 1) * 128]).collect();
        let acts: Vec<Vec<f64>> = (0..4).map(|layer| encode(&saved, layer, x[layer])).collect();
        for (target, target_scale) in target_scales.iter().enumerate() {
            let raw = decode(&saved, &acts, target, |s| (format!("W_dec_{s}.safetensors"), format!("W_enc_{target}.safetensors")));
            let want = from_training_weights(&normalised, &x, &input_scales, target);
            for (raw, want) in raw.iter().zip(&want) {
                let want = want / target_scale;
                assert!((raw - want).abs() < 1e-5, "row {row}, layer {target}: {raw} is not {want}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 19 * 4 * 128);
}

/// Adds up what the source layers write to a target layer.
fn decode(folder: &Folder, acts: &[Vec<f64>], target: usize, files: impl Fn(usize) -> (String, String)) -> Vec<f64> {
    let (_, mut out) = folder.tensor(&files(0).1, &format!("b_dec_{target}"));
    for (source, acts) in acts.iter().enumerate().take(target + 1) {
        let (shape, w_dec) = folder.tensor(&files(source).0, &format!("W_dec_{source}"));
        assert_eq!(shape, [64, 4 - source, 128], "features, targets, d_model");
        for (feature, act) in acts.iter().enumerate().filter(|(_, act)| **act != 0.0) {
            let start = (feature * shape[1] + target - source) * shape[2];
            for (out, weight) in out.iter_mut().zip(&w_dec[start..start + shape[2]]) {
                *out += act * weight;
            }
        }
    }
    out
}

/// The same from the weights that training goes on with, which take and give normalised rows.
fn from_training_weights(folder: &Folder, x: &[&[f64]], input_scales: &[f64], target: usize) -> Vec<f64> {
    let file = |layer: usize| format!("layer-{layer:03}.safetensors");
    let acts: Vec<Vec<f64>> = (0..4)
        .map(|layer| {
            let scaled: Vec<f64> = x[layer].iter().map(|value| value * input_scales[layer]).collect();
            let (shape, w_enc) = folder.tensor(&file(layer), &format!("W_enc_{layer}"));
            let (_, b_enc) = folder.tensor(&file(layer), &format!("b_enc_{layer}"));
            let (_, log_threshold) = folder.tensor(&file(layer), &format!("log_threshold_{layer}"));
            let pre_act = |feature: usize| dot(&w_enc[feature * shape[1]..(feature + 1) * shape[1]], &scaled) + b_enc[feature];
            (0..shape[0]).map(|feature| Some(pre_act(feature)).filter(|h| *h > log_threshold[feature].exp()).unwrap_or(0.0)).collect()
        })
        .collect();
    decode(folder, &acts, target, |source| (file(source), file(target)))
}

/// One context of twenty tokens, BOS first.
fn repeatable_tokens(folder: &Path) -> std::path::PathBuf {
    let tokens: Vec<u8> =
        (0..20_i64).map(|place| if place == 0 { 0 } else { (place * 37) % 1000 + 2 }).flat_map(i64::to_le_bytes).collect();
    let view = TensorView::new(Dtype::I64, vec![1, 20], &tokens).expect("fits");
    let path = folder.join("tokens.safetensors");
    let whole = safetensors::serialize([("tokens", view)], None).expect("lays out");
    fs::File::create(&path).and_then(|mut file| std::io::Write::write_all(&mut file, &whole)).expect("writes");
    path
}
