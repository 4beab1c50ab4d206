//! Adam (Kingma and Ba 2015) in one pass over a parameter, its moments and its gradient.
//!
//! ```text
//! g = scale * gradient        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
//! p = p - rate * m / (sqrt(v) / root + epsilon)
//! ```
//!
//! A pass moves 28 bytes a parameter in 32 bits, and does not compute for longer than that takes. Each number is stepped by itself and
//! without fused multiplications, so that the result does not depend on the vector unit either.

mod eight;
mod rows;
mod squares;
#[cfg(test)]
mod tests;

use crate::real::Real;

pub use eight::{Numbers, SHARED, first_of, second_of, step_in_8_bits};
pub use rows::{NEVER, Rows, settle, step};
pub use squares::square_sum;

/// The numbers of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The learning rate over `1 - beta1^t`.
    pub rate: f64,
    /// `sqrt(1 - beta2^t)`.
    pub root: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// What gradients are multiplied by as they are read: the factor of clipping.
    pub scale: f64,
}

impl Step {
    /// Step number `t`, from 1, at a learning rate, with unclipped gradients.
    pub fn new(t: u64, learning_rate: f64, beta1: f64, beta2: f64, epsilon: f64) -> Self {
        let exponent = i32::try_from(t).unwrap_or(i32::MAX);
        let rate = learning_rate / (1.0 - beta1.powi(exponent));
        Self { rate, root: (1.0 - beta2.powi(exponent)).sqrt(), epsilon, beta1, beta2, scale: 1.0 }
    }
}

/// The same in the type of the loop.
#[derive(Debug, Clone, Copy)]
struct Factors<T> {
    rate: T,
    per_root: T,
    epsilon: T,
    beta1: T,
    weight1: T,
    beta2: T,
    weight2: T,
    scale: T,
}

impl<T: Real> Factors<T> {
    fn new(step: &Step) -> Self {
        Self {
            rate: T::of(step.rate),
            per_root: T::of(1.0 / step.root),
            epsilon: T::of(step.epsilon),
            beta1: T::of(step.beta1),
            weight1: T::of(1.0 - step.beta1),
            beta2: T::of(step.beta2),
            weight2: T::of(1.0 - step.beta2),
            scale: T::of(step.scale),
        }
    }

    /// Steps some numbers.
    #[inline(always)]
    fn update(&self, value: &mut [T], first: &mut [T], second: &mut [T], gradient: &[T]) {
        for (((value, first), second), gradient) in value.iter_mut().zip(first).zip(second).zip(gradient) {
            let gradient = self.scale * *gradient;
            let m = self.beta1 * *first + self.weight1 * gradient;
            let v = self.beta2 * *second + self.weight2 * gradient * gradient;
            *first = m;
            *second = v;
            *value = *value - self.rate * m / (v.root() * self.per_root + self.epsilon);
        }
    }
}
