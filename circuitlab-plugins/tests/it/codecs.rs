//! Codecs, alone and chained.

use circuitlab_core::codec::ChainSpec;
use circuitlab_core::testing::codec::{chain_conforms, conforms};
use circuitlab_core::{ActivationCodec, BlockShape, CodecChain, Registry, Spec};

fn registry() -> Registry {
    circuitlab_plugins::link();
    Registry::linked().expect("no name twice")
}

fn chain(spec: &str) -> CodecChain {
    CodecChain::build(&registry(), &ChainSpec::parse(spec)).expect("known codecs")
}

#[test]
fn each_codec_conforms() {
    for spec in [
        Spec::named("none"),
        Spec::named("int8"),
        Spec::named("int8").with("block", 1),
        Spec::named("int8").with("block", 7),
        Spec::named("int4"),
        Spec::named("int4").with("block", 1),
        Spec::named("int4").with("block", 7),
        Spec::named("bf16"),
        Spec::named("zstd"),
        Spec::named("zstd").with("level", 1),
    ] {
        conforms(registry().build::<dyn ActivationCodec>(&spec).expect("known").as_ref());
    }
}

#[test]
fn each_chain_conforms() {
    for spec in ["none", "int8", "zstd", "int8+zstd", "int4+zstd", "bf16+zstd", "none+zstd", "none+zstd+zstd"] {
        chain_conforms(&chain(spec));
    }
}

#[test]
fn a_chain_states_every_setting() {
    let chain = chain("int8+zstd");
    assert_eq!(serde_json::to_string(chain.spec()).expect("plain data"), r#"[{"type":"int8","block":64},{"type":"zstd","level":3}]"#);
}

#[test]
fn int8_and_zstd_take_about_a_byte_a_value() {
    let shape = BlockShape { rows: 256, width: 128 };
    let mut stream = circuitlab_core::random::Stream::new(1, "values", 0);
    // Sums of uniform numbers: near enough to the bell of real activations.
    let values: Vec<f32> = (0..256 * 128).map(|_| (0..6).map(|_| stream.uniform() as f32 - 0.5).sum()).collect();
    let encoded = chain("int8+zstd").encode(&values, shape).expect("finite");
    assert!(encoded.len() < values.len() * 110 / 100, "{} bytes for {} values", encoded.len(), values.len());
}

#[test]
fn misspelt_codecs_and_settings_are_named() {
    let build = |json: &str| {
        let spec: ChainSpec = serde_json::from_str(json).expect("a chain");
        CodecChain::build(&registry(), &spec).expect_err("misspelt").to_string()
    };
    assert!(build(r#""int88+zstd""#).starts_with("unknown codec `int88`, did you mean `int8`?"));
    assert!(build(r#"[{"type": "int8", "blocks": 3}]"#).contains("did you mean `block`?"));
    assert_eq!(build(r#""zstd+int8""#), "codec: `int8` takes values, so it must stand first in `zstd+int8`");
}
