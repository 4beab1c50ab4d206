//! Which keys a query may see.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

/// Masks of one forward pass, made when they are first asked for.
#[derive(Debug)]
pub(super) struct Masks {
    /// Queries, whose positions are the last of `keys`.
    queries: i64,
    keys: i64,
    device: Device,
    /// By window: `[query, key]`, true where the key is hidden.
    hidden: BTreeMap<Option<i64>, Tensor>,
    seen: BTreeMap<Option<i64>, Tensor>,
}

impl Masks {
    pub(super) fn new(queries: i64, keys: i64, device: Device) -> Self {
        Self { queries, keys, device, hidden: BTreeMap::new(), seen: BTreeMap::new() }
    }

    /// Whether every query sees just the keys up to its own, and the first query the first key only.
    pub(super) fn is_plainly_causal(&self, window: Option<i64>) -> bool {
        self.queries == self.keys && self.narrowing(window).is_none()
    }

    /// Whether every query sees every key.
    pub(super) fn is_open(&self, window: Option<i64>) -> bool {
        self.queries == 1 && self.narrowing(window).is_none()
    }

    /// True where a key is later than the query or has left its window: `[query, key]`.
    pub(super) fn hidden(&mut self, window: Option<i64>) -> &Tensor {
        let (window, queries, keys) = (self.narrowing(window), self.queries, self.keys);
        let device = self.device;
        self.hidden.entry(window).or_insert_with(|| {
            let all = || Tensor::ones([queries, keys], (Kind::Bool, device));
            // Query 0 has position `keys - queries`.
            let own = keys - queries;
            let future = all().triu(own + 1);
            match window {
                Some(window) => future.logical_or(&all().tril(own - window)),
                None => future,
            }
        })
    }

    /// The opposite of [`hidden`](Self::hidden).
    pub(super) fn seen(&mut self, window: Option<i64>) -> &Tensor {
        let window = self.narrowing(window);
        let opposite = self.hidden(window).logical_not();
        self.seen.entry(window).or_insert(opposite)
    }

    /// A window, unless it is so wide that it hides nothing.
    fn narrowing(&self, window: Option<i64>) -> Option<i64> {
        window.filter(|window| *window < self.keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_see_their_window() {
        for (queries, keys, window) in [(4, 4, None), (4, 4, Some(2)), (2, 5, Some(3)), (1, 5, Some(5)), (3, 5, None), (1, 1, Some(1))] {
            let mut masks = Masks::new(queries, keys, Device::Cpu);
            for query in 0..queries {
                for key in 0..keys {
                    let at = keys - queries + query;
                    let seen = key <= at && window.is_none_or(|window| key > at - window);
                    assert_eq!(masks.seen(window).int64_value(&[query, key]) == 1, seen, "{queries}, {keys}, {window:?}: {query} to {key}");
                    assert_eq!(masks.hidden(window).int64_value(&[query, key]) == 0, seen);
                }
            }
        }
    }
}
