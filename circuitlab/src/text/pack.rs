//! Reads files, tokenises what they hold, and packs it.

use std::collections::VecDeque;

use circuitlab_core::{Content, ModelInfo, Piece};

use super::deal::{Deal, LONG_BYTES};
use super::layout::PackOptions;
use super::mix::{mix, part_of_mix};
use super::packed::PackedText;
use super::packer::Packer;
use super::source::SourceFile;
use super::tokenizer::Tokenizer;
use crate::progress::Progress;
use crate::{Error, Result};

/// Documents are handed to the tokenizer in lots of about this size, so that all cores have work.
const LOT_BYTES: usize = 4 << 20;

/// Pieces of long documents are as large as that each, so a lot of them grows until every core has one, or to this.
const LARGEST_LOT_BYTES: usize = 32 << 20;

/// Left-out documents are named in the log up to this many; after that they are only counted.
const NAMED_SKIPS: u64 = 20;

/// Reads, encodes and cuts files.
///
/// # Errors
/// Options that do not fit the model, files that cannot be read, and text without a single token. A part of several may have none.
pub fn pack(
    files: &[SourceFile],
    tokenizer: &Tokenizer,
    model: &ModelInfo,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<PackedText> {
    // The shares of a mix are those of the whole text.
    let deal = options.deal;
    let whole = PackOptions { deal: if options.weights.is_some() { Deal { part: 0, parts: 1, ..deal } } else { deal }, ..options.clone() };
    let options = &whole;
    let packer = Packer::new(options, model, tokenizer.special())?;
    let mut reading = Reading {
        tokenizer,
        options,
        packer,
        lot: VecDeque::new(),
        lot_bytes: 0,
        lot_pieces: 0,
        documents: 0,
        open: None,
        skipped: 0,
        groups: Vec::new(),
    };
    let total: u64 = files.iter().map(SourceFile::bytes).sum();
    progress.begin("tokenising", total, "bytes");
    let mut done = 0;
    for file in files {
        reading.add(file, &|read| progress.at(done + read, ""))?;
        done += file.bytes();
        progress.at(done, "");
    }
    let skipped = reading.skipped;
    if skipped > NAMED_SKIPS {
        tracing::warn!("{skipped} documents were left out in all; the first {NAMED_SKIPS} are named above");
    }
    let groups = std::mem::take(&mut reading.groups);
    let mixed = mix(reading.packer.finish()?, &groups, options)?;
    let packed = if options.deal == deal { mixed } else { part_of_mix(mixed, deal)? };
    let packed = PackedText { skipped, ..packed };
    progress.end();
    if packed.is_empty() && deal.parts <= 1 {
        let names: Vec<String> = files.iter().map(|file| format!("`{}`", file.path().display())).collect();
        let range = if options.range.is_all() { String::new() } else { format!(" in the range {}", options.range) };
        return Err(Error::Invalid(format!("there is no context of text{range} in {}", names.join(", "))));
    }
    Ok(packed)
}

struct Reading<'a> {
    tokenizer: &'a Tokenizer,
    options: &'a PackOptions,
    packer: Packer,
    /// Pieces that wait for the tokenizer.
    lot: VecDeque<Step>,
    lot_bytes: usize,
    lot_pieces: usize,
    /// How many documents have begun.
    documents: u64,
    /// The document whose end has not come, and whether it is ours.
    open: Option<bool>,
    skipped: u64,
    /// Contexts so far at the end of each of the user's paths.
    groups: Vec<usize>,
}

/// What the packer will be told, in order.
enum Step {
    Begin(u32, bool),
    Text(String),
    Tokens(Vec<u32>),
    End,
}

