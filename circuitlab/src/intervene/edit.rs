//! The visitor that changes a forward pass.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use circuitlab_core::{Action, BlockHook, Error, HookPoint, HookVisitor, Result, Scope};
use tch::{Kind, Tensor};

use super::change::Target;
use super::{Change, Features, Intervention, Mode, Want};
use crate::saved::SavedTranscoder;

/// What a frozen attention pattern is taken from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Patterns<'a> {
    /// Nothing: patterns are those of the pass.
    Live,
    /// The first row of the batch, in which nothing is changed.
    FirstRow,
    /// Another pass of the prompt, layer by layer: `[1, head, query, key]`.
    Given(&'a [Tensor]),
}

/// What a pass is to do, and over what.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) saved: &'a SavedTranscoder,
    /// What is changed in each row of the batch. In a constrained pass the first row is the one that others are held to.
    pub(super) rows: Vec<&'a [Intervention]>,
    pub(super) mode: &'a Mode,
    pub(super) patterns: Patterns<'a>,
    /// Positions of the prompt.
    pub(super) prompt: usize,
    /// How many of them have no features.
    pub(super) special: usize,
    /// All positions of this pass and of those before it.
    pub(super) total: usize,
    /// Whether the first row is one in which nothing is changed; its activations are kept where anything is.
    pub(super) clean_row: bool,
    pub(super) want: Want,
    /// Positions before this one are not kept.
    pub(super) keep_from: usize,
}

/// Changes a pass as planned, and keeps the features that it meets, row by row.
#[derive(Debug)]
pub(super) struct Edit<'a> {
    plan: Plan<'a>,
    hooks: (BlockHook, BlockHook),
    /// Layers that something is changed in.
    edited: BTreeSet<usize>,
    /// Layers whose output changes.
    reached: BTreeSet<usize>,
    /// The linear skips of the layers whose outputs are held: `[d_model, d_model]`.
    skips: BTreeMap<usize, Tensor>,
    /// By how much a skip's part of the output differs from that of the first row.
    skipped: Option<Tensor>,
    /// What is added to each layer's output: `[batch * position, d_model]`.
    pending: BTreeMap<usize, Tensor>,
    found: Vec<Features>,
    /// Pre-activations of the first row, where they are wanted.
    clean_pre_acts: Features,
}

/// A change of one feature at one place of a pass.
struct Entry {
    row: usize,
    position: usize,
    feature: usize,
    /// `(c, m)` of the difference `c + m a`.
    difference: (f64, f64),
}

/// A vector that is added at some positions of a row.
struct Along<'a> {
    row: usize,
    range: Range<usize>,
    direction: &'a Tensor,
}

impl<'a> Edit<'a> {
    pub(super) fn new(plan: Plan<'a>) -> crate::Result<Self> {
        let saved = plan.saved;
        let held = plan.mode.held();
        let edited: BTreeSet<usize> = plan.rows.iter().flat_map(|row| row.iter().map(|one| one.layer)).collect();
        let mut reached = BTreeSet::new();
        for layer in &edited {
            let targets = saved.transcoder.targets(saved.dims, *layer)?;
            // A direction is added to its layer, which a feature of that layer writes to in any case.
            reached.extend(targets.chain([*layer]).filter(|target| !plan.mode.is_constrained() || held.contains(target)));
        }
        let mut skips = BTreeMap::new();
        for layer in held {
            if let Some(skip) = saved.transcoder.dictionary(&saved.params, layer)?.skip {
                skips.insert(layer, skip);
            }
        }
        let hooks = saved.hooks()?;
        crate::saved::check_hooks(hooks.0, hooks.1)?;
        let found = plan.rows.iter().map(|_| Features::default()).collect();
        Ok(Self {
            plan,
            hooks,
            edited,
            reached,
            skips,
            skipped: None,
            pending: BTreeMap::new(),
            found,
            clean_pre_acts: Features::default(),
        })
    }

    /// The features of each row, and the pre-activations of the row without changes.
    pub(super) fn into_found(self) -> (Vec<Features>, Features) {
        (self.found, self.clean_pre_acts)
    }

