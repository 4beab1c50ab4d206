//! The suite that every codec of CircuitLab goes through.
use circuitlab_core::{Construct, testing};

#[test]
fn bfp8_conforms() {
    for block in [1, 7, 32, 1024] {
        testing::codec::conforms(&circuitlab_codec_bfp8::Bfp8Config { block }.construct().expect("in range"));
    }
}
