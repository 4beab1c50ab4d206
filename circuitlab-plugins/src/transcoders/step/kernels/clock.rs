//! What each stage costs.

use std::time::Instant;

use circuitlab_core::StageCost;

/// Times stages as they go by; those of one name are added up.
#[derive(Debug)]
pub(super) struct Clock {
    since: Instant,
    pub(super) stages: Vec<StageCost>,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { since: Instant::now(), stages: Vec::new() }
    }

    /// Ends a stage, which began when the one before ended.
    pub(super) fn lap(&mut self, name: &'static str, flop: usize, bytes: usize) {
        let seconds = self.since.elapsed().as_secs_f64();
        self.add(StageCost { name, seconds, flop: flop as f64, bytes: bytes as f64 });
        self.since = Instant::now();
    }

    /// Ends two stages that threads went through in turn, by the share of time that they spent in each.
    pub(super) fn lap_shared(&mut self, [first, second]: [StageCost; 2]) {
        let (seconds, busy) = (self.since.elapsed().as_secs_f64(), first.seconds + second.seconds);
        for stage in [first, second] {
            self.add(StageCost { seconds: seconds * stage.seconds / busy.max(f64::MIN_POSITIVE), ..stage });
        }
        self.since = Instant::now();
    }

    fn add(&mut self, cost: StageCost) {
        match self.stages.iter_mut().find(|stage| stage.name == cost.name) {
            Some(stage) => {
                stage.seconds += cost.seconds;
                stage.flop += cost.flop;
                stage.bytes += cost.bytes;
            }
            None => self.stages.push(cost),
        }
    }
}