    /// Whether the norms are held too.
    fn holds_norms(&self) -> bool {
        self.plan.mode.held() == (0..self.plan.saved.dims.layers)
    }

    fn wants_in_block(&self, layer: usize, hook: BlockHook) -> bool {
        use BlockHook::{Ln1PostScale, Ln1Scale, Ln2PostScale, Ln2Scale, Pattern};
        match hook {
            Pattern => !matches!(self.plan.patterns, Patterns::Live),
            Ln1Scale | Ln1PostScale | Ln2Scale | Ln2PostScale => self.holds_norms(),
            hook if hook == self.hooks.0 => {
                self.plan.want != Want::Logits || self.edited.contains(&layer) || self.skips.contains_key(&layer)
            }
            hook if hook == self.hooks.1 => self.plan.mode.held().contains(&layer) || self.reached.contains(&layer),
            _ => false,
        }
    }

    /// The pattern to go on with, where it is not this one.
    fn pattern(&self, layer: usize, value: &Tensor) -> Result<Action> {
        match self.plan.patterns {
            Patterns::Live => Ok(Action::Continue),
            Patterns::FirstRow => Ok(Action::Replace(first_row(value)?)),
            Patterns::Given(patterns) => {
                let (batch, _, queries, keys) = value.size4()?;
                let first = self.plan.total as i64 - queries;
                let prompt = self.plan.prompt as i64;
                let (Some(pattern), true) = (patterns.get(layer), first < prompt) else {
                    return Ok(Action::Continue);
                };
                // A model that runs all tokens again shows later queries too, which are not held.
                let padded = pattern.f_narrow(2, first, prompt - first)?.f_constant_pad_nd([0, keys - prompt])?;
                let held = padded.f_expand([batch, -1, -1, -1], false)?;
                let later = value.f_narrow(2, prompt - first, queries - (prompt - first))?;
                Ok(Action::Replace(Tensor::f_cat(&[held.f_to_kind(value.kind())?, later], 2)?))
            }
        }
    }

    /// Reads a layer's input: keeps features, and notes what is added to the outputs that come.
    fn read(&mut self, layer: usize, value: &Tensor) -> Result<()> {
        let (batch, positions, _) = value.size3()?;
        let first = self.first(batch, positions)?;
        let inputs = value.f_to_kind(Kind::Float)?;
        if let Some(skip) = self.skips.get(&layer) {
            self.skipped = Some((&inputs - inputs.narrow(0, 0, 1)).f_matmul(&skip.tr())?);
        }
        let constrained = self.plan.mode.is_constrained();
        let (entries, directions) = self.entries(layer, first);
        let kept = self.plan.want != Want::Logits;
        let all = self.plan.want == Want::Activations || (!entries.is_empty() && !constrained);
        let acts = match (all, kept || !entries.is_empty()) {
            (true, _) => Some(self.acts(layer, &inputs, first)?),
            (false, true) => Some(self.acts(layer, &inputs.narrow(0, 0, 1), first)?),
            (false, false) => None,
        };
        if let Some(acts) = &acts {
            if kept {
                self.keep(layer, first, &inputs, acts)?;
            }
            self.spread(layer, first, positions, &entries, acts, &inputs.size())?;
        }
        for Along { row, range, direction } in directions {
            if self.reached.contains(&layer) {
                let pending = self.pending(layer, &inputs.size(), &inputs)?;
                let rows = pending.f_narrow(0, row as i64 * positions + (range.start - first) as i64, range.len() as i64)?;
                let _ = rows.shallow_clone().f_add_(&direction.f_to_device(rows.device())?.f_to_kind(Kind::Float)?)?;
            }
        }
        Ok(())
    }

    /// The position of a value's first row.
    fn first(&self, batch: i64, positions: i64) -> Result<usize> {
        let rows = self.plan.rows.len();
        match self.plan.total.checked_sub(positions as usize) {
            Some(first) if batch as usize == rows => Ok(first),
            _ => Err(Error::Invalid(format!(
                "the model shows {batch} rows of {positions} positions, where {rows} of at most {} are run",
                self.plan.total
            ))),
        }
    }

