//! Which documents are whose, when several jobs read one text.

use circuitlab_core::random::Stream;

/// Documents of more bytes than this, or of several pieces, are dealt out context by context.
pub(super) const LONG_BYTES: usize = 256 << 10;

/// One of several parts of a text's documents.
///
/// A document belongs to the part that a hash of it names, so that no part needs to know of the others. A long document's contexts
/// are dealt out over all parts, so that one big file gives each of them work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deal {
    /// Seed of the hash.
    pub seed: u64,
    /// The part, from 0.
    pub part: u64,
    /// How many parts there are, at least 1.
    pub parts: u64,
}

impl Deal {
    /// Everything.
    pub const WHOLE: Self = Self { seed: 0, part: 0, parts: 1 };

    /// How a document is dealt with.
    pub(super) fn of(self, document: u32, long: bool) -> Dealt {
        if self.parts <= 1 {
            return Dealt::Own;
        }
        let hash = Stream::new(self.seed, "documents", u64::from(document)).next_u64() % self.parts;
        match (long, hash == self.part) {
            // Context `c` is ours where (hash + c) % parts == part.
            (true, _) => Dealt::Contexts { first: (self.part + self.parts - hash) % self.parts, step: self.parts },
            (false, true) => Dealt::Own,
            (false, false) => Dealt::Others,
        }
    }
}

/// What of a document belongs to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dealt {
    Own,
    Others,
    /// Contexts `first`, `first + step`, ..
    Contexts {
        first: u64,
        step: u64,
    },
}

impl Dealt {
    pub(super) fn has(self, context: u64) -> bool {
        match self {
            Self::Own => true,
            Self::Others => false,
            Self::Contexts { first, step } => context % step == first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_and_context_belongs_to_one_part() {
        for parts in [1, 2, 3, 7] {
            let deals: Vec<Deal> = (0..parts).map(|part| Deal { seed: 3, part, parts }).collect();
            let mut documents = vec![0; parts as usize];
            for document in 0..200 {
                let owners: Vec<usize> = (0..deals.len()).filter(|part| deals[*part].of(document, false).has(0)).collect();
                assert_eq!(owners.len(), 1);
                documents[owners[0]] += 1;
                for context in 0..20 {
                    assert_eq!(deals.iter().filter(|deal| deal.of(document, true).has(context)).count(), 1);
                }
            }
            assert!(documents.iter().all(|count| *count > 100 / parts), "{documents:?}");
        }
    }
}
