//! Training: a run folder out of a cache and a config.

mod agree;
mod checkpoint;
mod config;
mod exchange;
mod fault;
mod member;
mod metrics;
mod optimiser;
mod pace;
mod plan;
mod ranks;
mod resume;
mod schedule;
mod sent;
mod several;
mod sharing;
mod source;
mod state;
pub(crate) mod step;
mod stop;
mod trainer;

pub(crate) use checkpoint::{newest_checkpoint, written_files};
pub use config::{
    ActivationsConfig, CheckpointConfig, ComputeConfig, DataConfig, InitConfig, MetricsConfig, MomentKind, OptimiserConfig, ScheduleConfig,
    SizeConfig, SparsityConfig, TrainConfig,
};
pub use metrics::{Interval, StepMetrics, variance};
pub use optimiser::{Adam, clip_scale, global_norm};
pub use plan::{Communication, Largest, Layout, Memory, Plan, PlanFor, Rates, Work, plan};
pub use schedule::Schedule;
pub use several::CltConfig;
pub use sharing::Sharing;
pub use trainer::{TrainRequest, TrainSummary, TrainedClt, train};
