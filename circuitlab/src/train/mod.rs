//! Training: a run folder out of a cache and a config.

mod checkpoint;
mod config;
mod metrics;
mod optimiser;
mod pace;
mod plan;
mod schedule;
mod source;
mod state;
mod trainer;

pub use config::{
    ActivationsConfig, CheckpointConfig, ComputeConfig, DataConfig, InitConfig, MetricsConfig, OptimiserConfig, ScheduleConfig, SizeConfig,
    SparsityConfig, TrainConfig,
};
pub use metrics::{Interval, StepMetrics};
pub use optimiser::{Adam, clip_scale, global_norm};
pub use plan::{Layout, Memory, Plan, PlanFor, Rates, Work, plan};
pub use schedule::Schedule;
pub use trainer::{TrainRequest, TrainSummary, train};
