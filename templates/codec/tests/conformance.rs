//! The suite that every codec of circuitlab goes through, and the look-up by name.

use circuitlab_core::codec::ChainSpec;
use circuitlab_core::{CodecChain, Registry, testing};

use circuitlab_codec_bf16 as _;

#[test]
fn bf16_conforms() {
    let registry = Registry::linked().expect("no name twice");
    let codec = registry.build::<dyn circuitlab_core::ActivationCodec>(&circuitlab_core::Spec::named("bf16")).expect("builds");
    testing::codec::conforms(&*codec);
    assert!(CodecChain::build(&registry, &ChainSpec::parse("bf16")).is_ok());
}
