//! The bundled model and text.

use std::path::{Path, PathBuf};

use circuitlab::cache::{Cache, CacheConfig, CacheJob, JobShare, Side, build, verify};
use circuitlab::{Silent, model};
use circuitlab_core::{LanguageModel, ModelSource, Registry};

fn cached(registry: &Registry, model: &dyn LanguageModel, out: &Path, codec: &str) -> Cache {
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/shakespeare");
    let config = CacheConfig {
        range: "0.98..1".parse().expect("a range"),
        codec: circuitlab_core::codec::ChainSpec::parse(codec),
        chunk_rows: Some(2000),
        ..CacheConfig::default()
    };
    let job = CacheJob {
        registry,
        model,
        tokenizer: &examples.join("model"),
        text: &[examples.join("shakespeare.txt")],
        out,
        config: &config,
        share: JobShare::WHOLE,
        resume: false,
    };
    build(&job, &Silent).expect("builds");
    assert!(verify(out, &Silent).expect("readable").is_empty());
    Cache::open(out, registry).expect("whole")
}

#[test]
fn the_bundled_model_is_cached_within_the_codecs_bounds() {
    circuitlab_plugins::link();
    let registry = Registry::linked().expect("no name twice");
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/shakespeare/model");
    let model = model::open(&registry, &ModelSource::new(&folder)).expect("the bundled model");
    let place = tempfile::tempdir().expect("a folder");
    let exact = cached(&registry, model.as_ref(), &place.path().join("exact"), "none");
    let small = cached(&registry, model.as_ref(), &place.path().join("small"), "int8+zstd");
    assert_eq!((exact.rows(), exact.chunk_rows()), (small.rows(), small.chunk_rows()));
    assert!(exact.rows() > 5000, "{}", exact.rows());
    exact.identity().check_model(model.info()).expect("its own model");
    for chunk in 0..exact.chunk_rows().len() {
        let (exact, small) = (exact.chunk(chunk).expect("opens"), small.chunk(chunk).expect("opens"));
        assert_eq!(exact.index().expect("whole"), small.index().expect("whole"));
        for (layer, side) in (0..model.info().layers).flat_map(|layer| [(layer, Side::Inputs), (layer, Side::Targets)]) {
            let (exact, small) = (exact.values(layer, side).expect("whole"), small.values(layer, side).expect("whole"));
            let power = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
            let lost = power(&mut exact.iter().zip(&small).map(|(a, b)| a - b)) / power(&mut exact.iter().copied());
            // Half a step of 1/127 of the largest of 64: about 1e-4 of the power of bell-shaped values.
            assert!(lost < 3e-4, "layer {layer}, {side:?}: {lost}");
        }
    }
}
