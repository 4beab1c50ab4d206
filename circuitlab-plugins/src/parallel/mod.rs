//! Parallelism strategies.

#[cfg(feature = "distributed")]
mod ddp;
#[cfg(feature = "distributed")]
mod distributed;
#[cfg(feature = "distributed")]
mod feature_sharded;
#[cfg(feature = "distributed")]
mod fsdp;
#[cfg(feature = "distributed")]
mod hybrid;
mod single;

#[cfg(feature = "distributed")]
pub use ddp::DdpConfig;
#[cfg(feature = "distributed")]
pub use distributed::{Distributed, Waiting};
#[cfg(feature = "distributed")]
pub use feature_sharded::FeatureShardedConfig;
#[cfg(feature = "distributed")]
pub use fsdp::FsdpConfig;
#[cfg(feature = "distributed")]
pub use hybrid::HybridConfig;
pub use single::{Single, SingleConfig};
