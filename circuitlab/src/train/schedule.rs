//! The course of the learning rate and of lambda over a run. A schedule that would not train is refused at the start.

use super::config::TrainConfig;
use crate::{Error, Result};

/// The resolved schedule: all lengths in steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Steps of the run.
    pub steps: u64,
    warmup: u64,
    decay: u64,
    ramp: u64,
    learning_rate: f64,
}

impl Schedule {
    /// Resolves a config against the number of rows in the cache.
    ///
    /// # Errors
    /// Runs without a step, learning rates that are 0 throughout, warm-up and decay that overlap, and a lambda that the run
    /// never reaches.
    pub fn new(config: &TrainConfig, cache_rows: u64) -> Result<Self> {
        let schedule = &config.schedule;
        let refuse = |message: String| Err(Error::Invalid(format!("this schedule never trains: {message}")));
        let batch_rows = config.data.batch_rows as u64;
        let steps = match schedule.steps {
            Some(steps) => steps,
            None if schedule.epochs > 0.0 && schedule.epochs.is_finite() => {
                (schedule.epochs * cache_rows as f64 / batch_rows as f64) as u64
            }
            None => return refuse(format!("`schedule.epochs` is {}, expected a number above 0", schedule.epochs)),
        };
        if steps == 0 {
            return refuse(format!(
                "{cache_rows} rows in batches of {batch_rows} over {} epochs make 0 steps; set `schedule.steps`, or make `data.batch_rows` smaller",
                schedule.epochs
            ));
        }
        if steps.checked_mul(batch_rows).is_none_or(|rows| i64::try_from(rows).is_err()) {
            return Err(Error::Invalid(format!("`schedule`: {steps} steps of {batch_rows} rows are more than can be counted")));
        }
        let rate = config.optimiser.learning_rate;
        if !(rate > 0.0 && rate.is_finite()) {
            return refuse(format!("`optimiser.learning_rate` is {rate}, expected a number above 0"));
        }
        let warmup = schedule.warmup_steps.unwrap_or_else(|| 1000.min(steps / 10));
        let decay = (schedule.decay * steps as f64).round() as u64;
        if warmup + decay > steps {
            return refuse(format!(
                "{warmup} steps of warm-up and {decay} of decay are more than the run's {steps}, so the learning rate is never reached; make `schedule.warmup_steps` or `schedule.decay` smaller"
            ));
        }
        let ramp = config.sparsity.ramp;
        if !(0.0..=1.0).contains(&ramp) {
            return refuse(format!(
                "`sparsity.ramp` is {ramp} of the run, so lambda never reaches {}; expected a number between 0 and 1",
                config.sparsity.lambda
            ));
        }
        let ramp = (ramp * steps as f64).round() as u64;
        Ok(Self { steps, warmup, decay, ramp, learning_rate: rate })
    }

    /// The learning rate of a step, counted from 0. It is above 0 on every step.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let rise = ramp_up(step, self.warmup);
        let left = self.steps.saturating_sub(step);
        let fall = if self.decay == 0 { 1.0 } else { (left as f64 / (self.decay + 1) as f64).min(1.0) };
        self.learning_rate * rise.min(fall)
    }

    /// The share of its final value that lambda has on a step, counted from 0; 1 on the last step.
    pub fn lambda_share(&self, step: u64) -> f64 {
        ramp_up(step, self.ramp)
    }
}

fn ramp_up(step: u64, over: u64) -> f64 {
    if over == 0 { 1.0 } else { ((step + 1) as f64 / over as f64).min(1.0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(steps: u64, warmup: Option<u64>, decay: f64, ramp: f64) -> TrainConfig {
        let mut config = TrainConfig::default();
        config.schedule.steps = Some(steps);
        config.schedule.warmup_steps = warmup;
        config.schedule.decay = decay;
        config.sparsity.ramp = ramp;
        config.optimiser.learning_rate = 0.5;
        config
    }

    proptest! {
        #[test]
        fn an_accepted_schedule_trains_on_every_step_and_reaches_both(
            steps in 1_u64..500, warmup in proptest::option::of(0_u64..600), decay in 0.0..1.2, ramp in 0.0..1.2,
        ) {
            if let Ok(schedule) = Schedule::new(&config(steps, warmup, decay, ramp), 0) {
                prop_assert!((0..steps).all(|step| schedule.learning_rate(step) > 0.0));
                prop_assert!((0..steps).all(|step| schedule.learning_rate(step) <= 0.5));
                prop_assert!((schedule.lambda_share(steps - 1) - 1.0).abs() < 1e-12);
                prop_assert!((1..steps).all(|step| schedule.lambda_share(step) >= schedule.lambda_share(step - 1)));
                if warmup.unwrap_or(0) + ((decay * steps as f64).round() as u64) < steps {
                    let top = (0..steps).map(|step| schedule.learning_rate(step)).fold(0.0, f64::max);
                    prop_assert!((top - 0.5).abs() < 1e-12, "{top}");
                }
            }
        }
    }

    #[test]
    fn schedules_that_never_train_are_refused() {
        for (bad, says) in [
            (config(0, None, 0.2, 1.0), "0 steps"),
            (config(100, Some(1000), 0.2, 1.0), "1000 steps of warm-up and 20 of decay are more than the run's 100"),
            (config(100, None, 0.2, 1.5), "lambda never reaches 2"),
        ] {
            let error = Schedule::new(&bad, 0).expect_err("never trains").to_string();
            assert!(error.starts_with("this schedule never trains: ") && error.contains(says), "{error}");
        }
        let mut zero = config(100, None, 0.2, 1.0);
        zero.optimiser.learning_rate = 0.0;
        assert!(Schedule::new(&zero, 0).is_err());
        let mut few = TrainConfig::default();
        few.schedule.epochs = 1.0;
        assert!(Schedule::new(&few, 500).expect_err("half a batch").to_string().contains("500 rows in batches of 1024"));
    }
}
