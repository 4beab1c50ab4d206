//! `OLMo` 2: norms after attention and MLP and none before, one norm over all queries and one over all keys.

use circuitlab_core::Result;

use super::decoder::{DecoderKeys, Defaults, family, place_around};
use super::hugging_face::ConfigFile;
use super::transformer::{Biases, Description, NormPlaces, Place, QueryKeyNorm, Site};

family!("olmo2", Olmo2Config, "OLMo 2", describe = describe, place = place);

fn describe(config: &ConfigFile) -> Result<Description> {
    let plain = config.keys::<DecoderKeys>()?.llama(config, Defaults { eps: 1e-5, ..Defaults::LLAMA })?;
    let biases = Biases { mlp: false, ..plain.biases };
    Ok(Description { biases, norms: NormPlaces::After, query_key_norm: Some(QueryKeyNorm::AllHeads), ..plain })
}

fn place(site: Site) -> Option<Place> {
    match site {
        Site::Norm1(_) | Site::Norm2(_) => None,
        _ => place_around(site),
    }
}