impl Reading<'_> {
    fn add(&mut self, file: &SourceFile, progress: &dyn Fn(u64)) -> Result<()> {
        let range = self.options.range;
        let mut total_bytes = 0;
        if !range.is_all() {
            for piece in file.documents()?.pieces {
                total_bytes += piece?.bytes() as u64;
            }
        }
        let mut cutter = range.cutter(total_bytes);
        let mut documents = file.documents()?;
        while let Some(piece) = documents.pieces.next() {
            let piece = piece?;
            let (bytes, last) = (piece.bytes(), piece.last);
            if let Content::Skipped(why) = &piece.content {
                self.skip(file, why);
                continue;
            }
            let wanted = match self.open {
                Some(wanted) => wanted,
                None => self.begin(&piece)?,
            };
            let part = cutter.cut(piece.content);
            if wanted {
                self.lot_bytes += bytes;
                self.lot_pieces += 1;
                self.lot.push_back(match part {
                    Content::Tokens(ids) => Step::Tokens(self.tokenizer.known(ids, file.path())?),
                    Content::Text(text) => Step::Text(text),
                    Content::Skipped(_) => Step::Text(String::new()),
                });
                if last {
                    self.lot.push_back(Step::End);
                }
            }
            self.open = (!last).then_some(wanted);
            if self.lot_bytes >= LARGEST_LOT_BYTES || (self.lot_bytes >= LOT_BYTES && self.lot_pieces >= rayon::current_num_threads()) {
                self.flush()?;
                progress(documents.read_bytes());
            }
        }
        if let Some(true) = self.open.take() {
            // A source that forgot the end of its last document.
            self.lot.push_back(Step::End);
        }
        self.flush()?;
        self.groups.resize((file.group() + 1).max(self.groups.len()), 0);
        self.groups[file.group()] = self.packer.contexts();
        Ok(())
    }

    /// A new document begins. Documents outside the range and of other jobs are counted too, so that a number means the same
    /// document everywhere.
    fn begin(&mut self, first: &Piece) -> Result<bool> {
        let number = u32::try_from(self.documents).map_err(|_| Error::Invalid("the text has more documents than 4 billion".to_owned()))?;
        self.documents += 1;
        let long = !first.last || first.bytes() > LONG_BYTES;
        let wanted = self.packer.wants(number, long);
        if wanted {
            self.lot.push_back(Step::Begin(number, long));
        }
        Ok(wanted)
    }

    fn skip(&mut self, file: &SourceFile, why: &str) {
        self.skipped += 1;
        if self.skipped <= NAMED_SKIPS {
            tracing::warn!("left out of `{}`: {why}", file.path().display());
        }
    }

    fn flush(&mut self) -> Result<()> {
        (self.lot_bytes, self.lot_pieces) = (0, 0);
        let lot = std::mem::take(&mut self.lot);
        let mut texts = Vec::new();
        let mut steps = Vec::with_capacity(lot.len());
        for step in lot {
            match step {
                Step::Text(text) => {
                    steps.push(Step::Text(String::new()));
                    texts.push(text);
                }
                other => steps.push(other),
            }
        }
        let mut encoded = if texts.is_empty() { Vec::new() } else { self.tokenizer.encode_all(texts)? }.into_iter();
        for step in steps {
            match step {
                Step::Begin(number, long) => self.packer.begin(number, long)?,
                Step::Text(_) => self.packer.add(&encoded.next().unwrap_or_default())?,
                Step::Tokens(ids) => self.packer.add(&ids)?,
                Step::End => self.packer.end()?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixture::model;
    use super::super::layout::BosPolicy;
    use super::super::packed::{Context, Origin};
    use super::*;

    fn pack_tokens(options: &PackOptions, documents: &[Vec<u32>], long: bool) -> PackedText {
        let mut packer = Packer::new(options, &model(), [98, 99]).expect("fits");
        for (number, tokens) in documents.iter().enumerate() {
            packer.begin(number as u32, long).expect("begins");
            for piece in tokens.chunks(3) {
                packer.add(piece).expect("adds");
            }
            packer.end().expect("ends");
        }
        packer.finish().expect("maps")
    }

    fn contexts(packed: &PackedText) -> Vec<(Vec<u32>, (u32, u32))> {
        let origin = |context: &Context<'_>| (context.origin(0).document, context.origin(0).position);
        packed.iter().map(|context| (context.ids().collect(), origin(&context))).collect()
    }

    fn options(context: usize) -> PackOptions {
        PackOptions::new(context)
    }

    #[test]
    fn contexts_stay_within_documents_and_short_ends_go() {
        let documents = [vec![1, 2, 3, 4, 5], vec![], vec![6, 7, 8, 1]];
        let packed = pack_tokens(&PackOptions { min_tokens: 2, ..options(4) }, &documents, false);
        assert_eq!(contexts(&packed), [(vec![99, 1, 2, 3], (0, 0)), (vec![99, 4, 5], (0, 3)), (vec![99, 6, 7, 8], (2, 0))]);
        assert_eq!(packed.tokens(), 8);
    }

    #[test]
    fn bos_and_eos_are_as_asked_for() {
        let documents = [vec![1, 2, 3, 98], vec![], vec![6]];
        let never = PackOptions { bos: BosPolicy::Never, eos: true, ..options(4) };
        let packed = pack_tokens(&never, &documents, false);
        assert_eq!(contexts(&packed), [(vec![1, 2, 3, 98], (0, 0)), (vec![98], (0, 4)), (vec![6, 98], (2, 0))]);
        assert_eq!(packed.iter().map(|context| context.plain_tokens).collect::<Vec<_>>(), [3, 0, 1]);
        let none = ModelInfo { bos: None, eos: None, ..model() };
        for (change, word) in [
            (PackOptions { bos: BosPolicy::Always, ..options(4) }, "no BOS"),
            (PackOptions { eos: true, ..options(4) }, "no EOS"),
            (PackOptions { cross_documents: true, ..options(4) }, "neither EOS nor BOS"),
        ] {
            assert!(change.check(&none).expect_err("lacking").to_string().contains(word));
            change.check(&model()).expect("has both");
        }
    }

    #[test]
    fn joined_documents_fill_contexts_and_rows_know_where_they_come_from() {
        let documents = [vec![1, 2], vec![], vec![3, 4, 5, 6, 7], vec![8]];
        let packed = pack_tokens(&PackOptions { cross_documents: true, ..options(5) }, &documents, false);
        let ids: Vec<Vec<u32>> = packed.iter().map(|context| context.tokens.to_vec()).collect();
        assert_eq!(ids, [vec![1, 2, 98, 3], vec![4, 5, 6, 7], vec![8]]);
        let origins: Vec<(u32, u32)> = packed
            .iter()
            .flat_map(|context| (0..context.tokens.len()).map(|index| context.origin(index)).collect::<Vec<Origin>>())
            .map(|origin| (origin.document, origin.position))
            .collect();
        assert_eq!(origins, [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (3, 0)]);
    }

    proptest! {
        #[test]
        fn every_token_is_in_one_context_of_one_part(
            documents in prop::collection::vec(prop::collection::vec(0_u32..50, 0..30), 0..6),
            context in 2_usize..9,
            parts in 1_u64..5,
            long: bool,
            cross: bool,
        ) {
            let mut back: Vec<Vec<Option<u32>>> = documents.iter().map(|tokens| vec![None; tokens.len()]).collect();
            for part in 0..parts {
                let options = PackOptions { deal: Deal { seed: 7, part, parts }, cross_documents: cross, ..options(context) };
                let packed = pack_tokens(&options, &documents, long);
                for piece in packed.iter() {
                    prop_assert!(piece.positions() <= context);
                    prop_assert_eq!(piece.ids().count(), piece.positions());
                    for (index, token) in piece.tokens.iter().enumerate().filter(|(_, token)| **token < 50) {
                        let Origin { document, position } = piece.origin(index);
                        let place = &mut back[document as usize][position as usize];
                        prop_assert_eq!(place.replace(*token), None);
                    }
                }
            }
            let expected: Vec<Vec<Option<u32>>> = documents.iter().map(|tokens| tokens.iter().copied().map(Some).collect()).collect();
            prop_assert_eq!(back, expected);
        }
    }
}
