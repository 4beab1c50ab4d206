//! Continuing a text.

use circuitlab_core::hooks::NoHooks;
use circuitlab_core::random::Stream;
use circuitlab_core::{LanguageModel, Past};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// How the next token is drawn from the logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; at 0 the likeliest token is taken, the first among equals.
    pub temperature: f64,
    /// Only so many of the likeliest tokens are drawn from.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that just reach this share of the probability together are drawn from.
    pub top_p: Option<f64>,
    /// Seed of the draws. The draw of a place depends on the seed and the place alone.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token always.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: None, top_p: None, seed: 0 };

    /// Checks the numbers.
    ///
    /// # Errors
    /// A negative temperature, no token at all to draw from, and shares outside of 0 to 1.
    pub fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::Invalid(message));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return invalid(format!("the temperature is {}; expected 0 or more", self.temperature));
        }
        if self.top_k == Some(0) {
            return invalid("top-k is 0; expected at least 1".to_owned());
        }
        if let Some(share) = self.top_p.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
            return invalid(format!("top-p is {share}; expected more than 0 and at most 1"));
        }
        Ok(())
    }

    /// Draws a token; `uniform` is in `[0, 1)`. Nothing where all logits are NaN or there are none.
    fn draw(&self, logits: &[f64], uniform: f64) -> Option<usize> {
        let numbers = || (0..logits.len()).filter(|token| !logits[*token].is_nan());
        // The first among equals, without putting a whole vocabulary in order.
        let likeliest = numbers().reduce(|best, token| if logits[token] > logits[best] { token } else { best })?;
        if self.temperature == 0.0 {
            return Some(likeliest);
        }
        let mut order: Vec<usize> = numbers().collect();
        // Stable, so that equals stay in order.
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        order.truncate(self.top_k.unwrap_or(order.len()));
        let weights: Vec<f64> = order.iter().map(|token| ((logits[*token] - logits[likeliest]) / self.temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut reached = 0.0;
        let kept = match self.top_p {
            None => weights.len(),
            Some(share) => weights
                .iter()
                .take_while(|weight| {
                    let before = reached;
                    reached += **weight;
                    // A share that is reached but for rounding is reached.
                    before < share * total * (1.0 - 1e-12)
                })
                .count(),
        };
        let mut left = uniform * weights[..kept].iter().sum::<f64>();
        let place = weights[..kept].iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a rest after the last.
        order.get(place.unwrap_or(kept.saturating_sub(1))).copied()
    }
}

/// Adds up to `most` tokens to `prompt`, fewer where the model ends the text or its context is full. Gives the added ones, EOS included.
///
/// # Errors
/// A prompt without tokens or one that fills the context, sampling that makes no sense, tokens that the model refuses, and logits that are no numbers.
pub fn generate(model: &dyn LanguageModel, prompt: &[u32], most: usize, sampling: &Sampling) -> Result<Vec<u32>> {
    let mut past = Past::default();
    go_on(model, prompt, most, sampling, &mut |tokens| {
        let logits = tch::no_grad(|| model.extend(tokens, &mut past, &mut NoHooks))?;
        logits.ok_or_else(|| Error::Invalid(format!("model `{}` gave no logits", model.info().name)))
    })
}

/// The same, where `extend` runs the tokens that are new, `[1, position]`, and gives the logits after the last one, `[1, vocabulary]`.
pub(crate) fn go_on(
    model: &dyn LanguageModel,
    prompt: &[u32],
    most: usize,
    sampling: &Sampling,
    extend: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Vec<u32>> {
    sampling.check()?;
    if prompt.is_empty() {
        return Err(Error::Invalid(format!("the prompt has no tokens, and the model `{}` has no BOS to begin with", model.info().name)));
    }
    let context = model.info().context;
    let room = context.saturating_sub(prompt.len());
    if room == 0 && most > 0 {
        let name = &model.info().name;
        return Err(Error::Invalid(format!(
            "the prompt has {} tokens, and the model `{name}` reads {context}: there is no room for more",
            prompt.len()
        )));
    }
    let mut next: Vec<i64> = prompt.iter().map(|id| i64::from(*id)).collect();
    let mut added: Vec<u32> = Vec::new();
    while added.len() < most {
        if added.len() == room {
            tracing::warn!("the text ends with the model's context of {context} tokens");
            break;
        }
        let logits = extend(&Tensor::from_slice(&next).f_unsqueeze(0)?)?.f_get(0)?.f_to_kind(Kind::Double)?;
        let logits: Vec<f64> = Vec::try_from(&logits)?;
        let uniform = Stream::new(sampling.seed, "generate", added.len() as u64).uniform();
        let token = sampling.draw(&logits, uniform).ok_or_else(|| {
            let place = prompt.len() + added.len();
            Error::Invalid(format!("the model `{}` gave no logit that is a number at position {place}", model.info().name))
        })?;
        added.push(token as u32);
        if model.info().stops.contains(&(token as u32)) {
            break;
        }
        next = vec![token as i64];
    }
    Ok(added)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: Sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        assert_eq!(Sampling::GREEDY.draw(&[0.0, 3.0, f64::NAN, 3.0, -1.0], 0.99), Some(1));
        assert_eq!(Sampling::GREEDY.draw(&[], 0.0), None);
        assert_eq!(PLAIN.draw(&[f64::NAN], 0.0), None);
    }

    #[test]
    fn tokens_are_drawn_by_their_probabilities() {
        let logits = [0.1_f64.ln(), 0.2_f64.ln(), 0.7_f64.ln()];
        // Likeliest first: 0.7, 0.2, 0.1.
        for (uniform, token) in [(0.0, 2), (0.69, 2), (0.71, 1), (0.89, 1), (0.91, 0), (0.999_999, 0)] {
            assert_eq!(PLAIN.draw(&logits, uniform), Some(token), "{uniform}");
        }
        let top = |top_k, top_p| Sampling { top_k, top_p, ..PLAIN };
        assert_eq!(top(Some(1), None).draw(&logits, 0.99), Some(2));
        assert_eq!(top(Some(2), None).draw(&logits, 0.77), Some(2), "0.7 of 0.9");
        assert_eq!(top(Some(2), None).draw(&logits, 0.78), Some(1));
        assert_eq!(top(None, Some(0.7)).draw(&logits, 0.99), Some(2), "0.7 is reached by the first alone");
        assert_eq!(top(None, Some(0.71)).draw(&logits, 0.99), Some(1));
        // At a temperature of a half, probabilities are squared: 0.49 of 0.54.
        let cold = Sampling { temperature: 0.5, ..PLAIN };
        assert_eq!((cold.draw(&logits, 0.90), cold.draw(&logits, 0.92)), (Some(2), Some(1)));
    }

    proptest! {
        #[test]
        fn what_is_drawn_is_among_the_likeliest(
            logits in prop::collection::vec(-50.0..50.0_f64, 1..40),
            temperature in 0.01..10.0_f64,
            top_k in 1..50_usize,
            top_p in 0.001..=1.0_f64,
            uniform in 0.0..1.0_f64,
        ) {
            let drawn = Sampling { temperature, top_k: Some(top_k), top_p: Some(top_p), seed: 0 }.draw(&logits, uniform).expect("some token");
            let likelier = |token: usize| logits.iter().filter(|logit| **logit > logits[token]).count();
            prop_assert!(likelier(drawn) < top_k);
            let weight = |logit: f64| (logit / temperature).exp();
            let mut kept = logits.clone();
            kept.sort_by(|a, b| b.total_cmp(a));
            kept.truncate(top_k);
            let total: f64 = kept.iter().map(|logit| weight(*logit)).sum();
            let above: f64 = kept.iter().filter(|logit| **logit > logits[drawn]).map(|logit| weight(*logit)).sum();
            prop_assert!(above <= top_p * total * (1.0 + 1e-9), "{above} of {total}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for (wrong, says) in [
            (Sampling { temperature: -1.0, ..PLAIN }, "temperature is -1"),
            (Sampling { temperature: f64::NAN, ..PLAIN }, "temperature is NaN"),
            (Sampling { top_k: Some(0), ..PLAIN }, "top-k is 0"),
            (Sampling { top_p: Some(1.5), ..PLAIN }, "top-p is 1.5"),
        ] {
            assert!(wrong.check().expect_err("out of range").to_string().contains(says), "{says}");
        }
        PLAIN.check().expect("fine");
    }
}
