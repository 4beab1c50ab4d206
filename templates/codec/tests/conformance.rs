//! The suite that every codec of CircuitLab goes through.
use circuitlab_core::{Construct, testing};

#[test]
fn bfp8_conforms() {
    testing::codec::conforms(&circuitlab_codec_bfp8::Bfp8Config::default().construct().expect("in range"));
    testing::codec::conforms(&circuitlab_codec_bfp8::Bfp8Config { block: 7 }.construct().expect("in range"));
}