    /// What is changed in a layer from a position on: features, and directions with their rows and positions.
    fn entries(&self, layer: usize, first: usize) -> (Vec<Entry>, Vec<Along<'a>>) {
        let (mut entries, mut directions) = (Vec::new(), Vec::new());
        for (row, interventions) in self.plan.rows.iter().enumerate() {
            let mut last: BTreeMap<(usize, usize), Change> = BTreeMap::new();
            for one in interventions.iter().filter(|one| one.layer == layer) {
                let range = one.positions.within(first..self.plan.total);
                match &one.target {
                    Target::Feature { feature, change } => last.extend(range.map(|position| ((position, *feature), *change))),
                    Target::Decoder { feature, times } => {
                        let difference = (*times, 0.0);
                        entries.extend(range.map(|position| Entry { row, position, feature: *feature, difference }));
                    }
                    Target::Direction(direction) => directions.push(Along { row, range, direction }),
                }
            }
            let entry =
                |((position, feature), change): ((usize, usize), Change)| Entry { row, position, feature, difference: change.difference() };
            entries.extend(last.into_iter().map(entry));
        }
        (entries, directions)
    }

    /// Activations, zero where there are no features: `[batch, position, d_features]`.
    fn acts(&self, layer: usize, inputs: &Tensor, first: usize) -> Result<Tensor> {
        let saved = self.plan.saved;
        let encode = |rows: &Tensor| saved.transcoder.encode(&saved.params, &*saved.activation, layer, rows);
        let (batch, positions, _) = inputs.size3()?;
        let acts = if saved.activation.scope() == Scope::Batch {
            // Rows of a batch are different runs, which do not see each other.
            let each = (0..batch).map(|row| encode(&inputs.select(0, row))).collect::<Result<Vec<_>>>()?;
            Tensor::f_stack(&each, 0)?
        } else {
            encode(&inputs.f_flatten(0, 1)?)?.f_view([batch, positions, -1])?
        };
        self.without_special(&acts, first)
    }

    fn without_special(&self, values: &Tensor, first: usize) -> Result<Tensor> {
        let special = self.plan.special.saturating_sub(first) as i64;
        if special > 0 {
            let _ = values.f_narrow(1, 0, special.min(values.size()[1]))?.f_zero_()?;
        }
        Ok(values.shallow_clone())
    }

