//! Which features get rows where not all do: those that matter most for the targets, by what is known so far.

use super::nodes::{ActiveFeature, LogitNode};
use super::store::{RowOf, RowStore};
use crate::Result;

/// Row sums below this are not divided by, as in circuit-tracer.
const LEAST_SUM: f64 = 1e-8;

/// Influences of active features on the targets through the rows that there are, kept up as rows come.
///
/// A row's weight is its target's probability, or its feature's influence. A new row adds its weight times its normalised entries to the influences of
/// features below it; where these have rows, their weights change, and only what changed is passed on.
#[derive(Debug)]
pub(super) struct Influences<'a> {
    active: &'a [ActiveFeature],
    logits: &'a [LogitNode],
    /// Columns that a row is normalised over: features, errors and tokens.
    normalised: usize,
    /// Of each active feature.
    values: Vec<f64>,
    /// Of each row in the store: its weight so far.
    weights: Vec<f64>,
}

impl<'a> Influences<'a> {
    pub(super) fn new(active: &'a [ActiveFeature], logits: &'a [LogitNode], normalised: usize) -> Self {
        Self { active, logits, normalised, values: vec![0.0; active.len()], weights: Vec::new() }
    }

    /// Takes in rows that came since.
    ///
    /// # Errors
    /// What reading a row returns.
    pub(super) fn update(&mut self, store: &RowStore) -> Result<()> {
        self.weights.resize(store.rows().len(), 0.0);
        // From the top down: a row is passed on when nothing above it can change its weight any more.
        let depth = |of: &RowOf| match of {
            RowOf::Logit(_) => u32::MAX,
            RowOf::Feature(active) => self.active[*active].layer,
        };
        let mut order: Vec<usize> = (0..store.rows().len()).collect();
        order.sort_by_key(|place| std::cmp::Reverse(depth(&store.rows()[*place])));
        let mut row = Vec::new();
        for place in order {
            let weight = match store.rows()[place] {
                RowOf::Logit(logit) => self.logits[logit].probability,
                RowOf::Feature(active) => self.values[active],
            };
            let change = weight - self.weights[place];
            if change == 0.0 {
                continue;
            }
            self.weights[place] = weight;
            store.read(place, &mut row)?;
            let sum: f64 = row[..self.normalised].iter().map(|entry| f64::from(entry.abs())).sum();
            let share = change / sum.max(LEAST_SUM);
            for (value, entry) in self.values.iter_mut().zip(&row) {
                *value += share * f64::from(entry.abs());
            }
        }
        Ok(())
    }

    /// The `count` features of most influence among those that `left` has; of equal ones the first.
    pub(super) fn best(&self, left: &[bool], count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..left.len()).filter(|at| left[*at]).collect();
        order.sort_by(|a, b| self.values[*b].total_cmp(&self.values[*a]).then(a.cmp(b)));
        order.truncate(count);
        order
    }
}
