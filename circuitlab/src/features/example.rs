//! Text on which a feature fires, or does not.

use serde::{Deserialize, Serialize};

/// Tokens of a document after which another unit begins, see [`Place::unit`].
const UNIT_TOKENS: u32 = 4096;

/// Where a window lies in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The number of its document.
    pub document: u32,
    /// The position in the document at which its context begins.
    pub context: u32,
    /// The position of its first token after the beginning of the context.
    pub offset: u32,
}

/// What examples are used for: those that a label was made from are never used to score it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Labels are made from them.
    Label,
    /// Labels are scored on them.
    Score,
}

impl Place {
    /// What is kept together when examples are divided between [`Purpose`]s: a document, or, of documents of more than 4,096 tokens, all contexts
    /// that begin in the same 4,096 tokens. No token of a context is in two units, unless contexts overlap.
    pub fn unit(self) -> (u32, u32) {
        (self.document, self.context / UNIT_TOKENS)
    }

    /// What examples of its unit are used for. Half of all units, by a hash, is for each.
    pub fn purpose(self) -> Purpose {
        let (document, part) = self.unit();
        if mix(u64::from(document) << 32 | u64::from(part)) & 1 == 0 { Purpose::Label } else { Purpose::Score }
    }

    /// A number as good as random that depends on the place, a seed and whatever `of` says: the same for any order and division of the work.
    pub fn draw(self, seed: u64, of: u64) -> u64 {
        let place = mix(u64::from(self.document) << 32 | u64::from(self.context)) ^ u64::from(self.offset);
        mix(mix(place ^ mix(seed)).wrapping_add(of))
    }
}

/// The finaliser of `SplitMix64` (Steele, Lea and Flood 2014): every bit of the result depends on every bit of the number.
pub(super) const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A window of the text in which a feature fires, with text around it for reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Where the window is.
    pub place: Place,
    /// The window and the tokens around it, all of one context.
    pub tokens: Vec<u32>,
    /// How many tokens stand before the window.
    pub before: u8,
    /// How many tokens the window has.
    pub length: u8,
    /// Where among the tokens the feature fires, and how strongly: in order, with at least one in the window.
    pub firings: Vec<(u8, f32)>,
}

impl Example {
    /// The strongest firing in the window and its place among the tokens; the first of several.
    pub fn peak(&self) -> (usize, f32) {
        let window = usize::from(self.before)..usize::from(self.before) + usize::from(self.length);
        let inside = self.firings.iter().map(|(at, value)| (usize::from(*at), *value)).filter(|(at, _)| window.contains(at));
        inside.fold((window.start, f32::NEG_INFINITY), |best, firing| if firing.1 > best.1 { firing } else { best })
    }

    /// The activation on each token.
    pub fn activations(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.tokens.len()];
        for (at, value) in &self.firings {
            dense[usize::from(*at)] = *value;
        }
        dense
    }

    /// The same without the tokens around the window.
    #[must_use]
    pub fn window(&self) -> Self {
        let inside = usize::from(self.before)..usize::from(self.before) + usize::from(self.length);
        Self {
            place: self.place,
            tokens: self.tokens[inside.clone()].to_vec(),
            before: 0,
            length: self.length,
            firings: self
                .firings
                .iter()
                .filter(|(at, _)| inside.contains(&usize::from(*at)))
                .map(|(at, value)| (at - self.before, *value))
                .collect(),
        }
    }
}

/// A window of the text in which a feature does not fire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// Where it is.
    pub place: Place,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// A feature that is like this one and fires in the window, by its number in the store, where the window was chosen for that.
    pub like: Option<u32>,
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn windows_are_cut_out_and_peaks_found() {
        let place = Place { document: 3, context: 127, offset: 4 };
        let example =
            Example { place, tokens: vec![9, 8, 7, 6, 5], before: 2, length: 2, firings: vec![(0, 9.0), (2, 1.0), (3, 2.0), (4, 5.0)] };
        assert_eq!(example.peak(), (3, 2.0));
        assert_eq!(example.activations(), [9.0, 0.0, 1.0, 2.0, 5.0]);
        let window = example.window();
        assert_eq!((window.tokens.as_slice(), window.activations().as_slice()), ([7, 6].as_slice(), [1.0, 2.0].as_slice()));
        assert_eq!(window.peak(), (1, 2.0));
    }

    #[test]
    fn draws_are_even() {
        let mut labels = 0;
        let mut low = 0;
        for document in 0..10_000 {
            let place = Place { document, context: 0, offset: 0 };
            labels += u32::from(place.purpose() == Purpose::Label);
            low += u32::from(place.draw(1, 2) < u64::MAX / 4);
        }
        assert!((4_800..5_200).contains(&labels) && (2_350..2_650).contains(&low), "{labels} {low}");
    }

    proptest! {
        #[test]
        fn what_a_label_is_made_from_and_what_it_is_scored_on_share_no_unit(
            places in prop::collection::vec((0_u32..20, 0_u32..20_000, 0_u32..128), 1..200),
        ) {
            let mut purposes = HashMap::new();
            for (document, context, offset) in places {
                let place = Place { document, context, offset };
                let purpose = *purposes.entry(place.unit()).or_insert_with(|| place.purpose());
                prop_assert_eq!(purpose, place.purpose());
                prop_assert_eq!(place.unit().0, document);
                prop_assert!(context >= 4096 || place.unit().1 == 0, "a document of up to 4,096 tokens is one unit");
            }
        }
    }
}