    /// Keeps a layer's features. `acts` are those of all rows, or of the first.
    fn keep(&mut self, layer: usize, first: usize, inputs: &Tensor, acts: &Tensor) -> Result<()> {
        let skip = self.plan.keep_from.saturating_sub(first) as i64;
        let pre_acts = if self.plan.want == Want::PreActivations {
            let dictionary = self.plan.saved.transcoder.dictionary(&self.plan.saved.params, layer)?;
            let (batch, positions, _) = inputs.size3()?;
            let flat = dictionary.b_enc.f_addmm(&inputs.f_flatten(0, 1)?, &dictionary.w_enc.tr())?;
            Some(self.without_special(&flat.f_view([batch, positions, -1])?, first)?)
        } else {
            None
        };
        for row in 0..self.found.len() {
            let clean = row == 0 && self.plan.clean_row;
            match &pre_acts {
                Some(pre_acts) if !clean => {
                    let (before, rest) = self.found.split_at_mut(row);
                    let sites = before.first().map(|clean| clean.of_layer(layer)).unwrap_or_default();
                    rest[0].push_at(sites, &pre_acts.select(0, row as i64)).map_err(into_core)?;
                }
                _ => {
                    let rows = acts.f_select(0, row as i64)?;
                    let rows = rows.f_narrow(0, skip, rows.size()[0] - skip)?;
                    self.found[row].push_active(layer, first + skip as usize, &rows).map_err(into_core)?;
                    if let Some(pre_acts) = &pre_acts {
                        let sites = self.found[row].of_layer(layer);
                        self.clean_pre_acts.push_at(sites, &pre_acts.select(0, row as i64)).map_err(into_core)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds what changed activations of a layer make to what its features write to.
    fn spread(&mut self, layer: usize, first: usize, positions: i64, entries: &[Entry], acts: &Tensor, size: &[i64]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let saved = self.plan.saved;
        let constrained = self.plan.mode.is_constrained();
        let device = acts.device();
        let integers = |of: &dyn Fn(&Entry) -> i64| Tensor::from_slice(&entries.iter().map(of).collect::<Vec<_>>()).f_to_device(device);
        let floats = |of: &dyn Fn(&Entry) -> f64| {
            Tensor::from_slice(&entries.iter().map(of).collect::<Vec<_>>()).to_kind(Kind::Float).f_to_device(device)
        };
        let place = |entry: &Entry| (entry.position - first) as i64;
        let rows = integers(&|entry| entry.row as i64 * positions + place(entry))?;
        // Held to the run without changes, a feature starts from its activation there.
        let starts = integers(&|entry| if constrained { place(entry) } else { entry.row as i64 * positions + place(entry) })?;
        let features = integers(&|entry| entry.feature as i64)?;
        let current = acts.f_flatten(0, 1)?.f_index(&[Some(&starts), Some(&features)])?;
        let difference = floats(&|entry| entry.difference.0)? + floats(&|entry| entry.difference.1)? * current;
        let decoder = saved.transcoder.dictionary(&saved.params, layer)?.w_dec;
        let targets = saved.transcoder.targets(saved.dims, layer)?;
        for target in targets.clone() {
            if !self.reached.contains(&target) {
                continue;
            }
            let written = decoder.f_select(1, (target - targets.start) as i64)?.f_index_select(0, &features)?.f_to_kind(Kind::Float)?;
            let _ = self.pending(target, size, acts)?.f_index_add_(0, &rows, &(written * difference.unsqueeze(1)))?;
        }
        Ok(())
    }

    /// What is added to a layer's output, of the size of an input, on the device of `like`.
    fn pending(&mut self, layer: usize, size: &[i64], like: &Tensor) -> Result<Tensor> {
        if let Some(pending) = self.pending.get(&layer) {
            return Ok(pending.shallow_clone());
        }
        let zeros = Tensor::f_zeros([size[0] * size[1], size[2]], (Kind::Float, like.device()))?;
        Ok(self.pending.entry(layer).or_insert(zeros).shallow_clone())
    }

    /// The output to go on with, where it is not this one.
    fn write(&mut self, layer: usize, value: &Tensor) -> Result<Action> {
        let mut output = value.shallow_clone();
        let held = self.plan.mode.held().contains(&layer);
        if held {
            output = first_row(value)?;
            if let Some(skipped) = self.skipped.take() {
                output = output.f_add(&skipped)?;
            }
        }
        match self.pending.remove(&layer) {
            Some(pending) => Ok(Action::Replace(output.f_add(&pending.f_view_as(value)?)?)),
            None if held => Ok(Action::Replace(output)),
            None => Ok(Action::Continue),
        }
    }
}

impl HookVisitor for Edit<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        match point {
            HookPoint::Block { layer, hook } => self.wants_in_block(layer, hook),
            HookPoint::FinalScale => self.holds_norms(),
            _ => false,
        }
    }

    fn visit(&mut self, point: HookPoint, value: &Tensor) -> Result<Action> {
        match point {
            HookPoint::Block { layer, hook: BlockHook::Pattern } => self.pattern(layer, value),
            HookPoint::Block { layer, hook } if hook == self.hooks.0 => self.read(layer, value).map(|()| Action::Continue),
            HookPoint::Block { layer, hook } if hook == self.hooks.1 => self.write(layer, value),
            // What is left are denominators of norms.
            _ => Ok(Action::Replace(first_row(value)?)),
        }
    }
}

/// The first row of a batch in every row.
fn first_row(value: &Tensor) -> Result<Tensor> {
    Ok(value.f_narrow(0, 0, 1)?.f_expand(value.size(), false)?)
}

fn into_core(error: crate::Error) -> Error {
    match error {
        crate::Error::Core(error) => error,
        other => Error::Invalid(other.to_string()),
    }
}
